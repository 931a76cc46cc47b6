//! The launches of one token.

use super::builder::Builder;
use super::{Arg, NormSite, Role, Tensor};
use crate::predictor::{Kind, PredictorInput};
use crate::{Family, attention, embed, ffn, head, output, qkv, reduce};

impl Builder {
    pub(super) fn token(&mut self, windows: &[u32]) {
        self.embed();
        let stations = self.program.predictor.as_ref().map_or(Vec::new(), |p| p.stations.clone());
        for layer in 0..self.spec().sizes.layers {
            self.attention(layer, windows.get(layer).copied().unwrap_or(0));
            self.ffn(layer);
            if let Some(station) = stations.iter().position(|&after| after == layer) {
                self.decide(station);
            }
        }
        self.end();
    }

    fn embed(&mut self) {
        let kernel = embed::kernel(self.spec());
        let (s, row) = (self.spec().sizes, self.spec().row_bytes() as usize);
        let mut args = vec![self.tensor(Tensor::Embedding, s.vocab * row)];
        if self.spec().family == Family::Opt {
            let rows = s.context + self.spec().position_offset;
            args.push(self.tensor(Tensor::Positions, rows * row));
        }
        args.extend([self.state(), self.residual()]);
        self.launch(None, kernel, args);
    }

    fn reads_contexts(&self) -> bool {
        self.program.predictor.as_ref().is_some_and(|p| p.input == PredictorInput::Contexts)
    }

    pub(super) fn contexts(&mut self) -> Arg {
        let bytes = 4 * self.spec().sizes.heads * self.spec().sizes.head_dim;
        self.all(Role::Contexts, bytes)
    }

    fn attention(&mut self, layer: usize, window: u32) {
        let spec = self.spec().clone();
        let s = &spec.sizes;
        let here = Some(layer);
        let [heads, kv_heads] = self.records(&spec, layer);
        let (list, counts, state) = (self.list(Kind::Heads, layer), self.counts(layer), self.state());
        let [keys, values] = self.cache(&spec, layer);
        let marks = 4 * (s.kv_heads + 1);
        let watermark = self.at(Role::Watermarks, s.layers * marks, layer * marks);
        let ring = 4 * spec.kv_flush * s.hidden;
        let pending = self.at(Role::Pending, s.layers * ring, layer * ring);
        let queries = self.all(Role::Scratch("queries"), 4 * s.heads * s.head_dim);

        let mut args = vec![heads, kv_heads];
        args.extend(self.norm(NormSite::Attention(layer)));
        args.extend(self.qkv_vectors(&spec, layer));
        let arrivals = self.arrivals(0);
        args.extend([list, counts, state, watermark, pending, keys, values, queries, arrivals]);
        self.launch(here, qkv::kernel(&spec), args);

        let pieces = s.heads * spec.splits();
        let piece_sums = self.all(Role::Scratch("attention sums"), 4 * pieces * s.head_dim);
        let piece_stats = self.all(Role::Scratch("attention maxima"), 8 * pieces);
        let contexts = self.contexts();
        let args = vec![
            keys,
            values,
            queries,
            list,
            counts,
            state,
            watermark,
            piece_sums,
            piece_stats,
            arrivals,
            contexts,
            Arg::U32(window),
        ];
        self.launch(here, attention::kernel(&spec, self.reads_contexts()), args);

        let mut args = vec![heads, contexts, list, counts];
        if spec.bias.out {
            args.push(self.tensor(Tensor::OutBias(layer), 4 * s.hidden));
        }
        args.push(self.residual());
        self.launch(here, output::kernel(&spec), args);
    }

    /// Counters by which a kernel knows its last block, from `first` on: those of the attention, then the LM head's. Every layer's first
    /// kernel sets them to zero.
    pub(super) fn arrivals(&mut self, first: usize) -> Arg {
        let bytes = 4 * (attention::arrivals(self.spec()) + 1);
        self.at(Role::Scratch("arrivals"), bytes, 4 * first)
    }

    /// Pieces of the FFN's sum.
    fn partial(&mut self) -> Arg {
        let bytes = 4 * self.spec().sizes.hidden * self.spec().ffn_pieces();
        self.all(Role::Scratch("pieces"), bytes)
    }

    fn ffn(&mut self, layer: usize) {
        let spec = self.spec().clone();
        let s = &spec.sizes;
        let kernel = ffn::kernel(&spec);
        let mut args = vec![self.neurons(&spec, layer)];
        args.extend(self.norm(NormSite::Ffn(layer)));
        args.extend(self.ffn_vectors(&spec, layer));
        args.extend([self.list(Kind::Neurons, layer), self.counts(layer), self.partial()]);
        if kernel.params.last().is_some_and(|param| param.name == "read_whole") {
            let pieces = 4 * spec.ffn_pieces();
            args.push(self.at(Role::ReadWhole, s.layers * pieces, layer * pieces));
        }
        // The FFN's lengths are the second of a layer's counts; the kernel knows.
        self.launch(Some(layer), kernel, args);
        let mut args = vec![self.partial()];
        if spec.bias.ffn {
            args.push(self.tensor(Tensor::SecondBias(layer), 4 * s.hidden));
        }
        args.push(self.residual());
        self.launch(Some(layer), reduce::kernel(&spec), args);
    }

    pub(super) fn end(&mut self) {
        let spec = self.spec().clone();
        let s = &spec.sizes;
        let blocks = 4 * head::blocks(&spec);
        let mut args = vec![self.tensor(Tensor::LmHead, s.vocab * spec.row_bytes() as usize)];
        args.extend(self.norm(NormSite::Final));
        let best = self.all(Role::Scratch("best logits"), blocks);
        let id = self.all(Role::Scratch("best tokens"), blocks);
        args.extend([
            self.all(Role::Logits, 4 * s.vocab),
            best,
            id,
            self.arrivals(attention::arrivals(&spec)),
            self.state(),
        ]);
        args.push(self.all(Role::Tokens, 4 * s.context));
        self.launch(None, head::kernel(&spec), args);
    }
}
