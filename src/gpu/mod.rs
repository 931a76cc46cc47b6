//! Decoding on a GPU, or on its emulator.
//!
//! The crate `shadowllm-codegen` turns a model's shape into a [`Program`](shadowllm_codegen::Program): text, buffers, and the launches of one
//! token. This module is its runtime. It knows nothing of the kernels: it compiles the text, fills the buffers, records the launches once
//! as graphs, and replays a graph for every token. In between the host writes a token and reads logits; predictor, selection and lists
//! stay on the device.
//!
//! # Prompts
//! run in blocks of [`PROMPT_TOKENS`](shadowllm_codegen::PROMPT_TOKENS) tokens, dense, so that the weights are read once for a block. Scored texts,
//! and prompts that a probe watches, run on the CPU engine, and their keys and values are copied to the device. The cache goes both ways: when a
//! session goes on with the CPU, what the device has added comes back, pending attention inputs included.
//!
//! What a device does is behind [`Backend`], of the crate `shadowllm-device`: the driver's (feature `cuda`), or the PTX emulator's (feature
//! `emulator`).
//!
//! # Results
//! Kernels accumulate in `f32` in an order that depends on the shape alone. Logits agree with the CPU engine's to rounding, plans of a predictor
//! of 8-bit weights exactly wherever its input does.
//!
//! | file | idea |
//! | --- | --- |
//! | `device` | [`Device`]: what a user calls a device; [`Gpu`]: an open one |
//! | `cache` | compiled code on disk |
//! | `spec` | from a model, a predictor and a budget to what the emitter asks for |
//! | `upload` | the bytes of every tensor |
//! | `model` | [`DeviceModel`]: a model's weights on a device |
//! | `sequence` | one session's memory there, and its tokens |
//! | `report` | [`Emission`]: a model's kernels as text, what the compiler says of them, and how long a token should take |
//! | `shared` | a device that several sessions use in turn |
//! | `error` | [`GpuError`]: why not, one sentence each |

mod cache;
mod device;
mod error;
mod model;
mod report;
mod sequence;
mod shared;
mod spec;
mod upload;

pub use device::{Compiler, Device, Gpu};
pub use error::GpuError;
pub use model::DeviceModel;
pub use report::{Emission, EmissionOptions, GpuTimes, KernelReport, PaperTimes, TokenTime};
pub(crate) use sequence::Course;
pub use sequence::DeviceSequence;
#[cfg(feature = "cuda")]
pub use shadowllm_device::Cuda;
#[cfg(feature = "emulator")]
pub use shadowllm_device::Emulator;
pub use shadowllm_device::{
    Backend, BufferId, CodeForm, DeviceError, GraphId, LaunchArg, LaunchSpec, Memory, ModuleId,
};
