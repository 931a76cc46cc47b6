//! Projections of listed heads for several sequences, each with a list of its own; a head that several list is read once.

use std::ops::Range;

use super::group::{Groups, MOST_SEQUENCES, Rows, union, width};
use super::heads::{check, heads_output, heads_project};
use super::products::{PRODUCTS_SCRATCH, Products};
use super::sums::{Terms, sum_columns};
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
        MatrixView::F32(w) => project(cpu, Halves { w, head_dim, d, half: 0 }, lists, bias, x, out),
        MatrixView::F16(w) => project(cpu, Halves { w, head_dim, d, half: 0 }, lists, bias, x, out),
        MatrixView::BF16(w) => project(cpu, Halves { w, head_dim, d, half: 0 }, lists, bias, x, out),
        MatrixView::I8(w) => project(cpu, Halves { w, head_dim, d, half: 0 }, lists, bias, x, out),
    }
}

fn project<W: Element>(
    cpu: &Cpu,
    halves: Halves<'_, W>,
    lists: &[&[u32]],
    bias: Option<&[f32]>,
    x: &[f32],
    out: &mut [f32],
) {
    let span = W::span(halves.d);
    let rows = halves.rows();
    let bytes = out.len() * span * size_of::<W>() / rows.max(1);
    let lists = RowLists::new(lists, halves.head_dim);
    let (lists, offsets) = (&*lists.lists(), &lists.offsets);
    let (width, out) = (width(lists, rows), SharedOut::new(out));
    cpu.split(rows, width, bytes, &|rows| {
        let mut scratch = cpu.scratch(PRODUCTS_SCRATCH);
        cpu.run(Project { halves, lists, offsets, bias, x, rows, width, out, scratch: &mut scratch });
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
    match heads.view() {
        MatrixView::F32(w) => output(cpu, Halves { w, head_dim, d, half: 1 }, lists, contexts, bias, out),
        MatrixView::F16(w) => output(cpu, Halves { w, head_dim, d, half: 1 }, lists, contexts, bias, out),
        MatrixView::BF16(w) => output(cpu, Halves { w, head_dim, d, half: 1 }, lists, contexts, bias, out),
        MatrixView::I8(w) => output(cpu, Halves { w, head_dim, d, half: 1 }, lists, contexts, bias, out),
    }
}

fn output<W: Element>(
    cpu: &Cpu,
    halves: Halves<'_, W>,
    lists: &[&[u32]],
    contexts: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let lists = RowLists::new(lists, halves.head_dim);
    let (lists, offsets) = (&*lists.lists(), &lists.offsets);
    sum_columns(cpu, lists, halves.rows(), Weighted { halves, offsets, contexts }, bias, out);
}

/// The first (0) or second (1) halves of the records of all heads.
#[derive(Clone, Copy)]
struct Halves<'a, W> {
    /// `[H, 2*d_h, d]`, with scales
    w: &'a [W],
    head_dim: usize,
    d: usize,
    half: usize,
}

impl<'a, W: Element> Halves<'a, W> {
    /// Rows of all heads.
    fn rows(&self) -> usize {
        self.w.len() / (2 * W::span(self.d)).max(1)
    }

    /// Row `i`, counted through all heads.
    #[inline(always)]
    fn row(&self, i: usize) -> &'a [W] {
        let (head, own, span) = (i / self.head_dim, i % self.head_dim, W::span(self.d));
        &self.w[((2 * head + self.half) * self.head_dim + own) * span..][..span]
    }
}

/// Lists of heads as lists of their rows.
struct RowLists {
    /// One sequence's after the other's.
    rows: Vec<u32>,
    /// Where each sequence's rows begin.
    offsets: [usize; MOST_SEQUENCES + 1],
    sequences: usize,
}

impl RowLists {
    fn new(lists: &[&[u32]], head_dim: usize) -> Self {
        let (mut rows, mut offsets) = (Vec::new(), [0; MOST_SEQUENCES + 1]);
        for (list, offset) in lists.iter().zip(&mut offsets[1..]) {
            let width = head_dim as u32;
            rows.extend(list.iter().flat_map(|head| head * width..(head + 1) * width));
            *offset = rows.len();
        }
        RowLists { rows, offsets, sequences: lists.len() }
    }

    fn lists(&self) -> Vec<&[u32]> {
        self.offsets.windows(2).take(self.sequences).map(|at| &self.rows[at[0]..at[1]]).collect()
    }
}

/// Queries of all sequences of the heads' rows in `rows`.
struct Project<'a, W> {
    halves: Halves<'a, W>,
    /// Of rows.
    lists: &'a [&'a [u32]],
    /// Where each sequence's rows begin among those of all.
    offsets: &'a [usize],
    /// `[H*d_h]`
    bias: Option<&'a [f32]>,
    /// `[sequences, d]`
    x: &'a [f32],
    rows: Range<usize>,
    /// Rows of a group.
    width: usize,
    /// `[listed rows]`
    out: SharedOut<'a>,
    /// `[PRODUCTS_SCRATCH]`
    scratch: &'a mut [f32],
}

impl<W: Element> Kernel for Project<'_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Project { halves, lists, offsets, bias, out, .. } = self;
        let mut products = Products::new(self.x, halves.d, self.scratch);
        let mut groups = Groups::new(lists, self.rows.clone(), self.width);
        let rows = |start: usize, mask: u64| Rows::new(mask, |bit| halves.row(start + bit));
        let mut next = groups.next();
        while let Some(group) = next {
            next = groups.next();
            let following = next.map_or((0, 0), |next| (next.start, union(&next.listed)));
            let (own, following) = (rows(group.start, union(&group.listed)), rows(following.0, following.1));
            products.run(s, &group.listed, &own, &following, |sequence, j, product| {
                let entry = group.first[sequence] + j;
                let bias = bias.map_or(0.0, |bias| bias[lists[sequence][entry] as usize]);
                // SAFETY: a row belongs to this task alone, and so do its entries; they are among the listed ones.
                unsafe { *out.at(offsets[sequence] + entry) = product + bias };
            });
        }
    }
}

/// Contexts with their output columns.
#[derive(Clone, Copy)]
struct Weighted<'a, W> {
    halves: Halves<'a, W>,
    /// Where each sequence's rows begin among those of all.
    offsets: &'a [usize],
    /// `[listed rows]`
    contexts: &'a [f32],
}

impl<W: Element> Terms<W> for Weighted<'_, W> {
    #[inline(always)]
    fn factor(self, sequence: usize, entry: usize) -> Option<f32> {
        Some(self.contexts[self.offsets[sequence] + entry])
    }

    #[inline(always)]
    fn row<'a>(self, unit: usize) -> &'a [W]
    where
        Self: 'a,
    {
        self.halves.row(unit)
    }
}
