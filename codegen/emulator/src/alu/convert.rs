//! `cvt` between any two types: one slow general way, and fast ways for what kernels are full of.

use super::float::{bits32, flush};
use super::half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use super::round::{BF16, Exact, F16, F32, F64, Format, Rounding, from_f64, to_format, to_integral};
use crate::lanes::{Long, Word, lanes};

/// A type that can be converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An integer of so many bits.
    Integer {
        /// Its bits.
        bits: u32,
        /// Whether it has a sign.
        signed: bool,
    },
    /// A float.
    Float(Format),
}

impl Kind {
    /// The type of this name.
    pub fn named(name: &str) -> Option<Self> {
        let integer = |bits, signed| Some(Self::Integer { bits, signed });
        match name {
            "u8" | "b8" => integer(8, false),
            "s8" => integer(8, true),
            "u16" | "b16" => integer(16, false),
            "s16" => integer(16, true),
            "u32" | "b32" => integer(32, false),
            "s32" => integer(32, true),
            "u64" | "b64" => integer(64, false),
            "s64" => integer(64, true),
            "f16" => Some(Self::Float(F16)),
            "bf16" => Some(Self::Float(BF16)),
            "f32" => Some(Self::Float(F32)),
            "f64" => Some(Self::Float(F64)),
            _ => None,
        }
    }

    /// Its bits.
    pub fn bits(self) -> u32 {
        match self {
            Self::Integer { bits, .. } => bits,
            Self::Float(format) => 1 + format.exponent + format.fraction,
        }
    }
}

/// How to convert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// Type of the operand.
    pub from: Kind,
    /// Type of the result.
    pub to: Kind,
    /// Direction of rounding.
    pub rounding: Rounding,
    /// Round to an integral value, in a conversion from float to float (`.rni` and its like).
    pub integral: bool,
    /// Clamp to the range of the result; floats to 0..1.
    pub saturate: bool,
    /// Negative results become zero (`.relu`).
    pub relu: bool,
    /// Subnormal f32 count as zero.
    pub ftz: bool,
}

fn float_of(bits: u64, format: Format) -> f64 {
    match format {
        F16 => f64::from(f16_to_f32(bits as u32 & 0xffff)),
        BF16 => f64::from(bf16_to_f32(bits as u32 & 0xffff)),
        F32 => f64::from(f32::from_bits(bits as u32)),
        _ => f64::from_bits(bits),
    }
}

fn low(value: u64, bits: u32) -> u64 {
    if bits == 64 { value } else { value & ((1 << bits) - 1) }
}

/// The integer of `bits` bits, wide enough for all.
fn integer_of(value: u64, bits: u32, signed: bool) -> i128 {
    let value = low(value, bits);
    if signed && value >> (bits - 1) & 1 == 1 { i128::from(value) - (1 << bits) } else { i128::from(value) }
}

fn range(bits: u32, signed: bool) -> (i128, i128) {
    if signed { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

impl Conversion {
    /// The bits of the result for the bits of an operand. Bits of the register above the operand's type are ignored, those
    /// above the result's are zero.
    pub fn apply(&self, bits: u64) -> u64 {
        match (self.from, self.to) {
            (Kind::Integer { bits: from, signed }, Kind::Integer { bits: to, signed: to_signed }) => {
                let mut value = integer_of(bits, from, signed);
                if self.saturate {
                    let (least, most) = range(to, to_signed);
                    value = value.clamp(least, most);
                }
                low(value as u64, to)
            }
            (Kind::Integer { bits: from, signed }, Kind::Float(format)) => {
                let value = integer_of(bits, from, signed);
                let exact = Exact { negative: value < 0, significand: value.unsigned_abs() as u64, exponent: 0 };
                to_format(exact, format, self.rounding)
            }
            (Kind::Float(format), Kind::Integer { bits: to, signed }) => {
                let bits = if self.ftz && format == F32 { u64::from(flush(bits as u32)) } else { bits };
                let value = float_of(bits, format);
                if value.is_nan() {
                    return 0;
                }
                let (least, most) = range(to, signed);
                // `as` clamps at the ends of i128.
                let value = to_integral(value, self.rounding) as i128;
                low(value.clamp(least, most) as u64, to)
            }
            (Kind::Float(from), Kind::Float(to)) => self.float(bits, from, to),
        }
    }

    fn float(&self, bits: u64, from: Format, to: Format) -> u64 {
        let bits = if self.ftz && from == F32 { u64::from(flush(bits as u32)) } else { bits };
        let mut value = float_of(bits, from);
        if self.integral && value.is_finite() {
            value = to_integral(value, self.rounding).copysign(value);
        }
        if self.saturate {
            value = if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) + 0.0 };
        }
        if self.relu {
            value = if value <= 0.0 { 0.0 } else { value };
        }
        let rounding = if self.integral { Rounding::Nearest } else { self.rounding };
        let result = from_f64(value, to, rounding);
        if self.ftz && to == F32 { u64::from(flush(result as u32)) } else { result }
    }
}

/// A fast way from a register of at most 32 bits to another.
pub fn word_to_word(conversion: &Conversion) -> Option<fn(&Word) -> Word> {
    let Conversion { from, to, rounding, integral, saturate: false, relu: false, ftz: false } = *conversion else {
        return None;
    };
    let nearest = rounding == Rounding::Nearest && !integral;
    Some(match (from, to) {
        (Kind::Integer { bits: 16.., signed: false }, Kind::Integer { bits: 32, .. }) if from.bits() <= 32 => {
            lanes!(Word; a: Word => a)
        }
        (Kind::Integer { bits: 16, signed: true }, Kind::Integer { bits: 32, .. }) => {
            lanes!(Word; a: Word => i32::from(a as u16 as i16).cast_unsigned())
        }
        (Kind::Integer { bits: 32, .. }, Kind::Integer { bits: 16, .. }) => lanes!(Word; a: Word => a & 0xffff),
        (Kind::Integer { bits: 32, signed: true }, Kind::Float(F32)) if nearest => {
            lanes!(Word; a: Word => (a.cast_signed() as f32).to_bits())
        }
        (Kind::Integer { bits: 32, signed: false }, Kind::Float(F32)) if nearest => {
            lanes!(Word; a: Word => (a as f32).to_bits())
        }
        (Kind::Float(F16), Kind::Float(F32)) if !integral => {
            lanes!(Word; a: Word => bits32(f16_to_f32(a & 0xffff)))
        }
        (Kind::Float(BF16), Kind::Float(F32)) if !integral => {
            lanes!(Word; a: Word => bits32(bf16_to_f32(a & 0xffff)))
        }
        (Kind::Float(F32), Kind::Float(F16)) if nearest => {
            lanes!(Word; a: Word => f32_to_f16(f32::from_bits(a)))
        }
        (Kind::Float(F32), Kind::Float(BF16)) if nearest => {
            lanes!(Word; a: Word => f32_to_bf16(f32::from_bits(a)))
        }
        _ => return None,
    })
}

/// A fast way to a register of 64 bits.
pub fn word_to_long(conversion: &Conversion) -> Option<fn(&Word) -> Long> {
    let Conversion { from, to, saturate: false, ftz: false, .. } = *conversion else { return None };
    Some(match (from, to) {
        (Kind::Integer { bits: 32, signed: false }, Kind::Integer { bits: 64, .. }) => {
            lanes!(Long; a: Word => u64::from(a))
        }
        (Kind::Integer { bits: 32, signed: true }, Kind::Integer { bits: 64, .. }) => {
            lanes!(Long; a: Word => i64::from(a.cast_signed()).cast_unsigned())
        }
        _ => return None,
    })
}

/// A fast way from a register of 64 bits.
pub fn long_to_word(conversion: &Conversion) -> Option<fn(&Long) -> Word> {
    let Conversion { from, to, saturate: false, ftz: false, .. } = *conversion else { return None };
    Some(match (from, to) {
        (Kind::Integer { bits: 64, .. }, Kind::Integer { bits: 32, .. }) => lanes!(Word; a: Long => a as u32),
        _ => return None,
    })
}
