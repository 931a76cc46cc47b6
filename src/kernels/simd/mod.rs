//! The vector operations that kernels are written in.
//!
//! [`Simd`] is deliberately small: what the kernels of this folder need and nothing else, so that a new instruction set is
//! one file. A vector holds [`Simd::LANES`] `f32`; narrower formats exist only in memory and are widened by the load.
//!
//! Every method must be `#[inline(always)]`: it is then compiled inside the function that enables the instructions
//! ([`Isa::run`](super::isa::Isa::run)). A call that is not inlined would still be correct, but
//! slow; library functions that take closures (`array::map`, `array::from_fn`) are such calls, so kernels write loops instead.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod element;
pub(crate) mod math;
mod portable;

use half::{bf16, f16};

pub(crate) use element::{Element, Plain};

/// A proof token together with the vector operations it makes available.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// `LANES` values of `f32`.
    type V: Copy;

    /// Values in one vector.
    const LANES: usize;

    /// Vector registers of the architecture; kernels choose their tiles by it.
    const REGISTERS: usize;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;

    /// Reads `LANES` values.
    ///
    /// # Safety
    /// `p` is valid for reading `LANES` values; it need not be aligned to more than the element (as for all loads here).
    unsafe fn load(self, p: *const f32) -> Self::V;

    /// Reads `n` values, at most `LANES`; the lanes behind are zero.
    ///
    /// # Safety
    /// `p` is valid for reading `n` values.
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::V;

    /// Reads and widens `LANES` values (exact).
    ///
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load_f16(self, p: *const f16) -> Self::V;

    /// Reads and widens `LANES` values (exact).
    ///
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V;

    /// Reads `LANES` whole numbers (exact).
    ///
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load_i8(self, p: *const i8) -> Self::V;

    /// Writes `LANES` values.
    ///
    /// # Safety
    /// `p` is valid for writing `LANES` values.
    unsafe fn store(self, p: *mut f32, v: Self::V);

    /// Writes the first `n` values, at most `LANES`.
    ///
    /// # Safety
    /// `p` is valid for writing `n` values.
    unsafe fn store_part(self, p: *mut f32, v: Self::V, n: usize);

    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the instruction set can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` if either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a <= b ? yes : no`, per lane; `no` if either is NaN.
    fn select_le(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// `|a|`.
    fn abs(self, a: Self::V) -> Self::V;
    /// `v * 2^n` for integral `n` in -252 ..= 254, rounded once.
    fn scale(self, v: Self::V, n: Self::V) -> Self::V;

    /// Every lane as two `bf16`; the one in the lower half, widened.
    fn low_halves(self, pairs: Self::V) -> Self::V;
    /// The one in the upper half, widened.
    fn high_halves(self, pairs: Self::V) -> Self::V;

    /// `acc` plus both products of the `bf16` pairs in each lane of `w` and `x`, summed in `f32`.
    #[inline(always)]
    fn dot_pairs(self, acc: Self::V, w: Self::V, x: Self::V) -> Self::V {
        let acc = self.fma(self.high_halves(w), self.high_halves(x), acc);
        self.fma(self.low_halves(w), self.low_halves(x), acc)
    }

    /// Reads `2 * LANES` whole numbers: lane `i` is the pair of the 16-bit numbers `2 i` (lower half) and `2 i + 1`.
    ///
    /// # Safety
    /// `p` is valid for reading `2 * LANES` values.
    unsafe fn load_i8_pairs(self, p: *const i8) -> Self::V;

    /// Reads `LANES` whole numbers at both places: lane `i` is the pair of the 16-bit numbers `low[i]` and `high[i]`.
    ///
    /// # Safety
    /// Both are valid for reading `LANES` values.
    unsafe fn load_i8_across(self, low: *const i8, high: *const i8) -> Self::V;

    /// Every lane the lower 16 bits of `low`, and above them those of `high`.
    fn pair_words(self, low: Self::V, high: Self::V) -> Self::V;

    /// `acc` plus both products of the pairs of 16-bit whole numbers in each lane of `w` and `x`. The sums are 32-bit whole
    /// numbers, and wrap.
    fn dot_words(self, acc: Self::V, w: Self::V, x: Self::V) -> Self::V;

    /// Lanes of 32-bit whole numbers as `f32`, to the nearest.
    fn whole_to_f32(self, v: Self::V) -> Self::V;

    /// `sum_i w[i] * x[i]`, exact as long as 32 bits hold it and the sums of any of its parts.
    ///
    /// # Safety
    /// Both are valid for reading `n` values.
    #[inline(always)]
    unsafe fn dot_bytes(self, w: *const i8, x: *const i16, n: usize) -> i32 {
        // SAFETY: `i < n`.
        (0..n).map(|i| unsafe { i32::from(*w.add(i)) * i32::from(*x.add(i)) }).sum()
    }

    /// Sum of all lanes in a fixed order: lane `i` and lane `i + half`, then halves of that, down to one.
    fn sum(self, v: Self::V) -> f32;
    /// Largest lane, in the order of [`Simd::sum`]; if a lane is NaN the result may be any lane.
    fn max_lane(self, v: Self::V) -> f32;

    /// Asks for the cache line at `p` to be brought into the second-level cache. Any address is allowed.
    fn prefetch<T>(self, p: *const T);

    /// Transposes an 8x8 block: `dst[c * dst_stride + r] = src[r * src_stride + c]`.
    ///
    /// # Safety
    /// Both blocks are valid and do not overlap.
    unsafe fn transpose_8x8(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize);

    /// As [`Simd::transpose_8x8`], for a 16x16 block.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn transpose_16x16(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        for (r, c) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            // SAFETY: a quarter of the block.
            unsafe {
                self.transpose_8x8(src.add(r * src_stride + c), src_stride, dst.add(c * dst_stride + r), dst_stride);
            }
        }
    }

    /// All lanes zero.
    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// The first values of `x`: `LANES` of them, or all if there are fewer, with zeros behind.
    #[inline(always)]
    fn load_slice(self, x: &[f32]) -> Self::V {
        if x.len() >= Self::LANES {
            // SAFETY: the slice holds `LANES` values.
            unsafe { self.load(x.as_ptr()) }
        } else {
            // SAFETY: the slice holds `x.len()` values.
            unsafe { self.load_part(x.as_ptr(), x.len()) }
        }
    }

    /// Writes the first lanes of `v` to `x`: `LANES` of them, or as many as fit.
    #[inline(always)]
    fn store_slice(self, x: &mut [f32], v: Self::V) {
        if x.len() >= Self::LANES {
            // SAFETY: the slice holds `LANES` values.
            unsafe { self.store(x.as_mut_ptr(), v) }
        } else {
            // SAFETY: the slice holds `x.len()` values.
            unsafe { self.store_part(x.as_mut_ptr(), v, x.len()) }
        }
    }
}

/// Transposes `src` `[rows, cols]` (row stride `src_stride`) into `dst` `[cols, rows]` (row stride `dst_stride`).
///
/// # Safety
/// Both matrices are valid for their sizes and strides and do not overlap.
#[inline(always)]
pub(crate) unsafe fn transpose<S: Simd>(
    s: S,
    src: *const f32,
    src_stride: usize,
    [rows, cols]: [usize; 2],
    dst: *mut f32,
    dst_stride: usize,
) {
    let (rows8, cols8) = (rows / 8 * 8, cols / 8 * 8);
    let (rows16, cols16) = (rows / 16 * 16, cols / 16 * 16);
    for r in (0..rows16).step_by(16) {
        for c in (0..cols16).step_by(16) {
            // SAFETY: the block lies inside both matrices.
            unsafe {
                s.transpose_16x16(src.add(r * src_stride + c), src_stride, dst.add(c * dst_stride + r), dst_stride);
            }
        }
    }
    // At most eight columns, and eight rows, are left of whole blocks of eight.
    for r in (0..rows8).step_by(8) {
        let from = if r < rows16 { cols16 } else { 0 };
        for c in (from..cols8).step_by(8) {
            // SAFETY: as above.
            unsafe {
                s.transpose_8x8(src.add(r * src_stride + c), src_stride, dst.add(c * dst_stride + r), dst_stride);
            }
        }
    }
    for r in 0..rows {
        let from = if r < rows8 { cols8 } else { 0 };
        for c in from..cols {
            // SAFETY: `r < rows` and `c < cols`.
            unsafe { *dst.add(c * dst_stride + r) = *src.add(r * src_stride + c) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::isa::Kernel;
    use crate::kernels::testing::{cpu, on_every_isa, values};
    use crate::kernels::{Compute, IsaName};

    struct Transpose<'a> {
        src: &'a [f32],
        sizes: [usize; 2],
        dst: &'a mut [f32],
    }

    impl Kernel for Transpose<'_> {
        type Out = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let [rows, cols] = self.sizes;
            assert!(self.src.len() >= rows * (cols + 3) && self.dst.len() >= cols * (rows + 5));
            // SAFETY: both matrices hold their rows, whose strides are a few values longer than they are.
            unsafe { transpose(s, self.src.as_ptr(), cols + 3, self.sizes, self.dst.as_mut_ptr(), rows + 5) };
        }
    }

    /// What the operations on whole numbers give for two vectors of pairs from memory.
    struct Whole<'a> {
        low: &'a [i8],
        high: &'a [i8],
        x: &'a [f32],
    }

    impl Kernel for Whole<'_> {
        type Out = [Vec<f32>; 5];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [Vec<f32>; 5] {
            assert!(self.low.len() >= 2 * S::LANES && self.high.len() >= S::LANES);
            // SAFETY: both hold as many values as are read.
            let (pairs, across) = unsafe {
                (s.load_i8_pairs(self.low.as_ptr()), s.load_i8_across(self.low.as_ptr(), self.high.as_ptr()))
            };
            let joined = s.pair_words(s.load_slice(self.x), s.load_slice(&self.x[S::LANES..]));
            let dot = s.dot_words(pairs, across, joined);
            let mut out = [(); 5].map(|()| vec![0.0; S::LANES]);
            for (out, v) in out.iter_mut().zip([pairs, across, joined, dot, s.whole_to_f32(dot)]) {
                s.store_slice(out, v);
            }
            out
        }
    }

    fn whole_numbers_are_exact(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        for seed in 0..50 {
            let bytes = |seed| values(seed, 32).into_iter().map(|v| (v * 128.0) as i8).collect::<Vec<_>>();
            let (low, high) = (bytes(seed), bytes(seed + 100));
            let x: Vec<u32> = values(seed + 200, 32).into_iter().map(f32::to_bits).map(|b| b.rotate_left(9)).collect();
            let words: Vec<f32> = x.iter().copied().map(f32::from_bits).collect();
            let word = |low: i16, high: i16| u32::from(low.cast_unsigned()) | u32::from(high.cast_unsigned()) << 16;
            let kernel = || Whole { low: &low, high: &high, x: &words };
            for [pairs, across, joined, dot, number] in [cpu.run(kernel()), cpu.run_vnni(kernel())] {
                for i in 0..pairs.len() {
                    let (x_low, x_high) = (x[i] as i16, x[pairs.len() + i] as i16);
                    assert_eq!(pairs[i].to_bits(), word(low[2 * i].into(), low[2 * i + 1].into()));
                    assert_eq!(across[i].to_bits(), word(low[i].into(), high[i].into()));
                    assert_eq!(joined[i].to_bits(), word(x_low, x_high));
                    let sum = i32::from(low[i]) * i32::from(x_low) + i32::from(high[i]) * i32::from(x_high);
                    let sum = pairs[i].to_bits().cast_signed().wrapping_add(sum);
                    assert_eq!((dot[i].to_bits().cast_signed(), number[i]), (sum, sum as f32));
                }
            }
        }
    }

    fn transposes_any_size_and_nothing_beside_it(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        for rows in [0, 1, 7, 8, 9, 15, 16, 24, 31, 40] {
            for cols in [0, 1, 8, 13, 16, 23, 24, 32, 49] {
                let src = values(3, rows * (cols + 3));
                let mut dst = vec![7.0; cols * (rows + 5)];
                cpu.run(Transpose { src: &src, sizes: [rows, cols], dst: &mut dst });
                for (i, &found) in dst.iter().enumerate() {
                    let (c, r) = (i / (rows + 5), i % (rows + 5));
                    let expected = if r < rows { src[r * (cols + 3) + c] } else { 7.0 };
                    assert_eq!(found.to_bits(), expected.to_bits(), "{rows} x {cols}: column {c}, row {r}");
                }
            }
        }
    }

    on_every_isa!(whole_numbers_are_exact, transposes_any_size_and_nothing_beside_it);
}
