//! Checkpoints for ShadowLLM: model weights in and out.
//!
//! The engine computes on weights that stay where they are: a checkpoint is memory-mapped, validated once, and handed out as
//! typed slices. This crate knows file formats (safetensors, GGUF, `config.json`) and where models live (a directory, the
//! Hugging Face cache, the model compiled into the library); it knows nothing of the engine.
//!
//! The way in is [`Checkpoint::open`]: a directory becomes a [`ModelConfig`] and named [`TensorData`].

mod config;
mod dtype;
mod error;
pub mod gguf;
mod progress;
mod storage;
mod tensor;
mod writer;

pub use config::{
    Activation, Architecture, Biases, ModelConfig, NormKind, NormPlacement, Positions, Rope, RopeScaling,
};
pub use dtype::DType;
pub use error::{Error, Result};
pub use progress::Progress;
pub use storage::Storage;
pub use tensor::TensorData;
pub use writer::{SafetensorsWriter, TensorSpec, write_atomic};
