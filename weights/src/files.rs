//! Opening files so that a wrong one is an error with a name, never a hang or a crash.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::SystemTime;

use crate::{Error, Result, Storage};

/// An [`Error::Io`] of `action` on `path`.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

/// Opens a regular file for reading. A pipe or device, which could block for ever, is refused unopened.
fn open(path: &Path) -> Result<(File, fs::Metadata)> {
    let metadata = fs::metadata(path).map_err(io_error("open", path))?;
    if !metadata.is_file() {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io_error("open", path))?;
    let metadata = file.metadata().map_err(io_error("open", path))?;
    Ok((file, metadata))
}

/// Maps a whole file read-only; says too when it was last modified, where the system knows. Touches none of its pages.
///
/// # Errors
/// [`Error::Io`] or [`Error::NotAFile`].
pub(crate) fn map(path: &Path) -> Result<(Storage, Option<SystemTime>)> {
    let (file, metadata) = open(path)?;
    let modified = metadata.modified().ok();
    if metadata.len() == 0 {
        return Ok((Storage::Static(&[]), modified));
    }
    // SAFETY: the mapping is read-only and private to this process's readers. Its one hazard is another process that shortens
    // or rewrites the file meanwhile: checkpoints are replaced by renaming (as this crate's writer and downloads do), which
    // leaves a mapped file intact. `Checkpoint::open` documents the condition for its callers.
    let map = unsafe { memmap2::MmapOptions::new().map(&file) }.map_err(io_error("map", path))?;
    Ok((Storage::Mapped(map), modified))
}

/// Reads a whole small file.
///
/// # Errors
/// [`Error::Io`], [`Error::NotAFile`], and [`Error::FileTooLarge`] beyond `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, metadata) = open(path)?;
    let size = metadata.len();
    if size > limit {
        return Err(Error::FileTooLarge { path: path.to_owned(), found: size, limit });
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // One byte beyond the limit, so that a file that grows meanwhile is noticed.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::FileTooLarge { path: path.to_owned(), found: bytes.len() as u64, limit });
    }
    Ok(bytes)
}

/// As [`read`], but `None` if there is no such file.
pub(crate) fn read_if_there(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    match read(path, limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
