//! What can go wrong when the execution context is made. Kernels themselves cannot fail.

use super::IsaName;

/// Why a [`Cpu`](super::Cpu) could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// An instruction set that no kernel is written for was named.
    #[error("unknown instruction set {found:?}; expected portable, avx2, avx512 or amx")]
    UnknownIsa {
        /// The name as given.
        found: String,
    },
    /// An instruction set was asked for that this processor does not have.
    #[error("instruction set {asked} was asked for, but this processor only has: {available}; choose one of these")]
    IsaUnavailable {
        /// What was asked for.
        asked: IsaName,
        /// What the processor has, comma-separated.
        available: String,
    },
    /// A precision of products that there is none of was named.
    #[error("unknown precision {name:?}; expected f32 or bf16")]
    UnknownCompute {
        /// The name as given.
        name: String,
    },
    /// Zero threads were asked for.
    #[error("0 threads were asked for; at least 1 is needed")]
    NoThreads,
    /// The operating system refused to start the worker threads.
    #[error("cannot start {threads} worker threads: {source}")]
    ThreadPool {
        /// How many were asked for.
        threads: usize,
        /// The reason.
        source: rayon::ThreadPoolBuildError,
    },
}
