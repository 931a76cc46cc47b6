//! Barriers of a block: who waits where, and when they may go on.

use super::machine::{Machine, Stop, stop};
use super::warp::{Group, Next, Warp};
use crate::error::Problem;
use crate::lanes::{LANES, Mask};
use crate::program::{BarrierOp, BarrierReduce, Op};

/// A warp stopped for a reason.
pub struct Stopped {
    pub line: u32,
    pub thread: u32,
    pub problem: Problem,
}

impl Warp {
    /// Lanes come to a barrier. The warp waits as soon as all of its living lanes did.
    pub(super) fn barrier(&mut self, group: Group) -> Result<Next, Stop> {
        match &mut self.at_barrier {
            None => self.at_barrier = Some(group),
            Some(waiting) if waiting.pc == group.pc => waiting.mask |= group.mask,
            Some(waiting) => {
                let (waiting, missing) = (group.mask, waiting.mask);
                return Err(stop(waiting.trailing_zeros() as usize, Problem::DivergentBarrier { waiting, missing }));
            }
        }
        Ok(Next::Regroup)
    }

    fn stopped(&self, machine: &Machine, pc: u32, problem: Problem) -> Stopped {
        let lane = self.alive.trailing_zeros() % 32;
        Stopped { line: machine.program.code[pc as usize].line, thread: self.first_thread + lane, problem }
    }
}

/// A warp that waits.
struct Waiting<'a> {
    index: usize,
    pc: u32,
    op: &'a BarrierOp,
    id: u64,
    threads: Option<u64>,
}

fn waiting<'a>(machine: &Machine<'a>, warps: &[Warp]) -> Vec<Waiting<'a>> {
    let code = &machine.program.code;
    warps
        .iter()
        .enumerate()
        .filter_map(|(index, warp)| {
            let group = warp.at_barrier.filter(|group| group.mask == warp.alive)?;
            let Op::Barrier(op) = &code[group.pc as usize].op else { return None };
            let lane = group.mask.trailing_zeros() as usize;
            let id = warp.registers.get(op.id, lane);
            Some(Waiting { index, pc: group.pc, op, id, threads: op.threads.map(|reg| warp.registers.get(reg, lane)) })
        })
        .collect()
}

/// Lets all warps go on whose barrier is complete. Whether there were any.
pub fn release(machine: &mut Machine, warps: &mut [Warp]) -> Result<bool, Stopped> {
    let all = waiting(machine, warps);
    let alive: u32 = warps.iter().map(|warp| warp.alive.count_ones()).sum();
    let mut any = false;
    let mut ids: Vec<u64> = all.iter().map(|waiting| waiting.id).collect();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        let group: Vec<&Waiting> = all.iter().filter(|waiting| waiting.id == id).collect();
        let first = group[0];
        let warp = &warps[first.index];
        let bad = |text: String| Err(warp.stopped(machine, first.pc, Problem::Operand(text)));
        if id > 15 {
            return bad(format!("barrier {id} does not exist, there are 0 to 15"));
        }
        if let Some(threads) = first.threads.filter(|threads| threads % LANES as u64 != 0 || *threads == 0) {
            return bad(format!("a barrier of {threads} threads: the number must be a multiple of 32"));
        }
        let arrived: u32 = group.iter().map(|waiting| warps[waiting.index].alive.count_ones()).sum();
        let expected = first.threads.map_or(alive, |threads| threads as u32);
        if let Some(other) = group
            .iter()
            .find(|other| other.threads != first.threads || (first.threads.is_none() && other.pc != first.pc))
        {
            let other = machine.program.code[other.pc as usize].line;
            return Err(warp.stopped(machine, first.pc, Problem::UnequalBarrier { arrived, expected, other }));
        }
        if arrived == expected {
            any = true;
            complete(machine, warps, &group, expected == alive);
        }
    }
    Ok(any)
}

/// Nobody can run: the barrier that is not complete, as an error.
pub fn stuck(machine: &Machine, warps: &[Warp]) -> Option<Stopped> {
    let all = waiting(machine, warps);
    let first = all.first()?;
    let alive: u32 = warps.iter().map(|warp| warp.alive.count_ones()).sum();
    let expected = first.threads.map_or(alive, |threads| threads as u32);
    let same = all.iter().filter(|other| other.id == first.id);
    let arrived = same.map(|other| warps[other.index].alive.count_ones()).sum();
    let other =
        all.iter().find(|other| other.id != first.id).map_or(0, |other| machine.program.code[other.pc as usize].line);
    let problem = Problem::UnequalBarrier { arrived, expected, other };
    Some(warps[first.index].stopped(machine, first.pc, problem))
}

fn complete(machine: &mut Machine, warps: &mut [Warp], group: &[&Waiting], everyone: bool) {
    let time = machine.tick();
    machine.counters.barriers += 1;
    if everyone {
        machine.clocks.all(time);
    } else {
        machine.clocks.some(group.iter().fold(0, |mask, waiting| mask | 1 << waiting.index), time);
    }
    // Votes of all threads, for `bar.red`.
    let (mut yes, mut threads) = (0, 0);
    for waiting in group {
        let warp = &warps[waiting.index];
        threads += warp.alive.count_ones();
        if let Some(
            BarrierReduce::Count { from, .. } | BarrierReduce::All { from, .. } | BarrierReduce::Any { from, .. },
        ) = waiting.op.reduce
        {
            yes += (warp.registers.predicate(from) & warp.alive).count_ones();
        }
    }
    for waiting in group {
        let warp = &mut warps[waiting.index];
        let mask: Mask = warp.alive;
        let truth = |is: bool| if is { Mask::MAX } else { 0 };
        match waiting.op.reduce {
            Some(BarrierReduce::Count { to, .. }) => warp.registers.set_word(to, &[yes; LANES], mask),
            Some(BarrierReduce::All { to, .. }) => warp.registers.set_predicate(to, truth(yes == threads), mask),
            Some(BarrierReduce::Any { to, .. }) => warp.registers.set_predicate(to, truth(yes > 0), mask),
            None => {}
        }
        warp.clocks.all(time);
        warp.at_barrier = None;
        warp.put(Group { pc: waiting.pc + 1, mask });
    }
}
