//! The linear layer as its definition says, in `f64`.

use half::bf16;
use shadowllm_weights::{DType, INT8_GROUP, int8_scales};

use super::{BF16_ROWS, SAME_BITS};
use crate::kernels::testing::widened;
use crate::kernels::{Compute, Cpu, IsaName};
use crate::tensor::{Matrix, MatrixView};

/// How inputs are rounded.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Rounding {
    /// Not at all.
    None,
    /// Both factors to `bf16`: the expected value is that of rounded ones.
    Bf16,
    /// `x` to whole numbers of 16 bits: the bound allows half a unit of the largest in every group.
    Whole,
}

impl Rounding {
    /// What a context does with `rows` rows and weights of a type.
    pub(crate) fn of(cpu: &Cpu, dtype: DType, rows: usize) -> Rounding {
        match (cpu.compute(), dtype) {
            (Compute::F32, _) | (_, DType::F32 | DType::F16) => Rounding::None,
            (Compute::Bf16, DType::I8) if cpu.isa() != IsaName::Amx && rows >= SAME_BITS => Rounding::Whole,
            (Compute::Bf16, _) if rows >= BF16_ROWS => Rounding::Bf16,
            (Compute::Bf16, _) => Rounding::None,
        }
    }
}

/// Expected value and error bound of every output `[T, N]`.
pub(crate) fn linear(w: &Matrix, bias: Option<&[f32]>, x: &[f32], rounding: Rounding) -> Vec<(f64, f64)> {
    let weights = widened(w);
    let mut out = product(&weights, [w.rows(), w.cols()], bias, x, rounding);
    if rounding == Rounding::Whole {
        let rows = x.chunks_exact(w.cols()).flat_map(|x| weights.chunks_exact(w.cols()).map(move |w| (w, x)));
        for ((_, bound), (w, x)) in out.iter_mut().zip(rows) {
            let groups = w.chunks(INT8_GROUP).zip(x.chunks(INT8_GROUP));
            *bound += groups.map(|(w, x)| half_unit(largest(x)) * size(w)).sum::<f64>();
        }
    }
    out
}

/// Expected value and error bound of every output `[T, K]` of the product with the transposed matrix: that of a layer whose
/// weights are the columns.
pub(crate) fn transposed(w: &Matrix, bias: Option<&[f32]>, x: &[f32], rounding: Rounding) -> Vec<(f64, f64)> {
    let (n, k) = (w.rows(), w.cols());
    let weights = widened(w);
    let column = |c: usize, values: &[f32]| values.iter().skip(c).step_by(k).copied().collect::<Vec<_>>();
    let columns: Vec<f32> = (0..k).flat_map(|c| column(c, &weights)).collect();
    let mut out = product(&columns, [k, n], bias, x, rounding);
    if rounding == Rounding::Whole {
        // Each group of outputs has scales of its own, with which `x` is multiplied before it is rounded.
        let scales = scales(w);
        let groups = k.div_ceil(INT8_GROUP);
        for (i, (_, bound)) in out.iter_mut().enumerate() {
            let (t, c) = (i / k, i % k);
            let scales: Vec<f32> = scales.iter().skip(c / INT8_GROUP).step_by(groups).copied().collect();
            let mut whole = column(c, &weights);
            whole.iter_mut().zip(&scales).for_each(|(w, s)| *w = if *s > 0.0 { *w / s } else { 0.0 });
            *bound += half_unit(largest(&x[t * n..][..n]) * largest(&scales)) * size(&whole);
        }
    }
    out
}

fn largest(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |most, v| most.max(f64::from(v.abs())))
}

fn size(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(v.abs())).sum()
}

/// Most that is lost where the largest is a whole number of 15 bits and a sign; a little more for the roundings on the way.
fn half_unit(largest: f64) -> f64 {
    0.51 * largest / 32767.0
}

/// All scales of `int8` weights, `[rows, groups]`.
fn scales(w: &Matrix) -> Vec<f32> {
    let MatrixView::I8(elements) = w.view() else { unreachable!("only int8 weights have scales") };
    let row = DType::I8.row_bytes(w.cols());
    let of_row = |row: &[crate::tensor::Int8]| {
        let bytes: Vec<u8> = row[int8_scales(w.cols())..].iter().map(|b| b.0).collect();
        let scales = bytes.chunks_exact(2).take(w.cols().div_ceil(INT8_GROUP));
        scales.map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect::<Vec<_>>()
    };
    elements.chunks_exact(row).flat_map(of_row).collect()
}

fn product(
    widened: &[f32],
    [n, k]: [usize; 2],
    bias: Option<&[f32]>,
    x: &[f32],
    rounding: Rounding,
) -> Vec<(f64, f64)> {
    let input = |v: f32| if rounding == Rounding::Bf16 { bf16::from_f32(v).to_f64() } else { f64::from(v) };
    let t = x.len().checked_div(k).unwrap_or(0);
    let mut out = Vec::with_capacity(t * n);
    for x in x.chunks_exact(k) {
        for (i, w) in widened.chunks_exact(k).enumerate() {
            let products = || w.iter().zip(x).map(|(&w, &x)| input(w) * input(x));
            let b = bias.map_or(0.0, |bias| f64::from(bias[i]));
            let size = products().map(f64::abs).sum::<f64>() + b.abs();
            out.push((products().sum::<f64>() + b, (k as f64 / 8.0 + 16.0) * f64::from(f32::EPSILON) * size));
        }
    }
    out
}
