//! What an emitted kernel is: text, how it is launched, what it takes, and what it moves.

use std::borrow::Cow;
use std::fmt;

/// Type of the elements behind a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// 16 bytes of weights, the width of every load.
    Vector,
    /// binary32.
    F32,
    /// Unsigned 32-bit integer.
    U32,
    /// binary16 or bfloat16, as bits.
    U16,
}

impl Element {
    /// Bytes of one.
    pub const fn size(self) -> usize {
        match self {
            Element::Vector => 16,
            Element::F32 | Element::U32 => 4,
            Element::U16 => 2,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Element::Vector => "uint4",
            Element::F32 => "float",
            Element::U32 => "u32",
            Element::U16 => "u16",
        }
    }
}

/// What a kernel does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads it; no kernel writes it at that time.
    Read,
    /// Writes it and does not read what was there.
    Write,
    /// Reads and writes it.
    ReadWrite,
}

/// Type of one parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParamKind {
    /// Pointer to device memory.
    Buffer(Element, Access),
    /// A 32-bit number.
    U32,
}

/// What the bytes of a call depend on. Of a selection: over all layers that it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Heads that are kept.
    pub heads: u64,
    /// Key/value heads of which rows are made: those of kept heads, or all when the pending rows are flushed.
    pub kv_heads: u64,
    /// Rows of keys that are made, over these heads; as many of values.
    pub made: u64,
    /// Earlier positions whose attention inputs are read again, once for all heads.
    pub late: u64,
    /// Rows of keys that attention reads, over the key/value heads of kept heads; as many of values.
    pub cached: u64,
    /// Neurons that are kept.
    pub neurons: u64,
    /// Of these, neurons whose record is read to the end.
    pub active: u64,
}

/// Bytes of a call: distinct addresses, each counted once however many blocks read it, because repetitions are served by the
/// GPU's second-level cache. A linear function of [`Counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Traffic {
    /// Whatever the counts.
    pub fixed: u64,
    /// Per kept head.
    pub head: u64,
    /// Per key/value head of which rows are made.
    pub kv_head: u64,
    /// Per row of keys that is made.
    pub made: u64,
    /// Per earlier position whose attention input is read.
    pub late: u64,
    /// Per row of keys that is read.
    pub cached: u64,
    /// Per kept neuron.
    pub neuron: u64,
    /// Per neuron that is read to the end.
    pub active: u64,
}

impl Traffic {
    /// A fixed number of bytes.
    pub const fn fixed(bytes: usize) -> Traffic {
        Traffic { fixed: bytes as u64, ..Traffic::NONE }
    }

    /// Nothing.
    pub const NONE: Traffic =
        Traffic { fixed: 0, head: 0, kv_head: 0, made: 0, late: 0, cached: 0, neuron: 0, active: 0 };

    /// Bytes at these counts.
    pub const fn at(&self, counts: &Counts) -> u64 {
        self.fixed
            + self.head * counts.heads
            + self.kv_head * counts.kv_heads
            + self.made * counts.made
            + self.late * counts.late
            + self.cached * counts.cached
            + self.neuron * counts.neurons
            + self.active * counts.active
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.fixed, ""),
            (self.head, " a kept head"),
            (self.kv_head, " a key/value head that is made"),
            (self.made, " a key row made"),
            (self.late, " an earlier position that is filled"),
            (self.cached, " a key row read"),
            (self.neuron, " a kept neuron"),
            (self.active, " an active neuron"),
        ];
        let parts: Vec<String> =
            parts.iter().filter(|(bytes, _)| *bytes > 0).map(|(bytes, per)| format!("{bytes}{per}")).collect();
        match parts.is_empty() {
            true => f.write_str("0"),
            false => f.write_str(&parts.join(" + ")),
        }
    }
}

/// One parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in the text.
    pub name: Cow<'static, str>,
    /// Its type.
    pub kind: ParamKind,
    /// Bytes that a call reads and writes there.
    pub traffic: Traffic,
    /// Whether these are weights: read once, in 16-byte loads.
    pub weights: bool,
}

impl Param {
    /// Weights, read once by 16 bytes at a time.
    pub(crate) const fn weights(name: &'static str, traffic: Traffic) -> Param {
        Param {
            name: Cow::Borrowed(name),
            kind: ParamKind::Buffer(Element::Vector, Access::Read),
            traffic,
            weights: true,
        }
    }

    pub(crate) const fn buffer(name: &'static str, element: Element, access: Access, traffic: Traffic) -> Param {
        Param { name: Cow::Borrowed(name), kind: ParamKind::Buffer(element, access), traffic, weights: false }
    }

    /// `[n]` of `f32` or `u32` that is read.
    pub(crate) const fn read(name: &'static str, element: Element, n: usize) -> Param {
        Param::buffer(name, element, Access::Read, Traffic::fixed(n * element.size()))
    }

    /// `[n]` of `f32` or `u32` that is written.
    pub(crate) const fn written(name: &'static str, element: Element, n: usize) -> Param {
        Param::buffer(name, element, Access::Write, Traffic::fixed(n * element.size()))
    }

    pub(crate) const fn number(name: &'static str) -> Param {
        Param { name: Cow::Borrowed(name), kind: ParamKind::U32, traffic: Traffic::NONE, weights: false }
    }

    /// Its type. Only what no kernel of the launch writes is `const` and `__restrict__`.
    fn kind_text(&self) -> String {
        match self.kind {
            ParamKind::Buffer(element, Access::Read) => format!("const {}* __restrict__", element.text()),
            ParamKind::Buffer(element, _) => format!("{}*", element.text()),
            ParamKind::U32 => "u32".to_owned(),
        }
    }

    /// Its declaration.
    fn text(&self) -> String {
        format!("{} {}", self.kind_text(), self.name)
    }
}

/// One emitted kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its name in the compiled module.
    pub name: String,
    /// Its text with the comment above it; needs the prelude.
    pub source: String,
    /// Blocks in x and y. The work is split by these numbers, so a launch has exactly them.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory. Over 48 KiB the function's limit must be raised before the first launch.
    pub shared: u32,
    /// What it takes, in order.
    pub params: Vec<Param>,
}

/// The pieces of a kernel before they are put together.
pub(crate) struct Draft<'a> {
    pub(crate) name: String,
    /// First line of the comment.
    pub(crate) purpose: &'a str,
    pub(crate) grid: [usize; 2],
    pub(crate) threads: usize,
    /// Blocks that a multiprocessor should hold at once: with the threads it bounds the registers.
    pub(crate) resident: usize,
    pub(crate) shared: usize,
    pub(crate) params: Vec<Param>,
    /// Between the outer braces.
    pub(crate) body: String,
}

impl<'a> Draft<'a> {
    /// Kernels of heads and neurons, which do not depend on each other, in one launch: blocks with y = 0 are the first, with y = 1 the
    /// second. The names of their parameters say whose they are. A single one stays as it is.
    pub(crate) fn beside(mut drafts: Vec<Draft<'a>>) -> Draft<'a> {
        let Some(second) = drafts.get(1) else { return drafts.remove(0) };
        let first = &drafts[0];
        debug_assert_eq!(first.threads, second.threads, "{}", first.name);
        let (name, purpose) = (format!("{}_{}", first.name, second.name), first.purpose);
        let (threads, resident) = (first.threads, first.resident.min(second.resident));
        let (grid, shared) = ([first.grid[0].max(second.grid[0]), 2], first.shared.max(second.shared));
        let (mut params, mut branches) = (Vec::new(), Vec::new());
        for (draft, owner) in drafts.into_iter().zip(["heads", "neurons"]) {
            let mut branch = String::new();
            for param in draft.params {
                let own = format!("{owner}_{}", param.name);
                branch += &format!("        {} {} = {own};\n", param.kind_text(), param.name);
                params.push(Param { name: Cow::Owned(own), ..param });
            }
            for line in draft.body.lines() {
                let indent = if line.is_empty() || line.starts_with('#') { "" } else { "    " };
                branch += &format!("{indent}{line}\n");
            }
            branches.push(branch);
        }
        let body = format!("    if (blockIdx.y == 0) {{\n{}    }} else {{\n{}    }}\n", branches[0], branches[1]);
        Draft { name, purpose, grid, threads, resident, shared, params, body }
    }

    pub(crate) fn finish(self) -> Kernel {
        let params: Vec<String> = self.params.iter().map(|param| format!("    {}", param.text())).collect();
        let bytes: String = self
            .params
            .iter()
            .filter(|param| param.traffic != Traffic::NONE)
            .map(|param| format!("//   {}: {}\n", param.name, param.traffic))
            .collect();
        let source = format!(
            "// {}\n// Bytes (distinct addresses):\n{bytes}extern \"C\" __global__ void __launch_bounds__({}, {}) {}(\n{}) {{\n{}}}\n",
            self.purpose,
            self.threads,
            self.resident,
            self.name,
            params.join(",\n"),
            self.body,
        );
        Kernel {
            name: self.name,
            source,
            grid: self.grid.map(|n| n as u32),
            threads: self.threads as u32,
            shared: self.shared as u32,
            params: self.params,
        }
    }
}

impl Kernel {
    /// Bytes that a call moves at these counts.
    pub fn bytes(&self, counts: &Counts) -> u64 {
        self.params.iter().map(|param| param.traffic.at(counts)).sum()
    }

    /// Of these, bytes of weights.
    pub fn weight_bytes(&self, counts: &Counts) -> u64 {
        self.params.iter().filter(|param| param.weights).map(|param| param.traffic.at(counts)).sum()
    }
}
