//! Rows of int8 weights: values of one byte, and a scale for every group of them in the same row.
//!
//! Decoding reads every weight once, so its time is the bytes of the weights. A row of `cols` values is
//!
//! ```text
//! cols bytes: the values, -127 to 127   | a byte, if cols is odd | ceil(cols / 64) scales, bf16 | zeros up to a multiple of 16
//! ```
//!
//! and weight `i` is `value[i] * scale[i / 64]`. Scales stand beside the values that they belong to, so that a record of a packed
//! file is still one contiguous piece, and a row of kept weights is read together with its scales and nothing else. A scale has the
//! 8 bits of a `bf16`: together with the 7 of a value that is less than an `f32` holds, so kernels widen int8 weights exactly, as
//! they do the other types. Scales are rounded up, so that the largest value of a group is never cut off.
//!
//! A row is always a head's or a neuron's, never the other way round: the matrices by which a block ends (`out_proj`, `fc2`, `down`)
//! are stored by input, one row for each head dimension or neuron, as packed records have them. Packing then moves whole rows.

use half::bf16;

use crate::DType;

/// Values that share a scale.
pub const INT8_GROUP: usize = 64;

/// Rows are as long as a multiple of this, so that a vector of values never lies in two cache lines.
const ALIGNMENT: usize = 16;

/// Largest value.
const MOST: f32 = 127.0;

/// Of this size neighbours among `f32` are 1 apart.
const UNITS: f32 = (3 << 22) as f32;

/// Where in a row of `cols` values the scales begin, in bytes.
pub const fn int8_scales(cols: usize) -> usize {
    cols.next_multiple_of(2)
}

/// Bytes of a row of `cols` values; `None` if that is more than the address space.
pub(crate) fn row_bytes(cols: usize) -> Option<usize> {
    cols.checked_add(1)?.checked_add(2 * cols.div_ceil(INT8_GROUP))?.checked_add(ALIGNMENT)?;
    let scales = 2 * cols.div_ceil(INT8_GROUP);
    Some((int8_scales(cols) + scales).next_multiple_of(ALIGNMENT))
}

/// Rounds a row of finite values, to nearest, ties to even. `row` is as long as [`DType::row_bytes`] says.
///
/// # Panics
/// If it is not.
pub fn int8_row(values: &[f32], row: &mut [u8]) {
    let cols = values.len();
    assert_eq!(row.len(), DType::I8.row_bytes(cols), "a row of {cols} values has another length");
    let (stored, rest) = row.split_at_mut(int8_scales(cols));
    stored[cols..].fill(0);
    rest.fill(0);
    let groups = values.chunks(INT8_GROUP).zip(stored.chunks_mut(INT8_GROUP)).zip(rest.chunks_exact_mut(2));
    for ((values, stored), scale_bytes) in groups {
        let largest = values.iter().fold(0f32, |most, v| most.max(v.abs()));
        let scale = rounded_up(largest / MOST);
        scale_bytes.copy_from_slice(&scale.to_le_bytes());
        let scale = scale.to_f32();
        for (stored, value) in stored.iter_mut().zip(values) {
            // Of a group of zeros, or of numbers so small that their scale is zero, the quotient is no number or too large.
            let quotient = if scale > 0.0 { (value / scale).clamp(-MOST, MOST) } else { 0.0 };
            // To the nearest, ties to even: neighbours of the constant are 1 apart. A function call for it takes half of the time of all.
            let rounded = (quotient + UNITS) - UNITS;
            *stored = (rounded as i8).to_le_bytes()[0];
        }
    }
}

/// The least `bf16` that is not under `x`, which is finite and not negative.
fn rounded_up(x: f32) -> bf16 {
    bf16::from_bits(((x.to_bits() + 0xffff) >> 16) as u16)
}

/// The values of a row, exactly. `out` has as many as the row.
///
/// # Panics
/// If `row` is not as long as a row of that many values.
pub fn int8_values(row: &[u8], out: &mut [f32]) {
    let cols = out.len();
    assert_eq!(row.len(), DType::I8.row_bytes(cols), "a row of {cols} values has another length");
    let (stored, scales) = row.split_at(int8_scales(cols));
    let groups = out.chunks_mut(INT8_GROUP).zip(stored.chunks(INT8_GROUP)).zip(scales.chunks_exact(2));
    for ((out, stored), scale) in groups {
        let scale = bf16::from_le_bytes([scale[0], scale[1]]).to_f32();
        for (out, stored) in out.iter_mut().zip(stored) {
            *out = f32::from(i8::from_le_bytes([*stored])) * scale;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn there_and_back(values: &[f32]) -> Vec<f32> {
        let mut row = vec![0xff; DType::I8.row_bytes(values.len())];
        int8_row(values, &mut row);
        let mut out = vec![f32::NAN; values.len()];
        int8_values(&row, &mut out);
        out
    }

    #[test]
    fn rows_are_whole_vectors() {
        for (cols, bytes) in
            [(0, 0), (1, 16), (13, 16), (14, 16), (15, 32), (64, 80), (65, 80), (576, 608), (2048, 2112)]
        {
            assert_eq!(DType::I8.row_bytes(cols), bytes, "{cols}");
        }
        assert_eq!(row_bytes(usize::MAX), None);
    }

    #[test]
    fn what_fits_is_kept() {
        // 127 and multiples of a scale that bf16 holds.
        let values: Vec<f32> = (-127..=127).map(|v| v as f32 * 0.5).collect();
        assert_eq!(there_and_back(&values[..64]), &values[..64]);
        assert_eq!(there_and_back(&[0.0; 70]), [0.0; 70]);
        assert_eq!(there_and_back(&[0.0, -0.0, f32::MAX])[..2], [0.0, 0.0]);
        // Too small for a scale of their own: they come back within a scale of the smallest numbers.
        assert!(there_and_back(&[1e-45, -3e-45]).iter().all(|v| v.abs() < 1e-39));
        // Halves go to the even neighbour.
        assert_eq!(there_and_back(&[127.0, 0.5, 1.5, -2.5]), [127.0, 0.0, 2.0, -2.0]);
    }

    proptest! {
        #[test]
        fn errors_are_half_a_scale(
            values in prop::collection::vec((-1f32..1.0, -30i32..30), 1..300)
        ) {
            let values: Vec<f32> = values.into_iter().map(|(v, e)| v * 2f32.powi(e)).collect();
            let found = there_and_back(&values);
            for (values, found) in values.chunks(INT8_GROUP).zip(found.chunks(INT8_GROUP)) {
                let largest = values.iter().fold(0f32, |most, v| most.max(v.abs()));
                for (value, found) in values.iter().zip(found) {
                    // The scale is up to 2^-7 over a 127th of the largest.
                    prop_assert!((value - found).abs() <= largest / 127.0 * 0.5 * (1.0 + 1.0 / 128.0) * 1.000_001);
                }
            }
        }
    }
}
