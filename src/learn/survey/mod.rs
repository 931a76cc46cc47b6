//! A survey of criteria: the static scores of all of them from one pass over a calibration text, and what they have in common.
//!
//! # Why
//! A static policy is the baseline that every predictor has to beat, and which criterion it should use differs from model to
//! model. All criteria are computed from the same activations and gradients of the same texts, so that what differs between
//! their files is the formula and nothing else.
//!
//! # What is averaged
//! A *piece* is what is read in one go: a window of a document, or a record of a task with the loss on its answer alone. A
//! criterion's score of a unit is its sequence form, averaged over the pieces of each text, then over the texts. Losses are
//! summed, so the scores of long pieces are larger; so that a text of long pieces does not outvote one of short records, each
//! text's scores are first divided by its mean size (and multiplied by that of all texts together).
//!
//! ```text
//! pieces of a text --sequence_scores--> mean of the text --|
//! pieces of another --sequence_scores--> mean of that one --+--> Survey --> ScoresFile per criterion
//!                                                                  `-----> Statistics
//! ```

mod run;
mod state;
mod statistics;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use run::{Survey, SurveyOptions, SurveyedText, survey};
pub use statistics::{Correlations, CriterionStatistics, Spread, SurveyStatistics};
