//! Projections of listed heads for several sequences, each with a list of its own; a head that several list is read once.

use std::ops::Range;

use super::heads::{Heads, check, heads_output, heads_project};
use super::together::{MOST_SEQUENCES, Merge, PAIRS, Pair, Terms, pair_dots, sum_columns};
use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Element, Simd};
use crate::tensor::{Matrix, MatrixView};

/// Checks what both functions are given; returns how many heads all sequences list together.
fn check_lists(heads: &Matrix, lists: &[&[u32]]) -> usize {
    assert!(lists.len() <= MOST_SEQUENCES, "{} sequences at once; at most {MOST_SEQUENCES} are taken", lists.len());
    for list in lists {
        if let Some(&last) = list.last() {
            assert!((last as usize) < heads.rows(), "the list names head {last} of {}", heads.rows());
        }
    }
    lists.iter().map(|list| list.len()).sum()
}

/// Where each sequence's heads begin among those of all.
fn offsets(lists: &[&[u32]]) -> [usize; MOST_SEQUENCES] {
    let (mut offsets, mut sum) = ([0; MOST_SEQUENCES], 0);
    for (offset, list) in offsets.iter_mut().zip(lists) {
        *offset = sum;
        sum += list.len();
    }
    offsets
}

/// [`heads_project`] for several sequences: of each the bits that it has alone, and every head is read once for all that list it.
///
/// `x` `[sequences, d]`; `out` holds one sequence's `[list.len(), d_h]` after the other's.
///
/// # Panics
/// As [`heads_project`], and for more than [`MOST_SEQUENCES`](super::MOST_SEQUENCES) sequences.
pub fn heads_project_batch(
    cpu: &Cpu,
    heads: &Matrix,
    head_dim: usize,
    lists: &[&[u32]],
    bias: Option<&[f32]>,
    x: &[f32],
    out: &mut [f32],
) {
    if let [list] = lists {
        return heads_project(cpu, heads, head_dim, list, bias, x, out);
    }
    let listed = check_lists(heads, lists);
    let d = x.len() / lists.len().max(1);
    assert_eq!(x.len(), lists.len() * d, "inputs are no whole number of rows for {} sequences", lists.len());
    check(heads, head_dim, d);
    assert_eq!(out.len(), listed * head_dim, "{head_dim} outputs for each of {listed} listed heads expected");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), heads.rows() * head_dim, "one bias for each row of Wq expected");
    }
    match heads.view() {
        MatrixView::F32(w) => project(cpu, Batch { w, head_dim, d, lists }, bias, x, out),
        MatrixView::F16(w) => project(cpu, Batch { w, head_dim, d, lists }, bias, x, out),
        MatrixView::BF16(w) => project(cpu, Batch { w, head_dim, d, lists }, bias, x, out),
        MatrixView::I8(w) => project(cpu, Batch { w, head_dim, d, lists }, bias, x, out),
    }
}

fn project<W: Element>(cpu: &Cpu, batch: Batch<'_, W>, bias: Option<&[f32]>, x: &[f32], out: &mut [f32]) {
    let span = W::span(batch.d);
    let heads = batch.w.len() / (2 * batch.head_dim * span).max(1);
    let bytes = out.len() * span * size_of::<W>() / heads.max(1);
    let (offsets, out) = (offsets(batch.lists), SharedOut::new(out));
    cpu.split(heads, 1, bytes, &|range| {
        cpu.run(Project { batch, bias, x, heads: range, offsets: &offsets, out });
    });
}

/// [`heads_output`] for several sequences: of each the bits that it has alone, and every head is read once for all that list it.
///
/// `contexts` holds one sequence's `[list.len(), d_h]` after the other's; `out` `[sequences, d]`.
///
/// # Panics
/// As [`heads_output`], and for more than [`MOST_SEQUENCES`](super::MOST_SEQUENCES) sequences.
pub fn heads_output_batch(
    cpu: &Cpu,
    heads: &Matrix,
    head_dim: usize,
    lists: &[&[u32]],
    contexts: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    if let [list] = lists {
        return heads_output(cpu, heads, head_dim, list, contexts, bias, out);
    }
    let listed = check_lists(heads, lists);
    let d = out.len() / lists.len().max(1);
    assert_eq!(out.len(), lists.len() * d, "outputs are no whole number of rows for {} sequences", lists.len());
    check(heads, head_dim, d);
    assert_eq!(contexts.len(), listed * head_dim, "{head_dim} values for each of {listed} listed heads expected");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), d, "one bias for each of {d} outputs expected");
    }
    let (rows, offsets) = (heads.rows() * head_dim, offsets(lists));
    let offsets = &offsets;
    match heads.view() {
        MatrixView::F32(w) => {
            let batch = Batch { w, head_dim, d, lists };
            sum_columns(cpu, rows, Weighted { batch, offsets, contexts }, bias, out);
        }
        MatrixView::F16(w) => {
            let batch = Batch { w, head_dim, d, lists };
            sum_columns(cpu, rows, Weighted { batch, offsets, contexts }, bias, out);
        }
        MatrixView::BF16(w) => {
            let batch = Batch { w, head_dim, d, lists };
            sum_columns(cpu, rows, Weighted { batch, offsets, contexts }, bias, out);
        }
        MatrixView::I8(w) => {
            let batch = Batch { w, head_dim, d, lists };
            sum_columns(cpu, rows, Weighted { batch, offsets, contexts }, bias, out);
        }
    }
}

/// Records of heads, and which of them each sequence lists.
#[derive(Clone, Copy)]
struct Batch<'a, W> {
    /// `[H, 2*d_h, d]`, with scales
    w: &'a [W],
    head_dim: usize,
    d: usize,
    lists: &'a [&'a [u32]],
}

impl<'a, W: Element> Batch<'a, W> {
    #[inline(always)]
    fn heads(&self, sequence: usize) -> Heads<'a, W> {
        Heads { w: self.w, head_dim: self.head_dim, d: self.d, list: self.lists[sequence] }
    }
}

/// Queries of the heads in `heads`, of all sequences that list them.
struct Project<'a, W> {
    batch: Batch<'a, W>,
    /// `[H*d_h]`
    bias: Option<&'a [f32]>,
    /// `[sequences, d]`
    x: &'a [f32],
    heads: Range<usize>,
    /// Per sequence, heads that sequences before it list.
    offsets: &'a [usize],
    /// `[listed heads, d_h]`
    out: SharedOut<'a>,
}

impl<W: Element> Kernel for Project<'_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Batch { head_dim, d, .. } = self.batch;
        let mut merge = Merge::new(self.batch.lists, self.heads.clone());
        let mut pairs = [Pair::default(); PAIRS];
        loop {
            let n = merge.fill(&mut pairs);
            if n == 0 {
                return;
            }
            for same in pairs[..n].chunk_by(|a, b| a.unit == b.unit) {
                // Row by row, each for all sequences.
                let (members, head) = (same.len(), same[0].unit as usize);
                let pair = |i: usize| {
                    let (c, pair) = (i / members, same[i % members]);
                    let x = &self.x[pair.sequence as usize * d..][..d];
                    let row = || self.batch.heads(pair.sequence as usize).row(0, pair.place as usize * head_dim + c);
                    (c < head_dim).then(row).flatten().map(|row| (row, x))
                };
                pair_dots(s, members * head_dim, pair, |i, product| {
                    let (c, pair) = (i / members, same[i % members]);
                    let at = (self.offsets[pair.sequence as usize] + pair.place as usize) * head_dim + c;
                    let bias = self.bias.map_or(0.0, |bias| bias[head * head_dim + c]);
                    // SAFETY: a head belongs to this task alone, and so do its entries; they are among the listed ones.
                    unsafe { *self.out.at(at) = product + bias };
                });
            }
        }
    }
}

/// Contexts with their output columns.
#[derive(Clone, Copy)]
struct Weighted<'a, W> {
    batch: Batch<'a, W>,
    offsets: &'a [usize],
    /// `[listed heads, d_h]`
    contexts: &'a [f32],
}

impl<W: Element> Terms<W> for Weighted<'_, W> {
    #[inline(always)]
    fn sequences(self) -> usize {
        self.batch.lists.len()
    }

    #[inline(always)]
    fn len(self, sequence: usize) -> usize {
        self.batch.lists[sequence].len() * self.batch.head_dim
    }

    #[inline(always)]
    fn place(self, sequence: usize, entry: usize) -> usize {
        let head_dim = self.batch.head_dim;
        self.batch.lists[sequence][entry / head_dim] as usize * head_dim + entry % head_dim
    }

    #[inline(always)]
    fn factor(self, sequence: usize, entry: usize) -> Option<f32> {
        Some(self.contexts[self.offsets[sequence] * self.batch.head_dim + entry])
    }

    #[inline(always)]
    fn row<'a>(self, sequence: usize, entry: usize) -> &'a [W]
    where
        Self: 'a,
    {
        self.batch.heads(sequence).row(1, entry).unwrap_or(&[])
    }
}
