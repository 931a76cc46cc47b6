//! Bits: and, or, xor, not, and any function of three of them (`lop3`).

use super::integer::{Long1, Long2, Word1, Word2};
use crate::lanes::{Long, Mask, Word, lanes};

/// Two registers of at most 32 bits.
pub fn word2(name: &str) -> Option<Word2> {
    Some(match name {
        "and" => lanes!(Word; a: Word, b: Word => a & b),
        "or" => lanes!(Word; a: Word, b: Word => a | b),
        "xor" => lanes!(Word; a: Word, b: Word => a ^ b),
        _ => return None,
    })
}

/// Two registers of 64 bits.
pub fn long2(name: &str) -> Option<Long2> {
    Some(match name {
        "and" => lanes!(Long; a: Long, b: Long => a & b),
        "or" => lanes!(Long; a: Long, b: Long => a | b),
        "xor" => lanes!(Long; a: Long, b: Long => a ^ b),
        _ => return None,
    })
}

/// Two predicates.
pub fn mask2(name: &str) -> Option<fn(Mask, Mask) -> Mask> {
    Some(match name {
        "and" => |a, b| a & b,
        "or" => |a, b| a | b,
        "xor" => |a, b| a ^ b,
        _ => return None,
    })
}

/// One register of at most 32 bits.
pub fn word1(name: &str, kind: &str) -> Option<Word1> {
    Some(match (name, kind) {
        ("not", "b32") => lanes!(Word; a: Word => !a),
        ("not", "b16") => lanes!(Word; a: Word => !a & 0xffff),
        ("cnot", "b32" | "b16") => lanes!(Word; a: Word => u32::from(a == 0)),
        _ => return None,
    })
}

/// One register of 64 bits.
pub fn long1(name: &str) -> Option<Long1> {
    Some(match name {
        "not" => lanes!(Long; a: Long => !a),
        "cnot" => lanes!(Long; a: Long => u64::from(a == 0)),
        _ => return None,
    })
}

/// `lop3.b32`: bit `4a + 2b + c` of `table` is the result where the operands' bits are a, b and c.
pub fn table3(a: &Word, b: &Word, c: &Word, table: u8) -> Word {
    let mut out = [0; crate::lanes::LANES];
    for row in (0..8).filter(|row| table >> row & 1 == 1) {
        let (keep_a, keep_b, keep_c) = (sign(row & 4), sign(row & 2), sign(row & 1));
        for lane in 0..crate::lanes::LANES {
            out[lane] |= !(a[lane] ^ keep_a) & !(b[lane] ^ keep_b) & !(c[lane] ^ keep_c);
        }
    }
    out
}

fn sign(bit: u8) -> u32 {
    if bit == 0 { 0 } else { u32::MAX }
}
