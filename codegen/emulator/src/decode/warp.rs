//! What the lanes of a warp do together.

use super::Decoder;
use super::line::Line;
use crate::error::ParseError;
use crate::parse::Operand;
use crate::program::{Multiply, Op, Reduction, Reg, Shuffle, Slot, Vote, WarpOp};

/// An operation without a mask operand (`.aligned`): all lanes of the warp must take part.
fn everywhere(decoder: &mut Decoder, line: &Line, op: WarpOp) -> Result<Op, ParseError> {
    let members = decoder.scope.word_constant(u32::MAX, line.number())?;
    Ok(Op::Warp { op: Box::new(op), members })
}

impl Decoder<'_> {
    pub(super) fn warp_sync(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        line.need(&["sync"])?;
        Ok(Op::Warp { op: Box::new(WarpOp::Sync), members: self.word_in(line, 32)? })
    }

    /// `%r1|%p1`, or `%r1` alone.
    fn result_and_predicate(&mut self, line: &mut Line) -> Result<(Slot, Option<Slot>), ParseError> {
        let (first, second) = match line.operand()? {
            Operand::Pair(first, second) => (first.as_ref(), self.sink(line, second)?),
            single => (single, None),
        };
        let to = match first {
            Operand::Name(name) if name == "_" => self.scope.sink_word(line.number())?,
            _ => match self.result_of(line, first, 32)? {
                Reg::Word(slot) => slot,
                Reg::Long(_) => return Err(line.error("the result has 32 bits")),
            },
        };
        Ok((to, second))
    }

    pub(super) fn shuffle(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        line.need(&["sync"])?;
        let mode = match line.need(&["up", "down", "bfly", "idx"])? {
            "up" => Shuffle::Up,
            "down" => Shuffle::Down,
            "bfly" => Shuffle::Butterfly,
            _ => Shuffle::Index,
        };
        line.need(&["b32"])?;
        let (to, valid) = self.result_and_predicate(line)?;
        let (from, lane, clamp) = (self.word_in(line, 32)?, self.word_in(line, 32)?, self.word_in(line, 32)?);
        let op = WarpOp::Shuffle { mode, to, valid, from, lane, clamp };
        Ok(Op::Warp { op: Box::new(op), members: self.word_in(line, 32)? })
    }

    pub(super) fn vote(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        line.need(&["sync"])?;
        let name = line.need(&["ballot", "all", "any", "uni"])?;
        let op = if name == "ballot" {
            line.need(&["b32"])?;
            WarpOp::Ballot { to: self.word_out(line, 32)?, from: self.predicate_in(line)? }
        } else {
            line.need(&["pred"])?;
            let vote = match name {
                "all" => Vote::All,
                "any" => Vote::Any,
                _ => Vote::Uniform,
            };
            WarpOp::Vote { vote, to: self.predicate_out(line)?, from: self.predicate_in(line)? }
        };
        Ok(Op::Warp { op: Box::new(op), members: self.word_in(line, 32)? })
    }

    pub(super) fn matching(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        let all = line.need(&["any", "all"])? == "all";
        line.need(&["sync"])?;
        let bits = if line.need(&["b32", "b64"])? == "b64" { 64 } else { 32 };
        let op = if all {
            let (to, agree) = self.result_and_predicate(line)?;
            WarpOp::MatchAll { to, agree, from: self.value_in(line, bits)? }
        } else {
            WarpOp::MatchAny { to: self.word_out(line, 32)?, from: self.value_in(line, bits)? }
        };
        Ok(Op::Warp { op: Box::new(op), members: self.word_in(line, 32)? })
    }

    pub(super) fn reduce(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        line.need(&["sync"])?;
        let name = line.need(&["add", "min", "max", "and", "or", "xor"])?;
        let kind = line.need(&["u32", "s32", "b32"])?;
        let reduction = match (name, kind) {
            ("add", "u32" | "s32") => Reduction::Add,
            ("min", "u32") => Reduction::Min,
            ("max", "u32") => Reduction::Max,
            ("min", "s32") => Reduction::MinSigned,
            ("max", "s32") => Reduction::MaxSigned,
            ("and", "b32") => Reduction::And,
            ("or", "b32") => Reduction::Or,
            ("xor", "b32") => Reduction::Xor,
            _ => return Err(line.error(&format!("reduction `.{name}` of type .{kind} is unknown"))),
        };
        let op = WarpOp::Reduce { reduction, to: self.word_out(line, 32)?, from: self.word_in(line, 32)? };
        Ok(Op::Warp { op: Box::new(op), members: self.word_in(line, 32)? })
    }

    pub(super) fn load_matrix(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        line.need(&["sync"])?;
        line.need(&["aligned"])?;
        line.need(&["m8n8"])?;
        let count = match line.need(&["x1", "x2", "x4"])? {
            "x1" => 1,
            "x2" => 2,
            _ => 4,
        };
        let transposed = line.flag("trans");
        line.need(&["shared", "shared::cta"])?;
        line.need(&["b16"])?;
        let to = self.fragment(line, count, true)?;
        let op = WarpOp::LoadMatrix { to, address: self.address(line)?, transposed };
        everywhere(self, line, op)
    }

    /// A vector of so many 32-bit registers.
    fn fragment(&mut self, line: &mut Line, count: usize, written: bool) -> Result<Vec<Slot>, ParseError> {
        let operand = line.operand()?;
        let elements = match operand {
            Operand::Vector(elements) => elements.as_slice(),
            single => std::slice::from_ref(single),
        };
        if elements.len() != count {
            return Err(line.error(&format!("a fragment of {} registers, expected {count}", elements.len())));
        }
        elements
            .iter()
            .map(|element| {
                let reg = if written { self.result_of(line, element, 32)? } else { self.value_of(line, element, 32)? };
                match reg {
                    Reg::Word(slot) => Ok(slot),
                    Reg::Long(_) => Err(line.error("fragments have 32 bits")),
                }
            })
            .collect()
    }

    pub(super) fn multiply(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        line.need(&["sync"])?;
        line.need(&["aligned"])?;
        let depth = if line.need(&["m16n8k16", "m16n8k8"])? == "m16n8k16" { 16 } else { 8 };
        line.need(&["row"])?;
        line.need(&["col"])?;
        line.need(&["f32"])?;
        let kind = line.need(&["f16", "bf16"])?;
        line.need(&[kind])?;
        line.need(&["f32"])?;
        let d = self.fragment(line, 4, true)?;
        let a = self.fragment(line, depth / 4, false)?;
        let b = self.fragment(line, depth / 8, false)?;
        let c = self.fragment(line, 4, false)?;
        let op = Multiply { depth, brain: kind == "bf16", d, a, b, c };
        everywhere(self, line, WarpOp::Multiply(Box::new(op)))
    }
}
