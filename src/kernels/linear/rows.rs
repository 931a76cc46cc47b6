//! One to a few rows of `x`: every weight is read once, contiguously, and widened once for up to four rows.
//!
//! Each (weight row, x row) pair has one vector accumulator that runs along `K` and is summed at the end in a fixed order.
//! Several weight rows are in flight, for the latency of the additions and so that memory is read in several streams. Which
//! rows share a tile changes nothing in the arithmetic of any of them: results are the same bits for one row and for many.

use std::ops::Range;

use super::Linear;
use crate::kernels::cpu::SharedOut;
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Element, Simd};

/// Computes outputs `range` for every row of `x`.
pub(super) struct Rows<'a, W> {
    pub(super) linear: Linear<'a, W>,
    pub(super) range: Range<usize>,
    /// `[t, n]`; this kernel writes columns `range` only.
    pub(super) out: SharedOut<'a>,
}

impl<W: Element> Kernel for Rows<'_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Linear { t, .. } = self.linear;
        let wide = S::REGISTERS >= 32;
        if t == 1 {
            // Alone, rows are streamed from end to end.
            return self.tile_columns::<S, 4, 1>(s, self.range.clone(), 0);
        }
        // Otherwise in groups that stay in the first-level cache while all rows of x pass.
        let group = if wide { 4 } else { 2 };
        let mut n = self.range.start;
        while n < self.range.end {
            let rows = n..self.range.end.min(n + group);
            let mut first = 0;
            while first < t {
                let rest = t - first;
                match (wide, rest) {
                    (true, 1) => self.tile_columns::<S, 4, 1>(s, rows.clone(), first),
                    (true, 2) => self.tile_columns::<S, 4, 2>(s, rows.clone(), first),
                    (true, 3) => self.tile_columns::<S, 4, 3>(s, rows.clone(), first),
                    (true, _) => self.tile_columns::<S, 4, 4>(s, rows.clone(), first),
                    (false, 1) => self.tile_columns::<S, 2, 1>(s, rows.clone(), first),
                    (false, 2) => self.tile_columns::<S, 2, 2>(s, rows.clone(), first),
                    (false, 3) => self.tile_columns::<S, 2, 3>(s, rows.clone(), first),
                    (false, _) => self.tile_columns::<S, 2, 4>(s, rows.clone(), first),
                }
                first += rest.min(4);
            }
            n = rows.end;
        }
    }
}

impl<W: Element> Rows<'_, W> {
    /// Weight rows `rows` against x rows `first .. first + T`, `R` weight rows at a time.
    #[inline(always)]
    fn tile_columns<S: Simd, const R: usize, const T: usize>(&self, s: S, rows: Range<usize>, first: usize) {
        let mut n = rows.start;
        while n + R <= rows.end {
            self.tile::<S, R, T>(s, n, first);
            n += R;
        }
        for n in n..rows.end {
            self.tile::<S, 1, T>(s, n, first);
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const T: usize>(&self, s: S, n: usize, first: usize) {
        let Linear { w, bias, x, k, n: width, .. } = self.linear;
        let w = w[n * k..(n + R) * k].as_ptr();
        let x = x[first * k..(first + T) * k].as_ptr();
        let mut acc = [[s.zero(); T]; R];
        let whole = k / S::LANES * S::LANES;
        let mut i = 0;
        while i < whole {
            // SAFETY: `i + LANES <= k`, inside each of the R and T rows sliced above.
            unsafe {
                let xs: [S::V; T] = std::array::from_fn(|t| s.load(x.add(t * k + i)));
                for r in 0..R {
                    let wv = W::load(s, w.add(r * k + i));
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
                let xs: [S::V; T] = std::array::from_fn(|t| s.load_part(x.add(t * k + whole), k - whole));
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
