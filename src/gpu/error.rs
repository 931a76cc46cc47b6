//! Why a device cannot be used, one sentence each.

use shadowllm_codegen::SpecError;
use shadowllm_device::DeviceError;
use shadowllm_nvrtc::Error as NvrtcError;

/// What can be wrong with a device, or with running a model on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// A name that is no device.
    #[error(
        "unknown device {found:?}; expected cpu, auto, cuda, cuda:N (such as cuda:0) or, in builds with it, emulator"
    )]
    UnknownDevice {
        /// As given.
        found: String,
    },
    /// The program was built without what the device needs.
    #[error(
        "this program was built without the feature `{feature}`; build it with `--features {feature}`, or use --device cpu"
    )]
    NotBuilt {
        /// The feature.
        feature: &'static str,
    },
    /// There is none, or it failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A GPU for which no code is emitted.
    #[error("{name} is of compute capability {}.{}, for which there are no kernels (supported are 8.0 and newer); use --device cpu", sm / 10, sm % 10)]
    OldGpu {
        /// Its name.
        name: String,
        /// Its version: 75 for 7.5.
        sm: u32,
    },
    /// The compiler of kernels is not there, or refuses.
    #[error("the kernels cannot be compiled: {0}")]
    Compile(#[from] NvrtcError),
    /// The model does not fit.
    #[error(
        "{what} takes {:.2} GB of GPU memory, but {name} has {:.2} GB free of {:.2} GB; end what else runs there, use a smaller \
         --context or model, or use --device cpu", *needed as f64 / 1e9, *free as f64 / 1e9, *total as f64 / 1e9
    )]
    Memory {
        /// What would be put there.
        what: &'static str,
        /// The device.
        name: String,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Bytes that there are.
        total: u64,
    },
    /// No kernels for a model of this shape.
    #[error("this model cannot run on a GPU: {0}")]
    Spec(#[from] SpecError),
    /// No kernels for a model or predictor of this kind.
    #[error("this model cannot run on a GPU: {reason}; use --device cpu")]
    Unsupported {
        /// What there are no kernels for.
        reason: String,
    },
    /// A way of decoding that only the CPU engine has.
    #[error("{what} is not possible on a GPU; {instead}, or use --device cpu")]
    NotOnDevice {
        /// What was asked for.
        what: String,
        /// What is possible.
        instead: &'static str,
    },
    /// The engine's weights are not packed.
    #[error(
        "a GPU takes packed weights, and this engine was loaded from plain ones; load it with Engine::load_packed or Engine::over"
    )]
    NotPacked,
    /// The model on the device is that of another engine.
    #[error(
        "the model on the device is that of another engine; load this session's engine there with DeviceModel::load"
    )]
    OtherEngine,
    /// A predictor's scores are no numbers.
    #[error(
        "the predictor gave a score that is not a finite number; check the predictor, or the checkpoint for NaN and infinite weights"
    )]
    BadScore,
    /// A session was copied from a device that failed.
    #[error(
        "a device failed while this session was copied from it: it has keys and values of {held} of its {tokens} tokens; start it anew"
    )]
    Lost {
        /// Positions that were copied.
        held: usize,
        /// Tokens of the session.
        tokens: usize,
    },
}

impl GpuError {
    /// Whether there is no device that this model could run on, as opposed to a request that makes no sense or a device that broke.
    pub fn is_unusable(&self) -> bool {
        !matches!(
            self,
            GpuError::UnknownDevice { .. }
                | GpuError::NotOnDevice { .. }
                | GpuError::NotPacked
                | GpuError::OtherEngine
                | GpuError::BadScore
                | GpuError::Lost { .. }
        )
    }
}

impl From<DeviceError> for crate::Error {
    fn from(error: DeviceError) -> Self {
        GpuError::Device(error).into()
    }
}
