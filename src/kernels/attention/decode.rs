//! One query row: the cache is read once, by pieces of the context.
//!
//! A piece of [`PIECE`] positions gives, for every query head, its maximum score, the sum of exponentials and the weighted
//! sum of values; pieces are then combined in order. The cut is fixed by position, never by the number of threads.

// Tiles are indexed by constants, several arrays at once: that is what keeps them in registers.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::Operands;
use super::listed::{Heads, Run};
use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Simd, math};

/// Positions of one piece.
pub(super) const PIECE: usize = 256;
/// Query heads that go over a piece together.
const HEADS: usize = 4;
/// Values in a cache line.
const LINE: usize = 16;

/// Attention of one row. The queries and `out` are `[heads, d_h]` in the order of `heads`.
pub(super) fn decode(cpu: &Cpu, operands: Operands<'_>, heads: Heads<'_>, out: &mut [f32]) {
    let shape = operands.shape;
    let d = shape.head_dim;
    let visible = shape.visible(operands.start);
    let pieces = visible.start / PIECE..visible.end.div_ceil(PIECE);
    let stride = d + 2;
    // [runs, pieces, heads of the run, d_h + 2]: weighted sum, maximum, sum of exponentials.
    let mut partial = cpu.scratch(heads.count(&shape) * pieces.len() * stride);
    let shared = SharedOut::new(&mut partial);
    let bytes = 2 * visible.len().min(PIECE) * d * 4;
    cpu.split(heads.candidates(&shape) * pieces.len(), 1, bytes, &|items| {
        for item in items {
            let (i, piece) = (item / pieces.len(), pieces.start + item % pieces.len());
            let Some(run) = heads.run(&shape, i) else { continue };
            let positions = visible.start.max(piece * PIECE)..visible.end.min((piece + 1) * PIECE);
            let (at, n) = (run.places.start * pieces.len(), run.places.len());
            let first = (at + item % pieces.len() * n) * stride;
            // SAFETY: every piece of a run writes a range of its own, and so do all runs.
            let partial = unsafe { shared.slice(first..first + n * stride) };
            // What is read after this piece, most likely by the same thread.
            let following = || match heads {
                Heads::All => heads.run(&shape, i + 1),
                Heads::Listed(_) => heads.run(&shape, run.places.end),
            };
            let next = match piece + 1 < pieces.end {
                true => operands.cached(run.kv_head, positions.end..visible.end).0,
                false => following().map_or(&[][..], |next| operands.cached(next.kv_head, visible.clone()).0),
            };
            let next = &next[..next.len().min(positions.len() * d)];
            cpu.run(Piece { operands, run, positions, next, partial });
        }
    });
    cpu.run(Combine { operands, heads, pieces: pieces.len(), partial: &partial, out });
}

/// One key/value head at some positions, for all its query heads.
struct Piece<'a> {
    operands: Operands<'a>,
    run: Run,
    /// At most [`PIECE`].
    positions: Range<usize>,
    /// Keys of the next piece, to be asked for in advance; no more than there are in this one.
    next: &'a [f32],
    /// `[heads of the run, d_h + 2]`
    partial: &'a mut [f32],
}

impl Kernel for Piece<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let group = self.run.places.len();
        for first in (0..group).step_by(HEADS) {
            match group - first {
                1 => self.heads::<S, 1>(s, first),
                2 => self.heads::<S, 2>(s, first),
                3 => self.heads::<S, 3>(s, first),
                _ => self.heads::<S, HEADS>(s, first),
            }
        }
    }
}

impl Piece<'_> {
    /// Query heads `first .. first + G` of the run.
    #[inline(always)]
    fn heads<S: Simd, const G: usize>(&mut self, s: S, first: usize) {
        let d = self.operands.shape.head_dim;
        let q = &self.operands.q[(self.run.places.start + first) * d..][..G * d];
        let (k, v) = self.operands.cached(self.run.kv_head, self.positions.clone());
        let n = self.positions.len();
        // Lanes behind the last position must not count.
        let mut scores = [[f32::NEG_INFINITY; PIECE]; G];
        let tile = if S::REGISTERS >= 32 { 4 } else { 2 };
        let mut j = 0;
        while j < n {
            // The values of these positions are read next.
            for line in (0..tile * d).step_by(LINE) {
                s.prefetch(v.as_ptr().wrapping_add(j * d + line));
            }
            if j + tile > n {
                dots::<S, G, 1>(s, q, &k[j * d..][..d], j, &mut scores);
                j += 1;
            } else if tile == 4 {
                dots::<S, G, 4>(s, q, &k[j * d..][..4 * d], j, &mut scores);
                j += 4;
            } else {
                dots::<S, G, 2>(s, q, &k[j * d..][..2 * d], j, &mut scores);
                j += 2;
            }
        }
        let partial = &mut self.partial[first * (d + 2)..][..G * (d + 2)];
        for (scores, partial) in scores.iter_mut().zip(partial.chunks_exact_mut(d + 2)) {
            let used = n.next_multiple_of(S::LANES);
            let (max, sum) = exponentials(s, &mut scores[..used], self.operands.shape.scale);
            partial[d] = max;
            partial[d + 1] = sum;
        }
        // The keys of the next piece are asked for while the values of this one are added up.
        let mut next = if first == 0 { self.next } else { &[] };
        let mut c = 0;
        let wide = S::REGISTERS >= 32;
        while c < d {
            match (d - c) / S::LANES {
                0 => weighted::<S, G, 1>(s, &scores, v, next, [d, c], partial),
                4.. if wide => weighted::<S, G, 4>(s, &scores, v, next, [d, c], partial),
                2.. => weighted::<S, G, 2>(s, &scores, v, next, [d, c], partial),
                _ => weighted::<S, G, 1>(s, &scores, v, next, [d, c], partial),
            }
            c += match (d - c) / S::LANES {
                4.. if wide => 4 * S::LANES,
                2.. => 2 * S::LANES,
                _ => S::LANES,
            };
            next = &[];
        }
    }
}

/// `scores[g][j + i]` = the product of query `g` of `[G, d_h]` with key `i` of `[N, d_h]`.
#[inline(always)]
fn dots<S: Simd, const G: usize, const N: usize>(
    s: S,
    queries: &[f32],
    keys: &[f32],
    j: usize,
    scores: &mut [[f32; PIECE]; G],
) {
    let d = keys.len() / N;
    assert!(queries.len() == G * d && keys.len() == N * d);
    let (queries, keys) = (queries.as_ptr(), keys.as_ptr());
    let mut acc = [[s.zero(); N]; G];
    let whole = d / S::LANES * S::LANES;
    for c in (0..whole).step_by(S::LANES) {
        // SAFETY: `c + LANES <= d`, inside each query and each key.
        unsafe {
            let mut ks = [s.zero(); N];
            for i in 0..N {
                ks[i] = s.load(keys.add(i * d + c));
            }
            for g in 0..G {
                let q = s.load(queries.add(g * d + c));
                for i in 0..N {
                    acc[g][i] = s.fma(ks[i], q, acc[g][i]);
                }
            }
        }
    }
    if whole < d {
        // SAFETY: `d - whole` values are left in each query and each key.
        unsafe {
            let mut ks = [s.zero(); N];
            for i in 0..N {
                ks[i] = s.load_part(keys.add(i * d + whole), d - whole);
            }
            for g in 0..G {
                let q = s.load_part(queries.add(g * d + whole), d - whole);
                for i in 0..N {
                    acc[g][i] = s.fma(ks[i], q, acc[g][i]);
                }
            }
        }
    }
    for (acc, scores) in acc.into_iter().zip(scores) {
        for (acc, score) in acc.into_iter().zip(&mut scores[j..j + N]) {
            *score = s.sum(acc);
        }
    }
}

/// Replaces products by `e^(product * scale - max)`; returns the maximum and the sum. The length is a multiple of the vector's.
#[inline(always)]
fn exponentials<S: Simd>(s: S, scores: &mut [f32], scale: f32) -> (f32, f32) {
    let mut most = s.splat(f32::NEG_INFINITY);
    for x in scores.chunks_exact_mut(S::LANES) {
        let score = s.mul(s.load_slice(x), s.splat(scale));
        s.store_slice(x, score);
        most = s.max(score, most);
    }
    let max = s.max_lane(most);
    let shift = s.splat(max);
    let mut sum = s.zero();
    for x in scores.chunks_exact_mut(S::LANES) {
        let e = math::exp(s, s.sub(s.load_slice(x), shift));
        s.store_slice(x, e);
        sum = s.add(sum, e);
    }
    (max, s.sum(sum))
}

/// `partial[g][c ..] = sum_j weights[g][j] * v[j][c ..]` for `C` vectors, or for the last values of a row that fill none.
#[inline(always)]
fn weighted<S: Simd, const G: usize, const C: usize>(
    s: S,
    weights: &[[f32; PIECE]; G],
    v: &[f32],
    next: &[f32],
    [d, c]: [usize; 2],
    partial: &mut [f32],
) {
    let mut acc = [[s.zero(); C]; G];
    let tail = d - c < S::LANES;
    for (j, row) in v.chunks_exact(d).enumerate() {
        for line in (j * d..next.len().min((j + 1) * d)).step_by(LINE) {
            s.prefetch(next.as_ptr().wrapping_add(line));
        }
        let mut vs = [s.zero(); C];
        for (i, v) in vs.iter_mut().enumerate() {
            // SAFETY: `c + C * LANES <= d`, or `d - c` values are left and C is 1.
            *v = unsafe {
                let p = row.as_ptr().add(c + i * S::LANES);
                if tail { s.load_part(p, d - c) } else { s.load(p) }
            };
        }
        for g in 0..G {
            let weight = s.splat(weights[g][j]);
            for i in 0..C {
                acc[g][i] = s.fma(weight, vs[i], acc[g][i]);
            }
        }
    }
    for (acc, partial) in acc.into_iter().zip(partial.chunks_exact_mut(d + 2)) {
        for (i, acc) in acc.into_iter().enumerate() {
            s.store_slice(&mut partial[c + i * S::LANES..d], acc);
        }
    }
}

/// Puts the pieces together.
struct Combine<'a> {
    operands: Operands<'a>,
    heads: Heads<'a>,
    pieces: usize,
    /// `[runs, pieces, heads of the run, d_h + 2]`
    partial: &'a [f32],
    /// `[heads, d_h]`
    out: &'a mut [f32],
}

impl Kernel for Combine<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (shape, d) = (self.operands.shape, self.operands.shape.head_dim);
        for run in self.heads.runs(&shape) {
            let n = run.places.len();
            let partial = &self.partial[run.places.start * self.pieces * (d + 2)..][..n * self.pieces * (d + 2)];
            let out = &mut self.out[run.places.start * d..run.places.end * d];
            for (head, out) in out.chunks_exact_mut(d).enumerate() {
                combine(s, partial.chunks_exact(d + 2).skip(head).step_by(n), out);
            }
        }
    }
}

/// One head's output from its pieces, `[d_h + 2]` each.
#[inline(always)]
fn combine<'a, S: Simd>(s: S, pieces: impl Iterator<Item = &'a [f32]> + Clone, out: &mut [f32]) {
    let d = out.len();
    let max = pieces.clone().map(|piece| piece[d]).fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    out.fill(0.0);
    let mut sum = 0.0;
    for piece in pieces {
        let (values, rest) = piece.split_at(d);
        let factor = (rest[0] - max).exp();
        sum += rest[1] * factor;
        let factor = s.splat(factor);
        for (out, values) in out.chunks_mut(S::LANES).zip(values.chunks(S::LANES)) {
            let total = s.fma(s.load_slice(values), factor, s.load_slice(out));
            s.store_slice(out, total);
        }
    }
    let factor = s.splat(1.0 / sum);
    for out in out.chunks_mut(S::LANES) {
        let y = s.mul(s.load_slice(out), factor);
        s.store_slice(out, y);
    }
}
