//! What the kernels' tests share: contexts for every instruction set, random values, and comparison with a stated bound.

use std::ops::Range;

use proptest::test_runner::{TestCaseError, TestCaseResult};
use shadowllm_weights::{DType, TensorData, int8_values};

use super::{Compute, Cpu, CpuOptions, IsaName};
use crate::tensor::{Matrix, MatrixView};

/// A context, or `None` (with a line saying so) where this processor lacks the instructions.
pub(crate) fn cpu(isa: IsaName, threads: usize, compute: Compute) -> Option<Cpu> {
    if IsaName::available().all(|name| name != isa) {
        #[allow(clippy::print_stderr)]
        {
            eprintln!("skipped: this processor has no {isa}");
        }
        return None;
    }
    Cpu::new(&CpuOptions { isa: Some(isa), threads: Some(threads), compute }).ok()
}

/// Stamps the functions `fn(IsaName)` given as tests of every instruction set.
macro_rules! on_every_isa {
    ($($test:ident),* $(,)?) => {
        mod portable {
            $(#[test] fn $test() { super::$test($crate::kernels::IsaName::Portable); })*
        }
        mod avx2 {
            $(#[test] fn $test() { super::$test($crate::kernels::IsaName::Avx2); })*
        }
        mod avx512 {
            $(#[test] fn $test() { super::$test($crate::kernels::IsaName::Avx512); })*
        }
        mod amx {
            $(#[test] fn $test() { super::$test($crate::kernels::IsaName::Amx); })*
        }
    };
}
pub(crate) use on_every_isa;

/// Deterministic pseudo-random values in -1 .. 1 (splitmix64).
pub(crate) fn values(seed: u64, n: usize) -> Vec<f32> {
    (0..n as u64)
        .map(|i| {
            let mut z = (seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(i)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// A random matrix.
pub(crate) fn matrix(seed: u64, rows: usize, cols: usize, dtype: DType) -> Matrix {
    let data = TensorData::from_f32_as(&[rows, cols], dtype, &values(seed, rows * cols)).unwrap();
    Matrix::new(data).unwrap()
}

/// Random records of `height` rows of `cols` values.
pub(crate) fn records(seed: u64, count: usize, height: usize, cols: usize, dtype: DType) -> Matrix {
    let data = TensorData::from_f32_as(&[count, height, cols], dtype, &values(seed, count * height * cols)).unwrap();
    Matrix::of_records(data).unwrap()
}

/// All weights of a matrix whose rows lie together, as they are defined.
pub(crate) fn widened(w: &Matrix) -> Vec<f32> {
    match w.view() {
        MatrixView::F32(w) => w.to_vec(),
        MatrixView::F16(w) => w.iter().map(|v| v.to_f32()).collect(),
        MatrixView::BF16(w) => w.iter().map(|v| v.to_f32()).collect(),
        MatrixView::I8(rows) => {
            let mut out = vec![0.0; w.rows() * w.cols()];
            let rows = rows.chunks_exact(DType::I8.row_bytes(w.line()).max(1));
            for (row, out) in rows.zip(out.chunks_exact_mut(w.line().max(1))) {
                int8_values(bytemuck::cast_slice(row), out);
            }
            out
        }
    }
}

/// A random matrix that consists of lines `lines` of `count` records of `height` lines, and the same matrix on its own.
pub(crate) fn matrices_in_records(
    seed: u64,
    count: usize,
    height: usize,
    lines: Range<usize>,
    cols: usize,
    dtype: DType,
) -> [Matrix; 2] {
    let all = values(seed, count * height * cols);
    let records = TensorData::from_f32_as(&[count, height, cols], dtype, &all).unwrap();
    let own = all.chunks_exact(height * cols).flat_map(|record| &record[lines.start * cols..lines.end * cols]);
    let own = TensorData::from_f32_as(&[count * lines.len(), cols], dtype, &own.copied().collect::<Vec<_>>()).unwrap();
    [Matrix::in_records(records, lines).unwrap(), Matrix::new(own).unwrap()]
}

/// Whether `found` is within `bound` of `expected`, element by element.
pub(crate) fn close(found: &[f32], expected: &[(f64, f64)]) -> TestCaseResult {
    assert_eq!(found.len(), expected.len());
    for (i, (&found, &(expected, bound))) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        if error.is_nan() || error > bound {
            let what =
                format!("element {i}: {found:e} instead of {expected:e}, error {error:e} over the bound {bound:e}");
            return Err(TestCaseError::fail(what));
        }
    }
    Ok(())
}
