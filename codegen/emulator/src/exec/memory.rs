//! Loads and stores.

use super::machine::{Machine, Stop, order, stop};
use super::warp::Warp;
use crate::counters::wavefronts;
use crate::error::{Access, Problem};
use crate::lanes::{LANES, Long, Mask, each};
use crate::memory::space::{Target, together};
use crate::program::{MemoryOp, Reg};

/// Byte offsets of the lanes in one target.
pub type Offsets = [usize; LANES];

/// One access of some lanes to one target.
pub struct Touch {
    pub target: Target,
    pub mask: Mask,
    pub access: Access,
    pub bytes: usize,
    /// No race against others of its like.
    pub strong: bool,
    /// Through the read-only cache.
    pub cached: bool,
}

impl Warp {
    /// Checks and counts an access to shared memory or a buffer; gives the offsets as indices.
    pub fn touch(
        &mut self,
        machine: &mut Machine,
        touch: &Touch,
        offsets: &[i64; LANES],
        addresses: &Long,
    ) -> Result<Offsets, Stop> {
        let &Touch { target, mask, access, bytes, strong, cached } = touch;
        let shared = target == Target::Shared;
        let region = match target {
            Target::Shared => &mut machine.shared,
            Target::Buffer(number) => match machine.memory.region(number) {
                Some(region) => region,
                None => return Err(no_buffer(touch, addresses)),
            },
            _ => return Err(no_buffer(touch, addresses)),
        };
        let mut indices = [0; LANES];
        let mut outside = 0;
        for lane in 0..LANES {
            indices[lane] = offsets[lane] as usize;
            outside |= u32::from(!region.holds(offsets[lane], bytes)) << lane;
        }
        if outside & mask != 0 {
            let lane = (outside & mask).trailing_zeros() as usize;
            return Err(stop(lane, region.outside(access, offsets[lane], bytes)));
        }
        let watched = if access == Access::Read && region.settled() { 0 } else { mask };
        for lane in each(watched) {
            let at = indices[lane];
            let order = order!(machine, self, lane, strong, shared);
            let checked = match access {
                Access::Read => region
                    .initialised(access, at, bytes, shared)
                    .and_then(|()| region.record_read(at, bytes, &order, cached)),
                Access::Write => {
                    region.writable(access, at, bytes).and_then(|()| region.record_write(access, at, bytes, &order))
                }
                Access::Update => region
                    .writable(access, at, bytes)
                    .and_then(|()| region.initialised(access, at, bytes, shared))
                    .and_then(|()| region.record_write(access, at, bytes, &order)),
            };
            checked.map_err(|problem| stop(lane, problem))?;
            if access == Access::Write {
                region.mark(at, bytes);
            }
        }
        let size = region.data.len();
        let counters = &mut machine.counters;
        match (target, access) {
            (Target::Shared, Access::Read) => {
                counters.shared_loads += 1;
                counters.shared_load_wavefronts += wavefronts(&indices, mask, bytes);
            }
            (Target::Shared, _) => {
                counters.shared_stores += 1;
                counters.shared_store_wavefronts += wavefronts(&indices, mask, bytes);
            }
            (Target::Buffer(number), access) => {
                let number = number as usize;
                if machine.meters.len() <= number {
                    machine.meters.resize_with(number + 1, Default::default);
                }
                machine.meters[number].count(access != Access::Read, &indices, mask, bytes, size);
            }
            _ => {}
        }
        Ok(indices)
    }

    /// Offsets in the local memory of the lanes.
    fn local_offsets(&self, offsets: &[i64; LANES], mask: Mask, access: Access, bytes: usize) -> Result<Offsets, Stop> {
        let size = self.local.data.len() / LANES;
        let mut indices = [0; LANES];
        for lane in each(mask) {
            let offset = offsets[lane];
            let start = offset as usize;
            if offset < 0 || start.saturating_add(bytes) > size {
                let (place, bytes, size) = (self.local.place.clone(), bytes as u64, size as u64);
                return Err(stop(lane, Problem::OutOfBounds { access, place, offset, bytes, size }));
            }
            if !start.is_multiple_of(bytes) {
                let (place, bytes) = (self.local.place.clone(), bytes as u64);
                return Err(stop(lane, Problem::Misaligned { access, place, offset, bytes }));
            }
            indices[lane] = lane * size + start;
        }
        Ok(indices)
    }

    pub(super) fn load(&mut self, machine: &mut Machine, op: &MemoryOp, mask: Mask) -> Result<(), Stop> {
        let addresses = self.registers.addresses(&op.address, mask);
        let bytes = usize::from(op.width) * op.registers.len();
        let mut rest = mask;
        while rest != 0 {
            let (target, offsets, mask) = together(op.space, &addresses, rest);
            rest &= !mask;
            match target {
                Target::Param => {
                    let size = machine.parameters.len();
                    let mut indices = [0; LANES];
                    for lane in each(mask) {
                        indices[lane] = offsets[lane] as usize;
                        if offsets[lane] < 0 || indices[lane].saturating_add(bytes) > size {
                            let (access, place) = (Access::Read, "the arguments".to_string());
                            let (offset, bytes, size) = (offsets[lane], bytes as u64, size as u64);
                            return Err(stop(lane, Problem::OutOfBounds { access, place, offset, bytes, size }));
                        }
                    }
                    read(&mut self.registers, op, machine.parameters, &indices, mask);
                }
                Target::Local => {
                    let indices = self.local_offsets(&offsets, mask, Access::Read, bytes)?;
                    for lane in each(mask) {
                        self.local
                            .initialised(Access::Read, indices[lane], bytes, false)
                            .map_err(|problem| stop(lane, problem))?;
                    }
                    read(&mut self.registers, op, &self.local.data, &indices, mask);
                }
                Target::Shared | Target::Buffer(_) | Target::Nothing => {
                    let (strong, cached) = (op.strong, op.cached);
                    let touch = Touch { target, mask, access: Access::Read, bytes, strong, cached };
                    let indices = self.touch(machine, &touch, &offsets, &addresses)?;
                    let data = match target {
                        Target::Buffer(number) => machine.memory.region(number).map(|region| &region.data),
                        _ => Some(&machine.shared.data),
                    };
                    if let Some(data) = data {
                        read(&mut self.registers, op, data, &indices, mask);
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn store(&mut self, machine: &mut Machine, op: &MemoryOp, mask: Mask) -> Result<(), Stop> {
        let addresses = self.registers.addresses(&op.address, mask);
        let bytes = usize::from(op.width) * op.registers.len();
        let mut rest = mask;
        while rest != 0 {
            let (target, offsets, mask) = together(op.space, &addresses, rest);
            rest &= !mask;
            if target == Target::Local {
                let indices = self.local_offsets(&offsets, mask, Access::Write, bytes)?;
                for lane in each(mask) {
                    self.local.mark(indices[lane], bytes);
                }
                write(&self.registers, op, &mut self.local.data, &indices, mask);
                continue;
            }
            let touch = Touch { target, mask, access: Access::Write, bytes, strong: op.strong, cached: false };
            let indices = self.touch(machine, &touch, &offsets, &addresses)?;
            let data = match target {
                Target::Buffer(number) => machine.memory.region(number).map(|region| &mut region.data),
                _ => Some(&mut machine.shared.data),
            };
            if let Some(data) = data {
                write(&self.registers, op, data, &indices, mask);
            }
        }
        Ok(())
    }
}

#[cold]
fn no_buffer(touch: &Touch, addresses: &Long) -> Stop {
    let lane = touch.mask.trailing_zeros() as usize;
    let (access, address, bytes) = (touch.access, addresses[lane], touch.bytes as u64);
    stop(lane, Problem::NoBuffer { access, address, bytes })
}

/// The little-endian value of `width` bytes.
#[inline]
pub fn value_at(data: &[u8], at: usize, width: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(&data[at..at + width]);
    u64::from_le_bytes(bytes)
}

fn read(registers: &mut super::registers::Registers, op: &MemoryOp, data: &[u8], indices: &Offsets, mask: Mask) {
    let width = usize::from(op.width);
    for (element, register) in op.registers.iter().enumerate() {
        let skip = element * width;
        match (*register, width, op.signed) {
            (None, ..) => {}
            (Some(Reg::Word(slot)), 4, _) => {
                let words = &mut registers.words[usize::from(slot)];
                let mut copy = |lane: usize| {
                    let at = indices[lane] + skip;
                    let mut bytes = [0; 4];
                    bytes.copy_from_slice(&data[at..at + 4]);
                    words[lane] = u32::from_le_bytes(bytes);
                };
                if mask == Mask::MAX { (0..LANES).for_each(&mut copy) } else { each(mask).for_each(&mut copy) }
            }
            (Some(register), width, signed) => {
                for lane in each(mask) {
                    let mut value = value_at(data, indices[lane] + skip, width);
                    if signed && width < 8 {
                        let unused = 64 - 8 * width as u32;
                        value = ((value << unused).cast_signed() >> unused).cast_unsigned();
                        if op.narrow {
                            value &= 0xffff;
                        }
                    }
                    registers.set(register, lane, value);
                }
            }
        }
    }
}

fn write(registers: &super::registers::Registers, op: &MemoryOp, data: &mut [u8], indices: &Offsets, mask: Mask) {
    let width = usize::from(op.width);
    for (element, register) in op.registers.iter().enumerate() {
        let Some(register) = *register else { continue };
        for lane in each(mask) {
            let at = indices[lane] + element * width;
            let value = registers.get(register, lane);
            data[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
    }
}
