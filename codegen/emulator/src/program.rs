//! A kernel ready to run: names resolved to slots, opcodes to functions.

use crate::alu::compare::{LongTest, WordTest};
use crate::alu::convert::Conversion;
use crate::lanes::{Long, Mask, Word};
use crate::parse::Space;

/// Number of a register in its bank: words, longs or predicates.
pub type Slot = u16;

/// A kernel.
#[derive(Debug)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Its parameters.
    pub parameters: Vec<Parameter>,
    /// Bytes of all parameters.
    pub parameter_bytes: usize,
    /// The instructions; the last one always ends the thread.
    pub code: Vec<Inst>,
    /// Sizes of the three banks.
    pub banks: Banks,
    /// Registers of 32 bits that hold a constant.
    pub word_constants: Vec<(Slot, u32)>,
    /// Registers of 64 bits that hold a constant.
    pub long_constants: Vec<(Slot, u64)>,
    /// Registers that hold where a thread is.
    pub specials: Vec<(Slot, Special)>,
    /// Bytes of shared memory that the kernel declares itself; dynamic memory begins there.
    pub shared_bytes: u64,
    /// Shared variables by offset, for messages.
    pub shared_names: Vec<(u64, String)>,
    /// Bytes of local memory of a thread.
    pub local_bytes: u64,
    /// Most threads of a block, and whether it must be exactly so many.
    pub max_threads: Option<(u32, bool)>,
}

/// Registers of each bank.
#[derive(Clone, Copy, Debug, Default)]
pub struct Banks {
    /// Up to 32 bits.
    pub words: usize,
    /// 64 bits.
    pub longs: usize,
    /// Predicates.
    pub predicates: usize,
}

/// A parameter of a kernel.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// First byte in the parameter memory.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What a special register says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// `%tid`
    Thread(usize),
    /// `%ntid`
    Threads(usize),
    /// `%ctaid`
    Block(usize),
    /// `%nctaid`
    Blocks(usize),
    /// `%laneid`
    Lane,
    /// `%warpid`
    Warp,
    /// `%nwarpid`
    Warps,
    /// `%lanemask_eq`, `_lt`, `_le`, `_gt`, `_ge`: lanes lower than the own one, itself, higher ones.
    LaneMask {
        /// Whether the lower ones are in.
        lower: bool,
        /// Whether the lane itself is.
        own: bool,
        /// Whether the higher ones are.
        higher: bool,
    },
    /// `%dynamic_smem_size`
    DynamicShared,
    /// `%total_smem_size`
    TotalShared,
}

/// An instruction.
#[derive(Debug)]
pub struct Inst {
    /// What it does.
    pub op: Op,
    /// Predicate that must hold, and whether it is negated.
    pub guard: Option<(Slot, bool)>,
    /// Line of the text.
    pub line: u32,
}

/// A register of one of the two banks of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// Up to 32 bits.
    Word(Slot),
    /// 64 bits.
    Long(Slot),
}

/// An address: a register (or none) and an offset.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// The register.
    pub base: Option<Reg>,
    /// Bytes to add.
    pub offset: i64,
}

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

/// A comparison by bank.
#[derive(Clone, Copy, Debug)]
pub enum Test {
    /// Of words.
    Words(WordTest, Slot, Slot),
    /// Of longs.
    Longs(LongTest, Slot, Slot),
}

/// How the result of a comparison is combined with a predicate, and whether that is negated.
pub type Combine = (fn(Mask, Mask) -> Mask, Slot, bool);

/// What an instruction does. The letters say which banks its function takes and gives: w for words, l for longs.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Op {
    W1 {
        f: fn(&Word) -> Word,
        to: Slot,
        a: Slot,
    },
    W2 {
        f: fn(&Word, &Word) -> Word,
        to: Slot,
        a: Slot,
        b: Slot,
    },
    W3 {
        f: fn(&Word, &Word, &Word) -> Word,
        to: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    W4 {
        f: fn(&Word, &Word, &Word, &Word) -> Word,
        to: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        d: Slot,
    },
    L1 {
        f: fn(&Long) -> Long,
        to: Slot,
        a: Slot,
    },
    L2 {
        f: fn(&Long, &Long) -> Long,
        to: Slot,
        a: Slot,
        b: Slot,
    },
    L3 {
        f: fn(&Long, &Long, &Long) -> Long,
        to: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    LwL {
        f: fn(&Long, &Word) -> Long,
        to: Slot,
        a: Slot,
        b: Slot,
    },
    LwwL {
        f: fn(&Long, &Word, &Word) -> Long,
        to: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    LlwwL {
        f: fn(&Long, &Long, &Word, &Word) -> Long,
        to: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        d: Slot,
    },
    WL {
        f: fn(&Word) -> Long,
        to: Slot,
        a: Slot,
    },
    WwL {
        f: fn(&Word, &Word) -> Long,
        to: Slot,
        a: Slot,
        b: Slot,
    },
    WwlL {
        f: fn(&Word, &Word, &Long) -> Long,
        to: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    LW {
        f: fn(&Long) -> Word,
        to: Slot,
        a: Slot,
    },
    /// `lop3`
    Table {
        to: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        table: u8,
    },
    MoveWord {
        to: Slot,
        a: Slot,
    },
    MoveLong {
        to: Slot,
        a: Slot,
    },
    /// `mov.b64 %rd, {%r1, %r2}`: parts of equal width, the lowest first.
    Pack {
        to: Reg,
        parts: Vec<Slot>,
        bits: u32,
    },
    /// `mov.b64 {%r1, %r2}, %rd`; `None` is `_`.
    Unpack {
        parts: Vec<Option<Slot>>,
        from: Reg,
        bits: u32,
    },
    /// Any conversion, to a register of `width` bits; the fast ones are W1, WL and LW.
    Convert {
        conversion: Box<Conversion>,
        width: u32,
        to: Reg,
        a: Reg,
    },
    /// `cvt.rn.f16x2.f32`: a to the upper half, b to the lower.
    ConvertPair {
        conversion: Box<Conversion>,
        to: Slot,
        a: Slot,
        b: Slot,
    },
    /// `setp`: the test, combined with a predicate, to `to`; its negation, so combined, to `not`.
    Set {
        test: Test,
        to: Option<Slot>,
        not: Option<Slot>,
        combine: Option<Combine>,
    },
    SelectWord {
        to: Slot,
        a: Slot,
        b: Slot,
        predicate: (Slot, bool),
    },
    SelectLong {
        to: Slot,
        a: Slot,
        b: Slot,
        predicate: (Slot, bool),
    },
    /// Logic of predicates.
    Predicates {
        f: fn(Mask, Mask) -> Mask,
        to: Slot,
        a: (Slot, bool),
        b: (Slot, bool),
    },
    /// `mov.pred` with a constant.
    PredicateConstant {
        to: Slot,
        value: bool,
    },
    ActiveMask {
        to: Slot,
    },
    /// `isspacep`
    IsSpace {
        to: Slot,
        a: Slot,
        space: Space,
    },
    /// `cvta` and `cvta.to` of shared and local memory: adds the base of the window, or takes it off.
    Window {
        to: Reg,
        a: Reg,
        delta: u64,
    },
    Load(Box<MemoryOp>),
    Store(Box<MemoryOp>),
    Atomic(Box<AtomicOp>),
    AsyncCopy(Box<AsyncCopy>),
    AsyncCommit,
    /// Waits until at most so many groups are in flight; `None` waits for all copies.
    AsyncWait {
        pending: Option<u32>,
    },
    /// `membar`, `fence`; whether it reaches beyond the block.
    Fence {
        wide: bool,
    },
    Warp {
        op: Box<WarpOp>,
        members: Slot,
    },
    Barrier(Box<BarrierOp>),
    Branch {
        target: u32,
    },
    /// `brx.idx`
    BranchTable {
        index: Slot,
        targets: Box<[u32]>,
    },
    Exit,
    Trap,
    /// Hints without effect: `prefetch`, `nanosleep`, `discard`.
    Nothing,
}
