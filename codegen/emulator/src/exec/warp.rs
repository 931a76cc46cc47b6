//! A warp: its lanes stand at one or several places of the code.
//!
//! Lanes that stand at the same instruction form a group and execute it together. The group with the smallest program counter
//! runs; when it reaches another, they become one. Lanes that must wait for others of their warp are parked.

use super::machine::{Machine, Stop, stop};
use super::registers::{Registers, choose};
use crate::error::Problem;
use crate::lanes::{LANES, Mask};
use crate::memory::race::Clocks;
use crate::memory::region::Region;
use crate::program::{Inst, Op, Test};

/// Lanes at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Where.
    pub pc: u32,
    /// Which.
    pub mask: Mask,
}

/// Why a warp stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paused {
    /// All lanes are through.
    Done,
    /// It waits at a barrier of the block.
    Barrier,
    /// Its turn is over.
    Turn,
}

/// A warp.
#[derive(Debug)]
pub struct Warp {
    pub registers: Registers,
    /// Runnable groups by ascending pc.
    pub groups: Vec<Group>,
    /// Lanes that wait for other lanes of the warp, with the member mask they wait for.
    pub parked: Vec<(Group, Mask)>,
    /// Lanes that wait at a barrier of the block.
    pub at_barrier: Option<Group>,
    /// Lanes that have not exited.
    pub alive: Mask,
    /// Number of lane 0 in the block.
    pub first_thread: u32,
    pub clocks: Clocks,
    pub local: Region,
    pub copies: super::async_copy::Copies,
    /// The instruction that runs, for messages.
    pub pc: u32,
}

/// What to do after an instruction that is more than a step ahead.
pub enum Next {
    /// The next instruction.
    Step,
    /// Look at the groups again: the current one was put back, parked or is gone.
    Regroup,
}

impl Warp {
    /// A warp of `lanes` lanes from thread `first_thread` on.
    pub fn new(machine: &Machine) -> Self {
        let local = machine.program.local_bytes as usize * LANES;
        Self {
            registers: Registers::new(machine.program),
            groups: Vec::new(),
            parked: Vec::new(),
            at_barrier: None,
            alive: 0,
            first_thread: 0,
            clocks: Clocks::default(),
            local: Region::fresh("local memory".to_string(), local),
            copies: Default::default(),
            pc: 0,
        }
    }

    /// Back to the beginning, as a warp of the block that runs now.
    pub fn start(&mut self, machine: &Machine, first_thread: u32, lanes: u32) {
        self.alive = if lanes == 32 { Mask::MAX } else { (1 << lanes) - 1 };
        self.groups.clear();
        self.groups.push(Group { pc: 0, mask: self.alive });
        self.parked.clear();
        self.at_barrier = None;
        self.first_thread = first_thread;
        self.clocks = Clocks::default();
        if machine.program.local_bytes > 0 {
            self.local.reset();
        }
        self.copies = Default::default();
        self.registers.place(machine.program, &machine.geometry, machine.block, first_thread);
    }

    /// Puts lanes back among the runnable groups.
    pub fn put(&mut self, group: Group) {
        if group.mask == 0 {
            return;
        }
        match self.groups.binary_search_by_key(&group.pc, |group| group.pc) {
            Ok(at) => self.groups[at].mask |= group.mask,
            Err(at) => self.groups.insert(at, group),
        }
    }

    /// Runs until it must wait, is through, or has executed `turn` instructions.
    pub fn run(&mut self, machine: &mut Machine, turn: u64) -> Result<Paused, Stop> {
        let mut turn = turn;
        let code = machine.program.code.as_slice();
        'groups: loop {
            if self.groups.is_empty() {
                return self.nothing_runnable();
            }
            let Group { mut pc, mut mask } = self.groups.remove(0);
            let mut limit = self.groups.first().map_or(u32::MAX, |group| group.pc);
            loop {
                if pc == limit {
                    mask |= self.groups.remove(0).mask;
                    limit = self.groups.first().map_or(u32::MAX, |group| group.pc);
                }
                if turn == 0 {
                    self.put(Group { pc, mask });
                    return Ok(Paused::Turn);
                }
                turn -= 1;
                let inst = &code[pc as usize];
                let active = match inst.guard {
                    None => mask,
                    Some(guard) => mask & self.registers.predicate(guard),
                };
                self.pc = pc;
                if machine.left == 0 {
                    return Err(stop(mask.trailing_zeros() as usize, Problem::Endless { budget: machine.budget }));
                }
                machine.left -= 1;
                machine.counters.warp_instructions += 1;
                machine.counters.lane_instructions += u64::from(active.count_ones());
                if self.simple(inst, active) {
                    pc += 1;
                    continue;
                }
                if let Op::Branch { target } = inst.op {
                    if active == 0 {
                        pc += 1;
                    } else if active == mask && target <= limit {
                        pc = target;
                    } else {
                        self.put(Group { pc: target, mask: active });
                        self.put(Group { pc: pc + 1, mask: mask & !active });
                        continue 'groups;
                    }
                    continue;
                }
                if active == 0 {
                    pc += 1;
                    continue;
                }
                match self.other(machine, inst, Group { pc, mask }, active)? {
                    Next::Step => pc += 1,
                    Next::Regroup => continue 'groups,
                }
            }
        }
    }

    /// Instructions that change registers only. Whether it was one.
    #[inline]
    fn simple(&mut self, inst: &Inst, mask: Mask) -> bool {
        let r = &mut self.registers;
        // A function of registers into the active lanes of a register.
        macro_rules! apply {
            ($set:ident($to:expr), $f:expr, $($bank:ident($slot:expr)),+) => {{
                let value = $f($(r.$bank($slot)),+);
                r.$set($to, &value, mask);
            }};
        }
        match inst.op {
            Op::W1 { f, to, a } => apply!(set_word(to), f, word(a)),
            Op::W2 { f, to, a, b } => apply!(set_word(to), f, word(a), word(b)),
            Op::W3 { f, to, a, b, c } => apply!(set_word(to), f, word(a), word(b), word(c)),
            Op::W4 { f, to, a, b, c, d } => apply!(set_word(to), f, word(a), word(b), word(c), word(d)),
            Op::L1 { f, to, a } => apply!(set_long(to), f, long(a)),
            Op::L2 { f, to, a, b } => apply!(set_long(to), f, long(a), long(b)),
            Op::L3 { f, to, a, b, c } => apply!(set_long(to), f, long(a), long(b), long(c)),
            Op::LwL { f, to, a, b } => apply!(set_long(to), f, long(a), word(b)),
            Op::LwwL { f, to, a, b, c } => apply!(set_long(to), f, long(a), word(b), word(c)),
            Op::LlwwL { f, to, a, b, c, d } => apply!(set_long(to), f, long(a), long(b), word(c), word(d)),
            Op::WL { f, to, a } => apply!(set_long(to), f, word(a)),
            Op::WwL { f, to, a, b } => apply!(set_long(to), f, word(a), word(b)),
            Op::WwlL { f, to, a, b, c } => apply!(set_long(to), f, word(a), word(b), long(c)),
            Op::LW { f, to, a } => apply!(set_word(to), f, long(a)),
            Op::MoveWord { to, a } => {
                let value = *r.word(a);
                r.set_word(to, &value, mask);
            }
            Op::MoveLong { to, a } => {
                let value = *r.long(a);
                r.set_long(to, &value, mask);
            }
            Op::SelectWord { to, a, b, predicate } => {
                let value = choose(r.predicate(predicate), r.word(a), r.word(b));
                r.set_word(to, &value, mask);
            }
            Op::SelectLong { to, a, b, predicate } => {
                let value = choose(r.predicate(predicate), r.long(a), r.long(b));
                r.set_long(to, &value, mask);
            }
            Op::Set { test, to, not, combine } => {
                let value = match test {
                    Test::Words(f, a, b) => f(r.word(a), r.word(b)),
                    Test::Longs(f, a, b) => f(r.long(a), r.long(b)),
                };
                let (mut yes, mut no) = (value, !value);
                if let Some((f, slot, negated)) = combine {
                    let other = r.predicate((slot, negated));
                    (yes, no) = (f(value, other), f(!value, other));
                }
                if let Some(to) = to {
                    r.set_predicate(to, yes, mask);
                }
                if let Some(not) = not {
                    r.set_predicate(not, no, mask);
                }
            }
            Op::Predicates { f, to, a, b } => {
                let value = f(r.predicate(a), r.predicate(b));
                r.set_predicate(to, value, mask);
            }
            Op::PredicateConstant { to, value } => r.set_predicate(to, if value { Mask::MAX } else { 0 }, mask),
            _ => return false,
        }
        true
    }

    /// Instructions that touch more than registers, or are rare. Some lane is active.
    fn other(&mut self, machine: &mut Machine, inst: &Inst, group: Group, active: Mask) -> Result<Next, Stop> {
        match &inst.op {
            Op::Load(op) => self.load(machine, op, active)?,
            Op::Store(op) => self.store(machine, op, active)?,
            Op::Atomic(op) => self.atomic(machine, op, active)?,
            Op::AsyncCopy(op) => self.async_copy(machine, op, active)?,
            Op::AsyncCommit => self.copies.commit(active),
            Op::AsyncWait { pending } => self.async_wait(machine, *pending, active)?,
            Op::Fence { wide } => {
                if *wide {
                    machine.fenced = true;
                    machine.seen.extend(machine.acquired.drain());
                }
            }
            Op::Warp { op, members } => return self.collective(machine, op, *members, group, active),
            Op::Barrier(_) => {
                // Lanes that the guard leaves out go on.
                self.put(Group { pc: group.pc + 1, mask: group.mask & !active });
                return self.barrier(Group { pc: group.pc, mask: active });
            }
            Op::BranchTable { index, targets } => {
                self.put(Group { pc: group.pc + 1, mask: group.mask & !active });
                for lane in crate::lanes::each(active) {
                    let index = self.registers.word(*index)[lane];
                    let Some(&target) = targets.get(index as usize) else {
                        return Err(stop(lane, Problem::BranchIndex { index, targets: targets.len() }));
                    };
                    self.put(Group { pc: target, mask: 1 << lane });
                }
                return Ok(Next::Regroup);
            }
            Op::Exit => {
                self.alive &= !active;
                self.put(Group { pc: group.pc + 1, mask: group.mask & !active });
                // Who waits for these lanes waits no longer.
                for (parked, _) in std::mem::take(&mut self.parked) {
                    self.put(parked);
                }
                return Ok(Next::Regroup);
            }
            Op::Trap => return Err(stop(active.trailing_zeros() as usize, Problem::Trap)),
            Op::Nothing => {}
            op => self.rare(op, group.mask, active),
        }
        Ok(Next::Step)
    }

    fn nothing_runnable(&mut self) -> Result<Paused, Stop> {
        if self.alive == 0 {
            return Ok(Paused::Done);
        }
        if let Some(&(group, members)) = self.parked.first() {
            self.pc = group.pc;
            let missing = members & self.alive & !group.mask;
            let lane = group.mask.trailing_zeros() as usize;
            return Err(stop(lane, Problem::MissingLanes { mask: members, missing }));
        }
        match self.at_barrier {
            Some(group) if group.mask == self.alive => Ok(Paused::Barrier),
            Some(group) => {
                self.pc = group.pc;
                let missing = self.alive & !group.mask;
                let lane = group.mask.trailing_zeros() as usize;
                Err(stop(lane, Problem::DivergentBarrier { waiting: group.mask, missing }))
            }
            // Every living lane is runnable, parked or at a barrier.
            None => Ok(Paused::Done),
        }
    }
}
