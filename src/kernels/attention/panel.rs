//! Panels: rows of queries or keys side by side, so that vectors run along the rows and nothing is summed across lanes.

use crate::kernels::isa::Geometry;
use crate::kernels::linear::{Exact, micro};
use crate::kernels::simd::{Simd, transpose};

/// Rows of the other operand taken together.
pub(super) const BLOCK: usize = 64;
/// Vectors of rows in a full panel.
pub(super) const VECTORS: usize = 3;

/// Rows of a full panel.
pub(super) fn panel_width(geometry: Geometry) -> usize {
    VECTORS * geometry.lanes
}

/// Packs `row(lane) * factor` for the lanes `0..width` into `panel` `[d, width]`, each row `d` long. `rows` is room for 8 rows.
#[inline(always)]
pub(super) fn pack<'a, S: Simd>(
    s: S,
    row: impl Fn(usize) -> &'a [f32],
    factor: f32,
    rows: &mut [f32],
    panel: &mut [f32],
    [d, width]: [usize; 2],
) {
    assert!(rows.len() >= 8 * d && panel.len() >= d * width && width.is_multiple_of(8));
    let factor = s.splat(factor);
    for eight in (0..width).step_by(8) {
        for (i, into) in rows.chunks_exact_mut(d).take(8).enumerate() {
            let row = row(eight + i);
            assert_eq!(row.len(), d);
            for (into, row) in into.chunks_mut(S::LANES).zip(row.chunks(S::LANES)) {
                let v = s.mul(s.load_slice(row), factor);
                s.store_slice(into, v);
            }
        }
        // SAFETY: `rows` holds 8 rows of `d`, the panel `d` rows of `width`, a multiple of 8.
        unsafe { transpose(s, rows.as_ptr(), d, [8, d], panel[eight..].as_mut_ptr(), width) };
    }
}

/// `sums[r][..] += sum_i w[r][i] * x[i][..]` for `[rows, steps]` of `w` with the given strides; rows of `x` and `sums` are `C`
/// vectors.
#[inline(always)]
pub(super) fn product<S: Simd, const C: usize>(
    s: S,
    [rows, steps]: [usize; 2],
    w: &[f32],
    strides: [usize; 2],
    x: &[f32],
    sums: &mut [f32],
) {
    let width = C * S::LANES;
    if rows == 0 || steps == 0 {
        return;
    }
    assert!((rows - 1) * strides[0] + (steps - 1) * strides[1] < w.len());
    assert!(x.len() == steps * width && sums.len() == rows * width);
    let mut r = 0;
    while S::REGISTERS >= 32 && r + 8 <= rows {
        let (w, sums) = (w[r * strides[0]..].as_ptr(), sums[r * width..].as_mut_ptr());
        // SAFETY: rows `r .. r + 8` exist in `w` and `sums`; their lengths were checked above.
        unsafe { micro::<S, Exact, 8, C>(s, Exact, steps, w, strides, x.as_ptr(), sums, width) };
        r += 8;
    }
    while r + 4 <= rows {
        let (w, sums) = (w[r * strides[0]..].as_ptr(), sums[r * width..].as_mut_ptr());
        // SAFETY: as above.
        unsafe { micro::<S, Exact, 4, C>(s, Exact, steps, w, strides, x.as_ptr(), sums, width) };
        r += 4;
    }
    while r < rows {
        let (w, sums) = (w[r * strides[0]..].as_ptr(), sums[r * width..].as_mut_ptr());
        // SAFETY: as above.
        unsafe { micro::<S, Exact, 1, C>(s, Exact, steps, w, strides, x.as_ptr(), sums, width) };
        r += 1;
    }
}
