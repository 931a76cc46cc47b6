//! Keys and values of the positions seen so far.

use shadowllm_weights::ModelConfig;

use crate::tensor::Buffer;

/// Keys and values of one layer, each `[H_kv, capacity, d_h]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayerCache {
    pub keys: Buffer,
    pub values: Buffer,
}

/// The key/value cache of one sequence.
///
/// Head-major, so that a head's positions are one contiguous run: attention over a head reads nothing else, and a head can
/// be filled without touching the others. `f32`, so that decoding a token gives what running the whole text gives.
/// Memory grows by doubling up to `limit` positions; [`KvCache::reserve`] makes room at once when the length is known.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    limit: usize,
    len: usize,
}

/// Positions of the first allocation.
const FIRST_CAPACITY: usize = 64;

impl KvCache {
    /// An empty cache for a model, for at most `limit` positions.
    pub fn new(config: &ModelConfig, limit: usize) -> Self {
        KvCache {
            layers: vec![LayerCache::default(); config.layers],
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            capacity: 0,
            limit,
            len: 0,
        }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Most positions it may hold.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes of memory in use.
    pub fn bytes(&self) -> u64 {
        8 * (self.layers.len() * self.kv_heads * self.capacity * self.head_dim) as u64
    }

    /// Forgets all positions from `len` on. Does nothing if there are fewer.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes room for `positions` in all (at most the limit), so that later steps do not allocate.
    pub fn reserve(&mut self, positions: usize) {
        let wanted = positions.min(self.limit);
        if wanted <= self.capacity {
            return;
        }
        let run = self.head_dim;
        let (old, new) = (self.capacity * run, wanted * run);
        let filled = self.len * run;
        for layer in &mut self.layers {
            for store in [&mut layer.keys, &mut layer.values] {
                let mut grown = Buffer::zeros(self.kv_heads * new);
                for head in 0..self.kv_heads {
                    grown[head * new..head * new + filled].copy_from_slice(&store[head * old..head * old + filled]);
                }
                *store = grown;
            }
        }
        self.capacity = wanted;
    }

    /// Room for `extra` more positions, growing by doubling. The caller has checked the limit.
    pub(crate) fn grow_for(&mut self, extra: usize) {
        let needed = self.len + extra;
        debug_assert!(needed <= self.limit);
        if needed > self.capacity {
            self.reserve(needed.max(2 * self.capacity).max(FIRST_CAPACITY));
        }
    }

    /// Positions that fit into the present allocation.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Keys and values of a layer.
    pub(crate) fn layer(&self, layer: usize) -> &LayerCache {
        &self.layers[layer]
    }

    /// Stores keys and values (`[T, H_kv, d_h]`) of the `T` positions after the present end. They count once every layer
    /// has them and [`KvCache::advance`] is called.
    pub(crate) fn store(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let (heads, width, capacity, start) = (self.kv_heads, self.head_dim, self.capacity, self.len);
        let into = &mut self.layers[layer];
        for (from, to) in [(keys, &mut into.keys), (values, &mut into.values)] {
            for (t, row) in from.chunks_exact(heads * width).enumerate() {
                for (head, part) in row.chunks_exact(width).enumerate() {
                    let at = (head * capacity + start + t) * width;
                    to[at..at + width].copy_from_slice(part);
                }
            }
        }
    }

    /// Counts `positions` more as held.
    pub(crate) fn advance(&mut self, positions: usize) {
        self.len += positions;
    }
}
