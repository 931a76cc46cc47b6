//! Listed rows added up for several sequences at once: every row that any of them lists is read from memory once, and each sequence gets
//! the bits that it gets alone.
//!
//! Alone, a list is cut into pieces by its length, and additions follow the list. So here threads share the *columns*: each walks
//! over all lists in step, block by block of units, and adds to its part of every sequence's sums in the order of that sequence's
//! list and pieces. Rows of a block stay in the second-level cache while the sequences pass.

use std::ops::Range;

use shadowllm_weights::INT8_GROUP;

use super::group::MOST_SEQUENCES;
use super::pieces::Pieces;
use super::streams::add_rows;
use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Element, Simd};

/// Bytes of the part of a block of rows that one thread adds up: half of a second-level cache.
const BLOCK_BYTES: usize = 256 << 10;

/// Columns of one task at most, so that the sums of several sequences stay in a cache, too.
const COLUMNS: usize = 2048;

/// Most entries of a list that are added in one go.
const RUN: usize = 64;

/// What [`sum_columns`] adds up.
pub(super) trait Terms<W>: Copy + Sync {
    /// The factor of an entry of a sequence's list; `None` if its row is not to be read.
    fn factor(self, sequence: usize, entry: usize) -> Option<f32>;
    /// The row of a unit, of `d` values.
    fn row<'a>(self, unit: usize) -> &'a [W]
    where
        Self: 'a;
}

/// `out[s] = sum over the entries of list s of factor * row + bias`, with the bits of [`Pieces::sum`] for each sequence alone.
/// `units` is how many there are, listed or not; `out` `[sequences, d]`.
pub(super) fn sum_columns<W: Element>(
    cpu: &Cpu,
    lists: &[&[u32]],
    units: usize,
    terms: impl Terms<W>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let sequences = lists.len();
    let d = out.len() / sequences.max(1);
    // Shares of the columns as wide as there are threads for them: narrow ones cost more waiting than they spread.
    let share = d.div_ceil(cpu.threads()).min(COLUMNS).next_multiple_of(INT8_GROUP);
    let entries: usize = lists.iter().map(|list| list.len()).sum();
    let out = SharedOut::new(out);
    cpu.split(d, share, entries * size_of::<W>(), &|columns| {
        for start in columns.clone().step_by(COLUMNS) {
            let columns = start..columns.end.min(start + COLUMNS);
            let mut sums = cpu.scratch(2 * sequences * columns.len());
            let sums = &mut *sums;
            cpu.run(Columns { lists, terms, units, columns, bias, d, sums, out, _type: std::marker::PhantomData });
        }
    });
}

/// [`sum_columns`] for some columns.
struct Columns<'a, W, T> {
    lists: &'a [&'a [u32]],
    terms: T,
    units: usize,
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
    fn run<S: Simd>(mut self, s: S) {
        let sums = std::mem::take(&mut self.sums);
        let (columns, d, width) = (self.columns.clone(), self.d, self.columns.len());
        sums.fill(0.0);
        let mut next = [0; MOST_SEQUENCES];
        let block = (BLOCK_BYTES / (width * size_of::<W>()).max(1)).clamp(32, 1024);
        for start in (0..self.units).step_by(block) {
            for (sequence, sums) in sums.chunks_exact_mut(2 * width).enumerate().take(self.lists.len()) {
                self.advance(s, sequence, &mut next[sequence], start + block, sums);
            }
        }
        for (sequence, sums) in sums.chunks_exact_mut(2 * width).enumerate().take(self.lists.len()) {
            let total = &mut sums[width..];
            if let Some(bias) = self.bias {
                add(s, total, &bias[columns.clone()]);
            }
            // SAFETY: no other task has these columns.
            let out = unsafe { self.out.slice(sequence * d + columns.start..sequence * d + columns.end) };
            out.copy_from_slice(total);
        }
    }
}

impl<W: Element, T: Terms<W>> Columns<'_, W, T> {
    /// Adds the entries from `next` on of units before `end` to the sums `[2, columns]` of a sequence.
    #[inline(always)]
    fn advance<S: Simd>(&self, s: S, sequence: usize, next: &mut usize, end: usize, sums: &mut [f32]) {
        let list = self.lists[sequence];
        let (sum, total) = sums.split_at_mut(self.columns.len());
        let pieces = Pieces::new(list.len());
        let last = *next + list[*next..].partition_point(|&unit| (unit as usize) < end);
        while *next < last {
            let piece = pieces.end_of(*next);
            let entries = *next..piece.min(last);
            *next = entries.end;
            self.add(s, sequence, entries, sum);
            if *next == piece {
                add(s, total, sum);
                sum.fill(0.0);
            }
        }
    }

    /// Adds entries of one piece of a sequence to `sum`.
    #[inline(always)]
    fn add<S: Simd>(&self, s: S, sequence: usize, entries: Range<usize>, sum: &mut [f32]) {
        let list = self.lists[sequence];
        for start in entries.clone().step_by(RUN) {
            let end = entries.end.min(start + RUN);
            let (mut run, mut factors, mut n) = ([0; RUN], [0.0; RUN], 0);
            for entry in start..end {
                if let Some(factor) = self.terms.factor(sequence, entry) {
                    (run[n], factors[n]) = (entry, factor);
                    n += 1;
                }
            }
            let row = |i: usize| {
                let entry = if i < n { run[i] } else { end + i - n };
                list.get(entry).map(|&unit| self.terms.row(unit as usize))
            };
            add_rows(s, &factors[..n], self.d, self.columns.clone(), row, sum);
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
