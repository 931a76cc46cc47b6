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

/// Partial sums of a row: enough independent ones to keep the widest vectors busy.
const LANES: usize = 32;
/// Rows that one task computes.
const TASK_ROWS: usize = 256;

impl Int8 {
    /// `[rows, cols]`
    fn values(&self) -> &[i8] {
        bytemuck::cast_slice(&self.storage.bytes()[self.range.clone()])
    }

    /// `out[r] = scale[r] * sum_c w[r, c] * x[c] + bias[r]`, summed in an order that only `cols` decides.
    fn apply(&self, cpu: &Cpu, bias: Option<&[f32]>, x: &[f32], out: &mut [f32]) {
        let weight = self.values();
        let task = |first: usize, out: &mut [f32]| {
            cpu.run(Int8Rows {
                weight: &weight[first * self.cols..][..out.len() * self.cols],
                scale: &self.scale[first..][..out.len()],
                bias: bias.map(|bias| &bias[first..][..out.len()]),
                x,
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

/// Consecutive rows of an [`Int8`] matrix.
struct Int8Rows<'a> {
    /// `[rows, cols]`
    weight: &'a [i8],
    /// `[rows]`
    scale: &'a [f32],
    /// `[rows]`
    bias: Option<&'a [f32]>,
    /// `[cols]`
    x: &'a [f32],
    /// `[rows]`
    out: &'a mut [f32],
}

impl Kernel for Int8Rows<'_> {
    type Out = ();

    /// Plain loops, which the compiler turns into the instructions that it is entered with. Products and sums are rounded one
    /// by one in a fixed order, so all instruction sets give the same bits.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let rows = self.weight.chunks_exact(self.x.len().max(1));
        for (r, (row, out)) in rows.zip(self.out).enumerate() {
            *out = self.scale[r] * dot(row, self.x) + self.bias.map_or(0.0, |bias| bias[r]);
        }
    }
}

/// `sum_c w[c] * x[c]` in [`LANES`] partial sums that are added in pairs.
#[inline(always)]
fn dot(w: &[i8], x: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (w_lanes, w_rest) = w.as_chunks::<LANES>();
    let (x_lanes, x_rest) = x.as_chunks::<LANES>();
    for (w, x) in w_lanes.iter().zip(x_lanes) {
        for lane in 0..LANES {
            sums[lane] += f32::from(w[lane]) * x[lane];
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    let mut rest = 0.0;
    for (&w, x) in w_rest.iter().zip(x_rest) {
        rest += f32::from(w) * x;
    }
    sums[0] + rest
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
    pub(super) fn apply(&self, cpu: &Cpu, x: &[f32], out: &mut [f32]) {
        match &self.weight {
            Weight::Float(matrix) => linear(cpu, matrix, self.bias.as_deref(), x, out),
            Weight::Int8(int8) => int8.apply(cpu, self.bias.as_deref(), x, out),
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
