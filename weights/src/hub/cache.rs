//! One model in the Hugging Face cache.
//!
//! ```text
//! models--org--name/refs/<revision>              commit that the revision points to
//!                   blobs/<etag>                 contents; <etag>.part while downloading
//!                   snapshots/<commit>/<file>    links into blobs
//!                   .no_exist/<commit>/<file>    empty: the commit is known not to have the file
//! .locks/models--org--name/<etag>.lock           held while a blob is written
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, RepoType};

use super::Repo;
use crate::files::{self, io_error};
use crate::{Result, index, shards};

/// Files of which a tokenizer is made; one of them is enough.
const TOKENIZERS: [&str; 3] = ["tokenizer.json", "vocab.json", "tokenizer.model"];

/// The folder of one model, seen from one revision.
pub(super) struct RepoCache {
    root: PathBuf,
    folder: PathBuf,
    revision: String,
    layout: CacheRepo,
}

impl RepoCache {
    pub(super) fn new(root: &Path, repo: &Repo<'_>) -> Self {
        let remote = hf_hub::Repo::with_revision(repo.name.to_owned(), RepoType::Model, repo.revision.to_owned());
        RepoCache {
            root: root.to_owned(),
            folder: root.join(remote.folder_name()),
            revision: repo.revision.to_owned(),
            layout: Cache::new(root.to_owned()).repo(remote),
        }
    }

    /// The same model at another revision.
    pub(super) fn at(&self, repo: &Repo<'_>) -> Self {
        Self::new(&self.root, repo)
    }

    /// The cache folder.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    /// The file that holds the contents with this ETag.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(etag)
    }

    /// The file to lock while writing that blob; other Hugging Face tools use the same.
    pub(super) fn lock(&self, etag: &str) -> PathBuf {
        let folder = self.folder.file_name().unwrap_or_default();
        self.root.join(".locks").join(folder).join(format!("{etag}.lock"))
    }

    /// The snapshot that the revision points to if configuration and weights are there, and the tokenizer if `with_tokenizer`;
    /// otherwise what is missing.
    pub(super) fn complete_snapshot(&self, with_tokenizer: bool) -> Result<PathBuf, String> {
        let is_commit = self.revision.len() == 40 && self.revision.chars().all(|c| c.is_ascii_hexdigit());
        let commit = if is_commit {
            self.revision.clone()
        } else {
            let commit = fs::read_to_string(self.folder.join("refs").join(&self.revision)).unwrap_or_default();
            commit.trim().to_owned()
        };
        if !is_plain(&commit) {
            return Err("the model".to_owned());
        }
        match self.missing(&commit, with_tokenizer) {
            None => Ok(self.snapshot(&commit)),
            Some(missing) => self.conversion(&commit, with_tokenizer).ok_or(missing),
        }
    }

    /// What a commit lacks to be used.
    fn missing(&self, commit: &str, with_tokenizer: bool) -> Option<String> {
        let dir = self.snapshot(commit);
        let lacks = |name: &str| !dir.join(name).exists();
        if lacks("config.json") {
            return Some("config.json".to_owned());
        }
        if lacks(shards::SINGLE) {
            let Ok(Some(json)) = files::read_if_there(&dir.join(shards::INDEX), shards::MAX_INDEX) else {
                return Some(shards::SINGLE.to_owned());
            };
            let Ok(shard_of) = index::parse_safetensors_index(&json) else {
                return Some(shards::INDEX.to_owned());
            };
            if let Some(shard) = shard_of.into_values().find(|shard| lacks(shard)) {
                return Some(shard);
            }
        }
        let no_tokenizer =
            with_tokenizer && TOKENIZERS.iter().all(|name| lacks(name)) && !self.is_absent(commit, TOKENIZERS[0]);
        no_tokenizer.then(|| TOKENIZERS[0].to_owned())
    }

    /// The complete snapshot of a pull request, newest first, if the commit is known to have no safetensors itself.
    fn conversion(&self, commit: &str, with_tokenizer: bool) -> Option<PathBuf> {
        if !self.is_absent(commit, shards::SINGLE) {
            return None;
        }
        let requests = fs::read_dir(self.folder.join("refs/refs/pr")).ok()?;
        let mut numbers: Vec<u64> = requests.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        numbers.into_iter().rev().find_map(|number| {
            let commit = fs::read_to_string(self.folder.join("refs/refs/pr").join(number.to_string())).ok()?;
            let commit = commit.trim();
            (is_plain(commit) && self.missing(commit, with_tokenizer).is_none()).then(|| self.snapshot(commit))
        })
    }

    fn absent_marker(&self, commit: &str, name: &str) -> PathBuf {
        self.folder.join(".no_exist").join(commit).join(name)
    }

    fn is_absent(&self, commit: &str, name: &str) -> bool {
        self.absent_marker(commit, name).exists()
    }

    /// Remembers that a commit does not have a file.
    pub(super) fn mark_absent(&self, commit: &str, name: &str) -> Result<()> {
        let marker = self.absent_marker(commit, name);
        make_parent(&marker)?;
        fs::write(&marker, []).map_err(io_error("write", &marker))
    }

    /// Makes the revision point to a commit.
    pub(super) fn point_to(&self, commit: &str) -> Result<()> {
        self.layout.create_ref(commit).map_err(io_error("write", &self.folder.join("refs").join(&self.revision)))
    }

    /// Makes `name` of a commit's snapshot a link to a blob. The caller holds the blob's lock.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<PathBuf> {
        let path = self.snapshot(commit).join(name);
        if path.exists() {
            return Ok(path);
        }
        make_parent(&path)?;
        // A link whose blob was deleted is in the way of the new one.
        if path.is_symlink() {
            fs::remove_file(&path).map_err(io_error("replace", &path))?;
        }
        let blob = self.blob(etag);
        link_file(&blob, &Path::new("../../blobs").join(etag), &path).map_err(io_error("link", &path))?;
        Ok(path)
    }
}

#[cfg(unix)]
fn link_file(_blob: &Path, relative: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, link)
}

/// Elsewhere symbolic links may need privileges; a hard link shares the bytes as well.
#[cfg(not(unix))]
fn link_file(blob: &Path, _relative: &Path, link: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, link)
}

/// Creates the folder that `path` is in.
pub(super) fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(io_error("create", parent)),
        None => Ok(()),
    }
}

/// Whether a commit or ETag can be used as a file name.
pub(super) fn is_plain(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && !name.starts_with('.')
}
