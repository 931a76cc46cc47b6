//! A sweep on disk: its results are also what it goes on from.
//!
//! `sweep.json` is written anew after every measurement, under a temporary name that is then renamed, so that a kill at any moment
//! leaves all measurements that were finished.

use std::path::{Path, PathBuf};

use shadowllm_weights::write_atomic;

use super::conditions::{Conditions, TaskRecord};
use super::results::{DenseResult, PolicyRecord, SweepResults};
use crate::eval::EvalError;
use crate::sparsity::Units;
use crate::{Error, Result};

const FILE: &str = "sweep.json";
const VERSION: u32 = 1;

/// The results in a folder.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    results: SweepResults,
}

impl Store {
    /// The sweep in a folder, which is made if need be, or a new one, with tasks and policies beside those that it has.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InFile`] around [`EvalError::SweepFile`] for a file that is none of ours or damaged, and around
    /// [`EvalError::OtherSweep`] if it was measured under other conditions, or if a policy or task of this name was another one.
    pub fn open(
        directory: &Path,
        conditions: Conditions,
        units: Units,
        tasks: &[TaskRecord],
        policies: &[PolicyRecord],
    ) -> Result<Store> {
        let io = |action, path: &Path, source| Error::Io { action, path: path.to_owned(), source };
        std::fs::create_dir_all(directory).map_err(|source| io("create", directory, source))?;
        let path = directory.join(FILE);
        let mut results = match std::fs::read(&path) {
            Ok(bytes) => read(&bytes, &conditions).map_err(|error| error.in_file(&path))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => SweepResults {
                version: VERSION,
                conditions,
                tasks: Vec::new(),
                layers: units.layers,
                heads: units.heads,
                neurons: units.neurons,
                policies: Vec::new(),
                dense: DenseResult::default(),
                points: Vec::new(),
            },
            Err(source) => return Err(io("read", &path, source)),
        };
        let other = |what: &str, name: &str| {
            let difference = format!("{what} {name} is not the one of this name that was measured there");
            Error::from(EvalError::OtherSweep { difference }).in_file(&path)
        };
        for task in tasks {
            match results.tasks.iter().find(|known| known.task == task.task) {
                Some(known) if known != task => return Err(other("task", &task.task)),
                Some(_) => {}
                None => results.tasks.push(task.clone()),
            }
        }
        for policy in policies {
            match results.policies.iter().find(|known| known.label == policy.label) {
                Some(known) if !is_same(known, policy) => return Err(other("policy", &policy.label)),
                Some(_) => {}
                None => results.policies.push(policy.clone()),
            }
        }
        let mut store = Store { path, results };
        // A folder that cannot be written to is to be known before anything is measured.
        store.save()?;
        Ok(store)
    }

    /// What was measured so far.
    pub fn results(&self) -> &SweepResults {
        &self.results
    }

    /// Changes the results and writes them.
    pub(super) fn record(&mut self, change: impl FnOnce(&mut SweepResults)) -> Result<()> {
        change(&mut self.results);
        self.save()
    }

    fn save(&mut self) -> Result<()> {
        let mut json =
            serde_json::to_string(&self.results).map_err(|error| EvalError::SweepFile { reason: error.to_string() })?;
        json.push('\n');
        Ok(write_atomic(&self.path, json.as_bytes())?)
    }
}

/// Whether a policy is the one that was measured. Where its file lies and how it is called does not matter.
fn is_same(known: &PolicyRecord, policy: &PolicyRecord) -> bool {
    let content = |record: &PolicyRecord| record.file.as_ref().map(|file| file.digest.clone());
    known.policy == policy.policy && known.seed == policy.seed && content(known) == content(policy)
}

fn read(bytes: &[u8], conditions: &Conditions) -> Result<SweepResults> {
    let broken = |error: serde_json::Error| EvalError::SweepFile { reason: error.to_string() };
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(broken)?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(VERSION)) {
        let found = version.map_or_else(|| "no version".to_owned(), |version| format!("version {version}"));
        return Err(EvalError::SweepFile {
            reason: format!("it has {found}, and this program writes version {VERSION}"),
        }
        .into());
    }
    // From the text, so that fractions are read as they were written.
    let results: SweepResults = serde_json::from_slice(bytes).map_err(broken)?;
    match results.conditions.difference(conditions)? {
        Some(difference) => Err(EvalError::OtherSweep { difference }.into()),
        None => Ok(results),
    }
}
