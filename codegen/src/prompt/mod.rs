//! Prompts: blocks of tokens at a time, so that weights are read once per block and multiplied on tensor cores.
//!
//! A block of [`TOKENS`] tokens is as long as it can be before arithmetic and not memory is what takes time: a weight of two bytes meets
//! 128 tokens in two products each, 256 multiply-adds for each byte. More tokens in flight would gain little, and fewer waste bandwidth.
//!
//! Tensor cores multiply 16-bit numbers. What is multiplied with the weights is therefore split in two such numbers, the nearest one and
//! the nearest to what that leaves; both are multiplied and summed in `f32`. A bf16 pair holds 16 bits of an activation and an f16 pair
//! 21, so a prompt is as exact as the CPU engine's to a few units of 2^-17, not of 2^-8. `f32` models, which are for tests, have the same
//! tiles with plain multiply-adds. Attention is plain `f32`: its keys and values are, and it is a small part of a block's work until
//! contexts are long.
//!
//! Why not cuBLAS: the weights lie in records (a head's query rows, then its output columns; a neuron's rows together), which a
//! library's strides do not describe for every product, so they would have to be copied apart; it is one more library of some hundred
//! megabytes to be found; its order of sums is not known; and it does not run on the emulator, so nothing of it could be checked here.
//!
//! | file | idea |
//! | --- | --- |
//! | `tiles` | device functions: a block's product with rows, or with columns, through shared memory |
//! | `products` | the kernels that multiply |
//! | `attention` | the block's tokens over all positions up to theirs |
//! | `rows` | what is done to a token's row: embedding, sums and norm, the end |

mod attention;
mod products;
mod rows;
mod tiles;

pub(crate) use attention::kernel as attention;
pub(crate) use products::{ffn_first, ffn_second, output, qkv};
pub(crate) use rows::{Before, embed, end, norm};
pub(crate) use tiles::functions;

use crate::kernel::{Access, Element, Param, Traffic};
use crate::template::round_up;
use crate::{DType, KernelSpec};

/// Tokens of a block of a prompt.
pub const TOKENS: usize = 128;
/// Words of what the host writes for a block: first position, tokens, two of nothing, their numbers.
pub(crate) const BLOCK_WORDS: usize = 4 + TOKENS;

/// Numbers that an activation is split in.
pub(crate) const fn planes(dtype: DType) -> usize {
    match dtype {
        DType::F32 => 1,
        DType::F16 | DType::BF16 => 2,
    }
}

/// Bytes of activations of `width` in a block, split.
pub(crate) const fn planes_bytes(spec: &KernelSpec, width: usize) -> usize {
    planes(spec.dtype) * TOKENS * round_up(width, spec.dtype.vector()) * spec.dtype.size()
}

/// Parts that the depth of a product with columns is cut into: as many as make about a block for every multiprocessor.
pub(crate) fn parts(spec: &KernelSpec) -> usize {
    (spec.sm.multiprocessors() / spec.sizes.hidden.div_ceil(tiles::OUTPUTS)).clamp(1, 8)
}

fn element(dtype: DType) -> Element {
    match dtype {
        DType::F32 => Element::F32,
        DType::F16 | DType::BF16 => Element::U16,
    }
}

/// Split activations of `width`.
fn split(spec: &KernelSpec, name: &'static str, access: Access, width: usize) -> Param {
    Param::buffer(name, element(spec.dtype), access, Traffic::fixed(planes_bytes(spec, width)))
}

/// What the host wrote for the block.
fn block() -> Param {
    Param::read("block", Element::U32, BLOCK_WORDS)
}
