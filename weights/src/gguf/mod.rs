//! GGUF, the file format of llama.cpp: read, dequantise, and write as a Hugging Face checkpoint.
//!
//! Many models are easiest to get as one GGUF file. The engine itself reads safetensors only, where weights can be used in
//! place, so a GGUF file is imported once with [`import`]: every tensor is dequantised exactly as the reference
//! implementation does, names and row order become Hugging Face's, and the configuration and the tokenizer are rebuilt from
//! the metadata.

mod config;
mod import;
mod metadata;
mod problem;
mod quants;
mod reader;
mod rope;
mod sentencepiece;
mod tensors;
#[cfg(test)]
mod testing;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod tokenizer;

pub use import::{ImportReport, check, import};
pub use problem::{GgufProblem, GgufResult};
pub use quants::QuantType;
pub use reader::{Gguf, GgufTensor, Value, ValueType};
