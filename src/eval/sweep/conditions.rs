//! What all points of a sweep have in common, so that they can be compared.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::eval::Decision;
use crate::eval::EvalError;
use crate::sparsity::{ModelIdentity, Scope, digest};
use crate::{Error, Result};

/// A file by name and content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name without the folder.
    pub name: String,
    /// Fingerprint of its content.
    pub digest: String,
}

impl FileRecord {
    /// Reads a file to know it again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn of(path: &Path) -> Result<Self> {
        let bytes =
            std::fs::read(path).map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(FileRecord { name, digest: digest([&bytes[..]]) })
    }
}

/// A task and its questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Name of the task.
    pub task: String,
    /// Questions asked.
    pub records: usize,
    /// Fingerprint of their tokens.
    pub digest: String,
}

/// What figures depend on beside policy and budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Where the model came from.
    pub model: String,
    /// Fingerprint of the model.
    pub identity: ModelIdentity,
    /// Name of the text.
    pub text: String,
    /// Fingerprint of its tokens, as far as they are in the windows.
    pub text_digest: String,
    /// Tokens of one window.
    pub window: usize,
    /// Windows.
    pub windows: usize,
    /// Which token decides.
    pub decision: Decision,
    /// Tokens at the start of each text that keep everything.
    pub dense_prefix: usize,
    /// What fractions are counted over.
    pub budget: Scope,
    /// Fraction of the neurons to skip by their gate.
    pub gate_skip: Option<f32>,
    /// File of the gate's thresholds.
    pub gate_thresholds: Option<FileRecord>,
    /// Instruction set.
    pub isa: String,
    /// Threads. They change times only.
    pub threads: usize,
    /// Precision of products with many tokens.
    pub compute: String,
}

impl Conditions {
    /// What is different in `other`: the first field, with both values.
    pub(super) fn difference(&self, other: &Conditions) -> Result<Option<String>> {
        let fields = |conditions: &Conditions| -> Result<BTreeMap<String, Value>, serde_json::Error> {
            // As text, because f32 is widened in a value that was never text.
            serde_json::from_str(&serde_json::to_string(conditions)?)
        };
        let fields =
            |conditions| fields(conditions).map_err(|error| EvalError::SweepFile { reason: error.to_string() });
        let (was, is) = (fields(self)?, fields(other)?);
        // Where the model lies does not matter, only which it is.
        let different = was.iter().filter(|(key, value)| *key != "model" && is.get(*key) != Some(value));
        // A fingerprint says less than whatever else has changed.
        let different = different.min_by_key(|(key, _)| key.ends_with("digest"));
        Ok(different.map(|(key, value)| {
            let now = is.get(key).map_or_else(|| "missing".to_owned(), ToString::to_string);
            format!("{key} was {value} and is {now}")
        }))
    }
}
