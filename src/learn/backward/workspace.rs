//! Memory of a backward pass, kept between texts.

use shadowllm_weights::ModelConfig;

use crate::model::{KvCache, Workspace};
use crate::tensor::Buffer;

/// Activations and gradients of one text. Grows with the longest text so far; may be used with any model, one after the other.
#[derive(Debug, Default)]
pub struct BackwardWorkspace {
    /// Of the forward pass.
    pub(super) forward: Workspace,
    /// Keys and values of the text, and the model that they are shaped for.
    cache: Option<(ModelConfig, KvCache)>,
    /// Residual stream entering each layer, and leaving the last one before the final norm: `[L + 1, T, d]`.
    pub(super) entering: Buffer,
    /// A block of logits, then their gradients, `[rows, V]`.
    pub(super) logits: Buffer,
    /// Losses of these rows.
    pub(super) losses: Buffer,
    /// Gradients before the projection of the LM head, `[rows, embed_dim]`.
    pub(super) narrow: Buffer,
    /// The layer at hand.
    pub(super) layer: LayerBuffers,
}

/// What one layer needs, computed again and on the way back.
#[derive(Debug, Default)]
pub(super) struct LayerBuffers {
    /// Gradient of the residual stream, `[T, d]`: of what leaves the layer, in the end of what enters it.
    pub(super) gradient: Buffer,
    /// Output of a norm in front of a block, `[T, d]`.
    pub(super) normed: Buffer,
    /// Output of a block, gradient of its input, `[T, d]`.
    pub(super) block: Buffer,
    /// One summand of such a gradient, `[T, d]`.
    pub(super) part: Buffer,
    /// Residual stream plus the attention's output, `[T, d]`.
    pub(super) attended: Buffer,
    /// With norms behind the blocks: [`Self::attended`] after its norm, `[T, d]`.
    pub(super) between: Buffer,
    /// With norms behind the blocks: residual stream plus the FFN's output, `[T, d]`.
    pub(super) leaving: Buffer,
    /// `[T, H*d_h]`
    pub(super) queries: Buffer,
    /// Contexts as attention made them, `[T, H*d_h]`.
    pub(super) contexts: Buffer,
    /// Contexts times the heads' factors, if there are any, `[T, H*d_h]`.
    pub(super) scaled: Buffer,
    /// `[T, H*d_h]`
    pub(super) context_grads: Buffer,
    /// Logarithms of the attention's sums, `[T, H]`.
    pub(super) log_sums: Buffer,
    /// `[T, H*d_h]`
    pub(super) query_grads: Buffer,
    /// `[T, H_kv*d_h]`
    pub(super) key_grads: Buffer,
    /// `[T, H_kv*d_h]`
    pub(super) value_grads: Buffer,
    /// `fc1 x` or `gate x`, `[T, F]`.
    pub(super) gates: Buffer,
    /// `[T, F]`
    pub(super) gate_grads: Buffer,
    /// `up x`, `[T, F]`.
    pub(super) ups: Buffer,
    /// `[T, F]`
    pub(super) up_grads: Buffer,
    /// `[T, F]`
    pub(super) inners: Buffer,
    /// `[T, F]`
    pub(super) inner_grads: Buffer,
}

impl BackwardWorkspace {
    /// Nothing is allocated before the first text.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        let l = &self.layer;
        let stream = [&l.gradient, &l.normed, &l.block, &l.part, &l.attended, &l.between, &l.leaving];
        let attention = [
            &l.queries,
            &l.contexts,
            &l.scaled,
            &l.context_grads,
            &l.log_sums,
            &l.query_grads,
            &l.key_grads,
            &l.value_grads,
        ];
        let ffn = [&l.gates, &l.gate_grads, &l.ups, &l.up_grads, &l.inners, &l.inner_grads];
        let text = [&self.entering, &self.logits, &self.losses, &self.narrow];
        let buffers = stream.into_iter().chain(attention).chain(ffn).chain(text);
        let values: usize = buffers.map(Buffer::capacity).sum();
        let cache = self.cache.as_ref().map_or(0, |(_, cache)| cache.bytes());
        4 * values as u64 + cache + self.forward.bytes()
    }

    /// The forward pass's workspace and an empty cache with room for `tokens`, of the model's shape.
    pub(super) fn start(&mut self, config: &ModelConfig, tokens: usize) -> (&mut Workspace, &mut KvCache) {
        let cache = match self.cache.take() {
            Some((shape, cache)) if shape == *config => cache,
            _ => KvCache::new(config, config.max_positions),
        };
        let (_, cache) = self.cache.insert((config.clone(), cache));
        cache.truncate(0);
        cache.reserve(tokens);
        (&mut self.forward, cache)
    }

    /// The cache of the last forward pass and the buffers of a layer.
    pub(super) fn parts(&mut self) -> Option<Parts<'_>> {
        let (_, cache) = self.cache.as_ref()?;
        Some(Parts { cache, entering: &self.entering, buffers: &mut self.layer })
    }
}

/// What the backward pass of a layer reads and writes.
pub(super) struct Parts<'a> {
    pub(super) cache: &'a KvCache,
    /// `[L + 1, T, d]`
    pub(super) entering: &'a [f32],
    pub(super) buffers: &'a mut LayerBuffers,
}
