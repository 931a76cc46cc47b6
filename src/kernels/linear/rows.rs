//! One to a few rows of `x`: every weight is read once, contiguously, and widened once for up to four rows.
//!
//! Each (weight row, x row) pair has one vector accumulator that runs along `K` and is summed at the end in a fixed order.
//! Several weight rows are in flight, for the latency of the additions and so that memory is read in several streams. Which
//! rows share a tile changes nothing in the arithmetic of any of them: results are the same bits for one row and for many, and
//! for weights that lie in records as for the same ones lying together. Where weights have scales the products of a group are
//! summed by themselves, and the sum is multiplied with the scale.
//!
//! Within a tile weight rows are at equal distances: the loops go through the runs of the weights' layout, and ask for the first
//! rows of the next run at the end of one.

// Tiles are indexed by constants, several arrays at once: that is what keeps them in registers.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::Linear;
use crate::kernels::cpu::SharedOut;
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Element, Simd};
use crate::tensor::RowsOf;

/// Weight rows in flight for one row of `x`.
pub(super) const STREAMS: usize = 8;

/// Computes outputs `range` for every row of `x`.
pub(crate) struct Rows<'a, W> {
    pub(crate) linear: Linear<'a, W>,
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
        // In groups that stay in the first-level cache while all rows of x pass.
        for start in range.clone().step_by(4) {
            let rows = start..range.end.min(start + 4);
            match (wide, t) {
                (true, 2) => self.rows::<S, 4, 2, 4>(s, rows.clone(), run_end, 0),
                (true, 3) => self.rows::<S, 4, 3, 4>(s, rows.clone(), run_end, 0),
                (true, _) => self.rows::<S, 4, 4, 4>(s, rows.clone(), run_end, 0),
                (false, 2) => self.rows::<S, 2, 2, 4>(s, rows.clone(), run_end, 0),
                (false, 3) => self.rows::<S, 2, 3, 4>(s, rows.clone(), run_end, 0),
                (false, _) => self.rows::<S, 2, 4, 4>(s, rows.clone(), run_end, 0),
            }
            for first in (4..t).step_by(4) {
                match (wide, t - first) {
                    (true, 1) => self.rows::<S, 4, 1, 0>(s, rows.clone(), run_end, first),
                    (true, 2) => self.rows::<S, 4, 2, 0>(s, rows.clone(), run_end, first),
                    (true, 3) => self.rows::<S, 4, 3, 0>(s, rows.clone(), run_end, first),
                    (true, _) => self.rows::<S, 4, 4, 0>(s, rows.clone(), run_end, first),
                    (false, 1) => self.rows::<S, 2, 1, 0>(s, rows.clone(), run_end, first),
                    (false, 2) => self.rows::<S, 2, 2, 0>(s, rows.clone(), run_end, first),
                    (false, 3) => self.rows::<S, 2, 3, 0>(s, rows.clone(), run_end, first),
                    (false, _) => self.rows::<S, 2, 4, 0>(s, rows.clone(), run_end, first),
                }
            }
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
        let Linear { w, bias, x, k, n: width, .. } = self.linear;
        let stride = w.layout.stride();
        let w = w.elements[start..][..(R - 1) * stride + w.span].as_ptr();
        let x = x[first * k..(first + T) * k].as_ptr();
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
                // SAFETY: `i + LANES <= k`, inside each of the R rows, `stride` apart, and of the T rows sliced above.
                unsafe {
                    let mut xs = [s.zero(); T];
                    for t in 0..T {
                        xs[t] = s.load(x.add(t * k + i));
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
                        xs[t] = s.load_part(x.add(t * k + i), end - i);
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
