//! Weight formats as seen by a kernel: how to widen them to `f32`.
//!
//! A kernel walks along rows of weights, and what differs between formats is the load, and whether values have scales. It
//! therefore goes group by group: [`Element::group_end`] says where the scale changes. Of a format without scales a row is one
//! group, the loop around the groups is gone when it is compiled, and nothing is left of the scale.

use half::{bf16, f16};
use shadowllm_weights::{DType, INT8_GROUP, int8_scales};

use super::Simd;
use crate::tensor::Int8;

/// An element type that rows of weights may consist of. Widening is exact: a weight is the value read, times its scale where the
/// format has scales.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// Its name.
    const DTYPE: DType;

    /// Whether values have scales; where they have none a scale is 1, and kernels leave it out.
    const SCALED: bool = false;

    /// Elements that a row of `cols` values consists of, its scales included.
    #[inline(always)]
    fn span(cols: usize) -> usize {
        cols
    }

    /// One past the last value that has the scale of value `i`, in a row of `cols` values. From group to group there is a whole
    /// number of vectors.
    #[inline(always)]
    fn group_end(_i: usize, cols: usize) -> usize {
        cols
    }

    /// The scale of value `i` of the row of `cols` values that begins at `row`.
    ///
    /// # Safety
    /// `row` is valid for reading [`Element::span`] elements, and `i < cols`.
    #[inline(always)]
    unsafe fn scale(_row: *const Self, _cols: usize, _i: usize) -> f32 {
        1.0
    }

    /// Reads `S::LANES` values, without their scale.
    ///
    /// # Safety
    /// `p` is valid for reading `S::LANES` values.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;

    /// Reads `n < S::LANES` values; the lanes behind are zero.
    ///
    /// # Safety
    /// `p` is valid for reading `n` values.
    unsafe fn load_part<S: Simd>(s: S, p: *const Self, n: usize) -> S::V;

    /// Asks for what a kernel reads with the vector at value `i` of the row of `cols` values that begins at `row`, which need
    /// not exist. Kernels go from vector to vector, so one of those that share a cache line asks for it.
    #[inline(always)]
    fn prefetch<S: Simd>(s: S, row: *const Self, _cols: usize, i: usize) {
        if (i * size_of::<Self>()).is_multiple_of(LINE) {
            s.prefetch(row.wrapping_add(i));
        }
    }

    /// Widens the values from `first` on of a row of `cols` values, as many as `out` has.
    #[inline(always)]
    fn widen_row<S: Simd>(s: S, row: &[Self], cols: usize, first: usize, out: &mut [f32]) {
        assert!(row.len() >= Self::span(cols) && first <= cols && out.len() <= cols - first);
        let mut at = 0;
        while at < out.len() {
            let end = (Self::group_end(first + at, cols) - first).min(out.len());
            // SAFETY: the row has `cols` values, and `first + at < cols`.
            let scale = s.splat(unsafe { Self::scale(row.as_ptr(), cols, first + at) });
            let widened = |v: S::V| if Self::SCALED { s.mul(v, scale) } else { v };
            while at + S::LANES <= end {
                // SAFETY: `first + at + LANES <= cols`, and `at + LANES <= out.len()`.
                unsafe { s.store(out.as_mut_ptr().add(at), widened(Self::load(s, row.as_ptr().add(first + at)))) };
                at += S::LANES;
            }
            if at < end {
                // SAFETY: `end - at` values are left in the row and in the output.
                let v = unsafe { widened(Self::load_part(s, row.as_ptr().add(first + at), end - at)) };
                s.store_slice(&mut out[at..end], v);
                at = end;
            }
        }
    }
}

/// An element whose value stands for itself.
pub(crate) trait Plain: Element {
    /// Its value.
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
}

impl Plain for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

/// Longest vector of any instruction set, in lanes.
const MAX_LANES: usize = 16;

/// Reads `n` values with a load that reads a whole vector; the lanes behind are zero.
macro_rules! load_part {
    ($s:ident, $load:ident, $p:ident, $n:ident, $zero:expr) => {{
        let mut buffer = [$zero; MAX_LANES];
        for (i, value) in buffer[..$n].iter_mut().enumerate() {
            // SAFETY: `i < n`, and the caller promises `n` values.
            *value = unsafe { $p.add(i).read() };
        }
        // SAFETY: the buffer is at least one vector long.
        unsafe { $s.$load(buffer.as_ptr()) }
    }};
}

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
                load_part!(s, $load, p, n, <$type>::ZERO)
            }
        }

        impl Plain for $type {
            #[inline(always)]
            fn widen(self) -> f32 {
                self.to_f32()
            }
        }
    };
}

half_element!(f16, DType::F16, load_f16);
half_element!(bf16, DType::BF16, load_bf16);

/// Bytes of a cache line.
const LINE: usize = 64;
/// Scales of one cache line belong to so many values.
const SCALES_LINE: usize = LINE / size_of::<bf16>() * INT8_GROUP;

const _: () = assert!(INT8_GROUP.is_multiple_of(MAX_LANES) && LINE.is_multiple_of(MAX_LANES));

impl Element for Int8 {
    const DTYPE: DType = DType::I8;
    const SCALED: bool = true;

    #[inline(always)]
    fn span(cols: usize) -> usize {
        DType::I8.row_bytes(cols)
    }

    #[inline(always)]
    fn group_end(i: usize, cols: usize) -> usize {
        cols.min(i / INT8_GROUP * INT8_GROUP + INT8_GROUP)
    }

    #[inline(always)]
    unsafe fn scale(row: *const Int8, cols: usize, i: usize) -> f32 {
        // SAFETY: the scale of group `i / GROUP` stands behind the values, inside the row.
        let bits = unsafe { row.add(int8_scales(cols)).cast::<u16>().add(i / INT8_GROUP).read_unaligned() };
        f32::from_bits(u32::from(bits) << 16)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Int8) -> S::V {
        // SAFETY: the caller's promise; both types are bytes.
        unsafe { s.load_i8(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load_part<S: Simd>(s: S, p: *const Int8, n: usize) -> S::V {
        let p = p.cast::<i8>();
        load_part!(s, load_i8, p, n, 0i8)
    }

    #[inline(always)]
    fn prefetch<S: Simd>(s: S, row: *const Int8, cols: usize, i: usize) {
        // A line holds several vectors of values, and the scales of many.
        if i.is_multiple_of(LINE) {
            s.prefetch(row.wrapping_add(i));
        }
        if i.is_multiple_of(SCALES_LINE) {
            s.prefetch(row.wrapping_add(int8_scales(cols) + 2 * (i / INT8_GROUP)));
        }
    }
}
