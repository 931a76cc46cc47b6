//! The two loops of the gather kernels for several sequences at once: every row that any of them lists is read from memory once,
//! and each sequence gets the bits that it gets alone.
//!
//! * Products ([`Merge`], [`pair_dots`]): the ascending lists are merged into (unit, sequence) pairs, unit by unit, so that a row
//!   stays in the nearest cache for all sequences that list it. Products are independent of each other, so any order will do.
//! * Sums ([`sum_columns`]): alone, a list is cut into pieces by its length, and additions follow the list. So here threads share
//!   the *columns*: each walks over all lists in step, block by block of units, and adds to its part of every sequence's sums
//!   in the order of that sequence's list and pieces. Rows of a block stay in the second-level cache while the sequences pass.

// Tiles are indexed by constants, several arrays at once: that is what keeps them in registers.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::pieces::Pieces;
use super::streams::{STREAMS, add_rows};
use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::linear::SAME_BITS;
use crate::kernels::simd::{Element, Simd};

/// Most sequences of one call. Fewer than the rows from which matrix products are blocked, so that no product of a batch, of
/// whatever matrix, rounds otherwise than that of one row.
pub const MOST_SEQUENCES: usize = 8;

const _: () = assert!(MOST_SEQUENCES < SAME_BITS);

/// Most (unit, sequence) pairs that are taken together; at least one unit of [`MOST_SEQUENCES`].
pub(super) const PAIRS: usize = 512;

/// Bytes of the part of a block of rows that one thread adds up: half of a second-level cache.
const BLOCK_BYTES: usize = 256 << 10;

/// Columns of one task at most, so that the sums of several sequences stay in a cache, too.
const COLUMNS: usize = 2048;

/// Most entries of a list that are added in one go.
const RUN: usize = 64;

/// A unit that a sequence lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) unit: u32,
    pub(super) sequence: u32,
    /// Where in the sequence's list it is.
    pub(super) place: u32,
}

/// Walks over several ascending lists, unit by unit.
pub(super) struct Merge<'a> {
    lists: &'a [&'a [u32]],
    /// The next place in each list.
    next: [usize; MOST_SEQUENCES],
    end: u32,
}

impl<'a> Merge<'a> {
    /// The entries of `lists` that lie in `units`.
    pub(super) fn new(lists: &'a [&'a [u32]], units: Range<usize>) -> Self {
        let mut next = [0; MOST_SEQUENCES];
        for (next, list) in next.iter_mut().zip(lists) {
            *next = list.partition_point(|&unit| (unit as usize) < units.start);
        }
        Merge { lists, next, end: units.end as u32 }
    }

    /// Fills `pairs` with what comes next, all sequences of a unit together, by unit and sequence; returns how many. 0 at the end.
    pub(super) fn fill(&mut self, pairs: &mut [Pair; PAIRS]) -> usize {
        let mut filled = 0;
        while filled + self.lists.len() <= PAIRS {
            let heads = self.lists.iter().zip(&self.next).filter_map(|(list, &next)| list.get(next));
            let Some(&unit) = heads.min().filter(|&&unit| unit < self.end) else { break };
            for (sequence, (list, next)) in self.lists.iter().zip(&mut self.next).enumerate() {
                if list.get(*next) == Some(&unit) {
                    pairs[filled] = Pair { unit, sequence: sequence as u32, place: *next as u32 };
                    filled += 1;
                    *next += 1;
                }
            }
        }
        filled
    }
}

/// Calls `put(i, row . x)` for the `n` pairs of a row and an `x` of as many values that `pair` names. Pair `i` for `i >= n` is what is
/// read afterwards, if known. Each product has the bits of [`dots`](super::streams::dots).
#[inline(always)]
pub(super) fn pair_dots<'a, S: Simd, W: Element>(
    s: S,
    n: usize,
    pair: impl Fn(usize) -> Option<(&'a [W], &'a [f32])>,
    mut put: impl FnMut(usize, f32),
) {
    let mut i = 0;
    while i < n {
        if i + STREAMS <= n {
            let products = pair_tile::<S, W, STREAMS>(s, i, &pair);
            for (j, product) in products.into_iter().enumerate() {
                put(i + j, product);
            }
            i += STREAMS;
        } else {
            let [product] = pair_tile::<S, W, 1>(s, i, &pair);
            put(i, product);
            i += 1;
        }
    }
}

/// The products of pairs `i .. i + R`: for each one vector of sums along the row, the same additions as in a linear layer.
#[inline(always)]
fn pair_tile<'a, S: Simd, W: Element, const R: usize>(
    s: S,
    i: usize,
    pair: &impl Fn(usize) -> Option<(&'a [W], &'a [f32])>,
) -> [f32; R] {
    let k = pair(i).map_or(0, |(_, x)| x.len());
    let (mut rows, mut xs, mut next) = ([std::ptr::null(); R], [std::ptr::null(); R], [std::ptr::null(); R]);
    for r in 0..R {
        let (row, x) = pair(i + r).unwrap_or((&[], &[]));
        assert!(row.len() == W::span(k) && x.len() == k);
        (rows[r], xs[r]) = (row.as_ptr(), x.as_ptr());
        next[r] = pair(i + STREAMS + r).map_or(rows[r], |(row, _)| row.as_ptr());
    }
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
            // SAFETY: `i + LANES <= k`, the length of every row and of every `x`.
            unsafe {
                for r in 0..R {
                    if !W::SCALED {
                        W::prefetch(s, next[r], k, i);
                    }
                    sums[r] = s.fma(W::load(s, rows[r].add(i)), s.load(xs[r].add(i)), sums[r]);
                }
            }
            i += S::LANES;
        }
        if i < end {
            // SAFETY: `end - i` values are left of the group in every row and in every `x`.
            unsafe {
                for r in 0..R {
                    let (w, x) = (W::load_part(s, rows[r].add(i), end - i), s.load_part(xs[r].add(i), end - i));
                    sums[r] = s.fma(w, x, sums[r]);
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

/// What [`sum_columns`] adds up: per sequence a list of rows with a factor each.
pub(super) trait Terms<W>: Copy + Sync {
    /// Sequences.
    fn sequences(self) -> usize;
    /// Entries of a sequence, those that are not read included: what its pieces are cut from.
    fn len(self, sequence: usize) -> usize;
    /// Where the row of an entry lies among all rows, ascending along a list.
    fn place(self, sequence: usize, entry: usize) -> usize;
    /// The factor of an entry; `None` if its row is not to be read.
    fn factor(self, sequence: usize, entry: usize) -> Option<f32>;
    /// The row of an entry, of `d` values.
    fn row<'a>(self, sequence: usize, entry: usize) -> &'a [W]
    where
        Self: 'a;
}

/// `out[s] = sum over the entries of sequence s of factor * row + bias`, with the bits of [`Pieces::sum`] for each sequence alone.
/// `rows` is how many rows there are, listed or not; `out` `[sequences, d]`.
pub(super) fn sum_columns<W: Element>(
    cpu: &Cpu,
    rows: usize,
    terms: impl Terms<W>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let sequences = terms.sequences();
    let d = out.len() / sequences.max(1);
    // Shares of the columns as wide as there are threads for them: narrow ones cost more waiting than they spread.
    let share = d.div_ceil(cpu.threads()).min(COLUMNS).next_multiple_of(64);
    let entries: usize = (0..sequences).map(|s| terms.len(s)).sum();
    let out = SharedOut::new(out);
    cpu.split(d, share, entries * size_of::<W>(), &|columns| {
        for start in columns.clone().step_by(COLUMNS) {
            let columns = start..columns.end.min(start + COLUMNS);
            let mut sums = cpu.scratch(2 * sequences * columns.len());
            cpu.run(Columns { terms, rows, columns, bias, d, sums: &mut sums, out, _type: std::marker::PhantomData });
        }
    });
}

/// [`sum_columns`] for some columns.
struct Columns<'a, W, T> {
    terms: T,
    rows: usize,
    columns: Range<usize>,
    /// `[d]`
    bias: Option<&'a [f32]>,
    d: usize,
    /// `[sequences, 2, columns]`: the piece that a list is in, and all pieces before it.
    sums: &'a mut [f32],
    /// `[sequences, d]`
    out: SharedOut<'a>,
    _type: std::marker::PhantomData<&'a W>,
}

impl<W: Element, T: Terms<W>> Kernel for Columns<'_, W, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Columns { terms, rows, ref columns, bias, d, .. } = self;
        let sequences = terms.sequences();
        let width = columns.len();
        self.sums.fill(0.0);
        let mut next = [0; MOST_SEQUENCES];
        let block = (BLOCK_BYTES / (width * size_of::<W>()).max(1)).clamp(32, 1024);
        for start in (0..rows).step_by(block) {
            for (sequence, sums) in self.sums.chunks_exact_mut(2 * width).enumerate().take(sequences) {
                let (sum, total) = sums.split_at_mut(width);
                let (len, pieces) = (terms.len(sequence), Pieces::new(terms.len(sequence)));
                let entry = &mut next[sequence];
                while *entry < len && terms.place(sequence, *entry) < start + block {
                    let end = pieces.end_of(*entry);
                    let mut run = [0; RUN];
                    let mut factors = [0.0; RUN];
                    let mut n = 0;
                    while n < RUN && *entry < end && terms.place(sequence, *entry) < start + block {
                        if let Some(factor) = terms.factor(sequence, *entry) {
                            (run[n], factors[n]) = (*entry, factor);
                            n += 1;
                        }
                        *entry += 1;
                    }
                    let later = *entry;
                    let row = |i: usize| {
                        let entry = if i < n { run[i] } else { later + i - n };
                        (entry < len).then(|| terms.row(sequence, entry))
                    };
                    add_rows(s, &factors[..n], d, columns.clone(), row, sum);
                    if *entry == end {
                        add(s, total, sum);
                        sum.fill(0.0);
                    }
                }
            }
        }
        for (sequence, sums) in self.sums.chunks_exact_mut(2 * width).enumerate().take(sequences) {
            let total = &mut sums[width..];
            if let Some(bias) = bias {
                add(s, total, &bias[columns.clone()]);
            }
            // SAFETY: no other task has these columns.
            let out = unsafe { self.out.slice(sequence * d + columns.start..sequence * d + columns.end) };
            out.copy_from_slice(total);
        }
    }
}

/// `sum += more`
#[inline(always)]
fn add<S: Simd>(s: S, sum: &mut [f32], more: &[f32]) {
    for (sum, more) in sum.chunks_mut(S::LANES).zip(more.chunks(S::LANES)) {
        let v = s.add(s.load_slice(sum), s.load_slice(more));
        s.store_slice(sum, v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_is_sorting() {
        let lists: [&[u32]; 4] = [&[0, 3, 4, 900], &[], &[3, 5, 900, 901], &[4]];
        for units in [0..1000, 3..901, 4..5, 6..6] {
            let mut expected: Vec<Pair> = Vec::new();
            for (sequence, list) in lists.iter().enumerate() {
                for (place, &unit) in list.iter().enumerate().filter(|&(_, &unit)| units.contains(&(unit as usize))) {
                    expected.push(Pair { unit, sequence: sequence as u32, place: place as u32 });
                }
            }
            expected.sort_by_key(|pair| (pair.unit, pair.sequence));
            let mut pairs = [Pair::default(); PAIRS];
            let mut merge = Merge::new(&lists, units);
            let n = merge.fill(&mut pairs);
            assert_eq!(pairs[..n], expected);
            assert_eq!(merge.fill(&mut pairs), 0);
        }
    }

    #[test]
    fn a_unit_is_never_torn_apart() {
        let list: Vec<u32> = (0..700).collect();
        let lists = [&list[..], &list[..], &list[..]];
        let mut merge = Merge::new(&lists, 0..700);
        let (mut pairs, mut all) = ([Pair::default(); PAIRS], 0);
        loop {
            let n = merge.fill(&mut pairs);
            assert!(n.is_multiple_of(3));
            all += n;
            if n == 0 {
                break;
            }
        }
        assert_eq!(all, 2100);
    }
}
