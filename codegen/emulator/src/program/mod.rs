//! A kernel ready to run: names resolved to slots, opcodes to functions.

mod operations;

pub use operations::{
    AsyncCopy, Atomic, AtomicOp, BarrierOp, BarrierReduce, MemoryOp, Multiply, Reduction, Shuffle, Vote, WarpOp,
};

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
