//! Vectors of 8 lanes with AVX2, FMA and F16C.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::Simd;
use crate::kernels::isa::Avx2;

const LANES: usize = 8;

/// Sliding window over which a mask of `n` leading lanes is read.
static MASKS: [i32; 2 * LANES] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// Mask of the first `n` lanes.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn mask(n: usize) -> __m256i {
    let n = n.min(LANES);
    // SAFETY: `LANES - n ..` has at least 8 entries.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(LANES - n).cast()) }
}

/// Halves down to one lane with `op`, which combines the lower and the upper half.
macro_rules! reduce {
    ($v:expr, $op:ident, $op_ss:ident) => {{
        let four = $op(_mm256_castps256_ps128($v), _mm256_extractf128_ps::<1>($v));
        let two = $op(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32($op_ss(two, _mm_movehdup_ps(two)))
    }};
}

/// Transposes an 8x8 block.
///
/// # Safety
/// The processor has AVX2; both blocks are valid for their strides.
#[inline(always)]
pub(super) unsafe fn transpose_8x8(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
    // SAFETY: the caller promises the instructions and 8 rows of 8 values on both sides.
    unsafe {
        let row = |r: usize| _mm256_loadu_ps(src.add(r * src_stride));
        let (r0, r1, r2, r3, r4, r5, r6, r7) = (row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7));
        let a0 = _mm256_castps_pd(_mm256_unpacklo_ps(r0, r1));
        let a1 = _mm256_castps_pd(_mm256_unpackhi_ps(r0, r1));
        let a2 = _mm256_castps_pd(_mm256_unpacklo_ps(r2, r3));
        let a3 = _mm256_castps_pd(_mm256_unpackhi_ps(r2, r3));
        let a4 = _mm256_castps_pd(_mm256_unpacklo_ps(r4, r5));
        let a5 = _mm256_castps_pd(_mm256_unpackhi_ps(r4, r5));
        let a6 = _mm256_castps_pd(_mm256_unpacklo_ps(r6, r7));
        let a7 = _mm256_castps_pd(_mm256_unpackhi_ps(r6, r7));
        let b0 = _mm256_castpd_ps(_mm256_unpacklo_pd(a0, a2));
        let b1 = _mm256_castpd_ps(_mm256_unpackhi_pd(a0, a2));
        let b2 = _mm256_castpd_ps(_mm256_unpacklo_pd(a1, a3));
        let b3 = _mm256_castpd_ps(_mm256_unpackhi_pd(a1, a3));
        let b4 = _mm256_castpd_ps(_mm256_unpacklo_pd(a4, a6));
        let b5 = _mm256_castpd_ps(_mm256_unpackhi_pd(a4, a6));
        let b6 = _mm256_castpd_ps(_mm256_unpacklo_pd(a5, a7));
        let b7 = _mm256_castpd_ps(_mm256_unpackhi_pd(a5, a7));
        let write = |c: usize, v: __m256| _mm256_storeu_ps(dst.add(c * dst_stride), v);
        write(0, _mm256_permute2f128_ps::<0x20>(b0, b4));
        write(1, _mm256_permute2f128_ps::<0x20>(b1, b5));
        write(2, _mm256_permute2f128_ps::<0x20>(b2, b6));
        write(3, _mm256_permute2f128_ps::<0x20>(b3, b7));
        write(4, _mm256_permute2f128_ps::<0x31>(b0, b4));
        write(5, _mm256_permute2f128_ps::<0x31>(b1, b5));
        write(6, _mm256_permute2f128_ps::<0x31>(b2, b6));
        write(7, _mm256_permute2f128_ps::<0x31>(b3, b7));
    }
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = LANES;
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: the token proves AVX2, here and in every method below.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: the caller promises 8 readable values.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> __m256 {
        // SAFETY: masked lanes are not read.
        unsafe { _mm256_maskload_ps(p, mask(n)) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> __m256 {
        // SAFETY: the caller promises 8 readable values.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> __m256 {
        // SAFETY: the caller promises 8 readable values.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m256 {
        // SAFETY: the caller promises 8 readable values.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        // SAFETY: the caller promises 8 writable values.
        unsafe { _mm256_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, v: __m256, n: usize) {
        // SAFETY: masked lanes are not written.
        unsafe { _mm256_maskstore_ps(p, mask(n), v) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see `splat`.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see `splat`.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see `splat`.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see `splat`.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see `splat`.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see `splat`.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see `splat`.
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    fn select_le(self, a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        // SAFETY: see `splat`.
        unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LE_OQ>(a, b)) }
    }

    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        // SAFETY: see `splat`.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }

    #[inline(always)]
    fn scale(self, v: __m256, n: __m256) -> __m256 {
        // Two factors, because 2^n itself may lie outside the range of f32. The first product is exact.
        // SAFETY: see `splat`.
        unsafe {
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let rest = _mm256_sub_epi32(n, half);
            let bias = _mm256_set1_epi32(127);
            let first = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias)));
            let second = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(rest, bias)));
            _mm256_mul_ps(_mm256_mul_ps(v, first), second)
        }
    }

    #[inline(always)]
    fn low_halves(self, pairs: __m256) -> __m256 {
        // SAFETY: see `splat`.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(pairs))) }
    }

    #[inline(always)]
    fn high_halves(self, pairs: __m256) -> __m256 {
        // SAFETY: see `splat`.
        unsafe { _mm256_and_ps(pairs, _mm256_castsi256_ps(_mm256_set1_epi32(-0x1_0000))) }
    }

    #[inline(always)]
    unsafe fn load_i8_pairs(self, p: *const i8) -> __m256 {
        // SAFETY: the caller promises 16 readable values.
        unsafe { _mm256_castsi256_ps(_mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_i8_across(self, low: *const i8, high: *const i8) -> __m256 {
        // SAFETY: the caller promises 8 readable values at both places.
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(low.cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(high.cast()));
            self.pair_words(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }

    #[inline(always)]
    fn pair_words(self, low: __m256, high: __m256) -> __m256 {
        // SAFETY: see `splat`.
        unsafe {
            let high = _mm256_slli_epi32::<16>(_mm256_castps_si256(high));
            _mm256_castsi256_ps(_mm256_blend_epi16::<0xaa>(_mm256_castps_si256(low), high))
        }
    }

    #[inline(always)]
    fn dot_words(self, acc: __m256, w: __m256, x: __m256) -> __m256 {
        // SAFETY: see `splat`.
        unsafe {
            let products = _mm256_madd_epi16(_mm256_castps_si256(w), _mm256_castps_si256(x));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(acc), products))
        }
    }

    #[inline(always)]
    fn whole_to_f32(self, v: __m256) -> __m256 {
        // SAFETY: see `splat`.
        unsafe { _mm256_cvtepi32_ps(_mm256_castps_si256(v)) }
    }

    #[inline(always)]
    unsafe fn dot_bytes(self, w: *const i8, x: *const i16, n: usize) -> i32 {
        let whole = n / 16 * 16;
        // SAFETY: the caller promises `n` values of both.
        unsafe {
            let mut acc = _mm256_setzero_si256();
            let mut i = 0;
            while i < whole {
                let wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(w.add(i).cast()));
                acc = _mm256_add_epi32(acc, _mm256_madd_epi16(wide, _mm256_loadu_si256(x.add(i).cast())));
                i += 16;
            }
            let four = _mm_add_epi32(_mm256_castsi256_si128(acc), _mm256_extracti128_si256::<1>(acc));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            let one = _mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
            let rest = (whole..n).map(|i| i32::from(*w.add(i)) * i32::from(*x.add(i)));
            _mm_cvtsi128_si32(one) + rest.sum::<i32>()
        }
    }

    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        // SAFETY: see `splat`.
        unsafe { reduce!(v, _mm_add_ps, _mm_add_ss) }
    }

    #[inline(always)]
    fn max_lane(self, v: __m256) -> f32 {
        // SAFETY: see `splat`.
        unsafe { reduce!(v, _mm_max_ps, _mm_max_ss) }
    }

    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn transpose_8x8(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        // SAFETY: the token proves AVX2; the caller promises the blocks.
        unsafe { transpose_8x8(src, src_stride, dst, dst_stride) }
    }
}
