//! Atomics: lane after lane.

use super::machine::{Machine, Stop};
use super::memory::{Touch, value_at};
use super::warp::Warp;
use crate::alu::float::bits32;
use crate::alu::half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::error::Access;
use crate::lanes::{Mask, each};
use crate::memory::space::{Target, together};
use crate::program::{Atomic, AtomicOp};

impl Warp {
    pub(super) fn atomic(&mut self, machine: &mut Machine, op: &AtomicOp, mask: Mask) -> Result<(), Stop> {
        let addresses = self.registers.addresses(&op.address, mask);
        let width = usize::from(op.width);
        let mut rest = mask;
        while rest != 0 {
            let (target, offsets, mask) = together(op.space, &addresses, rest);
            rest &= !mask;
            let touch = Touch { target, mask, access: Access::Update, bytes: width, strong: true, cached: false };
            let indices = self.touch(machine, &touch, &offsets, &addresses)?;
            for lane in each(mask) {
                let at = indices[lane];
                let data = match target {
                    Target::Buffer(number) => machine.memory.region(number).map(|region| &mut region.data),
                    _ => Some(&mut machine.shared.data),
                };
                let Some(data) = data else { continue };
                let old = value_at(data, at, width);
                let operand = self.registers.get(op.operand, lane);
                let second = op.second.map_or(0, |second| self.registers.get(second, lane));
                let new = apply(op.operation, width, old, operand, second);
                data[at..at + width].copy_from_slice(&new.to_le_bytes()[..width]);
                if let Some(result) = op.result {
                    self.registers.set(result, lane, old);
                }
                if matches!(target, Target::Buffer(_)) {
                    hand_over(machine, addresses[lane]);
                }
            }
        }
        Ok(())
    }
}

/// The order that fences and an atomic on one address make between blocks.
fn hand_over(machine: &mut Machine, address: u64) {
    if let Some(released) = machine.released.get(&address) {
        machine.acquired.extend(released);
    }
    if machine.fenced {
        let released = machine.released.entry(address).or_default();
        released.insert(machine.block_number);
        released.extend(&machine.seen);
    }
}

/// The new value.
fn apply(operation: Atomic, width: usize, old: u64, operand: u64, second: u64) -> u64 {
    let signed = |value: u64| if width == 4 { i64::from(value as u32 as i32) } else { value.cast_signed() };
    match operation {
        Atomic::Add => old.wrapping_add(operand),
        Atomic::AddFloat if width == 4 => {
            u64::from(bits32(f32::from_bits(old as u32) + f32::from_bits(operand as u32)))
        }
        Atomic::AddFloat => (f64::from_bits(old) + f64::from_bits(operand)).to_bits(),
        Atomic::AddHalf => halves(width, old, operand, |a, b| f32_to_f16(f16_to_f32(a) + f16_to_f32(b))),
        Atomic::AddBrain => halves(width, old, operand, |a, b| f32_to_bf16(bf16_to_f32(a) + bf16_to_f32(b))),
        Atomic::Min => old.min(operand),
        Atomic::Max => old.max(operand),
        Atomic::MinSigned => signed(old).min(signed(operand)).cast_unsigned(),
        Atomic::MaxSigned => signed(old).max(signed(operand)).cast_unsigned(),
        Atomic::And => old & operand,
        Atomic::Or => old | operand,
        Atomic::Xor => old ^ operand,
        Atomic::Exchange => operand,
        Atomic::Compare => {
            if old == operand {
                second
            } else {
                old
            }
        }
        Atomic::Increment => {
            if old >= operand {
                0
            } else {
                old + 1
            }
        }
        Atomic::Decrement => {
            if old == 0 || old > operand {
                operand
            } else {
                old - 1
            }
        }
    }
}

fn halves(width: usize, old: u64, operand: u64, add: fn(u32, u32) -> u32) -> u64 {
    let (old, operand) = (old as u32, operand as u32);
    let low = add(old & 0xffff, operand & 0xffff);
    let high = if width == 4 { add(old >> 16, operand >> 16) } else { 0 };
    u64::from(high << 16 | low)
}
