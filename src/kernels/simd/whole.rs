//! int8 weights times inputs of 16 bits: products are whole numbers, and so are the sums of a group's 64 of them, exactly.
//!
//! An instruction that multiplies whole numbers takes twice as many of them as one that multiplies `f32`, and weights need not be
//! turned into `f32` for it. The price is that inputs are rounded, to 16 bits with a scale for every [`INT8_GROUP`] of them: 1/65534 of
//! the largest of a group at most.

use shadowllm_weights::{DType, INT8_GROUP};

use super::element::SCALES;
use super::{Element, Simd};
use crate::tensor::Int8;

/// A byte of a row of int8 weights ([`Int8`]) whose inputs are rounded by [`round_row`].
///
/// Where a kernel takes `[k]` inputs as `f32`, it takes as much memory here: the 16-bit values from the beginning, then the scales.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Int8Whole(Int8);

/// Groups smaller than this count as zero: the factor that makes 16-bit numbers of them would not be finite.
const LEAST: f32 = 1e-30;

/// Largest size of a 16-bit input.
const LARGEST: f32 = 32767.0;

/// Where the scales of `k` rounded inputs begin, in `f32`.
const fn scales(k: usize) -> usize {
    k.div_ceil(2)
}

impl Int8Whole {
    /// Whether rows of `k` inputs can be rounded in their own place: scales need room, which short ones do not have.
    pub(crate) const fn takes(k: usize) -> bool {
        k >= INT8_GROUP
    }

    /// The same bytes.
    pub(crate) fn of(row: &[Int8]) -> &[Int8Whole] {
        // SAFETY: both are one byte, `Int8Whole` transparently.
        unsafe { std::slice::from_raw_parts(row.as_ptr().cast(), row.len()) }
    }
}

/// Rounds `x` to 16 bits: a value is `v * s`, with `s` the largest size of its group of [`INT8_GROUP`] over 32767, and `v` the nearest,
/// ties to even. `out` is as long as `x`. A group with a NaN or an infinity has a scale that makes every product a NaN.
pub(crate) fn round_row(x: &[f32], out: &mut [f32]) {
    /// Of this size neighbours among `f32` are 1 apart: added to a number, it leaves the nearest integer in the lowest bits.
    const UNITS: f32 = (3 << 22) as f32;
    let k = x.len();
    assert!(Int8Whole::takes(k) && out.len() == k);
    let (values, scales) = out.split_at_mut(scales(k));
    let values: &mut [i16] = bytemuck::cast_slice_mut(values);
    for ((x, values), scale) in x.chunks(INT8_GROUP).zip(values.chunks_mut(INT8_GROUP)).zip(scales) {
        // The bits of sizes are in the order of the sizes, with infinity and NaN at the end.
        let largest = x.iter().fold(0, |most, v| most.max(v.abs().to_bits()));
        let largest = f32::from_bits(largest);
        let factor = match largest {
            LEAST..=f32::MAX => LARGEST / largest,
            _ => 0.0,
        };
        for (value, x) in values.iter_mut().zip(x) {
            *value = (x * factor + UNITS).to_bits() as i16;
        }
        *scale = match largest {
            ..LEAST => 0.0,
            LEAST..=f32::MAX => largest / LARGEST,
            _ => f32::NAN,
        };
    }
}

impl Element for Int8Whole {
    const DTYPE: DType = DType::I8;
    const SCALED: bool = true;
    const WHOLE: bool = true;

    #[inline(always)]
    fn span(cols: usize) -> usize {
        Int8::span(cols)
    }

    #[inline(always)]
    fn group_end(i: usize, cols: usize) -> usize {
        Int8::group_end(i, cols)
    }

    #[inline(always)]
    fn group(i: usize) -> usize {
        Int8::group(i)
    }

    #[inline(always)]
    unsafe fn scale(row: *const Self, cols: usize, i: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { Int8::scale(row.cast(), cols, i) }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { Int8::load(s, p.cast()) }
    }

    #[inline(always)]
    unsafe fn load_part<S: Simd>(s: S, p: *const Self, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { Int8::load_part(s, p.cast(), n) }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(s: S, row: *const Self, cols: usize, i: usize) {
        Int8::prefetch(s, row.cast(), cols, i);
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(
        s: S,
        rows: [*const Self; 2],
        cols: usize,
        group: usize,
        n: usize,
        factor: f32,
        out: &mut [f32; SCALES],
    ) {
        // SAFETY: the caller's promise.
        unsafe { Int8::scales(s, rows.map(|row| row.cast()), cols, group, n, factor, out) }
    }

    #[inline(always)]
    unsafe fn whole_row<S: Simd>(s: S, row: *const Self, next: *const Self, x: *const f32, k: usize) -> S::V {
        let groups = k / INT8_GROUP;
        let mut factors = [0.0; SCALES];
        // Two sums, so that an addition need not wait for the one before.
        let mut acc = [s.zero(); 2];
        for first in (0..groups).step_by(SCALES) {
            let n = SCALES.min(groups - first);
            // SAFETY: the row has groups `first .. first + n` whole, and so have the inputs, with their scales behind them.
            unsafe {
                Self::scales(s, [row, next], k, first, n, 1.0, &mut factors);
                let scales = x.add(scales(k) + first);
                for (j, factor) in factors[..n].iter_mut().enumerate() {
                    *factor *= *scales.add(j);
                }
                let products = |j: usize| {
                    let at = (first + j) * INT8_GROUP;
                    s.prefetch(next.wrapping_add(at));
                    s.dot_group(row.add(at).cast(), x.cast::<i16>().add(at))
                };
                for j in (0..n / 2 * 2).step_by(2) {
                    acc[0] = s.fma(products(j), s.splat(factors[j]), acc[0]);
                    acc[1] = s.fma(products(j + 1), s.splat(factors[j + 1]), acc[1]);
                }
                if n % 2 == 1 {
                    acc[0] = s.fma(products(n - 1), s.splat(factors[n - 1]), acc[0]);
                }
            }
        }
        let sum = s.add(acc[0], acc[1]);
        let at = groups * INT8_GROUP;
        if at == k {
            return sum;
        }
        // SAFETY: `k - at` values are left in the row and of the inputs, with a scale in either.
        unsafe {
            let rest = s.dot_bytes(row.add(at).cast(), x.cast::<i16>().add(at), k - at) as f32;
            let scale = Self::scale(row, k, at) * *x.add(scales(k) + groups);
            // The sum is that of all lanes, and there are a power of two of them.
            s.fma(s.splat(rest / S::LANES as f32), s.splat(scale), sum)
        }
    }
}

/// The values that [`round_row`] makes of `x`.
#[cfg(test)]
pub(crate) fn rounded(x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len()];
    round_row(x, &mut out);
    let (values, scales) = out.split_at(scales(x.len()));
    let values: &[i16] = bytemuck::cast_slice(values);
    (0..x.len()).map(|i| f32::from(values[i]) * scales[i / INT8_GROUP]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::values;

    #[test]
    fn rounding_is_to_sixteen_bits_of_the_group() {
        for k in [64, 65, 127, 128, 200, 576, 2048] {
            let mut x = values(k as u64, k);
            x.iter_mut().enumerate().for_each(|(i, x)| *x *= 10f32.powi(i as i32 / 64 % 7 - 3));
            x[5] = 0.0;
            for (group, found) in x.chunks(INT8_GROUP).zip(rounded(&x).chunks(INT8_GROUP)) {
                let largest = group.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                for (x, found) in group.iter().zip(found) {
                    let bound = largest / 65534.0 + x.abs() * 2.0 * f32::EPSILON;
                    assert!((x - found).abs() <= bound, "{x} became {found}, {k} inputs");
                }
            }
        }
        assert_eq!(rounded(&[0.0; 64]), [0.0; 64]);
        assert_eq!(rounded(&[1e-33; 64]), [0.0; 64]);
        assert!(rounded(&[f32::MAX; 64]).iter().all(|v| (v / f32::MAX - 1.0).abs() < 1e-6));
    }

    #[test]
    fn what_is_no_number_spoils_its_group_alone() {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for others in [0.0, 1.0] {
                let mut x = [others; 130];
                x[70] = broken;
                let mut out = [0.0; 130];
                round_row(&x, &mut out);
                let scales = &out[scales(130)..][..3];
                assert!(scales[1].is_nan() && !scales[0].is_nan() && !scales[2].is_nan(), "{broken}: {scales:?}");
            }
        }
    }
}
