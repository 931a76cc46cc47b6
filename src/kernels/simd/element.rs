//! Weight formats as seen by a kernel: how to widen them to `f32`.

use half::{bf16, f16};
use shadowllm_weights::DType;

use super::Simd;

/// An element type that weights may have. Widening is exact, so kernels differ between formats only in their loads.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// Its name.
    const DTYPE: DType;

    /// Reads `S::LANES` values.
    ///
    /// # Safety
    /// `p` is valid for reading `S::LANES` values.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;

    /// Reads `n < S::LANES` values; the lanes behind are zero.
    ///
    /// # Safety
    /// `p` is valid for reading `n` values.
    unsafe fn load_part<S: Simd>(s: S, p: *const Self, n: usize) -> S::V;

    /// One value.
    fn widen(self) -> f32;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(p) }
    }

    #[inline(always)]
    unsafe fn load_part<S: Simd>(s: S, p: *const f32, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_part(p, n) }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

/// Longest vector of any instruction set, in lanes.
const MAX_LANES: usize = 16;

macro_rules! half_element {
    ($type:ty, $dtype:expr, $load:ident) => {
        impl Element for $type {
            const DTYPE: DType = $dtype;

            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, p: *const $type) -> S::V {
                // SAFETY: the caller's promise.
                unsafe { s.$load(p) }
            }

            #[inline(always)]
            unsafe fn load_part<S: Simd>(s: S, p: *const $type, n: usize) -> S::V {
                let mut buffer = [<$type>::ZERO; MAX_LANES];
                for (i, value) in buffer[..n].iter_mut().enumerate() {
                    // SAFETY: `i < n`, and the caller promises `n` values.
                    *value = unsafe { p.add(i).read() };
                }
                // SAFETY: the buffer is at least one vector long.
                unsafe { s.$load(buffer.as_ptr()) }
            }

            #[inline(always)]
            fn widen(self) -> f32 {
                self.to_f32()
            }
        }
    };
}

half_element!(f16, DType::F16, load_f16);
half_element!(bf16, DType::BF16, load_bf16);
