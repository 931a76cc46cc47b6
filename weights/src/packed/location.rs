//! Where the packed weights of a model are kept.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::PackedCheckpoint;
use crate::writer::Temporary;
use crate::{Checkpoint, Error, Result};

/// Name of the packed file in a model's directory.
pub(crate) const FILE_NAME: &str = "model.shadow.safetensors";
/// End of the names of all packed files that are made without asking for a name.
pub(super) const SUFFIX: &str = ".shadow.safetensors";

/// Where the packed file of `checkpoint` is or will be: `model.shadow.safetensors` in its directory. For a directory that cannot
/// be written and has no usable one, and for a model that is in no directory, a file in the cache folder, named by
/// [`Checkpoint::fingerprint`]: `SHADOWLLM_CACHE`, else `XDG_CACHE_HOME/shadowllm`, else `~/.cache/shadowllm`.
///
/// # Errors
/// [`Error::NoPackedCache`] if there is no home directory; [`Error::MissingTensor`] or [`Error::UnsupportedTensor`] of a
/// checkpoint that is not what its configuration says.
pub fn packed_location(checkpoint: &Checkpoint) -> Result<PathBuf> {
    locate(checkpoint, is_writable, cache_directory())
}

/// The folder for what can be made again: `SHADOWLLM_CACHE`, else `XDG_CACHE_HOME/shadowllm`, else `~/.cache/shadowllm`; `None` without a
/// home directory.
pub fn cache_directory() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    cache_folder(var, std::env::home_dir())
}

pub(super) fn locate(
    checkpoint: &Checkpoint,
    is_writable: impl Fn(&Path) -> bool,
    cache: Option<PathBuf>,
) -> Result<PathBuf> {
    if let Some(directory) = checkpoint.directory() {
        let beside = directory.join(FILE_NAME);
        if is_writable(directory) || PackedCheckpoint::open_for(&beside, checkpoint, &()).is_ok() {
            return Ok(beside);
        }
    }
    let cache = cache.ok_or(Error::NoPackedCache)?;
    let key = checkpoint.fingerprint()?;
    Ok(cache.join("packed").join(format!("{}{SUFFIX}", &key[..32])))
}

pub(super) fn cache_folder(var: impl Fn(&str) -> Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    var("SHADOWLLM_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|cache| cache.join("shadowllm")))
        .or_else(|| home.map(|home| home.join(".cache/shadowllm")))
}

/// Only trying tells: permissions, read-only mounts and quotas all have a say.
fn is_writable(directory: &Path) -> bool {
    let probe = Temporary::beside(&directory.join(FILE_NAME));
    File::create_new(probe.path()).is_ok()
}
