//! From safetensors files to named tensors: one file, or an index and its shards.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use safetensors::Dtype;

use crate::header::parse_safetensors_header;
use crate::index::parse_safetensors_index;
use crate::quantize;
use crate::{DType, Error, ModelConfig, Result, Storage, TensorData, files};

/// Name of the only file of an unsharded checkpoint.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Name of the index of a sharded checkpoint.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Largest index accepted; real ones have under 10 MB.
pub(crate) const MAX_INDEX: u64 = 64 << 20;

/// A tensor of a file: readable, or of a type that the engine has no kernels for.
pub(crate) enum Tensor {
    /// Ready to use.
    Loaded(TensorData),
    /// Its type as written. An error only when the tensor is asked for: old checkpoints carry integer buffers nobody needs.
    Unsupported(String),
}

/// A file of weights as it was when it was mapped.
pub(crate) struct WeightFile {
    /// Its name in the directory.
    pub(crate) name: String,
    /// When it was last modified; `None` if it is no file of a directory, or the system does not say.
    pub(crate) modified: Option<SystemTime>,
    /// The whole file.
    pub(crate) storage: Arc<Storage>,
    /// Hash of its content, once someone has asked for it.
    pub(crate) hash: OnceLock<String>,
}

/// Tensors by name, the files that they are in, and the size of those.
#[derive(Default)]
pub(crate) struct Tensors {
    pub(crate) by_name: BTreeMap<String, Tensor>,
    pub(crate) files: Vec<WeightFile>,
    pub(crate) bytes: u64,
}

/// The tensors of one safetensors file in `storage`. Reads the header only. `int8` has the shape of every tensor of bytes that is
/// rows of int8 weights; what is not named there is unsupported.
///
/// # Errors
/// Those of [`parse_safetensors_header`], [`Error::TensorMisaligned`] and [`Error::Int8Shape`].
pub(crate) fn read_storage(
    name: &str,
    storage: Storage,
    modified: Option<SystemTime>,
    int8: &HashMap<String, Vec<usize>>,
) -> Result<Tensors> {
    let header = parse_safetensors_header(storage.bytes())?;
    let storage = Arc::new(storage);
    let file = WeightFile { name: name.to_owned(), modified, storage: Arc::clone(&storage), hash: OnceLock::new() };
    let mut tensors = Tensors { by_name: BTreeMap::new(), bytes: storage.bytes().len() as u64, files: vec![file] };
    for mut entry in header {
        let dtype = match entry.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            Dtype::I8 if int8.contains_key(&entry.name) => Some(DType::I8),
            _ => None,
        };
        if let (Some(DType::I8), Some(shape)) = (dtype, int8.get(&entry.name)) {
            let expected = DType::I8.stored_shape(shape).unwrap_or_default();
            if entry.shape != expected {
                return Err(Error::Int8Shape { name: entry.name, found: entry.shape, expected });
            }
            entry.shape.clone_from(shape);
        }
        let tensor = match dtype {
            None => Tensor::Unsupported(entry.dtype.to_string()),
            Some(dtype) => {
                if !entry.range.start.is_multiple_of(dtype.size()) {
                    return Err(Error::TensorMisaligned {
                        name: entry.name,
                        offset: entry.range.start as u64,
                        size: dtype.size(),
                    });
                }
                Tensor::Loaded(TensorData::new(Arc::clone(&storage), entry.range, dtype, &entry.shape)?)
            }
        };
        tensors.by_name.insert(entry.name, tensor);
    }
    Ok(tensors)
}

/// The tensors of the directory of a model of this configuration.
///
/// # Errors
/// [`Error::NoWeights`] if there is nothing to read; otherwise what is wrong with the index or a shard.
pub(crate) fn read_directory(dir: &Path, config: &ModelConfig) -> Result<Tensors> {
    let single = dir.join(SINGLE);
    if single.exists() {
        return read_file(dir, SINGLE, config);
    }
    let index = dir.join(INDEX);
    match files::read_if_there(&index, MAX_INDEX)? {
        Some(json) => {
            let shard_of = parse_safetensors_index(&json).map_err(|e| e.in_file(&index))?;
            read_shards(dir, &shard_of, config).map_err(|e| match e {
                located @ (Error::InFile { .. } | Error::Io { .. } | Error::NotAFile { .. }) => located,
                other => other.in_file(&index),
            })
        }
        None => Err(Error::NoWeights { path: dir.to_owned(), hint: hint(dir) }),
    }
}

fn read_file(dir: &Path, name: &str, config: &ModelConfig) -> Result<Tensors> {
    let path = dir.join(name);
    let (storage, modified) = files::map(&path)?;
    let int8 = quantize::int8_shapes(storage.bytes(), config).map_err(|e| e.in_file(&path))?;
    read_storage(name, storage, modified, &int8).map_err(|e| e.in_file(&path))
}

fn read_shards(dir: &Path, shard_of: &BTreeMap<String, String>, config: &ModelConfig) -> Result<Tensors> {
    // Each shard with one of its tensors, to name in an error.
    let mut shards: BTreeMap<&str, &str> = BTreeMap::new();
    for (tensor, shard) in shard_of {
        shards.entry(shard).or_insert(tensor);
    }
    let mut all = Tensors::default();
    let mut found_in: BTreeMap<String, &str> = BTreeMap::new();
    for (shard, tensor) in shards {
        if !dir.join(shard).exists() {
            return Err(Error::MissingShard { shard: shard.to_owned(), tensor: tensor.to_owned() });
        }
        let part = read_file(dir, shard, config)?;
        all.bytes += part.bytes;
        all.files.extend(part.files);
        for (name, tensor) in part.by_name {
            if let Some(first) = found_in.insert(name.clone(), shard) {
                return Err(Error::InTwoShards { tensor: name, first: first.to_owned(), second: shard.to_owned() });
            }
            all.by_name.insert(name, tensor);
        }
    }
    for (tensor, shard) in shard_of {
        if found_in.get(tensor) != Some(&shard.as_str()) {
            return Err(Error::NotInShard { tensor: tensor.clone(), shard: shard.clone() });
        }
    }
    Ok(all)
}

/// What a directory without safetensors has instead, and what to do with it.
fn hint(dir: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    let find = |wanted: &dyn Fn(&str) -> bool| names.iter().find(|name| wanted(name));
    if let Some(name) = find(&|n| n.starts_with("pytorch_model") && n.contains(".bin")) {
        return format!(
            "it has {name}, which may run code when it is read: convert it to safetensors with transformers' save_pretrained"
        );
    }
    if let Some(name) = find(&|n| n.ends_with(".gguf")) {
        return format!("it has {name}: convert it with `shadowllm import`");
    }
    if let Some(name) = find(&|n| n.ends_with(".safetensors") && n != crate::packed::FILE_NAME) {
        return format!("it has {name}: rename it, or restore the index if it is one of several shards");
    }
    "download or copy the weights".to_owned()
}
