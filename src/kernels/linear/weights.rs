//! Which weight stands where in the blocked product: the sums run along the rows of a matrix, or down its columns.
//!
//! The product itself only knows tiles, [`TILE_ROWS`] outputs by [`K_BLOCK`] words, and where a word of a tile is. What differs
//! is how many tiles are best made at once: along rows one tile is six contiguous pieces; down columns a tile is a few bytes of
//! many rows, so the tiles beside it, which share the cache lines, are made with it.

use std::ops::Range;

use super::gemm::{K_BLOCK, ROW_BLOCK, TILE_ROWS};
use super::product::Product;
use crate::kernels::simd::{Element, Simd};

/// The weights of one product, `weight(output, k)`.
pub(super) trait Weights: Copy + Send + Sync {
    /// Outputs whose weights are widened together, a multiple of [`TILE_ROWS`].
    const GROUP: usize;

    /// Distance from output to output and from word to word within a tile.
    const STRIDES: [usize; 2];

    /// Makes the words of `outputs`, at most [`Weights::GROUP`], for the values `along` of the sums, at most [`K_BLOCK`] words.
    ///
    /// `tiles` holds tiles of `TILE_ROWS * K_BLOCK` words, one for each [`TILE_ROWS`] outputs; in the last one outputs beyond
    /// the end are zero. Asks for the weights that come next.
    fn widen<S: Simd, P: Product>(
        self,
        s: S,
        product: P,
        outputs: Range<usize>,
        along: Range<usize>,
        tiles: &mut [f32],
    );
}

/// `weight(n, k) = w[n][k]`.
#[derive(Clone, Copy)]
pub(super) struct ByRows<'a, W> {
    /// `[n, k]`
    pub(super) w: &'a [W],
    pub(super) k: usize,
}

impl<W: Element> Weights for ByRows<'_, W> {
    const GROUP: usize = TILE_ROWS;
    const STRIDES: [usize; 2] = [K_BLOCK, 1];

    #[inline(always)]
    fn widen<S: Simd, P: Product>(
        self,
        s: S,
        product: P,
        outputs: Range<usize>,
        along: Range<usize>,
        tiles: &mut [f32],
    ) {
        let words = along.len().div_ceil(P::PER_WORD);
        for (i, words) in tiles.chunks_exact_mut(K_BLOCK).map(|row| &mut row[..words]).enumerate() {
            match outputs.start + i {
                row if row < outputs.end => product.words(s, &self.w[row * self.k..][along.clone()], words),
                _ => words.fill(0.0),
            }
            // The pieces of successive rows lie too far apart for the processor to guess the next.
            if let Some(piece) = self.w.get((outputs.start + i + TILE_ROWS) * self.k..) {
                prefetch(s, piece, along.clone());
            }
        }
    }
}

/// `weight(k, n) = w[n][k]`: the product with the transposed matrix, whose sums run over `n`.
#[derive(Clone, Copy)]
pub(super) struct ByColumns<'a, W> {
    /// `[n, k]`
    pub(super) w: &'a [W],
    pub(super) k: usize,
}

impl<W: Element> Weights for ByColumns<'_, W> {
    const GROUP: usize = ROW_BLOCK;
    const STRIDES: [usize; 2] = [1, TILE_ROWS];

    #[inline(always)]
    fn widen<S: Simd, P: Product>(
        self,
        s: S,
        product: P,
        outputs: Range<usize>,
        along: Range<usize>,
        tiles: &mut [f32],
    ) {
        // Outputs beyond the end stay zero.
        let mut words = [0.0; ROW_BLOCK];
        let count = outputs.len().div_ceil(TILE_ROWS);
        let row = |n: usize| if n < along.end { &self.w[n * self.k..][outputs.clone()] } else { &[] };
        for (i, n) in along.clone().step_by(P::PER_WORD).enumerate() {
            product.words_across(s, [row(n), row(n + 1)], &mut words[..outputs.len()]);
            for (tile, words) in
                tiles.chunks_exact_mut(TILE_ROWS * K_BLOCK).zip(words.chunks_exact(TILE_ROWS)).take(count)
            {
                tile[i * TILE_ROWS..][..TILE_ROWS].copy_from_slice(words);
            }
            // The same columns of the rows of the next block.
            for next in n..along.end.min(n + P::PER_WORD) {
                if let Some(piece) = self.w.get((next + K_BLOCK * P::PER_WORD) * self.k..) {
                    prefetch(s, piece, outputs.clone());
                }
            }
        }
    }
}

/// Asks for the values `range` of `row`, if it has as many.
#[inline(always)]
fn prefetch<S: Simd, W: Element>(s: S, row: &[W], range: Range<usize>) {
    for line in row.get(range).unwrap_or_default().chunks(64 / size_of::<W>()) {
        s.prefetch(line.as_ptr());
    }
}
