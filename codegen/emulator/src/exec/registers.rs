//! The registers of a warp, in three banks.

use super::machine::Geometry;
use crate::lanes::{LANES, Long, Mask, Word, each};
use crate::program::{Address, Program, Reg, Slot, Special};

/// The banks.
#[derive(Debug, Default)]
pub struct Registers {
    pub words: Vec<Word>,
    pub longs: Vec<Long>,
    pub predicates: Vec<Mask>,
}

impl Registers {
    /// Registers for a program, with its constants.
    pub fn new(program: &Program) -> Self {
        let mut registers = Self {
            words: vec![[0; LANES]; program.banks.words],
            longs: vec![[0; LANES]; program.banks.longs],
            predicates: vec![0; program.banks.predicates],
        };
        for &(slot, value) in &program.word_constants {
            registers.words[usize::from(slot)] = [value; LANES];
        }
        for &(slot, value) in &program.long_constants {
            registers.longs[usize::from(slot)] = [value; LANES];
        }
        registers
    }

    /// Puts special registers in place for a warp that begins at `first` of the block `block`.
    pub fn place(&mut self, program: &Program, geometry: &Geometry, block: [u32; 3], first: u32) {
        let [x, y, _] = geometry.block;
        for &(slot, special) in &program.specials {
            self.words[usize::from(slot)] = std::array::from_fn(|lane| {
                let thread = first + lane as u32;
                let lane = lane as u32;
                match special {
                    Special::Thread(0) => thread % x,
                    Special::Thread(1) => thread / x % y,
                    Special::Thread(_) => thread / x / y,
                    Special::Threads(axis) => geometry.block[axis],
                    Special::Block(axis) => block[axis],
                    Special::Blocks(axis) => geometry.grid[axis],
                    Special::Lane => lane,
                    Special::Warp => first / LANES as u32,
                    Special::Warps => geometry.threads().div_ceil(LANES as u32),
                    Special::LaneMask { lower, own, higher } => {
                        let below = (1u32 << lane) - 1;
                        let own_bit = 1u32 << lane;
                        (if lower { below } else { 0 })
                            | (if own { own_bit } else { 0 })
                            | (if higher { !(below | own_bit) } else { 0 })
                    }
                    Special::DynamicShared => geometry.dynamic_shared,
                    Special::TotalShared => program.shared_bytes as u32 + geometry.dynamic_shared,
                }
            });
        }
    }

    /// A word register.
    #[inline]
    pub fn word(&self, slot: Slot) -> &Word {
        &self.words[usize::from(slot)]
    }

    /// A long register.
    #[inline]
    pub fn long(&self, slot: Slot) -> &Long {
        &self.longs[usize::from(slot)]
    }

    /// A predicate, negated if the flag says so.
    #[inline]
    pub fn predicate(&self, (slot, negated): (Slot, bool)) -> Mask {
        let mask = self.predicates[usize::from(slot)];
        if negated { !mask } else { mask }
    }

    /// Writes the lanes of `mask`.
    #[inline]
    pub fn set_word(&mut self, slot: Slot, value: &Word, mask: Mask) {
        write(&mut self.words[usize::from(slot)], value, mask);
    }

    /// Writes the lanes of `mask`.
    #[inline]
    pub fn set_long(&mut self, slot: Slot, value: &Long, mask: Mask) {
        write(&mut self.longs[usize::from(slot)], value, mask);
    }

    /// Writes the lanes of `mask`.
    #[inline]
    pub fn set_predicate(&mut self, slot: Slot, value: Mask, mask: Mask) {
        let register = &mut self.predicates[usize::from(slot)];
        *register = (*register & !mask) | (value & mask);
    }

    /// A register of either bank in one lane.
    #[inline]
    pub fn get(&self, reg: Reg, lane: usize) -> u64 {
        match reg {
            Reg::Word(slot) => u64::from(self.words[usize::from(slot)][lane]),
            Reg::Long(slot) => self.longs[usize::from(slot)][lane],
        }
    }

    /// Writes a register of either bank in one lane; the upper bits are cut off.
    #[inline]
    pub fn set(&mut self, reg: Reg, lane: usize, value: u64) {
        match reg {
            Reg::Word(slot) => self.words[usize::from(slot)][lane] = value as u32,
            Reg::Long(slot) => self.longs[usize::from(slot)][lane] = value,
        }
    }

    /// The addresses of the lanes of `mask`.
    #[inline]
    pub fn addresses(&self, address: &Address, mask: Mask) -> Long {
        let offset = address.offset.cast_unsigned();
        let mut out = [0; LANES];
        match address.base {
            None => out = [offset; LANES],
            Some(Reg::Long(slot)) => {
                for (out, &base) in out.iter_mut().zip(self.long(slot)) {
                    *out = base.wrapping_add(offset);
                }
            }
            Some(Reg::Word(slot)) => {
                let base = self.word(slot);
                for lane in each(mask) {
                    // 32-bit addresses stay in 32 bits.
                    out[lane] = u64::from(base[lane].wrapping_add(offset as u32));
                }
            }
        }
        out
    }
}

/// Writes the lanes of `mask`.
#[inline]
fn write<T: Copy>(register: &mut [T; LANES], value: &[T; LANES], mask: Mask) {
    if mask == Mask::MAX {
        *register = *value;
    } else {
        *register = choose(mask, value, register);
    }
}

/// The lanes of `mask` of `yes`, the others of `no`.
#[inline]
pub fn choose<T: Copy>(mask: Mask, yes: &[T; LANES], no: &[T; LANES]) -> [T; LANES] {
    std::array::from_fn(|lane| if mask >> lane & 1 == 1 { yes[lane] } else { no[lane] })
}
