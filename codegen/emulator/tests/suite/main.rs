//! Tests of the emulator: kernels against oracles, instructions against Rust, mistakes against the checks.

mod attention;
mod elementwise;
mod faults;
mod instructions;
mod mutants;
mod pipelines;
mod reductions;
mod row_dot;
mod selection;
mod softmax;
mod support;
mod threads;
mod warps;
