//! Learning which units a token needs: samples from text, predictors from samples.

mod compact;
mod samples;
pub mod trace;
pub mod train;

pub use samples::{SampleBatch, SampleInfo, SampleSource, Split};
