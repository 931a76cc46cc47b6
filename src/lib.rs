//! shadowllm

pub mod generate;
