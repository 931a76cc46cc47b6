//! The FFN of several sequences, each over neurons of its own; a record that several list is read once.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::ffn::{FfnGather, GatherCount, Records, activate, ffn_gather};
use super::group::{Bits, Group, Groups, MOST_SEQUENCES, MOST_UNITS, Rows, below, union, width};
use super::products::{PRODUCTS_SCRATCH, Products};
use super::sums::{Terms, sum_columns};
use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Element, Simd};
use crate::tensor::MatrixView;

/// [`ffn_gather`] for several sequences: of each the bits that it has alone, and every record is read once for all that list it.
///
/// `specs` and `lists` have an entry per sequence; the weights are the same, thresholds and skipping may differ. `x` and `out`
/// `[sequences, d]`. `counts` becomes what each would have read alone; the result is what was read.
///
/// # Panics
/// As [`ffn_gather`], and for more than [`MOST_SEQUENCES`](super::MOST_SEQUENCES) sequences or different weights.
pub fn ffn_gather_batch(
    cpu: &Cpu,
    specs: &[FfnGather<'_>],
    lists: &[&[u32]],
    x: &[f32],
    out: &mut [f32],
    counts: &mut [GatherCount],
) -> GatherCount {
    let n = specs.len();
    assert!(n == lists.len() && n == counts.len(), "one list and one count for each of {n} sequences expected");
    assert!(n <= MOST_SEQUENCES, "{n} sequences at once; at most {MOST_SEQUENCES} are taken");
    if let ([spec], [list], [count]) = (specs, lists, &mut *counts) {
        *count = ffn_gather(cpu, spec, list, x, out);
        return *count;
    }
    let Some(first) = specs.first() else { return GatherCount::default() };
    let d = x.len() / n;
    assert_eq!(x.len(), n * d, "inputs are no whole number of rows for {n} sequences");
    assert_eq!(out.len(), x.len(), "inputs and outputs are of the same length");
    for (spec, list) in specs.iter().zip(lists) {
        assert!(std::ptr::eq(spec.records, first.records), "the sequences of a batch share their weights");
        spec.check(d);
        if let Some(&last) = list.last() {
            assert!((last as usize) < spec.records.rows(), "the list names neuron {last} of {}", spec.records.rows());
        }
    }
    match first.records.view() {
        MatrixView::F32(w) => gather(cpu, Batch { specs, lists, w, x, d }, out, counts),
        MatrixView::F16(w) => gather(cpu, Batch { specs, lists, w, x, d }, out, counts),
        MatrixView::BF16(w) => gather(cpu, Batch { specs, lists, w, x, d }, out, counts),
        MatrixView::I8(w) => gather(cpu, Batch { specs, lists, w, x, d }, out, counts),
    }
}

/// The operands of one call.
#[derive(Clone, Copy)]
struct Batch<'a, W> {
    specs: &'a [FfnGather<'a>],
    lists: &'a [&'a [u32]],
    /// `[F, rows, d]`, with scales
    w: &'a [W],
    /// `[sequences, d]`
    x: &'a [f32],
    d: usize,
}

impl<'a, W: Element> Batch<'a, W> {
    #[inline(always)]
    fn records(&self, sequence: usize) -> Records<'a, W> {
        let spec = &self.specs[sequence];
        let x = &self.x[sequence * self.d..][..self.d];
        Records { spec, w: self.w, rows: spec.records.cols() / self.d, list: self.lists[sequence], x }
    }
}

fn gather<W: Element>(cpu: &Cpu, batch: Batch<'_, W>, out: &mut [f32], counts: &mut [GatherCount]) -> GatherCount {
    let first = &batch.specs[0];
    let f = first.records.rows();
    // Where each sequence's entries are among those of all.
    let mut offsets = [0; MOST_SEQUENCES + 1];
    for (i, list) in batch.lists.iter().enumerate() {
        offsets[i + 1] = offsets[i] + list.len();
    }
    let entries = offsets[batch.lists.len()];
    let (mut inners, mut live) = (cpu.scratch(entries), cpu.scratch(entries));
    let (shared_inners, shared_live) = (SharedOut::new(&mut inners), SharedOut::new(&mut live));
    // Sums, so the order in which tasks add to them is of no consequence.
    let read = [const { AtomicUsize::new(0) }; 2];
    let own: [_; MOST_SEQUENCES] = [const { AtomicUsize::new(0) }; MOST_SEQUENCES];
    let bytes = entries * (first.records.row_bytes() - W::span(batch.d) * size_of::<W>()) / f.max(1);
    let width = width(batch.lists, f);
    cpu.split(f, width, bytes, &|units| {
        let mut scratch = cpu.scratch(PRODUCTS_SCRATCH);
        let (inners, live, scratch) = (shared_inners, shared_live, &mut *scratch);
        let inners = Inners { batch, units, width, offsets: &offsets, inners, live, own: &own, scratch };
        let [some, whole] = cpu.run(inners);
        read[0].fetch_add(some, Ordering::Relaxed);
        read[1].fetch_add(whole, Ordering::Relaxed);
    });
    let terms = Weighted { records: batch.records(0), offsets: &offsets, inners: &inners, live: &live };
    sum_columns(cpu, batch.lists, f, terms, first.out_bias, out);
    for ((count, list), second) in counts.iter_mut().zip(batch.lists).zip(own) {
        *count = GatherCount { first: list.len(), second: second.into_inner() };
    }
    let [first, second] = read.map(AtomicUsize::into_inner);
    GatherCount { first, second }
}

/// Inner values of all sequences for the neurons in `units`; returns how many records any of them reads, and how many to the end.
struct Inners<'a, W> {
    batch: Batch<'a, W>,
    units: Range<usize>,
    /// Units of a group.
    width: usize,
    /// Per sequence the place of its first entry.
    offsets: &'a [usize],
    /// `[entries]`
    inners: SharedOut<'a>,
    /// `[entries]`, 1 where the rest of the record is read.
    live: SharedOut<'a>,
    /// Per sequence the entries whose records are read to the end.
    own: &'a [AtomicUsize],
    /// `[PRODUCTS_SCRATCH]`
    scratch: &'a mut [f32],
}

/// A value for each unit of each sequence of a group.
type Values = [[f32; MOST_UNITS]; MOST_SEQUENCES];

impl<W: Element> Kernel for Inners<'_, W> {
    type Out = [usize; 2];

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> [usize; 2] {
        let Inners { batch, ref units, width, .. } = self;
        let records = batch.records(0);
        let rows = |group: &Group, masks: &[u64; MOST_SEQUENCES], row: usize| {
            Rows::new(union(masks), |bit| records.row((group.start + bit) as u32, row))
        };
        // What is read after first rows, if that is known before their products are.
        let known = (0..batch.lists.len()).all(|sequence| !batch.records(sequence).may_skip());
        let mut products = Products::new(batch.x, batch.d, std::mem::take(&mut self.scratch));
        let [mut inner, mut values] = [[[0.0; MOST_UNITS]; MOST_SEQUENCES]; 2];
        let (mut read, mut own) = ([0; 2], [0; MOST_SEQUENCES]);
        let mut groups = Groups::new(batch.lists, units.clone(), width);
        let mut next = groups.next();
        while let Some(group) = next {
            next = groups.next();
            let following = next.as_ref().map_or(Rows::none(), |next| rows(next, &next.listed, 0));
            let mut masks = group.listed;
            for (row, read) in read.iter_mut().enumerate().take(records.rows - 1) {
                let current = rows(&group, &masks, row);
                let up = (row == 0 && records.rows == 3 && known).then(|| rows(&group, &masks, 1));
                products.run(s, &masks, &current, up.as_ref().unwrap_or(&following), |sequence, j, product| {
                    values[sequence][j] = product;
                });
                *read += current.len();
                if row == 0 {
                    masks = self.activate(s, &group, &mut values, &mut own);
                    inner = values;
                } else {
                    self.multiply(&group, &masks, &mut inner, &values);
                }
            }
            if records.rows == 2 {
                read[1] += union(&masks).count_ones() as usize;
            }
            self.put(&group, &masks, &inner);
        }
        for (sum, own) in self.own.iter().zip(own) {
            sum.fetch_add(own, Ordering::Relaxed);
        }
        read
    }
}

impl<W: Element> Inners<'_, W> {
    /// Makes inner values of first products; returns of each sequence the units whose records are read to the end, their values moved together.
    #[inline(always)]
    fn activate<S: Simd>(
        &self,
        s: S,
        group: &Group,
        values: &mut Values,
        own: &mut [usize; MOST_SEQUENCES],
    ) -> [u64; MOST_SEQUENCES] {
        let mut live = [0; MOST_SEQUENCES];
        for (sequence, spec) in self.batch.specs.iter().enumerate() {
            let (values, listed) = (&mut values[sequence], group.listed[sequence]);
            if let Some(bias) = spec.bias {
                for (value, bit) in values.iter_mut().zip(Bits(listed)) {
                    *value += bias[group.start + bit];
                }
            }
            let count = listed.count_ones() as usize;
            activate(s, spec.activation, &mut values[..count.next_multiple_of(S::LANES)]);
            let records = self.batch.records(sequence);
            let entry = self.offsets[sequence] + group.first[sequence];
            let mut kept = 0;
            for (j, bit) in Bits(listed).enumerate() {
                let idle = records.is_idle((group.start + bit) as u32, values[j]);
                // SAFETY: an entry belongs to one unit, whose task alone writes it; it is below the number of entries.
                unsafe { *self.live.at(entry + j) = if idle { 0.0 } else { 1.0 } };
                if !idle {
                    live[sequence] |= 1 << bit;
                    values[kept] = values[j];
                    kept += 1;
                }
            }
            own[sequence] += kept;
        }
        live
    }

    /// Multiplies inner values with the products of the second rows.
    #[inline(always)]
    fn multiply(&self, group: &Group, live: &[u64; MOST_SEQUENCES], inner: &mut Values, products: &Values) {
        for (sequence, spec) in self.batch.specs.iter().enumerate() {
            for (j, bit) in Bits(live[sequence]).enumerate() {
                inner[sequence][j] *= products[sequence][j] + spec.up_bias.map_or(0.0, |bias| bias[group.start + bit]);
            }
        }
    }

    /// Writes the values of live entries.
    #[inline(always)]
    fn put(&self, group: &Group, live: &[u64; MOST_SEQUENCES], inner: &Values) {
        for sequence in 0..self.batch.specs.len() {
            let entry = self.offsets[sequence] + group.first[sequence];
            for (j, bit) in Bits(live[sequence]).enumerate() {
                // SAFETY: an entry belongs to one unit, whose task alone writes it; it is below the number of entries.
                unsafe { *self.inners.at(entry + below(group.listed[sequence], bit)) = inner[sequence][j] };
            }
        }
    }
}

/// The inner values with the last rows of their records.
#[derive(Clone, Copy)]
struct Weighted<'a, W> {
    /// Of any sequence: their weights are the same.
    records: Records<'a, W>,
    offsets: &'a [usize],
    /// `[entries]`
    inners: &'a [f32],
    /// `[entries]`
    live: &'a [f32],
}

impl<W: Element> Terms<W> for Weighted<'_, W> {
    #[inline(always)]
    fn factor(self, sequence: usize, entry: usize) -> Option<f32> {
        let at = self.offsets[sequence] + entry;
        (self.live[at] != 0.0).then(|| self.inners[at])
    }

    #[inline(always)]
    fn row<'a>(self, unit: usize) -> &'a [W]
    where
        Self: 'a,
    {
        self.records.row(unit as u32, self.records.rows - 1)
    }
}
