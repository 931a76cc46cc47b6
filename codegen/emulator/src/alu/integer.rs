//! Integers: arithmetic, shifts, bit fields, permutes.

use crate::lanes::{Long, Word, lanes};

pub type Word1 = fn(&Word) -> Word;
pub type Word2 = fn(&Word, &Word) -> Word;
pub type Word3 = fn(&Word, &Word, &Word) -> Word;
pub type Long1 = fn(&Long) -> Long;
pub type Long2 = fn(&Long, &Long) -> Long;
pub type Long3 = fn(&Long, &Long, &Long) -> Long;

/// A 16-bit signed value from its register.
fn s16(a: u32) -> i32 {
    i32::from(a as u16 as i16)
}

fn s32(a: u32) -> i32 {
    a.cast_signed()
}

fn s64(a: u64) -> i64 {
    a.cast_signed()
}

fn low16(a: i32) -> u32 {
    a as u32 & 0xffff
}

fn divide(a: u64, b: u64) -> u64 {
    a.checked_div(b).unwrap_or(u64::MAX)
}

fn remainder(a: u64, b: u64) -> u64 {
    a.checked_rem(b).unwrap_or(a)
}

fn divide_signed(a: i64, b: i64) -> i64 {
    if b == 0 { -1 } else { a.wrapping_div(b) }
}

fn remainder_signed(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { a.wrapping_rem(b) }
}

/// Operations of two registers of at most 32 bits.
pub fn word2(name: &str, kind: &str) -> Option<Word2> {
    Some(match (name, kind) {
        ("add", "u32" | "s32") => lanes!(Word; a: Word, b: Word => a.wrapping_add(b)),
        ("add", "u16" | "s16") => lanes!(Word; a: Word, b: Word => a.wrapping_add(b) & 0xffff),
        ("add.sat", "s32") => lanes!(Word; a: Word, b: Word => s32(a).saturating_add(s32(b)).cast_unsigned()),
        ("sub", "u32" | "s32") => lanes!(Word; a: Word, b: Word => a.wrapping_sub(b)),
        ("sub", "u16" | "s16") => lanes!(Word; a: Word, b: Word => a.wrapping_sub(b) & 0xffff),
        ("sub.sat", "s32") => lanes!(Word; a: Word, b: Word => s32(a).saturating_sub(s32(b)).cast_unsigned()),
        ("mul.lo", "u32" | "s32") => lanes!(Word; a: Word, b: Word => a.wrapping_mul(b)),
        ("mul.lo", "u16" | "s16") => lanes!(Word; a: Word, b: Word => a.wrapping_mul(b) & 0xffff),
        ("mul.hi", "u32") => lanes!(Word; a: Word, b: Word => ((u64::from(a) * u64::from(b)) >> 32) as u32),
        ("mul.hi", "s32") => {
            lanes!(Word; a: Word, b: Word => ((i64::from(s32(a)) * i64::from(s32(b))) >> 32) as u32)
        }
        ("mul.hi", "u16") => lanes!(Word; a: Word, b: Word => a.wrapping_mul(b) >> 16),
        ("mul.hi", "s16") => lanes!(Word; a: Word, b: Word => low16((s16(a) * s16(b)) >> 16)),
        ("mul.wide", "u16") => lanes!(Word; a: Word, b: Word => a.wrapping_mul(b)),
        ("mul.wide", "s16") => lanes!(Word; a: Word, b: Word => (s16(a) * s16(b)).cast_unsigned()),
        ("div", "u32" | "u16") => {
            lanes!(Word; a: Word, b: Word => divide(u64::from(a), u64::from(b)) as u32)
        }
        ("div", "s32") => lanes!(Word; a: Word, b: Word => divide_signed(s32(a).into(), s32(b).into()) as u32),
        ("div", "s16") => {
            lanes!(Word; a: Word, b: Word => low16(divide_signed(s16(a).into(), s16(b).into()) as i32))
        }
        ("rem", "u32" | "u16") => {
            lanes!(Word; a: Word, b: Word => remainder(u64::from(a), u64::from(b)) as u32)
        }
        ("rem", "s32") => lanes!(Word; a: Word, b: Word => remainder_signed(s32(a).into(), s32(b).into()) as u32),
        ("rem", "s16") => {
            lanes!(Word; a: Word, b: Word => low16(remainder_signed(s16(a).into(), s16(b).into()) as i32))
        }
        ("min", "u32" | "u16") => lanes!(Word; a: Word, b: Word => a.min(b)),
        ("min", "s32") => lanes!(Word; a: Word, b: Word => s32(a).min(s32(b)).cast_unsigned()),
        ("min", "s16") => lanes!(Word; a: Word, b: Word => low16(s16(a).min(s16(b)))),
        ("max", "u32" | "u16") => lanes!(Word; a: Word, b: Word => a.max(b)),
        ("max", "s32") => lanes!(Word; a: Word, b: Word => s32(a).max(s32(b)).cast_unsigned()),
        ("max", "s16") => lanes!(Word; a: Word, b: Word => low16(s16(a).max(s16(b)))),
        ("shl", "b32") => lanes!(Word; a: Word, b: Word => a.checked_shl(b).unwrap_or(0)),
        ("shl", "b16") => lanes!(Word; a: Word, b: Word => a.checked_shl(b).unwrap_or(0) & 0xffff),
        ("shr", "u32" | "b32" | "u16" | "b16") => lanes!(Word; a: Word, b: Word => a.checked_shr(b).unwrap_or(0)),
        ("shr", "s32") => lanes!(Word; a: Word, b: Word => (s32(a) >> b.min(31)).cast_unsigned()),
        ("shr", "s16") => lanes!(Word; a: Word, b: Word => low16(s16(a) >> b.min(31))),
        _ => return None,
    })
}

/// Operations of two registers of 64 bits.
pub fn long2(name: &str, kind: &str) -> Option<Long2> {
    Some(match (name, kind) {
        ("add", "u64" | "s64") => lanes!(Long; a: Long, b: Long => a.wrapping_add(b)),
        ("sub", "u64" | "s64") => lanes!(Long; a: Long, b: Long => a.wrapping_sub(b)),
        ("mul.lo", "u64" | "s64") => lanes!(Long; a: Long, b: Long => a.wrapping_mul(b)),
        ("mul.hi", "u64") => lanes!(Long; a: Long, b: Long => ((u128::from(a) * u128::from(b)) >> 64) as u64),
        ("mul.hi", "s64") => {
            lanes!(Long; a: Long, b: Long => ((i128::from(s64(a)) * i128::from(s64(b))) >> 64) as u64)
        }
        ("div", "u64") => lanes!(Long; a: Long, b: Long => divide(a, b)),
        ("div", "s64") => lanes!(Long; a: Long, b: Long => divide_signed(s64(a), s64(b)).cast_unsigned()),
        ("rem", "u64") => lanes!(Long; a: Long, b: Long => remainder(a, b)),
        ("rem", "s64") => lanes!(Long; a: Long, b: Long => remainder_signed(s64(a), s64(b)).cast_unsigned()),
        ("min", "u64") => lanes!(Long; a: Long, b: Long => a.min(b)),
        ("min", "s64") => lanes!(Long; a: Long, b: Long => s64(a).min(s64(b)).cast_unsigned()),
        ("max", "u64") => lanes!(Long; a: Long, b: Long => a.max(b)),
        ("max", "s64") => lanes!(Long; a: Long, b: Long => s64(a).max(s64(b)).cast_unsigned()),
        _ => return None,
    })
}

/// Shifts of 64 bits: the distance has 32.
pub fn shift_long(name: &str, kind: &str) -> Option<fn(&Long, &Word) -> Long> {
    Some(match (name, kind) {
        ("shl", "b64") => lanes!(Long; a: Long, b: Word => a.checked_shl(b).unwrap_or(0)),
        ("shr", "u64" | "b64") => lanes!(Long; a: Long, b: Word => a.checked_shr(b).unwrap_or(0)),
        ("shr", "s64") => lanes!(Long; a: Long, b: Word => (s64(a) >> b.min(63)).cast_unsigned()),
        _ => return None,
    })
}

/// `mul.wide` from 32 to 64 bits.
pub fn multiply_wide(kind: &str) -> Option<fn(&Word, &Word) -> Long> {
    Some(match kind {
        "u32" => lanes!(Long; a: Word, b: Word => u64::from(a) * u64::from(b)),
        "s32" => lanes!(Long; a: Word, b: Word => (i64::from(s32(a)) * i64::from(s32(b))).cast_unsigned()),
        _ => return None,
    })
}

/// `mad.wide` from 32 to 64 bits.
pub fn multiply_add_wide(kind: &str) -> Option<fn(&Word, &Word, &Long) -> Long> {
    Some(match kind {
        "u32" => lanes!(Long; a: Word, b: Word, c: Long => (u64::from(a) * u64::from(b)).wrapping_add(c)),
        "s32" => {
            lanes!(Long; a: Word, b: Word, c: Long =>
                (i64::from(s32(a)) * i64::from(s32(b))).cast_unsigned().wrapping_add(c))
        }
        _ => return None,
    })
}

/// Operations of one register of at most 32 bits.
pub fn word1(name: &str, kind: &str) -> Option<Word1> {
    Some(match (name, kind) {
        ("neg", "s32") => lanes!(Word; a: Word => a.wrapping_neg()),
        ("neg", "s16") => lanes!(Word; a: Word => a.wrapping_neg() & 0xffff),
        ("abs", "s32") => lanes!(Word; a: Word => s32(a).wrapping_abs().cast_unsigned()),
        ("abs", "s16") => lanes!(Word; a: Word => low16(s16(a).abs())),
        ("popc", "b32") => lanes!(Word; a: Word => a.count_ones()),
        ("clz", "b32") => lanes!(Word; a: Word => a.leading_zeros()),
        ("brev", "b32") => lanes!(Word; a: Word => a.reverse_bits()),
        ("bfind", "u32") => lanes!(Word; a: Word => 31u32.wrapping_sub(a.leading_zeros())),
        ("bfind", "s32") => {
            lanes!(Word; a: Word => 31u32.wrapping_sub((a ^ (s32(a) >> 31).cast_unsigned()).leading_zeros()))
        }
        ("bfind.shiftamt", "u32") => lanes!(Word; a: Word => if a == 0 { u32::MAX } else { a.leading_zeros() }),
        ("bfind.shiftamt", "s32") => lanes!(Word; a: Word => {
            let magnitude = a ^ (s32(a) >> 31).cast_unsigned();
            if magnitude == 0 { u32::MAX } else { magnitude.leading_zeros() }
        }),
        _ => return None,
    })
}

/// Operations of one register of 64 bits.
pub fn long1(name: &str, kind: &str) -> Option<Long1> {
    Some(match (name, kind) {
        ("neg", "s64") => lanes!(Long; a: Long => a.wrapping_neg()),
        ("abs", "s64") => lanes!(Long; a: Long => s64(a).wrapping_abs().cast_unsigned()),
        ("brev", "b64") => lanes!(Long; a: Long => a.reverse_bits()),
        _ => return None,
    })
}

/// Counts of bits in 64: the result has 32.
pub fn count_long(name: &str, kind: &str) -> Option<fn(&Long) -> Word> {
    Some(match (name, kind) {
        ("popc", "b64") => lanes!(Word; a: Long => a.count_ones()),
        ("clz", "b64") => lanes!(Word; a: Long => a.leading_zeros()),
        ("bfind", "u64") => lanes!(Word; a: Long => 63u32.wrapping_sub(a.leading_zeros())),
        ("bfind", "s64") => {
            lanes!(Word; a: Long => 63u32.wrapping_sub((a ^ (s64(a) >> 63).cast_unsigned()).leading_zeros()))
        }
        ("bfind.shiftamt", "u64") => lanes!(Word; a: Long => if a == 0 { u32::MAX } else { a.leading_zeros() }),
        _ => return None,
    })
}

/// Operations of three registers of at most 32 bits.
pub fn word3(name: &str, kind: &str) -> Option<Word3> {
    Some(match (name, kind) {
        ("mad.lo", "u32" | "s32") => lanes!(Word; a: Word, b: Word, c: Word => a.wrapping_mul(b).wrapping_add(c)),
        ("mad.lo", "u16" | "s16") => {
            lanes!(Word; a: Word, b: Word, c: Word => a.wrapping_mul(b).wrapping_add(c) & 0xffff)
        }
        ("mad.hi", "u32") => {
            lanes!(Word; a: Word, b: Word, c: Word => (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c))
        }
        ("mad.hi", "s32") => {
            lanes!(Word; a: Word, b: Word, c: Word =>
                (((i64::from(s32(a)) * i64::from(s32(b))) >> 32) as u32).wrapping_add(c))
        }
        ("mad.wide", "u16") => lanes!(Word; a: Word, b: Word, c: Word => a.wrapping_mul(b).wrapping_add(c)),
        ("mad.wide", "s16") => {
            lanes!(Word; a: Word, b: Word, c: Word => (s16(a) * s16(b)).cast_unsigned().wrapping_add(c))
        }
        ("sad", "u32") => lanes!(Word; a: Word, b: Word, c: Word => c.wrapping_add(a.abs_diff(b))),
        ("sad", "s32") => lanes!(Word; a: Word, b: Word, c: Word => c.wrapping_add(s32(a).abs_diff(s32(b)))),
        ("bfe", "u32") => lanes!(Word; a: Word, b: Word, c: Word => extract(a.into(), b, c, 32, false) as u32),
        ("bfe", "s32") => lanes!(Word; a: Word, b: Word, c: Word => extract(a.into(), b, c, 32, true) as u32),
        ("shf.l.wrap", "b32") => lanes!(Word; a: Word, b: Word, c: Word => funnel_left(a, b, c & 31)),
        ("shf.l.clamp", "b32") => lanes!(Word; a: Word, b: Word, c: Word => funnel_left(a, b, c.min(32))),
        ("shf.r.wrap", "b32") => lanes!(Word; a: Word, b: Word, c: Word => funnel_right(a, b, c & 31)),
        ("shf.r.clamp", "b32") => lanes!(Word; a: Word, b: Word, c: Word => funnel_right(a, b, c.min(32))),
        ("prmt", "b32") => lanes!(Word; a: Word, b: Word, c: Word => permute(a, b, c)),
        ("prmt.f4e", "b32") => lanes!(Word; a: Word, b: Word, c: Word => permute(a, b, 0x3210 + 0x1111 * (c & 3))),
        ("prmt.b4e", "b32") => lanes!(Word; a: Word, b: Word, c: Word => permute(a, b, BACKWARD[(c & 3) as usize])),
        ("prmt.rc8", "b32") => lanes!(Word; a: Word, b: Word, c: Word => permute(a, b, 0x1111 * (c & 3))),
        ("prmt.ecl", "b32") => lanes!(Word; a: Word, b: Word, c: Word => permute(a, b, CLAMP_LEFT[(c & 3) as usize])),
        ("prmt.ecr", "b32") => lanes!(Word; a: Word, b: Word, c: Word => permute(a, b, CLAMP_RIGHT[(c & 3) as usize])),
        ("prmt.rc16", "b32") => {
            lanes!(Word; a: Word, b: Word, c: Word => permute(a, b, if c & 1 == 0 { 0x1010 } else { 0x3232 }))
        }
        ("dp2a.lo", "u32.u32") => lanes!(Word; a: Word, b: Word, c: Word => dot2(a, b, c, false, false)),
        ("dp2a.lo", "u32.s32") => lanes!(Word; a: Word, b: Word, c: Word => dot2(a, b, c, false, true)),
        ("dp2a.lo", "s32.u32") => lanes!(Word; a: Word, b: Word, c: Word => dot2(a, b, c, true, false)),
        ("dp2a.lo", "s32.s32") => lanes!(Word; a: Word, b: Word, c: Word => dot2(a, b, c, true, true)),
        ("dp2a.hi", "u32.u32") => lanes!(Word; a: Word, b: Word, c: Word => dot2(a, b >> 16, c, false, false)),
        ("dp2a.hi", "u32.s32") => lanes!(Word; a: Word, b: Word, c: Word => dot2(a, b >> 16, c, false, true)),
        ("dp2a.hi", "s32.u32") => lanes!(Word; a: Word, b: Word, c: Word => dot2(a, b >> 16, c, true, false)),
        ("dp2a.hi", "s32.s32") => lanes!(Word; a: Word, b: Word, c: Word => dot2(a, b >> 16, c, true, true)),
        ("dp4a", "u32.u32") => lanes!(Word; a: Word, b: Word, c: Word => dot4(a, b, c, false, false)),
        ("dp4a", "u32.s32") => lanes!(Word; a: Word, b: Word, c: Word => dot4(a, b, c, false, true)),
        ("dp4a", "s32.u32") => lanes!(Word; a: Word, b: Word, c: Word => dot4(a, b, c, true, false)),
        ("dp4a", "s32.s32") => lanes!(Word; a: Word, b: Word, c: Word => dot4(a, b, c, true, true)),
        _ => return None,
    })
}

/// Selectors of `prmt.b4e`, by the two low bits of the control operand.
const BACKWARD: [u32; 4] = [0x5670, 0x6701, 0x7012, 0x0123];
/// Selectors of `prmt.ecl`.
const CLAMP_LEFT: [u32; 4] = [0x3210, 0x3211, 0x3222, 0x3333];
/// Selectors of `prmt.ecr`.
const CLAMP_RIGHT: [u32; 4] = [0x0000, 0x1110, 0x2210, 0x3210];

/// `bfe`: `length` bits of `a` from `position`, of a value of `width` bits.
fn extract(a: u64, position: u32, length: u32, width: u32, signed: bool) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if length == 0 {
        return 0;
    }
    let top = (position + length - 1).min(width - 1);
    let sign = if signed && a >> top & 1 == 1 { u64::MAX } else { 0 };
    let field = a.checked_shr(position).unwrap_or(0);
    let kept = if position >= width { 0 } else { length.min(width - position) };
    let mask = if kept >= 64 { u64::MAX } else { (1 << kept) - 1 };
    (field & mask) | (sign & !mask)
}

/// `bfi`: `length` bits of `a` into `b` at `position`.
fn insert(a: u64, b: u64, position: u32, length: u32, width: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if length == 0 || position >= width {
        return b;
    }
    let kept = length.min(width - position);
    let mask = if kept >= 64 { u64::MAX } else { ((1 << kept) - 1) << position };
    (a << position & mask) | (b & !mask)
}

/// `bfe` of 64 bits.
pub fn extract_long(kind: &str) -> Option<fn(&Long, &Word, &Word) -> Long> {
    Some(match kind {
        "u64" => lanes!(Long; a: Long, b: Word, c: Word => extract(a, b, c, 64, false)),
        "s64" => lanes!(Long; a: Long, b: Word, c: Word => extract(a, b, c, 64, true)),
        _ => return None,
    })
}

/// `bfi` of 32 bits.
pub fn insert_word() -> fn(&Word, &Word, &Word, &Word) -> Word {
    lanes!(Word; a: Word, b: Word, c: Word, d: Word => insert(a.into(), b.into(), c, d, 32) as u32)
}

/// `bfi` of 64 bits.
pub fn insert_long() -> fn(&Long, &Long, &Word, &Word) -> Long {
    lanes!(Long; a: Long, b: Long, c: Word, d: Word => insert(a, b, c, d, 64))
}

/// `mad.lo` of 64 bits.
pub fn long3(name: &str, kind: &str) -> Option<Long3> {
    Some(match (name, kind) {
        ("mad.lo", "u64" | "s64") => lanes!(Long; a: Long, b: Long, c: Long => a.wrapping_mul(b).wrapping_add(c)),
        ("mad.hi", "u64") => {
            lanes!(Long; a: Long, b: Long, c: Long => (((u128::from(a) * u128::from(b)) >> 64) as u64).wrapping_add(c))
        }
        _ => return None,
    })
}

fn funnel_left(low: u32, high: u32, distance: u32) -> u32 {
    ((u64::from(high) << 32 | u64::from(low)) << distance >> 32) as u32
}

fn funnel_right(low: u32, high: u32, distance: u32) -> u32 {
    ((u64::from(high) << 32 | u64::from(low)) >> distance) as u32
}

fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let mut out = 0;
    for i in 0..4 {
        let select = selector >> (4 * i) & 15;
        let byte = (bytes >> (8 * (select & 7))) as u32 & 0xff;
        // Bit 3 spreads the sign of the byte over all of it.
        let byte = if select & 8 == 0 { byte } else { (byte >> 7) * 0xff };
        out |= byte << (8 * i);
    }
    out
}

fn dot4(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let byte = |v: u32, i: u32, signed: bool| {
        let byte = (v >> (8 * i)) as u8;
        if signed { i32::from(byte.cast_signed()) } else { i32::from(byte) }
    };
    (0..4).fold(c, |sum, i| sum.wrapping_add((byte(a, i, a_signed) * byte(b, i, b_signed)).cast_unsigned()))
}

/// `dp2a`: the halves of `a` times the two lower bytes of `b`, plus `c`.
fn dot2(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let half = |i: u32| {
        let half = (a >> (16 * i)) as u16;
        if a_signed { i32::from(half.cast_signed()) } else { i32::from(half) }
    };
    let byte = |i: u32| {
        let byte = (b >> (8 * i)) as u8;
        if b_signed { i32::from(byte.cast_signed()) } else { i32::from(byte) }
    };
    (0..2).fold(c, |sum, i| sum.wrapping_add((half(i) * byte(i)).cast_unsigned()))
}
