//! One rounding from an exact value to a binary format, in any direction: every conversion comes through here.

/// Direction of rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, ties to even (`.rn`, `.rni`).
    Nearest,
    /// Towards zero (`.rz`, `.rzi`).
    Zero,
    /// Towards minus infinity (`.rm`, `.rmi`).
    Down,
    /// Towards plus infinity (`.rp`, `.rpi`).
    Up,
}

/// A binary floating-point format with subnormals, infinities and NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Stored bits of the significand.
    pub fraction: u32,
    /// Bits of the exponent.
    pub exponent: u32,
}

/// IEEE binary16.
pub const F16: Format = Format { fraction: 10, exponent: 5 };
/// bfloat16.
pub const BF16: Format = Format { fraction: 7, exponent: 8 };
/// IEEE binary32.
pub const F32: Format = Format { fraction: 23, exponent: 8 };
/// IEEE binary64.
pub const F64: Format = Format { fraction: 52, exponent: 11 };

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// The bits of infinity.
    pub fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.fraction
    }

    fn sign(self) -> u64 {
        1 << (self.fraction + self.exponent)
    }
}

/// `significand * 2^exponent`, with a sign.
#[derive(Clone, Copy, Debug)]
pub struct Exact {
    /// Whether it is below zero (or minus zero).
    pub negative: bool,
    /// Its digits.
    pub significand: u64,
    /// Power of two of the last digit.
    pub exponent: i32,
}

impl Exact {
    /// The value of a finite f64.
    pub fn of(value: f64) -> Self {
        let bits = value.to_bits();
        let (field, fraction) = (bits >> 52 & 0x7ff, bits & ((1 << 52) - 1));
        let (significand, exponent) =
            if field == 0 { (fraction, -1074) } else { (fraction | 1 << 52, field as i32 - 1075) };
        Self { negative: value.is_sign_negative(), significand, exponent }
    }
}

/// Whether to go to the next larger significand, given what was cut off relative to half of the last digit.
fn goes_up(rounding: Rounding, negative: bool, odd: bool, inexact: bool, above_half: std::cmp::Ordering) -> bool {
    use std::cmp::Ordering::{Equal, Greater};
    match rounding {
        Rounding::Nearest => above_half == Greater || (above_half == Equal && odd),
        Rounding::Zero => false,
        Rounding::Down => inexact && negative,
        Rounding::Up => inexact && !negative,
    }
}

/// Cuts `shift` digits off, rounded.
fn cut(significand: u64, shift: u32, negative: bool, rounding: Rounding) -> u64 {
    if shift == 0 {
        return significand;
    }
    let (kept, rest, half) = if shift > 64 {
        (0, u128::from(significand), u128::MAX)
    } else {
        let wide = u128::from(significand);
        ((wide >> shift) as u64, wide & ((1 << shift) - 1), 1u128 << (shift - 1))
    };
    kept + u64::from(goes_up(rounding, negative, kept & 1 == 1, rest != 0, rest.cmp(&half)))
}

/// The bits of `exact` in `format`.
pub fn to_format(exact: Exact, format: Format, rounding: Rounding) -> u64 {
    let sign = if exact.negative { format.sign() } else { 0 };
    if exact.significand == 0 {
        return sign;
    }
    let top = exact.exponent + 63 - exact.significand.leading_zeros() as i32;
    let smallest = 1 - format.bias();
    // Power of two of the last digit that the format keeps.
    let last = top.max(smallest) - format.fraction as i32;
    let digits = if last <= exact.exponent {
        exact.significand << (exact.exponent - last)
    } else {
        cut(exact.significand, (last - exact.exponent) as u32, exact.negative, rounding)
    };
    // With the leading digit in place, adding it to the exponent field below gives the right field; a carry moves on by itself.
    let field = (top.max(smallest) - smallest) as u64;
    let bits = (field << format.fraction) + digits;
    if bits >= format.infinity() {
        let stays = match rounding {
            Rounding::Nearest => false,
            Rounding::Zero => true,
            Rounding::Down => !exact.negative,
            Rounding::Up => exact.negative,
        };
        return sign | (format.infinity() - u64::from(stays));
    }
    sign | bits
}

/// An f64 in `format`; a NaN becomes the canonical one, infinities stay.
pub fn from_f64(value: f64, format: Format, rounding: Rounding) -> u64 {
    if value.is_nan() {
        // All ones but the sign: what devices give below 64 bits.
        return if format == F64 { 0x7fff_ffff_ffff_ffff } else { format.sign() - 1 };
    }
    if value.is_infinite() {
        return format.infinity() | if value < 0.0 { format.sign() } else { 0 };
    }
    to_format(Exact::of(value), format, rounding)
}

/// A finite f64 rounded to an integer, as f64.
pub fn to_integral(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// `a + b` in f64, rounded to odd: a second rounding to at most 51 digits, in any direction, gives what one rounding would.
pub fn add_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let back = sum - a;
    let error = (a - (sum - back)) + (b - back);
    let bits = sum.to_bits();
    // Infinities have no error to speak of: it is a NaN.
    let inexact = error != 0.0 && !error.is_nan();
    if inexact && bits & 1 == 0 {
        f64::from_bits(if (error > 0.0) == (sum > 0.0) { bits + 1 } else { bits - 1 })
    } else {
        sum
    }
}
