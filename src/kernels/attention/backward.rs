//! Back through attention: from the gradient of contexts to those of queries, keys and values.
//!
//! With `P = e^(scale q k^T - log_sum)`, `dP = dout v^T`, `delta = <out, dout>` per row and head, and `dS = P (dP - delta)`:
//! `dq = scale dS k`, `dk = scale dS^T q`, `dv = P^T dout`. `P` and `dS` exist as blocks only.
//!
//! `dk` and `dv` are sums over rows, so each panel of positions is one task's; `dq` is a sum over positions, to which all panels of
//! a head add. Tasks therefore have a `dq` of their own, of the query heads of one key/value head, and these are added up in the
//! end. How many they are, and which panels each has, depends on the shape alone ([`parts`]): the result does not depend on the
//! number of threads. `P` and `dP` of a block are made once, 5 products in all.

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
    Backward { operands, log_sums, dout, deltas: &deltas }.run(cpu, dq, dk, dv);
}

/// Tasks that one call is cut into at least, if there are so many panels. Each needs a `dq` of its heads.
const TASKS: usize = 16;

/// Vectors of a row of `dq` that are summed up together.
const ROW_VECTORS: usize = 2;

/// Into how many tasks the panels of one key/value head are dealt out.
fn parts(kv_heads: usize, panels: usize) -> usize {
    TASKS.div_ceil(kv_heads).min(panels)
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

/// What all tasks read.
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
    fn run(self, cpu: &Cpu, dq: &mut [f32], dk: &mut [f32], dv: &mut [f32]) {
        let Operands { shape, t, .. } = self.operands;
        let (d, group, lanes) = (shape.head_dim, shape.group(), cpu.geometry().lanes);
        let width = panel_width(cpu.geometry());
        let panels = t.div_ceil(width);
        let parts = parts(shape.kv_heads, panels);
        let pieces = Pieces { width: ROW_VECTORS * lanes, count: d.div_ceil(ROW_VECTORS * lanes) };
        let queries = group * pieces.of_head(t);
        let mut sums = cpu.scratch(shape.kv_heads * parts * queries);
        let (shared, dk, dv) = (SharedOut::new(&mut sums), SharedOut::new(dk), SharedOut::new(dv));
        // Operations of 5 products, as bytes that memory could have delivered in the time.
        let seen = (t / 2).min(shape.window.unwrap_or(usize::MAX));
        let cost = 10 * group * width * panels.div_ceil(parts) * seen * d / 8;
        cpu.split(shape.kv_heads * parts, 1, cost, &|tasks| {
            let mut scratch = cpu.scratch((5 * d + pieces.count * pieces.width + 2 * BLOCK + 1) * width + 8 * d);
            let (keys, rest) = scratch.split_at_mut(d * width);
            let (values, rest) = rest.split_at_mut(d * width);
            let (key_sums, rest) = rest.split_at_mut(d * width);
            let (value_sums, rest) = rest.split_at_mut(d * width);
            let (rows, rest) = rest.split_at_mut(d * width + 8 * d);
            let (key_rows, rest) = rest.split_at_mut(pieces.count * pieces.width * width);
            let (scores, rest) = rest.split_at_mut(BLOCK * width);
            let (products, places) = rest.split_at_mut(BLOCK * width);
            for task in tasks {
                // SAFETY: each task has these sums to itself.
                let dq = unsafe { shared.slice(task * queries..(task + 1) * queries) };
                dq.fill(0.0);
                for panel in (task % parts..panels).step_by(parts) {
                    cpu.run(Panel {
                        back: self,
                        kv_head: task / parts,
                        positions: panel * width..t.min((panel + 1) * width),
                        pieces,
                        keys,
                        values,
                        key_rows,
                        key_sums,
                        value_sums,
                        rows,
                        scores,
                        products,
                        places,
                        dq,
                        dk,
                        dv,
                    });
                }
            }
        });
        let dq = SharedOut::new(dq);
        cpu.split(shape.heads * t, 1, (parts + 1) * d * size_of::<f32>(), &|range| {
            cpu.run(AddUp { operands: self.operands, parts, pieces, sums: &sums, range, dq });
        });
    }
}

/// How rows of `dq` lie while they are summed up: in pieces, `[query head, piece, row, width]`.
#[derive(Clone, Copy)]
struct Pieces {
    width: usize,
    count: usize,
}

impl Pieces {
    /// Values of `t` rows of one query head.
    fn of_head(self, t: usize) -> usize {
        self.count * t * self.width
    }
}

/// Adds up the parts of `dq` for the (query head, row) pairs of a range.
struct AddUp<'a> {
    operands: Operands<'a>,
    parts: usize,
    pieces: Pieces,
    /// `[H_kv, parts, group, piece, row, width]`
    sums: &'a [f32],
    /// Pair `p` is query head `p / t`, row `p % t`.
    range: Range<usize>,
    /// `[t, H, d_h]`
    dq: SharedOut<'a>,
}

impl Kernel for AddUp<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Operands { shape, t, .. } = self.operands;
        let (d, group, of_head) = (shape.head_dim, shape.group(), self.pieces.of_head(t));
        for pair in self.range {
            let (head, row) = (pair / t, pair % t);
            let first = (head / group * self.parts * group + head % group) * of_head;
            let at = (row * shape.heads + head) * d;
            // SAFETY: this task alone writes these rows.
            let out = unsafe { self.dq.slice(at..at + d) };
            for (piece, out) in out.chunks_mut(self.pieces.width).enumerate() {
                let from = first + (piece * t + row) * self.pieces.width;
                for (lane, out) in out.chunks_mut(S::LANES).enumerate() {
                    let mut sum = s.zero();
                    for part in 0..self.parts {
                        let at = from + part * group * of_head + lane * S::LANES;
                        sum = s.add(sum, s.load_slice(&self.sums[at..][..S::LANES]));
                    }
                    s.store_slice(out, sum);
                }
            }
        }
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

/// One panel of positions against the rows that see them: their `dk` and `dv`, and what they add to `dq`.
struct Panel<'a> {
    back: Backward<'a>,
    kv_head: usize,
    positions: Range<usize>,
    pieces: Pieces,
    /// `[d_h, width]`, scaled keys.
    keys: &'a mut [f32],
    /// `[d_h, width]`
    values: &'a mut [f32],
    /// `[piece, position, width]`, scaled keys; zero behind the last feature.
    key_rows: &'a mut [f32],
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
    /// `[group, piece, row, width]`
    dq: &'a mut [f32],
    /// `[t, H_kv, d_h]`
    dk: SharedOut<'a>,
    /// `[t, H_kv, d_h]`
    dv: SharedOut<'a>,
}

impl Kernel for Panel<'_> {
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

impl Panel<'_> {
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
        let Pieces { width: piece_width, .. } = self.pieces;
        let pieces = self.key_rows.chunks_exact_mut(positions.len() * piece_width);
        for (piece, rows) in pieces.take(self.pieces.count).enumerate() {
            let features = piece * piece_width..d.min((piece + 1) * piece_width);
            for (row, k) in rows.chunks_exact_mut(piece_width).zip(k.chunks_exact(d)) {
                let (real, rest) = row.split_at_mut(features.len());
                real.iter_mut().zip(&k[features.clone()]).for_each(|(row, k)| *row = k * shape.scale);
                rest.fill(0.0);
            }
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
        let (start, n) = (block.start, block.len());
        let at = start * stride + head * d;
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
        let (positions, wide) = (self.positions.len(), self.pieces.width);
        for piece in 0..self.pieces.count {
            let keys = &self.key_rows[piece * positions * wide..][..positions * wide];
            let first = (head % shape.group() * self.pieces.count + piece) * operands.t + start;
            let sums = &mut self.dq[first * wide..][..n * wide];
            product::<S, ROW_VECTORS>(s, [n, positions], products, [width, 1], keys, sums);
        }
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
