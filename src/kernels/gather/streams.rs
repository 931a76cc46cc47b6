//! The two loops of every gather kernel: products of listed rows with a vector, and listed rows added up.
//!
//! Both take [`STREAMS`] rows at a time, each a stream of its own, and ask for the place in the row that comes [`STREAMS`]
//! later while they read: the processor guesses what follows a row in memory, but not what follows it in a list. How rows are
//! grouped changes nothing in the arithmetic of any of them, so a result does not depend on where a group begins.

// Tiles are indexed by constants, several arrays at once: that is what keeps them in registers.
#![allow(clippy::needless_range_loop)]

use crate::kernels::simd::{Element, Simd};

/// Rows read at the same time.
pub(super) const STREAMS: usize = 8;

/// Calls `put(i, row(i) . x)` for the rows `0..n`, each as long as `x`. `row(i)` for `i >= n` is what is read afterwards; it is
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

/// `sum[c] += factors[i] * row(i)[c]` for the rows of `factors` in their order; `row` as in [`dots`].
#[inline(always)]
pub(in crate::kernels) fn add_rows<'a, S: Simd, W: Element>(
    s: S,
    factors: &[f32],
    row: impl Fn(usize) -> Option<&'a [W]>,
    sum: &mut [f32],
) {
    let mut i = 0;
    while i < factors.len() {
        if let Some(factors) = factors[i..].first_chunk::<STREAMS>() {
            add_tile(s, &tile(i, &row), factors, sum);
            i += STREAMS;
        } else {
            add_tile(s, &tile(i, &row), &[factors[i]], sum);
            i += 1;
        }
    }
}

/// `R` rows, and for each the row to ask for meanwhile.
struct Tile<'a, W, const R: usize> {
    rows: [&'a [W]; R],
    next: [*const W; R],
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
fn dot_tile<S: Simd, W: Element, const R: usize>(s: S, tile: &Tile<'_, W, R>, x: &[f32]) -> [f32; R] {
    let k = x.len();
    let mut rows = [std::ptr::null(); R];
    for r in 0..R {
        assert_eq!(tile.rows[r].len(), k);
        rows[r] = tile.rows[r].as_ptr();
    }
    let next = tile.next;
    let x = x.as_ptr();
    let mut acc = [s.zero(); R];
    let whole = k / S::LANES * S::LANES;
    let mut i = 0;
    while i < whole {
        // SAFETY: `i + LANES <= k`, the length of `x` and of every row.
        unsafe {
            let xs = s.load(x.add(i));
            for r in 0..R {
                s.prefetch(next[r].wrapping_add(i));
                acc[r] = s.fma(W::load(s, rows[r].add(i)), xs, acc[r]);
            }
        }
        i += S::LANES;
    }
    if whole < k {
        // SAFETY: `k - whole` values are left in `x` and in every row.
        unsafe {
            let xs = s.load_part(x.add(whole), k - whole);
            for r in 0..R {
                acc[r] = s.fma(W::load_part(s, rows[r].add(whole), k - whole), xs, acc[r]);
            }
        }
    }
    let mut products = [0.0; R];
    for r in 0..R {
        products[r] = s.sum(acc[r]);
    }
    products
}

/// `sum += factors[0] * rows[0]`, then `factors[1] * rows[1]`, and so on.
#[inline(always)]
fn add_tile<S: Simd, W: Element, const R: usize>(s: S, tile: &Tile<'_, W, R>, factors: &[f32; R], sum: &mut [f32]) {
    let k = sum.len();
    let mut rows = [std::ptr::null(); R];
    let mut zs = [s.zero(); R];
    for r in 0..R {
        assert_eq!(tile.rows[r].len(), k);
        rows[r] = tile.rows[r].as_ptr();
        zs[r] = s.splat(factors[r]);
    }
    let next = tile.next;
    let sum = sum.as_mut_ptr();
    let whole = k / S::LANES * S::LANES;
    let mut i = 0;
    while i < whole {
        // SAFETY: `i + LANES <= k`, the length of `sum` and of every row.
        unsafe {
            let mut acc = s.load(sum.add(i));
            for r in 0..R {
                s.prefetch(next[r].wrapping_add(i));
                acc = s.fma(W::load(s, rows[r].add(i)), zs[r], acc);
            }
            s.store(sum.add(i), acc);
        }
        i += S::LANES;
    }
    if whole < k {
        // SAFETY: `k - whole` values are left in `sum` and in every row.
        unsafe {
            let mut acc = s.load_part(sum.add(whole), k - whole);
            for r in 0..R {
                acc = s.fma(W::load_part(s, rows[r].add(whole), k - whole), zs[r], acc);
            }
            s.store_part(sum.add(whole), acc, k - whole);
        }
    }
}
