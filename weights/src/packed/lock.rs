//! One process at a time makes a packed file.
//!
//! The lock is the operating system's, on an empty-looking file beside the target: it ends with the process that holds it, however
//! that ends. Inside is the process id, for messages.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::PackedProblem;
use crate::{Error, Progress, Result};

/// How often a waiting process looks again.
const PATIENCE: Duration = Duration::from_millis(50);
/// How often before a lock counts as held: looking at it, as [`holder`] does, takes it for a moment.
const ATTEMPTS: u32 = 4;

/// Held while a file is packed.
#[derive(Debug)]
pub(super) struct PackLock {
    _file: File,
}

impl PackLock {
    /// Takes the lock of `target`.
    ///
    /// # Errors
    /// [`PackedProblem::Busy`] if another process has it; [`Error::Io`].
    pub(super) fn acquire(target: &Path) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            if let Some(lock) = Self::attempt(target)? {
                return Ok(lock);
            }
            std::thread::sleep(PATIENCE);
        }
        Err(busy(target))
    }

    /// Takes the lock of `target`, waiting as long as another process has it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Interrupted`].
    pub(super) fn wait(target: &Path, progress: &dyn Progress) -> Result<Self> {
        if let Some(lock) = Self::attempt(target)? {
            return Ok(lock);
        }
        progress.start(&format!("waiting for {}, which packs this model", read_holder(target)), None);
        loop {
            if let Some(lock) = Self::attempt(target)? {
                progress.finish();
                return Ok(lock);
            }
            if !progress.go_on() {
                return Err(Error::Interrupted);
            }
            std::thread::sleep(PATIENCE);
        }
    }

    fn attempt(target: &Path) -> Result<Option<Self>> {
        let path = path(target);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::io("create", &path, e))?;
        match file.try_lock() {
            Ok(()) => {
                // Only for messages, so failing to write it is no failure.
                let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
                Ok(Some(PackLock { _file: file }))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(Error::io("lock", &path, source)),
        }
    }
}

/// Whether someone is making `target` now.
pub(super) fn is_held(target: &Path) -> bool {
    File::open(path(target)).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// The error that says who is making `target`.
pub(super) fn busy(target: &Path) -> Error {
    Error::Packed { path: target.to_owned(), problem: PackedProblem::Busy { holder: read_holder(target) } }
}

fn path(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.lock"))
}

fn read_holder(target: &Path) -> String {
    let mut text = String::new();
    let read = File::open(path(target)).and_then(|file| file.take(20).read_to_string(&mut text));
    match text.parse::<u32>() {
        Ok(id) if read.is_ok() => format!("process {id}"),
        _ => "another process".to_owned(),
    }
}
