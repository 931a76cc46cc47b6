//! How one step of the blocked product multiplies: in `f32`, or on pairs of `bf16`.
//!
//! Both work on 32-bit *words*: one `f32`, or two neighbouring `bf16`. Packing, blocking and layout are therefore the same;
//! only the making of words and the multiply-add differ. An instruction that multiplies more at once (AMX, integers) is
//! another [`Product`].

use shadowllm_weights::DType;

use crate::kernels::cpu::Cpu;
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Plain, Simd};

/// One way to multiply.
pub(crate) trait Product: Copy + Send + Sync {
    /// Values in one word.
    const PER_WORD: usize;

    /// Runs a kernel with the instructions that suit this product.
    fn enter<K: Kernel>(self, cpu: &Cpu, kernel: K) -> K::Out;

    /// Makes the words of `src`, a last incomplete one filled up with zero. `dst` is as long as there are words.
    fn words<S: Simd, W: Plain>(self, s: S, src: &[W], dst: &mut [f32]);

    /// Makes the words of values that lie one below the other: word `i` is `rows[0][i]`, followed by `rows[1][i]` if a word holds
    /// two, or by zero if that row is empty. `dst` is as long as a row.
    fn words_across<S: Simd, W: Plain>(self, s: S, rows: [&[W]; 2], dst: &mut [f32]);

    /// `acc + w * x`, word by word.
    fn step<S: Simd>(self, s: S, acc: S::V, w: S::V, x: S::V) -> S::V;
}

/// `f32` products of the values as they are.
#[derive(Clone, Copy)]
pub(crate) struct Exact;

impl Product for Exact {
    const PER_WORD: usize = 1;

    #[inline]
    fn enter<K: Kernel>(self, cpu: &Cpu, kernel: K) -> K::Out {
        cpu.run(kernel)
    }

    #[inline(always)]
    fn words<S: Simd, W: Plain>(self, s: S, src: &[W], dst: &mut [f32]) {
        W::widen_row(s, src, src.len(), 0, dst);
    }

    #[inline(always)]
    fn words_across<S: Simd, W: Plain>(self, s: S, rows: [&[W]; 2], dst: &mut [f32]) {
        self.words(s, rows[0], dst);
    }

    #[inline(always)]
    fn step<S: Simd>(self, s: S, acc: S::V, w: S::V, x: S::V) -> S::V {
        s.fma(w, x, acc)
    }
}

/// Products of pairs of `bf16`, summed in `f32`. Both factors are rounded to nearest, ties to even.
#[derive(Clone, Copy)]
pub(crate) struct Pairs;

impl Product for Pairs {
    const PER_WORD: usize = 2;

    #[inline]
    fn enter<K: Kernel>(self, cpu: &Cpu, kernel: K) -> K::Out {
        cpu.run_bf16(kernel)
    }

    #[inline(always)]
    fn words<S: Simd, W: Plain>(self, _s: S, src: &[W], dst: &mut [f32]) {
        if W::DTYPE == DType::BF16 {
            return copy_pairs(src, dst);
        }
        pairs(src, dst, round);
    }

    #[inline(always)]
    fn words_across<S: Simd, W: Plain>(self, _s: S, rows: [&[W]; 2], dst: &mut [f32]) {
        pairs_across(rows, dst, round);
    }

    #[inline(always)]
    fn step<S: Simd>(self, s: S, acc: S::V, w: S::V, x: S::V) -> S::V {
        s.dot_pairs(acc, w, x)
    }
}

/// One of the three `bf16` whose sum is an `f32` exactly: bits 23 to 16 of its significand (`0`), 15 to 8 (`1`), 7 to 0 (`2`).
///
/// Parts are cut, not rounded: rounding could turn the largest numbers into infinity. Of infinity and NaN everything is in part
/// 0.
#[derive(Clone, Copy)]
pub(crate) struct Part<const N: usize>;

impl<const N: usize> Part<N> {
    #[inline(always)]
    fn of<W: Plain>(value: W) -> u32 {
        const HIGH: u32 = 0xffff_0000;
        let whole = value.widen();
        let bits = whole.to_bits();
        let finite = bits & 0x7f80_0000 != 0x7f80_0000;
        // A NaN whose bits are all in the lower parts stays one.
        let quiet = if whole.is_nan() { 0x40 } else { 0 };
        if N == 0 {
            return bits >> 16 | quiet;
        }
        let rest = whole - f32::from_bits(bits & HIGH);
        let rest = if N == 1 { rest } else { rest - f32::from_bits(rest.to_bits() & HIGH) };
        if finite { rest.to_bits() >> 16 } else { 0 }
    }
}

impl<const N: usize> Product for Part<N> {
    const PER_WORD: usize = 2;

    #[inline]
    fn enter<K: Kernel>(self, cpu: &Cpu, kernel: K) -> K::Out {
        cpu.run(kernel)
    }

    #[inline(always)]
    fn words<S: Simd, W: Plain>(self, _s: S, src: &[W], dst: &mut [f32]) {
        pairs(src, dst, Self::of);
    }

    #[inline(always)]
    fn words_across<S: Simd, W: Plain>(self, _s: S, rows: [&[W]; 2], dst: &mut [f32]) {
        pairs_across(rows, dst, Self::of);
    }

    #[inline(always)]
    fn step<S: Simd>(self, s: S, acc: S::V, w: S::V, x: S::V) -> S::V {
        s.dot_pairs(acc, w, x)
    }
}

/// The meaning of [`Pairs`] for processors without its instruction: `f32` products of rounded values.
#[derive(Clone, Copy)]
pub(crate) struct Rounded;

impl Product for Rounded {
    const PER_WORD: usize = 1;

    #[inline]
    fn enter<K: Kernel>(self, cpu: &Cpu, kernel: K) -> K::Out {
        cpu.run(kernel)
    }

    #[inline(always)]
    fn words<S: Simd, W: Plain>(self, _s: S, src: &[W], dst: &mut [f32]) {
        assert_eq!(dst.len(), src.len());
        for (word, &value) in dst.iter_mut().zip(src) {
            *word = f32::from_bits(round::<W>(value) << 16);
        }
    }

    #[inline(always)]
    fn words_across<S: Simd, W: Plain>(self, s: S, rows: [&[W]; 2], dst: &mut [f32]) {
        self.words(s, rows[0], dst);
    }

    #[inline(always)]
    fn step<S: Simd>(self, s: S, acc: S::V, w: S::V, x: S::V) -> S::V {
        s.fma(w, x, acc)
    }
}

/// Words of two neighbours of `src` each, whose 16 bits `half` makes.
#[inline(always)]
pub(super) fn pairs<W: Plain>(src: &[W], dst: &mut [f32], half: impl Fn(W) -> u32) {
    assert_eq!(dst.len(), src.len().div_ceil(2));
    let pairs = src.chunks_exact(2);
    if let (&[last], Some(word)) = (pairs.remainder(), dst.last_mut()) {
        *word = f32::from_bits(half(last));
    }
    for (word, pair) in dst.iter_mut().zip(pairs) {
        *word = f32::from_bits(half(pair[0]) | half(pair[1]) << 16);
    }
}

/// [`pairs`] of values that are `bf16` already: in memory they are words.
#[inline(always)]
fn copy_pairs<W: Plain>(src: &[W], dst: &mut [f32]) {
    assert!(W::DTYPE == DType::BF16 && dst.len() == src.len().div_ceil(2));
    if let (1, Some(word)) = (src.len() % 2, dst.last_mut()) {
        *word = 0.0;
    }
    // SAFETY: the words are as long as the values, or by half a word longer; on the processors that have pairs the first of
    // two neighbours is the lower half of a word.
    unsafe { std::ptr::copy_nonoverlapping(src.as_ptr().cast::<u8>(), dst.as_mut_ptr().cast::<u8>(), 2 * src.len()) };
}

/// Words of `low[i]` and `high[i]`, the latter zero if that row is empty.
#[inline(always)]
fn pairs_across<W: Plain>([low, high]: [&[W]; 2], dst: &mut [f32], half: impl Fn(W) -> u32) {
    assert_eq!(dst.len(), low.len());
    if high.is_empty() {
        for (word, &low) in dst.iter_mut().zip(low) {
            *word = f32::from_bits(half(low));
        }
        return;
    }
    assert_eq!(dst.len(), high.len());
    for (word, (&low, &high)) in dst.iter_mut().zip(low.iter().zip(high)) {
        *word = f32::from_bits(half(low) | half(high) << 16);
    }
}

/// The bits of `value` rounded to `bf16`.
#[inline(always)]
fn round<W: Plain>(value: W) -> u32 {
    let bits = value.widen().to_bits();
    if W::DTYPE == DType::BF16 {
        return bits >> 16;
    }
    // Without branches, so that the compiler can make vectors of it; same results as `bf16::from_f32`.
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    let quiet_nan = (bits >> 16) | 0x40;
    if bits & 0x7fff_ffff > 0x7f80_0000 { quiet_nan } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn rounding_is_that_of_half() {
        let mut bits = 0u32;
        loop {
            let value = f32::from_bits(bits);
            assert_eq!(round(value) as u16, bf16::from_f32(value).to_bits(), "{bits:#x}");
            let Some(next) = bits.checked_add(0x4321) else { break };
            bits = next;
        }
    }

    #[test]
    fn three_parts_are_the_whole() {
        let part = |bits: u32| f32::from_bits(bits << 16);
        let mut bits = 0u32;
        loop {
            let value = f32::from_bits(bits);
            let [high, middle, low] = [Part::<0>::of(value), Part::<1>::of(value), Part::<2>::of(value)].map(part);
            if value.is_finite() && value.abs() < 2f32.powi(-102) {
                // Parts that are no normal numbers: the products take them for zero.
            } else if value.is_finite() {
                assert_eq!(f64::from(high) + f64::from(middle) + f64::from(low), f64::from(value), "{bits:#x}");
                assert!([high, middle, low].iter().all(|v| v.is_finite()), "{bits:#x}");
            } else {
                assert_eq!((high.is_nan(), high.is_infinite()), (value.is_nan(), value.is_infinite()), "{bits:#x}");
                assert_eq!((middle, low), (0.0, 0.0), "{bits:#x}");
            }
            let Some(next) = bits.checked_add(0x4321) else { break };
            bits = next;
        }
        assert!(part(Part::<0>::of(f32::from_bits(0x7f80_0001))).is_nan());
    }
}
