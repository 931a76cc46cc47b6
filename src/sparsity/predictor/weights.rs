//! One linear layer of a predictor, in the number format of its file.
//!
//! Nearly all bytes of a predictor are in its output layer, which has a row for every unit of the model, so its format decides
//! what a decision costs. 8-bit integers with one scale per row lose nothing that the ranking would notice.

use std::ops::Range;
use std::sync::Arc;

use shadowllm_weights::Storage;

use crate::kernels::{Cpu, Kernel, SharedOut, Simd, linear};
use crate::tensor::Matrix;

/// `y = W x + b`.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(super) weight: Weight,
    /// `[rows]`
    pub(super) bias: Option<Vec<f32>>,
}

/// A weight matrix `[rows, cols]`.
#[derive(Clone, Debug)]
pub(super) enum Weight {
    /// f32, f16 or bf16.
    Float(Matrix),
    /// 8-bit integers; row `r` stands for `scale[r] * row`.
    Int8(Int8),
}

/// A matrix of 8-bit integers with a scale per row.
#[derive(Clone, Debug)]
pub(super) struct Int8 {
    pub(super) storage: Arc<Storage>,
    /// Where in `storage` the `rows * cols` values are.
    pub(super) range: Range<usize>,
    /// `[rows]`
    pub(super) scale: Vec<f32>,
    pub(super) cols: usize,
}

/// Bytes that are asked for ahead: a stream of short rows is faster so than by the processor's own guesses.
const AHEAD: usize = 4096;
/// Products that 32 bits hold for sure: `512 * 127 * 32767 < 2^31`.
const EXACT: usize = 512;

impl Int8 {
    /// `[rows, cols]`
    fn values(&self) -> &[i8] {
        bytemuck::cast_slice(&self.storage.bytes()[self.range.clone()])
    }

    /// `out[t][r] = scale[r] * sum_c w[r, c] * x[t][c] + bias[r]`, with each row of `x` rounded to 16-bit integers: its largest value
    /// becomes 32767, so a rounding error is at most a 65534th of that. Sums of integers are exact, so results depend neither on
    /// the instruction set nor on threads, nor on the other rows.
    fn apply(&self, cpu: &Cpu, bias: Option<&[f32]>, x: &[f32], scratch: &mut Integers, out: &mut [f32]) {
        let (cols, rows) = (self.cols.max(1), self.scale.len());
        scratch.quantize(x, cols);
        let (weight, Integers { values, units }) = (self.values(), &*scratch);
        let out = SharedOut::new(out);
        let task = |first: usize, count: usize| {
            cpu.run(Int8Rows {
                weight: &weight[first * cols..][..count * cols],
                scale: &self.scale[first..][..count],
                bias: bias.map(|bias| &bias[first..][..count]),
                x: values,
                units,
                first,
                rows,
                out,
            });
        };
        cpu.split(rows, 1, cols, &|range| task(range.start, range.len()));
    }
}

/// Rows of `x`, rounded to integers.
#[derive(Clone, Debug, Default)]
pub(super) struct Integers {
    /// `[t, cols]`
    values: Vec<i16>,
    /// What 1 in a row stands for, `[t]`.
    units: Vec<f32>,
}

impl Integers {
    /// A row that has a value which is not finite gets the unit NaN, and so does every product with it, so that the mistake is seen
    /// where scores are checked.
    fn quantize(&mut self, x: &[f32], cols: usize) {
        self.values.clear();
        self.units.clear();
        for row in x.chunks_exact(cols) {
            let largest = row.iter().fold(0.0_f32, |largest, v| largest.max(v.abs()));
            let broken = row.iter().any(|v| !v.is_finite());
            let unit = if broken { f32::NAN } else { largest / f32::from(i16::MAX) };
            let per_unit = if unit > 0.0 { unit.recip() } else { 0.0 };
            self.values.extend(row.iter().map(|v| (v * per_unit).round_ties_even() as i16));
            self.units.push(unit);
        }
    }
}

/// Consecutive rows of an [`Int8`] matrix.
struct Int8Rows<'a> {
    /// `[count, cols]`
    weight: &'a [i8],
    /// `[count]`
    scale: &'a [f32],
    /// `[count]`
    bias: Option<&'a [f32]>,
    /// `[t, cols]`
    x: &'a [i16],
    /// What 1 in a row of `x` stands for, `[t]`.
    units: &'a [f32],
    /// Index of the first row.
    first: usize,
    /// Rows of the whole matrix.
    rows: usize,
    /// `[t, rows]`; this kernel writes columns `first .. first + count` only.
    out: SharedOut<'a>,
}

impl Kernel for Int8Rows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = (self.x.len() / self.units.len().max(1)).max(1);
        for (r, row) in self.weight.chunks_exact(cols).enumerate() {
            for line in (0..cols).step_by(64) {
                s.prefetch(row.as_ptr().wrapping_add(AHEAD + line));
            }
            for (t, (x, unit)) in self.x.chunks_exact(cols).zip(self.units).enumerate() {
                let mut sum = 0.0;
                for (w, x) in row.chunks(EXACT).zip(x.chunks(EXACT)) {
                    // SAFETY: both have `w.len()` values.
                    sum += unsafe { s.dot_bytes(w.as_ptr(), x.as_ptr(), w.len()) } as f32;
                }
                let value = self.scale[r] * (sum * unit) + self.bias.map_or(0.0, |bias| bias[r]);
                // SAFETY: column `first + r` belongs to this task alone; row `t` and the column are inside `out`.
                unsafe { *self.out.at(t * self.rows + self.first + r) = value };
            }
        }
    }
}

impl Layer {
    /// Outputs.
    pub(crate) fn rows(&self) -> usize {
        match &self.weight {
            Weight::Float(matrix) => matrix.rows(),
            Weight::Int8(int8) => int8.scale.len(),
        }
    }

    /// Inputs.
    pub(crate) fn cols(&self) -> usize {
        match &self.weight {
            Weight::Float(matrix) => matrix.cols(),
            Weight::Int8(int8) => int8.cols,
        }
    }

    /// The weights, unless they are 8-bit integers.
    pub(crate) fn float(&self) -> Option<&Matrix> {
        match &self.weight {
            Weight::Float(matrix) => Some(matrix),
            Weight::Int8(_) => None,
        }
    }

    /// `[rows, cols]` in the format of the file.
    pub(crate) fn weight_bytes(&self) -> &[u8] {
        match &self.weight {
            Weight::Float(matrix) => matrix.view_bytes(),
            Weight::Int8(int8) => bytemuck::cast_slice(int8.values()),
        }
    }

    /// `[rows]`: what 1 stands for in a row of 8-bit integers.
    pub(crate) fn row_scale(&self) -> Option<&[f32]> {
        match &self.weight {
            Weight::Float(_) => None,
            Weight::Int8(int8) => Some(&int8.scale),
        }
    }

    /// `[rows]`
    pub(crate) fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Applies it to the rows of `x` (`[t, cols]`) into `out` (`[t, rows]`).
    pub(super) fn apply(&self, cpu: &Cpu, x: &[f32], scratch: &mut Integers, out: &mut [f32]) {
        let (rows, cols) = (self.rows(), self.cols());
        assert_eq!(x.len() * rows, out.len() * cols, "as many rows of {cols} inputs as of {rows} outputs expected");
        match &self.weight {
            Weight::Float(matrix) => linear(cpu, matrix, self.bias.as_deref(), x, out),
            Weight::Int8(int8) => int8.apply(cpu, self.bias.as_deref(), x, scratch, out),
        }
    }

    /// Bytes of weights, scales and bias: what [`Layer::apply`] reads.
    pub(super) fn bytes(&self) -> u64 {
        let weight = match &self.weight {
            Weight::Float(matrix) => matrix.bytes(),
            Weight::Int8(int8) => int8.range.len() + 4 * int8.scale.len(),
        };
        (weight + 4 * self.bias.as_ref().map_or(0, Vec::len)) as u64
    }
}
