//! The syntax tree: what the text says, before names and types are resolved.

/// A whole module.
#[derive(Debug, Default)]
pub struct Module {
    /// `sm_80`, as the text says it.
    pub target: String,
    /// Variables outside of kernels: `.global`, `.const` and `.shared`.
    pub variables: Vec<Variable>,
    /// The kernels, in the order of the text.
    pub kernels: Vec<Kernel>,
}

/// State space of a variable or an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Device memory.
    Global,
    /// Constant memory.
    Const,
    /// Memory of a block.
    Shared,
    /// Memory of a thread.
    Local,
    /// Arguments of the kernel.
    Param,
    /// Any of global, shared and local: the address says which.
    Generic,
}

/// A variable with a place in memory.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Where it lives.
    pub space: Space,
    /// Its name.
    pub name: String,
    /// Bytes; zero for `.extern .shared x[]`.
    pub bytes: u64,
    /// Alignment in bytes.
    pub align: u64,
    /// Its first bytes, if the text gives them; the rest is zero.
    pub initial: Vec<u8>,
    /// Dynamic shared memory: the size comes with the launch.
    pub external: bool,
    /// Line of the declaration.
    pub line: u32,
}

/// A kernel (`.entry`).
#[derive(Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Line of its name.
    pub line: u32,
    /// Parameters in order.
    pub parameters: Vec<Variable>,
    /// `.maxntid` or `.reqntid`: the product of its numbers.
    pub max_threads: Option<u32>,
    /// Whether `max_threads` must be met exactly (`.reqntid`).
    pub exact_threads: bool,
    /// The body.
    pub body: Vec<Statement>,
}

/// A statement of a body.
#[derive(Debug)]
pub enum Statement {
    /// `.reg .b32 %r<10>;` or `.reg .pred p, q;`.
    Registers {
        /// Type without its dot: `b32`.
        kind: String,
        /// Names; with a count, names are the stem and a number below the count.
        names: Vec<(String, Option<u32>)>,
        /// Line.
        line: u32,
    },
    /// A shared or local variable.
    Variable(Variable),
    /// `$L__BB0_1:`.
    Label {
        /// Its name.
        name: String,
        /// Line.
        line: u32,
    },
    /// An instruction.
    Instruction(Instruction),
    /// `{`: names declared until the matching `Close` are its own.
    Open,
    /// `}`.
    Close,
    /// `$L__tab: .branchtargets A, B;`: the targets of a `brx.idx`.
    Targets {
        /// Name of the list.
        name: String,
        /// Labels.
        labels: Vec<String>,
        /// Line.
        line: u32,
    },
}

/// An instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Line.
    pub line: u32,
    /// `@%p1` or `@!%p1`: the register and whether it is negated.
    pub guard: Option<(String, bool)>,
    /// Opcode with modifiers, split at dots: `["ld", "global", "u32"]`.
    pub opcode: Vec<String>,
    /// Operands in order.
    pub operands: Vec<Operand>,
}

/// An operand as it is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register, variable, label, or special register.
    Name(String),
    /// `!%p1`.
    Not(String),
    /// An integer, in 64 bits of two's complement.
    Integer(u64),
    /// The bits of an f32.
    Single(u32),
    /// The bits of an f64.
    Double(u64),
    /// `[name+8]`: base and offset. `_` in base stands for none (an absolute address).
    Address(Option<String>, i64),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `%r1|%p1`: a result and a predicate.
    Pair(Box<Operand>, Box<Operand>),
}
