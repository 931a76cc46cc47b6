//! Everything that can be wrong with a file of packed weights.

use super::format::VERSION;
use crate::{DType, Error};

/// Why a file of packed weights cannot be used or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackedProblem {
    /// Another kind of file.
    #[error("it is no file of packed weights; `shadowllm pack` makes one from a model")]
    NotPacked,
    /// The end is missing.
    #[error("it is cut off after {found} bytes; make it again with `shadowllm pack`")]
    Truncated {
        /// Bytes that are there.
        found: u64,
    },
    /// It is no valid safetensors file.
    #[error("it is damaged ({0}); make it again with `shadowllm pack`")]
    Damaged(Box<Error>),
    /// Made by another version of the program.
    #[error("it has format version {found}, this program reads {VERSION}; make it again with `shadowllm pack`")]
    Version {
        /// As written.
        found: String,
    },
    /// An entry of the metadata is missing or makes no sense.
    #[error("its metadata entry {key:?} is wrong: {reason}; make it again with `shadowllm pack`")]
    Metadata {
        /// The entry.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that its configuration asks for is not there.
    #[error("it has no tensor {name:?}, which its configuration asks for; make it again with `shadowllm pack`")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor that its configuration does not have.
    #[error("its tensor {name:?} is unknown to its configuration; make it again with `shadowllm pack`")]
    UnknownTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor of another shape than its configuration asks for.
    #[error(
        "its tensor {name:?} has shape {found:?}, but its configuration asks for {expected:?}; make it again with \
         `shadowllm pack`"
    )]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// Shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor of another type than the file's.
    #[error("its tensor {name:?} has type {found}, but should have {expected}; make it again with `shadowllm pack`")]
    Type {
        /// The tensor.
        name: String,
        /// Its type as written.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// The model is not the one that was packed.
    #[error("it is stale: {reason} (packed from {source_location}); make it again with `shadowllm pack`")]
    Stale {
        /// What has changed.
        reason: String,
        /// The model that was packed.
        source_location: String,
    },
    /// Another process is making it.
    #[error("it is being written by {holder}; try again when that has finished")]
    Busy {
        /// Who, as far as known.
        holder: String,
    },
    /// There is something else under its name.
    #[error("there is another kind of file of this name; choose another name; nothing was changed")]
    Occupied,
}

impl PackedProblem {
    /// What is wrong with the header of a file of `found` bytes.
    pub(super) fn of_header(error: Error, found: usize) -> Self {
        match error {
            Error::HeaderMissing { .. } | Error::HeaderCut { .. } | Error::TensorCut { .. } => {
                PackedProblem::Truncated { found: found as u64 }
            }
            Error::HeaderTooLong { .. } | Error::HeaderSyntax { .. } => PackedProblem::NotPacked,
            other => PackedProblem::Damaged(Box::new(other)),
        }
    }

    /// Whether packing again mends it.
    pub(super) fn is_mended_by_packing(&self) -> bool {
        !matches!(self, PackedProblem::Busy { .. } | PackedProblem::Occupied)
    }

    pub(super) fn dtype(name: &str, found: impl ToString, expected: DType) -> Self {
        PackedProblem::Type { name: name.to_owned(), found: found.to_string(), expected: expected.to_string() }
    }
}
