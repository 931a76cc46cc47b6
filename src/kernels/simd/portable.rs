//! Vectors of crate `wide`: correct on every processor, fast where the compiler was told of a better one.

use half::{bf16, f16};
use wide::{f32x8, i16x16, i32x8, u32x8};

use super::Simd;
use crate::kernels::isa::Portable;

const LANES: usize = 8;

/// A lane of two 16-bit whole numbers, the first in the lower half.
#[inline(always)]
fn pair(low: i8, high: i8) -> u32 {
    u32::from(i16::from(low).cast_unsigned()) | u32::from(i16::from(high).cast_unsigned()) << 16
}

impl Simd for Portable {
    type V = f32x8;
    const LANES: usize = LANES;
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn splat(self, x: f32) -> f32x8 {
        f32x8::splat(x)
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> f32x8 {
        // SAFETY: the caller promises 8 readable values; an array of f32 is no more aligned than one.
        f32x8::new(unsafe { *p.cast::<[f32; LANES]>() })
    }

    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> f32x8 {
        let mut buffer = [0.0; LANES];
        for (i, value) in buffer[..n].iter_mut().enumerate() {
            // SAFETY: `i < n`, and the caller promises `n` values.
            *value = unsafe { p.add(i).read() };
        }
        f32x8::new(buffer)
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> f32x8 {
        // SAFETY: the caller promises 8 readable values.
        let half = u32x8::new(unsafe { *p.cast::<[u16; LANES]>() }.map(u32::from));
        let sign = (half & u32x8::splat(0x8000)) << 16u32;
        let rest = half & u32x8::splat(0x7fff);
        // The exponent is re-biased by a multiplication, which also makes subnormals right.
        let value: f32x8 = bytemuck::cast::<u32x8, f32x8>(rest << 13u32) * f32x8::splat(2f32.powi(112));
        let bits: u32x8 = bytemuck::cast(value);
        let special: i32x8 = bytemuck::cast::<u32x8, i32x8>(rest).simd_gt(i32x8::splat(0x7bff));
        let bits = bits | (bytemuck::cast::<i32x8, u32x8>(special) & u32x8::splat(0x7f80_0000)) | sign;
        bytemuck::cast(bits)
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> f32x8 {
        // SAFETY: the caller promises 8 readable values.
        let half = u32x8::new(unsafe { *p.cast::<[u16; LANES]>() }.map(u32::from));
        bytemuck::cast(half << 16u32)
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> f32x8 {
        // SAFETY: the caller promises 8 readable values.
        f32x8::new(unsafe { *p.cast::<[i8; LANES]>() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: f32x8) {
        // SAFETY: the caller promises 8 writable values.
        unsafe { *p.cast::<[f32; LANES]>() = v.to_array() }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, v: f32x8, n: usize) {
        for (i, &value) in v.to_array()[..n].iter().enumerate() {
            // SAFETY: `i < n`, and the caller promises `n` writable values.
            unsafe { p.add(i).write(value) };
        }
    }

    #[inline(always)]
    fn add(self, a: f32x8, b: f32x8) -> f32x8 {
        a + b
    }

    #[inline(always)]
    fn sub(self, a: f32x8, b: f32x8) -> f32x8 {
        a - b
    }

    #[inline(always)]
    fn mul(self, a: f32x8, b: f32x8) -> f32x8 {
        a * b
    }

    #[inline(always)]
    fn div(self, a: f32x8, b: f32x8) -> f32x8 {
        a / b
    }

    #[inline(always)]
    fn fma(self, a: f32x8, b: f32x8, c: f32x8) -> f32x8 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn max(self, a: f32x8, b: f32x8) -> f32x8 {
        a.simd_gt(b).select(a, b)
    }

    #[inline(always)]
    fn min(self, a: f32x8, b: f32x8) -> f32x8 {
        b.simd_gt(a).select(a, b)
    }

    #[inline(always)]
    fn select_le(self, a: f32x8, b: f32x8, yes: f32x8, no: f32x8) -> f32x8 {
        a.simd_le(b).select(yes, no)
    }

    #[inline(always)]
    fn abs(self, a: f32x8) -> f32x8 {
        a.abs()
    }

    #[inline(always)]
    fn scale(self, v: f32x8, n: f32x8) -> f32x8 {
        // Two factors, because 2^n itself may lie outside the range of f32. The first product is exact.
        let n: i32x8 = n.round_int();
        let half: i32x8 = n >> 1i32;
        let power = |n: i32x8| bytemuck::cast::<i32x8, f32x8>((n + i32x8::splat(127)) << 23i32);
        v * power(half) * power(n - half)
    }

    #[inline(always)]
    fn low_halves(self, pairs: f32x8) -> f32x8 {
        bytemuck::cast(bytemuck::cast::<f32x8, u32x8>(pairs) << 16u32)
    }

    #[inline(always)]
    fn high_halves(self, pairs: f32x8) -> f32x8 {
        bytemuck::cast(bytemuck::cast::<f32x8, u32x8>(pairs) & u32x8::splat(0xffff_0000))
    }

    #[inline(always)]
    unsafe fn load_i8_pairs(self, p: *const i8) -> f32x8 {
        // SAFETY: the caller promises 16 readable values.
        let values = unsafe { *p.cast::<[i8; 2 * LANES]>() };
        let mut words = [0; LANES];
        for (word, values) in words.iter_mut().zip(values.chunks_exact(2)) {
            *word = pair(values[0], values[1]);
        }
        bytemuck::cast(u32x8::new(words))
    }

    #[inline(always)]
    unsafe fn load_i8_across(self, low: *const i8, high: *const i8) -> f32x8 {
        // SAFETY: the caller promises 8 readable values at both places.
        let (low, high) = unsafe { (*low.cast::<[i8; LANES]>(), *high.cast::<[i8; LANES]>()) };
        let mut words = [0; LANES];
        for (word, (low, high)) in words.iter_mut().zip(low.into_iter().zip(high)) {
            *word = pair(low, high);
        }
        bytemuck::cast(u32x8::new(words))
    }

    #[inline(always)]
    fn pair_words(self, low: f32x8, high: f32x8) -> f32x8 {
        let (low, high): (u32x8, u32x8) = (bytemuck::cast(low), bytemuck::cast(high));
        bytemuck::cast((low & u32x8::splat(0xffff)) | (high << 16u32))
    }

    #[inline(always)]
    fn dot_words(self, acc: f32x8, w: f32x8, x: f32x8) -> f32x8 {
        let products = bytemuck::cast::<f32x8, i16x16>(w).dot(bytemuck::cast(x));
        bytemuck::cast(bytemuck::cast::<f32x8, i32x8>(acc) + products)
    }

    #[inline(always)]
    fn whole_to_f32(self, v: f32x8) -> f32x8 {
        bytemuck::cast::<f32x8, i32x8>(v).round_float()
    }

    #[inline(always)]
    fn sum(self, v: f32x8) -> f32 {
        let [a, b, c, d, e, f, g, h] = v.to_array();
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    fn max_lane(self, v: f32x8) -> f32 {
        v.to_array().into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn prefetch<T>(self, _p: *const T) {}

    #[inline(always)]
    unsafe fn transpose_8x8(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        let mut rows = [self.zero(); LANES];
        for (r, row) in rows.iter_mut().enumerate() {
            // SAFETY: the caller promises 8 rows of 8 values.
            *row = unsafe { self.load(src.add(r * src_stride)) };
        }
        for (c, column) in f32x8::transpose(rows).into_iter().enumerate() {
            // SAFETY: as above, for the destination.
            unsafe { self.store(dst.add(c * dst_stride), column) };
        }
    }
}
