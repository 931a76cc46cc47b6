//! Which weight stands where in the blocked product: the sums run along the rows of a matrix, or down its columns.
//!
//! The product itself only knows tiles, [`TILE_ROWS`] outputs by [`K_BLOCK`] words, and where a word of a tile is. What differs
//! is how many tiles are best made at once: along rows one tile is six contiguous pieces; down columns a tile is a few bytes of
//! many rows, so the tiles beside it, which share the cache lines, are made with it. Rows may lie in records ([`RowsOf`]). Weights
//! with scales are widened to `f32` first, piece by piece in the nearest cache ([`Words`]): each is then used for many tokens.

use std::ops::Range;

use shadowllm_weights::DType;

use super::gemm::{K_BLOCK, ROW_BLOCK, TILE_ROWS};
use super::product::Product;
use crate::kernels::simd::{Element, Plain, Simd, transpose};
use crate::tensor::{Int8, RowsOf};

/// The weights of one product, `weight(output, k)`.
pub(super) trait Weights: Copy + Send + Sync {
    /// How the weights are stored.
    const DTYPE: DType;

    /// Outputs whose weights are widened together, a multiple of [`TILE_ROWS`].
    const GROUP: usize;

    /// Distance from output to output and from word to word within a tile.
    const STRIDES: [usize; 2];

    /// Whether the weights of one output lie apart and those of neighbouring outputs beside each other: then memory is read in
    /// longer pieces the more outputs are made together.
    const SCATTERED: bool;

    /// Where values stand on their way into words. Made once for a whole product: to clear it takes as long as to use it.
    type Room;

    fn room() -> Self::Room;

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
        room: &mut Self::Room,
        tiles: &mut [f32],
    );

    /// Makes the words of `outputs`, at most [`MOST_OUTPUTS`], row by row, whichever way the matrix lies; words behind the end of
    /// the sums and outputs behind the last are zero.
    fn rows<S: Simd, P: Product>(
        self,
        s: S,
        product: P,
        outputs: Range<usize>,
        along: Range<usize>,
        room: &mut Self::Room,
        tile: Tile<'_>,
    );
}

/// Words of some outputs, a row for each.
pub(super) struct Tile<'a> {
    pub(super) values: &'a mut [f32],
    /// Distance from row to row.
    pub(super) row: usize,
    /// Words at the beginning of each row that are to be filled.
    pub(super) words: usize,
}

/// Most outputs whose words are made at once.
const MOST_OUTPUTS: usize = 256;

/// Most values of a row that are made into words at once: those of a block of [`K_BLOCK`] words, and of one of the AMX product.
const MOST_VALUES: usize = 640;

const _: () = assert!(MOST_VALUES >= 2 * K_BLOCK && MOST_OUTPUTS >= ROW_BLOCK && MOST_VALUES >= 2 * MOST_OUTPUTS);

/// A format whose rows can be made into the words of a product.
pub(crate) trait Words: Element {
    /// Where values stand on their way into words.
    type Room;

    fn room() -> Self::Room;

    /// Makes the words of values `range` of a row of `cols` values, as [`Product::words`] does.
    fn words<S: Simd, P: Product>(
        s: S,
        product: P,
        row: &[Self],
        cols: usize,
        range: Range<usize>,
        room: &mut Self::Room,
        dst: &mut [f32],
    );

    /// Makes words across two rows, as [`Product::words_across`] does. A second row that does not exist is empty.
    fn words_across<S: Simd, P: Product>(
        s: S,
        product: P,
        rows: [&[Self]; 2],
        cols: usize,
        range: Range<usize>,
        room: &mut Self::Room,
        dst: &mut [f32],
    );
}

impl<W: Plain> Words for W {
    type Room = ();

    fn room() {}

    #[inline(always)]
    fn words<S: Simd, P: Product>(
        s: S,
        product: P,
        row: &[W],
        _cols: usize,
        range: Range<usize>,
        (): &mut (),
        dst: &mut [f32],
    ) {
        product.words(s, &row[range], dst);
    }

    #[inline(always)]
    fn words_across<S: Simd, P: Product>(
        s: S,
        product: P,
        [low, high]: [&[W]; 2],
        _cols: usize,
        range: Range<usize>,
        (): &mut (),
        dst: &mut [f32],
    ) {
        let high = if high.is_empty() { high } else { &high[range.clone()] };
        product.words_across(s, [&low[range], high], dst);
    }
}

impl Words for Int8 {
    type Room = [f32; MOST_VALUES];

    fn room() -> Self::Room {
        [0.0; MOST_VALUES]
    }

    #[inline(always)]
    fn words<S: Simd, P: Product>(
        s: S,
        product: P,
        row: &[Int8],
        cols: usize,
        range: Range<usize>,
        room: &mut Self::Room,
        dst: &mut [f32],
    ) {
        let values = &mut room[..range.len()];
        Int8::widen_row(s, row, cols, range.start, values);
        product.words(s, values, dst);
    }

    #[inline(always)]
    fn words_across<S: Simd, P: Product>(
        s: S,
        product: P,
        rows: [&[Int8]; 2],
        cols: usize,
        range: Range<usize>,
        room: &mut Self::Room,
        dst: &mut [f32],
    ) {
        let (low, high) = room.split_at_mut(MOST_OUTPUTS);
        let (low, high) = (&mut low[..range.len()], &mut high[..range.len()]);
        Int8::widen_row(s, rows[0], cols, range.start, low);
        match rows[1] {
            [] => product.words_across(s, [low, &[]], dst),
            row => {
                Int8::widen_row(s, row, cols, range.start, high);
                product.words_across(s, [low, high], dst);
            }
        }
    }
}

/// `weight(n, k) = w[n][k]`.
#[derive(Clone, Copy)]
pub(super) struct ByRows<'a, W> {
    /// `[n, k]`
    pub(super) w: RowsOf<'a, W>,
    /// `k`
    pub(super) cols: usize,
}

impl<W: Words> Weights for ByRows<'_, W> {
    const DTYPE: DType = W::DTYPE;
    const GROUP: usize = TILE_ROWS;
    const SCATTERED: bool = false;
    const STRIDES: [usize; 2] = [K_BLOCK, 1];

    type Room = W::Room;

    fn room() -> Self::Room {
        W::room()
    }

    #[inline(always)]
    fn widen<S: Simd, P: Product>(
        self,
        s: S,
        product: P,
        outputs: Range<usize>,
        along: Range<usize>,
        room: &mut Self::Room,
        tiles: &mut [f32],
    ) {
        let words = along.len().div_ceil(P::PER_WORD);
        let tile = Tile { values: &mut tiles[..TILE_ROWS * K_BLOCK], row: K_BLOCK, words };
        self.rows(s, product, outputs, along, room, tile);
    }

    #[inline(always)]
    fn rows<S: Simd, P: Product>(
        self,
        s: S,
        product: P,
        outputs: Range<usize>,
        along: Range<usize>,
        room: &mut Self::Room,
        Tile { values, row, words }: Tile<'_>,
    ) {
        let RowsOf { elements, layout, span } = self.w;
        let (mut starts, mut next) = (layout.starts(outputs.start), layout.starts(outputs.start + values.len() / row));
        let real = along.len().div_ceil(P::PER_WORD);
        for (i, row) in values.chunks_exact_mut(row).map(|row| &mut row[..words]).enumerate() {
            let start = starts.advance();
            match outputs.start + i < outputs.end {
                true => {
                    W::words(s, product, &elements[start..][..span], self.cols, along.clone(), room, &mut row[..real]);
                    row[real..].fill(0.0);
                }
                false => row.fill(0.0),
            }
            // The pieces of successive rows lie too far apart for the processor to guess the next.
            prefetch(s, elements, next.advance(), along.clone());
        }
    }
}

/// Words along `K` that are turned at once, so that every output's are a cache line.
const STEP: usize = 16;

/// `weight(k, n) = w[n][k]`: the product with the transposed matrix, whose sums run over `n`.
#[derive(Clone, Copy)]
pub(super) struct ByColumns<'a, W> {
    /// `[n, k]`
    pub(super) w: RowsOf<'a, W>,
    /// `k`
    pub(super) cols: usize,
}

impl<W: Words> Weights for ByColumns<'_, W> {
    const DTYPE: DType = W::DTYPE;
    const GROUP: usize = ROW_BLOCK;
    const SCATTERED: bool = true;
    const STRIDES: [usize; 2] = [1, TILE_ROWS];

    type Room = (W::Room, [f32; STEP * MOST_OUTPUTS]);

    fn room() -> Self::Room {
        (W::room(), [0.0; STEP * MOST_OUTPUTS])
    }

    #[inline(always)]
    fn widen<S: Simd, P: Product>(
        self,
        s: S,
        product: P,
        outputs: Range<usize>,
        along: Range<usize>,
        (room, _): &mut Self::Room,
        tiles: &mut [f32],
    ) {
        // Outputs beyond the end stay zero.
        let mut words = [0.0; ROW_BLOCK];
        let count = outputs.len().div_ceil(TILE_ROWS);
        let RowsOf { elements, layout, span } = self.w;
        // The rows of this block, and those of the next.
        let (mut starts, mut later) = (layout.starts(along.start), layout.starts(along.start + K_BLOCK * P::PER_WORD));
        for (i, n) in along.clone().step_by(P::PER_WORD).enumerate() {
            let mut rows: [&[W]; 2] = [&[]; 2];
            for row in &mut rows[..P::PER_WORD.min(along.end - n)] {
                *row = &elements[starts.advance()..][..span];
                prefetch(s, elements, later.advance(), outputs.clone());
            }
            W::words_across(s, product, rows, self.cols, outputs.clone(), room, &mut words[..outputs.len()]);
            for (tile, words) in
                tiles.chunks_exact_mut(TILE_ROWS * K_BLOCK).zip(words.chunks_exact(TILE_ROWS)).take(count)
            {
                tile[i * TILE_ROWS..][..TILE_ROWS].copy_from_slice(words);
            }
        }
    }

    #[inline(always)]
    fn rows<S: Simd, P: Product>(
        self,
        s: S,
        product: P,
        outputs: Range<usize>,
        along: Range<usize>,
        (room, across): &mut Self::Room,
        Tile { values, row, words }: Tile<'_>,
    ) {
        let RowsOf { elements, layout, span } = self.w;
        let (count, width) = (outputs.len(), values.len() / row);
        assert!(count <= width && width <= MOST_OUTPUTS && words <= row);
        // These rows, and those that are turned two steps later.
        let (mut starts, mut later) = (layout.starts(along.start), layout.starts(along.start + 2 * STEP * P::PER_WORD));
        for first in (0..words).step_by(STEP) {
            let step = STEP.min(words - first);
            for (i, line) in across.chunks_exact_mut(width).take(step).enumerate() {
                let n = along.start + (first + i) * P::PER_WORD;
                let mut rows: [&[W]; 2] = [&[]; 2];
                for row in &mut rows[..P::PER_WORD.min(along.end.saturating_sub(n))] {
                    *row = &elements[starts.advance()..][..span];
                    prefetch(s, elements, later.advance(), outputs.clone());
                }
                match n < along.end {
                    true => {
                        W::words_across(s, product, rows, self.cols, outputs.clone(), room, &mut line[..count]);
                        line[count..].fill(0.0);
                    }
                    false => line.fill(0.0),
                }
            }
            // SAFETY: `across` holds `step` lines of `width` words; the tile `width` rows of `row` words, of which `step` words follow
            // `first`.
            unsafe { transpose(s, across.as_ptr(), width, [step, width], values.as_mut_ptr().add(first), row) };
        }
    }
}

/// Asks for the values `range` of the row that begins at `start`, if there is one.
#[inline(always)]
fn prefetch<S: Simd, W: Element>(s: S, elements: &[W], start: usize, range: Range<usize>) {
    let row = elements.get(start..).and_then(|rest| rest.get(range));
    for line in row.unwrap_or_default().chunks(64 / size_of::<W>()) {
        s.prefetch(line.as_ptr());
    }
}
