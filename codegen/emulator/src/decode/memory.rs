//! Loads, stores, atomics and asynchronous copies.

use super::Decoder;
use super::line::{Line, bits};
use crate::error::ParseError;
use crate::parse::{Operand, Space};
use crate::program::{AsyncCopy, Atomic, AtomicOp, MemoryOp, Op, Reg};

/// How long and where caches keep a line: nothing that an emulator could show.
const HINTS: &[&str] = &[
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::evict_normal",
    "L2::evict_first",
    "L2::evict_last",
    "L2::64B",
    "L2::128B",
    "L2::256B",
];
const SCOPES: &[&str] = &["cta", "cluster", "gpu", "sys"];

impl Decoder<'_> {
    fn access(&mut self, line: &mut Line, store: bool) -> Result<(MemoryOp, u32), ParseError> {
        let order = line.modifier(&["weak", "volatile", "relaxed", "acquire", "release"]);
        if store && order == Some("acquire") || !store && order == Some("release") {
            return Err(line.error("loads acquire, stores release"));
        }
        if matches!(order, Some("relaxed" | "acquire" | "release")) {
            line.need(SCOPES)?;
        }
        let space = Self::space(line);
        while line.modifier(HINTS).is_some() {}
        let cached = !store && line.flag("nc");
        while line.modifier(HINTS).is_some() {}
        if cached && space != Space::Global {
            return Err(line.error("`.nc` is for global memory"));
        }
        let count = match line.modifier(&["v2", "v4"]) {
            Some("v2") => 2,
            Some(_) => 4,
            None => 1,
        };
        let kind = line.any()?;
        let width = bits(kind).ok_or_else(|| line.error(&format!("type .{kind} is unknown")))?;
        if count * width > 128 {
            return Err(line.error("an access has at most 16 bytes"));
        }
        let op = MemoryOp {
            space,
            address: crate::program::Address { base: None, offset: 0 },
            width: (width / 8) as u8,
            signed: kind.starts_with('s'),
            narrow: false,
            cached,
            strong: matches!(order, Some("volatile" | "relaxed" | "acquire" | "release")),
            registers: Vec::with_capacity(count as usize),
        };
        Ok((op, count))
    }

    fn elements<'o>(line: &Line, operand: &'o Operand, count: u32) -> Result<Vec<&'o Operand>, ParseError> {
        let elements = match operand {
            Operand::Vector(elements) => elements.iter().collect(),
            single => vec![single],
        };
        if elements.len() == count as usize {
            Ok(elements)
        } else {
            Err(line.error(&format!("{} registers for {count} elements", elements.len())))
        }
    }

    pub(super) fn load(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        let (mut op, count) = self.access(line, false)?;
        let target = line.operand()?;
        for element in Self::elements(line, target, count)? {
            op.registers.push(match element {
                Operand::Name(name) if name == "_" => None,
                element => Some(self.at_least(line, element, u32::from(op.width) * 8)?),
            });
            op.narrow |= self.width(element) == 16;
        }
        op.address = self.address(line)?;
        Ok(Op::Load(Box::new(op)))
    }

    pub(super) fn store(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        let (mut op, count) = self.access(line, true)?;
        if matches!(op.space, Space::Const | Space::Param) {
            return Err(line.error("constants and parameters cannot be written"));
        }
        op.address = self.address(line)?;
        let source = line.operand()?;
        for element in Self::elements(line, source, count)? {
            let bits = u32::from(op.width) * 8;
            op.registers.push(Some(match element {
                Operand::Name(name) if self.scope.register(name).is_some() => self.at_least(line, element, bits)?,
                _ => self.value_of(line, element, bits)?,
            }));
        }
        Ok(Op::Store(Box::new(op)))
    }

    pub(super) fn atomic(&mut self, line: &mut Line, result: bool) -> Result<Op, ParseError> {
        if line.modifier(&["relaxed", "acquire", "release", "acq_rel"]).is_some() {
            line.need(SCOPES)?;
        } else {
            line.modifier(SCOPES);
        }
        let space = Self::space(line);
        if !matches!(space, Space::Global | Space::Shared | Space::Generic) {
            return Err(line.error("atomics work on global and shared memory"));
        }
        let name = line.any()?;
        line.flag("noftz");
        let kind = line.any()?;
        let operation = match (name, kind) {
            ("add", "f32" | "f64") => Atomic::AddFloat,
            ("add", "f16" | "f16x2") => Atomic::AddHalf,
            ("add", "bf16" | "bf16x2") => Atomic::AddBrain,
            ("add", "u32" | "s32" | "u64") => Atomic::Add,
            ("min", "u32" | "u64") => Atomic::Min,
            ("max", "u32" | "u64") => Atomic::Max,
            ("min", "s32" | "s64") => Atomic::MinSigned,
            ("max", "s32" | "s64") => Atomic::MaxSigned,
            ("and", "b32" | "b64") => Atomic::And,
            ("or", "b32" | "b64") => Atomic::Or,
            ("xor", "b32" | "b64") => Atomic::Xor,
            ("exch", "b32" | "b64") if result => Atomic::Exchange,
            ("cas", "b16" | "b32" | "b64") if result => Atomic::Compare,
            ("inc", "u32") => Atomic::Increment,
            ("dec", "u32") => Atomic::Decrement,
            _ => return Err(line.error(&format!("operation `.{name}` of type .{kind} is unknown"))),
        };
        let width = bits(kind).ok_or_else(|| line.error("type is unknown"))?;
        let result = if result {
            match line.operand()? {
                Operand::Name(name) if name == "_" => None,
                operand => Some(self.result_of(line, operand, width)?),
            }
        } else {
            None
        };
        let address = self.address(line)?;
        let operand = self.value_in(line, width)?;
        let second = if operation == Atomic::Compare { Some(self.value_in(line, width)?) } else { None };
        let op = AtomicOp { space, address, operation, width: (width / 8) as u8, result, operand, second };
        Ok(Op::Atomic(Box::new(op)))
    }

    pub(super) fn cp_async(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        line.need(&["async"])?;
        match line.modifier(&["commit_group", "wait_group", "wait_all"]) {
            Some("commit_group") => return Ok(Op::AsyncCommit),
            Some("wait_all") => return Ok(Op::AsyncWait { pending: None }),
            Some(_) => {
                return match line.operand()? {
                    Operand::Integer(pending) if *pending < 1 << 16 => {
                        Ok(Op::AsyncWait { pending: Some(*pending as u32) })
                    }
                    _ => Err(line.error("a number of groups was expected as operand")),
                };
            }
            None => {}
        }
        let bypass = line.need(&["ca", "cg"])? == "cg";
        if line.modifier(&["shared", "shared::cta"]).is_none() {
            return Err(line.error("copies go to .shared"));
        }
        line.need(&["global"])?;
        line.modifier(&["L2::64B", "L2::128B", "L2::256B"]);
        let (target, source) = (self.address(line)?, self.address(line)?);
        let bytes = match line.operand()? {
            Operand::Integer(bytes) if matches!(bytes, 4 | 8 | 16) => *bytes as u8,
            _ => return Err(line.error("4, 8 or 16 bytes were expected")),
        };
        if bypass && bytes != 16 {
            return Err(line.error("`.cg` copies 16 bytes"));
        }
        let (mut read, mut ignore) = (None, None);
        if line.more() {
            let operand = line.operand()?;
            match operand {
                Operand::Name(name) if self.predicate_named(line, name).is_ok() => {
                    ignore = Some((self.predicate_named(line, name)?, false));
                }
                Operand::Not(name) => ignore = Some((self.predicate_named(line, name)?, true)),
                _ => match self.value_of(line, operand, 32)? {
                    Reg::Word(slot) => read = Some(slot),
                    Reg::Long(_) => return Err(line.error("the number of bytes has 32 bits")),
                },
            }
        }
        Ok(Op::AsyncCopy(Box::new(AsyncCopy { target, source, bytes, read, ignore })))
    }

    /// Hints to caches: checked for form, then dropped.
    pub(super) fn hint(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        line.modifier(&["global", "local"]);
        line.need(&["L1", "L2", "L2::evict_normal", "L2::evict_last"])?;
        self.address(line)?;
        if line.more() {
            line.operand()?;
        }
        Ok(Op::Nothing)
    }

    pub(super) fn fence(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        if line.root() == "membar" {
            return Ok(Op::Fence { wide: line.need(&["cta", "gl", "sys"])? != "cta" });
        }
        line.modifier(&["sc", "acq_rel", "acquire", "release"]);
        Ok(Op::Fence { wide: line.need(SCOPES)? != "cta" })
    }
}
