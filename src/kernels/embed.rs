//! Rows of an embedding table.

use super::cpu::Cpu;
use super::isa::Kernel;
use super::simd::{Element, Simd};
use crate::tensor::{Matrix, MatrixView};

/// Copies row `row` of `table` `[V, d]` to `out` `[d]`, widened to `f32` (exact).
///
/// # Panics
/// If the row does not exist or `out` is not as long as a row.
pub fn embed_row(cpu: &Cpu, table: &Matrix, row: usize, out: &mut [f32]) {
    struct Widen<'a, W> {
        row: &'a [W],
        out: &'a mut [f32],
    }
    impl<W: Element> Kernel for Widen<'_, W> {
        type Out = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            W::widen_row(s, self.row, self.out.len(), 0, self.out);
        }
    }
    assert!(row < table.rows(), "row {row} of a table of {} rows", table.rows());
    assert_eq!(out.len(), table.cols(), "a row of {} values is to be copied", table.cols());
    match table.elements() {
        MatrixView::F32(w) => cpu.run(Widen { row: table.rows_of(w).row(row), out }),
        MatrixView::F16(w) => cpu.run(Widen { row: table.rows_of(w).row(row), out }),
        MatrixView::BF16(w) => cpu.run(Widen { row: table.rows_of(w).row(row), out }),
        MatrixView::I8(w) => cpu.run(Widen { row: table.rows_of(w).row(row), out }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernels::testing::{cpu, matrix, on_every_isa, widened};
    use crate::kernels::{Compute, IsaName};
    use half::{bf16, f16};
    use shadowllm_weights::{DType, TensorData};

    fn rows_are_widened_exactly(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        for dtype in DType::ALL {
            for width in [1, 12, 16, 100] {
                let table = matrix(3, 5, width, dtype);
                for row in 0..5 {
                    let mut out = vec![f32::NAN; width];
                    embed_row(&cpu, &table, row, &mut out);
                    assert_eq!(out, widened(&table)[row * width..][..width]);
                }
            }
        }
    }

    fn every_half_is_widened_exactly(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        let mut out = vec![0.0; 1 << 16];
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let table = Matrix::new(TensorData::from_f16(&[1, 1 << 16], &all).unwrap()).unwrap();
        embed_row(&cpu, &table, 0, &mut out);
        for (value, found) in all.iter().zip(&out) {
            assert!(found.to_bits() == value.to_f32().to_bits() || found.is_nan() && value.is_nan(), "{value:?}");
        }
        let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let table = Matrix::new(TensorData::from_bf16(&[1, 1 << 16], &all).unwrap()).unwrap();
        embed_row(&cpu, &table, 0, &mut out);
        for (value, found) in all.iter().zip(&out) {
            assert!(found.to_bits() == value.to_f32().to_bits() || found.is_nan() && value.is_nan(), "{value:?}");
        }
    }

    on_every_isa!(rows_are_widened_exactly, every_half_is_widened_exactly);
}
