//! Rows of an embedding table.

use super::cpu::Cpu;
use super::isa::Kernel;
use super::linear::widen;
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
            widen(s, self.row, self.out);
        }
    }
    assert!(row < table.rows(), "row {row} of a table of {} rows", table.rows());
    let range = row * table.cols()..(row + 1) * table.cols();
    match table.view() {
        MatrixView::F32(w) => cpu.run(Widen { row: &w[range], out }),
        MatrixView::F16(w) => cpu.run(Widen { row: &w[range], out }),
        MatrixView::BF16(w) => cpu.run(Widen { row: &w[range], out }),
    }
}
