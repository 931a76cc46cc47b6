//! Tests of the emulator: kernels against oracles, instructions against Rust, mistakes against the checks.

#![allow(clippy::unwrap_used)]

mod attention;
mod counting;
mod elementwise;
mod faults;
mod features;
mod fresh;
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
