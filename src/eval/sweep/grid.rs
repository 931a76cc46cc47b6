//! What a sweep runs over.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::conditions::FileRecord;
use super::results::{PolicyRecord, PredictorRecord};
use crate::eval::EvalError;
use crate::eval::PolicySource;
use crate::sparsity::{Budget, Scope};
use crate::{Error, Result};

/// Units that a point prunes; the others are all kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kinds {
    /// Heads.
    Heads,
    /// Neurons.
    Neurons,
    /// Heads and neurons, the same fraction of each.
    Both,
}

impl Kinds {
    /// All of them.
    pub const ALL: [Kinds; 3] = [Kinds::Heads, Kinds::Neurons, Kinds::Both];

    /// Name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Kinds::Heads => "heads",
            Kinds::Neurons => "neurons",
            Kinds::Both => "both",
        }
    }

    /// The budget that keeps `keep` of these units.
    ///
    /// # Errors
    /// [`Error::BudgetFraction`].
    pub fn budget(self, keep: f32, scope: Scope) -> Result<Budget> {
        match self {
            Kinds::Heads => Budget::new(keep, 1.0, scope),
            Kinds::Neurons => Budget::new(1.0, keep, scope),
            Kinds::Both => Budget::new(keep, keep, scope),
        }
    }
}

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kinds {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Kinds::ALL
            .into_iter()
            .find(|kinds| kinds.name() == name)
            .ok_or_else(|| EvalError::UnknownKinds { found: name.to_owned() }.into())
    }
}

/// A policy of a sweep.
#[derive(Clone, Debug)]
pub struct SweepPolicy {
    /// What it is called in the results.
    pub label: String,
    /// What it chooses by.
    pub source: PolicySource,
    /// The file that this was read from.
    pub file: Option<FileRecord>,
}

impl SweepPolicy {
    /// A policy whose source was read from `path`, if from a file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read.
    pub fn new(label: String, source: PolicySource, path: Option<&Path>) -> Result<Self> {
        Ok(SweepPolicy { label, source, file: path.map(FileRecord::of).transpose()? })
    }

    /// What the results say of it.
    pub(super) fn record(&self) -> PolicyRecord {
        let predictor = self.source.predictor().map(|predictor| {
            let (head_width, neuron_width) = predictor.widths();
            PredictorRecord {
                stations: predictor.info().stations.clone(),
                head_width,
                neuron_width,
                criterion: predictor.info().criterion.clone(),
                trained_on: predictor.info().training.data.clone(),
            }
        });
        let seed = match self.source {
            PolicySource::Random { seed } => Some(seed),
            _ => None,
        };
        PolicyRecord {
            label: self.label.clone(),
            policy: self.source.name().to_owned(),
            decodes: self.source.decodes(),
            seed,
            file: self.file.clone(),
            predictor,
        }
    }
}

/// Checks that results can be told apart by the names of their policies.
pub(super) fn check_labels(policies: &[SweepPolicy]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for policy in policies {
        let label = &policy.label;
        if label == "dense" {
            return Err(EvalError::SweepSetting {
                reason: "a policy is called dense, which is the model that all are compared with; give it another name"
                    .to_owned(),
            }
            .into());
        }
        if !seen.insert(label) {
            return Err(EvalError::SweepSetting {
                reason: format!("two policies are called {label}; give them names, such as {label}2:shadow=FILE"),
            }
            .into());
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_and_budgets() {
        for kinds in Kinds::ALL {
            assert_eq!(kinds.to_string().parse::<Kinds>().unwrap(), kinds);
        }
        assert_eq!(
            "layers".parse::<Kinds>().unwrap_err().to_string(),
            "unknown kind of unit \"layers\"; expected heads, neurons or both"
        );
        let budget = |kinds: Kinds| {
            let budget = kinds.budget(0.5, Scope::Local).unwrap();
            (budget.heads, budget.neurons)
        };
        assert_eq!(Kinds::ALL.map(budget), [(0.5, 1.0), (1.0, 0.5), (0.5, 0.5)]);
        assert!(Kinds::Both.budget(0.0, Scope::Local).is_err());
    }

    #[test]
    fn labels_tell_policies_apart() {
        let policy = |label: &str| SweepPolicy::new(label.to_owned(), PolicySource::Random { seed: 0 }, None).unwrap();
        let message = |labels: &[&str]| {
            let policies: Vec<SweepPolicy> = labels.iter().map(|label| policy(label)).collect();
            check_labels(&policies).unwrap_err().to_string()
        };
        assert!(check_labels(&[policy("a"), policy("b")]).is_ok());
        assert_eq!(message(&["a", "a"]), "two policies are called a; give them names, such as a2:shadow=FILE");
        assert!(message(&["dense"]).starts_with("a policy is called dense, which is the model"));
    }
}
