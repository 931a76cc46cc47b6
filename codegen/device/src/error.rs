//! Why a device is not there or does not work, one sentence each.

/// What can be wrong with a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// There is no driver library.
    #[error(
        "there is no NVIDIA driver on this machine (libcuda.so.1 was not found): install the driver, or use --device cpu"
    )]
    NoDriver,
    /// The driver library is the one for linking.
    #[error(
        "the libcuda that was found is the stub of the CUDA toolkit, which is for linking only: take its folder out of \
         LD_LIBRARY_PATH or install the NVIDIA driver, or use --device cpu"
    )]
    StubDriver,
    /// A file of that name that is no driver.
    #[error(
        "the libcuda that was found has no function {function}: install the NVIDIA driver again, or use --device cpu"
    )]
    NotADriver {
        /// The function that was looked for.
        function: &'static str,
    },
    /// The driver works but has no GPU.
    #[error(
        "the NVIDIA driver finds no GPU (check `nvidia-smi` and CUDA_VISIBLE_DEVICES); use --device cpu without one"
    )]
    NoGpu,
    /// A number that no GPU has.
    #[error("there is no GPU number {asked}: the NVIDIA driver finds {found}, numbered from 0")]
    NoSuchGpu {
        /// As asked for.
        asked: usize,
        /// GPUs there are.
        found: usize,
    },
    /// The driver is older than the code that it would have to load.
    #[error(
        "the NVIDIA driver is too old: it supports CUDA {}.{}, but {needs} needs CUDA {}.{} or newer; update the driver, or use --device cpu",
        found / 1000, found % 1000 / 10, needed / 1000, needed % 1000 / 10
    )]
    OldDriver {
        /// What the driver supports, as 12080 for 12.8.
        found: i32,
        /// What is needed.
        needed: i32,
        /// Who needs it.
        needs: String,
    },
    /// A call of the driver failed.
    #[error("{name} failed to {doing}: {reason}")]
    Failed {
        /// The device.
        name: String,
        /// Completes the sentence.
        doing: &'static str,
        /// The driver's or the emulator's words.
        reason: String,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, DeviceError>;
