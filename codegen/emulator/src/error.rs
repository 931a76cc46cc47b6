//! What can be wrong: with the text of a module, with a launch, and with what a kernel does.

use std::fmt;

use thiserror::Error;

/// The text is no PTX, or holds something that the emulator doesn't know.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("PTX line {line}: {problem}")]
pub struct ParseError {
    /// Line of the text, from 1.
    pub line: u32,
    /// What was found and what was expected.
    pub problem: String,
}

impl ParseError {
    pub(crate) fn new(line: u32, problem: impl Into<String>) -> Self {
        Self { line, problem: problem.into() }
    }
}

/// Why the device refused a request or stopped a kernel.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// The text of a module.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// A kernel did what it must not do.
    #[error(transparent)]
    Fault(#[from] Box<Fault>),
    /// The module has no such kernel.
    #[error("the module has no kernel `{name}`; it has {}", list(.known))]
    UnknownKernel {
        /// Name asked for.
        name: String,
        /// Names there are.
        known: Vec<String>,
    },
    /// The buffer was freed, or is one of another device.
    #[error("buffer number {number} is unknown to this device; it was freed, or belongs to another device")]
    UnknownBuffer {
        /// Its number.
        number: u32,
    },
    /// A copy that reaches beyond the end of its buffer.
    #[error(
        "copy of {bytes} bytes at offset {offset} does not fit into buffer `{buffer}` of {size} bytes; check offset and length"
    )]
    CopyOutOfBounds {
        /// Name of the buffer.
        buffer: String,
        /// Its bytes.
        size: u64,
        /// First byte of the copy.
        offset: u64,
        /// Bytes of the copy.
        bytes: u64,
    },
    /// A buffer whose length is no whole number of elements.
    #[error("buffer `{buffer}` of {size} bytes is no whole number of elements of {element} bytes")]
    ElementSize {
        /// Name of the buffer.
        buffer: String,
        /// Its bytes.
        size: u64,
        /// Bytes of an element.
        element: usize,
    },
    /// Number of arguments.
    #[error("kernel `{kernel}` takes {expected} arguments, {found} were given")]
    ArgumentCount {
        /// Name of the kernel.
        kernel: String,
        /// Parameters of the kernel.
        expected: usize,
        /// Arguments of the launch.
        found: usize,
    },
    /// Size of one argument.
    #[error("argument {index} of kernel `{kernel}` has {expected} bytes, the launch gives {found}")]
    ArgumentSize {
        /// Name of the kernel.
        kernel: String,
        /// Index of the argument, from 0.
        index: usize,
        /// Bytes of the parameter.
        expected: u64,
        /// Bytes of the argument.
        found: u64,
    },
    /// Grid, block or shared memory that no device takes.
    #[error("launch of kernel `{kernel}`: {problem}")]
    Launch {
        /// Name of the kernel.
        kernel: String,
        /// What was asked for and what is possible.
        problem: String,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_string() } else { names.join(", ") }
}

/// A kernel was stopped: where, and for what.
#[derive(Clone, Debug, Error)]
#[error(
    "kernel `{kernel}`, PTX line {line} `{text}`, block ({}, {}, {}), thread ({}, {}, {}): {problem}",
    .block[0], .block[1], .block[2], .thread[0], .thread[1], .thread[2]
)]
pub struct Fault {
    /// Name of the kernel.
    pub kernel: String,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// That line.
    pub text: String,
    /// Block of the thread.
    pub block: [u32; 3],
    /// The (first) thread that did it.
    pub thread: [u32; 3],
    /// What it did.
    pub problem: Problem,
}

/// Whether an access reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads.
    Read,
    /// It writes.
    Write,
    /// It does both (an atomic).
    Update,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "reads",
            Self::Write => "writes",
            Self::Update => "updates",
        })
    }
}

/// Who did the earlier access of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other {
    /// What it did.
    pub access: Access,
    /// Linear number of its block.
    pub block: u32,
    /// Linear number of its thread in the block.
    pub thread: u32,
    /// Whether it is of the same warp as the later one.
    pub same_warp: bool,
    /// Whether it is of the same block as the later one.
    pub same_block: bool,
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { access, block, thread, .. } = self;
        if self.same_warp {
            write!(
                f,
                "thread {thread} of the same warp {access} it too, and no __syncwarp or barrier lies between them"
            )
        } else if self.same_block {
            write!(f, "thread {thread} of another warp {access} it too, and no barrier lies between them")
        } else {
            write!(
                f,
                "thread {thread} of block {block} {access} it too; blocks of a launch have no order \
                 (use an atomic, another launch, or a fence and a counter)"
            )
        }
    }
}

/// What a kernel did that it must not do.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Problem {
    /// Beyond the end, or before the beginning.
    #[error("{access} {bytes} bytes at offset {offset} of {place}, which has {size} bytes: out of bounds")]
    OutOfBounds {
        /// Read or write.
        access: Access,
        /// Name of the buffer or memory.
        place: String,
        /// First byte.
        offset: i64,
        /// Bytes of the access.
        bytes: u64,
        /// Bytes there are.
        size: u64,
    },
    /// An address that belongs to nothing.
    #[error(
        "{access} {bytes} bytes at address {address:#x}, which belongs to no buffer; is the pointer null, freed, or not a pointer?"
    )]
    NoBuffer {
        /// Read or write.
        access: Access,
        /// Address.
        address: u64,
        /// Bytes of the access.
        bytes: u64,
    },
    /// Address is no multiple of the access.
    #[error("{access} {bytes} bytes at offset {offset} of {place}: the address must be a multiple of {bytes}")]
    Misaligned {
        /// Read or write.
        access: Access,
        /// Name of the buffer or memory.
        place: String,
        /// First byte.
        offset: i64,
        /// Bytes of the access.
        bytes: u64,
    },
    /// Read of what nobody wrote.
    #[error("{access} {bytes} bytes at offset {offset} of {place}, of which byte {byte} was never written{hint}")]
    Uninitialised {
        /// Read or update.
        access: Access,
        /// Name of the buffer or memory.
        place: String,
        /// First byte.
        offset: i64,
        /// Bytes of the access.
        bytes: u64,
        /// First byte of the place that is not there.
        byte: u64,
        /// What else it may be.
        hint: &'static str,
    },
    /// Write to what the host declared read-only, or to constants.
    #[error("{access} {bytes} bytes at offset {offset} of {place}, which is read-only")]
    ReadOnly {
        /// Write or update.
        access: Access,
        /// Name of the buffer.
        place: String,
        /// First byte.
        offset: i64,
        /// Bytes of the access.
        bytes: u64,
    },
    /// Two threads, no order, and one of them writes.
    #[error("{access} {bytes} bytes at offset {offset} of {place}: race, {other}")]
    Race {
        /// What the later one does.
        access: Access,
        /// Name of the buffer or memory.
        place: String,
        /// First byte.
        offset: i64,
        /// Bytes of the access.
        bytes: u64,
        /// The earlier one.
        other: Other,
    },
    /// `ld.global.nc` of what the same launch writes.
    #[error(
        "reads {bytes} bytes at offset {offset} of {place} through the read-only cache (ld.global.nc), but this launch writes it; \
         take `const __restrict__` off the pointer"
    )]
    CachedRead {
        /// Name of the buffer.
        place: String,
        /// First byte.
        offset: i64,
        /// Bytes of the access.
        bytes: u64,
    },
    /// Lanes of a warp stand at different barriers, or some never come.
    #[error("divergent barrier: lanes {waiting:#010x} of the warp wait here, lanes {missing:#010x} never do")]
    DivergentBarrier {
        /// Lanes that wait.
        waiting: u32,
        /// Living lanes that don't.
        missing: u32,
    },
    /// Warps of a block wait at different barriers, or fewer come than the barrier counts.
    #[error(
        "divergent barrier: {arrived} threads of the block wait here, {expected} are expected; another warp waits at PTX line {other}"
    )]
    UnequalBarrier {
        /// Threads that wait here.
        arrived: u32,
        /// Threads that should.
        expected: u32,
        /// Line at which another warp waits; zero if none does.
        other: u32,
    },
    /// A lane executes a warp operation whose member mask it is not in.
    #[error("wrong member mask {mask:#010x}: lane {lane} executes the instruction but is not in its mask")]
    NotInMask {
        /// Mask.
        mask: u32,
        /// Lane.
        lane: u32,
    },
    /// Lanes that the mask names never come.
    #[error("wrong member mask {mask:#010x}: lanes {missing:#010x} are named in it but never come to this instruction")]
    MissingLanes {
        /// Mask.
        mask: u32,
        /// Lanes that don't come.
        missing: u32,
    },
    /// A shuffle from a lane that takes no part.
    #[error("shuffle reads lane {source_lane}, which takes no part in it (mask {mask:#010x})")]
    ShuffleSource {
        /// Lane read.
        source_lane: u32,
        /// Lanes that take part.
        mask: u32,
    },
    /// More instructions than the budget.
    #[error("the launch has executed {budget} warp instructions without an end; is there an endless loop?")]
    Endless {
        /// The budget.
        budget: u64,
    },
    /// `trap` or `brkpt`, or code that ends without `ret`.
    #[error("the kernel stops itself with `trap`")]
    Trap,
    /// `brx.idx` with an index beyond its list.
    #[error("branch table of {targets} targets is read at index {index}")]
    BranchIndex {
        /// Index.
        index: u32,
        /// Length of the list.
        targets: usize,
    },
    /// An operand that must be a multiple or a limit, known only at run time.
    #[error("{0}")]
    Operand(String),
}

impl Problem {
    /// Adds to the place `place` which of `variables` (by ascending offset) is meant.
    pub(crate) fn in_variable(mut self, place: &str, variables: &[(u64, String)]) -> Self {
        if let Self::OutOfBounds { place: found, offset, .. }
        | Self::Misaligned { place: found, offset, .. }
        | Self::Uninitialised { place: found, offset, .. }
        | Self::Race { place: found, offset, .. } = &mut self
            && found == place
            && let Some((start, name)) = variables.iter().rev().find(|(start, _)| (*start).cast_signed() <= *offset)
        {
            *found = format!("{place} (`{name}` begins at {start})");
        }
        self
    }
}
