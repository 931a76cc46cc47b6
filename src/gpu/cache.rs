//! Compiled code on disk.
//!
//! A model's kernels take NVRTC seconds, and nothing of it changes from run to run. The code of each text is kept under the hash of all that the
//! compiler is given (the text, the GPU's version, the form), and under the compiler's version. To ask the compiler for its version it
//! would have to be loaded, which alone takes longer than all else, so of code that several versions made the newest is taken that the
//! driver can load. A file is a line that says what it is, the hash of the code, and the code; one that is not what its first lines
//! say is as good as none and is written again. Files come into being under a temporary name, so any number of processes may share the
//! folder.

use std::path::PathBuf;

use shadowllm_weights::write_atomic;

use super::CodeForm;

const MAGIC: &[u8] = b"shadowllm compiled kernels 1\n";
/// Hexadecimal digits of a hash.
const DIGITS: usize = 64;

/// What the compiler is given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key<'a> {
    pub(super) source: &'a str,
    pub(super) sm: u32,
    pub(super) form: CodeForm,
}

impl Key<'_> {
    /// What the names of its files begin with.
    fn stem(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        // Lengths in front, so that no two keys are the same bytes.
        for part in [self.source, &self.sm.to_string()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }

    fn file_name(&self, compiler: Version) -> String {
        format!("{}-{}.{}.{}", self.stem(), compiler.0, compiler.1, self.form.extension())
    }
}

/// Version of a compiler, as (12, 9).
pub(super) type Version = (u32, u32);

/// A folder of compiled code; `None`: nothing is kept.
#[derive(Clone, Debug)]
pub(super) struct CodeCache(pub(super) Option<PathBuf>);

impl CodeCache {
    /// Below the folder that packed weights are cached in.
    pub(super) fn of_user() -> Self {
        CodeCache(shadowllm_weights::cache_directory().map(|folder| folder.join("cuda")))
    }

    /// Whether there is no code of this form at all.
    pub(super) fn is_empty(&self, form: CodeForm) -> bool {
        !self.names().any(|name| name.ends_with(&format!(".{}", form.extension())))
    }

    fn names(&self) -> impl Iterator<Item = String> {
        let entries = self.0.as_ref().and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
    }

    /// The code of a key, if it is there and whole: that of the newest compiler of those that `accepts`.
    pub(super) fn get(&self, key: &Key<'_>, accepts: impl Fn(Version) -> bool) -> Option<Vec<u8>> {
        let stem = key.stem();
        let version = |name: &str| -> Option<Version> {
            let rest = name.strip_prefix(&stem)?.strip_prefix('-')?.strip_suffix(key.form.extension())?;
            let (major, minor) = rest.strip_suffix('.')?.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        let mut versions: Vec<Version> = self.names().filter_map(|name| version(&name)).collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        versions.into_iter().filter(|version| accepts(*version)).find_map(|version| self.read(key, version))
    }

    fn read(&self, key: &Key<'_>, compiler: Version) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.0.as_ref()?.join(key.file_name(compiler))).ok()?;
        let (hash, code) = bytes.strip_prefix(MAGIC)?.split_at_checked(DIGITS)?;
        (blake3::hash(code).to_hex().as_bytes() == hash).then(|| code.to_vec())
    }

    /// Keeps code. A folder that cannot be written costs the time of the next compilation and nothing else.
    pub(super) fn put(&self, key: &Key<'_>, compiler: Version, code: &[u8]) {
        let Some(folder) = &self.0 else { return };
        if std::fs::create_dir_all(folder).is_ok() {
            let hash = blake3::hash(code).to_hex();
            let _ = write_atomic(&folder.join(key.file_name(compiler)), &[MAGIC, hash.as_bytes(), code].concat());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const KEY: Key<'_> = Key { source: "text", sm: 80, form: CodeForm::Cubin };
    const COMPILER: Version = (12, 9);

    fn get(cache: &CodeCache) -> Option<Vec<u8>> {
        cache.get(&KEY, |_| true)
    }

    #[test]
    fn what_was_put_is_there_and_damaged_entries_are_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CodeCache(Some(folder.path().join("new")));
        assert!(get(&cache).is_none() && cache.is_empty(CodeForm::Cubin));
        cache.put(&KEY, COMPILER, b"code");
        assert_eq!(get(&cache).unwrap(), b"code");
        assert!(!cache.is_empty(CodeForm::Cubin) && cache.is_empty(CodeForm::Ptx));
        let file = folder.path().join("new").join(KEY.file_name(COMPILER));
        let whole = std::fs::read(&file).unwrap();
        for damaged in
            [&whole[..whole.len() - 1], &whole[..10], b"", b"something else entirely", &[&whole[..], b"x"].concat()]
        {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(get(&cache), None);
        }
        cache.put(&KEY, COMPILER, b"code");
        assert_eq!(get(&cache).unwrap(), b"code");
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn the_newest_compiler_that_is_accepted_and_whole_wins() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CodeCache(Some(folder.path().to_owned()));
        for version in [(12, 9), (13, 0), (12, 10)] {
            cache.put(&KEY, version, format!("{version:?}").as_bytes());
        }
        assert_eq!(get(&cache).unwrap(), b"(13, 0)");
        assert_eq!(cache.get(&KEY, |version| version.0 < 13).unwrap(), b"(12, 10)");
        std::fs::write(folder.path().join(KEY.file_name((13, 0))), "damaged").unwrap();
        assert_eq!(get(&cache).unwrap(), b"(12, 10)");
        assert_eq!(cache.get(&KEY, |_| false), None);
    }

    #[test]
    fn everything_that_code_depends_on_is_in_the_name() {
        let name = KEY.file_name(COMPILER);
        let others = [Key { source: "texts", ..KEY }, Key { sm: 86, ..KEY }, Key { form: CodeForm::Ptx, ..KEY }];
        assert!(others.iter().all(|other| other.file_name(COMPILER) != name));
        assert_ne!(KEY.file_name((13, 0)), name);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for cache in [CodeCache(Some(file.join("below"))), CodeCache(None)] {
            cache.put(&KEY, COMPILER, b"code");
            assert_eq!(get(&cache), None);
        }
    }
}
