//! Training of predictors.
//!
//! A predictor is worth what it costs to make: whoever has a model must be able to train one for it in minutes, on the machine
//! that runs the model. So samples are used as they are made and stored nowhere, and everything is as large as it must be and
//! no larger: a few networks of one hidden layer, AdamW, and targets of one byte.
//!
//! ```text
//! SampleSource --portion--> CompactRows --shuffled batches--> Networks --best--> Trained --write--> predictor file
//!      |                                                          |
//!      `-- held-out documents -----------------------------> Judgement, beside a constant predictor's
//! ```
//!
//! [`train`] does all of it. The same seed gives the same file for any number of threads, and an interrupted run that is
//! resumed gives the file of an uninterrupted one.
//!
//! A loss is one `match` arm in `loss`; settings with a name are in `options`.

mod calibrate;
mod export;
mod initial;
mod judge;
mod loss;
mod network;
mod options;
mod ranking;
mod run;
mod size;
mod state;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use serde::{Deserialize, Serialize};

pub use export::{Exported, Trained};
pub use judge::Judgement;
pub use loss::{Loss, TargetScale};
pub use options::{Preset, PresetSamples, TrainOptions, Width};
pub(in crate::learn) use ranking::spearman;
pub use run::train;
pub use size::FileSize;

/// What predictions are multiplied with before units are ranked, for layers 1 to L-1: a criterion that is the product of
/// something that depends on the token, which is learnt, and something of the unit alone, which need not be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Factors {
    /// The criterion that the product is.
    pub criterion: String,
    /// `[(L-1) * H]`, over 0.
    pub heads: Vec<f32>,
    /// `[(L-1) * F]`, over 0.
    pub neurons: Vec<f32>,
}

impl Factors {
    fn of(&self, kind: usize) -> &Vec<f32> {
        if kind == 0 { &self.heads } else { &self.neurons }
    }
}

/// What happens while a predictor is trained.
#[derive(Clone, Copy, Debug)]
pub enum TrainEvent<'a> {
    /// Samples to judge on were read.
    HeldOut {
        /// So far.
        rows: u64,
        /// In all.
        of: u64,
    },
    /// Samples were read or used; one counts half for either.
    Progress {
        /// So far.
        rows: u64,
        /// In all.
        of: u64,
    },
    /// The networks were judged.
    Report(&'a TrainReport),
}

/// How good the networks are after a portion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainReport {
    /// Times that the whole source was read.
    pub epoch: usize,
    /// Samples read.
    pub rows: u64,
    /// Steps taken.
    pub steps: u64,
    /// Learning rate of the next step.
    pub learning_rate: f32,
    /// Whether none were better before.
    pub best: bool,
    /// `None` if heads are not predicted.
    pub heads: Option<Judgement>,
    /// `None` if neurons are not predicted.
    pub neurons: Option<Judgement>,
}
