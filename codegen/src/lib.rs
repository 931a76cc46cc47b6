//! From a model's shape to CUDA source text.
//!
//! A GPU kernel for one model is simpler and faster than one for all models: with every size a literal, loops unroll, index
//! arithmetic folds, and shared memory is sized exactly. So the kernels are emitted per shape, at load time. This crate is
//! the pure part of that: text in, text out, no GPU and no I/O, and the same text for the same input.
//!
//! [`KernelSpec`] is its input: everything the emitted text depends on.

mod spec;

pub use spec::{Activation, DType, Family, KernelSpec, Norm, Sm, SpecError};
