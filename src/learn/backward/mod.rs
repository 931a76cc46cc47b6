//! Gradients of the loss of a text with respect to contexts and inners, layer by layer.
//!
//! # Why
//! Criteria need `A`, `dLoss/dA`, `Z` and `dLoss/dZ` of every layer and token, and nothing else. So this is not automatic
//! differentiation: the way back through the forward pass is written out, gradients of weights do not exist, and everything
//! runs on the kernels that the forward pass runs on.
//!
//! # Memory
//! Linear in the number of tokens `T`. The forward pass keeps what enters each layer, `[T, d]`, and the key/value cache that it
//! makes anyway. When the backward pass reaches a layer, it computes the layer again from these; its attention goes back in
//! blocks, from the logarithms of the softmax sums, so no `[T, T]` matrix exists; and logits exist for a block of rows at a
//! time, so no `[T, V]` matrix does.
//!
//! # Use
//! A [`LayerVisitor`] is shown the layers from the last to the first, each as a [`LayerRecord`] whose slices are gone when the
//! call returns. What criteria do not need is left out: nothing goes back below the contexts of layer 0.

mod layer;
mod loss;
mod observe;
mod pass;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod workspace;

pub use loss::{Loss, LossValue, Reduction};
pub use observe::observe;
pub use pass::{UnitFactors, backward, backward_scaled};
pub use workspace::BackwardWorkspace;

use crate::Result;

/// One layer of one text. All rows are tokens, `T` of them.
///
/// Of a pass without gradients ([`observe`]) the gradients and what leads to them are empty: everything but contexts, inners and
/// the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct LayerRecord<'a> {
    /// Layer, from 0.
    pub layer: usize,
    /// `T`.
    pub tokens: usize,
    /// `A`, `[T, H, d_h]`.
    pub contexts: &'a [f32],
    /// `dLoss/dA`, `[T, H, d_h]`.
    pub context_grads: &'a [f32],
    /// `Z`, `[T, F]`.
    pub inners: &'a [f32],
    /// `dLoss/dZ`, `[T, F]`.
    pub inner_grads: &'a [f32],
    /// Residual stream that leaves the layer, `[T, d]`; of the last layer before the final norm.
    pub residual: &'a [f32],
    /// Input of the first FFN matrix, `[T, d]`.
    pub ffn_inputs: &'a [f32],
    /// What the activation is applied to, `fc1 x` or `gate x`, `[T, F]`.
    pub gates: &'a [f32],
    /// `dLoss` with respect to it, `[T, F]`.
    pub gate_grads: &'a [f32],
    /// `up x` of a gated FFN, `[T, F]`; empty for a plain one.
    pub ups: &'a [f32],
    /// `dLoss` with respect to it.
    pub up_grads: &'a [f32],
}

/// Is shown the layers of a text.
pub trait LayerVisitor {
    /// Called once, after the forward pass and before any layer, with the loss. Not called where there is none.
    ///
    /// # Errors
    /// Whatever the visitor has to say; the pass ends with it.
    fn loss(&mut self, loss: &LossValue) -> Result<()> {
        let _ = loss;
        Ok(())
    }

    /// Called with each layer, the last one first; by [`observe`] the first one first.
    ///
    /// # Errors
    /// Whatever the visitor has to say, such as [`crate::Error::Interrupted`]; the pass ends with it.
    fn layer(&mut self, record: &LayerRecord<'_>) -> Result<()>;
}
