//! Runs a kernel: blocks one after the other, the warps of a block in turns.

mod async_copy;
mod atomics;
mod barrier;
mod block;
mod collective;
mod machine;
mod matrix;
mod memory;
mod moves;
mod registers;
mod warp;

pub use machine::{Geometry, Launch, run};
