//! Buffers of the forward pass, kept between calls so that a token allocates nothing.

use crate::tensor::Buffer;

/// Activations of one forward pass over `T` rows. Belongs to one sequence (or batch) at a time.
#[derive(Clone, Debug, Default)]
pub struct Workspace {
    /// Residual stream `[T, d]`; after the pass its final norm has been applied.
    pub(crate) residual: Buffer,
    /// Norm output, then block output `[T, d]`.
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

/// The first `len` elements of a buffer that grows but never shrinks.
pub(crate) fn sized(buffer: &mut Buffer, len: usize) -> &mut [f32] {
    buffer.resize(len.max(buffer.len()));
    &mut buffer[..len]
}
