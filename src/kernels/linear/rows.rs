//! One to a few rows of `x`: every weight is read once, contiguously, and widened once for up to four rows.
//!
//! Each (weight row, x row) pair has one vector accumulator that runs along `K` and is summed at the end in a fixed order.
//! Several weight rows are in flight, for the latency of the additions and so that memory is read in several streams. Which
//! rows share a tile changes nothing in the arithmetic of any of them: results are the same bits for one row and for many.

// Tiles are indexed by constants, several arrays at once: that is what keeps them in registers.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::Linear;
use crate::kernels::cpu::SharedOut;
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Element, Simd};

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
        let t = self.linear.t;
        let wide = S::REGISTERS >= 32;
        if t == 1 {
            return self.rows::<S, 8, 1, 8>(s, self.range.clone(), 0);
        }
        // In groups that stay in the first-level cache while all rows of x pass.
        for start in self.range.clone().step_by(4) {
            let rows = start..self.range.end.min(start + 4);
            match (wide, t) {
                (true, 2) => self.rows::<S, 4, 2, 4>(s, rows.clone(), 0),
                (true, 3) => self.rows::<S, 4, 3, 4>(s, rows.clone(), 0),
                (true, _) => self.rows::<S, 4, 4, 4>(s, rows.clone(), 0),
                (false, 2) => self.rows::<S, 2, 2, 4>(s, rows.clone(), 0),
                (false, 3) => self.rows::<S, 2, 3, 4>(s, rows.clone(), 0),
                (false, _) => self.rows::<S, 2, 4, 4>(s, rows.clone(), 0),
            }
            for first in (4..t).step_by(4) {
                match (wide, t - first) {
                    (true, 1) => self.rows::<S, 4, 1, 0>(s, rows.clone(), first),
                    (true, 2) => self.rows::<S, 4, 2, 0>(s, rows.clone(), first),
                    (true, 3) => self.rows::<S, 4, 3, 0>(s, rows.clone(), first),
                    (true, _) => self.rows::<S, 4, 4, 0>(s, rows.clone(), first),
                    (false, 1) => self.rows::<S, 2, 1, 0>(s, rows.clone(), first),
                    (false, 2) => self.rows::<S, 2, 2, 0>(s, rows.clone(), first),
                    (false, 3) => self.rows::<S, 2, 3, 0>(s, rows.clone(), first),
                    (false, _) => self.rows::<S, 2, 4, 0>(s, rows.clone(), first),
                }
            }
        }
    }
}

impl<W: Element> Rows<'_, W> {
    /// Weight rows `rows` against x rows `first .. first + T`, `R` weight rows at a time; the weights `AHEAD` rows further are
    /// asked for (0: none).
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const T: usize, const AHEAD: usize>(
        &self,
        s: S,
        rows: Range<usize>,
        first: usize,
    ) {
        let mut n = rows.start;
        while n + R <= rows.end {
            self.tile::<S, R, T, AHEAD>(s, n, first);
            n += R;
        }
        for n in n..rows.end {
            self.tile::<S, 1, T, AHEAD>(s, n, first);
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const T: usize, const AHEAD: usize>(&self, s: S, n: usize, first: usize) {
        let Linear { w, bias, x, k, n: width, .. } = self.linear;
        let w = w[n * k..(n + R) * k].as_ptr();
        let x = x[first * k..(first + T) * k].as_ptr();
        let mut acc = [[s.zero(); T]; R];
        let whole = k / S::LANES * S::LANES;
        let mut i = 0;
        while i < whole {
            // SAFETY: `i + LANES <= k`, inside each of the R and T rows sliced above.
            unsafe {
                let mut xs = [s.zero(); T];
                for t in 0..T {
                    xs[t] = s.load(x.add(t * k + i));
                }
                for r in 0..R {
                    let wv = W::load(s, w.add(r * k + i));
                    if AHEAD > 0 {
                        s.prefetch(w.wrapping_add((AHEAD + r) * k + i));
                    }
                    for t in 0..T {
                        acc[r][t] = s.fma(wv, xs[t], acc[r][t]);
                    }
                }
            }
            i += S::LANES;
        }
        if whole < k {
            // SAFETY: `k - whole` values are left in each row.
            unsafe {
                let mut xs = [s.zero(); T];
                for t in 0..T {
                    xs[t] = s.load_part(x.add(t * k + whole), k - whole);
                }
                for r in 0..R {
                    let wv = W::load_part(s, w.add(r * k + whole), k - whole);
                    for t in 0..T {
                        acc[r][t] = s.fma(wv, xs[t], acc[r][t]);
                    }
                }
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
