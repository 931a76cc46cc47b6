//! f32 and f64: one rounding per operation, as IEEE 754 and PTX define it.

use super::integer::{Long1, Long2, Long3, Word1, Word2, Word3};
use super::round::{F32, Rounding, add_odd, from_f64};
use crate::lanes::{Long, Word, lanes};

/// The bits of an f32 result: every NaN is the canonical one.
pub fn bits32(value: f32) -> u32 {
    if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
}

/// A value of which subnormals count as zero of their sign (`.ftz`).
pub fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

fn d(bits: u64) -> f64 {
    f64::from_bits(bits)
}

/// The smaller of two numbers: a NaN loses against a number, minus zero is smaller than zero.
pub fn smaller(a: f64, b: f64) -> f64 {
    if a.is_nan() || (b < a) || (a == b && b.is_sign_negative()) { b } else { a }
}

/// The larger of two numbers: a NaN loses against a number, zero is larger than minus zero.
pub fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || (b > a) || (a == b && b.is_sign_positive()) { b } else { a }
}

fn smaller32(a: f32, b: f32) -> f32 {
    if a.is_nan() || (b < a) || (a == b && b.is_sign_negative()) { b } else { a }
}

fn larger32(a: f32, b: f32) -> f32 {
    if a.is_nan() || (b > a) || (a == b && b.is_sign_positive()) { b } else { a }
}

/// `a * b + c` exactly, rounded to odd in f64: the product of two f32 is exact there.
pub fn fused_odd(a: f32, b: f32, c: f32) -> f64 {
    add_odd(f64::from(a) * f64::from(b), f64::from(c))
}

fn fused(a: u32, b: u32, c: u32, rounding: Rounding) -> u32 {
    let exact = fused_odd(f(a), f(b), f(c));
    directed_zero(exact, rounding, f64::from(f(a)) * f64::from(f(b)), f64::from(f(c)))
}

fn sum(a: u32, b: u32, rounding: Rounding) -> u32 {
    let (a, b) = (f64::from(f(a)), f64::from(f(b)));
    directed_zero(add_odd(a, b), rounding, a, b)
}

/// Rounds `exact`, the sum of `a` and `b`; a sum of zero of unlike signs is minus zero when rounding down.
fn directed_zero(exact: f64, rounding: Rounding, a: f64, b: f64) -> u32 {
    if exact == 0.0 && rounding == Rounding::Down && a.is_sign_negative() != b.is_sign_negative() {
        return (-0.0f32).to_bits();
    }
    from_f64(exact, F32, rounding) as u32
}

fn product(a: u32, b: u32, rounding: Rounding) -> u32 {
    from_f64(f64::from(f(a)) * f64::from(f(b)), F32, rounding) as u32
}

/// `value` computed in f64, rounded once to f32.
fn once(value: f64) -> u32 {
    bits32(value as f32)
}

/// A function with and without flushing of subnormals.
macro_rules! flushing {
    ($ftz:expr; $($name:ident),+ => $body:expr) => {
        if $ftz {
            lanes!(Word; $($name: Word),+ => { $(let $name = flush($name);)+ flush($body) })
        } else {
            lanes!(Word; $($name: Word),+ => $body)
        }
    };
}

/// Two f32. `name` has the rounding: `add.rn`.
pub fn word2(name: &str, ftz: bool) -> Option<Word2> {
    Some(match name {
        "add.rn" => flushing!(ftz; a, b => bits32(f(a) + f(b))),
        "add.rz" => flushing!(ftz; a, b => sum(a, b, Rounding::Zero)),
        "add.rm" => flushing!(ftz; a, b => sum(a, b, Rounding::Down)),
        "add.rp" => flushing!(ftz; a, b => sum(a, b, Rounding::Up)),
        "sub.rn" => flushing!(ftz; a, b => bits32(f(a) - f(b))),
        "sub.rz" => flushing!(ftz; a, b => sum(a, b ^ 1 << 31, Rounding::Zero)),
        "sub.rm" => flushing!(ftz; a, b => sum(a, b ^ 1 << 31, Rounding::Down)),
        "sub.rp" => flushing!(ftz; a, b => sum(a, b ^ 1 << 31, Rounding::Up)),
        "mul.rn" => flushing!(ftz; a, b => bits32(f(a) * f(b))),
        "mul.rz" => flushing!(ftz; a, b => product(a, b, Rounding::Zero)),
        "mul.rm" => flushing!(ftz; a, b => product(a, b, Rounding::Down)),
        "mul.rp" => flushing!(ftz; a, b => product(a, b, Rounding::Up)),
        "div.rn" => flushing!(ftz; a, b => bits32(f(a) / f(b))),
        "div.approx" | "div.full" => flushing!(ftz; a, b => once(f64::from(f(a)) / f64::from(f(b)))),
        "min" => flushing!(ftz; a, b => bits32(smaller32(f(a), f(b)))),
        "max" => flushing!(ftz; a, b => bits32(larger32(f(a), f(b)))),
        "min.NaN" => flushing!(ftz; a, b => {
            if f(a).is_nan() || f(b).is_nan() { 0x7fff_ffff } else { smaller32(f(a), f(b)).to_bits() }
        }),
        "max.NaN" => flushing!(ftz; a, b => {
            if f(a).is_nan() || f(b).is_nan() { 0x7fff_ffff } else { larger32(f(a), f(b)).to_bits() }
        }),
        // The sign of a, the magnitude of b.
        "copysign" => lanes!(Word; a: Word, b: Word => (a & 1 << 31) | (b & !(1 << 31))),
        _ => return None,
    })
}

/// Three f32.
pub fn word3(name: &str, ftz: bool) -> Option<Word3> {
    Some(match name {
        "fma.rn" => flushing!(ftz; a, b, c => bits32(fused_odd(f(a), f(b), f(c)) as f32)),
        "fma.rz" => flushing!(ftz; a, b, c => fused(a, b, c, Rounding::Zero)),
        "fma.rm" => flushing!(ftz; a, b, c => fused(a, b, c, Rounding::Down)),
        "fma.rp" => flushing!(ftz; a, b, c => fused(a, b, c, Rounding::Up)),
        _ => return None,
    })
}

/// One f32.
pub fn word1(name: &str, ftz: bool) -> Option<Word1> {
    Some(match name {
        "neg" => flushing!(ftz; a => a ^ 1 << 31),
        "abs" => flushing!(ftz; a => a & !(1 << 31)),
        "rcp.rn" => flushing!(ftz; a => bits32(1.0 / f(a))),
        "sqrt.rn" => flushing!(ftz; a => bits32(f(a).sqrt())),
        "rcp.approx" => flushing!(ftz; a => once(1.0 / f64::from(f(a)))),
        "sqrt.approx" => flushing!(ftz; a => once(f64::from(f(a)).sqrt())),
        "rsqrt.approx" => flushing!(ftz; a => once(1.0 / f64::from(f(a)).sqrt())),
        "ex2.approx" => flushing!(ftz; a => once(f64::from(f(a)).exp2())),
        "lg2.approx" => flushing!(ftz; a => once(f64::from(f(a)).log2())),
        "sin.approx" => flushing!(ftz; a => once(f64::from(f(a)).sin())),
        "cos.approx" => flushing!(ftz; a => once(f64::from(f(a)).cos())),
        "tanh.approx" => flushing!(ftz; a => once(f64::from(f(a)).tanh())),
        _ => return None,
    })
}

/// One f64.
pub fn long1(name: &str) -> Option<Long1> {
    Some(match name {
        "neg" => lanes!(Long; a: Long => a ^ 1 << 63),
        "abs" => lanes!(Long; a: Long => a & !(1 << 63)),
        "rcp.rn" => lanes!(Long; a: Long => (1.0 / d(a)).to_bits()),
        "sqrt.rn" => lanes!(Long; a: Long => d(a).sqrt().to_bits()),
        _ => return None,
    })
}

/// Two f64.
pub fn long2(name: &str) -> Option<Long2> {
    Some(match name {
        "add.rn" => lanes!(Long; a: Long, b: Long => (d(a) + d(b)).to_bits()),
        "sub.rn" => lanes!(Long; a: Long, b: Long => (d(a) - d(b)).to_bits()),
        "mul.rn" => lanes!(Long; a: Long, b: Long => (d(a) * d(b)).to_bits()),
        "div.rn" => lanes!(Long; a: Long, b: Long => (d(a) / d(b)).to_bits()),
        "min" => lanes!(Long; a: Long, b: Long => smaller(d(a), d(b)).to_bits()),
        "max" => lanes!(Long; a: Long, b: Long => larger(d(a), d(b)).to_bits()),
        "copysign" => lanes!(Long; a: Long, b: Long => (a & 1 << 63) | (b & !(1 << 63))),
        _ => return None,
    })
}

/// Three f64.
pub fn long3(name: &str) -> Option<Long3> {
    Some(match name {
        "fma.rn" => lanes!(Long; a: Long, b: Long, c: Long => d(a).mul_add(d(b), d(c)).to_bits()),
        _ => return None,
    })
}
