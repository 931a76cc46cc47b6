//! The minimal tensor: a weight matrix that knows its number format, and aligned memory for everything else.
//!
//! Activations are plain `f32` slices whose shapes stand in each function's documentation; they need no type, only memory
//! that begins at a cache line ([`Buffer`]). Weights do:
//! they stay in the format of their file (`f32`, `f16`, `bf16` or `int8`), usually inside a memory-mapped checkpoint, and every
//! kernel must know which of them it streams. [`Matrix`] is that knowledge and nothing more: two sizes, a format, shared
//! bytes, and where in them the rows are ([`RowLayout`]): one behind the other, or in the records of a packed checkpoint.

mod buffer;
mod layout;
mod matrix;

pub use buffer::Buffer;
pub use layout::RowLayout;
pub(crate) use layout::RowsOf;
pub use matrix::{Int8, Matrix, MatrixView, TensorError};
