//! Writing checkpoints so that a crash, a full disk or a bug never leaves a broken file under a good name.
//!
//! Everything goes to a temporary name in the target's own directory first, is flushed to the disk, and is then renamed:
//! a reader sees the old file or the complete new one. Tensors are streamed, so a checkpoint larger than memory can be
//! written; that needs the safetensors header up front, which is why the names, types and shapes are declared first.
//!
//! Format: <https://huggingface.co/docs/safetensors>. An 8-byte little-endian header length, the JSON header padded with
//! spaces, then the tensors back to back. Wider element types come first, before them rows of int8, which are multiples of
//! 16 bytes, and the data starts at a multiple of 64 bytes, so every tensor is aligned to its element size and the file can be used
//! where it is mapped.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value, json};

use crate::{DType, Error, Result};

/// The data of a file starts at a multiple of this many bytes: one cache line.
const DATA_ALIGNMENT: usize = 64;

/// Declaration of one tensor of a file that is about to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes of the tensor; `None` if that is more than the address space.
    pub fn byte_len(&self) -> Option<usize> {
        self.dtype.bytes(&self.shape)
    }
}

/// A file or directory under a temporary name; removed when dropped unless it was renamed into place.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    target: PathBuf,
    kept: bool,
}

impl Temporary {
    /// A name in `target`'s directory that no other writer of this or another process uses. Creates nothing.
    pub(crate) fn beside(target: &Path) -> Self {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let path = target.with_file_name(format!(".{name}.{}-{unique}.tmp", std::process::id()));
        Temporary { path, target: target.to_owned(), kept: false }
    }

    /// Removes what writers of `target` left behind that were killed. Only for who knows that no other writer is at work.
    pub(crate) fn remove_abandoned(target: &Path) {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!(".{name}.");
        for entry in fs::read_dir(parent_of(target)).into_iter().flatten().flatten() {
            let found = entry.file_name();
            let unique = found.to_str().and_then(|n| n.strip_prefix(&prefix)?.strip_suffix(".tmp"));
            let is_ours = |unique: &str| unique.bytes().all(|b| b.is_ascii_digit() || b == b'-');
            if unique.is_some_and(is_ours) {
                // It costs space and nothing else; the next writer tries again.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// The temporary name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a target that is there but no regular file: renaming would put a file in the place of a device or pipe.
    ///
    /// # Errors
    /// [`Error::NotAFile`].
    fn check_target(&self) -> Result<()> {
        match fs::metadata(&self.target) {
            Ok(there) if !there.is_file() => Err(Error::NotAFile { path: self.target.clone() }),
            _ => Ok(()),
        }
    }

    /// Renames to the target and makes the rename durable.
    pub(crate) fn keep(mut self) -> std::io::Result<()> {
        fs::rename(&self.path, &self.target)?;
        self.kept = true;
        sync_directory(&self.target);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing can be done about a failure here, and the error that led here is the one worth reporting.
            let _ = if self.path.is_dir() { fs::remove_dir_all(&self.path) } else { fs::remove_file(&self.path) };
        }
    }
}

/// Makes a rename inside `path`'s directory survive a power cut. Not every file system can do it, and the rename has
/// happened either way, so failure is not an error.
fn sync_directory(path: &Path) {
    if let Ok(directory) = File::open(parent_of(path)) {
        let _ = directory.sync_all();
    }
}

/// The directory that `path` is in.
fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a small file in one go: temporary name, flush, rename.
///
/// # Errors
/// [`Error::Write`] if any step fails, [`Error::NotAFile`] if there is a directory, device or pipe at `path`. What was at `path` before is then still there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |source| Error::Write { path: path.to_owned(), needed: bytes.len() as u64, source };
    let temporary = Temporary::beside(path);
    temporary.check_target()?;
    let mut file = File::create(temporary.path()).map_err(fail)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail)?;
    drop(file);
    temporary.keep().map_err(fail)
}

/// Where a declared tensor goes and how much of it is there.
#[derive(Debug)]
struct Slot {
    /// Offset in the file.
    start: u64,
    /// Bytes declared.
    len: usize,
    /// Bytes written so far.
    written: usize,
}

/// Streaming writer of one safetensors file.
///
/// ```
/// use shadowllm_weights::{DType, SafetensorsWriter, TensorSpec};
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("model.safetensors");
/// let specs = [TensorSpec { name: "w".into(), dtype: DType::F32, shape: vec![2] }];
/// let mut writer = SafetensorsWriter::create(&path, &specs, &Default::default())?;
/// writer.write("w", &[0, 0, 128, 63, 0, 0, 0, 64])?; // 1.0, 2.0
/// writer.finish()?;
/// # Ok::<(), shadowllm_weights::Error>(())
/// ```
///
/// Dropping it without [`SafetensorsWriter::finish`] removes what was written.
#[derive(Debug)]
pub struct SafetensorsWriter {
    // The file comes first: it is closed before `temporary` removes it, as some systems require.
    file: File,
    temporary: Temporary,
    slots: HashMap<String, Slot>,
    /// Names in the order of their data.
    order: Vec<String>,
    position: u64,
    needed: u64,
}

impl SafetensorsWriter {
    /// Starts a file that will hold exactly `specs`, in the order given but wider element types first.
    /// `metadata` becomes the header's `__metadata__`.
    ///
    /// # Errors
    /// [`Error::DuplicateTensor`], [`Error::TensorSize`] for a shape beyond the address space, [`Error::Write`],
    /// [`Error::NotAFile`] if there is a directory, device or pipe at `path`.
    pub fn create(path: &Path, specs: &[TensorSpec], metadata: &BTreeMap<String, String>) -> Result<Self> {
        let temporary = Temporary::beside(path);
        temporary.check_target()?;
        let file = File::create(temporary.path()).map_err(|source| Error::Write {
            path: path.to_owned(),
            needed: Layout::of(path, specs, metadata).map_or(0, |l| l.needed),
            source,
        })?;
        Self::on(file, temporary, specs, metadata)
    }

    /// The writer over an open file; `file` need not be the one at `temporary`'s path, which lets tests use a full device.
    fn on(file: File, temporary: Temporary, specs: &[TensorSpec], metadata: &BTreeMap<String, String>) -> Result<Self> {
        let Layout { head, slots, order, needed } = Layout::of(&temporary.target, specs, metadata)?;
        let mut writer = SafetensorsWriter { file, temporary, slots, order, position: 0, needed };
        writer.put(&head)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|source| self.fail(source))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn fail(&self, source: std::io::Error) -> Error {
        Error::Write { path: self.temporary.target.clone(), needed: self.needed, source }
    }

    /// Bytes of the finished file.
    pub fn file_len(&self) -> u64 {
        self.needed
    }

    /// Tensor names in the order of their data: writing in this order is one sequential stream.
    pub fn order(&self) -> impl Iterator<Item = &str> {
        self.order.iter().map(String::as_str)
    }

    /// Writes a whole tensor; `bytes` is little-endian and row-major. Any order of tensors is allowed.
    ///
    /// # Errors
    /// [`Error::UndeclaredTensor`], [`Error::TensorBytes`] if the length is not the declared one or the tensor was written
    /// before, [`Error::Write`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if let Some(slot) = self.slots.get(name)
            && (slot.written != 0 || slot.len != bytes.len())
        {
            return Err(self.wrong_length(name, slot, bytes.len()));
        }
        self.append(name, bytes)
    }

    /// Writes the next part of a tensor; the parts of one tensor come in order.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::write`]; a tensor that stays incomplete is reported by [`SafetensorsWriter::finish`].
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some(slot) = self.slots.get(name) else {
            return Err(Error::UndeclaredTensor { path: self.temporary.target.clone(), name: name.to_owned() });
        };
        if bytes.len() > slot.len - slot.written {
            return Err(self.wrong_length(name, slot, bytes.len()));
        }
        let at = slot.start + slot.written as u64;
        if at != self.position {
            self.position = self.file.seek(SeekFrom::Start(at)).map_err(|source| self.fail(source))?;
        }
        self.put(bytes)?;
        if let Some(slot) = self.slots.get_mut(name) {
            slot.written += bytes.len();
        }
        Ok(())
    }

    fn wrong_length(&self, name: &str, slot: &Slot, more: usize) -> Error {
        Error::TensorBytes {
            path: self.temporary.target.clone(),
            name: name.to_owned(),
            expected: slot.len,
            found: slot.written.saturating_add(more),
        }
    }

    /// Makes every further write fail as on a full disk.
    #[cfg(all(test, target_os = "linux"))]
    pub(crate) fn fill_disk(&mut self) {
        if let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") {
            self.file = full;
        }
    }

    /// Checks that every tensor is there, flushes to the disk and renames the file into place.
    ///
    /// # Errors
    /// [`Error::TensorBytes`] names the first tensor that is incomplete, [`Error::Write`]. What was at the path before is
    /// then still there.
    pub fn finish(self) -> Result<()> {
        let incomplete = self.order.iter().find_map(|name| {
            let slot = self.slots.get(name)?;
            (slot.written != slot.len).then(|| self.wrong_length(name, slot, 0))
        });
        if let Some(error) = incomplete {
            return Err(error);
        }
        self.file.sync_all().map_err(|source| self.fail(source))?;
        let SafetensorsWriter { file, temporary, needed, .. } = self;
        drop(file);
        let path = temporary.target.clone();
        temporary.keep().map_err(|source| Error::Write { path, needed, source })
    }
}

/// Header bytes and the place of every tensor.
struct Layout {
    /// Length field and padded JSON.
    head: Vec<u8>,
    slots: HashMap<String, Slot>,
    order: Vec<String>,
    needed: u64,
}

impl Layout {
    fn of(path: &Path, specs: &[TensorSpec], metadata: &BTreeMap<String, String>) -> Result<Self> {
        let mut sorted: Vec<&TensorSpec> = specs.iter().collect();
        // Rows of int8 are multiples of 16 bytes: in front they are aligned to them, and nothing after them is less aligned.
        let width = |dtype: DType| if dtype == DType::I8 { 16 } else { dtype.size() };
        sorted.sort_by_key(|s| std::cmp::Reverse(width(s.dtype)));

        let mut header = Map::new();
        if !metadata.is_empty() {
            header.insert("__metadata__".to_owned(), json!(metadata));
        }
        let mut slots = HashMap::with_capacity(specs.len());
        let mut data_len = 0usize;
        for spec in &sorted {
            let too_large =
                || Error::TensorSize { shape: spec.shape.clone(), dtype: spec.dtype, expected: usize::MAX, found: 0 };
            let len = spec.byte_len().ok_or_else(too_large)?;
            let shape = spec.dtype.stored_shape(&spec.shape).ok_or_else(too_large)?;
            let end = data_len.checked_add(len).ok_or_else(too_large)?;
            header.insert(
                spec.name.clone(),
                json!({ "dtype": safetensors_name(spec.dtype), "shape": shape, "data_offsets": [data_len, end] }),
            );
            let slot = Slot { start: data_len as u64, len, written: 0 };
            if slots.insert(spec.name.clone(), slot).is_some() {
                return Err(Error::DuplicateTensor { path: path.to_owned(), name: spec.name.clone() });
            }
            data_len = end;
        }

        let mut head = vec![0; 8];
        head.extend_from_slice(Value::Object(header).to_string().as_bytes());
        head.resize(head.len().next_multiple_of(DATA_ALIGNMENT), b' ');
        let json_len = head.len() as u64 - 8;
        head[..8].copy_from_slice(&json_len.to_le_bytes());
        for slot in slots.values_mut() {
            slot.start += head.len() as u64;
        }
        let needed = head.len() as u64 + data_len as u64;
        Ok(Layout { head, slots, order: sorted.iter().map(|s| s.name.clone()).collect(), needed })
    }
}

/// Name of a type in a safetensors header.
fn safetensors_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::I8 => "I8",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
