//! What can go wrong, in sentences for users.

use std::path::PathBuf;

/// Why there is no compiled code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No library on this system.
    #[error(
        "there is no NVRTC on this system (looked for {names} where the system finds libraries and below {folders}): \
         install the CUDA toolkit, or run `pip install nvidia-cuda-nvrtc-cu12` and set SHADOWLLM_NVRTC to the folder of libnvrtc.so.12"
    )]
    NotInstalled {
        /// File names that the system was asked for.
        names: String,
        /// Folders that were searched.
        folders: String,
    },
    /// What the environment variable names does not exist.
    #[error("SHADOWLLM_NVRTC is {}, which does not exist: set it to the file libnvrtc.so.12 or its folder", path.display())]
    Missing {
        /// Its value.
        path: PathBuf,
    },
    /// The environment variable names a folder without the library.
    #[error(
        "SHADOWLLM_NVRTC is {}, where there is no libnvrtc.so.*: set it to the file libnvrtc.so.12 or its folder", path.display()
    )]
    NotInFolder {
        /// Its value.
        path: PathBuf,
    },
    /// A file that is not the library, or of another processor.
    #[error("NVRTC cannot be opened ({}): install it again, or set SHADOWLLM_NVRTC to another libnvrtc.so.12", reasons.join("; "))]
    CannotOpen {
        /// Every file that was tried, with the loader's words.
        reasons: Vec<String>,
    },
    /// A GPU generation that this compiler does not know.
    #[error("NVRTC {version} cannot compile for sm_{arch}, only for {}: install a newer NVRTC", known(supported))]
    UnsupportedArch {
        /// As asked for.
        arch: u32,
        /// Version of the compiler.
        version: String,
        /// What it can compile for.
        supported: Vec<u32>,
    },
    /// No thread to compile in.
    #[error(
        "no thread can be started to compile CUDA source in ({0}): end other programs, or raise the limit of threads"
    )]
    Thread(#[source] std::io::Error),
    /// The text has a zero byte.
    #[error("the CUDA source has a zero byte at offset {offset}: it must be text")]
    ZeroByte {
        /// Where.
        offset: usize,
    },
    /// The text is not a CUDA program.
    #[error("NVRTC {version} rejects the CUDA source for sm_{arch}:\n{log}")]
    Rejected {
        /// Target.
        arch: u32,
        /// Version of the compiler.
        version: String,
        /// What the compiler says.
        log: String,
    },
    /// The compiler warns where warnings are denied.
    #[error("NVRTC {version} warns of the CUDA source for sm_{arch}:\n{}", warnings.join("\n"))]
    Warned {
        /// Target.
        arch: u32,
        /// Version of the compiler.
        version: String,
        /// The warnings.
        warnings: Vec<String>,
    },
    /// Anything else.
    #[error("NVRTC failed to {doing}: {reason}")]
    Failed {
        /// Completes the sentence.
        doing: &'static str,
        /// The compiler's name of the error.
        reason: String,
    },
}

fn known(archs: &[u32]) -> String {
    let names: Vec<_> = archs.iter().map(|arch| format!("sm_{arch}")).collect();
    names.join(", ")
}
