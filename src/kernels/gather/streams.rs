//! The two loops of every gather kernel: products of listed rows with a vector, and listed rows added up.
//!
//! Both take [`STREAMS`] rows at a time, each a stream of its own, and ask for the place in the row that comes [`STREAMS`]
//! later while they read: the processor guesses what follows a row in memory, but not what follows it in a list. How rows are
//! grouped changes nothing in the arithmetic of any of them, so a result does not depend on where a group begins. Where weights
//! have scales, the products of those that share one are summed before they are multiplied with it, and a row that is added has its
//! factor multiplied with each of them.

// Tiles are indexed by constants, several arrays at once: that is what keeps them in registers.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use crate::kernels::simd::{Element, Simd};

/// Rows read at the same time.
pub(super) const STREAMS: usize = 8;

/// Calls `put(i, row(i) . x)` for the rows `0..n`, each of as many values as `x`. `row(i)` for `i >= n` is what is read afterwards; it is
/// only asked for, and only up to `n + STREAMS`.
#[inline(always)]
pub(super) fn dots<'a, S: Simd, W: Element>(
    s: S,
    n: usize,
    row: impl Fn(usize) -> Option<&'a [W]>,
    x: &[f32],
    mut put: impl FnMut(usize, f32),
) {
    let mut i = 0;
    while i < n {
        if i + STREAMS <= n {
            let products = dot_tile::<S, W, STREAMS>(s, &tile(i, &row), x);
            for (j, product) in products.into_iter().enumerate() {
                put(i + j, product);
            }
            i += STREAMS;
        } else {
            let [product] = dot_tile::<S, W, 1>(s, &tile(i, &row), x);
            put(i, product);
            i += 1;
        }
    }
}

/// `sum[c - columns.start] += factors[i] * row(i)[c]` for the rows of `factors` in their order; `row` as in [`dots`], rows of `cols`
/// values. The bits are the same however the columns are divided.
#[inline(always)]
pub(in crate::kernels) fn add_rows<'a, S: Simd, W: Element>(
    s: S,
    factors: &[f32],
    cols: usize,
    columns: Range<usize>,
    row: impl Fn(usize) -> Option<&'a [W]>,
    sum: &mut [f32],
) {
    assert!(columns.end <= cols && sum.len() == columns.len());
    let mut i = 0;
    while i < factors.len() {
        if let Some(factors) = factors[i..].first_chunk::<STREAMS>() {
            add_tile(s, &tile(i, &row), factors, cols, columns.start, sum);
            i += STREAMS;
        } else {
            add_tile(s, &tile(i, &row), &[factors[i]], cols, columns.start, sum);
            i += 1;
        }
    }
}

/// `R` rows, and for each the row to ask for meanwhile.
pub(super) struct Tile<'a, W, const R: usize> {
    pub(super) rows: [&'a [W]; R],
    pub(super) next: [*const W; R],
}

/// Rows `i .. i + R`, and the ones [`STREAMS`] behind each. Where nothing follows a row asks for itself, which costs nothing.
#[inline(always)]
fn tile<'a, W, const R: usize>(i: usize, row: &impl Fn(usize) -> Option<&'a [W]>) -> Tile<'a, W, R> {
    let mut tile = Tile { rows: [&[]; R], next: [std::ptr::null(); R] };
    for r in 0..R {
        tile.rows[r] = row(i + r).unwrap_or(&[]);
        tile.next[r] = row(i + STREAMS + r).unwrap_or(tile.rows[r]).as_ptr();
    }
    tile
}

/// The product of each row with `x`: one vector of sums along the row, the same additions as in a linear layer.
#[inline(always)]
pub(super) fn dot_tile<S: Simd, W: Element, const R: usize>(s: S, tile: &Tile<'_, W, R>, x: &[f32]) -> [f32; R] {
    let k = x.len();
    let mut rows = [std::ptr::null(); R];
    for r in 0..R {
        assert_eq!(tile.rows[r].len(), W::span(k));
        rows[r] = tile.rows[r].as_ptr();
    }
    let next = tile.next;
    let x = x.as_ptr();
    let mut acc = [s.zero(); R];
    let mut i = 0;
    while i < k {
        let (start, end) = (i, W::group_end(i, k));
        let mut sums = if W::SCALED { [s.zero(); R] } else { acc };
        if W::SCALED {
            for r in 0..R {
                W::prefetch(s, next[r], k, i);
            }
        }
        while i + S::LANES <= end {
            // SAFETY: `i + LANES <= k`, the length of `x` and of every row.
            unsafe {
                let xs = s.load(x.add(i));
                for r in 0..R {
                    if !W::SCALED {
                        W::prefetch(s, next[r], k, i);
                    }
                    sums[r] = s.fma(W::load(s, rows[r].add(i)), xs, sums[r]);
                }
            }
            i += S::LANES;
        }
        if i < end {
            // SAFETY: `end - i` values are left of the group in `x` and in every row.
            unsafe {
                let xs = s.load_part(x.add(i), end - i);
                for r in 0..R {
                    sums[r] = s.fma(W::load_part(s, rows[r].add(i), end - i), xs, sums[r]);
                }
            }
            i = end;
        }
        for r in 0..R {
            // SAFETY: every row is whole, and `start < k`.
            let scale = || s.splat(unsafe { W::scale(rows[r], k, start) });
            acc[r] = if W::SCALED { s.fma(sums[r], scale(), acc[r]) } else { sums[r] };
        }
    }
    let mut products = [0.0; R];
    for r in 0..R {
        products[r] = s.sum(acc[r]);
    }
    products
}

/// `sum += factors[0] * rows[0]`, then `factors[1] * rows[1]`, and so on, for the columns from `first` on of rows of `cols` values.
#[inline(always)]
fn add_tile<S: Simd, W: Element, const R: usize>(
    s: S,
    tile: &Tile<'_, W, R>,
    factors: &[f32; R],
    cols: usize,
    first: usize,
    sum: &mut [f32],
) {
    let last = first + sum.len();
    let mut rows = [std::ptr::null(); R];
    let mut zs = [s.zero(); R];
    for r in 0..R {
        assert_eq!(tile.rows[r].len(), W::span(cols));
        rows[r] = tile.rows[r].as_ptr();
        zs[r] = s.splat(factors[r]);
    }
    let next = tile.next;
    let sum = sum.as_mut_ptr().wrapping_sub(first);
    let mut i = first;
    while i < last {
        let end = last.min(W::group_end(i, cols));
        if W::SCALED {
            for r in 0..R {
                W::prefetch(s, next[r], cols, i);
                // SAFETY: every row is whole, and `i < cols`.
                zs[r] = s.splat(factors[r] * unsafe { W::scale(rows[r], cols, i) });
            }
        }
        while i + S::LANES <= end {
            // SAFETY: `i + LANES <= last`, so values of `sum` from `i - first` on and of every row from `i` on.
            unsafe {
                let mut acc = s.load(sum.wrapping_add(i));
                for r in 0..R {
                    if !W::SCALED {
                        W::prefetch(s, next[r], cols, i);
                    }
                    acc = s.fma(W::load(s, rows[r].add(i)), zs[r], acc);
                }
                s.store(sum.wrapping_add(i), acc);
            }
            i += S::LANES;
        }
        if i < end {
            // SAFETY: `end - i` values are left of the group in `sum` and in every row.
            unsafe {
                let mut acc = s.load_part(sum.wrapping_add(i), end - i);
                for r in 0..R {
                    acc = s.fma(W::load_part(s, rows[r].add(i), end - i), zs[r], acc);
                }
                s.store_part(sum.wrapping_add(i), acc, end - i);
            }
            i = end;
        }
    }
}
