//! Keys and values of the positions seen so far.

use shadowllm_weights::ModelConfig;

use crate::tensor::Buffer;

/// Keys and values of one layer, each `[H_kv, capacity, d_h]`, and what is needed to make those that are missing.
///
/// A sparse token leaves the heads that it does not keep without keys and values. They are made when a later token keeps
/// the head, from the attention inputs of the positions in between.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayerCache {
    pub keys: Buffer,
    pub values: Buffer,
    /// Attention inputs (after the norm) of the positions from `pending_from` on, `[positions, d]`.
    pub pending: Buffer,
    /// First position whose attention input is kept. Every head has all positions before it.
    pub pending_from: usize,
    /// For each key/value head, the first position that it lacks; `[H_kv]`.
    pub filled: Vec<usize>,
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
            layers: vec![LayerCache { filled: vec![0; config.kv_heads], ..LayerCache::default() }; config.layers],
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
        for layer in &mut self.layers {
            layer.pending_from = layer.pending_from.min(self.len);
            layer.filled.iter_mut().for_each(|filled| *filled = (*filled).min(self.len));
        }
    }

    /// Bytes of the attention inputs that are kept to make missing keys and values from.
    pub fn pending_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| 4 * layer.pending.capacity() as u64).sum()
    }

    /// Whether every head has keys and values of every position.
    pub(crate) fn is_complete(&self) -> bool {
        self.layers.iter().all(|layer| layer.pending_from == self.len)
    }

    /// A layer, to fill it.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }

    /// Makes room for `positions` in all (at most the limit), so that later steps do not allocate.
    pub fn reserve(&mut self, positions: usize) {
        let wanted = positions.min(self.limit);
        if wanted <= self.capacity {
            return;
        }
        let run = self.head_dim;
        let (old, new) = (self.capacity * run, wanted * run);
        let held = self.len * run;
        for layer in &mut self.layers {
            for store in [&mut layer.keys, &mut layer.values] {
                let mut grown = Buffer::zeros(self.kv_heads * new);
                for head in 0..self.kv_heads {
                    grown[head * new..head * new + held].copy_from_slice(&store[head * old..head * old + held]);
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
        debug_assert_eq!(into.pending_from, start, "the cache has holes");
        let end = start + keys.len() / (heads * width);
        into.pending_from = end;
        into.filled.fill(end);
        for (from, to) in [(keys, &mut into.keys), (values, &mut into.values)] {
            for (t, row) in from.chunks_exact(heads * width).enumerate() {
                for (head, part) in row.chunks_exact(width).enumerate() {
                    let at = (head * capacity + start + t) * width;
                    to[at..at + width].copy_from_slice(part);
                }
            }
        }
    }

    /// Keys of all positions that there is room for, `[capacity, d_h]`, of a head of a layer.
    pub(crate) fn keys(&self, layer: usize, head: usize) -> &[f32] {
        let run = self.capacity * self.head_dim;
        &self.layers[layer].keys[head * run..(head + 1) * run]
    }

    /// As [`KvCache::keys`] for values.
    pub(crate) fn values(&self, layer: usize, head: usize) -> &[f32] {
        let run = self.capacity * self.head_dim;
        &self.layers[layer].values[head * run..(head + 1) * run]
    }

    /// Takes keys and values of a head that were made elsewhere, from position `from` on, for which there is room. They count once
    /// [`KvCache::advance`] is called.
    pub(crate) fn take_rows(&mut self, layer: usize, head: usize, from: usize, keys: &[f32], values: &[f32]) {
        let (width, capacity) = (self.head_dim, self.capacity);
        let into = &mut self.layers[layer];
        let start = (head * capacity + from) * width;
        into.keys[start..start + keys.len()].copy_from_slice(keys);
        into.values[start..start + values.len()].copy_from_slice(values);
        into.filled[head] = from + keys.len() / width;
    }

    /// Takes the attention inputs (`[positions, d]`) of the positions from `first` on that some head of a layer lacks.
    pub(crate) fn take_pending(&mut self, layer: usize, first: usize, inputs: &[f32]) {
        let into = &mut self.layers[layer];
        into.pending.resize(into.pending.len().max(inputs.len()));
        into.pending[..inputs.len()].copy_from_slice(inputs);
        into.pending_from = first;
    }

    /// Counts `positions` more as held.
    pub(crate) fn advance(&mut self, positions: usize) {
        self.len += positions;
    }
}
