//! What can go wrong between a text and a trained predictor.

use std::path::PathBuf;

use crate::Error;

/// Why nothing can be learned as it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LearnError {
    /// A text too short to have a loss.
    #[error(
        "the text has {tokens} token(s), and a loss needs at least 2: one to predict and one before it; use a longer text"
    )]
    NothingToPredict {
        /// Tokens of the text.
        tokens: usize,
    },
    /// A range of scored tokens that the text does not have.
    #[error(
        "the loss is of tokens {start}..{end} of a text of {len}; expected a range that is not empty, starts at 1 or later, \
         because nothing predicts token 0, and ends at {len} at the latest"
    )]
    LossRange {
        /// First token asked for.
        start: usize,
        /// One past the last token asked for.
        end: usize,
        /// Tokens of the text.
        len: usize,
    },
    /// The loss is no number, so it has no gradient.
    #[error(
        "the loss of the text is not finite: the forward pass broke down; \
         check the checkpoint for NaN, infinite or wrongly converted weights"
    )]
    BadLoss,
    /// A gradient that is no number.
    #[error(
        "the gradient of what leaves layer {layer} is not finite: the backward pass broke down; \
         check the checkpoint for weights that are wrongly converted or far too large"
    )]
    BadGradients {
        /// The layer.
        layer: usize,
    },
    /// A criterion that is not in the list.
    #[error("unknown criterion {found:?}; known are {known}")]
    UnknownCriterion {
        /// The name as given.
        found: String,
        /// All names.
        known: String,
    },
    /// A criterion was computed without what it needs.
    #[error("criterion {criterion} needs the curvature of the text; compute it first (learn::criteria::curvature)")]
    CurvatureMissing {
        /// The criterion.
        criterion: &'static str,
    },
    /// A criterion whose scores are no numbers.
    #[error("criterion {criterion} broke down on this text: {source}; leave it out with --criteria")]
    BadCriterion {
        /// The criterion.
        criterion: &'static str,
        /// The score that is wrong.
        source: Box<Error>,
    },
    /// The state of another survey of criteria is in the way.
    #[error(
        "this is the state of another survey: {difference}; go on with the criteria and texts that it was begun with, or remove \
         the file to begin anew"
    )]
    OtherSurvey {
        /// What differs.
        difference: String,
    },
    /// A sample that cannot be trained on.
    #[error(
        "{what} is {value}; samples must be finite numbers, importances not negative: \
         check the checkpoint for NaN, infinite or wrongly converted weights"
    )]
    BadSample {
        /// Which value.
        what: String,
        /// The value.
        value: f32,
    },
    /// A text or trace that nothing can be learnt from.
    #[error("{reason}")]
    TrainingText {
        /// What does not fit, and what would.
        reason: String,
    },
    /// A setting of a training that means nothing.
    #[error("{setting} is {found}; expected {expected}")]
    TrainSetting {
        /// Its name.
        setting: &'static str,
        /// Its value.
        found: String,
        /// What it can be.
        expected: &'static str,
    },
    /// A loss or gradient is no number any more.
    #[error(
        "the training broke down at step {step}: its loss is no finite number; use a smaller learning rate (--rate)"
    )]
    TrainingDiverged {
        /// The step.
        step: u64,
    },
    /// No predictor is as small as is wanted.
    #[error(
        "a predictor with one hidden unit takes about {least} bytes, but the file may have at most {limit}; allow more bytes, or use \
         fewer stations or a smaller number format"
    )]
    PredictorSize {
        /// Bytes allowed.
        limit: u64,
        /// Bytes of the smallest one.
        least: u64,
    },
    /// A size of a predictor file that is neither a number of bytes nor a share.
    #[error(
        "unknown size {found:?}; expected bytes, such as 1000000, or a share of the bytes of the model's blocks, such as 3%"
    )]
    UnknownSize {
        /// As given.
        found: String,
    },
    /// A state of another training was to be resumed.
    #[error(
        "this is the state of another training: {difference}; resume with the settings and text that it was begun with, \
         or remove the file to begin anew"
    )]
    OtherTraining {
        /// What differs.
        difference: String,
    },
    /// A shard that cannot be.
    #[error("unknown shard {found:?}; expected K/N, machine K of N, such as 1/4")]
    UnknownShard {
        /// As given.
        found: String,
    },
    /// A folder without a trace.
    #[error("{} has no trace files (trace-00000.safetensors and so on); make them with `shadowllm trace`", path.display())]
    NoTrace {
        /// The folder.
        path: PathBuf,
    },
    /// Files of a trace are missing.
    #[error(
        "the trace in {} is not complete: of {of} files, {} are not there, the first of them file {}; run `shadowllm trace` again \
         for the shards that are missing, into this folder",
        path.display(), missing.len(), missing.first().copied().unwrap_or(*of)
    )]
    TraceIncomplete {
        /// The folder.
        path: PathBuf,
        /// Their numbers.
        missing: Vec<usize>,
        /// Files of the whole trace.
        of: usize,
    },
    /// A trace file that is of another trace than its neighbours, or than is being written.
    #[error("{} belongs to another trace: {reason}; use another folder, or remove the files that do not belong", path.display())]
    OtherTrace {
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// A preset that is not in the list.
    #[error("unknown preset {found:?}; expected shadow, paper or dejavu")]
    UnknownPreset {
        /// The name as given.
        found: String,
    },
    /// A loss that is not in the list.
    #[error("unknown loss {found:?}; expected mse, bce, listwise or pairwise")]
    UnknownLoss {
        /// The name as given.
        found: String,
    },
}
