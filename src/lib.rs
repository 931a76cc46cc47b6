//! shadowllm
