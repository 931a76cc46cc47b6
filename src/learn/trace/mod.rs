//! Samples from text: the model reads it, and what its units did is noted.
//!
//! ```text
//! files --documents--> tokens --windows--> Model::forward --Probe--> criterion --> SampleBatch
//! ```
//!
//! Texts are cut into documents, documents into windows, and windows are read in an order that depends on a seed: neighbours
//! in training are strangers in the text. What an importance is is a [`TokenCriterion`], one small struct each.

mod criterion;
mod documents;
mod source;

pub use criterion::{TokenCriterion, criterion};
pub use documents::{Text, choose_documents};
pub use source::{SampleOptions, TextSource};
