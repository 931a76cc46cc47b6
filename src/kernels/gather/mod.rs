//! Kernels over listed units: a plan's heads and neurons, and nothing else, are read.
//!
//! # Why
//! A token that keeps half of the units should take half of the time. It does if, and only if, exactly the kept weights are
//! read, each once, in whole contiguous records, by threads that never wait for each other. So the weights are stored as one
//! record per unit (a packed checkpoint), a plan is a list of indices, never a mask, and nothing is copied together first.
//!
//! # How
//! [`streams`] holds the two loops all of these consist of: products of listed rows with `x`, and listed rows times a factor
//! added to a sum. The processor prefetches what follows in memory; what follows in a list it cannot know, so the loops ask for
//! it. [`pieces`] makes the sums deterministic: a list is cut by its length alone, and the pieces' sums are added in order.
//!
//! For batches there are [`group`], [`products`] and [`sums`]: sequences that list the same unit share the reading of it and, in products
//! where that pays, the widening of its weights. Each has its own list, and the bits that it would have alone.
//!
//! The FFN is one pass: first rows of a block of records, activation, then the rest of those records. A record whose inner value
//! turns out to be 0 is left there: with ReLU because the activation says so, with a gate if it is below a threshold.
//!
//! # Contract
//! Products are bit for bit those of [`linear`](super::linear); sums over units differ from it in the order of
//! additions, within the bounds stated. Results depend on the operands and the list alone: a full list gives the same bits
//! whoever made it, and so does any other. An empty list gives the bias.

mod ffn;
mod ffn_batch;
mod group;
mod heads;
mod heads_batch;
mod pieces;
mod products;
mod streams;
mod sums;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use ffn::{FfnGather, GatherCount, ffn_gather};
pub use ffn_batch::ffn_gather_batch;
pub use group::MOST_SEQUENCES;
pub use heads::{heads_bytes, heads_output, heads_project, kv_project, kv_project_bytes};
pub use heads_batch::{heads_output_batch, heads_project_batch};
pub(super) use pieces::Pieces;
pub(super) use streams::add_rows;

use shadowllm_weights::DType;

use super::cpu::Cpu;
use crate::tensor::Matrix;

/// Panics if scales belong to other rows than the rows of `d` of which the records consist.
fn check_lines(records: &Matrix, d: usize) {
    let apart = records.dtype() != DType::I8 || records.line() == d || records.rows() == 0;
    assert!(apart, "the scales of these records belong to rows of {}, not of {d}", records.line());
}

/// Names of the kernels, for each weight type.
pub(super) fn names(cpu: &Cpu) -> Vec<(String, String)> {
    let name = |dtype| (format!("gather {dtype}"), format!("{}-{dtype}xf32-streams{}", cpu.isa(), streams::STREAMS));
    DType::ALL.into_iter().map(name).collect()
}
