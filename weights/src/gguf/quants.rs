//! Dequantisation: GGUF block formats to `f32`.
//!
//! The import must give the tensors that everyone else's tools give, so each format multiplies and adds in exactly the order
//! of the reference dequantisation (the Python package `gguf`), without fused operations: the result is equal bit for bit.
//!
//! Every format stores a row as blocks of [`QuantType::block_len`] values. `d` and `m` below are `f16` scale and minimum of
//! a block, `q` the unsigned integers. Layouts are those of the GGUF specification
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>) and the ggml block definitions.

use std::fmt;

use half::{bf16, f16};

/// A tensor type that can be turned into `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(non_camel_case_types)] // The names of the format.
pub enum QuantType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    BF16,
    /// 8 bit: `q * d`, signed.
    Q8_0,
    /// 4 bit: `d * (q - 8)`.
    Q4_0,
    /// 4 bit: `d * q + m`.
    Q4_1,
    /// 5 bit: `d * (q - 16)`.
    Q5_0,
    /// 5 bit: `d * q + m`.
    Q5_1,
    /// 4 bit in blocks of 256 with 6-bit scales and minima for each 32.
    Q4_K,
    /// 5 bit, as `Q4_K`.
    Q5_K,
    /// 6 bit in blocks of 256 with 8-bit scales for each 16.
    Q6_K,
}

/// Every type number the format has defined, to name the unsupported ones too.
const FORMAT_TYPES: [(u32, &str); 39] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (4, "Q4_2"),
    (5, "Q4_3"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (39, "MXFP4"),
];

/// Values of a K-quant block.
const K_BLOCK: usize = 256;

/// Names of the types that can be dequantised, for messages.
pub(crate) fn supported_names() -> String {
    QuantType::ALL.map(QuantType::name).join(", ")
}

/// Name of a type number of the format, supported or not.
pub(crate) fn format_type_name(number: u32) -> String {
    let known = FORMAT_TYPES.iter().find(|(n, _)| *n == number);
    known.map_or_else(|| format!("number {number}"), |(_, name)| (*name).to_owned())
}

impl QuantType {
    /// All types.
    pub const ALL: [QuantType; 11] = [
        QuantType::F32,
        QuantType::F16,
        QuantType::BF16,
        QuantType::Q8_0,
        QuantType::Q4_0,
        QuantType::Q4_1,
        QuantType::Q5_0,
        QuantType::Q5_1,
        QuantType::Q4_K,
        QuantType::Q5_K,
        QuantType::Q6_K,
    ];

    /// The type with this number in a GGUF file.
    pub fn from_number(number: u32) -> Option<Self> {
        let (_, name) = FORMAT_TYPES.iter().find(|(n, _)| *n == number)?;
        QuantType::ALL.into_iter().find(|q| q.name() == *name)
    }

    /// Name in the format's documentation.
    pub const fn name(self) -> &'static str {
        match self {
            QuantType::F32 => "F32",
            QuantType::F16 => "F16",
            QuantType::BF16 => "BF16",
            QuantType::Q8_0 => "Q8_0",
            QuantType::Q4_0 => "Q4_0",
            QuantType::Q4_1 => "Q4_1",
            QuantType::Q5_0 => "Q5_0",
            QuantType::Q5_1 => "Q5_1",
            QuantType::Q4_K => "Q4_K",
            QuantType::Q5_K => "Q5_K",
            QuantType::Q6_K => "Q6_K",
        }
    }

    /// Values of one block.
    pub const fn block_len(self) -> usize {
        match self {
            QuantType::F32 | QuantType::F16 | QuantType::BF16 => 1,
            QuantType::Q8_0 | QuantType::Q4_0 | QuantType::Q4_1 | QuantType::Q5_0 | QuantType::Q5_1 => 32,
            QuantType::Q4_K | QuantType::Q5_K | QuantType::Q6_K => K_BLOCK,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            QuantType::F32 => 4,
            QuantType::F16 | QuantType::BF16 => 2,
            QuantType::Q8_0 => 2 + 32,
            QuantType::Q4_0 => 2 + 16,
            QuantType::Q4_1 => 4 + 16,
            QuantType::Q5_0 => 2 + 4 + 16,
            QuantType::Q5_1 => 4 + 4 + 16,
            QuantType::Q4_K => 4 + 12 + K_BLOCK / 2,
            QuantType::Q5_K => 4 + 12 + K_BLOCK / 8 + K_BLOCK / 2,
            QuantType::Q6_K => K_BLOCK / 2 + K_BLOCK / 4 + K_BLOCK / 16 + 2,
        }
    }

    /// Turns whole blocks into values. `blocks` is `[n * block_bytes]`, `out` is `[n * block_len]`; blocks beyond the
    /// shorter of the two are left alone.
    pub fn dequantize(self, blocks: &[u8], out: &mut [f32]) {
        match self {
            QuantType::F32 => each(blocks, out, |b: &[u8; 4], o: &mut [f32; 1]| o[0] = f32::from_le_bytes(*b)),
            QuantType::F16 => each(blocks, out, |b: &[u8; 2], o: &mut [f32; 1]| o[0] = f16::from_le_bytes(*b).to_f32()),
            QuantType::BF16 => {
                each(blocks, out, |b: &[u8; 2], o: &mut [f32; 1]| o[0] = bf16::from_le_bytes(*b).to_f32());
            }
            QuantType::Q8_0 => each(blocks, out, q8_0),
            QuantType::Q4_0 => each(blocks, out, q4_0),
            QuantType::Q4_1 => each(blocks, out, q4_1),
            QuantType::Q5_0 => each(blocks, out, q5_0),
            QuantType::Q5_1 => each(blocks, out, q5_1),
            QuantType::Q4_K => each(blocks, out, q4_k),
            QuantType::Q5_K => each(blocks, out, q5_k),
            QuantType::Q6_K => each(blocks, out, q6_k),
        }
    }
}

impl fmt::Display for QuantType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Applies `block` to every pair of `B` bytes and `N` values.
fn each<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], block: impl Fn(&[u8; B], &mut [f32; N])) {
    for (b, o) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        block(b, o);
    }
}

/// The `f16` at byte `at`.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `d | q i8[32]`.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (o, &q) in out.iter_mut().zip(&block[2..]) {
        *o = f32::from(q as i8) * d;
    }
}

/// `d | q[16]`: low nibbles are values 0..16, high nibbles 16..32.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (i, &q) in block[2..].iter().enumerate() {
        out[i] = d * (f32::from(q & 0x0f) - 8.0);
        out[i + 16] = d * (f32::from(q >> 4) - 8.0);
    }
}

/// `d | m | q[16]`, nibbles as in [`q4_0`].
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (i, &q) in block[4..].iter().enumerate() {
        out[i] = d * f32::from(q & 0x0f) + m;
        out[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// Five-bit integers: nibbles as in [`q4_0`], the fifth bit of value `i` is bit `i` of `high`.
fn five_bits(high: &[u8], nibbles: &[u8], mut value: impl FnMut(usize, f32)) {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    for (i, &q) in nibbles.iter().enumerate() {
        let bit = |i: usize| ((high >> i & 1) << 4) as u8;
        value(i, f32::from(q & 0x0f | bit(i)));
        value(i + 16, f32::from(q >> 4 | bit(i + 16)));
    }
}

/// `d | high bits u32 | q[16]`.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(block, 0);
    five_bits(&block[2..6], &block[6..], |i, q| out[i] = d * (q - 16.0));
}

/// `d | m | high bits u32 | q[16]`.
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    five_bits(&block[4..8], &block[8..], |i, q| out[i] = d * q + m);
}

/// Scale and minimum, six bits each, of sub-block `j` of 8: the first four are the low six bits of bytes `j` and `j + 4`;
/// the others have their low four bits in byte `j + 4` and their high two bits on top of the first four's bytes.
fn k_scale(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, minimum) = if j < 4 {
        (packed[j] & 0x3f, packed[j + 4] & 0x3f)
    } else {
        (packed[j + 4] & 0x0f | packed[j - 4] >> 2 & 0x30, packed[j + 4] >> 4 | packed[j] >> 2 & 0x30)
    };
    (f32::from(scale), f32::from(minimum))
}

/// `d | dmin | scales[12] | q[128]`: 32 bytes hold two sub-blocks of 32, low nibbles first.
fn q4_k(block: &[u8; 144], out: &mut [f32; K_BLOCK]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = k_scale(&block[4..16], j);
        let (scale, minimum) = (d * scale, dmin * minimum);
        let shift = 4 * (j % 2);
        for (o, &q) in out.iter_mut().zip(&block[16 + 32 * (j / 2)..]) {
            *o = scale * f32::from(q >> shift & 0x0f) - minimum;
        }
    }
}

/// `d | dmin | scales[12] | high[32] | q[128]`: as [`q4_k`]; bit `j` of `high[i]` is the fifth bit of value `i` of
/// sub-block `j`.
fn q5_k(block: &[u8; 176], out: &mut [f32; K_BLOCK]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = k_scale(&block[4..16], j);
        let (scale, minimum) = (d * scale, dmin * minimum);
        let shift = 4 * (j % 2);
        for ((o, &q), &high) in out.iter_mut().zip(&block[48 + 32 * (j / 2)..]).zip(&block[16..48]) {
            *o = scale * f32::from(q >> shift & 0x0f | (high >> j & 1) << 4) - minimum;
        }
    }
}

/// `low[128] | high[64] | scales i8[16] | d`: each half of the block is four groups of 32 values; groups 0 and 1 are the low
/// nibbles of 64 bytes of `low`, groups 2 and 3 the high nibbles, and group `g`'s upper two bits are bits `2g` of `high`.
fn q6_k(block: &[u8; 210], out: &mut [f32; K_BLOCK]) {
    let d = half(block, 208);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (side, g) = (group / 4, group % 4);
        let low = &block[64 * side + 32 * (g % 2)..][..32];
        let high = &block[128 + 32 * side..][..32];
        let scales = &block[192 + 2 * group..][..2];
        for i in 0..32 {
            let q = low[i] >> (4 * (g / 2)) & 0x0f | (high[i] >> (2 * g) & 3) << 4;
            out[i] = d * f32::from(scales[i / 16] as i8) * (f32::from(q) - 32.0);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Bytes that look random, with finite scales: the top exponent bit of every `f16` scale is cleared.
    fn blocks(quant: QuantType, count: usize) -> Vec<u8> {
        let mut state = 12345u32;
        let mut bytes: Vec<u8> = (0..count * quant.block_bytes())
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        let scales: &[usize] = match quant {
            QuantType::F32 => &[3],
            QuantType::F16 | QuantType::BF16 | QuantType::Q8_0 | QuantType::Q4_0 | QuantType::Q5_0 => &[1],
            QuantType::Q4_1 | QuantType::Q5_1 | QuantType::Q4_K | QuantType::Q5_K => &[1, 3],
            QuantType::Q6_K => &[209],
        };
        for block in bytes.chunks_exact_mut(quant.block_bytes()) {
            for &at in scales {
                block[at] &= 0xbf;
            }
        }
        bytes
    }

    /// FNV-1a of the result's bit patterns, against the same hash of what Python's `gguf.quants.dequantize` makes of the
    /// same bytes.
    #[test]
    fn every_type_is_bit_equal_to_the_reference() {
        let reference = [
            (QuantType::F32, 0x1042_1637_2360_4a22),
            (QuantType::F16, 0x08b4_296f_a9cf_28c8),
            (QuantType::BF16, 0x898d_545d_554b_3bb6),
            (QuantType::Q8_0, 0x86a6_b6db_185d_308f),
            (QuantType::Q4_0, 0x146c_b7f4_2c25_0a5a),
            (QuantType::Q4_1, 0xbd75_ab48_e995_f63f),
            (QuantType::Q5_0, 0x9baa_ef94_7032_8e9f),
            (QuantType::Q5_1, 0xbc67_fa21_dc09_245f),
            (QuantType::Q4_K, 0x6fba_a3ed_8252_88bd),
            (QuantType::Q5_K, 0x0f58_0f9c_be6f_350f),
            (QuantType::Q6_K, 0xd93c_6c8b_97e8_3cf0),
        ];
        for (quant, expected) in reference {
            let bytes = blocks(quant, 100);
            let mut out = vec![0.0; 100 * quant.block_len()];
            quant.dequantize(&bytes, &mut out);
            let hash = out
                .iter()
                .flat_map(|v| v.to_bits().to_le_bytes())
                .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
            assert_eq!(hash, expected, "{quant}");
        }
    }

    #[test]
    fn one_block_by_hand() {
        // d = 2, m = -1; low nibble 3, high nibble 15.
        let mut block = vec![0x00, 0x40, 0x00, 0xbc];
        block.extend([0xf3; 16]);
        let mut out = [0.0; 32];
        QuantType::Q4_1.dequantize(&block, &mut out);
        assert_eq!(out[..16], [5.0; 16]);
        assert_eq!(out[16..], [29.0; 16]);
    }

    #[test]
    fn numbers_and_names_agree() {
        assert_eq!(QuantType::from_number(14), Some(QuantType::Q6_K));
        assert_eq!(QuantType::from_number(30), Some(QuantType::BF16));
        assert_eq!(QuantType::from_number(10), None);
        assert_eq!(format_type_name(10), "Q2_K");
        assert_eq!(format_type_name(38), "number 38");
        assert!(QuantType::ALL.iter().all(|q| FORMAT_TYPES.iter().any(|(_, name)| *name == q.name())));
    }
}
