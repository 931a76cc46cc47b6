//! CPU kernels: where the time goes.
//!
//! # Why
//! Decoding a token reads every weight that takes part in it once and does two operations with each, so its time is the
//! number of bytes over the bandwidth of memory. A kernel's duty is then not to be in the way: to read whole contiguous
//! records, in enough streams that memory is kept busy, in the format they have on disk. Prefill and scoring use a weight for
//! many tokens and are bound by arithmetic instead: there the duty is to keep the multiply-add units fed from registers.
//! Each operation therefore has a version per regime, and the bytes it reads are declared beside it ([`linear_bytes`],
//! [`attention_bytes`]) so that every report can hold it against [`read_bandwidth`] and [`peak_flops`] of the same run.
//!
//! # How a kernel is written and entered
//! A kernel is written once, generic over `simd::Simd`, the vector operations of an instruction set, and over
//! `simd::Element`, the format of the weights. It implements `isa::Kernel`: a struct of operands with one
//! method `run`. [`Cpu`] holds a proof token, made only where the processor was asked, and enters the kernel through one
//! function per instruction set that enables its instructions; everything below is inlined into that function.
//!
//! ```text
//! linear(&cpu, ..)            checks shapes, chooses the regime
//!   cpu.split(rows, ..)       cuts the *output* into ranges, one task each
//!     cpu.run(Rows { .. })    enters avx512 | avx2 | portable
//!       Rows::run::<S>(s)     the loop, written once
//! ```
//!
//! The instruction set is the widest that exists unless [`CpuOptions`] or the environment variable `SHADOWLLM_ISA` names
//! another; naming one that does not exist is an error, never a silent fallback. [`Cpu::kernel_names`] says what runs.
//!
//! # How to add one
//! * An operation: a file here with a struct that implements `Kernel`, a public function that checks shapes and splits the
//!   work, an oracle in `f64`, and tests stamped on every instruction set by `on_every_isa!`.
//! * A weight format: an `Element`, which says where scales are if it has any, and a load in each instruction set's file.
//! * A way to multiply many rows (wider products, integers): a `Product` in `linear`.
//! * An instruction set: a token in `isa`, a file in `simd`.
//!
//! # Numeric contract
//! * Weights are widened exactly; products and sums are `f32`. Bounds are stated at each function and tested at that bound.
//! * The result of a call does not depend on the number of threads, nor on what else runs: each output element is computed by
//!   one task, in an order given by shapes alone. Tests compare bits for 1, 2 and 3 threads.
//! * Rows multiplied together give the same bits as one by one, until there are so many that the blocked product takes over.
//! * Instruction sets differ from each other in rounding, within the stated bounds.
//! * NaN and infinity are never swallowed: they reach every output that depends on them.
//! * Shapes are the caller's responsibility and checked: a wrong length panics, like a slice index. Models validate theirs when
//!   they are loaded.
//! * Steady state allocates nothing: scratch memory belongs to the [`Cpu`] and is reused.

mod activation;
mod adamw;
mod attention;
mod bandwidth;
mod cpu;
mod elementwise;
mod embed;
mod error;
mod gather;
mod gradient;
mod isa;
mod linear;
mod norm;
mod reduce;
mod rope;
mod simd;
mod softmax;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod testing;

pub use activation::{activate, gated};
pub use adamw::AdamW;
pub use attention::{
    AttentionPass, AttentionShape, attention, attention_backward, attention_bytes, attention_gather,
    attention_gather_bytes, attention_recorded,
};
pub use bandwidth::{peak_flops, read_bandwidth, read_passes};
pub(crate) use cpu::SharedOut;
pub use cpu::{Compute, Cpu, CpuOptions};
pub use elementwise::add_assign;
pub use embed::embed_row;
pub use error::KernelError;
pub use gather::{
    FfnGather, GatherCount, MOST_SEQUENCES, ffn_gather, ffn_gather_batch, heads_bytes, heads_output,
    heads_output_batch, heads_project, heads_project_batch, kv_project, kv_project_bytes,
};
pub use gradient::{activate_backward, cross_entropy_backward, gated_backward, layer_norm_backward, rms_norm_backward};
pub use isa::IsaName;
pub(crate) use isa::Kernel;
pub use linear::{bias_gradient, linear, linear_bytes, linear_transposed, weight_gradient};
pub(crate) use linear::{linear_f32, linear_transposed_f32};
pub use norm::{layer_norm, rms_norm};
pub use reduce::{argmax, log_sum_exp};
pub use rope::{RopeTable, rope, rope_backward};
pub(crate) use simd::Simd;
pub use softmax::softmax;
