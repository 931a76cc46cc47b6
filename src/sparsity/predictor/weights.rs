//! One linear layer of a predictor, in the number format of its file.
//!
//! Nearly all bytes of a predictor are in its output layer, which has a row for every unit of the model, so its format decides
//! what a decision costs. 8-bit integers with one scale per row lose nothing that the ranking would notice.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use shadowllm_weights::Storage;

use crate::kernels::{Cpu, Kernel, Simd, linear};
use crate::tensor::Matrix;

/// `y = W x + b`.
#[derive(Clone, Debug)]
pub(super) struct Layer {
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

/// Rows that one task computes.
const TASK_ROWS: usize = 256;
/// Products that 32 bits hold for sure: `512 * 127 * 32767 < 2^31`.
const EXACT: usize = 512;

impl Int8 {
    /// `[rows, cols]`
    fn values(&self) -> &[i8] {
        bytemuck::cast_slice(&self.storage.bytes()[self.range.clone()])
    }

    /// `out[r] = scale[r] * sum_c w[r, c] * x[c] + bias[r]`, with `x` rounded to 16-bit integers: its largest value becomes
    /// 32767, so a rounding error is at most a 65534th of that. Sums of integers are exact, so results depend neither on the
    /// instruction set nor on threads.
    fn apply(&self, cpu: &Cpu, bias: Option<&[f32]>, x: &[f32], scratch: &mut Vec<i16>, out: &mut [f32]) {
        let unit = quantize(x, scratch);
        let (weight, x) = (self.values(), &scratch[..]);
        let task = |first: usize, out: &mut [f32]| {
            cpu.run(Int8Rows {
                weight: &weight[first * self.cols..][..out.len() * self.cols],
                scale: &self.scale[first..][..out.len()],
                bias: bias.map(|bias| &bias[first..][..out.len()]),
                x,
                unit,
                out,
            });
        };
        // A pool of one thread is the caller's own, and rayon must not be asked then: it would start threads of its own.
        if cpu.threads() == 1 || out.len() <= TASK_ROWS {
            return task(0, out);
        }
        cpu.install(|| {
            out.par_chunks_mut(TASK_ROWS).enumerate().for_each(|(i, out)| task(i * TASK_ROWS, out));
        });
    }
}

/// Rounds `x` to integers; returns what 1 stands for. That is NaN if `x` has a value that is not finite, and then so is every
/// product, so that the mistake is seen where scores are checked.
fn quantize(x: &[f32], into: &mut Vec<i16>) -> f32 {
    into.clear();
    let largest = x.iter().fold(0.0_f32, |largest, v| largest.max(v.abs()));
    let broken = x.iter().any(|v| !v.is_finite());
    let unit = if broken { f32::NAN } else { largest / f32::from(i16::MAX) };
    let per_unit = if unit > 0.0 { unit.recip() } else { 0.0 };
    into.extend(x.iter().map(|v| (v * per_unit).round_ties_even() as i16));
    unit
}

/// Consecutive rows of an [`Int8`] matrix.
struct Int8Rows<'a> {
    /// `[rows, cols]`
    weight: &'a [i8],
    /// `[rows]`
    scale: &'a [f32],
    /// `[rows]`
    bias: Option<&'a [f32]>,
    /// `[cols]`
    x: &'a [i16],
    /// What 1 in `x` stands for.
    unit: f32,
    /// `[rows]`
    out: &'a mut [f32],
}

impl Kernel for Int8Rows<'_> {
    type Out = ();

    /// Plain loops, which the compiler turns into the instructions that it is entered with: integers may be summed in any order.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let rows = self.weight.chunks_exact(self.x.len().max(1));
        for (r, (row, out)) in rows.zip(self.out).enumerate() {
            let mut sum = 0.0;
            for (w, x) in row.chunks(EXACT).zip(self.x.chunks(EXACT)) {
                sum += dot(w, x) as f32;
            }
            *out = self.scale[r] * (sum * self.unit) + self.bias.map_or(0.0, |bias| bias[r]);
        }
    }
}

/// `sum_c w[c] * x[c]` for at most [`EXACT`] products.
#[inline(always)]
fn dot(w: &[i8], x: &[i16]) -> i32 {
    w.iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum()
}

impl Layer {
    /// Outputs.
    pub(super) fn rows(&self) -> usize {
        match &self.weight {
            Weight::Float(matrix) => matrix.rows(),
            Weight::Int8(int8) => int8.scale.len(),
        }
    }

    /// Applies it to one vector `x` (`[cols]`) into `out` (`[rows]`).
    pub(super) fn apply(&self, cpu: &Cpu, x: &[f32], scratch: &mut Vec<i16>, out: &mut [f32]) {
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
