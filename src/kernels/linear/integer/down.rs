//! Sums down the columns of the matrix: `out = x W + bias`.
//!
//! Every row of weights has a scale for each group of outputs. For one group `x` is therefore multiplied with the scales of that
//! group, row by row, and then rounded, in a block of rows for all tokens at once: that is work for each of 64 outputs and pays.
//! The largest whole number stands for the largest that such a product could be: that of the largest input and the largest scale.

use std::ops::Range;

use shadowllm_weights::INT8_GROUP;

use super::super::gemm::{Factors, Layout, TILE_ROWS, TOKEN_BLOCK, blocks, write_block};
use super::inputs::{Inputs, Rounding, UNITS, largest};
use super::tile::Tile;
use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Element, Simd};
use crate::tensor::{Int8, RowsOf};

/// Most rows of weights in one block, an even number.
const BLOCK: usize = 256;
/// Groups of outputs whose sums are kept at once.
const TOGETHER: usize = 4;
/// Sums of a group: whole tiles.
const SUMS: usize = INT8_GROUP.next_multiple_of(TILE_ROWS);
/// Words of weights: those of a block, and as many behind the last as a tile has too many.
const WORDS: usize = BLOCK / 2 * INT8_GROUP + SUMS - INT8_GROUP;

/// Computes all outputs; the rows of `factors.weights` are the values that are summed.
pub(in super::super) fn down(cpu: &Cpu, factors: Factors<'_, RowsOf<'_, Int8>>, out: &mut [f32]) {
    let Factors { x, n, k, t, .. } = factors;
    let layout = Layout::new(cpu.geometry(), 1, [k, t]).even(2, BLOCK);
    let mut packed = cpu.scratch(layout.len());
    let mut scales = cpu.scratch(layout.blocks() * layout.tokens);
    Inputs::new(x, [k, t], layout).parts(cpu, &mut packed, &mut scales);
    let out = SharedOut::new(out);
    // A task's time, as bytes that memory could have delivered in it.
    let cost = INT8_GROUP * k * t / 8;
    cpu.split(n.div_ceil(INT8_GROUP), 1, cost, &|groups| {
        let mut weights = cpu.scratch(WORDS);
        let mut rounded = cpu.scratch(layout.block / 2 * layout.panel);
        let mut sums = cpu.scratch(TOGETHER.min(groups.len()) * SUMS * TOKEN_BLOCK.min(layout.tokens));
        cpu.run_vnni(Down {
            factors,
            layout,
            packed: &packed,
            scales: &scales,
            groups,
            weights: &mut weights,
            row_factors: [0.0; BLOCK],
            rounded: &mut rounded,
            sums: &mut sums,
            out,
        });
    });
}

/// Computes the outputs of `groups` of all tokens.
struct Down<'a> {
    factors: Factors<'a, RowsOf<'a, Int8>>,
    layout: Layout,
    /// Inputs as parts of the largest of their block and token.
    packed: &'a [f32],
    /// `[blocks, tokens]`: that largest input.
    scales: &'a [f32],
    groups: Range<usize>,
    /// `[pairs of rows of the block, INT8_GROUP]`
    weights: &'a mut [f32],
    /// What inputs are multiplied with before they are rounded.
    row_factors: [f32; BLOCK],
    /// `[pairs of rows of the block, tokens of the panel]`
    rounded: &'a mut [f32],
    /// `[groups, SUMS, tokens of the block]`
    sums: &'a mut [f32],
    /// `[t, n]`
    out: SharedOut<'a>,
}

impl Kernel for Down<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Factors { bias, n, t, .. } = self.factors;
        let layout = self.layout;
        for tokens in blocks(0..layout.tokens, TOKEN_BLOCK) {
            for groups in blocks(self.groups.clone(), TOGETHER) {
                for (g, sums) in self.sums.chunks_exact_mut(SUMS * tokens.len()).take(groups.len()).enumerate() {
                    let first = (groups.start + g) * INT8_GROUP;
                    for (r, sums) in sums.chunks_exact_mut(tokens.len()).enumerate() {
                        sums.fill(bias.and_then(|bias| bias.get(first + r)).copied().unwrap_or(0.0));
                    }
                }
                for block in 0..layout.blocks() {
                    for group in groups.clone() {
                        let next = if group + 1 < groups.end { (block, group + 1) } else { (block + 1, groups.start) };
                        let unit = self.widen(s, block, group, next);
                        self.products(s, block, unit, group - groups.start, tokens.clone());
                    }
                }
                for (g, group) in groups.clone().enumerate() {
                    let rows = group * INT8_GROUP..n.min((group + 1) * INT8_GROUP);
                    // SAFETY: columns `groups` belong to this task alone.
                    unsafe {
                        write_block(s, &self.sums[g * SUMS * tokens.len()..], self.out, [n, t], rows, tokens.clone());
                    }
                }
            }
        }
    }
}

impl Down<'_> {
    /// Makes the words of one block of the weights of a group of outputs, and the factors of their rows. Returns how large one unit of
    /// what is rounded is where the largest input is 1. Asks for the block and group that come `next`.
    #[inline(always)]
    fn widen<S: Simd>(&mut self, s: S, block: usize, group: usize, next: (usize, usize)) -> f32 {
        let Factors { weights, n, k, .. } = self.factors;
        let RowsOf { elements, layout, span } = weights;
        let rows = self.layout.along(block, k);
        let columns = group * INT8_GROUP..n.min((group + 1) * INT8_GROUP);
        let mut starts = layout.starts(rows.start);
        let mut later = layout.starts(self.layout.along(next.0, usize::MAX).start);
        self.row_factors.fill(0.0);
        let factors = self.row_factors[..rows.len()].chunks_mut(2);
        for (factors, words) in factors.zip(self.weights.chunks_exact_mut(INT8_GROUP)) {
            let mut pair: [&[Int8]; 2] = [&ZEROS; 2];
            let mut padded = [ZEROS; 2];
            for ((factor, values), padded) in factors.iter_mut().zip(&mut pair).zip(&mut padded) {
                let row = &elements[starts.advance()..][..span];
                s.prefetch(elements.as_ptr().wrapping_add(later.advance() + next.1 * INT8_GROUP));
                // SAFETY: the row is whole, and the group begins inside it.
                *factor = unsafe { Int8::scale(row.as_ptr(), n, columns.start) };
                *values = &row[columns.clone()];
                if columns.len() < INT8_GROUP {
                    padded[..columns.len()].copy_from_slice(values);
                    *values = padded;
                }
            }
            let low = pair[0][..INT8_GROUP].as_ptr().cast::<i8>();
            let high = pair[1][..INT8_GROUP].as_ptr().cast::<i8>();
            for (i, words) in words.chunks_exact_mut(S::LANES).enumerate() {
                // SAFETY: both rows hold as many values as there are words.
                unsafe {
                    let word = s.load_i8_across(low.add(i * S::LANES), high.add(i * S::LANES));
                    s.store(words.as_mut_ptr(), word);
                }
            }
        }
        let Rounding { factor, scale } = Rounding::of(largest(&self.row_factors));
        self.row_factors.iter_mut().for_each(|row| *row *= factor);
        scale
    }

    /// Adds the products of one block to the sums of the group `group` of those that are kept.
    #[inline(always)]
    fn products<S: Simd>(&mut self, s: S, block: usize, unit: f32, group: usize, tokens: Range<usize>) {
        let layout = self.layout;
        let (rows, width) = (layout.block_words(block), tokens.len());
        let words = rows / 2;
        assert!(rows.is_multiple_of(2) && self.weights.len() >= words * INT8_GROUP + SUMS - INT8_GROUP);
        let sums = &mut self.sums[group * SUMS * width..][..SUMS * width];
        let scales = &self.scales[block * layout.tokens..][..layout.tokens];
        let units = [unit; TILE_ROWS];
        let mut token = tokens.start;
        while token < tokens.end {
            let panel = layout.panel_tokens(token);
            let x = &self.packed[layout.offset(block, token)..][..rows * panel];
            round(s, x, &self.row_factors[..rows], &mut self.rounded[..words * panel]);
            for first in (0..SUMS).step_by(TILE_ROWS) {
                // SAFETY: from `first` on, `TILE_ROWS` words in each row of weights, the last of which has as many behind it as were
                // asserted; one scale for each; the panel is `words` rows of `panel` tokens, whose scales begin at `token`; the sums are
                // `SUMS` rows of `width` tokens, of which `panel` follow the offset.
                unsafe {
                    let tile = Tile {
                        words,
                        group: words,
                        weights: self.weights.as_ptr().add(first),
                        strides: [1, INT8_GROUP],
                        weights_scales: units.as_ptr(),
                        scales_row: 1,
                        x: self.rounded.as_ptr(),
                        x_scales: scales[token..][..panel].as_ptr(),
                        x_scales_row: 0,
                        sums: sums.as_mut_ptr().add(first * width + token - tokens.start),
                        sums_row: width,
                    };
                    tile.add::<S, TILE_ROWS>(s, panel / S::LANES);
                }
            }
            token += panel;
        }
    }
}

/// What rows and outputs beyond the end consist of.
const ZEROS: [Int8; INT8_GROUP] = [Int8(0); INT8_GROUP];

/// Multiplies rows of `x` with a factor each, rounds, and joins them in pairs: `x` `[factors, tokens]`, `out` `[factors / 2, tokens]`.
#[inline(always)]
fn round<S: Simd>(s: S, x: &[f32], factors: &[f32], out: &mut [f32]) {
    let tokens = x.len() / factors.len();
    assert!(x.len() == factors.len() * tokens && out.len() == factors.len() / 2 * tokens);
    assert!(tokens.is_multiple_of(S::LANES));
    let units = s.splat(UNITS);
    for (i, factors) in factors.chunks_exact(2).enumerate() {
        let (low, high) = (s.splat(factors[0]), s.splat(factors[1]));
        for c in (0..tokens).step_by(S::LANES) {
            // SAFETY: rows `2 i` and `2 i + 1` of `x` and row `i` of the output hold `tokens` values, a whole number of vectors.
            unsafe {
                let x = x.as_ptr().add(2 * i * tokens + c);
                let low = s.add(s.mul(s.load(x), low), units);
                let high = s.add(s.mul(s.load(x.add(tokens)), high), units);
                s.store(out.as_mut_ptr().add(i * tokens + c), s.pair_words(low, high));
            }
        }
    }
}
