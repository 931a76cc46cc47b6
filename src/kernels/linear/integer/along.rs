//! Sums along the rows of the matrix: `out = x W^T + bias`.

use std::ops::Range;

use shadowllm_weights::INT8_GROUP;

use super::super::Linear;
use super::super::gemm::{K_BLOCK, Layout, ROW_BLOCK, TILE_ROWS, TOKEN_BLOCK, blocks, write_block};
use super::inputs::Inputs;
use super::tile::Tile;
use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Element, Simd};
use crate::tensor::Int8;

/// Values in a word.
const PER_WORD: usize = 2;
/// Groups of values in a block.
const GROUPS: usize = K_BLOCK * PER_WORD / INT8_GROUP;

/// Values in a cache line.
const LINE: usize = 64;
/// Lanes of the longest vectors.
const MOST_LANES: usize = 16;

const _: () = assert!((K_BLOCK * PER_WORD).is_multiple_of(INT8_GROUP) && INT8_GROUP.is_multiple_of(PER_WORD));

/// Computes all outputs.
pub(in super::super) fn along(cpu: &Cpu, linear: Linear<'_, Int8>, out: &mut [f32]) {
    let Linear { x, n, k, t, .. } = linear;
    let layout = Layout::new(cpu.geometry(), PER_WORD, [k, t]);
    let mut packed = cpu.scratch(layout.len());
    let mut scales = cpu.scratch(k.div_ceil(INT8_GROUP) * layout.tokens);
    Inputs::new(x, [k, t], layout).words(cpu, INT8_GROUP, &mut packed, &mut scales);
    let out = SharedOut::new(out);
    // A task's time, as bytes that memory could have delivered in it.
    let cost = k * t / 8;
    cpu.split(n, TILE_ROWS, cost, &|range| {
        let mut sums = cpu.scratch(ROW_BLOCK * TOKEN_BLOCK.min(layout.tokens));
        let weights = Weights { words: [0.0; TILE_ROWS * K_BLOCK], scales: [0.0; TILE_ROWS * GROUPS] };
        cpu.run_vnni(Along { linear, layout, packed: &packed, scales: &scales, range, weights, sums: &mut sums, out });
    });
}

/// The weights of one tile and block.
struct Weights {
    /// `[TILE_ROWS, K_BLOCK]`
    words: [f32; TILE_ROWS * K_BLOCK],
    /// `[TILE_ROWS, GROUPS]`
    scales: [f32; TILE_ROWS * GROUPS],
}

/// Computes outputs `range` of all tokens.
struct Along<'a> {
    linear: Linear<'a, Int8>,
    layout: Layout,
    packed: &'a [f32],
    /// `[groups, tokens]`
    scales: &'a [f32],
    range: Range<usize>,
    weights: Weights,
    /// `[ROW_BLOCK, tokens of the block]`
    sums: &'a mut [f32],
    /// `[t, n]`
    out: SharedOut<'a>,
}

impl Kernel for Along<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Linear { bias, n, t, .. } = self.linear;
        let layout = self.layout;
        for tokens in blocks(0..layout.tokens, TOKEN_BLOCK) {
            for rows in blocks(self.range.clone(), ROW_BLOCK) {
                for (r, sums) in self.sums.chunks_exact_mut(tokens.len()).take(rows.len()).enumerate() {
                    sums.fill(bias.map_or(0.0, |bias| bias[rows.start + r]));
                }
                for block in 0..layout.blocks() {
                    for tile in blocks(rows.clone(), TILE_ROWS) {
                        self.widen(s, block, tile.clone());
                        self.tile(s, block, tile.start - rows.start, tokens.clone());
                    }
                }
                // SAFETY: columns `range` belong to this task alone.
                unsafe { write_block(s, self.sums, self.out, [n, t], rows, tokens.clone()) };
            }
        }
    }
}

impl Along<'_> {
    /// Makes the words and scales of one block of the weights of `outputs`; those of outputs beyond the end are zero.
    #[inline(always)]
    fn widen<S: Simd>(&mut self, s: S, block: usize, outputs: Range<usize>) {
        let Linear { w, k, .. } = self.linear;
        let values = self.layout.along(block, k);
        let words = values.len().div_ceil(PER_WORD);
        let (mut starts, mut later) = (w.layout.starts(outputs.start), w.layout.starts(outputs.start + TILE_ROWS));
        let rows = self.weights.words.chunks_exact_mut(K_BLOCK).zip(self.weights.scales.chunks_exact_mut(GROUPS));
        for (i, (row, scales)) in rows.enumerate() {
            let start = starts.advance();
            // The pieces of successive rows lie too far apart for the processor to guess the next.
            let next = w.elements.as_ptr().wrapping_add(later.advance());
            for at in values.clone().step_by(LINE) {
                Int8::prefetch(s, next, k, at);
            }
            if outputs.start + i >= outputs.end {
                row[..words].fill(0.0);
                scales.fill(0.0);
                continue;
            }
            let weights = &w.elements[start..][..w.span];
            for (group, scale) in values.clone().step_by(INT8_GROUP).zip(scales) {
                // SAFETY: the row is whole, and the group begins inside it.
                *scale = unsafe { Int8::scale(weights.as_ptr(), k, group) };
            }
            widen(s, &weights[values.clone()], &mut row[..words]);
        }
    }

    /// Adds the products of one block to the sums that begin at row `first`.
    #[inline(always)]
    fn tile<S: Simd>(&mut self, s: S, block: usize, first: usize, tokens: Range<usize>) {
        let layout = self.layout;
        let words = layout.block_words(block);
        let width = tokens.len();
        let scales = &self.scales[block * GROUPS * layout.tokens..];
        assert!(scales.len() >= words.div_ceil(INT8_GROUP / PER_WORD) * layout.tokens && words <= K_BLOCK);
        let mut token = tokens.start;
        while token < tokens.end {
            let panel = layout.panel_tokens(token);
            let x = self.packed[layout.offset(block, token)..][..words * panel].as_ptr();
            let sums = self.sums[first * width..][..TILE_ROWS * width].as_mut_ptr();
            // SAFETY: the weights are `TILE_ROWS` rows of `K_BLOCK` words and `GROUPS` scales; the panel is `words` rows of `panel`
            // tokens, whose scales follow each other in every group; and the sums `TILE_ROWS` rows of `width` tokens, of which
            // `panel` follow the offset.
            unsafe {
                let tile = Tile {
                    words,
                    group: INT8_GROUP / PER_WORD,
                    weights: self.weights.words.as_ptr(),
                    strides: [K_BLOCK, 1],
                    weights_scales: self.weights.scales.as_ptr(),
                    scales_row: GROUPS,
                    x,
                    x_scales: scales.as_ptr().add(token),
                    x_scales_row: layout.tokens,
                    sums: sums.add(token - tokens.start),
                    sums_row: width,
                };
                tile.add::<S, TILE_ROWS>(s, panel / S::LANES);
            }
            token += panel;
        }
    }
}

/// Widens values to pairs of 16 bits; if their number is odd, the last pair ends with zero.
#[inline(always)]
fn widen<S: Simd>(s: S, values: &[Int8], words: &mut [f32]) {
    assert_eq!(words.len(), values.len().div_ceil(PER_WORD));
    let vectors = values.chunks_exact(PER_WORD * S::LANES);
    let rest = vectors.remainder();
    let (whole, last) = words.split_at_mut(vectors.len() * S::LANES);
    for (values, words) in vectors.zip(whole.chunks_exact_mut(S::LANES)) {
        // SAFETY: as many values as two vectors have lanes, and a vector of words.
        unsafe { s.store(words.as_mut_ptr(), s.load_i8_pairs(values.as_ptr().cast())) };
    }
    if !rest.is_empty() {
        let mut padded = [Int8(0); MOST_LANES * PER_WORD];
        padded[..rest.len()].copy_from_slice(rest);
        assert!(S::LANES <= MOST_LANES);
        // SAFETY: the copy is as long as two of the longest vectors.
        s.store_slice(last, unsafe { s.load_i8_pairs(padded.as_ptr().cast()) });
    }
}
