//! The FFN over listed neurons: one pass over their records.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use shadowllm_weights::Activation;

use super::check_lines;
use super::pieces::Pieces;
use super::streams::{STREAMS, add_rows, dots};
use crate::kernels::cpu::Cpu;
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Element, Simd, math};
use crate::tensor::{Matrix, MatrixView};

/// Records whose first products are computed before the rest of those that count is read, where it is not known beforehand
/// which these are. Their inner values stay on the stack; there are so many that the moment between the phases, when nothing
/// can be asked for, is of no weight, and that those that count still fill the streams.
const BLOCK: usize = 64;

/// One layer's FFN as records: one contiguous row per neuron.
#[derive(Clone, Copy, Debug)]
pub struct FfnGather<'a> {
    /// `[F, R*d]`. R = 2: fc1 row, fc2 column. R = 3: gate row, up row, down column.
    pub records: &'a Matrix,
    /// `[F]`, added to the first product: the bias of fc1 or of the gate.
    pub bias: Option<&'a [f32]>,
    /// `[F]`, added to the second product of R = 3: the bias of up.
    pub up_bias: Option<&'a [f32]>,
    /// `[d]`, the bias of fc2 or of down.
    pub out_bias: Option<&'a [f32]>,
    /// Of fc1, or of the gate.
    pub activation: Activation,
    /// `[F]`, with R = 3: a neuron whose activated gate is smaller in size than its threshold counts as 0, and the rest of its
    /// record is not read. Changes results.
    pub gate_thresholds: Option<&'a [f32]>,
    /// With ReLU: where the first product is not positive the rest of the record is not read. Results stay the same.
    pub skip: bool,
}

/// How many records a call of [`ffn_gather`] read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GatherCount {
    /// Records whose first row was read: the length of the list.
    pub first: usize,
    /// Records of which the rest was read, too.
    pub second: usize,
}

impl FfnGather<'_> {
    /// Rows of a record. Panics unless a record is 2 or 3 rows of `d` and all vectors are as long as they should be.
    pub(super) fn check(&self, d: usize) -> usize {
        let f = self.records.rows();
        let rows = self.records.cols().checked_div(d).unwrap_or(2);
        assert!(
            rows * d == self.records.cols() && (2..=3).contains(&rows),
            "records of {} are neither 2 nor 3 rows of {d}",
            self.records.cols()
        );
        check_lines(self.records, d);
        for bias in [self.bias, self.up_bias].into_iter().flatten() {
            assert_eq!(bias.len(), f, "one bias for each of {f} neurons expected");
        }
        if let Some(thresholds) = self.gate_thresholds {
            assert_eq!(thresholds.len(), f, "one threshold for each of {f} neurons expected");
        }
        if let Some(bias) = self.out_bias {
            assert_eq!(bias.len(), d, "one bias for each of {d} outputs expected");
        }
        rows
    }

    /// Bytes of weights and thresholds that a call with this result read.
    pub fn bytes(&self, d: usize, count: GatherCount) -> u64 {
        let row = self.records.dtype().row_bytes(d);
        let rows = self.records.cols().checked_div(d).unwrap_or(0);
        let weights = (row * (count.first + rows.saturating_sub(1) * count.second)) as u64;
        weights + self.threshold_bytes(count)
    }

    /// Of [`FfnGather::bytes`], those of thresholds.
    pub fn threshold_bytes(&self, count: GatherCount) -> u64 {
        self.gate_thresholds.map_or(0, |_| (size_of::<f32>() * count.first) as u64)
    }
}

/// The FFN of one token over the neurons in `list`, as if the inner value of every other neuron were 0.
///
/// `x` `[d]`, `out` `[d]`. R = 2: `out = sum_i f(fc1_i . x + bias_i) * fc2_i + out_bias`; R = 3:
/// `out = sum_i f(gate_i . x + bias_i) * (up_i . x + up_bias_i) * down_i + out_bias`. The inner values are bit for bit those of
/// [`linear`](super::super::linear) and [`activate`](super::super::activate) for one row; their sum
/// has an error of at most `(P + 34) * 2^-23 * (sum_i |z_i * w_i| + |out_bias|)`, where `P = max(128, n/32 + 8)` for a list of
/// `n`. It depends on the operands and the list, and on nothing else.
///
/// With `skip`, the results are those without it (`==`, so up to the sign of a zero) as long as the weights are finite; an
/// infinite weight that would have met a zero is not seen. NaN of `x`, of the first row or of a bias is never skipped.
///
/// # Panics
/// If a length does not fit, `records` has neither 2 nor 3 rows of `d` a record, or the list names a neuron that does not exist.
pub fn ffn_gather(cpu: &Cpu, spec: &FfnGather<'_>, list: &[u32], x: &[f32], out: &mut [f32]) -> GatherCount {
    let d = x.len();
    assert_eq!(out.len(), d, "input and output are of the same length");
    let rows = spec.check(d);
    match spec.records.view() {
        MatrixView::F32(w) => gather(cpu, Records { spec, w, rows, list, x }, out),
        MatrixView::F16(w) => gather(cpu, Records { spec, w, rows, list, x }, out),
        MatrixView::BF16(w) => gather(cpu, Records { spec, w, rows, list, x }, out),
        MatrixView::I8(w) => gather(cpu, Records { spec, w, rows, list, x }, out),
    }
}

fn gather<W: Element>(cpu: &Cpu, records: Records<'_, W>, out: &mut [f32]) -> GatherCount {
    // A sum, so the order in which tasks add to it is of no consequence.
    let second = AtomicUsize::new(0);
    let bytes = records.spec.records.row_bytes();
    let list = records.list;
    Pieces::new(list.len()).sum(cpu, bytes, records.spec.out_bias, out, &|piece, sum| {
        let read = cpu.run(Piece { records, piece, sum });
        second.fetch_add(read, Ordering::Relaxed);
    });
    GatherCount { first: list.len(), second: second.into_inner() }
}

/// The operands of one call.
#[derive(Clone, Copy)]
pub(super) struct Records<'a, W> {
    pub(super) spec: &'a FfnGather<'a>,
    /// `[F, rows, d]`, with scales
    pub(super) w: &'a [W],
    /// 2 or 3.
    pub(super) rows: usize,
    pub(super) list: &'a [u32],
    /// `[d]`
    pub(super) x: &'a [f32],
}

impl<'a, W: Element> Records<'a, W> {
    /// Row `row` of the record of `neuron`.
    #[inline(always)]
    pub(super) fn row(&self, neuron: u32, row: usize) -> &'a [W] {
        let span = W::span(self.x.len());
        &self.w[(neuron as usize * self.rows + row) * span..][..span]
    }

    /// Whether the rest of the record of `neuron`, of this activated first product, is of no use. Never so for NaN.
    #[inline(always)]
    pub(super) fn is_idle(&self, neuron: u32, activated: f32) -> bool {
        (self.spec.skip && self.spec.activation == Activation::Relu && activated == 0.0)
            || (self.rows == 3
                && self.spec.gate_thresholds.is_some_and(|thresholds| activated.abs() < thresholds[neuron as usize]))
    }

    /// Whether any record's rest might not be read, so that it cannot be asked for before the first product is known.
    #[inline(always)]
    pub(super) fn may_skip(&self) -> bool {
        (self.spec.skip && self.spec.activation == Activation::Relu)
            || (self.rows == 3 && self.spec.gate_thresholds.is_some())
    }
}

/// Adds the records of `list[piece]` to `sum`; returns how many were read to the end.
struct Piece<'a, W> {
    records: Records<'a, W>,
    piece: Range<usize>,
    /// `[d]`
    sum: &'a mut [f32],
}

impl<W: Element> Kernel for Piece<'_, W> {
    type Out = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let records = self.records;
        let mut read = 0;
        // A record that is read whole is best read at once: what the processor fetches behind its first row is then of use.
        let length = if records.may_skip() { BLOCK } else { STREAMS };
        for start in self.piece.clone().step_by(length) {
            let block = start..self.piece.end.min(start + length);
            read += records.block(s, block, self.sum);
        }
        read
    }
}

impl<W: Element> Records<'_, W> {
    /// As [`Piece`], for at most [`BLOCK`] records.
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, block: Range<usize>, sum: &mut [f32]) -> usize {
        let list = &self.list[block.clone()];
        // After the block, most likely on this thread.
        let later = &self.list[block.end..];
        let (n, last) = (list.len(), self.rows - 1);
        let mut inner = [0.0; BLOCK];
        let known = !self.may_skip();
        let row = |i: usize| match i < n {
            true => Some(self.row(list[i], 0)),
            false if known => list.get(i - n).map(|&neuron| self.row(neuron, 1)),
            false => None,
        };
        dots(s, n, row, self.x, |i, product| {
            inner[i] = product + self.spec.bias.map_or(0.0, |bias| bias[list[i] as usize]);
        });
        activate(s, self.spec.activation, &mut inner);
        // Those that count, moved together.
        let mut kept = [0; BLOCK];
        let mut count = 0;
        for i in 0..n {
            if !self.is_idle(list[i], inner[i]) {
                kept[count] = list[i];
                inner[count] = inner[i];
                count += 1;
            }
        }
        let kept = &kept[..count];
        if last == 2 {
            let row = |i: usize| match i < count {
                true => Some(self.row(kept[i], 1)),
                false => kept.get(i - count).map(|&neuron| self.row(neuron, last)),
            };
            dots(s, count, row, self.x, |i, product| {
                inner[i] *= product + self.spec.up_bias.map_or(0.0, |bias| bias[kept[i] as usize]);
            });
        }
        let row = |i: usize| match i < count {
            true => Some(self.row(kept[i], last)),
            false => later.get(i - count).map(|&neuron| self.row(neuron, 0)),
        };
        let d = sum.len();
        add_rows(s, &inner[..count], d, 0..d, row, sum);
        count
    }
}

/// The activation of every element, whole vectors of them; the same function as in the dense FFN.
#[inline(always)]
pub(super) fn activate<S: Simd>(s: S, activation: Activation, inner: &mut [f32]) {
    for x in inner.chunks_exact_mut(S::LANES) {
        let v = s.load_slice(x);
        let v = match activation {
            Activation::Relu => math::relu(s, v),
            Activation::Gelu => math::gelu(s, v),
            Activation::GeluTanh => math::gelu_tanh(s, v),
            Activation::Silu => math::silu(s, v),
        };
        s.store_slice(x, v);
    }
}

const _: () = assert!(BLOCK.is_multiple_of(STREAMS) && BLOCK.is_multiple_of(16));
