//! Everything that can be wrong with a checkpoint, one variant each.

use std::path::PathBuf;

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a checkpoint could not be found, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb: "open", "map", "write".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A number format that the engine has no kernels for.
    #[error("unknown dtype {found:?}; expected f32, f16 or bf16")]
    UnknownDType {
        /// The name as given.
        found: String,
    },
    /// A tensor's bytes do not fit its shape and type.
    #[error("tensor of shape {shape:?} and type {dtype} needs {expected} bytes, but {found} were given")]
    TensorSize {
        /// Declared shape.
        shape: Vec<usize>,
        /// Declared type.
        dtype: crate::DType,
        /// Bytes that the shape and type ask for.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// A tensor's bytes do not start at a multiple of its element size.
    #[error(
        "tensor data starts at an address that is no multiple of {size} bytes; rewrite the file with a current safetensors library"
    )]
    Misaligned {
        /// Element size in bytes.
        size: usize,
    },

    // Writing files.
    /// A file could not be written; the temporary file was removed and what was at the path before is untouched.
    #[error("cannot write {path}: {source}; the whole file takes {needed} bytes; nothing was replaced")]
    Write {
        /// The file that was to be made.
        path: PathBuf,
        /// Bytes of the complete file.
        needed: u64,
        /// The operating system's reason, such as a full disk.
        source: std::io::Error,
    },
    /// A tensor was written that the file's header does not have.
    #[error(
        "tensor {name:?} was not declared when {path} was begun; declare every tensor of a file before the first write"
    )]
    UndeclaredTensor {
        /// The file that was to be made.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor was given more or fewer bytes than its header entry asks for.
    #[error("tensor {name:?} of {path} takes {expected} bytes, but was given {found}")]
    TensorBytes {
        /// The file that was to be made.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Bytes declared.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// One name for two tensors of a file.
    #[error("tensor {name:?} occurs twice in {path}; a name stands for one tensor")]
    DuplicateTensor {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },

    // GGUF import.
    /// A GGUF file is damaged, or something in it cannot be imported.
    #[error("cannot import {path}: {problem}")]
    Gguf {
        /// The GGUF file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        problem: crate::gguf::GgufProblem,
    },
    /// The directory to be made is there already.
    #[error("{path} exists and is not an empty directory; choose another name or remove it; nothing was changed")]
    OutputExists {
        /// The directory.
        path: PathBuf,
    },
}
