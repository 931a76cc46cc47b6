//! `cp.async`: what a copy reads is read when it starts, what it writes is there when its thread has waited.
//!
//! In between the target counts as not written, so that reading it too early is found.

use super::machine::{Machine, Stop, order, stop};
use super::memory::Touch;
use super::warp::Warp;
use crate::error::{Access, Problem};
use crate::lanes::{LANES, Mask, each};
use crate::memory::space::{Target, together};
use crate::parse::Space;
use crate::program::AsyncCopy;

/// A copy on its way.
#[derive(Clone, Copy, Debug)]
struct Copy {
    lane: usize,
    group: u32,
    target: usize,
    bytes: usize,
    data: [u8; 16],
}

/// The copies of a warp.
#[derive(Clone, Debug, Default)]
pub struct Copies {
    flying: Vec<Copy>,
    /// Groups that each lane has closed.
    closed: [u32; LANES],
}

impl Copies {
    /// Closes the open group of these lanes.
    pub fn commit(&mut self, mask: Mask) {
        for lane in each(mask) {
            self.closed[lane] += 1;
        }
    }
}

impl Warp {
    pub(super) fn async_copy(&mut self, machine: &mut Machine, op: &AsyncCopy, mask: Mask) -> Result<(), Stop> {
        let bytes = usize::from(op.bytes);
        let targets = self.registers.addresses(&op.target, mask);
        let sources = self.registers.addresses(&op.source, mask);
        let (_, offsets, _) = together(Space::Shared, &targets, mask);
        let touch = Touch { target: Target::Shared, mask, access: Access::Write, bytes, strong: false, cached: false };
        let indices = self.touch(machine, &touch, &offsets, &targets)?;
        let ignored = op.ignore.map_or(0, |predicate| self.registers.predicate(predicate));
        // Whole copies are one access of the warp; partial ones are read byte by byte, and are rare.
        let (mut whole, mut parts) = (0, 0);
        let mut lengths = [bytes; LANES];
        for lane in each(mask) {
            if let Some(read) = op.read {
                let length = self.registers.word(read)[lane] as usize;
                if length > bytes {
                    let text = format!("a copy of {bytes} bytes is to read {length}; at most {bytes} are possible");
                    return Err(stop(lane, Problem::Operand(text)));
                }
                lengths[lane] = length;
            }
            if ignored >> lane & 1 == 1 {
                lengths[lane] = 0;
            }
            if lengths[lane] == bytes {
                whole |= 1 << lane;
            } else if lengths[lane] > 0 {
                parts |= 1 << lane;
            }
        }
        let mut data = [[0u8; 16]; LANES];
        self.fetch(machine, &sources, whole, bytes, 0, &mut data)?;
        for lane in each(parts) {
            for byte in 0..lengths[lane] {
                self.fetch(machine, &sources, 1 << lane, 1, byte, &mut data)?;
            }
        }
        for lane in each(mask) {
            machine.shared.unmark(indices[lane], bytes);
            let group = self.copies.closed[lane];
            self.copies.flying.push(Copy { lane, group, target: indices[lane], bytes, data: data[lane] });
        }
        Ok(())
    }

    /// Reads `bytes` bytes, `skip` behind each source, to the same place in `data`.
    fn fetch(
        &mut self,
        machine: &mut Machine,
        sources: &crate::lanes::Long,
        mask: Mask,
        bytes: usize,
        skip: usize,
        data: &mut [[u8; 16]; LANES],
    ) -> Result<(), Stop> {
        let addresses = sources.map(|address| address.wrapping_add(skip as u64));
        let mut rest = mask;
        while rest != 0 {
            let (target, offsets, mask) = together(Space::Global, &addresses, rest);
            rest &= !mask;
            let touch = Touch { target, mask, access: Access::Read, bytes, strong: false, cached: false };
            let indices = self.touch(machine, &touch, &offsets, &addresses)?;
            if let Target::Buffer(number) = target
                && let Some(region) = machine.memory.region(number)
            {
                for lane in each(mask) {
                    let at = indices[lane];
                    data[lane][skip..skip + bytes].copy_from_slice(&region.data[at..at + bytes]);
                }
            }
        }
        Ok(())
    }

    /// Lands the copies of the lanes of `mask`: all but those of the last `pending` closed groups, or all.
    pub(super) fn async_wait(&mut self, machine: &mut Machine, pending: Option<u32>, mask: Mask) -> Result<(), Stop> {
        let flying = std::mem::take(&mut self.copies.flying);
        for copy in flying {
            let landed = pending.is_none_or(|pending| copy.group + pending < self.copies.closed[copy.lane]);
            if mask >> copy.lane & 1 == 0 || !landed {
                self.copies.flying.push(copy);
                continue;
            }
            let order = order!(machine, self, copy.lane, false, true);
            machine
                .shared
                .record_write(Access::Write, copy.target, copy.bytes, &order)
                .map_err(|problem| stop(copy.lane, problem))?;
            machine.shared.mark(copy.target, copy.bytes);
            machine.shared.data[copy.target..copy.target + copy.bytes].copy_from_slice(&copy.data[..copy.bytes]);
        }
        Ok(())
    }
}
