//! Sums over a list, cut into pieces: each piece sums into a vector of its own, and the vectors are added in order.
//!
//! Adding listed rows to one shared vector would make the result depend on who comes first. The cut is by the length of the
//! list alone, never by the number of threads, so the same list gives the same bits on every machine of one instruction set.

use std::ops::Range;

use super::streams::STREAMS;
use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::Simd;

/// Most pieces of one list: enough for as many threads, few enough that their vectors are small beside the records.
pub(super) const MOST: usize = 32;

/// Items that a piece has at least, if there are as many.
pub(super) const LEAST: usize = 64;

/// A list of `len` items cut into pieces of the same length, the last one possibly shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernels) struct Pieces {
    len: usize,
    size: usize,
}

impl Pieces {
    /// As many pieces as the power of two below `len / LEAST`, so that they are shared evenly by two, four, .. threads; whole
    /// groups of [`STREAMS`] items.
    pub(in crate::kernels) fn new(len: usize) -> Self {
        let most = (len / LEAST).clamp(1, MOST);
        Pieces { len, size: len.div_ceil(1 << most.ilog2()).next_multiple_of(STREAMS) }
    }

    /// The length of a piece, at most `max(2 * LEAST, len / MOST + STREAMS)`.
    #[cfg(test)]
    pub(super) fn size(self) -> usize {
        self.size
    }

    pub(super) fn count(self) -> usize {
        self.len.div_ceil(self.size.max(1))
    }

    /// One past the last item of the piece that `item` is in.
    pub(super) fn end_of(self, item: usize) -> usize {
        self.len.min((item / self.size + 1) * self.size)
    }

    fn piece(self, i: usize) -> Range<usize> {
        i * self.size..self.len.min((i + 1) * self.size)
    }

    /// `out = sum over pieces of f(piece) + bias`: `f` adds the items of its range to a vector of zeros as long as `out`.
    /// `bytes` is what one item reads.
    pub(in crate::kernels) fn sum(
        self,
        cpu: &Cpu,
        bytes: usize,
        bias: Option<&[f32]>,
        out: &mut [f32],
        f: &(impl Fn(Range<usize>, &mut [f32]) + Sync),
    ) {
        let d = out.len();
        // [pieces, d], every row beginning on a cache line.
        let stride = d.next_multiple_of(16);
        let mut partial = cpu.scratch(self.count() * stride);
        let shared = SharedOut::new(&mut partial);
        cpu.split(self.count(), 1, self.size * bytes, &|pieces| {
            for i in pieces {
                // SAFETY: every piece has a vector of its own.
                let sum = unsafe { shared.slice(i * stride..i * stride + d) };
                sum.fill(0.0);
                f(self.piece(i), sum);
            }
        });
        let out = SharedOut::new(out);
        let partial = &partial;
        // These come from a cache, four times as fast as from memory.
        cpu.split(d, 16, self.count(), &|columns| {
            // SAFETY: the ranges do not overlap.
            let out = unsafe { out.slice(columns.clone()) };
            cpu.run(Total { partial, stride, columns, bias, out });
        });
    }
}

/// `out[c] = partial[0][c] + partial[1][c] + .. + bias[c]`.
struct Total<'a> {
    /// `[pieces, stride]`
    partial: &'a [f32],
    stride: usize,
    columns: Range<usize>,
    /// `[d]`
    bias: Option<&'a [f32]>,
    /// `[columns]`
    out: &'a mut [f32],
}

impl Kernel for Total<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.out.fill(0.0);
        let rows = self.partial.chunks_exact(self.stride.max(1)).map(|row| &row[self.columns.clone()]);
        for row in rows.chain(self.bias.map(|bias| &bias[self.columns.clone()])) {
            for (out, row) in self.out.chunks_mut(S::LANES).zip(row.chunks(S::LANES)) {
                let sum = s.add(s.load_slice(out), s.load_slice(row));
                s.store_slice(out, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_list_in_order() {
        for len in (0..700).chain([4095, 4096, 4097, 16384, 100_000]) {
            let pieces = Pieces::new(len);
            assert!(pieces.count() <= MOST, "{len} items in {} pieces", pieces.count());
            assert!(pieces.size() <= (2 * LEAST).max(len / MOST + STREAMS), "{len} items, {} a piece", pieces.size());
            let covered: Vec<usize> = (0..pieces.count()).flat_map(|i| pieces.piece(i)).collect();
            assert!(covered.into_iter().eq(0..len));
            assert!(
                (0..pieces.count()).all(|i| pieces.piece(i).all(|item| pieces.end_of(item) == pieces.piece(i).end))
            );
        }
    }
}
