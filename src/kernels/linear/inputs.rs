//! Inputs of one to a few rows as kernels take them: as they are, or rounded where int8 weights are multiplied with whole numbers.

use crate::kernels::cpu::{Compute, Cpu, Scratch};
use crate::kernels::simd::{Int8Whole, round_row};

/// Rows of `x` `[t, k]` for [`Int8Whole`] weights, `None` where [`Compute`] asks for products of inputs as they are, or rows are too
/// short to be rounded. The same for every kernel and instruction set, because it is part of the meaning.
pub(crate) fn whole_inputs<'a>(cpu: &'a Cpu, x: &[f32], k: usize) -> Option<Scratch<'a>> {
    if cpu.compute() != Compute::Bf16 || !Int8Whole::takes(k) {
        return None;
    }
    let mut rounded = cpu.scratch(x.len());
    for (x, rounded) in x.chunks_exact(k).zip(rounded.chunks_exact_mut(k)) {
        round_row(x, rounded);
    }
    Some(rounded)
}
