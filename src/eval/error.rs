//! What can go wrong in evaluations.

use crate::Error;

/// Why something cannot be evaluated as it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The oracle was to decode.
    #[error(
        "the policy oracle knows what the dense model computes for a token, so it can be evaluated (eval perplexity, eval tasks) \
         but not decode"
    )]
    OracleDecodes,
    /// Windows for a perplexity that cannot be scored.
    #[error("{reason}")]
    Windows {
        /// What does not fit, and what would.
        reason: String,
    },
    /// A rule of decision that is not in the list.
    #[error(
        "unknown decision {found:?}; expected causal (each token on its own) or sequence (the last token for the whole text)"
    )]
    UnknownDecision {
        /// The name as given.
        found: String,
    },
    /// An importance for the oracle that is not in the list.
    #[error("unknown importance {found:?}; expected magnitude")]
    UnknownImportance {
        /// The name as given.
        found: String,
    },
    /// The last token of a text was to decide for all of it, but the policy looks at no token.
    #[error(
        "decision sequence makes one plan of a text from its last token, but the plans of policy {policy} with this budget \
         depend on no token; use decision causal"
    )]
    NothingToDecide {
        /// The policy.
        policy: &'static str,
    },
    /// A kind of unit to sweep over that is not in the list.
    #[error("unknown kind of unit {found:?}; expected heads, neurons or both")]
    UnknownKinds {
        /// The name as given.
        found: String,
    },
    /// Settings of a sweep that do not go together.
    #[error("{reason}")]
    SweepSetting {
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A point of a sweep that cannot be measured.
    #[error("{point}: {source}")]
    SweepPoint {
        /// Policy and budget.
        point: String,
        /// Why not.
        source: Box<Error>,
    },
    /// A file of results that cannot be gone on with.
    #[error(
        "these are no results of a sweep that this program could go on with: {reason}; remove the file or use another --out"
    )]
    SweepFile {
        /// What is wrong.
        reason: String,
    },
    /// A sweep that was measured otherwise.
    #[error("this is another sweep: {difference}; measure as it was begun, or use another --out")]
    OtherSweep {
        /// What differs.
        difference: String,
    },
    /// The model's logits are no numbers, so nothing can be measured with them.
    #[error(
        "the logits of window {window} are not finite: the forward pass broke down; \
         check the checkpoint for NaN, infinite or wrongly converted weights"
    )]
    BadLogits {
        /// Window of the text, from 0.
        window: usize,
    },
    /// A task that is not in the list.
    #[error("unknown task {found:?}; known are {known}")]
    UnknownTask {
        /// The name as given.
        found: String,
        /// All names.
        known: String,
    },
    /// A record that is not of its task.
    #[error("line {line}: {reason}")]
    TaskRecord {
        /// Line of the file, from 1.
        line: usize,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A task file without records.
    #[error("there are no records in it; a task file has one JSON object per line")]
    TaskEmpty,
    /// A choice that cannot be scored.
    #[error("choice {choice}: {reason}")]
    TaskPrompt {
        /// From 1.
        choice: usize,
        /// Why not.
        reason: String,
    },
    /// A question that cannot be asked.
    #[error("question {question}, {source}")]
    TaskQuestion {
        /// Among the questions of the file, from 1.
        question: usize,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// Examples in front of questions were asked for, but there are too few.
    #[error(
        "{wanted} examples are wanted in front of every question, but there are records for {found}; \
         use fewer shots or a longer file"
    )]
    TooFewShots {
        /// Examples for each question.
        wanted: usize,
        /// Records to draw from.
        found: usize,
    },
    /// A likelihood that is no number, so nothing can be compared with it.
    #[error(
        "the log-likelihood of choice {choice} of question {question} is not finite: the forward pass broke down; \
         check the checkpoint for NaN, infinite or wrongly converted weights"
    )]
    BadLikelihood {
        /// From 1.
        question: usize,
        /// From 1.
        choice: usize,
    },
    /// There is nothing to measure a predictor at.
    #[error(
        "the kept fractions that were given drop nothing; a predictor is measured where it drops heads or neurons: give fractions under 1"
    )]
    NothingDropped,
}
