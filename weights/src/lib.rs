//! Checkpoints for ShadowLLM: model weights in and out.
//!
//! The engine computes on weights that stay where they are: a checkpoint is memory-mapped, validated once, and handed out as
//! typed slices. This crate knows file formats (safetensors, GGUF, `config.json`) and where models live (a directory, the
//! Hugging Face cache, the model compiled into the library); it knows nothing of the engine.
//!
//! `README.md` of the crate lists what is supported. The way in is [`Checkpoint::open`]: a directory becomes a [`ModelConfig`] and named [`TensorData`].

mod checkpoint;
mod closest;
mod config;
mod dtype;
#[cfg(feature = "embedded-model")]
mod embedded;
mod error;
mod files;
pub mod gguf;
mod header;
#[cfg(feature = "hub")]
mod hub;
mod index;
mod int8;
mod names;
pub mod packed;
mod progress;
mod quantize;
mod shards;
mod source;
mod staged;
mod storage;
mod tensor;
mod writer;

pub use checkpoint::Checkpoint;
pub use config::{
    Activation, Architecture, Biases, ModelConfig, NormKind, NormPlacement, Positions, Rope, RopeScaling,
};
pub use dtype::DType;
pub use error::{Error, Result};
pub use header::{HeaderTensor, parse_safetensors_header};
#[cfg(feature = "hub")]
pub use hub::{HubError, HubOptions, fetch};
pub use index::parse_safetensors_index;
pub use int8::{INT8_GROUP, int8_row, int8_scales, int8_values};
pub use names::{FfnNames, LayerNames, ModelNames};
pub use packed::{PackReport, PackedCheckpoint, PackedLayer, cache_directory, pack, packed_location};
pub use progress::Progress;
pub use quantize::{checkpoint_metadata, quantize};
pub use source::ModelSource;
pub use staged::StagedDirectory;
pub use storage::Storage;
pub use tensor::TensorData;
pub use writer::{SafetensorsWriter, TensorSpec, write_atomic};

#[cfg(target_endian = "big")]
compile_error!("weights are little-endian on disk and used in place; big-endian processors are not supported");

/// Compiles the examples of the crate's page.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
