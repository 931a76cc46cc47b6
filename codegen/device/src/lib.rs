//! A GPU and its emulator behind one interface: memory, copies, code, launches, graphs.
//!
//! What runs emitted kernels must not know where, so that what was tested on the emulator is what a GPU is asked to do, call for call.
//! The engine's runtime and the tests of kernels are written against [`Backend`]; `Cuda` is the driver (feature `cuda`), looked for when
//! it is asked for, and `Emulator` runs PTX on the CPU (feature `emulator`).

mod backend;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "emulator")]
mod emulator;
mod error;

pub use backend::{Backend, BufferId, CodeForm, GraphId, LaunchArg, LaunchSpec, Memory, ModuleId};
#[cfg(feature = "cuda")]
pub use cuda::Cuda;
#[cfg(feature = "emulator")]
pub use emulator::Emulator;
pub use error::{DeviceError, Result};
