//! Many rows of `x`: the blocked product, bound by arithmetic.
//!
//! Vectors run along *tokens*. `x` is packed once per call into panels in which the tokens of one `k` lie side by side; a
//! weight is then broadcast and multiplied with a whole panel row, so weights need no transposing: a block of them is widened
//! to `f32` as it lies, whether the sums run along its rows or along its columns ([`Weights`]). The innermost tile is [`TILE_ROWS`] weights by up to four vectors of tokens: with AVX-512 24
//! of the 32 registers hold sums, and a step of 24 multiply-adds needs 4 vector loads and 6 broadcasts, which leaves the
//! arithmetic units the bottleneck. With 16 registers the tile is two vectors wide, 12 sums.
//!
//! Blocks: [`K_BLOCK`] steps along `K`, so that the panels stay in the second-level cache while the weights of a block
//! pass; [`ROW_BLOCK`] outputs and [`TOKEN_BLOCK`] tokens, so that their sums do, too. Sums of successive `K` blocks are
//! added in order. Every output is computed the same way whichever task does it.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::micro::micro;
use super::product::{Exact, Pairs, Product, Rounded};
use super::weights::Weights;
use crate::kernels::cpu::{Compute, Cpu, SharedOut};
use crate::kernels::isa::{Geometry, Kernel};
use crate::kernels::simd::{Simd, transpose};

/// Outputs in one register tile.
pub(super) const TILE_ROWS: usize = 6;
/// Words along `K` in one block: a panel of 64 tokens is then 64 KiB, the widened weights of a tile 6 KiB.
pub(super) const K_BLOCK: usize = 256;
/// Outputs whose sums are kept at once; a multiple of [`TILE_ROWS`].
pub(super) const ROW_BLOCK: usize = 96;
/// Tokens whose sums are kept at once; a multiple of every panel width.
pub(super) const TOKEN_BLOCK: usize = 256;

/// Tokens of a full panel.
pub(super) fn panel_tokens(geometry: Geometry) -> usize {
    geometry.lanes * if geometry.registers >= 32 { 4 } else { 2 }
}

/// Where the words of `x` are in the packed buffer: `[K blocks][panels][words of the block][tokens of the panel]`.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Words along `K`, rounded up to whole steps; those behind the end are zero.
    words: usize,
    /// Tokens, rounded up to whole vectors; those behind the end are zero.
    pub(super) tokens: usize,
    /// Tokens of a full panel.
    pub(super) panel: usize,
    /// Words of a block, except that the last may be shorter.
    pub(super) block: usize,
    /// Values in a word.
    pub(super) per_word: usize,
}

impl Layout {
    /// For `t` tokens of `k` values, `per_word` of them in a word.
    pub(super) fn new(geometry: Geometry, per_word: usize, [k, t]: [usize; 2]) -> Self {
        Layout {
            words: k.div_ceil(per_word),
            tokens: t.next_multiple_of(geometry.lanes),
            panel: panel_tokens(geometry),
            block: K_BLOCK,
            per_word,
        }
    }

    /// The same for products that take `step` words at once, in blocks of about the same size, `most` words at most.
    pub(super) fn even(self, step: usize, most: usize) -> Self {
        let words = self.words.next_multiple_of(step);
        let block = words.div_ceil(words.div_ceil(most).max(1)).next_multiple_of(step).max(step);
        Layout { words, block, ..self }
    }

    /// The same in panels of `panel` tokens.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn with_panels(self, panel: usize) -> Self {
        Layout { panel, ..self }
    }

    /// Words of the whole packed buffer.
    pub(super) fn len(self) -> usize {
        self.words * self.tokens
    }

    pub(super) fn blocks(self) -> usize {
        self.words.div_ceil(self.block)
    }

    /// Words of block `b`.
    pub(super) fn block_words(self, b: usize) -> usize {
        (self.words - b * self.block).min(self.block)
    }

    /// The values along `K` in block `b`.
    pub(super) fn along(self, b: usize, k: usize) -> Range<usize> {
        b * self.block * self.per_word..k.min((b + 1) * self.block * self.per_word)
    }

    /// Tokens of the panel that begins at token `first`.
    pub(super) fn panel_tokens(self, first: usize) -> usize {
        (self.tokens - first).min(self.panel)
    }

    /// Place of the panel that begins at token `first`, in block `b`.
    pub(super) fn offset(self, b: usize, first: usize) -> usize {
        b * self.block * self.tokens + self.block_words(b) * first
    }
}

/// The operands of one product: `out[t][n] = sum_k x[t][k] * weight(n, k) + bias[n]`.
#[derive(Clone, Copy)]
pub(super) struct Factors<'a, M> {
    pub(super) weights: M,
    /// `[n]`
    pub(super) bias: Option<&'a [f32]>,
    /// `[t, k]`
    pub(super) x: &'a [f32],
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) t: usize,
}

/// Computes all outputs in the given precision.
pub(super) fn gemm<M: Weights>(cpu: &Cpu, compute: Compute, factors: Factors<'_, M>, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(proof) = cpu.amx() {
        return amx::gemm(cpu, proof, compute, factors, out);
    }
    match compute {
        Compute::F32 => multiply(cpu, Exact, factors, out),
        Compute::Bf16 if cpu.has_bf16() => multiply(cpu, Pairs, factors, out),
        Compute::Bf16 => multiply(cpu, Rounded, factors, out),
    }
}

fn multiply<M: Weights, P: Product>(cpu: &Cpu, product: P, factors: Factors<'_, M>, out: &mut [f32]) {
    let Factors { x, n, k, t, .. } = factors;
    let layout = Layout::new(cpu.geometry(), P::PER_WORD, [k, t]);
    let mut packed = cpu.scratch(layout.len());
    Pack::all(cpu, product, x, [t, k], layout, &mut packed);
    let out = SharedOut::new(out);
    // A task's time, as bytes that memory could have delivered in it: 2 k t operations at 7 operations a byte.
    let cost = k * t / 4;
    cpu.split(n, TILE_ROWS, cost, &|range| {
        let mut weights = cpu.scratch(M::GROUP * K_BLOCK);
        let mut sums = cpu.scratch(ROW_BLOCK * TOKEN_BLOCK.min(layout.tokens));
        product.enter(
            cpu,
            Multiply { product, factors, layout, packed: &packed, range, weights: &mut weights, sums: &mut sums, out },
        );
    });
}

/// Packs one panel: the tokens from `first`, the words of `block`.
pub(super) struct Pack<'a, P> {
    product: P,
    /// `[t, k]`
    x: &'a [f32],
    k: usize,
    t: usize,
    layout: Layout,
    block: usize,
    first: usize,
    /// `[LANES, words of a block]`
    rows: &'a mut [f32],
    packed: SharedOut<'a>,
}

impl<P: Product> Pack<'_, P> {
    /// Packs all of `x` `[t, k]` into `packed`, as long as the layout.
    pub(super) fn all(cpu: &Cpu, product: P, x: &[f32], [t, k]: [usize; 2], layout: Layout, packed: &mut [f32]) {
        let packed = SharedOut::new(packed);
        let panels = layout.tokens.div_ceil(layout.panel);
        cpu.split(layout.blocks() * panels, 1, layout.block * layout.panel * 4, &|range| {
            let mut rows = cpu.scratch(cpu.geometry().lanes * layout.block);
            for item in range {
                let (block, first) = (item / panels, item % panels * layout.panel);
                product.enter(cpu, Pack { product, x, k, t, layout, block, first, rows: &mut rows, packed });
            }
        });
    }
}

impl<P: Product> Kernel for Pack<'_, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Pack { x, k, t, .. } = self;
        let words = self.layout.block_words(self.block);
        let width = self.layout.panel_tokens(self.first);
        let at = self.layout.offset(self.block, self.first);
        // SAFETY: panels do not overlap, and this task alone packs this one.
        let panel = unsafe { self.packed.slice(at..at + words * width) };
        let columns = self.layout.along(self.block, k);
        for group in (0..width).step_by(S::LANES) {
            for (i, row) in self.rows.chunks_exact_mut(self.layout.block).enumerate() {
                let token = self.first + group + i;
                let real = if token < t { columns.len().div_ceil(P::PER_WORD) } else { 0 };
                if real > 0 {
                    self.product.words(s, &x[token * k..][columns.clone()], &mut row[..real]);
                }
                row[real..words].fill(0.0);
            }
            let (rows, panel) = (self.rows.as_ptr(), panel.as_mut_ptr());
            // SAFETY: `rows` holds `LANES` rows of `words` values; columns `group .. group + LANES` of the panel are inside it,
            // since the width is a multiple of that.
            unsafe { transpose(s, rows, self.layout.block, [S::LANES, words], panel.add(group), width) };
        }
    }
}

/// Computes outputs `range` of all tokens.
struct Multiply<'a, M, P> {
    product: P,
    factors: Factors<'a, M>,
    layout: Layout,
    packed: &'a [f32],
    range: Range<usize>,
    /// `[GROUP / TILE_ROWS]` tiles of the current weights' words.
    weights: &'a mut [f32],
    /// `[ROW_BLOCK, tokens of the block]`
    sums: &'a mut [f32],
    /// `[t, n]`
    out: SharedOut<'a>,
}

impl<M: Weights, P: Product> Kernel for Multiply<'_, M, P> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let layout = self.layout;
        let range = self.range.clone();
        let mut room = M::room();
        for tokens in blocks(0..layout.tokens, TOKEN_BLOCK) {
            for rows in blocks(range.clone(), ROW_BLOCK) {
                for (r, sums) in self.sums.chunks_exact_mut(tokens.len()).take(rows.len()).enumerate() {
                    sums.fill(self.factors.bias.map_or(0.0, |bias| bias[rows.start + r]));
                }
                for block in 0..layout.blocks() {
                    for group in blocks(rows.clone(), M::GROUP) {
                        self.widen(s, block, group.clone(), &mut room);
                        for tile in blocks(group.clone(), TILE_ROWS) {
                            let weights = (tile.start - group.start) * K_BLOCK;
                            self.tile(s, block, weights, tile.start - rows.start, tokens.clone());
                        }
                    }
                }
                let Factors { n, t, .. } = self.factors;
                // SAFETY: columns `range` belong to this task alone.
                unsafe { write_block(s, self.sums, self.out, [n, t], rows, tokens.clone()) };
            }
        }
    }
}

/// Cuts `range` into pieces of `size`, the last one possibly shorter.
#[inline(always)]
pub(super) fn blocks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..end.min(start + size))
}

impl<M: Weights, P: Product> Multiply<'_, M, P> {
    /// Widens one block of words of the weights of `outputs`, one group at most.
    #[inline(always)]
    fn widen<S: Simd>(&mut self, s: S, block: usize, outputs: Range<usize>, room: &mut M::Room) {
        let k = self.factors.k;
        let along = self.layout.along(block, k);
        self.factors.weights.widen(s, self.product, outputs, along, room, self.weights);
    }

    /// Adds the products of one block of words to the sums of one tile of outputs: its weights begin at `weights`, its sums at
    /// row `first`.
    #[inline(always)]
    fn tile<S: Simd>(&mut self, s: S, block: usize, weights: usize, first: usize, tokens: Range<usize>) {
        let layout = self.layout;
        let words = layout.block_words(block);
        let width = tokens.len();
        let mut token = tokens.start;
        while token < tokens.end {
            let panel = layout.panel_tokens(token);
            let x = self.packed[layout.offset(block, token)..][..words * panel].as_ptr();
            let sums = self.sums[first * width..][..TILE_ROWS * width].as_mut_ptr();
            let w = self.weights[weights..][..TILE_ROWS * K_BLOCK].as_ptr();
            // SAFETY: the weights are one tile of `TILE_ROWS` times `K_BLOCK` words, in which the strides stay; the panel is
            // `words` rows of `panel` tokens, and the sums `TILE_ROWS` rows of `width` tokens, of which `panel` follow the
            // offset.
            unsafe {
                let sums = sums.add(token - tokens.start);
                match panel / S::LANES {
                    1 => micro::<S, P, TILE_ROWS, 1>(s, self.product, words, w, M::STRIDES, x, sums, width),
                    2 => micro::<S, P, TILE_ROWS, 2>(s, self.product, words, w, M::STRIDES, x, sums, width),
                    3 => micro::<S, P, TILE_ROWS, 3>(s, self.product, words, w, M::STRIDES, x, sums, width),
                    _ => micro::<S, P, TILE_ROWS, 4>(s, self.product, words, w, M::STRIDES, x, sums, width),
                }
            }
            token += panel;
        }
    }
}

/// Transposes the sums of outputs `rows` and of `tokens` into the output `[t, n]`; tokens behind the end are left out.
///
/// # Safety
/// No other task accesses columns `rows` of the output.
#[inline(always)]
pub(super) unsafe fn write_block<S: Simd>(
    s: S,
    sums: &[f32],
    out: SharedOut<'_>,
    [n, t]: [usize; 2],
    rows: Range<usize>,
    tokens: Range<usize>,
) {
    let real = tokens.end.min(t) - tokens.start;
    assert!(sums.len() >= rows.len() * tokens.len() && rows.end <= n);
    // SAFETY: the caller vouches for the columns; tokens end at `t`; the sums hold `rows.len()` rows.
    unsafe {
        let out = out.at(tokens.start * n + rows.start);
        transpose(s, sums.as_ptr(), tokens.len(), [rows.len(), real], out, n);
    }
}
