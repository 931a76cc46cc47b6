//! The forward pass, for any number of tokens of any number of sequences.

use std::ops::Range;

use shadowllm_weights::{NormPlacement, Positions};

use super::workspace::{Workspace, sized};
use super::{Attention, Ffn, KvCache, Model, Norm, Probe, Rows};
use crate::Error;
use crate::kernels::{Cpu, activate, add_assign, attention, embed_row, gated, linear, rope};
use crate::tensor::Buffer;

/// Consecutive tokens of one sequence and the cache that they extend.
#[derive(Debug)]
pub struct Segment<'a> {
    /// New tokens; the first stands at position `cache.len()`.
    pub tokens: &'a [u32],
    /// Keys and values of the positions before them.
    pub cache: &'a mut KvCache,
}

impl Model {
    /// Runs all tokens of all segments through the model and extends their caches.
    ///
    /// Afterwards `workspace` holds one row per token, in order, ready for [`Model::logits`].
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`] for an id beyond the vocabulary, [`Error::ContextFull`] if a cache has no room for its
    /// tokens, [`Error::NoTokens`] if a segment is empty. Nothing has changed then.
    pub fn forward(
        &self,
        cpu: &Cpu,
        segments: &mut [Segment<'_>],
        workspace: &mut Workspace,
        probe: &mut dyn Probe,
    ) -> Result<(), Error> {
        for segment in segments.iter() {
            self.check_segment(segment.tokens, segment.cache)?;
            if !segment.cache.is_complete() {
                return Err(Error::CacheIncomplete);
            }
        }
        for segment in segments.iter_mut() {
            segment.cache.grow_for(segment.tokens.len());
        }
        let count = segments.iter().map(|s| s.tokens.len()).sum();
        let tokens = segments.iter().flat_map(|s| s.tokens.iter().copied().zip(s.cache.len()..));
        self.embed(cpu, tokens, count, workspace);
        let d = self.config.hidden;
        for index in 0..self.layers.len() {
            let rows = Rows { layer: index, count };
            probe.residual(rows, &mut workspace.residual[..count * d]);
            self.attention_block(cpu, rows, segments, workspace, probe);
            self.ffn_block(cpu, rows, workspace, probe);
        }
        self.finish(cpu, count, workspace);
        probe.residual(Rows { layer: self.layers.len(), count }, &mut workspace.residual[..count * d]);
        for segment in segments.iter_mut() {
            segment.cache.advance(segment.tokens.len());
        }
        Ok(())
    }

    /// Checks that a cache has room for tokens that the model has.
    pub(super) fn check_segment(&self, tokens: &[u32], cache: &KvCache) -> Result<(), Error> {
        self.check_tokens(tokens)?;
        let (held, limit) = (cache.len(), cache.limit());
        if tokens.len() > limit - held {
            return Err(Error::ContextFull { context: limit, held, more: tokens.len() });
        }
        Ok(())
    }

    /// The norm after the last layer.
    pub(super) fn finish(&self, cpu: &Cpu, count: usize, workspace: &mut Workspace) {
        let d = self.config.hidden;
        if let Some(norm) = &self.final_norm {
            norm.apply(cpu, &workspace.residual[..count * d], d, sized(&mut workspace.normed, count * d));
            std::mem::swap(&mut workspace.residual, &mut workspace.normed);
        }
    }

    /// Checks that there are tokens and that each is in the vocabulary.
    ///
    /// # Errors
    /// [`Error::NoTokens`], [`Error::TokenOutOfRange`].
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<(), Error> {
        if tokens.is_empty() {
            return Err(Error::NoTokens);
        }
        match tokens.iter().position(|&id| id as usize >= self.config.vocab) {
            Some(at) => Err(Error::TokenOutOfRange { id: tokens[at], at, vocab: self.config.vocab }),
            None => Ok(()),
        }
    }

    /// Logits (`[rows, V]`) of some rows of the last [`Model::forward`] on this workspace.
    ///
    /// # Panics
    /// If `rows` were not part of that pass or `out` has another length.
    pub fn logits(&self, cpu: &Cpu, workspace: &mut Workspace, rows: Range<usize>, out: &mut [f32]) {
        let d = self.config.hidden;
        self.head(cpu, &workspace.residual[rows.start * d..rows.end * d], &mut workspace.narrow, out);
    }

    /// As [`Model::logits`], for rows that need not be neighbours: the LM head is read once for all of them.
    ///
    /// # Panics
    /// As there.
    pub fn logits_of(&self, cpu: &Cpu, workspace: &mut Workspace, rows: &[usize], out: &mut [f32]) {
        let d = self.config.hidden;
        // Free after the pass.
        let hidden = sized(&mut workspace.block, rows.len() * d);
        for (into, &row) in hidden.chunks_exact_mut(d).zip(rows) {
            into.copy_from_slice(&workspace.residual[row * d..][..d]);
        }
        self.head(cpu, hidden, &mut workspace.narrow, out);
    }

    /// LM head: logits (`[T, V]`) of `hidden` (`[T, d]`).
    fn head(&self, cpu: &Cpu, hidden: &[f32], narrow: &mut Buffer, out: &mut [f32]) {
        match &self.project_out {
            Some(project) => {
                let rows = hidden.len() / self.config.hidden;
                let narrow = sized(narrow, rows * self.config.embed_dim);
                project.apply(cpu, hidden, narrow);
                linear(cpu, &self.head, None, narrow, out);
            }
            None => linear(cpu, &self.head, None, hidden, out),
        }
    }

    /// Embedding rows plus learned positions of `count` tokens, each with its position, into the residual stream.
    pub(super) fn embed(
        &self,
        cpu: &Cpu,
        tokens: impl Iterator<Item = (u32, usize)> + Clone,
        count: usize,
        ws: &mut Workspace,
    ) {
        let (d, e) = (self.config.hidden, self.config.embed_dim);
        match &self.project_in {
            Some(project) => {
                let narrow = sized(&mut ws.narrow, count * e);
                for (row, (id, _)) in narrow.chunks_exact_mut(e).zip(tokens.clone()) {
                    embed_row(cpu, &self.embedding, id as usize, row);
                }
                project.apply(cpu, narrow, sized(&mut ws.residual, count * d));
            }
            None => {
                for (row, (id, _)) in sized(&mut ws.residual, count * d).chunks_exact_mut(d).zip(tokens.clone()) {
                    embed_row(cpu, &self.embedding, id as usize, row);
                }
            }
        }
        if let (Some(table), Positions::Learned { offset }) = (&self.positions, self.config.positions) {
            let learned = sized(&mut ws.normed, d);
            for (row, (_, position)) in ws.residual[..count * d].chunks_exact_mut(d).zip(tokens) {
                embed_row(cpu, table, position + offset, learned);
                add_assign(cpu, row, learned);
            }
        }
    }

    /// What a block reads: rows of the residual stream, normalised into `normed` where the norm stands in front.
    pub(crate) fn block_input<'a>(
        &self,
        cpu: &Cpu,
        norm: &Norm,
        residual: &'a [f32],
        normed: &'a mut [f32],
    ) -> &'a [f32] {
        match self.config.norm_placement {
            NormPlacement::Pre => {
                norm.apply(cpu, residual, self.config.hidden, normed);
                normed
            }
            NormPlacement::Post => residual,
        }
    }

    /// Adds a block's output to the residual stream and normalises the sum where the norm stands behind. `block` is used up.
    pub(super) fn add_block(&self, cpu: &Cpu, norm: &Norm, block: &mut [f32], residual: &mut [f32]) {
        add_assign(cpu, residual, block);
        if self.config.norm_placement == NormPlacement::Post {
            norm.apply(cpu, residual, self.config.hidden, block);
            residual.copy_from_slice(block);
        }
    }

    /// Residual block around the attention.
    fn attention_block(
        &self,
        cpu: &Cpu,
        rows: Rows,
        segments: &mut [Segment<'_>],
        ws: &mut Workspace,
        probe: &mut dyn Probe,
    ) {
        let d = self.config.hidden;
        let layer = &self.layers[rows.layer];
        let residual = &mut ws.residual[..rows.count * d];
        let input = self.block_input(cpu, &layer.attention_norm, residual, sized(&mut ws.normed, rows.count * d));
        let width = self.config.heads * self.config.head_dim;
        let kv_width = self.config.kv_heads * self.config.head_dim;
        let Attention { q, k, v, out, window } = &layer.attention;
        let queries = sized(&mut ws.queries, rows.count * width);
        let keys = sized(&mut ws.keys, rows.count * kv_width);
        let values = sized(&mut ws.values, rows.count * kv_width);
        let keys_and_values = || together(cpu, rows, || k.apply(cpu, input, keys), || v.apply(cpu, input, values));
        together(cpu, rows, || q.apply(cpu, input, queries), keys_and_values);
        let contexts = sized(&mut ws.contexts, rows.count * width);
        let shape = self.attention_shape(*window);
        let mut row = 0;
        for segment in segments {
            let here = row..row + segment.tokens.len();
            row = here.end;
            let start = segment.cache.len();
            let q = &mut queries[here.start * width..here.end * width];
            let k = &mut keys[here.start * kv_width..here.end * kv_width];
            if let Some(table) = &self.rope {
                rope(cpu, q, shape.heads, shape.head_dim, table, start);
                rope(cpu, k, shape.kv_heads, shape.head_dim, table, start);
            }
            segment.cache.store(rows.layer, k, &values[here.start * kv_width..here.end * kv_width]);
            let kv = segment.cache.layer(rows.layer);
            let context = &mut contexts[here.start * width..here.end * width];
            attention(cpu, &shape, q, &kv.keys, &kv.values, segment.cache.capacity(), start, context);
        }
        probe.contexts(rows, contexts);
        let block = sized(&mut ws.block, rows.count * d);
        out.apply(cpu, contexts, block);
        self.add_block(cpu, &layer.attention_norm, block, residual);
    }

    /// Residual block around the FFN.
    fn ffn_block(&self, cpu: &Cpu, rows: Rows, ws: &mut Workspace, probe: &mut dyn Probe) {
        let (d, f) = (self.config.hidden, self.config.ffn);
        let layer = &self.layers[rows.layer];
        let residual = &mut ws.residual[..rows.count * d];
        let input = self.block_input(cpu, &layer.ffn_norm, residual, sized(&mut ws.normed, rows.count * d));
        let inners = sized(&mut ws.inners, rows.count * f);
        let block = sized(&mut ws.block, rows.count * d);
        match &layer.ffn {
            Ffn::Plain { fc1, fc2 } => {
                fc1.apply(cpu, input, inners);
                activate(cpu, self.config.activation, inners);
                probe.inners(rows, inners);
                fc2.apply(cpu, inners, block);
            }
            Ffn::Gated { gate, up, down } => {
                let ups = sized(&mut ws.up, rows.count * f);
                together(cpu, rows, || gate.apply(cpu, input, inners), || up.apply(cpu, input, ups));
                probe.gates(rows, inners, ups);
                gated(cpu, self.config.activation, inners, ups);
                probe.inners(rows, inners);
                down.apply(cpu, inners, block);
            }
        }
        self.add_block(cpu, &layer.ffn_norm, block, residual);
    }
}

/// Rows up to which independent products run at the same time. Few rows are bound by memory and short, and waiting for the
/// last thread after each product is what costs; products of many rows fill the caches, and are better alone.
const TOGETHER: usize = 8;

fn together(cpu: &Cpu, rows: Rows, a: impl FnOnce() + Send, b: impl FnOnce() + Send) {
    if rows.count <= TOGETHER {
        cpu.join(a, b);
    } else {
        a();
        b();
    }
}
