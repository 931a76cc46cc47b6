//! One block: its warps take turns until all are through.

use super::barrier::{Stopped, release, stuck};
use super::machine::Machine;
use super::warp::{Paused, Warp};
use crate::lanes::LANES;
use crate::schedule::Choices;

/// Runs the block that `machine` stands at. `warps` keeps the registers from block to block.
pub fn run_block(machine: &mut Machine, warps: &mut Vec<Warp>, mut choices: Choices) -> Result<(), Stopped> {
    let threads = machine.geometry.threads();
    let count = threads.div_ceil(LANES as u32);
    while warps.len() < count as usize {
        warps.push(Warp::new(machine));
    }
    for (index, warp) in (0..count).zip(warps.iter_mut()) {
        let first = index * LANES as u32;
        warp.start(machine, first, (threads - first).min(LANES as u32));
    }
    machine.counters.warps += u64::from(count);
    let mut ready: Vec<usize> = (0..count as usize).collect();
    loop {
        if ready.is_empty() {
            match stuck(machine, warps) {
                Some(stopped) => return Err(stopped),
                None => return Ok(()),
            }
        }
        let (index, turn) = choices.next(&ready);
        let warp = &mut warps[index];
        let paused = warp.run(machine, turn).map_err(|stop| {
            let (lane, problem) = *stop;
            let line = machine.program.code[warp.pc as usize].line;
            Stopped { line, thread: warp.first_thread + lane as u32, problem }
        })?;
        if paused == Paused::Turn {
            continue;
        }
        ready.retain(|&other| other != index);
        // A warp that ends may complete a barrier, too.
        if release(machine, warps)? {
            ready = (0..count as usize).filter(|&index| !warps[index].groups.is_empty()).collect();
        }
    }
}
