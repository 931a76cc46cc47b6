//! The product with the transposed matrix, `out = x W + bias`: how a gradient goes back through a linear layer.
//!
//! The weights stay as they are, row by row, so the sums run down the columns:
//!
//! * one and few rows of `x`: an output row is the sum of the rows of `W`, each times a factor. Whole rows are streamed, cut into
//!   pieces by their number alone, and the pieces' sums are added in order ([`Pieces`]);
//! * many rows: the blocked product of [`gemm`](super::gemm), whose tiles are filled from columns.

// Tiles are indexed by constants, several arrays at once: that is what keeps them in registers.
#![allow(clippy::needless_range_loop)]

use shadowllm_weights::DType;

use super::gemm::{Factors, gemm};
use super::weights::{ByColumns, Words};
use super::{BF16_ROWS, blocked_name, compute, integer};
use crate::kernels::add_assign;
use crate::kernels::cpu::{Compute, Cpu};
use crate::kernels::gather::{Pieces, add_rows};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Element, Simd};
use crate::tensor::{Matrix, MatrixView, RowsOf};

/// Rows from which the blocked product is used.
pub(super) const GEMM_ROWS: usize = 12;

/// Rows of weights and of `x` whose products are summed at once.
const TILE: usize = 4;

/// How `rows` rows are multiplied with weights of a type: `None` as sums of rows, else by the blocked product.
fn blocked(cpu: &Cpu, dtype: DType, rows: usize) -> Option<Compute> {
    match compute(cpu, dtype) {
        Compute::Bf16 if rows >= BF16_ROWS => Some(Compute::Bf16),
        _ if rows >= GEMM_ROWS => Some(Compute::F32),
        _ => None,
    }
}

/// Multiplies every row of `x` with every column of `w`.
///
/// `w` `[N, K]`, `bias` `[K]`, `x` `[T, N]`, `out` `[T, K]`: `out[t][k] = sum_n x[t][n] * w[n][k] + bias[k]`, accumulated in
/// `f32`: `|error| <= (N/8 + 16) * 2^-23 * (sum_n |x[t][n] * w[n][k]| + |bias[k]|)`.
///
/// With [`Compute::Bf16`] many rows are rounded first, as [`linear`](super::linear) says; with whole numbers it is the products of
/// `x` and the scales of a group of outputs that are rounded: each by half of a 32767th of the largest input among up to 256 times
/// the largest scale among the same rows, at most.
///
/// # Panics
/// If the lengths do not fit: `x.len() == T * N`, `out.len() == T * K`, `bias.len() == K`.
pub fn linear_transposed(cpu: &Cpu, w: &Matrix, bias: Option<&[f32]>, x: &[f32], out: &mut [f32]) {
    let (n, k) = (w.rows(), w.cols());
    let t = out.len().checked_div(k).unwrap_or(0);
    assert_eq!(out.len(), t * k, "output is no whole number of rows of {k}");
    assert_eq!(x.len(), t * n, "{t} rows of {n} inputs expected");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), k, "one bias for each of {k} outputs expected");
    }
    match w.elements() {
        MatrixView::F32(v) => Transposed { w: w.rows_of(v), bias, x, n, k, t }.run(cpu, out),
        MatrixView::F16(v) => Transposed { w: w.rows_of(v), bias, x, n, k, t }.run(cpu, out),
        MatrixView::BF16(v) => Transposed { w: w.rows_of(v), bias, x, n, k, t }.run(cpu, out),
        MatrixView::I8(v) => {
            let w = w.rows_of(v);
            match integer::used(cpu, t) {
                true => integer::down(cpu, Factors { weights: w, bias, x, n: k, k: n, t }, out),
                false => Transposed { w, bias, x, n, k, t }.run(cpu, out),
            }
        }
    }
}

/// [`linear_transposed`] with weights that training has in memory, `[N, K]`.
pub(crate) fn linear_transposed_f32(cpu: &Cpu, w: &[f32], [n, k]: [usize; 2], x: &[f32], out: &mut [f32]) {
    let t = out.len().checked_div(k).unwrap_or(0);
    assert_eq!(w.len(), n * k, "{n} rows of {k} weights expected");
    assert_eq!(out.len(), t * k, "output is no whole number of rows of {k}");
    assert_eq!(x.len(), t * n, "{t} rows of {n} inputs expected");
    Transposed { w: RowsOf::contiguous(w, k), bias: None, x, n, k, t }.run(cpu, out);
}

/// Names of the kernels that [`linear_transposed`] runs with weights of a type, as `(rows, variant)`.
pub(super) fn names(cpu: &Cpu, dtype: DType) -> Vec<(String, String)> {
    let few = format!("{}-{dtype}xf32-sums{TILE}x{TILE}", cpu.isa());
    let name = |rows: String, kernel: String| (format!("linear transposed {dtype}, {rows}"), kernel);
    let mut names = vec![name(format!("1 to {} rows", GEMM_ROWS - 1), few)];
    if dtype == DType::I8 && integer::possible(cpu) {
        names.push(name(format!("{} rows or more", integer::ROWS), integer::name(cpu)));
        return names;
    }
    match compute(cpu, dtype) {
        Compute::F32 => names.push(name(format!("{GEMM_ROWS} rows or more"), blocked_name(cpu, dtype, Compute::F32))),
        Compute::Bf16 => {
            let between = format!("{GEMM_ROWS} to {} rows", BF16_ROWS - 1);
            names.push(name(between, blocked_name(cpu, dtype, Compute::F32)));
            names.push(name(format!("{BF16_ROWS} rows or more"), blocked_name(cpu, dtype, Compute::Bf16)));
        }
    }
    names
}

/// The operands of one call; lengths were checked.
#[derive(Clone, Copy)]
struct Transposed<'a, W> {
    /// `[n, k]`
    w: RowsOf<'a, W>,
    /// `[k]`
    bias: Option<&'a [f32]>,
    /// `[t, n]`
    x: &'a [f32],
    n: usize,
    k: usize,
    t: usize,
}

impl<W: Words> Transposed<'_, W> {
    fn run(self, cpu: &Cpu, out: &mut [f32]) {
        let Transposed { w, bias, x, n, k, t } = self;
        if t == 0 {
            return;
        }
        if let Some(compute) = blocked(cpu, W::DTYPE, t) {
            // What is an output of a layer is an input here.
            let factors = Factors { weights: ByColumns { w, cols: k }, bias, x, n: k, k: n, t };
            return gemm(cpu, compute, factors, out);
        }
        Pieces::new(n).sum(cpu, w.span * size_of::<W>(), None, out, &|range, sums| {
            cpu.run(Sums { transposed: self, first: range.start, end: range.end, sums });
        });
        if let Some(bias) = bias {
            out.chunks_exact_mut(k).for_each(|row| add_assign(cpu, row, bias));
        }
    }
}

/// `sums[t] += x[t][n] * w[n]` for the weight rows `first .. end`, in order.
struct Sums<'a, W> {
    transposed: Transposed<'a, W>,
    first: usize,
    end: usize,
    /// `[t, k]`
    sums: &'a mut [f32],
}

impl<W: Element> Kernel for Sums<'_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Transposed { w, x, n, k, t, .. } = self.transposed;
        if t == 1 {
            let row = |i: usize| (self.first + i < n).then(|| w.row(self.first + i));
            return add_rows(s, &x[self.first..self.end], k, 0..k, row, self.sums);
        }
        let RowsOf { elements, layout, span } = w;
        let mut at = self.first;
        while at < self.end {
            // A group of weight rows, at equal distances, stays in the cache while all rows of x pass.
            let rows = if at + TILE <= self.end.min(layout.run_end(at)) { TILE } else { 1 };
            let ahead = elements.as_ptr().wrapping_add(layout.start(at + rows));
            let tile = Tile { w: &elements[layout.start(at)..], stride: layout.stride(), span, ahead, n, k };
            for first in (0..t).step_by(TILE) {
                let x = &x[first * n + at..];
                let sums = &mut self.sums[first * k..];
                match (rows, t - first) {
                    (TILE, 1) => tile.add::<S, TILE, 1>(s, x, sums),
                    (TILE, 2) => tile.add::<S, TILE, 2>(s, x, sums),
                    (TILE, 3) => tile.add::<S, TILE, 3>(s, x, sums),
                    (TILE, _) => tile.add::<S, TILE, TILE>(s, x, sums),
                    (_, 1) => tile.add::<S, 1, 1>(s, x, sums),
                    (_, 2) => tile.add::<S, 1, 2>(s, x, sums),
                    (_, 3) => tile.add::<S, 1, 3>(s, x, sums),
                    (_, _) => tile.add::<S, 1, TILE>(s, x, sums),
                }
            }
            at += rows;
        }
    }
}

/// Some rows of weights.
struct Tile<'a, W> {
    /// Begins with the first of them.
    w: &'a [W],
    /// From one row to the next.
    stride: usize,
    /// Elements of a row.
    span: usize,
    /// Rows to ask for meanwhile, at the same distances.
    ahead: *const W,
    n: usize,
    k: usize,
}

impl<W: Element> Tile<'_, W> {
    /// `sums[t] += x[t][0] * w[0]`, then `x[t][1] * w[1]`, and so on, for `R` rows of weights and `T` of sums (`[T, k]`); the rows of
    /// `x` are `n` apart.
    #[inline(always)]
    fn add<S: Simd, const R: usize, const T: usize>(&self, s: S, x: &[f32], sums: &mut [f32]) {
        let &Tile { w, stride, span, ahead, n, k } = self;
        let (w, sums) = (w[..(R - 1) * stride + span].as_ptr(), sums[..T * k].as_mut_ptr());
        let mut i = 0;
        while i < k {
            let end = W::group_end(i, k);
            let mut factors = [[s.zero(); T]; R];
            for r in 0..R {
                // SAFETY: the R rows are whole, and `i < k`.
                let scale = unsafe { W::scale(w.add(r * stride), k, i) };
                for t in 0..T {
                    // As where one row is added: the scale goes to the factor.
                    factors[r][t] = s.splat(if W::SCALED { x[t * n + r] * scale } else { x[t * n + r] });
                }
                if W::SCALED {
                    W::prefetch(s, ahead.wrapping_add(r * stride), k, i);
                }
            }
            while i + S::LANES <= end {
                // SAFETY: `i + LANES <= k`, inside each of the R rows, `stride` apart, and of the T sums sliced above.
                unsafe {
                    let mut ws = [s.zero(); R];
                    for r in 0..R {
                        ws[r] = W::load(s, w.add(r * stride + i));
                        if !W::SCALED {
                            W::prefetch(s, ahead.wrapping_add(r * stride), k, i);
                        }
                    }
                    for t in 0..T {
                        let mut acc = s.load(sums.add(t * k + i));
                        for r in 0..R {
                            acc = s.fma(ws[r], factors[r][t], acc);
                        }
                        s.store(sums.add(t * k + i), acc);
                    }
                }
                i += S::LANES;
            }
            if i < end {
                // SAFETY: `end - i` values are left of the group in each row and sum.
                unsafe {
                    let mut ws = [s.zero(); R];
                    for r in 0..R {
                        ws[r] = W::load_part(s, w.add(r * stride + i), end - i);
                    }
                    for t in 0..T {
                        let mut acc = s.load_part(sums.add(t * k + i), end - i);
                        for r in 0..R {
                            acc = s.fma(ws[r], factors[r][t], acc);
                        }
                        s.store_part(sums.add(t * k + i), acc, end - i);
                    }
                }
                i = end;
            }
        }
    }
}
