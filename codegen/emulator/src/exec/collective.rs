//! Operations of a member mask: nobody goes on before all members are there.

use super::machine::{Machine, Stop, stop};
use super::warp::{Group, Next, Warp};
use crate::error::Problem;
use crate::lanes::{LANES, Mask, Word, each};
use crate::program::{Op, Reduction, Shuffle, Slot, Vote, WarpOp};

impl Warp {
    pub(super) fn collective(
        &mut self,
        machine: &mut Machine,
        op: &WarpOp,
        members: Slot,
        group: Group,
        active: Mask,
    ) -> Result<Next, Stop> {
        let masks = *self.registers.word(members);
        let mut arrived = active;
        self.parked.retain(|(parked, _)| {
            let here = parked.pc == group.pc;
            arrived |= if here { parked.mask } else { 0 };
            !here
        });
        let (mut rest, mut through, mut freed) = (arrived, 0, false);
        while rest != 0 {
            let members = masks[rest.trailing_zeros() as usize];
            // Lanes of unlike masks take part in unlike operations.
            let mut here = 0;
            for lane in each(rest).filter(|&lane| masks[lane] == members) {
                if members >> lane & 1 == 0 {
                    return Err(stop(lane, Problem::NotInMask { mask: members, lane: lane as u32 }));
                }
                here |= 1 << lane;
            }
            rest &= !here;
            let needed = members & self.alive;
            if here == needed {
                self.perform(machine, op, here)?;
                through |= here;
            } else if matches!(op, WarpOp::Sync) && here | self.parked_at_sync(machine, members) == needed {
                // `bar.warp.sync` joins lanes that wait at different places.
                let parked = std::mem::take(&mut self.parked);
                for (waiting, mask) in parked {
                    if mask == members && is_sync(machine, waiting.pc) {
                        self.put(Group { pc: waiting.pc + 1, mask: waiting.mask });
                    } else {
                        self.parked.push((waiting, mask));
                    }
                }
                self.perform(machine, op, needed)?;
                through |= here;
                freed = true;
            } else {
                self.parked.push((Group { pc: group.pc, mask: here }, members));
            }
        }
        if through == group.mask && !freed {
            return Ok(Next::Step);
        }
        self.put(Group { pc: group.pc + 1, mask: through | (group.mask & !active) });
        Ok(Next::Regroup)
    }

    fn parked_at_sync(&self, machine: &Machine, members: Mask) -> Mask {
        self.parked
            .iter()
            .filter(|(group, mask)| *mask == members && is_sync(machine, group.pc))
            .fold(0, |sum, (group, _)| sum | group.mask)
    }

    /// Executes `op` for the lanes `here`, which are all that take part.
    fn perform(&mut self, machine: &mut Machine, op: &WarpOp, here: Mask) -> Result<(), Stop> {
        let r = &mut self.registers;
        match op {
            WarpOp::Sync => {
                let time = machine.tick();
                if here == self.alive {
                    self.clocks.all(time);
                } else {
                    self.clocks.some(here, time);
                }
            }
            WarpOp::Shuffle { mode, to, valid, from, lane, clamp } => {
                let (values, lanes, clamps) = (*r.word(*from), *r.word(*lane), *r.word(*clamp));
                let (mut out, mut in_range) = ([0; LANES], 0);
                for lane in each(here) {
                    let (source, valid) = shuffle_source(*mode, lane as u32, lanes[lane], clamps[lane]);
                    if here >> source & 1 == 0 {
                        return Err(stop(lane, Problem::ShuffleSource { source_lane: source, mask: here }));
                    }
                    out[lane] = values[source as usize];
                    in_range |= u32::from(valid) << lane;
                }
                r.set_word(*to, &out, here);
                if let Some(valid) = valid {
                    r.set_predicate(*valid, in_range, here);
                }
            }
            WarpOp::Vote { vote, to, from } => {
                let votes = r.predicate(*from) & here;
                let result = match vote {
                    Vote::All => votes == here,
                    Vote::Any => votes != 0,
                    Vote::Uniform => votes == here || votes == 0,
                };
                r.set_predicate(*to, if result { Mask::MAX } else { 0 }, here);
            }
            WarpOp::Ballot { to, from } => {
                let votes = r.predicate(*from) & here;
                r.set_word(*to, &[votes; LANES], here);
            }
            WarpOp::MatchAny { to, from } => {
                let mut out = [0; LANES];
                for lane in each(here) {
                    let value = r.get(*from, lane);
                    out[lane] = each(here)
                        .filter(|&other| r.get(*from, other) == value)
                        .fold(0, |mask, other| mask | 1 << other);
                }
                r.set_word(*to, &out, here);
            }
            WarpOp::MatchAll { to, agree, from } => {
                let first = r.get(*from, here.trailing_zeros() as usize);
                let all = each(here).all(|lane| r.get(*from, lane) == first);
                r.set_word(*to, &[if all { here } else { 0 }; LANES], here);
                if let Some(agree) = agree {
                    r.set_predicate(*agree, if all { Mask::MAX } else { 0 }, here);
                }
            }
            WarpOp::Reduce { reduction, to, from } => {
                let value = reduce(*reduction, r.word(*from), here);
                r.set_word(*to, &[value; LANES], here);
            }
            WarpOp::LoadMatrix { to, address, transposed } => {
                self.load_matrix(machine, to, address, *transposed, here)?;
            }
            WarpOp::Multiply(op) => self.multiply(op, here),
        }
        Ok(())
    }
}

fn is_sync(machine: &Machine, pc: u32) -> bool {
    matches!(&machine.program.code[pc as usize].op, Op::Warp { op, .. } if matches!(**op, WarpOp::Sync))
}

/// The lane that a lane reads, and whether it lies in its segment; if not, it reads itself.
fn shuffle_source(mode: Shuffle, lane: u32, distance: u32, clamp: u32) -> (u32, bool) {
    let (distance, segment, clamp) = (distance & 31, clamp >> 8 & 31, clamp & 31);
    let first = lane & segment;
    let last = first | (clamp & !segment);
    let (source, valid) = match mode {
        Shuffle::Up => (lane.wrapping_sub(distance), lane as i32 - distance as i32 >= last as i32),
        Shuffle::Down => (lane + distance, lane + distance <= last),
        Shuffle::Butterfly => (lane ^ distance, lane ^ distance <= last),
        Shuffle::Index => {
            let source = first | (distance & !segment);
            (source, source <= last)
        }
    };
    if valid { (source, true) } else { (lane, false) }
}

fn reduce(reduction: Reduction, values: &Word, here: Mask) -> u32 {
    let combine = |a: u32, b: u32| match reduction {
        Reduction::Add => a.wrapping_add(b),
        Reduction::Min => a.min(b),
        Reduction::Max => a.max(b),
        Reduction::MinSigned => a.cast_signed().min(b.cast_signed()).cast_unsigned(),
        Reduction::MaxSigned => a.cast_signed().max(b.cast_signed()).cast_unsigned(),
        Reduction::And => a & b,
        Reduction::Or => a | b,
        Reduction::Xor => a ^ b,
    };
    each(here).map(|lane| values[lane]).reduce(combine).unwrap_or(0)
}
