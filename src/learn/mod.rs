//! Learning which units a token needs: from text to importances, from importances to a predictor.
//!
//! # Why
//! A predictor is trained on the importance of every unit for every token of a calibration text, and importance is a product of
//! activations and of what the loss says about them. [`mod@backward`] computes both for a text: one forward pass, one backward pass,
//! no gradient of any weight. [`criteria`] turns them into importances, each criterion in a file of its own. [`survey`] compares
//! them as static scores. [`trace`] makes samples of texts, stored or as a stream, and [`train`] fits the networks of a predictor to
//! them.
//!
//! ```text
//! tokens --backward--> A, dA, Z, dZ of a layer --criteria--> importance of its heads and neurons
//!                      (last layer first)                    (per token, or of the whole text)
//!
//! tokens --trace--> inputs of the stations, importance of every unit --train--> predictor file
//! ```

pub mod backward;
mod compact;
pub mod criteria;
mod error;
mod samples;
pub mod survey;
pub mod trace;
pub mod train;

pub use backward::{
    BackwardWorkspace, LayerRecord, LayerVisitor, Loss, LossValue, Reduction, UnitFactors, backward, backward_scaled,
    observe,
};
pub use criteria::{Criterion, Form, UnitKind, sequence_scores};
pub use error::LearnError;
pub use samples::{SampleBatch, SampleInfo, SampleSource, Split};
