//! One token over the units that it keeps.
//!
//! The same path as [`Model::forward`], with gather kernels over records in place of whole matrices. Two things differ:
//! units are chosen on the way, by a [`Director`] that is shown the residual stream; and keys and values of heads that are not
//! kept are not made now but when a later token keeps the head (*lazy fill*), from the attention inputs of the positions in
//! between. Missing rows of a head are made together, so its weights are read about as often as the head is kept; after
//! `kv_flush` positions all heads are filled. What attention reads is bit for bit what would have been there at once.

use super::cache::LayerCache;
use super::workspace::{Workspace, sized};
use super::{Attention, Ffn, KvCache, Model, PackedModel, Segment};
use crate::Result;
use crate::kernels::{
    Cpu, FfnGather, attention_gather, attention_gather_bytes, ffn_gather, heads_bytes, heads_output, heads_project,
    kv_project, kv_project_bytes, rope,
};

/// Units of one layer that a token keeps: ascending, without repetition.
#[derive(Clone, Copy, Debug)]
pub struct KeptUnits<'a> {
    /// Heads, each below `H`.
    pub heads: &'a [u32],
    /// Neurons, each below `F`.
    pub neurons: &'a [u32],
}

/// Chooses units while a token is on its way.
pub trait Director: Send {
    /// Shown what leaves layer `layer`: its contexts (`[H, d_h]`, zero for heads that were not kept) and the residual stream
    /// (`[d]`). May choose units of the layers behind it.
    ///
    /// # Errors
    /// Whatever keeps it from choosing; the token then ends with this error.
    fn left_layer(&mut self, cpu: &Cpu, layer: usize, contexts: &[f32], residual: &[f32]) -> Result<()>;

    /// The units of a layer.
    fn kept(&self, layer: usize) -> KeptUnits<'_>;

    /// Of a layer with a gated FFN: for each of the `F` neurons the size under which its activated gate counts as 0, so that
    /// the rest of its record is not read. `None`: all kept neurons are read whole. Changes results.
    fn gate_thresholds(&self, layer: usize) -> Option<&[f32]> {
        let _ = layer;
        None
    }
}

/// How sparse tokens run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseOptions {
    /// With ReLU: the second half of a neuron whose first product is not positive is not read. Exact.
    pub relu_skip: bool,
    /// Positions after which the keys and values of all heads are made, kept or not; at least 1.
    pub kv_flush: usize,
}

impl Default for SparseOptions {
    fn default() -> Self {
        SparseOptions { relu_skip: true, kv_flush: 64 }
    }
}

/// What one sparse token read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SparseCount {
    /// Heads kept, over all layers.
    pub heads: u64,
    /// Neurons kept, over all layers.
    pub neurons: u64,
    /// Neurons of these whose record was read to the end: neither ReLU nor a gate threshold made the rest of no use.
    pub neurons_active: u64,
    /// Bytes of layer weights read.
    pub blocks: u64,
    /// Bytes of keys and values read.
    pub cache: u64,
}

impl Model {
    /// Runs one token over the units that `director` keeps and extends the cache. Afterwards row 0 of `workspace` is ready for
    /// [`Model::logits`].
    ///
    /// # Errors
    /// As [`Model::forward`], and those of the director; the cache then holds what it held before.
    #[allow(clippy::too_many_arguments)]
    pub fn decode_sparse(
        &self,
        cpu: &Cpu,
        packed: &PackedModel,
        options: SparseOptions,
        token: u32,
        cache: &mut KvCache,
        workspace: &mut Workspace,
        director: &mut dyn Director,
    ) -> Result<SparseCount> {
        self.check_segment(&[token], cache)?;
        cache.grow_for(1);
        let (tokens, position) = ([token], cache.len());
        self.embed(cpu, &[Segment { tokens: &tokens, cache: &mut *cache }], 1, workspace);
        let mut count = SparseCount::default();
        for index in 0..self.layers.len() {
            let kept = director.kept(index);
            count.heads += kept.heads.len() as u64;
            count.neurons += kept.neurons.len() as u64;
            self.sparse_attention(cpu, packed, options, index, kept.heads, cache, workspace, &mut count);
            let thresholds = director.gate_thresholds(index);
            self.sparse_ffn(cpu, packed, options, index, kept.neurons, thresholds, workspace, &mut count);
            let (d, width) = (self.config.hidden, self.config.heads * self.config.head_dim);
            let left = director.left_layer(cpu, index, &workspace.contexts[..width], &workspace.residual[..d]);
            if let Err(error) = left {
                cache.truncate(position);
                return Err(error);
            }
        }
        self.finish(cpu, 1, workspace);
        cache.advance(1);
        Ok(count)
    }

    /// Makes all keys and values that are missing, so that a dense pass may follow. Returns the bytes of weights read.
    pub fn fill_cache(&self, cpu: &Cpu, packed: &PackedModel, cache: &mut KvCache) -> u64 {
        let (len, capacity) = (cache.len(), cache.capacity());
        let mut bytes = 0;
        for index in 0..self.layers.len() {
            bytes +=
                self.fill_layer(cpu, packed, index, 0..self.config.kv_heads, len, capacity, cache.layer_mut(index));
            cache.layer_mut(index).pending_from = len;
        }
        bytes
    }

    #[allow(clippy::too_many_arguments)]
    fn sparse_attention(
        &self,
        cpu: &Cpu,
        packed: &PackedModel,
        options: SparseOptions,
        index: usize,
        list: &[u32],
        cache: &mut KvCache,
        ws: &mut Workspace,
        count: &mut SparseCount,
    ) {
        let c = &self.config;
        let (d, width, group) = (c.hidden, c.head_dim, c.heads / c.kv_heads);
        let (layer, records) = (&self.layers[index], &packed.layers[index]);
        let residual = &mut ws.residual[..d];
        let input = self.block_input(cpu, &layer.attention_norm, residual, sized(&mut ws.normed, d));
        let (position, capacity) = (cache.len(), cache.capacity());
        let kv = cache.layer_mut(index);
        let waiting = position - kv.pending_from;
        kv.pending.resize(kv.pending.len().max((waiting + 1) * d));
        kv.pending[waiting * d..][..d].copy_from_slice(input);
        let end = position + 1;
        // The list ascends, and a head that is filled already costs nothing.
        let needed = list.iter().map(|&head| head as usize / group);
        count.blocks += self.fill_layer(cpu, packed, index, needed, end, capacity, kv);
        if waiting + 1 >= options.kv_flush.max(1) {
            count.blocks += self.fill_layer(cpu, packed, index, 0..c.kv_heads, end, capacity, kv);
        }
        if kv.filled.iter().all(|&filled| filled == end) {
            kv.pending_from = end;
        }

        let Attention { q, out, window, .. } = &layer.attention;
        let queries = sized(&mut ws.queries, list.len() * width);
        heads_project(cpu, &records.heads, width, list, q.bias.as_deref(), input, queries);
        if let Some(table) = &self.rope {
            rope(cpu, queries, list.len(), width, table, position);
        }
        let shape = self.attention_shape(*window);
        // New keys went straight into the cache, so their buffer is free for the contexts of the kept heads.
        let kept = sized(&mut ws.keys, list.len() * width);
        attention_gather(cpu, &shape, list, queries, &kv.keys, &kv.values, capacity, position, kept);
        let block = sized(&mut ws.block, d);
        heads_output(cpu, &records.heads, width, list, kept, out.bias.as_deref(), block);
        count.blocks += 2 * heads_bytes(&records.heads, list.len());
        count.cache += attention_gather_bytes(&shape, list, position);
        let contexts = sized(&mut ws.contexts, c.heads * width);
        contexts.fill(0.0);
        for (&head, context) in list.iter().zip(kept.chunks_exact(width)) {
            contexts[head as usize * width..][..width].copy_from_slice(context);
        }
        self.add_block(cpu, &layer.attention_norm, block, residual);
    }

    /// Makes keys and values of some heads up to position `end`; returns the bytes of weights read.
    #[allow(clippy::too_many_arguments)]
    fn fill_layer(
        &self,
        cpu: &Cpu,
        packed: &PackedModel,
        index: usize,
        heads: impl IntoIterator<Item = usize>,
        end: usize,
        capacity: usize,
        kv: &mut LayerCache,
    ) -> u64 {
        let (d, width) = (self.config.hidden, self.config.head_dim);
        let Attention { k, v, .. } = &self.layers[index].attention;
        let records = &packed.layers[index].kv_heads;
        let (key_bias, value_bias) = (k.bias.as_deref(), v.bias.as_deref());
        let mut bytes = 0;
        for head in heads {
            let start = kv.filled[head];
            if start >= end {
                continue;
            }
            let inputs = &kv.pending[(start - kv.pending_from) * d..(end - kv.pending_from) * d];
            let rows = (head * capacity + start) * width..(head * capacity + end) * width;
            let (keys, values) = (&mut kv.keys[rows.clone()], &mut kv.values[rows]);
            kv_project(cpu, records, width, head, key_bias, value_bias, inputs, keys, values);
            if let Some(table) = &self.rope {
                rope(cpu, keys, 1, width, table, start);
            }
            kv.filled[head] = end;
            bytes += kv_project_bytes(records);
        }
        bytes
    }

    #[allow(clippy::too_many_arguments)]
    fn sparse_ffn(
        &self,
        cpu: &Cpu,
        packed: &PackedModel,
        options: SparseOptions,
        index: usize,
        list: &[u32],
        gate_thresholds: Option<&[f32]>,
        ws: &mut Workspace,
        count: &mut SparseCount,
    ) {
        let d = self.config.hidden;
        let layer = &self.layers[index];
        let residual = &mut ws.residual[..d];
        let input = self.block_input(cpu, &layer.ffn_norm, residual, sized(&mut ws.normed, d));
        let (first, up, out) = match &layer.ffn {
            Ffn::Plain { fc1, fc2 } => (&fc1.bias, &None, &fc2.bias),
            Ffn::Gated { gate, up, down } => (&gate.bias, &up.bias, &down.bias),
        };
        let gather = FfnGather {
            records: &packed.layers[index].neurons,
            bias: first.as_deref(),
            up_bias: up.as_deref(),
            out_bias: out.as_deref(),
            activation: self.config.activation,
            gate_thresholds,
            skip: options.relu_skip,
        };
        let block = sized(&mut ws.block, d);
        let read = ffn_gather(cpu, &gather, list, input, block);
        count.neurons_active += read.second as u64;
        count.blocks += gather.bytes(d, read);
        self.add_block(cpu, &layer.ffn_norm, block, residual);
    }
}
