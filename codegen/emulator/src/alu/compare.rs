//! Comparisons (`setp`), ordered and unordered.

use super::half::{bf16_to_f32, f16_to_f32};
use crate::lanes::{Long, Mask, Word, condition};

/// A comparison of two registers of at most 32 bits.
pub type WordTest = fn(&Word, &Word) -> Mask;
/// A comparison of two registers of 64 bits.
pub type LongTest = fn(&Long, &Long) -> Mask;

/// The comparisons of floats, from their registers by `$read`.
macro_rules! floats {
    ($name:expr, $type:ty, $read:expr) => {
        match $name {
            "eq" => condition!(a: $type, b: $type => $read(a) == $read(b)),
            "ne" => condition!(a: $type, b: $type => $read(a) < $read(b) || $read(a) > $read(b)),
            "lt" => condition!(a: $type, b: $type => $read(a) < $read(b)),
            "le" => condition!(a: $type, b: $type => $read(a) <= $read(b)),
            "gt" => condition!(a: $type, b: $type => $read(a) > $read(b)),
            "ge" => condition!(a: $type, b: $type => $read(a) >= $read(b)),
            "equ" => condition!(a: $type, b: $type => !($read(a) < $read(b) || $read(a) > $read(b))),
            "neu" => condition!(a: $type, b: $type => $read(a) != $read(b)),
            "ltu" => condition!(a: $type, b: $type => $read(a) < $read(b) || $read(a).is_nan() || $read(b).is_nan()),
            "leu" => condition!(a: $type, b: $type => $read(a) <= $read(b) || $read(a).is_nan() || $read(b).is_nan()),
            "gtu" => condition!(a: $type, b: $type => $read(a) > $read(b) || $read(a).is_nan() || $read(b).is_nan()),
            "geu" => condition!(a: $type, b: $type => $read(a) >= $read(b) || $read(a).is_nan() || $read(b).is_nan()),
            "num" => condition!(a: $type, b: $type => !$read(a).is_nan() && !$read(b).is_nan()),
            "nan" => condition!(a: $type, b: $type => $read(a).is_nan() || $read(b).is_nan()),
            _ => return None,
        }
    };
}

/// The comparisons of integers.
macro_rules! integers {
    ($name:expr, $type:ty, $read:expr) => {
        match $name {
            "eq" => condition!(a: $type, b: $type => $read(a) == $read(b)),
            "ne" => condition!(a: $type, b: $type => $read(a) != $read(b)),
            "lt" | "lo" => condition!(a: $type, b: $type => $read(a) < $read(b)),
            "le" | "ls" => condition!(a: $type, b: $type => $read(a) <= $read(b)),
            "gt" | "hi" => condition!(a: $type, b: $type => $read(a) > $read(b)),
            "ge" | "hs" => condition!(a: $type, b: $type => $read(a) >= $read(b)),
            _ => return None,
        }
    };
}

fn flushed(bits: u32) -> f32 {
    f32::from_bits(super::float::flush(bits))
}

/// Comparison `name` of type `kind` of at most 32 bits.
pub fn word(name: &str, kind: &str, ftz: bool) -> Option<WordTest> {
    if matches!(name, "lo" | "ls" | "hi" | "hs") && !kind.starts_with('u') {
        return None;
    }
    Some(match (kind, name) {
        ("b16" | "b32", "eq" | "ne") | ("u16" | "u32", _) => integers!(name, Word, (|bits: u32| bits)),
        ("s32", _) => integers!(name, Word, u32::cast_signed),
        ("s16", _) => integers!(name, Word, (|bits: u32| bits as u16 as i16)),
        ("f32", _) if ftz => floats!(name, Word, flushed),
        ("f32", _) => floats!(name, Word, f32::from_bits),
        ("f16", _) => floats!(name, Word, f16_to_f32),
        ("bf16", _) => floats!(name, Word, bf16_to_f32),
        _ => return None,
    })
}

/// Comparison `name` of type `kind` of 64 bits.
pub fn long(name: &str, kind: &str) -> Option<LongTest> {
    if matches!(name, "lo" | "ls" | "hi" | "hs") && !kind.starts_with('u') {
        return None;
    }
    Some(match (kind, name) {
        ("b64", "eq" | "ne") | ("u64", _) => integers!(name, Long, (|bits: u64| bits)),
        ("s64", _) => integers!(name, Long, u64::cast_signed),
        ("f64", _) => floats!(name, Long, f64::from_bits),
        _ => return None,
    })
}
