//! Buffers of the forward pass, kept between calls so that a token allocates nothing.

/// Activations of one forward pass over `T` rows. Belongs to one sequence (or batch) at a time.
#[derive(Clone, Debug, Default)]
pub struct Workspace {
    /// Residual stream `[T, d]`; after the pass its final norm has been applied.
    pub(crate) residual: Vec<f32>,
    /// Norm output, then block output `[T, d]`.
    pub(crate) normed: Vec<f32>,
    /// Block output before it is added `[T, d]`.
    pub(crate) block: Vec<f32>,
    /// `[T, H*d_h]`.
    pub(crate) queries: Vec<f32>,
    /// `[T, H_kv*d_h]`.
    pub(crate) keys: Vec<f32>,
    /// `[T, H_kv*d_h]`.
    pub(crate) values: Vec<f32>,
    /// Contexts `A`, `[T, H*d_h]`.
    pub(crate) contexts: Vec<f32>,
    /// Inners `Z`, `[T, F]`.
    pub(crate) inners: Vec<f32>,
    /// `up x` of a gated FFN, `[T, F]`.
    pub(crate) up: Vec<f32>,
    /// Embedding rows `[T, embed_dim]`, where they are narrower than the model; also the projected rows before the LM head.
    pub(crate) narrow: Vec<f32>,
}

/// The first `len` elements of a buffer that grows but never shrinks.
pub(crate) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
