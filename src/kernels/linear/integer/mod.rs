//! Products of `int8` weights with many rows of `x` in whole numbers.
//!
//! An `int8` weight is a whole number times the scale of its group. Where products may be rounded ([`Compute::Bf16`]) the rows of
//! `x` are rounded to whole numbers of 16 bits, with a scale for each row and group of values ([`inputs`]), so that a sum over a group
//! is one of whole numbers, exact in 32 bits, which is multiplied with both scales at its end. The weights stay as they are, and
//! of `x` twice as many bits are left as `bf16` would have of its largest values.
//!
//! An instruction multiplies and adds two pairs of 16 bits in every lane, twice as many as with `f32`; an `int8` is half as long
//! as a `bf16`, and is widened to 16 bits with a single instruction. As in [`gemm`](super::gemm) vectors run along tokens, over
//! panels of `x`. The sums run along rows of the matrix ([`along`]), where a group of weights is a group of values of `x`; or down
//! its columns ([`down`]), where every row has a scale of its own for the same group of outputs: `x` is multiplied with it before
//! it is rounded.
//!
//! AMX is faster still, in `bf16`.

mod along;
mod down;
mod inputs;
mod tile;

pub(super) use along::along;
pub(super) use down::down;

use super::{SAME_BITS, gemm};
use crate::kernels::IsaName;
use crate::kernels::cpu::{Compute, Cpu};

/// Rows from which products are made in whole numbers: fewer have the bits that one row has. Measured: from so few on they are faster
/// than those of `f32`.
pub(super) const ROWS: usize = SAME_BITS;

/// Whether the context makes products of many rows in whole numbers.
pub(super) fn possible(cpu: &Cpu) -> bool {
    cpu.compute() == Compute::Bf16 && cpu.isa() != IsaName::Amx
}

/// Whether those of `rows` rows are.
pub(super) fn used(cpu: &Cpu, rows: usize) -> bool {
    possible(cpu) && rows >= ROWS
}

/// Name of the kernels.
pub(super) fn name(cpu: &Cpu) -> String {
    let vnni = if cpu.has_vnni() { "vnni" } else { "" };
    format!("{}{vnni}-int8xint16-tile{}x{}", cpu.isa(), gemm::TILE_ROWS, gemm::panel_tokens(cpu.geometry()))
}
