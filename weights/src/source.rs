//! What a `--model` string means.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::{Checkpoint, Error, Progress, Result};

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The model compiled into the library.
    Embedded,
    /// A Hugging Face model directory.
    Directory(PathBuf),
    /// A name on the Hugging Face hub, in the cache or to be downloaded.
    Hub {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

impl ModelSource {
    /// Reads `embedded`, the path of a directory that exists, or `org/name[@revision]`. A directory comes before a name.
    ///
    /// # Errors
    /// [`Error::NoSuchModel`], which says what was looked for.
    ///
    /// ```
    /// use shadowllm_weights::ModelSource;
    /// let source = ModelSource::parse("facebook/opt-125m@refs/pr/2")?;
    /// assert_eq!(source, ModelSource::Hub { repo: "facebook/opt-125m".into(), revision: "refs/pr/2".into() });
    /// # Ok::<(), shadowllm_weights::Error>(())
    /// ```
    pub fn parse(given: &str) -> Result<Self> {
        let wrong = |reason: &str| Error::NoSuchModel { given: given.to_owned(), reason: reason.to_owned() };
        if given == "embedded" {
            return Ok(ModelSource::Embedded);
        }
        let path = Path::new(given);
        if path.is_dir() {
            return Ok(ModelSource::Directory(path.to_owned()));
        }
        if path.exists() {
            return Err(wrong(if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
                "it is a GGUF file, which `shadowllm import FILE DIR` turns into a model directory"
            } else {
                "it is a file, not a directory"
            }));
        }
        let (repo, revision) = given.split_once('@').unwrap_or((given, "main"));
        let is_path = path.is_symlink()
            || given.starts_with(['/', '.', '~', '\\'])
            || repo.ends_with('/')
            || repo.matches('/').count() > 1;
        if is_path {
            return Err(wrong("there is no such directory"));
        }
        check_repo(repo).map_err(|reason| wrong(&format!("there is no such directory, and {reason}")))?;
        check_revision(revision).map_err(|reason| wrong(&format!("there is no such directory, and {reason}")))?;
        Ok(ModelSource::Hub { repo: repo.to_owned(), revision: revision.to_owned() })
    }

    /// Opens the checkpoint. A name on the hub is taken from the cache, or downloaded with the settings of the
    /// environment (`HubOptions::from_env`).
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`] and `fetch`; [`Error::NoEmbeddedModel`] and [`Error::NoHub`] if the build has not
    /// what is asked for.
    pub fn open(&self, progress: &dyn Progress) -> Result<Checkpoint> {
        match self {
            ModelSource::Embedded => Checkpoint::embedded(),
            ModelSource::Directory(path) => Checkpoint::open(path),
            #[cfg(feature = "hub")]
            ModelSource::Hub { repo, revision } => {
                Checkpoint::open(&crate::fetch(repo, revision, &crate::HubOptions::from_env(), progress)?)
            }
            #[cfg(not(feature = "hub"))]
            ModelSource::Hub { .. } => {
                let _ = progress;
                Err(Error::NoHub { name: self.to_string() })
            }
        }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelSource::Embedded => f.write_str("embedded"),
            ModelSource::Directory(path) => write!(f, "{}", path.display()),
            ModelSource::Hub { repo, revision } if revision == "main" => f.write_str(repo),
            ModelSource::Hub { repo, revision } => write!(f, "{repo}@{revision}"),
        }
    }
}

/// Whether `part` can be a part of a name: names become folders of the cache, so nothing that climbs out of one.
fn is_name(part: &str) -> bool {
    (1..=96).contains(&part.len())
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && !part.starts_with(['-', '.'])
        && !part.contains("..")
}

/// Says why `repo` is not an `org/name`.
pub(crate) fn check_repo(repo: &str) -> Result<(), String> {
    match repo.split_once('/') {
        Some((org, name)) if is_name(org) && is_name(name) => Ok(()),
        Some(_) => Err(format!("{repo:?} is no name of the form org/name (letters, digits, '-', '_', '.')")),
        None => Err(format!("{repo:?} has no organisation in front of it")),
    }
}

/// Says why `revision` cannot be a branch, tag or commit.
pub(crate) fn check_revision(revision: &str) -> Result<(), String> {
    if revision.split('/').all(is_name) { Ok(()) } else { Err(format!("{revision:?} is no branch, tag or commit")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        let hub = |repo: &str, revision: &str| ModelSource::Hub { repo: repo.into(), revision: revision.into() };
        let dir = env!("CARGO_MANIFEST_DIR");
        for (given, expected) in [
            ("embedded", ModelSource::Embedded),
            (dir, ModelSource::Directory(dir.into())),
            ("src/config", ModelSource::Directory("src/config".into())),
            ("facebook/opt-1.3b", hub("facebook/opt-1.3b", "main")),
            ("facebook/opt-1.3b@v1", hub("facebook/opt-1.3b", "v1")),
            ("facebook/opt-1.3b@refs/pr/8", hub("facebook/opt-1.3b", "refs/pr/8")),
        ] {
            let source = ModelSource::parse(given).unwrap();
            assert_eq!(source, expected);
            assert_eq!(source.to_string(), given);
        }
    }

    #[test]
    fn messages() {
        let end = "; expected \"embedded\", a model directory, or a Hugging Face name like facebook/opt-125m";
        for (given, reason) in [
            ("", "there is no such directory, and \"\" has no organisation in front of it"),
            ("gpt2", "there is no such directory, and \"gpt2\" has no organisation in front of it"),
            ("Embedded", "there is no such directory, and \"Embedded\" has no organisation in front of it"),
            ("./models/x", "there is no such directory"),
            ("models/opt/125m", "there is no such directory"),
            ("models/", "there is no such directory"),
            ("../x", "there is no such directory"),
            (
                "a/b c",
                "there is no such directory, and \"a/b c\" is no name of the form org/name (letters, digits, '-', '_', '.')",
            ),
            ("a/b@../../etc", "there is no such directory, and \"../../etc\" is no branch, tag or commit"),
            ("a/b@", "there is no such directory, and \"\" is no branch, tag or commit"),
            ("Cargo.toml", "it is a file, not a directory"),
        ] {
            let error = ModelSource::parse(given).unwrap_err().to_string();
            assert_eq!(error, format!("no model {given:?}: {reason}{end}"));
        }
    }
}
