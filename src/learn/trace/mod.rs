//! Samples from text: the model reads it, and what its units did is noted.
//!
//! ```text
//! files --documents--> tokens --windows--> forward (and backward) --> importances --> SampleBatch
//! ```
//!
//! A [`TextSource`] does this as samples are wanted. [`write_trace`] does it once and for all, on any number of machines, and a
//! [`TraceSource`] reads what they wrote.
//!
//! Texts are cut into documents, documents into windows, and windows are read in an order that depends on a seed: neighbours
//! in training are strangers in the text. A record of a task is a document that knows where its answer begins: importances from
//! gradients are of the loss on the answer alone.

mod criterion;
mod documents;
mod file;
mod read;
mod source;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod windows;
mod write;

pub use criterion::{Importance, TokenCriterion};
pub use documents::{Document, Passage, Text, choose_documents};
pub use file::check_trace_file;
pub use read::TraceSource;
pub use source::{SampleOptions, TextSource};
pub use write::{Shard, TraceReport, write_trace};
