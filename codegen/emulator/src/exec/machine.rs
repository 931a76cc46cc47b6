//! The state of a launch that outlives its blocks, and what all warps of a block share.

use std::collections::{HashMap, HashSet};

use super::block::run_block;
use crate::counters::{BufferTraffic, Counters, Meter};
use crate::error::{Fault, Problem};
use crate::memory::Memory;
use crate::memory::race::Clocks;
use crate::memory::region::Region;
use crate::program::Program;
use crate::schedule::Schedule;

/// Shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
}

impl Geometry {
    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    /// Blocks of the grid, if they can be counted.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|&n| u64::from(n)).product()
    }
}

/// A thread was stopped; the place in the code is added further out.
pub type Stop = Box<(usize, Problem)>;

/// Stops `lane`.
#[cold]
pub fn stop(lane: usize, problem: Problem) -> Stop {
    Box::new((lane, problem))
}

/// Name of shared memory in messages.
const SHARED: &str = "shared memory";

/// Everything that warps work on.
pub struct Machine<'a> {
    pub program: &'a Program,
    pub memory: &'a mut Memory,
    pub parameters: &'a [u8],
    pub geometry: Geometry,
    pub counters: Counters,
    pub meters: Vec<Meter>,
    /// Warp instructions that may still be executed, and how many there were.
    pub left: u64,
    pub budget: u64,
    /// Time of synchronisations, and where this launch and this block began.
    pub now: u32,
    pub launch_start: u32,
    pub block_start: u32,
    /// The block that runs.
    pub block: [u32; 3],
    pub block_number: u32,
    pub shared: Region,
    pub clocks: Clocks,
    /// Blocks whose writes this one may rely on; and those it will once it fences.
    pub seen: HashSet<u32>,
    pub acquired: HashSet<u32>,
    pub fenced: bool,
    /// Blocks that fenced and then updated an address, by address.
    pub released: HashMap<u64, HashSet<u32>>,
}

impl Machine<'_> {
    /// A synchronisation: the time after it.
    pub fn tick(&mut self) -> u32 {
        self.now += 1;
        self.now
    }
}

/// What a thread knows of others' accesses; a macro, so that the region beside it can be borrowed.
macro_rules! order {
    ($machine:expr, $warp:expr, $lane:expr, $strong:expr, $shared:expr) => {
        $crate::memory::race::Order {
            me: $crate::memory::race::Stamp::new(
                $machine.now,
                $strong,
                $machine.block_number,
                $warp.first_thread + $lane as u32,
            ),
            floor: if $shared { $machine.block_start } else { $machine.launch_start },
            block: &$machine.clocks,
            warp: &$warp.clocks,
            seen: &$machine.seen,
        }
    };
}
pub(super) use order;

/// What a launch is asked to do.
#[derive(Debug)]
pub struct Launch<'a> {
    pub program: &'a Program,
    /// Text of the module, for messages.
    pub text: &'a str,
    /// Arguments, as the kernel sees them in memory.
    pub parameters: &'a [u8],
    pub geometry: Geometry,
    pub schedule: Schedule,
    /// Warp instructions that may be executed.
    pub budget: u64,
    /// Time of synchronisations at which it begins.
    pub time: u32,
}

/// Runs all blocks. Returns the counts, and the time after the last synchronisation.
pub fn run(launch: &Launch, memory: &mut Memory) -> (Result<Counters, Box<Fault>>, u32) {
    let &Launch { program, text, parameters, geometry, schedule, budget, time } = launch;
    let shared_bytes = program.shared_bytes as usize + geometry.dynamic_shared as usize;
    let mut machine = Machine {
        program,
        memory,
        parameters,
        geometry,
        counters: Counters::default(),
        meters: Vec::new(),
        left: budget,
        budget,
        now: time,
        launch_start: time,
        block_start: time,
        block: [0; 3],
        block_number: 0,
        shared: Region::fresh(SHARED.to_string(), shared_bytes),
        clocks: Clocks::default(),
        seen: HashSet::new(),
        acquired: HashSet::new(),
        fenced: false,
        released: HashMap::new(),
    };
    let mut warps = Vec::new();
    let mut fault = None;
    for number in schedule.blocks(geometry.blocks() as u32) {
        let [x, y, _] = geometry.grid;
        machine.block_number = number;
        machine.block = [number % x, number / x % y, number / x / y];
        machine.block_start = machine.tick();
        machine.shared.reset();
        machine.clocks = Clocks::default();
        machine.seen.clear();
        machine.acquired.clear();
        machine.fenced = false;
        machine.counters.blocks += 1;
        if let Err(stopped) = run_block(&mut machine, &mut warps, schedule.warps(number)) {
            let [x, y, _] = geometry.block;
            let thread = stopped.thread;
            fault = Some(Box::new(Fault {
                kernel: program.name.clone(),
                line: stopped.line,
                text: text.lines().nth(stopped.line as usize - 1).unwrap_or("").trim().to_string(),
                block: machine.block,
                thread: [thread % x, thread / x % y, thread / x / y],
                problem: stopped.problem.in_variable(SHARED, &program.shared_names),
            }));
            break;
        }
    }
    let Machine { mut counters, meters, memory, now, .. } = machine;
    for (number, meter) in (0..).zip(meters) {
        if let (Some(region), Some(traffic)) = (memory.region(number), meter.finish()) {
            counters.global.add(&traffic);
            counters.buffers.push(BufferTraffic { name: region.name().to_string(), traffic });
        }
    }
    (fault.map_or(Ok(counters), Err), now + 1)
}
