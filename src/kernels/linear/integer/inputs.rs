//! Rounding to whole numbers of 16 bits.

use super::super::gemm::Layout;
use super::super::product::pairs;
use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Simd, transpose};

/// Largest whole number.
const MOST: f32 = 32767.0;

/// Of this size neighbours among `f32` are 1 apart, and the lower 16 bits of `UNITS + n` are those of the whole number `n`.
pub(super) const UNITS: f32 = (3 << 22) as f32;

/// Values that are all smaller than this (2^-100) count as zero: the inverse of their scale could be too large for a number.
const LEAST: f32 = 7.888_609e-31;

/// How some values are rounded: `value * factor` to the nearest whole number, which stands for `scale` times as much.
#[derive(Clone, Copy)]
pub(super) struct Rounding {
    pub(super) factor: f32,
    pub(super) scale: f32,
}

impl Rounding {
    /// Of values of which the largest has this size. If one of them is no finite number, all of them come back as NaN.
    #[inline(always)]
    pub(super) fn of(largest: f32) -> Rounding {
        if largest < LEAST {
            Rounding { factor: 0.0, scale: 0.0 }
        } else if largest.is_finite() {
            Rounding { factor: MOST / largest, scale: largest / MOST }
        } else {
            Rounding { factor: 0.0, scale: f32::NAN }
        }
    }

    /// The same where `value * factor` is to be a part of the largest value, which is then at most 1.
    #[inline(always)]
    pub(super) fn to_parts(self) -> Rounding {
        Rounding { factor: self.factor / MOST, scale: self.scale * MOST }
    }
}

/// The largest size among values, or not a finite number if one of them is none.
#[inline(always)]
pub(super) fn largest(values: &[f32]) -> f32 {
    // As whole numbers the bits are in the order of sizes, infinity and then NaN behind the largest number.
    f32::from_bits(values.iter().fold(0, |most, value| most.max(value.to_bits() & 0x7fff_ffff)))
}

/// What is packed: [`Inputs::words`] for sums along rows of the matrix, [`Inputs::parts`] for sums down columns.
#[derive(Clone, Copy)]
enum What {
    /// Pairs of whole numbers; a scale for each token and group of so many values.
    Words { group: usize },
    /// Parts of the largest value; that value for each token and block.
    Parts,
}

impl What {
    /// Makes the words of the values `x` of a token, which are those of a block. `put` takes scales: that of the block's first
    /// group, of the next, and so on.
    #[inline(always)]
    fn words(self, x: &[f32], words: &mut [f32], mut put: impl FnMut(usize, f32)) {
        match self {
            What::Words { group } => {
                for (i, (x, words)) in x.chunks(group).zip(words.chunks_mut(group / 2)).enumerate() {
                    let Rounding { factor, scale } = Rounding::of(largest(x));
                    put(i, scale);
                    pairs(x, words, |value: f32| (value * factor + UNITS).to_bits() & 0xffff);
                }
            }
            What::Parts => {
                let Rounding { factor, scale } = Rounding::of(largest(x)).to_parts();
                put(0, scale);
                for (word, value) in words.iter_mut().zip(x) {
                    *word = value * factor;
                }
            }
        }
    }

    /// Groups in front of block `block`.
    fn groups(self, layout: Layout, block: usize) -> usize {
        match self {
            What::Words { group } => block * (layout.block * layout.per_word / group),
            What::Parts => block,
        }
    }
}

/// Inputs in panels of tokens, as [`Layout`] says, and their scales, `[groups, tokens]`.
pub(super) struct Inputs<'a> {
    x: &'a [f32],
    k: usize,
    t: usize,
    layout: Layout,
}

impl<'a> Inputs<'a> {
    /// Rows `x` `[t, k]`.
    pub(super) fn new(x: &'a [f32], [k, t]: [usize; 2], layout: Layout) -> Self {
        Inputs { x, k, t, layout }
    }

    /// Packs whole numbers, two in a word. `group` is a whole number of words, and so is a block of groups.
    pub(super) fn words(&self, cpu: &Cpu, group: usize, packed: &mut [f32], scales: &mut [f32]) {
        self.pack(cpu, What::Words { group }, packed, scales);
    }

    /// Packs parts of the largest value of a block, one in a word.
    pub(super) fn parts(&self, cpu: &Cpu, packed: &mut [f32], scales: &mut [f32]) {
        self.pack(cpu, What::Parts, packed, scales);
    }

    fn pack(&self, cpu: &Cpu, what: What, packed: &mut [f32], scales: &mut [f32]) {
        let layout = self.layout;
        let (packed, scales) = (SharedOut::new(packed), SharedOut::new(scales));
        let panels = layout.tokens.div_ceil(layout.panel);
        cpu.split(layout.blocks() * panels, 1, layout.block * layout.panel * 4, &|range| {
            let mut rows = cpu.scratch(cpu.geometry().lanes * layout.block);
            for item in range {
                let (block, first) = (item / panels, item % panels * layout.panel);
                cpu.run(Pack { inputs: self, what, block, first, rows: &mut rows, packed, scales });
            }
        });
    }
}

/// Packs one panel: the tokens from `first`, the words of `block`.
struct Pack<'a> {
    inputs: &'a Inputs<'a>,
    what: What,
    block: usize,
    first: usize,
    /// `[LANES, words of a block]`
    rows: &'a mut [f32],
    packed: SharedOut<'a>,
    scales: SharedOut<'a>,
}

impl Kernel for Pack<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let &Inputs { x, k, t, layout } = self.inputs;
        let words = layout.block_words(self.block);
        let width = layout.panel_tokens(self.first);
        let at = layout.offset(self.block, self.first);
        // SAFETY: panels do not overlap, and this task alone packs this one.
        let panel = unsafe { self.packed.slice(at..at + words * width) };
        let values = layout.along(self.block, k);
        let groups = self.what.groups(layout, self.block);
        for group in (0..width).step_by(S::LANES) {
            for (i, row) in self.rows.chunks_exact_mut(layout.block).take(S::LANES).enumerate() {
                let token = self.first + group + i;
                let x = if token < t { &x[token * k..][values.clone()] } else { &[] };
                let real = x.len().div_ceil(layout.per_word);
                self.what.words(x, &mut row[..real], |group, scale| {
                    // SAFETY: the groups of this block exist, and this task alone writes their scales for this token.
                    unsafe { *self.scales.at((groups + group) * layout.tokens + token) = scale };
                });
                row[real..words].fill(0.0);
            }
            let (rows, panel) = (self.rows.as_ptr(), panel.as_mut_ptr());
            // SAFETY: `rows` holds `LANES` rows of `words` values; columns `group .. group + LANES` of the panel are inside it,
            // since the width is a multiple of that.
            unsafe { transpose(s, rows, layout.block, [S::LANES, words], panel.add(group), width) };
        }
    }
}
