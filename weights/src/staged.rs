//! A new directory that appears whole or not at all.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::writer::Temporary;
use crate::{Error, Result, write_atomic};

/// A directory under a temporary name beside its target. [`StagedDirectory::finish`] renames it; dropping it before that
/// removes it with everything in it.
#[derive(Debug)]
pub struct StagedDirectory {
    temporary: Temporary,
    target: PathBuf,
}

impl StagedDirectory {
    /// Starts a directory that will be `target`. `target` must not exist or be empty; its parents are made.
    ///
    /// # Errors
    /// [`Error::OutputExists`] if there is something at `target`, [`Error::Io`] if directories cannot be made or `target`
    /// ends in no name that could be given to one (`.`, `..`, `/`).
    pub fn create(target: &Path) -> Result<Self> {
        check_empty(target)?;
        if target.file_name().is_none() {
            let reason = "it ends in no name for a new directory";
            return Err(Error::io("create", target, std::io::Error::new(ErrorKind::InvalidInput, reason)));
        }
        // A link to an empty directory: the directory is replaced, the link stays.
        let target = if target.is_symlink() {
            fs::canonicalize(target).map_err(|e| Error::io("open", target, e))?
        } else {
            target.to_owned()
        };
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|source| Error::io("create", parent, source))?;
        }
        let temporary = Temporary::beside(&target);
        fs::create_dir(temporary.path()).map_err(|source| Error::io("create", temporary.path(), source))?;
        Ok(StagedDirectory { temporary, target })
    }

    /// Where the files go until the end.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Writes a small file.
    ///
    /// # Errors
    /// [`Error::Write`] if the disk is full or not writable.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_atomic(&self.path().join(name), bytes).map_err(|error| self.finally(error))
    }

    /// The error of writing a file in here, with the name that the file would have had: that is the one its reader knows.
    pub fn finally(&self, error: Error) -> Error {
        match error {
            Error::Write { path, needed, source } => {
                let path = path.file_name().map_or_else(|| self.target.clone(), |name| self.target.join(name));
                Error::Write { path, needed, source }
            }
            other => other,
        }
    }

    /// Renames the directory to its target.
    ///
    /// # Errors
    /// [`Error::OutputExists`] if something appeared at the target meanwhile, [`Error::Io`] if it cannot be renamed.
    pub fn finish(self) -> Result<()> {
        check_empty(&self.target)?;
        if self.target.exists() {
            // Empty, as just checked; not every system renames onto an empty directory.
            fs::remove_dir(&self.target).map_err(|source| Error::io("replace", &self.target, source))?;
        }
        let Self { temporary, target } = self;
        temporary.keep().map_err(|source| Error::io("rename the finished directory to", &target, source))
    }
}

/// Whether there is nothing at `target` that could be lost.
fn check_empty(target: &Path) -> Result<()> {
    let exists = || Error::OutputExists { path: target.to_owned() };
    match fs::read_dir(target) {
        Ok(mut entries) => entries.next().map_or(Ok(()), |_| Err(exists())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(_) if target.exists() => Err(exists()),
        Err(source) => Err(Error::io("create", target, source)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn make(target: &Path) -> Result<()> {
        let staged = StagedDirectory::create(target)?;
        staged.write("a", b"1")?;
        staged.finish()
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_an_empty_directory_stays_a_link() {
        let base = tempfile::tempdir().unwrap();
        let (real, link) = (base.path().join("real"), base.path().join("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        make(&link).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(real.join("a")).unwrap(), b"1");
    }

    #[test]
    fn what_cannot_be_made_is_refused_before_any_work() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("file"), "").unwrap();
        fs::create_dir(base.path().join("empty")).unwrap();
        for (name, reason) in [
            (
                "file",
                "BASE/file exists and is not an empty directory; choose another name or remove it; nothing was changed",
            ),
            ("file/x", "cannot create BASE/file/x: Not a directory (os error 20)"),
            ("new/..", "cannot create BASE/new/..: it ends in no name for a new directory"),
            (
                "empty/..",
                "BASE/empty/.. exists and is not an empty directory; choose another name or remove it; nothing was changed",
            ),
        ] {
            let error = StagedDirectory::create(&base.path().join(name)).unwrap_err().to_string();
            assert_eq!(error.replace(&base.path().display().to_string(), "BASE"), reason);
        }
    }
}
