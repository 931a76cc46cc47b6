//! What training needs of a linear layer beside [`linear`](super::linear) and the way back through it
//! ([`linear_transposed`](super::linear_transposed)): the gradients of its weights and bias.
//!
//! The gradient of the weights is a sum over rows of outer products. Vectors run along the inputs. `x` is packed once per call into panels of a few vectors; the gradients of the outputs are
//! copied in blocks of [`STEP_BLOCK`] rows by [`ROW_BLOCK`] outputs, because a column of the whole matrix would be a page per
//! row. The innermost tile is that of the blocked product, with rows in the place of its inputs.

use std::ops::Range;

use super::gemm::{TILE_ROWS, panel_tokens};
use super::micro::micro;
use super::product::Exact;
use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::Simd;

/// Rows that are summed before they are added to the result.
const STEP_BLOCK: usize = 256;
/// Outputs whose sums are kept at once; a multiple of [`TILE_ROWS`].
const ROW_BLOCK: usize = 96;

/// `dw[n][k] = sum_t dy[t][n] * x[t][k]`: what `out = x W^T` makes of the gradient `dy` of its output.
///
/// `dy` `[T, N]`, `x` `[T, K]`, `dw` `[N, K]`, accumulated in `f32`: `|error| <= (T/8 + 16) * 2^-23 * sum_t |dy[t][n] * x[t][k]|`.
/// The bits depend on the instruction set and on nothing else.
///
/// # Panics
/// If the lengths do not fit.
pub fn weight_gradient(cpu: &Cpu, [t, n, k]: [usize; 3], dy: &[f32], x: &[f32], dw: &mut [f32]) {
    assert_eq!(dy.len(), t * n, "{t} rows of {n} gradients expected");
    assert_eq!(x.len(), t * k, "{t} rows of {k} inputs expected");
    assert_eq!(dw.len(), n * k, "gradients of {n} rows of {k} weights expected");
    if k == 0 {
        return;
    }
    let geometry = cpu.geometry();
    let layout = Layout { t, k: k.next_multiple_of(geometry.lanes), panel: panel_tokens(geometry) };
    let mut packed = cpu.scratch(t * layout.k);
    for first in (0..layout.k).step_by(layout.panel) {
        let (width, real) = (layout.width(first), layout.width(first).min(k - first));
        let panel = &mut packed[t * first..][..t * width];
        for (to, from) in panel.chunks_exact_mut(width).zip(x.chunks_exact(k)) {
            to[..real].copy_from_slice(&from[first..first + real]);
            to[real..].fill(0.0);
        }
    }
    let out = SharedOut::new(dw);
    // As in the blocked product: 2 k t operations at 7 operations a byte.
    cpu.split(n, TILE_ROWS, k * t / 4, &|range| {
        let mut steps = cpu.scratch(STEP_BLOCK * ROW_BLOCK);
        let mut sums = cpu.scratch(ROW_BLOCK * layout.k);
        cpu.run(Outer { layout, n, k, dy, packed: &packed, range, steps: &mut steps, sums: &mut sums, out });
    });
}

/// `db[n] = sum_t dy[t][n]`: the gradient of a bias, `dy` `[T, N]`, added in the order of `t`.
///
/// # Panics
/// If `dy` is no whole number of rows.
pub fn bias_gradient(cpu: &Cpu, dy: &[f32], db: &mut [f32]) {
    struct Add<'a> {
        rows: std::slice::ChunksExact<'a, f32>,
        range: Range<usize>,
        sums: &'a mut [f32],
    }
    impl Kernel for Add<'_> {
        type Out = ();

        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            self.sums.fill(0.0);
            for row in self.rows {
                self.sums.iter_mut().zip(&row[self.range.clone()]).for_each(|(sum, v)| *sum += v);
            }
        }
    }
    let n = db.len();
    assert!(n > 0 && dy.len().is_multiple_of(n), "gradients are no whole number of rows of {n}");
    let out = SharedOut::new(db);
    cpu.split(n, 16, dy.len() / n * 4, &|range| {
        // SAFETY: the ranges do not overlap.
        let sums = unsafe { out.slice(range.clone()) };
        cpu.run(Add { rows: dy.chunks_exact(n), range, sums });
    });
}

/// Where the inputs are in the packed buffer: `[panels][t][inputs of the panel]`.
#[derive(Clone, Copy)]
struct Layout {
    t: usize,
    /// Inputs, rounded up to whole vectors.
    k: usize,
    /// Inputs of a full panel.
    panel: usize,
}

impl Layout {
    /// Inputs of the panel that begins at input `first`.
    fn width(self, first: usize) -> usize {
        (self.k - first).min(self.panel)
    }
}

/// Computes rows `range` of the gradient.
struct Outer<'a> {
    layout: Layout,
    n: usize,
    k: usize,
    /// `[t, n]`
    dy: &'a [f32],
    packed: &'a [f32],
    range: Range<usize>,
    /// `[STEP_BLOCK, ROW_BLOCK]` gradients of the outputs.
    steps: &'a mut [f32],
    /// `[ROW_BLOCK, layout.k]`
    sums: &'a mut [f32],
    /// `[n, k]`
    out: SharedOut<'a>,
}

impl Kernel for Outer<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Outer { layout, n, k, dy, packed, range, steps, sums, out } = self;
        for start in range.clone().step_by(ROW_BLOCK) {
            let rows = start..range.end.min(start + ROW_BLOCK);
            sums.fill(0.0);
            for from in (0..layout.t).step_by(STEP_BLOCK) {
                let count = STEP_BLOCK.min(layout.t - from);
                for (i, to) in steps.chunks_exact_mut(ROW_BLOCK).take(count).enumerate() {
                    to[..rows.len()].copy_from_slice(&dy[(from + i) * n..][rows.clone()]);
                    to[rows.len()..].fill(0.0);
                }
                for first in (0..layout.k).step_by(layout.panel) {
                    let width = layout.width(first);
                    let x = packed[layout.t * first + from * width..][..count * width].as_ptr();
                    for tile in (0..rows.len()).step_by(TILE_ROWS) {
                        let w = steps[tile..].as_ptr();
                        let sums = sums[tile * layout.k + first..].as_mut_ptr();
                        let strides = [1, ROW_BLOCK];
                        // SAFETY: `steps` holds `count` steps of `ROW_BLOCK` gradients, of which a tile takes `TILE_ROWS`
                        // from `tile` on; `x` is `count` rows of `width` inputs; the sums are rows of `layout.k`, of which
                        // `width` follow the offset.
                        unsafe {
                            match width / S::LANES {
                                1 => micro::<S, _, TILE_ROWS, 1>(s, Exact, count, w, strides, x, sums, layout.k),
                                2 => micro::<S, _, TILE_ROWS, 2>(s, Exact, count, w, strides, x, sums, layout.k),
                                3 => micro::<S, _, TILE_ROWS, 3>(s, Exact, count, w, strides, x, sums, layout.k),
                                _ => micro::<S, _, TILE_ROWS, 4>(s, Exact, count, w, strides, x, sums, layout.k),
                            }
                        }
                    }
                }
            }
            for (row, sums) in rows.zip(sums.chunks_exact(layout.k)) {
                // SAFETY: rows `range` belong to this task alone.
                unsafe { out.slice(row * k..(row + 1) * k) }.copy_from_slice(&sums[..k]);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::testing::{close, cpu, on_every_isa, values};
    use crate::kernels::{Compute, IsaName};

    fn oracle([t, n, k]: [usize; 3], dy: &[f32], x: &[f32]) -> Vec<(f64, f64)> {
        let bound = (t as f64 / 8.0 + 16.0) * f64::from(f32::EPSILON);
        let element = |row: usize, column: usize| {
            let products = (0..t).map(|t| f64::from(dy[t * n + row]) * f64::from(x[t * k + column]));
            products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + bound * p.abs()))
        };
        (0..n * k).map(|i| element(i / k, i % k)).collect()
    }

    fn run(cpu: &Cpu, shape: [usize; 3], dy: &[f32], x: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; shape[1] * shape[2]];
        weight_gradient(cpu, shape, dy, x, &mut out);
        out
    }

    fn agrees_with_the_oracle(isa: IsaName) {
        let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
        let cases = (0usize..300, 1usize..210, 1usize..150, any::<u64>());
        proptest!(ProptestConfig::with_cases(60), |((t, n, k, seed) in cases)| {
            let (dy, x) = (values(seed, t * n), values(seed ^ 1, t * k));
            close(&run(&cpu, [t, n, k], &dy, &x), &oracle([t, n, k], &dy, &x))?;
        });
    }

    fn threads_change_nothing(isa: IsaName) {
        let (dy, x) = (values(1, 300 * 1000), values(2, 300 * 70));
        let bits = |threads| {
            let found = run(&cpu(isa, threads, Compute::F32)?, [300, 1000, 70], &dy, &x);
            Some(found.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        assert!(bits(1) == bits(2) && bits(2) == bits(3));
    }

    fn special_values_spread_to_what_depends_on_them(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        let (mut dy, x) = (values(1, 5 * 20), values(2, 5 * 33));
        dy[3 * 20 + 7] = f32::NAN;
        let found = run(&cpu, [5, 20, 33], &dy, &x);
        for (i, v) in found.iter().enumerate() {
            assert_eq!(v.is_nan(), i / 33 == 7, "{i}");
        }
    }

    fn bias_gradients_agree(isa: IsaName) {
        let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
        let cases = (1usize..200, 1usize..100, any::<u64>());
        proptest!(ProptestConfig::with_cases(40), |((t, n, seed) in cases)| {
            let dy = values(seed, t * n);
            let mut db = vec![f32::NAN; n];
            bias_gradient(&cpu, &dy, &mut db);
            close(&db, &oracle([t, n, 1], &dy, &vec![1.0; t]))?;
        });
    }

    on_every_isa!(
        bias_gradients_agree,
        agrees_with_the_oracle,
        threads_change_nothing,
        special_values_spread_to_what_depends_on_them
    );
}
