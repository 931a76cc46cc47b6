//! CPU kernels.

mod activation;
mod attention;
mod bandwidth;
mod cpu;
mod elementwise;
mod embed;
mod error;
mod isa;
mod linear;
mod norm;
mod reduce;
mod rope;
mod simd;
mod softmax;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod testing;

pub use activation::{activate, gated};
pub use attention::{AttentionShape, attention, attention_bytes};
pub use bandwidth::{peak_flops, read_bandwidth};
pub use cpu::{Compute, Cpu, CpuOptions};
pub use elementwise::add_assign;
pub use embed::embed_row;
pub use error::KernelError;
pub use isa::IsaName;
pub use linear::{linear, linear_bytes};
pub use norm::{layer_norm, rms_norm};
pub use reduce::{argmax, log_sum_exp};
pub use rope::{RopeTable, rope};
pub use softmax::softmax;
