//! Which weights a file was packed from, and whether a model still has them.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::PackedProblem;
use crate::shards::WeightFile;
use crate::{Checkpoint, Error, ModelNames, Progress, Result, files, write_atomic};

/// Bytes hashed between two reports of progress.
const BLOCK: usize = 16 << 20;
/// Largest list of seen files accepted.
const MAX_SEEN: u64 = 16 << 20;
/// Bytes of each tensor that the fingerprint looks at.
const SAMPLE: usize = 4096;

/// One file of weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its name in the model's directory.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// When it was last modified, in nanoseconds since 1970; `None` if unknown, as for weights that are in no directory.
    pub modified_ns: Option<u64>,
    /// BLAKE3 hash of its content, in hexadecimal digits.
    pub blake3: String,
}

/// The weights of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceIdentity {
    /// Absolute path of the directory, or `embedded:...`, or `memory`. For people; the files' content is what counts.
    pub location: String,
    /// Its files, sorted by name.
    pub files: Vec<SourceFile>,
}

/// A file of the model at hand, before its content is looked at.
struct Present<'a> {
    name: &'a str,
    bytes: u64,
    modified_ns: Option<u64>,
    content: Content<'a>,
}

enum Content<'a> {
    File(&'a WeightFile),
    /// Tensors that were made in memory.
    Tensors(&'a Checkpoint),
}

impl Checkpoint {
    /// Identity of the model for files that belong to it: BLAKE3 over its structure and the first 4 KiB of every tensor. Takes
    /// milliseconds; telling apart models that someone forged to look the same is not its task.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] or [`Error::UnsupportedTensor`].
    pub fn fingerprint(&self) -> Result<String> {
        let config = self.config();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&config.structure().to_json());
        let names = ModelNames::of(config, |name| self.get(name).is_some());
        for (i, (name, _)) in names.layout(config).iter().enumerate() {
            let tensor = self.tensor(name)?;
            // The place in the layout stands for the name, so that a prefix changes nothing.
            hasher.update(format!("{i} {} {:?};", tensor.dtype(), tensor.shape()).as_bytes());
            hasher.update(&tensor.bytes()[..tensor.bytes().len().min(SAMPLE)]);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// The files of weights, sorted by name; tensors made in memory count as one file.
    fn present(&self) -> Vec<Present<'_>> {
        let files = self.weight_files();
        if files.is_empty() {
            let (bytes, content) = (self.mapped_bytes(), Content::Tensors(self));
            return vec![Present { name: "tensors", bytes, modified_ns: None, content }];
        }
        let mut present: Vec<_> = files
            .iter()
            .map(|file| Present {
                name: &file.name,
                bytes: file.storage.bytes().len() as u64,
                modified_ns: file.modified.and_then(nanoseconds),
                content: Content::File(file),
            })
            .collect();
        present.sort_by_key(|file| file.name);
        present
    }
}

/// Since 1970; `None` before that and after the year 2554.
fn nanoseconds(time: SystemTime) -> Option<u64> {
    u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
}

impl Present<'_> {
    /// Hash of its content: reads all of it, unless that was done before.
    fn hash(&self, progress: &dyn Progress) -> Result<String> {
        if let Content::File(WeightFile { hash, .. }) = self.content
            && let Some(known) = hash.get()
        {
            return Ok(known.clone());
        }
        progress.start(&format!("hashing {}", self.name), Some(self.bytes));
        let mut hasher = blake3::Hasher::new();
        match &self.content {
            Content::File(file) => feed(&mut hasher, file.storage.bytes(), progress)?,
            Content::Tensors(checkpoint) => {
                for name in checkpoint.names() {
                    let tensor = checkpoint.tensor(name)?;
                    hasher.update(format!("{name:?} {} {:?};", tensor.dtype(), tensor.shape()).as_bytes());
                    feed(&mut hasher, tensor.bytes(), progress)?;
                }
            }
        }
        progress.finish();
        let hash = hasher.finalize().to_hex().to_string();
        if let Content::File(file) = self.content {
            // Another thread may have been faster, with the same result.
            let _ = file.hash.set(hash.clone());
        }
        Ok(hash)
    }
}

/// Hashes `bytes` so that it can be watched and interrupted.
fn feed(hasher: &mut blake3::Hasher, bytes: &[u8], progress: &dyn Progress) -> Result<()> {
    for block in bytes.chunks(BLOCK) {
        hasher.update(block);
        progress.advance(block.len() as u64);
        if !progress.go_on() {
            return Err(Error::Interrupted);
        }
    }
    Ok(())
}

impl SourceIdentity {
    /// Whether the weights were files of a directory.
    pub(super) fn is_directory(&self) -> bool {
        Path::new(&self.location).is_absolute()
    }

    /// Hashes all weights of `checkpoint`.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub(super) fn of(checkpoint: &Checkpoint, progress: &dyn Progress) -> Result<Self> {
        let files = checkpoint.present().into_iter().map(|file| {
            let blake3 = file.hash(progress)?;
            Ok(SourceFile { name: file.name.to_owned(), bytes: file.bytes, modified_ns: file.modified_ns, blake3 })
        });
        let files = files.collect::<Result<_>>()?;
        let location = match checkpoint.directory() {
            Some(dir) => std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned()).display().to_string(),
            None => checkpoint.location(),
        };
        Ok(SourceIdentity { location, files })
    }

    /// Whether `checkpoint` has the weights that `packed` was made from. Files of the same size and time are taken for the
    /// same; others are hashed, and remembered beside `packed` if their content is the same.
    ///
    /// # Errors
    /// [`Error::Packed`] with [`PackedProblem::Stale`]; [`Error::Interrupted`].
    pub(super) fn check(&self, packed: &Path, checkpoint: &Checkpoint, progress: &dyn Progress) -> Result<()> {
        let stale = |reason: String| {
            let problem = PackedProblem::Stale { reason, source_location: self.location.clone() };
            Error::Packed { path: packed.to_owned(), problem }
        };
        let present = checkpoint.present();
        if present.len() != self.files.len() {
            let (then, now) = (self.files.len(), present.len());
            return Err(stale(format!("the model had {then} files of weights, and now has {now}")));
        }
        for (then, now) in self.files.iter().zip(&present) {
            if then.name != now.name {
                return Err(stale(format!("the model had the file {:?}, and now has {:?}", then.name, now.name)));
            }
            if then.bytes != now.bytes {
                return Err(stale(format!("{} had {} bytes, and now has {}", then.name, then.bytes, now.bytes)));
            }
        }
        let mut seen = None;
        let mut newly_seen = Vec::new();
        for (then, now) in self.files.iter().zip(&present) {
            let same_time = |file: &SourceFile| file.modified_ns.is_some() && file.modified_ns == now.modified_ns;
            if same_time(then) {
                continue;
            }
            let now_seen = SourceFile { modified_ns: now.modified_ns, ..then.clone() };
            let seen = seen.get_or_insert_with(|| Seen::read(packed));
            if now.modified_ns.is_some() && seen.0.contains(&now_seen) {
                newly_seen.push(now_seen);
                continue;
            }
            if now.hash(progress)? != then.blake3 {
                return Err(stale(format!("{} has other content than when it was packed", then.name)));
            }
            newly_seen.push(now_seen);
        }
        newly_seen.retain(|file| file.modified_ns.is_some());
        if !newly_seen.is_empty() && seen.is_none_or(|seen| seen.0 != newly_seen) {
            Seen(newly_seen).write(packed);
        }
        Ok(())
    }
}

/// Files whose time differs from the one recorded in a packed file, and whose content was found to be the same: a model that was
/// copied together with its packed file must not be hashed at every start. Kept in a small file beside it.
struct Seen(Vec<SourceFile>);

impl Seen {
    fn path(packed: &Path) -> PathBuf {
        let name = packed.file_name().unwrap_or_default().to_string_lossy();
        packed.with_file_name(format!(".{name}.seen"))
    }

    /// Nothing if it is not there or makes no sense: then the files are hashed again.
    fn read(packed: &Path) -> Self {
        let bytes = files::read_if_there(&Self::path(packed), MAX_SEEN).ok().flatten().unwrap_or_default();
        Seen(serde_json::from_slice(&bytes).unwrap_or_default())
    }

    fn write(&self, packed: &Path) {
        let bytes = serde_json::to_vec(&self.0).unwrap_or_default();
        // Where it cannot be written the files are hashed at every start, which is slower and not wrong.
        let _ = write_atomic(&Self::path(packed), &bytes);
    }
}
