//! Buffers of the forward pass, kept between calls so that a token allocates nothing.

use super::Model;
use crate::tensor::Buffer;

/// Activations of one forward pass over `T` rows. Belongs to one sequence (or batch) at a time.
#[derive(Clone, Debug, Default)]
pub struct Workspace {
    /// Residual stream `[T, d]`; after the pass its final norm has been applied.
    pub(crate) residual: Buffer,
    /// Norm output `[T, d]`; after the pass the residual stream before the final norm, if there is one.
    pub(crate) normed: Buffer,
    /// Block output before it is added `[T, d]`.
    pub(crate) block: Buffer,
    /// `[T, H*d_h]`.
    pub(crate) queries: Buffer,
    /// `[T, H_kv*d_h]`.
    pub(crate) keys: Buffer,
    /// `[T, H_kv*d_h]`.
    pub(crate) values: Buffer,
    /// Contexts `A`, `[T, H*d_h]`.
    pub(crate) contexts: Buffer,
    /// Inners `Z`, `[T, F]`.
    pub(crate) inners: Buffer,
    /// `up x` of a gated FFN, `[T, F]`.
    pub(crate) up: Buffer,
    /// Embedding rows `[T, embed_dim]`, where they are narrower than the model; also the projected rows before the LM head.
    pub(crate) narrow: Buffer,
}

impl Workspace {
    /// Residual stream that left the last layer in a pass over `count` rows, before the final norm, `[count, d]`.
    pub(crate) fn before_final_norm(&self, model: &Model, count: usize) -> &[f32] {
        let stream = if model.final_norm.is_some() { &self.normed } else { &self.residual };
        &stream[..count * model.config.hidden]
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> u64 {
        let Workspace { residual, normed, block, queries, keys, values, contexts, inners, up, narrow } = self;
        let buffers = [residual, normed, block, queries, keys, values, contexts, inners, up, narrow];
        buffers.into_iter().map(|buffer| 4 * buffer.capacity() as u64).sum()
    }
}

/// The first `len` elements of a buffer that grows but never shrinks.
pub(crate) fn sized(buffer: &mut Buffer, len: usize) -> &mut [f32] {
    buffer.resize(len.max(buffer.len()));
    &mut buffer[..len]
}
