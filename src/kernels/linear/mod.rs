//! Linear layers: `out = x W^T + bias` for one row, a few rows, or many.
//!
//! Three regimes, three kernels:
//!
//! * one row (decode) is bound by memory: [`rows`] streams every weight once and keeps the processor out of the way;
//! * a few rows (batched decode) are the same loop with each weight used for several rows: the same bytes, more results,
//!   and bit for bit the results of the rows one by one;
//! * many rows (prefill, scoring) are bound by arithmetic: [`gemm`] blocks for registers and caches.
//!
//! The way back, `out = x W + bias`, has the same regimes over the same weights: [`transposed`].

#[cfg(target_arch = "x86_64")]
mod amx;
mod gemm;
mod gradient;
mod integer;
mod micro;
#[cfg(test)]
pub(crate) mod oracle;
mod product;
mod rows;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod transposed;
mod weights;

use std::ops::Range;

pub use gradient::{bias_gradient, weight_gradient};
pub(crate) use micro::micro;
pub(crate) use product::Exact;
pub(crate) use rows::{Packed, Rows};
pub use transposed::linear_transposed;
pub(crate) use transposed::linear_transposed_f32;

use shadowllm_weights::DType;

use gemm::{Factors, gemm};
use weights::{ByRows, Words};

use super::IsaName;
use super::cpu::{Compute, Cpu, SharedOut};
use crate::tensor::{Matrix, MatrixView, RowsOf};

/// Rows from which [`Compute::Bf16`] rounds, except for products of whole numbers. The same on every instruction set, because it
/// is part of the meaning.
const BF16_ROWS: usize = 32;

/// Fewer rows than this have the bits, each, that one row has: whatever the matrix and however it is stored.
pub(crate) const SAME_BITS: usize = transposed::GEMM_ROWS;

const _: () = assert!(SAME_BITS <= BF16_ROWS);

/// Rows from which the blocked product is used. Measured: as long as `x` stays in the second-level cache the loop over rows is
/// as fast with 32 registers (90 % of the peak from 8 rows on), and it needs no packing; with 16 registers it reaches 70 %.
/// Tiles are faster as soon as two of them are full.
fn gemm_rows(cpu: &Cpu, dtype: DType) -> usize {
    if dtype == DType::I8 && integer::possible(cpu) {
        return integer::ROWS;
    }
    match (compute(cpu, dtype), cpu.geometry().registers) {
        (Compute::Bf16, _) => BF16_ROWS,
        (Compute::F32, _) if cpu.isa() == IsaName::Amx && dtype == DType::BF16 => 32,
        (Compute::F32, 32..) => 96,
        (Compute::F32, _) => 48,
    }
}

/// Precision of the products with weights of a type, where they are not made in whole numbers: `bf16` weights lose nothing by it,
/// and `int8` weights far less than they did by being rounded to `int8`.
fn compute(cpu: &Cpu, dtype: DType) -> Compute {
    if matches!(dtype, DType::BF16 | DType::I8) { cpu.compute() } else { Compute::F32 }
}

/// Multiplies every row of `x` with every row of `w`.
///
/// `w` `[N, K]`, `bias` `[N]`, `x` `[T, K]`, `out` `[T, N]`: `out[t][n] = sum_k x[t][k] * w[n][k] + bias[n]`, accumulated in
/// `f32`: `|error| <= (K/8 + 16) * 2^-23 * (sum_k |x[t][k] * w[n][k]| + |bias[n]|)`.
///
/// With [`Compute::Bf16`] many rows are rounded first:
///
/// * with `bf16` weights 32 rows or more, to `bf16`;
/// * with `int8` weights 12 rows or more, to whole numbers of 16 bits: each value of a row by half of a 32767th of the largest size
///   among the 64 that share a scale of weights, at most; where all 64 are below `2^-100` they count as zero. The weights stay as they
///   are;
/// * with `int8` weights and AMX 32 rows or more, to `bf16`, and so are the weights.
///
/// A row with a value that is no finite number has no finite results.
///
/// # Panics
/// If the lengths do not fit: `x.len() == T * K`, `out.len() == T * N`, `bias.len() == N`.
pub fn linear(cpu: &Cpu, w: &Matrix, bias: Option<&[f32]>, x: &[f32], out: &mut [f32]) {
    let (n, k) = (w.rows(), w.cols());
    let t = out.len().checked_div(n).unwrap_or(0);
    assert_eq!(out.len(), t * n, "output is no whole number of rows of {n}");
    assert_eq!(x.len(), t * k, "{t} rows of {k} inputs expected");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), n, "one bias for each of {n} outputs expected");
    }
    match w.elements() {
        MatrixView::F32(v) => Linear { w: w.rows_of(v), bias, x, n, k, t }.run(cpu, out),
        MatrixView::F16(v) => Linear { w: w.rows_of(v), bias, x, n, k, t }.run(cpu, out),
        MatrixView::BF16(v) => Linear { w: w.rows_of(v), bias, x, n, k, t }.run(cpu, out),
        MatrixView::I8(v) => {
            let linear = Linear { w: w.rows_of(v), bias, x, n, k, t };
            match integer::used(cpu, t) {
                true => integer::along(cpu, linear, out),
                false => linear.run(cpu, out),
            }
        }
    }
}

/// [`linear`] with weights that training has in memory, `[N, K]`.
pub(crate) fn linear_f32(cpu: &Cpu, w: &[f32], [n, k]: [usize; 2], bias: Option<&[f32]>, x: &[f32], out: &mut [f32]) {
    let t = out.len().checked_div(n).unwrap_or(0);
    assert_eq!(w.len(), n * k, "{n} rows of {k} weights expected");
    assert_eq!(out.len(), t * n, "output is no whole number of rows of {n}");
    assert_eq!(x.len(), t * k, "{t} rows of {k} inputs expected");
    assert!(bias.is_none_or(|bias| bias.len() == n), "one bias for each of {n} outputs expected");
    Linear { w: RowsOf::contiguous(w, k), bias, x, n, k, t }.run(cpu, out);
}

/// Bytes that [`linear`] reads for `rows_of_x` rows: the weights once, the inputs once.
pub fn linear_bytes(w: &Matrix, rows_of_x: usize) -> u64 {
    (w.bytes() + rows_of_x * w.cols() * size_of::<f32>()) as u64
}

/// Name of the blocked product of rows with weights of a type.
fn blocked_name(cpu: &Cpu, dtype: DType, compute: Compute) -> String {
    let isa = cpu.isa();
    if dtype == DType::I8 && compute == Compute::Bf16 && integer::possible(cpu) {
        return integer::name(cpu);
    }
    if isa == IsaName::Amx {
        let factors = match (compute, dtype) {
            (Compute::Bf16, _) => "bf16xbf16",
            (Compute::F32, DType::BF16) => "bf16x3bf16",
            (Compute::F32, DType::F16 | DType::I8) => "2bf16x3bf16",
            (Compute::F32, DType::F32) => "3bf16x3bf16",
        };
        return format!("{isa}-{factors}-tile32x32");
    }
    let (isa, factors) = match compute {
        Compute::F32 => (isa.to_string(), format!("{dtype}xf32")),
        Compute::Bf16 if cpu.has_bf16() => (format!("{isa}bf16"), "bf16xbf16".to_owned()),
        Compute::Bf16 => (isa.to_string(), "bf16xbf16".to_owned()),
    };
    format!("{isa}-{factors}-tile{}x{}", gemm::TILE_ROWS, gemm::panel_tokens(cpu.geometry()))
}

/// Names of the kernels that [`linear`] and [`linear_transposed`] run, for each weight type.
pub(super) fn names(cpu: &Cpu) -> Vec<(String, String)> {
    let isa = cpu.isa();
    let mut names = Vec::new();
    for dtype in DType::ALL {
        let many = gemm_rows(cpu, dtype);
        names.push((format!("linear {dtype}, 1 row"), format!("{isa}-{dtype}xf32-rows8x1")));
        let tile = match (cpu.geometry().registers, dtype) {
            (32.., DType::I8) => "4x4",
            (32.., _) => "3x8",
            _ => "2x4",
        };
        names.push((format!("linear {dtype}, 2 to {} rows", many - 1), format!("{isa}-{dtype}xf32-rows{tile}")));
        let blocked = blocked_name(cpu, dtype, compute(cpu, dtype));
        names.push((format!("linear {dtype}, {many} rows or more"), blocked));
        names.extend(transposed::names(cpu, dtype));
    }
    names
}

/// The operands of one call.
#[derive(Clone, Copy)]
pub(crate) struct Linear<'a, W> {
    /// `[n, k]`
    pub(crate) w: RowsOf<'a, W>,
    /// `[n]`
    pub(crate) bias: Option<&'a [f32]>,
    /// `[t, k]`
    pub(crate) x: &'a [f32],
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) t: usize,
}

impl<W: Words> Linear<'_, W> {
    fn run(self, cpu: &Cpu, out: &mut [f32]) {
        if self.t == 0 {
            return;
        }
        let Linear { w, bias, x, n, k, t } = self;
        if t >= gemm_rows(cpu, W::DTYPE) {
            let factors = Factors { weights: ByRows { w, cols: k }, bias, x, n, k, t };
            return gemm(cpu, compute(cpu, W::DTYPE), factors, out);
        }
        let row_bytes = w.span * size_of::<W>();
        let out = SharedOut::new(out);
        let packed = Packed::new::<W>(cpu, x, [t, k]);
        let x = packed.values();
        let chunk = |range: Range<usize>| cpu.run(Rows { linear: self, x, range, out });
        cpu.split(n, rows::STREAMS, row_bytes, &chunk);
    }
}
