//! Reading the safetensors files of this module: scores, predictors, gate thresholds.
//!
//! They come from training runs and from other people's scripts, so everything is checked here before anything is used, and
//! what is wrong is said by name. They are small beside a model and are read whole: a file that is replaced while the program
//! runs cannot change what it computes.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use shadowllm_weights::{DType, HeaderTensor, Storage, TensorData, parse_safetensors_header};

use crate::{Error, Result};

/// A safetensors file in memory, its header checked.
pub(crate) struct File {
    storage: Arc<Storage>,
    tensors: BTreeMap<String, HeaderTensor>,
    metadata: BTreeMap<String, String>,
}

/// The part of a header that [`parse_safetensors_header`] passes over.
#[derive(serde::Deserialize)]
struct Head {
    #[serde(rename = "__metadata__", default)]
    metadata: BTreeMap<String, String>,
}

impl File {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Weights`] if it is no safetensors file.
    pub(crate) fn read(path: &Path) -> Result<File> {
        let storage = read(path).map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })?;
        File::new(storage).map_err(|e| e.in_file(path))
    }

    /// Maps and checks a file that is too large to be read whole. Its values are read when they are asked for.
    ///
    /// # Errors
    /// As [`File::read`].
    pub(crate) fn map(path: &Path) -> Result<File> {
        let storage = Storage::map(path)?;
        File::new(storage).map_err(|e| e.in_file(path))
    }

    /// As [`File::read`], for the content of a file.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<File> {
        File::new(Storage::owned(bytes))
    }

    fn new(storage: Storage) -> Result<File> {
        let bytes = storage.bytes();
        let tensors = parse_safetensors_header(bytes)?;
        // The header was checked: it is there, as long as it says, and JSON.
        let json = bytes.get(8..).unwrap_or_default();
        let mut reader = serde_json::Deserializer::from_slice(json);
        let head: Head = serde::Deserialize::deserialize(&mut reader)
            .map_err(|e| Error::FileMetadata { key: "__metadata__".to_owned(), reason: e.to_string() })?;
        let tensors = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
        Ok(File { storage: Arc::new(storage), tensors, metadata: head.metadata })
    }

    /// An entry of the metadata, if it is there.
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// As [`File::metadata`].
    ///
    /// # Errors
    /// [`Error::FileMetadata`] if there is none.
    pub(crate) fn expect_metadata(&self, key: &str) -> Result<&str> {
        self.metadata(key).ok_or_else(|| Error::FileMetadata {
            key: key.to_owned(),
            reason: "it is not there; this is another kind of file, or it was written without metadata".to_owned(),
        })
    }

    /// Whether there is a tensor `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of all tensors, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All names in one line, for messages.
    pub(crate) fn listing(&self) -> String {
        match self.tensors.len() {
            0 => "no tensors".to_owned(),
            1..=12 => self.names().collect::<Vec<_>>().join(", "),
            n => format!("{}, .. ({n} tensors)", self.names().take(12).collect::<Vec<_>>().join(", ")),
        }
    }

    /// Sizes of the tensor `name`, if it is there.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| &entry.shape[..])
    }

    /// Bytes of the tensor `name`.
    #[cfg(test)]
    pub(crate) fn bytes_of(&self, name: &str) -> u64 {
        self.tensors.get(name).map_or(0, |entry| entry.range.len() as u64)
    }

    /// The header's entry of `name`, of exactly this shape.
    ///
    /// # Errors
    /// [`Error::FileTensorMissing`], [`Error::FileTensorShape`].
    pub(crate) fn entry(&self, name: &str, shape: &[usize]) -> Result<&HeaderTensor> {
        let entry = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::FileTensorMissing { name: name.to_owned(), known: self.listing() })?;
        if entry.shape != shape {
            return Err(Error::FileTensorShape {
                name: name.to_owned(),
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        Ok(entry)
    }

    /// A tensor in a format that kernels take.
    ///
    /// # Errors
    /// Also [`Error::FileTensorType`], and [`Error::Weights`] if it is not aligned.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorData> {
        let entry = self.entry(name, shape)?;
        let dtype = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            _ => return Err(wrong_type(entry, "F32, F16 or BF16")),
        };
        Ok(TensorData::new(Arc::clone(&self.storage), entry.range.clone(), dtype, shape)?)
    }

    /// The values of an F32 tensor.
    ///
    /// # Errors
    /// As [`File::tensor`].
    pub(crate) fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let entry = self.entry(name, shape)?;
        if entry.dtype != Dtype::F32 {
            return Err(wrong_type(entry, "F32"));
        }
        Ok(self.tensor(name, shape)?.to_f32())
    }

    /// The bytes of a tensor of exactly this shape and type.
    ///
    /// # Errors
    /// As [`File::entry`], and [`Error::FileTensorType`].
    pub(crate) fn bytes(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<&[u8]> {
        let entry = self.entry(name, shape)?;
        if entry.dtype != dtype {
            let expected = match dtype {
                Dtype::U8 => "U8",
                Dtype::U32 => "U32",
                Dtype::F16 => "F16",
                Dtype::F64 => "F64",
                _ => "F32",
            };
            return Err(wrong_type(entry, expected));
        }
        Ok(&self.storage.bytes()[entry.range.clone()])
    }

    /// The bytes of an I8 tensor: its place in the file's memory.
    ///
    /// # Errors
    /// As [`File::tensor`].
    pub(crate) fn i8(&self, name: &str, shape: &[usize]) -> Result<(Arc<Storage>, std::ops::Range<usize>)> {
        let entry = self.entry(name, shape)?;
        if entry.dtype != Dtype::I8 {
            return Err(wrong_type(entry, "I8"));
        }
        Ok((Arc::clone(&self.storage), entry.range.clone()))
    }
}

fn wrong_type(entry: &HeaderTensor, expected: &'static str) -> Error {
    Error::FileTensorType { name: entry.name.clone(), found: entry.dtype.to_string(), expected }
}

/// A whole regular file, aligned for every element type. A pipe or device, which could block for ever, is refused unopened.
fn read(path: &Path) -> std::io::Result<Storage> {
    use std::io::{Error, ErrorKind};
    if !std::fs::metadata(path)?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut file = std::fs::File::open(path)?;
    let len = usize::try_from(file.metadata()?.len()).map_err(|_| Error::from(ErrorKind::FileTooLarge))?;
    let mut words = Vec::new();
    words.try_reserve_exact(len.div_ceil(8)).map_err(|_| Error::from(ErrorKind::OutOfMemory))?;
    words.resize(len.div_ceil(8), 0_u64);
    file.read_exact(&mut bytemuck::cast_slice_mut(&mut words)[..len])?;
    Ok(Storage::Owned { words, len })
}
