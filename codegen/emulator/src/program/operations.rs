//! What instructions that touch more than registers need to know: accesses, atomics, copies, warp operations, barriers.

use super::{Address, Reg, Slot};
use crate::parse::Space;

/// A load or a store.
#[derive(Debug)]
pub struct MemoryOp {
    /// State space.
    pub space: Space,
    /// Address.
    pub address: Address,
    /// Bytes of one element: 1, 2, 4 or 8.
    pub width: u8,
    /// Sign bits fill the register (`ld.s8`).
    pub signed: bool,
    /// The register has 16 bits.
    pub narrow: bool,
    /// Through the read-only cache.
    pub cached: bool,
    /// `.volatile`, `.relaxed`, `.acquire`, `.release`: no race against others of its like.
    pub strong: bool,
    /// Registers, one per element; `None` is `_`.
    pub registers: Vec<Option<Reg>>,
}

/// What an atomic does with the old value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomic {
    /// Sum of integers.
    Add,
    /// Sum of floats of its width.
    AddFloat,
    /// Sum of f16, one or two.
    AddHalf,
    /// Sum of bf16, one or two.
    AddBrain,
    /// Smaller, unsigned.
    Min,
    /// Larger, unsigned.
    Max,
    /// Smaller, signed.
    MinSigned,
    /// Larger, signed.
    MaxSigned,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
    /// The operand.
    Exchange,
    /// The second operand, if the old value equals the first.
    Compare,
    /// One more, zero beyond the operand.
    Increment,
    /// One less, the operand below zero and beyond the operand.
    Decrement,
}

/// An atomic or a reduction (`red`, without a result).
#[derive(Debug)]
pub struct AtomicOp {
    /// State space.
    pub space: Space,
    /// Address.
    pub address: Address,
    /// What it does.
    pub operation: Atomic,
    /// Bytes: 2, 4 or 8.
    pub width: u8,
    /// Result.
    pub result: Option<Reg>,
    /// Operand.
    pub operand: Reg,
    /// Second operand of `cas`.
    pub second: Option<Reg>,
}

/// A shuffle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    /// From a lane so much lower.
    Up,
    /// From a lane so much higher.
    Down,
    /// From the lane of exclusive or.
    Butterfly,
    /// From that lane.
    Index,
}

/// A vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    /// Whether all.
    All,
    /// Whether any.
    Any,
    /// Whether all say the same.
    Uniform,
}

/// A reduction over lanes, or over a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Sum.
    Add,
    /// Smaller, unsigned.
    Min,
    /// Larger, unsigned.
    Max,
    /// Smaller, signed.
    MinSigned,
    /// Larger, signed.
    MaxSigned,
    /// And.
    And,
    /// Or.
    Or,
    /// Exclusive or.
    Xor,
}

/// An operation in which the lanes of a member mask take part together.
#[derive(Debug)]
pub enum WarpOp {
    /// `bar.warp.sync`
    Sync,
    /// `shfl.sync`
    Shuffle {
        /// Which lane is read.
        mode: Shuffle,
        /// Result.
        to: Slot,
        /// Whether the source was in range.
        valid: Option<Slot>,
        /// Value.
        from: Slot,
        /// Lane or distance.
        lane: Slot,
        /// Segment and clamp.
        clamp: Slot,
    },
    /// `vote.sync`
    Vote {
        /// What is asked.
        vote: Vote,
        /// Result.
        to: Slot,
        /// Predicate, and whether it is negated.
        from: (Slot, bool),
    },
    /// `vote.sync.ballot`
    Ballot {
        /// Result.
        to: Slot,
        /// Predicate, and whether it is negated.
        from: (Slot, bool),
    },
    /// `match.any.sync`
    MatchAny {
        /// Result.
        to: Slot,
        /// Value.
        from: Reg,
    },
    /// `match.all.sync`
    MatchAll {
        /// Result.
        to: Slot,
        /// Whether all agree.
        agree: Option<Slot>,
        /// Value.
        from: Reg,
    },
    /// `redux.sync`
    Reduce {
        /// How.
        reduction: Reduction,
        /// Result.
        to: Slot,
        /// Value.
        from: Slot,
    },
    /// `ldmatrix`: 8x8 matrices of 16-bit elements from rows whose addresses the lanes give.
    LoadMatrix {
        /// A register per matrix.
        to: Vec<Slot>,
        /// Address of a row.
        address: Address,
        /// Whether each matrix is transposed.
        transposed: bool,
    },
    /// `mma.sync` of 16-bit floats into f32.
    Multiply(Box<Multiply>),
}

/// `mma.sync.m16n8k8` and `m16n8k16`: fragments by register.
#[derive(Debug)]
pub struct Multiply {
    /// The depth: 8 or 16.
    pub depth: usize,
    /// bf16 rather than f16.
    pub brain: bool,
    /// 16 x 8 of f32.
    pub d: Vec<Slot>,
    /// 16 x depth.
    pub a: Vec<Slot>,
    /// depth x 8.
    pub b: Vec<Slot>,
    /// 16 x 8 of f32.
    pub c: Vec<Slot>,
}

/// A barrier of a block.
#[derive(Debug)]
pub struct BarrierOp {
    /// Which of the sixteen.
    pub id: Reg,
    /// Threads that take part; all if none.
    pub threads: Option<Reg>,
    /// A reduction of predicates over the block.
    pub reduce: Option<BarrierReduce>,
}

/// `bar.red`
#[derive(Debug)]
pub enum BarrierReduce {
    /// How many hold.
    Count {
        /// Result.
        to: Slot,
        /// Predicate, and whether it is negated.
        from: (Slot, bool),
    },
    /// Whether all hold.
    All {
        /// Result.
        to: Slot,
        /// Predicate, and whether it is negated.
        from: (Slot, bool),
    },
    /// Whether any holds.
    Any {
        /// Result.
        to: Slot,
        /// Predicate, and whether it is negated.
        from: (Slot, bool),
    },
}

/// `cp.async`
#[derive(Debug)]
pub struct AsyncCopy {
    /// Address in shared memory.
    pub target: Address,
    /// Address in global memory.
    pub source: Address,
    /// Bytes: 4, 8 or 16.
    pub bytes: u8,
    /// How many of them are read; the rest is zero.
    pub read: Option<Slot>,
    /// Predicate that makes all of it zero (`ignore-src`).
    pub ignore: Option<(Slot, bool)>,
}
