//! The innermost tile of every blocked product: of linear layers and of attention.

// Tiles are indexed by constants, several arrays at once: that is what keeps them in registers.
#![allow(clippy::needless_range_loop)]

use super::product::Product;
use crate::kernels::simd::Simd;

/// `sums[r][j] += sum_i w[r][i] * x[i][j]` for `R` rows and `C` vectors `j`, in registers.
///
/// `w[r][i]` is at `r * strides[0] + i * strides[1]`, `x` is `[steps, C * LANES]` without gaps, `sums` is `[R, sums_stride]`.
/// The products of one output are added in the order of `i`, beginning from zero; the total is added to `sums`.
///
/// # Safety
/// All three are valid for these sizes, and `sums` is not aliased.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn micro<S: Simd, P: Product, const R: usize, const C: usize>(
    s: S,
    product: P,
    steps: usize,
    w: *const f32,
    strides: [usize; 2],
    x: *const f32,
    sums: *mut f32,
    sums_stride: usize,
) {
    let mut acc = [[s.zero(); C]; R];
    let (mut x, mut w) = (x, w);
    for _ in 0..steps {
        // SAFETY: step `i < steps` of every row and of the panel exists. The pointers end at most one step behind the last.
        unsafe {
            let mut xs = [s.zero(); C];
            for c in 0..C {
                xs[c] = s.load(x.add(c * S::LANES));
            }
            for r in 0..R {
                let wv = s.splat(*w.add(r * strides[0]));
                for c in 0..C {
                    acc[r][c] = product.step(s, acc[r][c], wv, xs[c]);
                }
            }
            x = x.wrapping_add(C * S::LANES);
            w = w.wrapping_add(strides[1]);
        }
    }
    for (r, row) in acc.into_iter().enumerate() {
        for (c, v) in row.into_iter().enumerate() {
            // SAFETY: inside row `r` of the sums.
            unsafe {
                let place = sums.add(r * sums_stride + c * S::LANES);
                s.store(place, s.add(s.load(place), v));
            }
        }
    }
}
