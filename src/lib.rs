//! shadowllm

pub mod kernels;
pub mod tensor;
