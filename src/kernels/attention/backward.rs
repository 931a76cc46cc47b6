//! Back through attention: from the gradient of contexts to those of queries, keys and values.
//!
//! With `P = e^(scale q k^T - log_sum)`, `dP = dout v^T`, `delta = <out, dout>` per row and head, and `dS = P (dP - delta)`:
//! `dq = scale dS k`, `dk = scale dS^T q`, `dv = P^T dout`. `P` and `dS` exist as blocks only.
//!
//! `dq` is a sum over positions and `dk`, `dv` are sums over rows, so there are two passes, each split by its own output: one over
//! panels of (row, query head) pairs, as in prefill, one over panels of positions. Both make `P` and `dP` of their blocks, 7
//! products instead of 5 in a single pass, and in return no task adds to what another task computes: the result does not
//! depend on the number of threads, and there are as many tasks as panels.

use std::ops::Range;

use super::panel::{BLOCK, VECTORS, pack, panel_width, product};
use super::{AttentionShape, Operands};
use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Simd, math, transpose};

/// One call of [`attention_recorded`](super::attention_recorded): what it was given and what it returned.
#[derive(Clone, Copy, Debug)]
pub struct AttentionPass<'a> {
    /// As there.
    pub shape: AttentionShape,
    /// `[T, H, d_h]`.
    pub q: &'a [f32],
    /// `[H_kv, capacity, d_h]`.
    pub k: &'a [f32],
    /// `[H_kv, capacity, d_h]`.
    pub v: &'a [f32],
    /// Positions that `k` and `v` have room for, at least `T`.
    pub capacity: usize,
    /// `[T, H, d_h]`.
    pub out: &'a [f32],
    /// `[T, H]`.
    pub log_sums: &'a [f32],
}

/// From the gradient `dout` `[T, H, d_h]` of an attention's output to those of its queries `dq` `[T, H, d_h]` and of its keys and
/// values, `dk` and `dv` `[T, H_kv, d_h]`.
///
/// # Panics
/// If the lengths do not fit the shape.
pub fn attention_backward(
    cpu: &Cpu,
    pass: &AttentionPass<'_>,
    dout: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let AttentionPass { shape, q, k, v, capacity, out, log_sums } = *pass;
    let Some(operands) = Operands::of(&shape, q, k, v, capacity, 0, out) else { return };
    let t = operands.t;
    assert!(dout.len() == q.len() && dq.len() == q.len(), "queries and their gradients are of the same length");
    assert_eq!(log_sums.len(), t * shape.heads, "one logarithm for each row and head");
    let cached = t * shape.kv_heads * shape.head_dim;
    assert!(dk.len() == cached && dv.len() == cached, "gradients of keys and values are {t} rows");

    let mut deltas = cpu.scratch(t * shape.heads);
    let shared = SharedOut::new(&mut deltas);
    cpu.split(t * shape.heads, 1, 8 * shape.head_dim, &|range| {
        let d = shape.head_dim;
        // SAFETY: the ranges do not overlap.
        let deltas = unsafe { shared.slice(range.clone()) };
        let elements = range.start * d..range.end * d;
        cpu.run(Deltas { out: &out[elements.clone()], dout: &dout[elements], deltas });
    });
    let back = Backward { operands, log_sums, dout, deltas: &deltas };
    back.queries(cpu, dq);
    back.keys_and_values(cpu, dk, dv);
}

/// `deltas[i] = <out[i], dout[i]>`
struct Deltas<'a> {
    /// `[rows, d_h]`
    out: &'a [f32],
    /// `[rows, d_h]`
    dout: &'a [f32],
    /// `[rows]`
    deltas: &'a mut [f32],
}

impl Kernel for Deltas<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.out.len() / self.deltas.len().max(1);
        for (i, delta) in self.deltas.iter_mut().enumerate() {
            let (out, dout) = (&self.out[i * d..(i + 1) * d], &self.dout[i * d..(i + 1) * d]);
            let mut sum = s.zero();
            for (out, dout) in out.chunks(S::LANES).zip(dout.chunks(S::LANES)) {
                sum = s.fma(s.load_slice(out), s.load_slice(dout), sum);
            }
            *delta = s.sum(sum);
        }
    }
}

/// What both passes read.
#[derive(Clone, Copy)]
struct Backward<'a> {
    operands: Operands<'a>,
    /// `[t, H]`
    log_sums: &'a [f32],
    /// `[t, H, d_h]`
    dout: &'a [f32],
    /// `[t, H]`
    deltas: &'a [f32],
}

impl Backward<'_> {
    /// Operations of `products` products of one panel with what it sees, as bytes that memory could have delivered in the time.
    fn cost(self, products: usize, width: usize) -> usize {
        let Operands { shape, t, .. } = self.operands;
        2 * products * width * (t / 2).min(shape.window.unwrap_or(usize::MAX)) * shape.head_dim / 8
    }

    fn queries(self, cpu: &Cpu, dq: &mut [f32]) {
        let Operands { shape, t, .. } = self.operands;
        let (d, width) = (shape.head_dim, panel_width(cpu.geometry()));
        let pairs = t * shape.group();
        let panels = pairs.div_ceil(width);
        let dq = SharedOut::new(dq);
        cpu.split(shape.kv_heads * panels, 1, self.cost(3, width), &|items| {
            let mut scratch = cpu.scratch((4 * d + 2 * BLOCK + 4) * width + 8 * d);
            let (queries, rest) = scratch.split_at_mut(d * width);
            let (douts, rest) = rest.split_at_mut(d * width);
            let (sums, rest) = rest.split_at_mut(d * width);
            let (rows, rest) = rest.split_at_mut(d * width + 8 * d);
            let (scores, rest) = rest.split_at_mut(BLOCK * width);
            let (products, state) = rest.split_at_mut(BLOCK * width);
            for item in items {
                let (kv_head, first) = (item / panels, item % panels * width);
                let pairs = first..pairs.min(first + width);
                let panel =
                    QueryPanel { back: self, kv_head, pairs, queries, douts, sums, rows, scores, products, state, dq };
                cpu.run(panel);
            }
        });
    }

    fn keys_and_values(self, cpu: &Cpu, dk: &mut [f32], dv: &mut [f32]) {
        let Operands { shape, t, .. } = self.operands;
        let (d, width) = (shape.head_dim, panel_width(cpu.geometry()));
        let panels = t.div_ceil(width);
        let (dk, dv) = (SharedOut::new(dk), SharedOut::new(dv));
        cpu.split(shape.kv_heads * panels, 1, self.cost(4 * shape.group(), width), &|items| {
            let mut scratch = cpu.scratch((5 * d + 2 * BLOCK + 1) * width + 8 * d);
            let (keys, rest) = scratch.split_at_mut(d * width);
            let (values, rest) = rest.split_at_mut(d * width);
            let (key_sums, rest) = rest.split_at_mut(d * width);
            let (value_sums, rest) = rest.split_at_mut(d * width);
            let (rows, rest) = rest.split_at_mut(d * width + 8 * d);
            let (scores, rest) = rest.split_at_mut(BLOCK * width);
            let (products, places) = rest.split_at_mut(BLOCK * width);
            for item in items {
                let (kv_head, first) = (item / panels, item % panels * width);
                let positions = first..t.min(first + width);
                let panel = KeyPanel {
                    back: self,
                    kv_head,
                    positions,
                    keys,
                    values,
                    key_sums,
                    value_sums,
                    rows,
                    scores,
                    products,
                    places,
                    dk,
                    dv,
                };
                cpu.run(panel);
            }
        });
    }
}

/// `P` in place of the scores and `dS` in place of the products `dP`, one vector: `inside` is what is seen.
#[inline(always)]
fn block_vector<S: Simd>(
    s: S,
    scores: &mut [f32],
    products: &mut [f32],
    log_sum: S::V,
    delta: S::V,
    inside: impl Fn(S::V) -> S::V,
) {
    let p = inside(math::exp(s, s.sub(s.load_slice(scores), log_sum)));
    let ds = s.mul(p, s.sub(s.load_slice(products), delta));
    s.store_slice(scores, p);
    s.store_slice(products, ds);
}

/// One panel of (row, query head) pairs against the positions that they see: their `dq`.
struct QueryPanel<'a> {
    back: Backward<'a>,
    kv_head: usize,
    /// Pair `p` is row `p / group`, query head `kv_head * group + p % group`.
    pairs: Range<usize>,
    /// `[d_h, width]`, scaled queries.
    queries: &'a mut [f32],
    /// `[d_h, width]`
    douts: &'a mut [f32],
    /// `[d_h, width]`
    sums: &'a mut [f32],
    /// `[width, d_h]` and 8 rows more, for transposing.
    rows: &'a mut [f32],
    /// `[BLOCK, width]`
    scores: &'a mut [f32],
    /// `[BLOCK, width]`
    products: &'a mut [f32],
    /// `[4, width]`: logarithm of the sum, delta, first and last visible position.
    state: &'a mut [f32],
    /// `[t, H, d_h]`
    dq: SharedOut<'a>,
}

impl Kernel for QueryPanel<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.pairs.len().div_ceil(S::LANES) {
            1 => self.panel::<S, 1>(s),
            2 => self.panel::<S, 2>(s),
            _ => self.panel::<S, VECTORS>(s),
        }
    }
}

impl QueryPanel<'_> {
    /// Row and query head of a pair.
    #[inline(always)]
    fn place(&self, pair: usize) -> (usize, usize) {
        let group = self.back.operands.shape.group();
        (pair / group, self.kv_head * group + pair % group)
    }

    #[inline(always)]
    fn panel<S: Simd, const C: usize>(&mut self, s: S) {
        let Operands { shape, .. } = self.back.operands;
        let d = shape.head_dim;
        let width = C * S::LANES;
        self.pack(s, width);
        self.sums[..d * width].fill(0.0);
        let (first_row, last_row) = (self.place(self.pairs.start).0, self.place(self.pairs.end - 1).0);
        let positions = shape.visible(first_row).start..last_row + 1;
        // Positions that every pair sees need no mask.
        let common = shape.visible(last_row).start..first_row + 1;
        let mut j = positions.start;
        while j < positions.end {
            let block = j..positions.end.min(j + BLOCK);
            let masked = block.start < common.start || block.end > common.end;
            self.block::<S, C>(s, block.clone(), masked);
            j = block.end;
        }
        self.finish(s, width);
    }

    #[inline(always)]
    fn pack<S: Simd>(&mut self, s: S, width: usize) {
        let Backward { operands, log_sums, dout, deltas } = self.back;
        let shape = operands.shape;
        let d = shape.head_dim;
        // Lanes behind the last pair repeat it; their results are not written.
        let (pairs, kv_head, group) = (self.pairs.clone(), self.kv_head, shape.group());
        let place = |lane: usize| {
            let pair = (pairs.start + lane).min(pairs.end - 1);
            (pair / group, (pair / group) * shape.heads + kv_head * group + pair % group)
        };
        for lane in 0..width {
            let (row, at) = place(lane);
            let visible = shape.visible(row);
            let state = [log_sums[at], deltas[at], visible.start as f32, (visible.end - 1) as f32];
            for (i, value) in state.into_iter().enumerate() {
                self.state[i * width + lane] = value;
            }
        }
        pack(s, |lane| &operands.q[place(lane).1 * d..][..d], shape.scale, self.rows, self.queries, [d, width]);
        pack(s, |lane| &dout[place(lane).1 * d..][..d], 1.0, self.rows, self.douts, [d, width]);
    }

    /// Adds what the positions `block` contribute.
    #[inline(always)]
    fn block<S: Simd, const C: usize>(&mut self, s: S, block: Range<usize>, masked: bool) {
        let d = self.back.operands.shape.head_dim;
        let width = C * S::LANES;
        let n = block.len();
        let (k, v) = self.back.operands.cached(self.kv_head, block.clone());
        let (scores, products) = (&mut self.scores[..n * width], &mut self.products[..n * width]);
        scores.fill(0.0);
        products.fill(0.0);
        product::<S, C>(s, [n, d], k, [d, 1], &self.queries[..d * width], scores);
        product::<S, C>(s, [n, d], v, [d, 1], &self.douts[..d * width], products);
        let vectors = scores.chunks_exact_mut(S::LANES).zip(products.chunks_exact_mut(S::LANES));
        for (i, (scores, products)) in vectors.enumerate() {
            let state = |row: usize| s.load_slice(&self.state[row * width + i % C * S::LANES..][..S::LANES]);
            if masked {
                let position = s.splat((block.start + i / C) as f32);
                let (first, last) = (state(2), state(3));
                let inside = |p| s.select_le(first, position, s.select_le(position, last, p, s.zero()), s.zero());
                block_vector(s, scores, products, state(0), state(1), inside);
            } else {
                block_vector(s, scores, products, state(0), state(1), |p| p);
            }
        }
        product::<S, C>(s, [d, n], k, [1, d], products, &mut self.sums[..d * width]);
    }

    /// Scales the sums and writes the rows.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S, width: usize) {
        let shape = self.back.operands.shape;
        let d = shape.head_dim;
        write_rows(s, &mut self.sums[..d * width], shape.scale, self.rows, [d, width]);
        for (pair, row) in self.pairs.clone().zip(self.rows.chunks_exact(d)) {
            let (t, head) = self.place(pair);
            let at = (t * shape.heads + head) * d;
            // SAFETY: a pair belongs to one panel, and this task alone computes it.
            unsafe { self.dq.slice(at..at + d) }.copy_from_slice(row);
        }
    }
}

/// Transposes `sums * factor` `[d, width]` into `rows` `[width, d]`.
#[inline(always)]
fn write_rows<S: Simd>(s: S, sums: &mut [f32], factor: f32, rows: &mut [f32], [d, width]: [usize; 2]) {
    assert!(sums.len() >= d * width && rows.len() >= d * width);
    let factor = s.splat(factor);
    for sum in sums.chunks_exact_mut(S::LANES) {
        let scaled = s.mul(s.load_slice(sum), factor);
        s.store_slice(sum, scaled);
    }
    // SAFETY: the panel is `d` rows of `width`, `rows` at least `width` rows of `d`.
    unsafe { transpose(s, sums.as_ptr(), width, [d, width], rows.as_mut_ptr(), d) };
}

/// One panel of positions against the rows that see them: their `dk` and `dv`.
struct KeyPanel<'a> {
    back: Backward<'a>,
    kv_head: usize,
    positions: Range<usize>,
    /// `[d_h, width]`, scaled keys.
    keys: &'a mut [f32],
    /// `[d_h, width]`
    values: &'a mut [f32],
    /// `[d_h, width]`
    key_sums: &'a mut [f32],
    /// `[d_h, width]`
    value_sums: &'a mut [f32],
    /// `[width, d_h]` and 8 rows more, for transposing.
    rows: &'a mut [f32],
    /// `[BLOCK, width]`
    scores: &'a mut [f32],
    /// `[BLOCK, width]`
    products: &'a mut [f32],
    /// `[width]`: the positions as numbers.
    places: &'a mut [f32],
    /// `[t, H_kv, d_h]`
    dk: SharedOut<'a>,
    /// `[t, H_kv, d_h]`
    dv: SharedOut<'a>,
}

impl Kernel for KeyPanel<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.positions.len().div_ceil(S::LANES) {
            1 => self.panel::<S, 1>(s),
            2 => self.panel::<S, 2>(s),
            _ => self.panel::<S, VECTORS>(s),
        }
    }
}

impl KeyPanel<'_> {
    #[inline(always)]
    fn panel<S: Simd, const C: usize>(&mut self, s: S) {
        let Operands { shape, t, .. } = self.back.operands;
        let d = shape.head_dim;
        let width = C * S::LANES;
        let positions = self.positions.clone();
        let (k, v) = self.back.operands.cached(self.kv_head, positions.clone());
        // Lanes behind the last position repeat it; their results are not written.
        let lane = |lane: usize| lane.min(positions.len() - 1);
        pack(s, |i| &k[lane(i) * d..][..d], shape.scale, self.rows, self.keys, [d, width]);
        pack(s, |i| &v[lane(i) * d..][..d], 1.0, self.rows, self.values, [d, width]);
        for (i, place) in self.places[..width].iter_mut().enumerate() {
            *place = (positions.start + lane(i)) as f32;
        }
        self.key_sums[..d * width].fill(0.0);
        self.value_sums[..d * width].fill(0.0);
        // The last row that sees the last position.
        let end = shape.window.map_or(t, |window| t.min(positions.end - 1 + window));
        for head in self.kv_head * shape.group()..(self.kv_head + 1) * shape.group() {
            let mut row = positions.start;
            while row < end {
                let block = row..end.min(row + BLOCK);
                self.block::<S, C>(s, head, block.clone());
                row = block.end;
            }
        }
        self.finish(s, width);
    }

    /// Adds what the rows `block` of a query head contribute.
    #[inline(always)]
    fn block<S: Simd, const C: usize>(&mut self, s: S, head: usize, block: Range<usize>) {
        let Backward { operands, log_sums, dout, deltas } = self.back;
        let shape = operands.shape;
        let (d, stride) = (shape.head_dim, shape.heads * shape.head_dim);
        let width = C * S::LANES;
        let n = block.len();
        let at = block.start * stride + head * d;
        let (q, dout) = (&operands.q[at..], &dout[at..]);
        let (scores, products) = (&mut self.scores[..n * width], &mut self.products[..n * width]);
        scores.fill(0.0);
        products.fill(0.0);
        product::<S, C>(s, [n, d], q, [stride, 1], &self.keys[..d * width], scores);
        product::<S, C>(s, [n, d], dout, [stride, 1], &self.values[..d * width], products);
        let rows = scores.chunks_exact_mut(width).zip(products.chunks_exact_mut(width));
        for (row, (scores, products)) in block.zip(rows) {
            let log_sum = s.splat(log_sums[row * shape.heads + head]);
            let delta = s.splat(deltas[row * shape.heads + head]);
            let visible = shape.visible(row);
            let masked = visible.start > self.positions.start || visible.end < self.positions.end;
            let (first, last) = (s.splat(visible.start as f32), s.splat((visible.end - 1) as f32));
            let vectors = scores.chunks_exact_mut(S::LANES).zip(products.chunks_exact_mut(S::LANES));
            for ((scores, products), place) in vectors.zip(self.places.chunks_exact(S::LANES)) {
                if masked {
                    let place = s.load_slice(place);
                    let inside = |p| s.select_le(first, place, s.select_le(place, last, p, s.zero()), s.zero());
                    block_vector(s, scores, products, log_sum, delta, inside);
                } else {
                    block_vector(s, scores, products, log_sum, delta, |p| p);
                }
            }
        }
        product::<S, C>(s, [d, n], dout, [1, stride], scores, &mut self.value_sums[..d * width]);
        product::<S, C>(s, [d, n], q, [1, stride], products, &mut self.key_sums[..d * width]);
    }

    /// Scales the sums and writes the rows.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S, width: usize) {
        let shape = self.back.operands.shape;
        let d = shape.head_dim;
        for (sums, factor, out) in [(&mut self.key_sums, shape.scale, self.dk), (&mut self.value_sums, 1.0, self.dv)] {
            write_rows(s, &mut sums[..d * width], factor, self.rows, [d, width]);
            for (position, row) in self.positions.clone().zip(self.rows.chunks_exact(d)) {
                let at = (position * shape.kv_heads + self.kv_head) * d;
                // SAFETY: a position of a head belongs to one panel, and this task alone computes it.
                unsafe { out.slice(at..at + d) }.copy_from_slice(row);
            }
        }
    }
}
