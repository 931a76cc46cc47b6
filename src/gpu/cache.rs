//! Compiled code on disk.
//!
//! A model's kernels take NVRTC a second or two, and nothing of it changes from run to run. Code is kept under the hash of all that it
//! depends on: the text, the GPU's version, the compiler's version and the form. A file is a line that says what it is, the hash of the code,
//! and the code; one that is not what its first lines say is as good as none and is written again. Files come into being under a
//! temporary name, so any number of processes may share the folder.

use std::path::PathBuf;

use shadowllm_weights::write_atomic;

use super::CodeForm;

const MAGIC: &[u8] = b"shadowllm compiled kernels 1\n";
/// Hexadecimal digits of a hash.
const DIGITS: usize = 64;

/// What code depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key<'a> {
    pub(super) source: &'a str,
    pub(super) sm: u32,
    pub(super) compiler: &'a str,
    pub(super) form: CodeForm,
}

impl Key<'_> {
    fn file_name(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        // Lengths in front, so that no two keys are the same bytes.
        for part in [self.source, &self.sm.to_string(), self.compiler, self.form.extension()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        format!("{}.{}", &hasher.finalize().to_hex()[..32], self.form.extension())
    }
}

/// A folder of compiled code; `None`: nothing is kept.
#[derive(Clone, Debug)]
pub(super) struct CodeCache(pub(super) Option<PathBuf>);

impl CodeCache {
    /// Below the folder that packed weights are cached in.
    pub(super) fn of_user() -> Self {
        CodeCache(shadowllm_weights::cache_directory().map(|folder| folder.join("cuda")))
    }

    /// The code of a key, if it is there and whole.
    pub(super) fn get(&self, key: &Key<'_>) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.0.as_ref()?.join(key.file_name())).ok()?;
        let (hash, code) = bytes.strip_prefix(MAGIC)?.split_at_checked(DIGITS)?;
        (blake3::hash(code).to_hex().as_bytes() == hash).then(|| code.to_vec())
    }

    /// Keeps code. A folder that cannot be written costs the time of the next compilation and nothing else.
    pub(super) fn put(&self, key: &Key<'_>, code: &[u8]) {
        let Some(folder) = &self.0 else { return };
        if std::fs::create_dir_all(folder).is_ok() {
            let hash = blake3::hash(code).to_hex();
            let _ = write_atomic(&folder.join(key.file_name()), &[MAGIC, hash.as_bytes(), code].concat());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const KEY: Key<'_> = Key { source: "text", sm: 80, compiler: "12.9", form: CodeForm::Cubin };

    #[test]
    fn what_was_put_is_there_and_damaged_entries_are_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CodeCache(Some(folder.path().join("new")));
        assert_eq!(cache.get(&KEY), None);
        cache.put(&KEY, b"code");
        assert_eq!(cache.get(&KEY).unwrap(), b"code");
        let file = folder.path().join("new").join(KEY.file_name());
        let whole = std::fs::read(&file).unwrap();
        for damaged in
            [&whole[..whole.len() - 1], &whole[..10], b"", b"something else entirely", &[&whole[..], b"x"].concat()]
        {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(cache.get(&KEY), None);
        }
        cache.put(&KEY, b"code");
        assert_eq!(cache.get(&KEY).unwrap(), b"code");
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn everything_that_code_depends_on_is_in_the_key() {
        let others = [
            Key { source: "texts", ..KEY },
            Key { sm: 86, ..KEY },
            Key { compiler: "13.0", ..KEY },
            Key { form: CodeForm::Ptx, ..KEY },
        ];
        assert!(others.iter().all(|other| other.file_name() != KEY.file_name()));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for cache in [CodeCache(Some(file.join("below"))), CodeCache(None)] {
            cache.put(&KEY, b"code");
            assert_eq!(cache.get(&KEY), None);
        }
    }
}
