//! The linear layer as its definition says, in `f64`.

use half::bf16;
use shadowllm_weights::DType;

use crate::kernels::Compute;
use crate::kernels::testing::widened;
use crate::tensor::Matrix;

/// Expected value and error bound of every output `[T, N]`.
pub(crate) fn linear(w: &Matrix, bias: Option<&[f32]>, x: &[f32], compute: Compute) -> Vec<(f64, f64)> {
    product(&widened(w), [w.rows(), w.cols()], w.dtype(), bias, x, compute)
}

/// Expected value and error bound of every output `[T, K]` of the product with the transposed matrix: that of a layer whose
/// weights are the columns.
pub(crate) fn transposed(w: &Matrix, bias: Option<&[f32]>, x: &[f32], compute: Compute) -> Vec<(f64, f64)> {
    let (n, k) = (w.rows(), w.cols());
    let w32 = widened(w);
    let columns: Vec<f32> = (0..k).flat_map(|c| w32.iter().skip(c).step_by(k).copied()).collect();
    product(&columns, [k, n], w.dtype(), bias, x, compute)
}

fn product(
    widened: &[f32],
    [n, k]: [usize; 2],
    dtype: DType,
    bias: Option<&[f32]>,
    x: &[f32],
    compute: Compute,
) -> Vec<(f64, f64)> {
    let rounded = compute == Compute::Bf16 && matches!(dtype, DType::BF16 | DType::I8);
    let input = |v: f32| if rounded { bf16::from_f32(v).to_f64() } else { f64::from(v) };
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
