//! One to a few rows of `x`: every weight is read once, contiguously, and widened once for up to eight rows.
//!
//! Each (weight row, x row) pair has one vector accumulator that runs along `K` and is summed at the end in a fixed order.
//! Several weight rows are in flight, for the latency of the additions and so that memory is read in several streams. Rows of `x` are
//! packed first, vectors of the same `k` side by side ([`Packed`]), so that a tile reads one stream of them. Which rows share a tile
//! changes nothing in the arithmetic of any of them: results are the same bits for one row and for many, and for weights that lie in
//! records as for the same ones lying together. Where weights have scales the products of a group are summed by themselves, and the
//! sum is multiplied with the scale.
//!
//! Within a tile weight rows are at equal distances: the loops go through the runs of the weights' layout, and ask for the first
//! rows of the next run at the end of one.

// Tiles are indexed by constants, several arrays at once: that is what keeps them in registers.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::Linear;
use crate::kernels::cpu::{Cpu, Scratch, SharedOut};
use crate::kernels::isa::{Geometry, Kernel};
use crate::kernels::simd::{Element, Simd};
use crate::tensor::RowsOf;

/// Weight rows in flight for one row of `x`.
pub(super) const STREAMS: usize = 8;

/// How many of `t` rows of `x` share a tile: about as many in one as in the other.
#[inline(always)]
fn together(registers: usize, scaled: bool, t: usize) -> usize {
    // With scales the sums of a group and those of all groups are in registers.
    let most = if registers >= 32 && !scaled { 8 } else { 4 };
    t.div_ceil(t.div_ceil(most).max(1))
}

/// The rows of `x` as tiles read them: those that share a tile one group after the other, and in each `[vectors along K, rows,
/// LANES]`, the last vector filled up with zeros. A single row is left as it is.
pub(crate) struct Packed<'a> {
    values: Option<Scratch<'a>>,
    x: &'a [f32],
}

impl<'a> Packed<'a> {
    /// Packs `x` `[t, k]` for weights of type `W`.
    pub(crate) fn new<W: Element>(cpu: &'a Cpu, x: &'a [f32], [t, k]: [usize; 2]) -> Self {
        if t < 2 {
            return Packed { values: None, x };
        }
        let Geometry { lanes, registers } = cpu.geometry();
        let mut values = cpu.scratch(t * k.next_multiple_of(lanes));
        cpu.run(Pack { x, k, together: together(registers, W::SCALED, t), values: &mut values });
        Packed { values: Some(values), x }
    }

    /// The values.
    pub(crate) fn values(&self) -> &[f32] {
        self.values.as_deref().unwrap_or(self.x)
    }
}

struct Pack<'a> {
    /// `[t, k]`
    x: &'a [f32],
    k: usize,
    together: usize,
    values: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Pack { x, k, together, values } = self;
        if k == 0 {
            return;
        }
        let groups = x.chunks(together * k).zip(values.chunks_mut(together * k.next_multiple_of(S::LANES)));
        for (x, values) in groups {
            let t = x.len() / k;
            for (row, x) in x.chunks_exact(k).enumerate() {
                for (i, x) in x.chunks(S::LANES).enumerate() {
                    s.store_slice(&mut values[(i * t + row) * S::LANES..], s.load_slice(x));
                }
            }
        }
    }
}

/// Computes outputs `range` for every row of `x`.
pub(crate) struct Rows<'a, W> {
    pub(crate) linear: Linear<'a, W>,
    /// The rows of `linear.x`, packed.
    pub(crate) x: &'a [f32],
    pub(crate) range: Range<usize>,
    /// `[t, n]`; this kernel writes columns `range` only.
    pub(crate) out: SharedOut<'a>,
}

impl<W: Element> Kernel for Rows<'_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut start = self.range.start;
        while start < self.range.end {
            let run_end = self.linear.w.layout.run_end(start);
            let end = self.range.end.min(run_end);
            self.run_of_rows(s, start..end, run_end);
            start = end;
        }
    }
}

impl<W: Element> Rows<'_, W> {
    /// Weight rows `range` of the run that ends in front of row `run_end`, against every row of `x`.
    #[inline(always)]
    fn run_of_rows<S: Simd>(&self, s: S, range: Range<usize>, run_end: usize) {
        let t = self.linear.t;
        let wide = S::REGISTERS >= 32;
        if t == 1 {
            return self.rows::<S, STREAMS, 1, 8>(s, range, run_end, 0);
        }
        let together = together(S::REGISTERS, W::SCALED, t);
        match (wide, together) {
            (true, 5..) => self.groups::<S, 3>(s, range, run_end, together),
            (true, _) => self.groups::<S, 4>(s, range, run_end, together),
            (false, _) => self.groups::<S, 2>(s, range, run_end, together),
        }
    }

    /// Weight rows `range` against several rows of `x`, `together` of which share a tile with `R` weight rows: in groups that stay
    /// in the first-level cache while all rows of `x` pass.
    #[inline(always)]
    fn groups<S: Simd, const R: usize>(&self, s: S, range: Range<usize>, run_end: usize, together: usize) {
        let group = if R == 2 { 4 } else { R };
        for start in range.clone().step_by(group) {
            let rows = start..range.end.min(start + group);
            for first in (0..self.linear.t).step_by(together) {
                let t = together.min(self.linear.t - first);
                // The first ask for the rows that come next.
                match first {
                    0 => self.some::<S, R, 4>(s, rows.clone(), run_end, first, t),
                    _ => self.some::<S, R, 0>(s, rows.clone(), run_end, first, t),
                }
            }
        }
    }

    /// Weight rows `rows` against `t` rows of `x` that share a tile.
    #[inline(always)]
    fn some<S: Simd, const R: usize, const AHEAD: usize>(
        &self,
        s: S,
        rows: Range<usize>,
        run_end: usize,
        first: usize,
        t: usize,
    ) {
        match t {
            1 => self.rows::<S, R, 1, AHEAD>(s, rows, run_end, first),
            2 => self.rows::<S, R, 2, AHEAD>(s, rows, run_end, first),
            3 => self.rows::<S, R, 3, AHEAD>(s, rows, run_end, first),
            // Only so few weight rows share a tile with more.
            _ if R != 3 => self.rows::<S, R, 4, AHEAD>(s, rows, run_end, first),
            4 => self.rows::<S, R, 4, AHEAD>(s, rows, run_end, first),
            5 => self.rows::<S, R, 5, AHEAD>(s, rows, run_end, first),
            6 => self.rows::<S, R, 6, AHEAD>(s, rows, run_end, first),
            7 => self.rows::<S, R, 7, AHEAD>(s, rows, run_end, first),
            _ => self.rows::<S, R, 8, AHEAD>(s, rows, run_end, first),
        }
    }

    /// Weight rows `rows` against x rows `first .. first + T`, `R` weight rows at a time; the weights `AHEAD` rows further are
    /// asked for (0: none). The rows are of one run, which ends in front of row `run_end`.
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const T: usize, const AHEAD: usize>(
        &self,
        s: S,
        rows: Range<usize>,
        run_end: usize,
        first: usize,
    ) {
        let RowsOf { elements, layout, .. } = self.linear.w;
        let mut n = rows.start;
        let mut start = layout.start(n);
        while n + R <= rows.end {
            let ahead = match AHEAD > 0 && n + AHEAD >= run_end && n + AHEAD < self.linear.n {
                true => layout.start(n + AHEAD),
                false => start + AHEAD * layout.stride(),
            };
            self.tile::<S, R, T, AHEAD>(s, n, start, elements.as_ptr().wrapping_add(ahead), first);
            n += R;
            start += R * layout.stride();
        }
        for n in n..rows.end {
            self.tile::<S, 1, T, AHEAD>(
                s,
                n,
                start,
                elements.as_ptr().wrapping_add(start + AHEAD * layout.stride()),
                first,
            );
            start += layout.stride();
        }
    }

    /// `R` weight rows from row `n`, which begins at element `start`, and those from `ahead` on at the same distances to ask for.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const T: usize, const AHEAD: usize>(
        &self,
        s: S,
        n: usize,
        start: usize,
        ahead: *const W,
        first: usize,
    ) {
        let Linear { w, bias, k, n: width, .. } = self.linear;
        let stride = w.layout.stride();
        let w = w.elements[start..][..(R - 1) * stride + w.span].as_ptr();
        let whole = if self.linear.t == 1 { k } else { k.next_multiple_of(S::LANES) };
        let x = self.x[first * whole..(first + T) * whole].as_ptr();
        let mut acc = [[s.zero(); T]; R];
        let mut i = 0;
        while i < k {
            let end = W::group_end(i, k);
            let start = i;
            let mut sums = if W::SCALED { [[s.zero(); T]; R] } else { acc };
            if W::SCALED && AHEAD > 0 {
                for r in 0..R {
                    W::prefetch(s, ahead.wrapping_add(r * stride), k, i);
                }
            }
            while i + S::LANES <= end {
                // SAFETY: `i + LANES <= k`, inside each of the R rows, `stride` apart, and of the T rows sliced above, whose
                // vectors lie side by side.
                unsafe {
                    let mut xs = [s.zero(); T];
                    for t in 0..T {
                        xs[t] = s.load(x.add(i * T + t * S::LANES));
                    }
                    for r in 0..R {
                        let wv = W::load(s, w.add(r * stride + i));
                        if !W::SCALED && AHEAD > 0 {
                            W::prefetch(s, ahead.wrapping_add(r * stride), k, i);
                        }
                        for t in 0..T {
                            sums[r][t] = s.fma(wv, xs[t], sums[r][t]);
                        }
                    }
                }
                i += S::LANES;
            }
            if i < end {
                // SAFETY: `end - i` values are left of the group in each row.
                unsafe {
                    let mut xs = [s.zero(); T];
                    for t in 0..T {
                        xs[t] = s.load_part(x.add(i * T + t * S::LANES), end - i);
                    }
                    for r in 0..R {
                        let wv = W::load_part(s, w.add(r * stride + i), end - i);
                        for t in 0..T {
                            sums[r][t] = s.fma(wv, xs[t], sums[r][t]);
                        }
                    }
                }
                i = end;
            }
            if W::SCALED {
                for r in 0..R {
                    // SAFETY: the R rows are whole, and `start < k`.
                    let scale = s.splat(unsafe { W::scale(w.add(r * stride), k, start) });
                    for t in 0..T {
                        acc[r][t] = s.fma(sums[r][t], scale, acc[r][t]);
                    }
                }
            } else {
                acc = sums;
            }
        }
        for r in 0..R {
            let b = bias.map_or(0.0, |bias| bias[n + r]);
            for t in 0..T {
                // SAFETY: column `n + r` belongs to this task alone; row `first + t` and the column are inside `out`.
                unsafe { *self.out.at((first + t) * width + n + r) = s.sum(acc[r][t]) + b };
            }
        }
    }
}
