//! f16 and bf16, one or two in a register.
//!
//! Sums and products of two such values, rounded to f32 and then to 16 bits, are rounded as if once: f32 has more than twice
//! the digits. Only the fused product needs the detour over rounding to odd.

use half::{bf16, f16};

use super::float::{fused_odd, larger, smaller};
use super::integer::{Word1, Word2, Word3};
use super::round::{BF16, F16, Format, Rounding, from_f64};
use crate::lanes::{Word, lanes};

/// The f32 of an f16, without a table and without branches.
pub fn f16_to_f32(bits: u32) -> f32 {
    let magnitude = (bits & 0x7fff) << 13;
    // 2^112 moves the exponent from the bias of f16 to that of f32 and makes subnormals normal.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled | special | (bits & 0x8000) << 16)
}

/// The f32 of a bf16.
pub fn bf16_to_f32(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// The bits of an f32 as f16, to nearest.
pub fn f32_to_f16(value: f32) -> u32 {
    if value.is_nan() { 0x7fff } else { u32::from(f16::from_f32(value).to_bits()) }
}

/// The bits of an f32 as bf16, to nearest.
pub fn f32_to_bf16(value: f32) -> u32 {
    if value.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(value).to_bits()) }
}

fn narrow(value: f64, format: Format) -> u32 {
    from_f64(value, format, Rounding::Nearest) as u32
}

fn pick(a: f32, b: f32, choose: fn(f64, f64) -> f64) -> f32 {
    choose(a.into(), b.into()) as f32
}

/// A function of one, or of each half of a packed pair.
macro_rules! halves {
    ($packed:expr; $($name:ident),+ => $body:expr) => {
        if $packed {
            lanes!(Word; $($name: Word),+ => {
                let low = { $(let $name = $name & 0xffff;)+ $body };
                let high = { $(let $name = $name >> 16;)+ $body };
                high << 16 | low
            })
        } else {
            lanes!(Word; $($name: Word),+ => $body)
        }
    };
}

/// Arithmetic of one format.
macro_rules! formats {
    ($kind:expr; $name:expr; { $($pattern:pat => |$read:ident, $write:ident, $($arg:ident),+| $body:expr),+ $(,)? }) => {{
        let (packed, brain) = match $kind {
            "f16" => (false, false),
            "f16x2" => (true, false),
            "bf16" => (false, true),
            "bf16x2" => (true, true),
            _ => return None,
        };
        match $name {
            $($pattern => Some(if brain {
                halves!(packed; $($arg),+ => { let ($read, $write) = (bf16_to_f32 as fn(u32) -> f32, f32_to_bf16 as fn(f32) -> u32); $body })
            } else {
                halves!(packed; $($arg),+ => { let ($read, $write) = (f16_to_f32 as fn(u32) -> f32, f32_to_f16 as fn(f32) -> u32); $body })
            }),)+
            _ => None,
        }
    }};
}

/// Two operands.
pub fn word2(name: &str, kind: &str) -> Option<Word2> {
    formats!(kind; name; {
        "add" | "add.rn" => |read, write, a, b| write(read(a) + read(b)),
        "sub" | "sub.rn" => |read, write, a, b| write(read(a) - read(b)),
        "mul" | "mul.rn" => |read, write, a, b| write(read(a) * read(b)),
        "min" => |read, write, a, b| write(pick(read(a), read(b), smaller)),
        "max" => |read, write, a, b| write(pick(read(a), read(b), larger)),
    })
}

/// Three operands.
pub fn word3(name: &str, kind: &str) -> Option<Word3> {
    if name != "fma.rn" {
        return None;
    }
    Some(match kind {
        "f16" | "f16x2" => {
            halves!(kind == "f16x2"; a, b, c => narrow(fused_odd(f16_to_f32(a), f16_to_f32(b), f16_to_f32(c)), F16))
        }
        "bf16" | "bf16x2" => {
            halves!(kind == "bf16x2"; a, b, c =>
                narrow(fused_odd(bf16_to_f32(a), bf16_to_f32(b), bf16_to_f32(c)), BF16))
        }
        _ => return None,
    })
}

/// One operand.
pub fn word1(name: &str, kind: &str) -> Option<Word1> {
    formats!(kind; name; {
        "neg" => |_read, _write, a| a ^ 0x8000,
        "abs" => |_read, _write, a| a & 0x7fff,
        "ex2.approx" => |read, write, a| write(f64::from(read(a)).exp2() as f32),
        "tanh.approx" => |read, write, a| write(f64::from(read(a)).tanh() as f32),
    })
}
