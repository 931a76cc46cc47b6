//! The FFN of several sequences, each over neurons of its own; a record that several list is read once.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::ffn::{FfnGather, GatherCount, Records, activate, ffn_gather};
use super::together::{MOST_SEQUENCES, Merge, PAIRS, Pair, Terms, pair_dots, sum_columns};
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
    cpu.split(f, 1, bytes, &|units| {
        let inners = Inners { batch, units, offsets: &offsets, inners: shared_inners, live: shared_live, own: &own };
        let [some, whole] = cpu.run(inners);
        read[0].fetch_add(some, Ordering::Relaxed);
        read[1].fetch_add(whole, Ordering::Relaxed);
    });
    let terms = Weighted { batch, offsets: &offsets, inners: &inners, live: &live };
    sum_columns(cpu, f, terms, first.out_bias, out);
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
    /// Per sequence the place of its first entry.
    offsets: &'a [usize],
    /// `[entries]`
    inners: SharedOut<'a>,
    /// `[entries]`, 1 where the rest of the record is read.
    live: SharedOut<'a>,
    /// Per sequence the entries whose records are read to the end.
    own: &'a [AtomicUsize],
}

impl<W: Element> Kernel for Inners<'_, W> {
    type Out = [usize; 2];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [usize; 2] {
        let batch = &self.batch;
        let mut merge = Merge::new(batch.lists, self.units.clone());
        let (mut pairs, mut inner, mut read) = ([Pair::default(); PAIRS], [0.0; PAIRS], [0; 2]);
        let mut own = [0; MOST_SEQUENCES];
        loop {
            let n = merge.fill(&mut pairs);
            if n == 0 {
                break;
            }
            let inner = &mut inner[..n.next_multiple_of(S::LANES)];
            read[0] += units(&pairs[..n]);
            pair_dots(
                s,
                n,
                |i| pairs[..n].get(i).map(|pair| batch.row(*pair, 0)),
                |i, product| {
                    let bias = batch.specs[pairs[i].sequence as usize].bias;
                    inner[i] = product + bias.map_or(0.0, |bias| bias[pairs[i].unit as usize]);
                },
            );
            activate(s, batch.specs[0].activation, inner);
            // Those that count, moved together.
            let mut count = 0;
            for i in 0..n {
                let pair = pairs[i];
                let records = batch.records(pair.sequence as usize);
                let idle = records.is_idle(pair.unit, inner[i]);
                self.put(self.live, pair, if idle { 0.0 } else { 1.0 });
                if !idle {
                    (pairs[count], inner[count]) = (pair, inner[i]);
                    own[pair.sequence as usize] += 1;
                    count += 1;
                }
            }
            let pairs = &pairs[..count];
            read[1] += units(pairs);
            if batch.records(0).rows == 3 {
                pair_dots(
                    s,
                    count,
                    |i| pairs.get(i).map(|pair| batch.row(*pair, 1)),
                    |i, product| {
                        let bias = batch.specs[pairs[i].sequence as usize].up_bias;
                        inner[i] *= product + bias.map_or(0.0, |bias| bias[pairs[i].unit as usize]);
                    },
                );
            }
            for (&pair, &inner) in pairs.iter().zip(&*inner) {
                self.put(self.inners, pair, inner);
            }
        }
        for (sum, own) in self.own.iter().zip(own) {
            sum.fetch_add(own, Ordering::Relaxed);
        }
        read
    }
}

/// How many different units there are; they stand together.
#[inline(always)]
fn units(pairs: &[Pair]) -> usize {
    pairs.chunk_by(|a, b| a.unit == b.unit).count()
}

impl<'a, W: Element> Batch<'a, W> {
    /// Row `row` of the pair's record, and its sequence's input.
    #[inline(always)]
    fn row(&self, pair: Pair, row: usize) -> (&'a [W], &'a [f32]) {
        let records = self.records(pair.sequence as usize);
        (records.row(pair.unit, row), records.x)
    }
}

impl<W> Inners<'_, W> {
    /// Writes the value of an entry.
    #[inline(always)]
    fn put(&self, to: SharedOut<'_>, pair: Pair, value: f32) {
        let at = self.offsets[pair.sequence as usize] + pair.place as usize;
        // SAFETY: an entry belongs to one unit, whose task alone writes it; it is below the number of entries.
        unsafe { *to.at(at) = value };
    }
}

/// The inner values with the last rows of their records.
#[derive(Clone, Copy)]
struct Weighted<'a, W> {
    batch: Batch<'a, W>,
    offsets: &'a [usize],
    /// `[entries]`
    inners: &'a [f32],
    /// `[entries]`
    live: &'a [f32],
}

impl<W: Element> Terms<W> for Weighted<'_, W> {
    #[inline(always)]
    fn sequences(self) -> usize {
        self.batch.lists.len()
    }

    #[inline(always)]
    fn len(self, sequence: usize) -> usize {
        self.batch.lists[sequence].len()
    }

    #[inline(always)]
    fn place(self, sequence: usize, entry: usize) -> usize {
        self.batch.lists[sequence][entry] as usize
    }

    #[inline(always)]
    fn factor(self, sequence: usize, entry: usize) -> Option<f32> {
        let at = self.offsets[sequence] + entry;
        (self.live[at] != 0.0).then(|| self.inners[at])
    }

    #[inline(always)]
    fn row<'a>(self, sequence: usize, entry: usize) -> &'a [W]
    where
        Self: 'a,
    {
        let records = self.batch.records(sequence);
        records.row(records.list[entry], records.rows - 1)
    }
}
