//! Vectors of 16 lanes with AVX-512 F, BW, VL and DQ.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::Simd;
use crate::kernels::isa::{Avx512, Avx512Bf16, Avx512Vnni};

/// Mask of the first `n <= 16` lanes.
#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

/// Halves down to one lane with `op`, which combines the lower and the upper half.
macro_rules! reduce {
    ($v:expr, $op256:ident, $op:ident, $op_ss:ident) => {{
        let eight = $op256(_mm512_castps512_ps256($v), _mm512_extractf32x8_ps::<1>($v));
        let four = $op(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = $op(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32($op_ss(two, _mm_movehdup_ps(two)))
    }};
}

/// Transposes a 16x16 block: first within pairs of rows, then within fours, then the quarters of vectors.
///
/// # Safety
/// The processor has AVX-512; both blocks are valid for their strides.
#[inline(always)]
unsafe fn transpose_16x16(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
    // SAFETY: the caller promises the instructions and 16 rows of 16 values on both sides.
    unsafe {
        let zero = _mm512_setzero_ps();
        // Lane `l` of `fours[4 g + j]` is column `4 l + j` of rows `4 g .. 4 g + 4`.
        let mut fours = [zero; 16];
        for g in 0..4 {
            let row = |r: usize| _mm512_loadu_ps(src.add((4 * g + r) * src_stride));
            let (r0, r1, r2, r3) = (row(0), row(1), row(2), row(3));
            let a0 = _mm512_castps_pd(_mm512_unpacklo_ps(r0, r1));
            let a1 = _mm512_castps_pd(_mm512_unpackhi_ps(r0, r1));
            let a2 = _mm512_castps_pd(_mm512_unpacklo_ps(r2, r3));
            let a3 = _mm512_castps_pd(_mm512_unpackhi_ps(r2, r3));
            fours[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(a0, a2));
            fours[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a0, a2));
            fours[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(a1, a3));
            fours[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(a1, a3));
        }
        let write = |c: usize, v: __m512| _mm512_storeu_ps(dst.add(c * dst_stride), v);
        for j in 0..4 {
            let even_top = _mm512_shuffle_f32x4::<0x88>(fours[j], fours[4 + j]);
            let odd_top = _mm512_shuffle_f32x4::<0xdd>(fours[j], fours[4 + j]);
            let even_bottom = _mm512_shuffle_f32x4::<0x88>(fours[8 + j], fours[12 + j]);
            let odd_bottom = _mm512_shuffle_f32x4::<0xdd>(fours[8 + j], fours[12 + j]);
            write(j, _mm512_shuffle_f32x4::<0x88>(even_top, even_bottom));
            write(4 + j, _mm512_shuffle_f32x4::<0x88>(odd_top, odd_bottom));
            write(8 + j, _mm512_shuffle_f32x4::<0xdd>(even_top, even_bottom));
            write(12 + j, _mm512_shuffle_f32x4::<0xdd>(odd_top, odd_bottom));
        }
    }
}

/// The same vectors for both tokens; `extra` are the methods that one of them does better.
macro_rules! simd_avx512 {
    ($token:ty, { $($extra:tt)* }) => {
        impl Simd for $token {
            type V = __m512;
            const LANES: usize = 16;
            const REGISTERS: usize = 32;

            #[inline(always)]
            fn splat(self, x: f32) -> __m512 {
                // SAFETY: the token proves AVX-512, here and in every method below.
                unsafe { _mm512_set1_ps(x) }
            }

            #[inline(always)]
            unsafe fn load(self, p: *const f32) -> __m512 {
                // SAFETY: the caller promises 16 readable values.
                unsafe { _mm512_loadu_ps(p) }
            }

            #[inline(always)]
            unsafe fn load_part(self, p: *const f32, n: usize) -> __m512 {
                // SAFETY: masked lanes are not read.
                unsafe { _mm512_maskz_loadu_ps(mask(n), p) }
            }

            #[inline(always)]
            unsafe fn load_f16(self, p: *const f16) -> __m512 {
                // SAFETY: the caller promises 16 readable values.
                unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
            }

            #[inline(always)]
            unsafe fn load_bf16(self, p: *const bf16) -> __m512 {
                // SAFETY: the caller promises 16 readable values.
                unsafe {
                    let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
                }
            }

            #[inline(always)]
            unsafe fn load_i8(self, p: *const i8) -> __m512 {
                // SAFETY: the caller promises 16 readable values.
                unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
            }

            #[inline(always)]
            unsafe fn store(self, p: *mut f32, v: __m512) {
                // SAFETY: the caller promises 16 writable values.
                unsafe { _mm512_storeu_ps(p, v) }
            }

            #[inline(always)]
            unsafe fn store_part(self, p: *mut f32, v: __m512, n: usize) {
                // SAFETY: masked lanes are not written.
                unsafe { _mm512_mask_storeu_ps(p, mask(n), v) }
            }

            #[inline(always)]
            fn add(self, a: __m512, b: __m512) -> __m512 {
                // SAFETY: see `splat`.
                unsafe { _mm512_add_ps(a, b) }
            }

            #[inline(always)]
            fn sub(self, a: __m512, b: __m512) -> __m512 {
                // SAFETY: see `splat`.
                unsafe { _mm512_sub_ps(a, b) }
            }

            #[inline(always)]
            fn mul(self, a: __m512, b: __m512) -> __m512 {
                // SAFETY: see `splat`.
                unsafe { _mm512_mul_ps(a, b) }
            }

            #[inline(always)]
            fn div(self, a: __m512, b: __m512) -> __m512 {
                // SAFETY: see `splat`.
                unsafe { _mm512_div_ps(a, b) }
            }

            #[inline(always)]
            fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
                // SAFETY: see `splat`.
                unsafe { _mm512_fmadd_ps(a, b, c) }
            }

            #[inline(always)]
            fn max(self, a: __m512, b: __m512) -> __m512 {
                // SAFETY: see `splat`.
                unsafe { _mm512_max_ps(a, b) }
            }

            #[inline(always)]
            fn min(self, a: __m512, b: __m512) -> __m512 {
                // SAFETY: see `splat`.
                unsafe { _mm512_min_ps(a, b) }
            }

            #[inline(always)]
            fn select_le(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
                // SAFETY: see `splat`.
                unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b), no, yes) }
            }

            #[inline(always)]
            fn abs(self, a: __m512) -> __m512 {
                // SAFETY: see `splat`.
                unsafe { _mm512_abs_ps(a) }
            }

            #[inline(always)]
            fn scale(self, v: __m512, n: __m512) -> __m512 {
                // SAFETY: see `splat`.
                unsafe { _mm512_scalef_ps(v, n) }
            }

            #[inline(always)]
            fn low_halves(self, pairs: __m512) -> __m512 {
                // SAFETY: see `splat`.
                unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(pairs))) }
            }

            #[inline(always)]
            fn high_halves(self, pairs: __m512) -> __m512 {
                // SAFETY: see `splat`.
                unsafe { _mm512_and_ps(pairs, _mm512_castsi512_ps(_mm512_set1_epi32(-0x1_0000))) }
            }

            #[inline(always)]
            unsafe fn load_i8_pairs(self, p: *const i8) -> __m512 {
                // SAFETY: the caller promises 32 readable values.
                unsafe { _mm512_castsi512_ps(_mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast()))) }
            }

            #[inline(always)]
            unsafe fn load_i8_across(self, low: *const i8, high: *const i8) -> __m512 {
                // SAFETY: the caller promises 16 readable values at both places.
                unsafe {
                    let low = _mm512_cvtepi8_epi32(_mm_loadu_si128(low.cast()));
                    let high = _mm512_cvtepi8_epi32(_mm_loadu_si128(high.cast()));
                    self.pair_words(_mm512_castsi512_ps(low), _mm512_castsi512_ps(high))
                }
            }

            #[inline(always)]
            fn pair_words(self, low: __m512, high: __m512) -> __m512 {
                // SAFETY: see `splat`.
                unsafe {
                    let high = _mm512_slli_epi32::<16>(_mm512_castps_si512(high));
                    _mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_castps_si512(low), high))
                }
            }

            #[inline(always)]
            fn whole_to_f32(self, v: __m512) -> __m512 {
                // SAFETY: see `splat`.
                unsafe { _mm512_cvtepi32_ps(_mm512_castps_si512(v)) }
            }

            $($extra)*

            #[inline(always)]
            unsafe fn dot_bytes(self, w: *const i8, x: *const i16, n: usize) -> i32 {
                let whole = n / 32 * 32;
                // SAFETY: the caller promises `n` values of both; masked lanes are not read.
                unsafe {
                    let mut acc = _mm512_setzero_si512();
                    let mut i = 0;
                    while i < whole {
                        let wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(w.add(i).cast()));
                        acc = _mm512_add_epi32(acc, _mm512_madd_epi16(wide, _mm512_loadu_si512(x.add(i).cast())));
                        i += 32;
                    }
                    if whole < n {
                        let rest = (1u32 << (n - whole)) - 1;
                        let wide = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(rest, w.add(whole)));
                        let x = _mm512_maskz_loadu_epi16(rest, x.add(whole));
                        acc = _mm512_add_epi32(acc, _mm512_madd_epi16(wide, x));
                    }
                    _mm512_reduce_add_epi32(acc)
                }
            }

            #[inline(always)]
            fn sum(self, v: __m512) -> f32 {
                // SAFETY: see `splat`.
                unsafe { reduce!(v, _mm256_add_ps, _mm_add_ps, _mm_add_ss) }
            }

            #[inline(always)]
            fn max_lane(self, v: __m512) -> f32 {
                // SAFETY: see `splat`.
                unsafe { reduce!(v, _mm256_max_ps, _mm_max_ps, _mm_max_ss) }
            }

            #[inline(always)]
            fn prefetch<T>(self, p: *const T) {
                // SAFETY: a prefetch never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
            }

            #[inline(always)]
            unsafe fn transpose_8x8(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
                // SAFETY: AVX-512 includes AVX2; the caller promises the blocks.
                unsafe { super::avx2::transpose_8x8(src, src_stride, dst, dst_stride) }
            }

            #[inline(always)]
            unsafe fn transpose_16x16(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
                // SAFETY: the token proves the instructions; the caller promises the blocks.
                unsafe { transpose_16x16(src, src_stride, dst, dst_stride) }
            }
        }
    };
}

/// `acc` plus the products of pairs of 16 bits, with the instructions that every AVX-512 processor has.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
unsafe fn add_products(acc: __m512, w: __m512, x: __m512) -> __m512 {
    // SAFETY: the caller promises the instructions.
    unsafe {
        let products = _mm512_madd_epi16(_mm512_castps_si512(w), _mm512_castps_si512(x));
        _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(acc), products))
    }
}

simd_avx512!(Avx512, {
    #[inline(always)]
    fn dot_words(self, acc: __m512, w: __m512, x: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512.
        unsafe { add_products(acc, w, x) }
    }
});
simd_avx512!(Avx512Vnni, {
    #[inline(always)]
    fn dot_words(self, acc: __m512, w: __m512, x: __m512) -> __m512 {
        // SAFETY: the token proves AVX512-VNNI.
        unsafe {
            let (acc, w, x) = (_mm512_castps_si512(acc), _mm512_castps_si512(w), _mm512_castps_si512(x));
            _mm512_castsi512_ps(_mm512_dpwssd_epi32(acc, w, x))
        }
    }
});
simd_avx512!(Avx512Bf16, {
    #[inline(always)]
    fn dot_words(self, acc: __m512, w: __m512, x: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512.
        unsafe { add_products(acc, w, x) }
    }

    #[inline(always)]
    fn dot_pairs(self, acc: __m512, w: __m512, x: __m512) -> __m512 {
        // SAFETY: the token proves AVX512-BF16. Both types are 64 bytes without invalid values.
        unsafe {
            let w = std::mem::transmute::<__m512, __m512bh>(w);
            let x = std::mem::transmute::<__m512, __m512bh>(x);
            _mm512_dpbf16_ps(acc, w, x)
        }
    }
});
