//! One token over the units that it keeps.
//!
//! The same path as [`Model::forward`], with gather kernels over records in place of whole matrices. Two things differ:
//! units are chosen on the way, by a [`Director`] that is shown the residual stream; and keys and values of heads that are not
//! kept are not made now but when a later token keeps the head (*lazy fill*), from the attention inputs of the positions in
//! between. Missing rows of a head are made together, so its weights are read about as often as the head is kept; after
//! `kv_flush` positions all heads are filled. What attention reads is bit for bit what would have been there at once.
//!
//! Several sequences may take a token together, each over units of its own. Weights that more than one of them needs are then
//! read once; what each computes is bit for bit what it computes alone.

use std::ops::Range;

use super::cache::LayerCache;
use super::workspace::{Workspace, sized};
use super::{Attention, Ffn, KvCache, Model, PackedModel};
use crate::kernels::{
    Cpu, FfnGather, GatherCount, MOST_SEQUENCES, attention_gather, attention_gather_bytes, ffn_gather_batch,
    heads_bytes, heads_output_batch, heads_project_batch, kv_project, kv_project_bytes, rope,
};
use crate::{Error, Result};

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

/// One sequence's part of a sparse pass.
pub struct SparseRow<'a> {
    /// The token to run.
    pub token: u32,
    /// Keys and values of the positions before it.
    pub cache: &'a mut KvCache,
    /// Chooses its units.
    pub director: &'a mut dyn Director,
    /// How it runs.
    pub options: SparseOptions,
    /// Becomes what it would have read alone.
    pub count: SparseCount,
}

/// What a sparse pass read: one token, or those of a batch, where units are counted once however many tokens keep them.
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
    /// Most sequences that [`Model::decode_sparse`] takes at once.
    pub const MOST_SEQUENCES: usize = MOST_SEQUENCES;

    /// Runs one token of each row's sequence over the units that its director keeps, and extends the caches. Afterwards row `i` of
    /// `workspace` is ready for [`Model::logits`]. Every sequence gets the bits that it gets alone; returns what was read, with
    /// weights that several needed counted once.
    ///
    /// # Errors
    /// As [`Model::forward`], [`Error::BatchSize`] for too many rows, and those of the directors; the caches then hold what
    /// they held before.
    pub fn decode_sparse(
        &self,
        cpu: &Cpu,
        packed: &PackedModel,
        rows: &mut [SparseRow<'_>],
        workspace: &mut Workspace,
    ) -> Result<SparseCount> {
        let n = rows.len();
        if n == 0 || n > MOST_SEQUENCES {
            return Err(Error::BatchSize { found: n, most: MOST_SEQUENCES });
        }
        for row in rows.iter() {
            self.check_segment(&[row.token], row.cache)?;
        }
        for row in rows.iter_mut() {
            row.cache.grow_for(1);
            row.count = SparseCount::default();
        }
        self.embed(cpu, rows.iter().map(|row| (row.token, row.cache.len())), n, workspace);
        let (d, width) = (self.config.hidden, self.config.heads * self.config.head_dim);
        let mut all = SparseCount::default();
        for index in 0..self.layers.len() {
            self.sparse_attention(cpu, packed, index, rows, workspace, &mut all);
            self.sparse_ffn(cpu, packed, index, rows, workspace, &mut all);
            let left = rows.iter_mut().enumerate().try_for_each(|(i, row)| {
                let contexts = &workspace.contexts[i * width..(i + 1) * width];
                row.director.left_layer(cpu, index, contexts, &workspace.residual[i * d..(i + 1) * d])
            });
            if let Err(error) = left {
                rows.iter_mut().for_each(|row| row.cache.truncate(row.cache.len()));
                return Err(error);
            }
        }
        self.finish(cpu, n, workspace);
        rows.iter_mut().for_each(|row| row.cache.advance(1));
        Ok(all)
    }

    /// Makes all keys and values that are missing, so that a dense pass may follow. Returns the bytes of weights read.
    pub fn fill_cache(&self, cpu: &Cpu, packed: &PackedModel, cache: &mut KvCache) -> u64 {
        let (len, capacity) = (cache.len(), cache.capacity());
        let mut bytes = 0;
        for index in 0..self.layers.len() {
            let kv = cache.layer_mut(index);
            for head in 0..self.config.kv_heads {
                let missing = len - kv.filled[head];
                if missing > 0 {
                    self.fill_head(cpu, packed, index, head, len, capacity, kv);
                    bytes += kv_project_bytes(&packed.layers[index].kv_heads, missing);
                }
            }
            kv.pending_from = len;
        }
        bytes
    }

    fn sparse_attention(
        &self,
        cpu: &Cpu,
        packed: &PackedModel,
        index: usize,
        rows: &mut [SparseRow<'_>],
        ws: &mut Workspace,
        all: &mut SparseCount,
    ) {
        let c = &self.config;
        let (n, d, width) = (rows.len(), c.hidden, c.head_dim);
        let (layer, records) = (&self.layers[index], &packed.layers[index]);
        let residual = &mut ws.residual[..n * d];
        let input = self.block_input(cpu, &layer.attention_norm, residual, sized(&mut ws.normed, n * d));
        self.fill_for(cpu, packed, index, rows, input, all);

        let lists = per_row(rows, |row| row.director.kept(index).heads);
        let lists = &lists[..n];
        let listed: usize = lists.iter().map(|list| list.len()).sum();
        let Attention { q, out, window, .. } = &layer.attention;
        let queries = sized(&mut ws.queries, listed * width);
        heads_project_batch(cpu, &records.heads, width, lists, q.bias.as_deref(), input, queries);
        let shape = self.attention_shape(*window);
        // New keys went straight into the caches, so their buffer is free for the contexts of the kept heads.
        let kept = sized(&mut ws.keys, listed * width);
        let contexts = sized(&mut ws.contexts, n * c.heads * width);
        contexts.fill(0.0);
        let mut read = [0; MOST_SEQUENCES];
        let mut at = 0;
        for (i, ((row, list), contexts)) in
            rows.iter().zip(lists).zip(contexts.chunks_exact_mut(c.heads * width)).enumerate()
        {
            let own = at * width..(at + list.len()) * width;
            at += list.len();
            let (position, capacity, kv) = (row.cache.len(), row.cache.capacity(), row.cache.layer(index));
            let (queries, kept) = (&mut queries[own.clone()], &mut kept[own]);
            if let Some(table) = &self.rope {
                rope(cpu, queries, list.len(), width, table, position);
            }
            attention_gather(cpu, &shape, list, queries, &kv.keys, &kv.values, capacity, position, kept);
            read[i] = attention_gather_bytes(&shape, list, position);
            for (&head, context) in list.iter().zip(kept.chunks_exact(width)) {
                contexts[head as usize * width..][..width].copy_from_slice(context);
            }
        }
        let block = sized(&mut ws.block, n * d);
        heads_output_batch(cpu, &records.heads, width, lists, kept, out.bias.as_deref(), block);
        let distinct = distinct(lists);
        all.heads += distinct as u64;
        all.blocks += 2 * heads_bytes(&records.heads, distinct);
        all.cache += read.iter().sum::<u64>();
        let lengths = per_row(rows, |row| row.director.kept(index).heads.len());
        for ((row, heads), read) in rows.iter_mut().zip(lengths).zip(read) {
            row.count.heads += heads as u64;
            row.count.blocks += 2 * heads_bytes(&records.heads, heads);
            row.count.cache += read;
        }
        self.add_block(cpu, &layer.attention_norm, block, residual);
    }

    /// Keeps the attention inputs (`[rows, d]`) of the present tokens and makes the keys and values that they need.
    fn fill_for(
        &self,
        cpu: &Cpu,
        packed: &PackedModel,
        index: usize,
        rows: &mut [SparseRow<'_>],
        input: &[f32],
        all: &mut SparseCount,
    ) {
        let c = &self.config;
        let (d, group) = (c.hidden, c.heads / c.kv_heads);
        for (row, input) in rows.iter_mut().zip(input.chunks_exact(d)) {
            let position = row.cache.len();
            let kv = row.cache.layer_mut(index);
            let waiting = position - kv.pending_from;
            kv.pending.resize(kv.pending.len().max((waiting + 1) * d));
            kv.pending[waiting * d..][..d].copy_from_slice(input);
        }
        let records = &packed.layers[index].kv_heads;
        for head in 0..c.kv_heads {
            // Positions that each sequence needs and does not have.
            let mut missing = [0; MOST_SEQUENCES];
            for (missing, row) in missing.iter_mut().zip(rows.iter_mut()) {
                let end = row.cache.len() + 1;
                let kv = row.cache.layer_mut(index);
                let flush = end - kv.pending_from >= row.options.kv_flush.max(1);
                // The list ascends, so the heads of one key/value head stand together.
                let kept = row.director.kept(index).heads;
                let first = kept.partition_point(|&kept| (kept as usize) < head * group);
                let needed = flush || kept.get(first).is_some_and(|&kept| (kept as usize) < (head + 1) * group);
                *missing = if needed { end - kv.filled[head] } else { 0 };
                if *missing > 0 {
                    row.count.blocks += kv_project_bytes(records, *missing);
                }
            }
            let count = missing.iter().filter(|&&missing| missing > 0).count();
            let lacking = rows.iter_mut().zip(missing).filter_map(|(row, missing)| (missing > 0).then_some(row));
            if count > 1 {
                self.fill_together(cpu, packed, index, head, lacking);
            } else {
                for row in lacking {
                    let (end, capacity) = (row.cache.len() + 1, row.cache.capacity());
                    self.fill_head(cpu, packed, index, head, end, capacity, row.cache.layer_mut(index));
                }
            }
            all.blocks += kv_project_bytes(records, missing.iter().sum());
        }
        for row in rows {
            let end = row.cache.len() + 1;
            let kv = row.cache.layer_mut(index);
            if kv.filled.iter().all(|&filled| filled == end) {
                kv.pending_from = end;
            }
        }
    }

    /// Makes keys and values of one head that a cache lacks, up to position `end`.
    #[allow(clippy::too_many_arguments)]
    fn fill_head(
        &self,
        cpu: &Cpu,
        packed: &PackedModel,
        index: usize,
        head: usize,
        end: usize,
        capacity: usize,
        kv: &mut LayerCache,
    ) {
        let (d, width) = (self.config.hidden, self.config.head_dim);
        let Attention { k, v, .. } = &self.layers[index].attention;
        let records = &packed.layers[index].kv_heads;
        let start = kv.filled[head];
        let inputs = &kv.pending[(start - kv.pending_from) * d..(end - kv.pending_from) * d];
        let rows = (head * capacity + start) * width..(head * capacity + end) * width;
        let (keys, values) = (&mut kv.keys[rows.clone()], &mut kv.values[rows]);
        kv_project(cpu, records, width, head, k.bias.as_deref(), v.bias.as_deref(), inputs, keys, values);
        if let Some(table) = &self.rope {
            rope(cpu, keys, 1, width, table, start);
        }
        kv.filled[head] = end;
    }

    /// [`Model::fill_head`] for several sequences: one reading of the weights for all their missing rows.
    fn fill_together<'r, 'c: 'r>(
        &self,
        cpu: &Cpu,
        packed: &PackedModel,
        index: usize,
        head: usize,
        rows: impl Iterator<Item = &'r mut SparseRow<'c>>,
    ) {
        let (d, width) = (self.config.hidden, self.config.head_dim);
        let Attention { k, v, .. } = &self.layers[index].attention;
        let records = &packed.layers[index].kv_heads;
        let mut caches: [Option<(&mut LayerCache, Range<usize>, usize)>; MOST_SEQUENCES] = [const { None }; _];
        let mut missing = 0;
        for (slot, row) in caches.iter_mut().zip(rows) {
            let (end, capacity) = (row.cache.len() + 1, row.cache.capacity());
            let kv = row.cache.layer_mut(index);
            let positions = kv.filled[head]..end;
            missing += positions.len();
            *slot = Some((kv, positions, capacity));
        }
        let mut scratch = cpu.scratch(missing * (d + 2 * width));
        let (inputs, made) = scratch.split_at_mut(missing * d);
        let (keys, values) = made.split_at_mut(missing * width);
        let mut at = 0;
        for (kv, positions, _) in caches.iter().flatten() {
            let own = &kv.pending[(positions.start - kv.pending_from) * d..(positions.end - kv.pending_from) * d];
            inputs[at * d..][..own.len()].copy_from_slice(own);
            at += positions.len();
        }
        kv_project(cpu, records, width, head, k.bias.as_deref(), v.bias.as_deref(), inputs, keys, values);
        let mut at = 0;
        for (kv, positions, capacity) in caches.iter_mut().flatten() {
            let own = at * width..(at + positions.len()) * width;
            at += positions.len();
            if let Some(table) = &self.rope {
                rope(cpu, &mut keys[own.clone()], 1, width, table, positions.start);
            }
            let place = (head * *capacity + positions.start) * width..(head * *capacity + positions.end) * width;
            kv.keys[place.clone()].copy_from_slice(&keys[own.clone()]);
            kv.values[place].copy_from_slice(&values[own]);
            kv.filled[head] = positions.end;
        }
    }

    fn sparse_ffn(
        &self,
        cpu: &Cpu,
        packed: &PackedModel,
        index: usize,
        rows: &mut [SparseRow<'_>],
        ws: &mut Workspace,
        all: &mut SparseCount,
    ) {
        let (n, d) = (rows.len(), self.config.hidden);
        let layer = &self.layers[index];
        let residual = &mut ws.residual[..n * d];
        let input = self.block_input(cpu, &layer.ffn_norm, residual, sized(&mut ws.normed, n * d));
        let (first, up, out) = match &layer.ffn {
            Ffn::Plain { fc1, fc2 } => (&fc1.bias, &None, &fc2.bias),
            Ffn::Gated { gate, up, down } => (&gate.bias, &up.bias, &down.bias),
        };
        let weights = FfnGather {
            records: &packed.layers[index].neurons,
            bias: first.as_deref(),
            up_bias: up.as_deref(),
            out_bias: out.as_deref(),
            activation: self.config.activation,
            gate_thresholds: None,
            skip: false,
        };
        let mut gathers = [weights; MOST_SEQUENCES];
        for (gather, row) in gathers.iter_mut().zip(rows.iter()) {
            gather.gate_thresholds = row.director.gate_thresholds(index);
            gather.skip = row.options.relu_skip;
        }
        let lists = per_row(rows, |row| row.director.kept(index).neurons);
        let block = sized(&mut ws.block, n * d);
        let mut counts = [GatherCount::default(); MOST_SEQUENCES];
        let read = ffn_gather_batch(cpu, &gathers[..n], &lists[..n], input, block, &mut counts[..n]);
        let mut bytes = [0; MOST_SEQUENCES];
        all.blocks += weights.bytes(d, read);
        for (bytes, (gather, &count)) in bytes.iter_mut().zip(gathers[..n].iter().zip(&counts)) {
            *bytes = gather.bytes(d, count);
            // Every sequence has thresholds of its own.
            all.blocks += gather.threshold_bytes(count);
        }
        all.neurons += read.first as u64;
        all.neurons_active += read.second as u64;
        for ((row, count), bytes) in rows.iter_mut().zip(counts).zip(bytes) {
            row.count.neurons += count.first as u64;
            row.count.neurons_active += count.second as u64;
            row.count.blocks += bytes;
        }
        self.add_block(cpu, &layer.ffn_norm, block, residual);
    }
}

/// Something of each row, as an array, which takes no memory.
fn per_row<'r, T: Copy + Default>(
    rows: &'r [SparseRow<'_>],
    of: impl Fn(&'r SparseRow<'_>) -> T,
) -> [T; MOST_SEQUENCES] {
    let mut all = [T::default(); MOST_SEQUENCES];
    for (slot, row) in all.iter_mut().zip(rows) {
        *slot = of(row);
    }
    all
}

/// How many different units ascending lists name.
fn distinct(lists: &[&[u32]]) -> usize {
    let mut next = [0; MOST_SEQUENCES];
    let mut count = 0;
    while let Some(&unit) = lists.iter().zip(&next).filter_map(|(list, &next): (_, &usize)| list.get(next)).min() {
        count += 1;
        for (list, next) in lists.iter().zip(&mut next) {
            *next += usize::from(list.get(*next) == Some(&unit));
        }
    }
    count
}
