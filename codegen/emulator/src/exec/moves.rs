//! Register instructions that are too rare to be fast: packing, conversions, tables of logic.

use super::warp::Warp;
use crate::alu::convert::Kind;
use crate::alu::logic::table3;
use crate::lanes::{Mask, each};
use crate::memory::space::{Target, locate};
use crate::parse::Space;
use crate::program::Op;

impl Warp {
    /// Executes `op` in the lanes of `active`, of a group of the lanes `group`.
    pub fn rare(&mut self, op: &Op, group: Mask, active: Mask) {
        let r = &mut self.registers;
        match op {
            Op::Table { to, a, b, c, table } => {
                let value = table3(r.word(*a), r.word(*b), r.word(*c), *table);
                r.set_word(*to, &value, active);
            }
            Op::Pack { to, parts, bits } => {
                for lane in each(active) {
                    let value = parts.iter().rev().fold(0, |sum, &part| sum << bits | u64::from(r.word(part)[lane]));
                    r.set(*to, lane, value);
                }
            }
            Op::Unpack { parts, from, bits } => {
                for lane in each(active) {
                    let value = r.get(*from, lane);
                    for (i, part) in parts.iter().enumerate() {
                        if let Some(slot) = part {
                            let piece = value >> (bits * i as u32) & ((1 << bits) - 1);
                            r.words[usize::from(*slot)][lane] = piece as u32;
                        }
                    }
                }
            }
            Op::Convert { conversion, width, to, a } => {
                for lane in each(active) {
                    let mut value = conversion.apply(r.get(*a, lane));
                    if let Kind::Integer { bits, signed: true } = conversion.to
                        && bits < *width
                    {
                        // The sign fills the register.
                        let filled = (value << (64 - bits)).cast_signed() >> (64 - bits);
                        value = filled.cast_unsigned() & (u64::MAX >> (64 - width));
                    }
                    r.set(*to, lane, value);
                }
            }
            Op::ConvertPair { conversion, to, a, b } => {
                for lane in each(active) {
                    let high = conversion.apply(r.word(*a)[lane].into());
                    let low = conversion.apply(r.word(*b)[lane].into());
                    r.words[usize::from(*to)][lane] = (high << 16 | low) as u32;
                }
            }
            Op::ActiveMask { to } => r.set_word(*to, &[group & active; 32], active),
            Op::IsSpace { to, a, space } => {
                let mut value = 0;
                for lane in each(active) {
                    let (target, _) = locate(Space::Generic, r.long(*a)[lane]);
                    let is = match space {
                        Space::Shared => target == Target::Shared,
                        Space::Local => target == Target::Local,
                        _ => matches!(target, Target::Buffer(_)),
                    };
                    value |= u32::from(is) << lane;
                }
                r.set_predicate(*to, value, active);
            }
            Op::Window { to, a, delta } => {
                for lane in each(active) {
                    let value = r.get(*a, lane).wrapping_add(*delta);
                    r.set(*to, lane, value);
                }
            }
            _ => unreachable!("executed elsewhere: {op:?}"),
        }
    }
}
