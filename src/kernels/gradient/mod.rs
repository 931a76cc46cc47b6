//! Gradients: what a loss says about the input of an operation, given what it says about its output.
//!
//! # Why
//! The importance of a unit needs `dLoss/dA` and `dLoss/dZ`, the gradients of activations, and no gradient of any weight. So each
//! operation of the forward pass has its way back here, from the gradient of its output to that of its input, and nothing is
//! recorded: an operation is given its *input* again and recomputes what it needs. Linear layers go back through
//! [`linear_transposed`](super::linear_transposed), attention through
//! [`attention_backward`](super::attention_backward), rotations through [`rope_backward`](super::rope_backward), whose kernels
//! stand beside those of the way there.
//!
//! # Contract
//! As for all kernels: `f32` with a stated bound, each element by one task in a fixed order, NaN and infinity never swallowed.

mod activation;
mod loss;
mod norm;

pub use activation::{activate_backward, gated_backward};
pub use loss::cross_entropy_backward;
pub use norm::{layer_norm_backward, rms_norm_backward};
