//! Products of listed rows for several sequences at once: every row that any of them lists is read from memory once, and each sequence
//! gets the bits that it gets alone.
//!
//! Rows come group by group ([`Group`](super::group::Group)), and there are two ways to multiply those of one.
//!
//! * Where a row is listed by many sequences it is widened once for all of them: a tile is a few rows by all sequences that list any of them,
//!   and what nobody asked for is thrown away. Of inputs and rows it takes a few columns at a time, so that the inputs of all sequences
//!   stay in the nearest cache; sums wait in between, which changes nothing in them: additions of one product follow the row.
//! * Where it is not, that would be waste. Each sequence multiplies its own rows, as alone, and what others have read is in a cache.

// Tiles are indexed by constants, several arrays at once: that is what keeps them in registers.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use shadowllm_weights::INT8_GROUP;

use super::group::{Bits, MOST_SEQUENCES, MOST_UNITS, Rows, below, union};
use super::streams::{STREAMS, Tile, dot_tile};
use crate::kernels::simd::{Element, Simd};

/// Columns of a tile: of eight inputs half of a nearest cache of 32 KiB.
const COLUMNS: usize = 512;

const _: () = assert!(COLUMNS.is_multiple_of(INT8_GROUP));

/// Lanes of the longest vector.
const LANES: usize = 16;

/// Values of scratch memory that [`Products`] takes: a vector of sums for each row of a tile and each sequence.
pub(super) const PRODUCTS_SCRATCH: usize = MOST_SEQUENCES * MOST_UNITS.next_multiple_of(3) * LANES;

/// The products of rows of a group with the inputs of the sequences.
pub(super) struct Products<'a> {
    /// `[sequences, d]`
    x: &'a [f32],
    d: usize,
    /// `[PRODUCTS_SCRATCH]`
    sums: &'a mut [f32],
}

impl<'a> Products<'a> {
    /// Of inputs `x` `[sequences, d]`; `sums` has [`PRODUCTS_SCRATCH`] values.
    #[inline(always)]
    pub(super) fn new(x: &'a [f32], d: usize, sums: &'a mut [f32]) -> Self {
        Products { x, d, sums }
    }

    /// Calls `put(sequence, j, row . x)` for the `j`-th unit that `masks` has for a sequence. `rows` are those of the units that any has,
    /// `later` those that are read afterwards. Each product has the bits of [`dots`](super::streams::dots).
    #[inline(always)]
    pub(super) fn run<S: Simd, W: Element>(
        &mut self,
        s: S,
        masks: &[u64; MOST_SEQUENCES],
        rows: &Rows<'_, W>,
        later: &Rows<'_, W>,
        put: impl FnMut(usize, usize, f32),
    ) {
        if W::SCALED || S::REGISTERS <= 16 {
            self.best::<S, W, 1>(s, masks, rows, later, put);
        } else {
            self.best::<S, W, 3>(s, masks, rows, later, put);
        }
    }

    /// The faster way, with tiles of `R` rows.
    #[inline(always)]
    fn best<S: Simd, W: Element, const R: usize>(
        &mut self,
        s: S,
        masks: &[u64; MOST_SEQUENCES],
        rows: &Rows<'_, W>,
        later: &Rows<'_, W>,
        put: impl FnMut(usize, usize, f32),
    ) {
        let tiles = Tiles::new(masks, R);
        let entries: usize = masks.iter().map(|mask| mask.count_ones() as usize).sum();
        let products: usize = tiles.counts.iter().map(|count| R * count).sum();
        // Widening takes two operations, a product one. Those of tiles take about a quarter longer, by their sums in between.
        if 5 * (2 * rows.len() + products) <= 4 * 3 * entries {
            self.together::<S, W, R>(s, masks, &tiles, rows, later, put);
        } else {
            self.each(s, masks, rows, later, put);
        }
    }

    /// Sequence by sequence.
    #[inline(always)]
    fn each<S: Simd, W: Element>(
        &self,
        s: S,
        masks: &[u64; MOST_SEQUENCES],
        rows: &Rows<'_, W>,
        later: &Rows<'_, W>,
        mut put: impl FnMut(usize, usize, f32),
    ) {
        let all = union(masks);
        // Every entry asks for one of the rows to come, as long as there are some.
        let mut asked = 0;
        for (sequence, &mask) in masks.iter().enumerate() {
            let (mut own, mut count) = ([&[][..]; MOST_UNITS], 0);
            for bit in Bits(mask) {
                own[count] = rows.get(below(all, bit));
                count += 1;
            }
            let mut done = 0;
            while done < count {
                // Tiles of about the same height: low ones wait for each addition.
                let height = (count - done).div_ceil((count - done).div_ceil(STREAMS));
                let x = &self.x[sequence * self.d..][..self.d];
                macro_rules! tile {
                    ($($R:literal),*) => {
                        match height {
                            $($R => {
                                let mut tile = Tile { rows: [&[][..]; $R], next: [std::ptr::null(); $R] };
                                for r in 0..$R {
                                    tile.rows[r] = own[done + r];
                                    tile.next[r] = later.start(asked + r, own[done + r]);
                                }
                                let products = dot_tile(s, &tile, x);
                                for r in 0..$R {
                                    put(sequence, done + r, products[r]);
                                }
                            })*
                            _ => unreachable!("tiles have up to {STREAMS} rows"),
                        }
                    };
                }
                tile!(1, 2, 3, 4, 5, 6, 7, 8);
                asked += height;
                done += height;
            }
        }
    }

    /// `R` rows at a time, for all sequences that have any of them.
    #[inline(always)]
    fn together<S: Simd, W: Element, const R: usize>(
        &mut self,
        s: S,
        masks: &[u64; MOST_SEQUENCES],
        tiles: &Tiles,
        rows: &Rows<'_, W>,
        later: &Rows<'_, W>,
        mut put: impl FnMut(usize, usize, f32),
    ) {
        let d = self.d;
        let Tiles { bits, members, counts } = tiles;
        let tiles = rows.len().div_ceil(R);
        let of_tile = R * MOST_SEQUENCES * S::LANES;
        let sums = &mut self.sums[..tiles * of_tile];
        sums.fill(0.0);
        for start in (0..d).step_by(COLUMNS) {
            let columns = start..d.min(start + COLUMNS);
            for (tile, sums) in sums.chunks_exact_mut(of_tile).enumerate() {
                // The last tile may repeat a row.
                let (mut own, mut next) = ([&[][..]; R], [std::ptr::null(); R]);
                for r in 0..R {
                    own[r] = rows.get((tile * R + r).min(rows.len() - 1));
                    next[r] = later.start(tile * R + r, own[r]);
                }
                let mut xs = [self.x.as_ptr(); MOST_SEQUENCES];
                for m in 0..counts[tile] {
                    xs[m] = self.x[members[tile][m] * d..][..d].as_ptr();
                }
                let (rows, columns) = (Tile { rows: own, next }, columns.clone());
                macro_rules! tile {
                    ($($M:literal),*) => {
                        match counts[tile] {
                            // SAFETY: the inputs are slices of `d` values, the columns end there at most.
                            $($M => unsafe { shared_tile::<S, W, R, $M>(s, &rows, &xs, d, columns, sums) },)*
                            _ => unreachable!("there are up to {MOST_SEQUENCES} sequences"),
                        }
                    };
                }
                tile!(1, 2, 3, 4, 5, 6, 7, 8);
            }
        }
        for (tile, sums) in sums.chunks_exact(of_tile).enumerate() {
            let count = counts[tile];
            for r in 0..R.min(rows.len() - tile * R) {
                let bit = bits[tile * R + r];
                for (m, &sequence) in members[tile][..count].iter().enumerate() {
                    if masks[sequence] >> bit & 1 == 1 {
                        let sum = s.load_slice(&sums[(r * count + m) * S::LANES..]);
                        put(sequence, below(masks[sequence], bit), s.sum(sum));
                    }
                }
            }
        }
    }
}

/// Units of a group, some at a time.
struct Tiles {
    /// The units that any sequence has, ascending.
    bits: [usize; MOST_UNITS],
    /// Of each tile the sequences that have any of its units, and how many.
    members: [[usize; MOST_SEQUENCES]; MOST_UNITS],
    counts: [usize; MOST_UNITS],
}

impl Tiles {
    /// Of `height` units.
    #[inline(always)]
    fn new(masks: &[u64; MOST_SEQUENCES], height: usize) -> Self {
        let mut tiles =
            Tiles { bits: [0; MOST_UNITS], members: [[0; MOST_SEQUENCES]; MOST_UNITS], counts: [0; MOST_UNITS] };
        let (mut of, mut left) = ([0; MOST_UNITS], 0);
        for (i, bit) in Bits(union(masks)).enumerate() {
            tiles.bits[i] = bit;
            of[i / height] |= 1u64 << bit;
            left = i / height + 1;
        }
        for (tile, of) in of[..left].iter().enumerate() {
            for (sequence, mask) in masks.iter().enumerate() {
                if mask & of != 0 {
                    tiles.members[tile][tiles.counts[tile]] = sequence;
                    tiles.counts[tile] += 1;
                }
            }
        }
        tiles
    }
}

/// Adds the products of some columns of `R` rows and `M` inputs of `d` values to `sums` `[R, M, LANES]`.
///
/// # Safety
/// The first `M` of `xs` are valid for reading `d` values, and `columns.end <= d`.
#[inline(always)]
unsafe fn shared_tile<S: Simd, W: Element, const R: usize, const M: usize>(
    s: S,
    tile: &Tile<'_, W, R>,
    xs: &[*const f32; MOST_SEQUENCES],
    d: usize,
    columns: Range<usize>,
    sums: &mut [f32],
) {
    let mut rows = [std::ptr::null(); R];
    let mut acc = [[s.zero(); M]; R];
    for r in 0..R {
        assert_eq!(tile.rows[r].len(), W::span(d));
        rows[r] = tile.rows[r].as_ptr();
        for m in 0..M {
            acc[r][m] = s.load_slice(&sums[(r * M + m) * S::LANES..]);
        }
    }
    let next = tile.next;
    let mut i = columns.start;
    while i < columns.end {
        let (start, end) = (i, W::group_end(i, d).min(columns.end));
        let mut part = if W::SCALED { [[s.zero(); M]; R] } else { acc };
        while i + S::LANES <= end {
            let mut w = [s.zero(); R];
            for r in 0..R {
                W::prefetch(s, next[r], d, i);
                // SAFETY: `i + LANES <= d`, the length of every row.
                w[r] = unsafe { W::load(s, rows[r].add(i)) };
            }
            for m in 0..M {
                // SAFETY: as above, of every input.
                let x = unsafe { s.load(xs[m].add(i)) };
                for r in 0..R {
                    part[r][m] = s.fma(w[r], x, part[r][m]);
                }
            }
            i += S::LANES;
        }
        if i < end {
            for r in 0..R {
                // SAFETY: `end - i` values are left in every row and in every input.
                let w = unsafe { W::load_part(s, rows[r].add(i), end - i) };
                for m in 0..M {
                    // SAFETY: as above.
                    let x = unsafe { s.load_part(xs[m].add(i), end - i) };
                    part[r][m] = s.fma(w, x, part[r][m]);
                }
            }
            i = end;
        }
        for r in 0..R {
            for m in 0..M {
                // SAFETY: every row is whole, and `start < d`.
                let scale = || s.splat(unsafe { W::scale(rows[r], d, start) });
                acc[r][m] = if W::SCALED { s.fma(part[r][m], scale(), acc[r][m]) } else { part[r][m] };
            }
        }
    }
    for r in 0..R {
        for m in 0..M {
            s.store_slice(&mut sums[(r * M + m) * S::LANES..], acc[r][m]);
        }
    }
}
