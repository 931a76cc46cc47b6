//! The blocked product with AMX: 16 by 16 outputs, 32 products each, per instruction.
//!
//! A tile register holds 16 rows of 64 bytes. `tdpbf16ps` multiplies 16 weight rows of 32 `bf16` with the pairs of 16 tokens and
//! adds to 16 x 16 sums in `f32`. Rows of weights are such tiles as they lie, and the panels of words that
//! [`gemm`](super::gemm) packs are the other factor: the words of one `k`, tokens side by side. So packing and blocking are
//! the same; four of the eight registers hold the sums of 32 weights and 32 tokens, two the weights, two the tokens.
//!
//! With [`Compute::Bf16`] `x` is rounded to `bf16` and one product is made. With [`Compute::F32`] nothing is rounded: the 24 bits
//! of an `f32` are exactly three `bf16` ([`Part`]), and so are the 11 bits of an `f16` and the 15 of an `int8` with its scale two of
//! them. Products of parts are exact in
//! `f32` and are added to the same sums; those under 2^-23 of the whole are left out. That is three instructions for `bf16`
//! weights, five for `f16` and `int8` and six for `f32` in place of one, and still a multiple of the rate of the vector units. The
//! instruction treats subnormal numbers as zero: values below 2^-102 may lose their last parts.

use std::arch::asm;
use std::ops::Range;

use shadowllm_weights::DType;

use super::gemm::{Factors, Layout, Pack, blocks, write_block};
use super::product::{Pairs, Part, Product};
use super::weights::{Tile, Weights};
use crate::kernels::cpu::{Compute, Cpu, SharedOut};
use crate::kernels::isa::{Amx, Kernel};
use crate::kernels::simd::Simd;

/// Rows of a tile register, and 32-bit words in one of its rows.
const SIDE: usize = 16;
/// Most words along `K` in one block: the weights of a block, 20 KiB, stay in the first-level cache while panels pass.
const BLOCK: usize = 160;
/// Outputs, and tokens, whose sums are in registers at once.
const TILE_OUTPUTS: usize = 2 * SIDE;
const TILE_TOKENS: usize = 2 * SIDE;
/// Outputs whose sums are kept at once if `x` is too large for the second-level cache: while they pass, one block of it stays.
const ROW_BLOCK: usize = 8 * TILE_OUTPUTS;
/// Tokens whose sums are kept at once. Weights are made anew for every block of tokens.
const TOKEN_BLOCK: usize = 512;
/// Bytes of `x` that stay in the second-level cache while all outputs pass: then the sums can stay in the first.
const CACHED_BYTES: usize = 1 << 20;

/// Outputs whose weights are made together, a multiple of [`TILE_OUTPUTS`].
const fn together<M: Weights>() -> usize {
    if M::SCATTERED { ROW_BLOCK } else { TILE_OUTPUTS }
}

/// Computes all outputs.
pub(super) fn gemm<M: Weights>(cpu: &Cpu, amx: Amx, compute: Compute, factors: Factors<'_, M>, out: &mut [f32]) {
    match (compute, M::DTYPE) {
        (Compute::Bf16, _) => multiply::<M, 1, 1>(cpu, amx, factors, out),
        (Compute::F32, DType::BF16) => multiply::<M, 1, 3>(cpu, amx, factors, out),
        (Compute::F32, DType::F16 | DType::I8) => multiply::<M, 2, 3>(cpu, amx, factors, out),
        (Compute::F32, DType::F32) => multiply::<M, 3, 3>(cpu, amx, factors, out),
    }
}

/// Multiplies in so many parts of the weights and of `x`.
fn multiply<M: Weights, const WEIGHTS: usize, const XS: usize>(
    cpu: &Cpu,
    amx: Amx,
    factors: Factors<'_, M>,
    out: &mut [f32],
) {
    let Factors { x, n, k, t, .. } = factors;
    let layout = Layout::new(cpu.geometry(), Pairs::PER_WORD, [k, t]).even(SIDE, BLOCK).with_panels(TILE_TOKENS);
    if layout.len() == 0 {
        // Nothing to sum up.
        return out.chunks_exact_mut(n.max(1)).for_each(|row| match factors.bias {
            Some(bias) => row.copy_from_slice(bias),
            None => row.fill(0.0),
        });
    }
    let mut packed = cpu.scratch(XS * layout.len());
    for (part, packed) in packed[..XS * layout.len()].chunks_exact_mut(layout.len()).enumerate() {
        match (XS, part) {
            (1, _) => Pack::all(cpu, Pairs, x, [t, k], layout, packed),
            (_, 0) => Pack::all(cpu, Part::<0>, x, [t, k], layout, packed),
            (_, 1) => Pack::all(cpu, Part::<1>, x, [t, k], layout, packed),
            _ => Pack::all(cpu, Part::<2>, x, [t, k], layout, packed),
        }
    }
    let out = SharedOut::new(out);
    // A task's time, as bytes that memory could have delivered in it, at 64 operations a byte.
    let cost = WEIGHTS * XS * k * t / 32;
    cpu.split(n, TILE_OUTPUTS, cost, &|range| {
        let mut weights = cpu.scratch(WEIGHTS * together::<M>() * BLOCK);
        let mut sums = cpu.scratch(ROW_BLOCK * TOKEN_BLOCK.min(layout.tokens));
        cpu.run(Multiply::<M, WEIGHTS, XS> {
            amx,
            factors,
            layout,
            packed: &packed,
            range,
            weights: &mut weights,
            sums: &mut sums,
            out,
        });
    });
}

/// Computes outputs `range` of all tokens.
struct Multiply<'a, M, const WEIGHTS: usize, const XS: usize> {
    amx: Amx,
    factors: Factors<'a, M>,
    layout: Layout,
    /// `XS` times the packed `x`.
    packed: &'a [f32],
    range: Range<usize>,
    /// `[WEIGHTS, together, BLOCK]`
    weights: &'a mut [f32],
    /// `[ROW_BLOCK, tokens of the block]`
    sums: &'a mut [f32],
    /// `[t, n]`
    out: SharedOut<'a>,
}

impl<M: Weights, const WEIGHTS: usize, const XS: usize> Kernel for Multiply<'_, M, WEIGHTS, XS> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Factors { n, t, bias, .. } = self.factors;
        let layout = self.layout;
        let row_block = if self.x_is_cached() { together::<M>() } else { ROW_BLOCK };
        let tiles = Tiles::configure(self.amx);
        let mut room = M::room();
        for tokens in blocks(0..layout.tokens, TOKEN_BLOCK) {
            for rows in blocks(self.range.clone(), row_block) {
                for (r, sums) in self.sums.chunks_exact_mut(tokens.len()).take(row_block).enumerate() {
                    // Outputs that fill up the last tile are computed and thrown away.
                    sums.fill(bias.and_then(|bias| bias[..rows.end].get(rows.start + r)).copied().unwrap_or(0.0));
                }
                for block in 0..layout.blocks() {
                    for made in blocks(rows.clone(), together::<M>()) {
                        self.widen(s, block, made.clone(), &mut room);
                        for group in blocks(made.clone(), TILE_OUTPUTS) {
                            let weights = (group.start - made.start) * BLOCK;
                            self.products(&tiles, block, weights, group.start - rows.start, tokens.clone());
                        }
                    }
                }
                // SAFETY: columns `range` of the output belong to this task alone.
                unsafe { write_block(s, self.sums, self.out, [n, t], rows, tokens.clone()) };
            }
        }
    }
}

impl<M: Weights, const WEIGHTS: usize, const XS: usize> Multiply<'_, M, WEIGHTS, XS> {
    /// Whether all of a block of tokens, in all parts, stays in the second-level cache. Changes the order of outputs, not of sums.
    fn x_is_cached(&self) -> bool {
        XS * self.layout.len() / self.layout.tokens.max(1) * TOKEN_BLOCK.min(self.layout.tokens) * 4 <= CACHED_BYTES
    }

    /// Makes the parts of the weights of `outputs`, those that are made together at most.
    #[inline(always)]
    fn widen<S: Simd>(&mut self, s: S, block: usize, outputs: Range<usize>, room: &mut M::Room) {
        let Factors { weights, k, .. } = self.factors;
        let along = self.layout.along(block, k);
        let words = self.layout.block_words(block);
        // Whole tiles, those of the last outputs filled up.
        let rows = outputs.len().next_multiple_of(TILE_OUTPUTS);
        for (part, tile) in self.weights.chunks_exact_mut(together::<M>() * BLOCK).take(WEIGHTS).enumerate() {
            let (outputs, along) = (outputs.clone(), along.clone());
            let tile = Tile { values: &mut tile[..rows * BLOCK], row: BLOCK, words };
            match (WEIGHTS, part) {
                (1, _) => weights.rows(s, Pairs, outputs, along, room, tile),
                (_, 0) => weights.rows(s, Part::<0>, outputs, along, room, tile),
                (_, 1) => weights.rows(s, Part::<1>, outputs, along, room, tile),
                _ => weights.rows(s, Part::<2>, outputs, along, room, tile),
            }
        }
    }

    /// Adds the products of one block of words to the sums that begin at row `first`; the weights of its outputs begin at `weights`
    /// of those that were made together.
    #[inline(always)]
    fn products(&mut self, tiles: &Tiles, block: usize, weights: usize, first: usize, tokens: Range<usize>) {
        let layout = self.layout;
        let words = layout.block_words(block);
        let width = tokens.len();
        let part = together::<M>() * BLOCK;
        let weights = &self.weights[weights..][..(WEIGHTS - 1) * part + TILE_OUTPUTS * BLOCK];
        let mut token = tokens.start;
        while token < tokens.end {
            let panel = layout.panel_tokens(token);
            let sums = &mut self.sums[first * width + token - tokens.start..];
            let x = &self.packed[layout.offset(block, token)..];
            assert!(x.len() >= (XS - 1) * layout.len() + words * panel && panel.is_multiple_of(SIDE));
            assert!(sums.len() >= (TILE_OUTPUTS - 1) * width + panel);
            let place = Place {
                words,
                weights: weights.as_ptr(),
                weights_part: part,
                x: x.as_ptr(),
                x_row: 4 * panel,
                x_part: layout.len(),
                sums: sums.as_mut_ptr(),
                sums_row: 4 * width,
            };
            // SAFETY: `words` is a multiple of 16 and at most `BLOCK`; `TILE_OUTPUTS` rows of weights, in all parts, are in their
            // slice; the panel, in all parts, and `TILE_OUTPUTS` rows of sums follow, as was asserted; it is 32 tokens wide, or 16.
            unsafe {
                match panel > SIDE {
                    true => tiles.add::<WEIGHTS, XS, true>(place),
                    false => tiles.add::<WEIGHTS, XS, false>(place),
                }
            }
            token += panel;
        }
    }
}

/// Where the operands of one register tile are. Rows of weights are `BLOCK` words apart; the other distances are in bytes.
#[derive(Clone, Copy)]
struct Place {
    words: usize,
    weights: *const f32,
    /// From one part of the weights to the next, in words.
    weights_part: usize,
    x: *const f32,
    x_row: usize,
    /// From one part of `x` to the next, in words.
    x_part: usize,
    sums: *mut f32,
    sums_row: usize,
}

/// The tile registers of this thread, configured as eight tiles of 16 rows of 64 bytes; released when dropped.
///
/// No compiler keeps values in these registers, so their contents last from one `asm!` to the next.
struct Tiles(());

/// As `ldtilecfg` reads it: palette, first row, rows' bytes and rows of each register.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

macro_rules! load {
    ($tile:literal, $from:expr, $stride:expr) => {
        asm!(
            concat!("tileloadd ", $tile, ", [{from} + {stride}*1]"),
            from = in(reg) $from,
            stride = in(reg) $stride,
            options(nostack, preserves_flags, readonly),
        )
    };
}

macro_rules! store {
    ($tile:literal, $to:expr, $stride:expr) => {
        asm!(
            concat!("tilestored [{to} + {stride}*1], ", $tile),
            to = in(reg) $to,
            stride = in(reg) $stride,
            options(nostack, preserves_flags),
        )
    };
}

macro_rules! multiply_add {
    ($sums:literal, $weights:literal, $x:literal) => {
        asm!(concat!("tdpbf16ps ", $sums, ", ", $weights, ", ", $x), options(nostack, preserves_flags, nomem),)
    };
}

impl Tiles {
    #[inline(always)]
    fn configure(_proof: Amx) -> Tiles {
        let mut configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        configuration.row_bytes[..8].fill(4 * SIDE as u16);
        configuration.rows[..8].fill(SIDE as u8);
        // SAFETY: the proof says that the instruction exists and is permitted; it reads the 64 bytes of the configuration.
        unsafe {
            asm!("ldtilecfg [{0}]", in(reg) &raw const configuration, options(nostack, preserves_flags, readonly));
        }
        Tiles(())
    }

    /// `sums[r][c] += weights[r][i] . x[i][c]`, summed over words and over pairs of parts, for 32 rows and 32 tokens, or 16 unless
    /// `WIDE`.
    ///
    /// # Safety
    /// The operands are valid for these sizes; `words` is a multiple of 16.
    #[inline(always)]
    unsafe fn add<const WEIGHTS: usize, const XS: usize, const WIDE: bool>(&self, place: Place) {
        let Place { words, mut weights, weights_part, mut x, x_row, x_part, sums, sums_row } = place;
        let weights_row = 4 * BLOCK;
        // SAFETY: the caller vouches for the operands; pointers end at most one step behind them and are not used there. That
        // the registers are configured is what `self` says.
        unsafe {
            let below = sums.byte_add(SIDE * sums_row);
            load!("tmm0", sums, sums_row);
            load!("tmm2", below, sums_row);
            if WIDE {
                load!("tmm1", sums.add(SIDE), sums_row);
                load!("tmm3", below.add(SIDE), sums_row);
            }
            for _ in (0..words).step_by(SIDE) {
                for w in 0..WEIGHTS {
                    let weights = weights.add(w * weights_part);
                    load!("tmm4", weights, weights_row);
                    load!("tmm5", weights.byte_add(SIDE * weights_row), weights_row);
                    // A part is at most 2^-8 of the one in front of it.
                    for part in 0..XS - w {
                        load!("tmm6", x.add(part * x_part), x_row);
                        multiply_add!("tmm0", "tmm4", "tmm6");
                        multiply_add!("tmm2", "tmm5", "tmm6");
                        if WIDE {
                            load!("tmm7", x.add(part * x_part + SIDE), x_row);
                            multiply_add!("tmm1", "tmm4", "tmm7");
                            multiply_add!("tmm3", "tmm5", "tmm7");
                        }
                    }
                }
                weights = weights.wrapping_add(SIDE);
                x = x.wrapping_byte_add(SIDE * x_row);
            }
            store!("tmm0", sums, sums_row);
            store!("tmm2", below, sums_row);
            if WIDE {
                store!("tmm1", sums.add(SIDE), sums_row);
                store!("tmm3", below.add(SIDE), sums_row);
            }
        }
    }
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the registers were configured by this thread, so the instruction exists.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}
