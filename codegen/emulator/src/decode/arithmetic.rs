//! Arithmetic, logic and comparisons.

use super::Decoder;
use super::line::{Line, bits};
use crate::alu::{compare, float, half, integer, logic};
use crate::error::ParseError;
use crate::parse::Operand;
use crate::program::{Combine, Op, Reg, Slot, Test};

const ROUNDINGS: &[&str] = &["rn", "rz", "rm", "rp"];

impl Decoder<'_> {
    pub(super) fn arithmetic(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        match line.root() {
            "lop3" => return self.lop3(line),
            "dp4a" => {
                let kind = [line.need(&["u32", "s32"])?, line.need(&["u32", "s32"])?].join(".");
                return self.words3(line, integer::word3("dp4a", &kind), 32);
            }
            "dp2a" => {
                let name = format!("dp2a.{}", line.need(&["lo", "hi"])?);
                let kind = [line.need(&["u32", "s32"])?, line.need(&["u32", "s32"])?].join(".");
                return self.words3(line, integer::word3(&name, &kind), 32);
            }
            "prmt" => {
                line.need(&["b32"])?;
                let name = match line.modifier(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]) {
                    Some(mode) => format!("prmt.{mode}"),
                    None => "prmt".to_string(),
                };
                return self.words3(line, integer::word3(&name, "b32"), 32);
            }
            "bfi" => return self.insert(line),
            "and" | "or" | "xor" | "not" if line.peek() == Some("pred") => return self.predicates(line),
            _ => {}
        }
        // All modifiers before the type; `.ftz` is set aside.
        let mut name = line.root().to_string();
        let mut ftz = false;
        let kind = loop {
            let modifier = line.any()?;
            match modifier {
                "ftz" => ftz = true,
                _ if bits(modifier).is_some() => break modifier,
                // Products of 24 bits and carries are other instructions to us.
                _ => name = format!("{name}.{modifier}"),
            }
        };
        match kind {
            "f32" | "f64" => self.floats(line, name, kind, ftz),
            "f16" | "bf16" | "f16x2" | "bf16x2" => {
                let unknown = || line.error(&format!("`{name}` of type .{kind} is unknown"));
                if ftz && !name.starts_with("ex2") {
                    return Err(line.error("`.ftz` of 16-bit floats is not emulated"));
                }
                let width = bits(kind).ok_or_else(unknown)?;
                if let Some(f) = half::word2(&name, kind) {
                    return self.words2(line, Some(f), width);
                }
                if let Some(f) = half::word1(&name, kind) {
                    return self.words1(line, Some(f), width);
                }
                let f = half::word3(&name, kind).ok_or_else(unknown)?;
                self.words3(line, Some(f), width)
            }
            _ => {
                if ftz {
                    return Err(line.error("`.ftz` makes no sense for integers"));
                }
                self.integers(line, &name, kind)
            }
        }
    }

    fn floats(&mut self, line: &mut Line, name: String, kind: &str, ftz: bool) -> Result<Op, ParseError> {
        // `add.f32` means `add.rn.f32`; the compiler may fuse it, which this emulator, like `--fmad=false`, never does.
        let rounded = name.split('.').next_back().is_some_and(|last| ROUNDINGS.contains(&last));
        let name = if matches!(line.root(), "add" | "sub" | "mul") && !rounded { format!("{name}.rn") } else { name };
        let unknown = line.error(&format!("`{name}` of type .{kind} is unknown"));
        if kind == "f64" {
            if let Some(f) = float::long2(&name) {
                let (to, a, b) = (self.long_out(line)?, self.long_in(line)?, self.long_in(line)?);
                return Ok(Op::L2 { f, to, a, b });
            }
            if let Some(f) = float::long1(&name) {
                return Ok(Op::L1 { f, to: self.long_out(line)?, a: self.long_in(line)? });
            }
            let f = float::long3(&name).ok_or(unknown)?;
            let (to, a, b, c) = (self.long_out(line)?, self.long_in(line)?, self.long_in(line)?, self.long_in(line)?);
            return Ok(Op::L3 { f, to, a, b, c });
        }
        if let Some(f) = float::word2(&name, ftz) {
            return self.words2(line, Some(f), 32);
        }
        if let Some(f) = float::word1(&name, ftz) {
            return self.words1(line, Some(f), 32);
        }
        let f = float::word3(&name, ftz).ok_or(unknown)?;
        self.words3(line, Some(f), 32)
    }

    fn integers(&mut self, line: &mut Line, name: &str, kind: &str) -> Result<Op, ParseError> {
        let unknown = line.error(&format!("`{name}` of type .{kind} is unknown"));
        let Some(width) = bits(kind) else { return Err(unknown) };
        match (name, kind) {
            ("mul.wide", "u32" | "s32") => {
                let f = integer::multiply_wide(kind).ok_or(unknown)?;
                let (to, a, b) = (self.long_out(line)?, self.word_in(line, 32)?, self.word_in(line, 32)?);
                return Ok(Op::WwL { f, to, a, b });
            }
            ("mad.wide", "u32" | "s32") => {
                let f = integer::multiply_add_wide(kind).ok_or(unknown)?;
                let (to, a, b) = (self.long_out(line)?, self.word_in(line, 32)?, self.word_in(line, 32)?);
                return Ok(Op::WwlL { f, to, a, b, c: self.long_in(line)? });
            }
            ("mul.wide", "u16" | "s16") => {
                let f = integer::word2(name, kind).ok_or(unknown)?;
                let (to, a, b) = (self.word_out(line, 32)?, self.word_in(line, 16)?, self.word_in(line, 16)?);
                return Ok(Op::W2 { f, to, a, b });
            }
            ("mad.wide", "u16" | "s16") => {
                let f = integer::word3(name, kind).ok_or(unknown)?;
                let (to, a, b) = (self.word_out(line, 32)?, self.word_in(line, 16)?, self.word_in(line, 16)?);
                return Ok(Op::W3 { f, to, a, b, c: self.word_in(line, 32)? });
            }
            ("shl" | "shr", _) if width <= 32 => {
                let f = integer::word2(name, kind).ok_or(unknown)?;
                let (to, a) = (self.word_out(line, width)?, self.word_in(line, width)?);
                return Ok(Op::W2 { f, to, a, b: self.word_in(line, 32)? });
            }
            ("shl" | "shr", _) => {
                let f = integer::shift_long(name, kind).ok_or(unknown)?;
                let (to, a, b) = (self.long_out(line)?, self.long_in(line)?, self.word_in(line, 32)?);
                return Ok(Op::LwL { f, to, a, b });
            }
            ("bfe", "u64" | "s64") => {
                let f = integer::extract_long(kind).ok_or(unknown)?;
                let (to, a, b) = (self.long_out(line)?, self.long_in(line)?, self.word_in(line, 32)?);
                return Ok(Op::LwwL { f, to, a, b, c: self.word_in(line, 32)? });
            }
            ("popc" | "clz" | "bfind" | "bfind.shiftamt", _) if width == 64 => {
                let f = integer::count_long(name, kind).ok_or(unknown)?;
                return Ok(Op::LW { f, to: self.word_out(line, 32)?, a: self.long_in(line)? });
            }
            _ => {}
        }
        if width == 64 {
            let two = integer::long2(name, kind).or_else(|| logic::long2(name).filter(|_| kind == "b64"));
            if let Some(f) = two {
                let (to, a, b) = (self.long_out(line)?, self.long_in(line)?, self.long_in(line)?);
                return Ok(Op::L2 { f, to, a, b });
            }
            let one = integer::long1(name, kind).or_else(|| logic::long1(name).filter(|_| kind == "b64"));
            if let Some(f) = one {
                return Ok(Op::L1 { f, to: self.long_out(line)?, a: self.long_in(line)? });
            }
            let f = integer::long3(name, kind).ok_or(unknown)?;
            let (to, a, b, c) = (self.long_out(line)?, self.long_in(line)?, self.long_in(line)?, self.long_in(line)?);
            return Ok(Op::L3 { f, to, a, b, c });
        }
        let plain = matches!(kind, "b16" | "b32");
        if let Some(f) = integer::word2(name, kind).or_else(|| logic::word2(name).filter(|_| plain)) {
            return self.words2(line, Some(f), width);
        }
        if let Some(f) = integer::word1(name, kind).or_else(|| logic::word1(name, kind)) {
            return self.words1(line, Some(f), width);
        }
        let f = integer::word3(name, kind).ok_or(unknown)?;
        self.words3(line, Some(f), width)
    }

    fn words1(&mut self, line: &mut Line, f: Option<integer::Word1>, width: u32) -> Result<Op, ParseError> {
        let f = f.ok_or_else(|| line.error("unknown form"))?;
        Ok(Op::W1 { f, to: self.word_out(line, width)?, a: self.word_in(line, width)? })
    }

    fn words2(&mut self, line: &mut Line, f: Option<integer::Word2>, width: u32) -> Result<Op, ParseError> {
        let f = f.ok_or_else(|| line.error("unknown form"))?;
        let (to, a, b) = (self.word_out(line, width)?, self.word_in(line, width)?, self.word_in(line, width)?);
        Ok(Op::W2 { f, to, a, b })
    }

    fn words3(&mut self, line: &mut Line, f: Option<integer::Word3>, width: u32) -> Result<Op, ParseError> {
        let f = f.ok_or_else(|| line.error("unknown form"))?;
        let (to, a, b) = (self.word_out(line, width)?, self.word_in(line, width)?, self.word_in(line, width)?);
        Ok(Op::W3 { f, to, a, b, c: self.word_in(line, width)? })
    }

    fn lop3(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        line.need(&["b32"])?;
        let (to, a, b) = (self.word_out(line, 32)?, self.word_in(line, 32)?, self.word_in(line, 32)?);
        let c = self.word_in(line, 32)?;
        match line.operand()? {
            Operand::Integer(table) if *table < 256 => Ok(Op::Table { to, a, b, c, table: *table as u8 }),
            _ => Err(line.error("a table of 8 bits was expected as last operand")),
        }
    }

    fn insert(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        if line.need(&["b32", "b64"])? == "b32" {
            let (to, a, b) = (self.word_out(line, 32)?, self.word_in(line, 32)?, self.word_in(line, 32)?);
            let (c, d) = (self.word_in(line, 32)?, self.word_in(line, 32)?);
            return Ok(Op::W4 { f: integer::insert_word(), to, a, b, c, d });
        }
        let (to, a, b) = (self.long_out(line)?, self.long_in(line)?, self.long_in(line)?);
        let (c, d) = (self.word_in(line, 32)?, self.word_in(line, 32)?);
        Ok(Op::LlwwL { f: integer::insert_long(), to, a, b, c, d })
    }

    fn predicates(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        let name = line.root();
        line.need(&["pred"])?;
        let to = self.predicate_out(line)?;
        let a = self.predicate_in(line)?;
        if name == "not" {
            return Ok(Op::Predicates { f: |a, _| !a, to, a, b: a });
        }
        let f = logic::mask2(name).ok_or_else(|| line.error("unknown form"))?;
        Ok(Op::Predicates { f, to, a, b: self.predicate_in(line)? })
    }

    pub(super) fn setp(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        let comparison = line.any()?;
        let combine = line.modifier(&["and", "or", "xor"]).and_then(logic::mask2);
        let ftz = line.flag("ftz");
        let kind = line.any()?;
        let (to, not) = match line.operand()? {
            Operand::Name(name) => (Some(self.predicate_named(line, name)?), None),
            Operand::Pair(first, second) => (self.sink(line, first)?, self.sink(line, second)?),
            _ => return Err(line.error("a predicate was expected as result")),
        };
        let unknown = line.error(&format!("comparison `.{comparison}` of type .{kind} is unknown"));
        let test = match bits(kind) {
            Some(64) => {
                let f = compare::long(comparison, kind).ok_or(unknown)?;
                Test::Longs(f, self.long_in(line)?, self.long_in(line)?)
            }
            Some(width @ (16 | 32)) => {
                let f = compare::word(comparison, kind, ftz).ok_or(unknown)?;
                Test::Words(f, self.word_in(line, width)?, self.word_in(line, width)?)
            }
            _ => return Err(unknown),
        };
        let combine: Option<Combine> = match combine {
            Some(f) => {
                let (slot, negated) = self.predicate_in(line)?;
                Some((f, slot, negated))
            }
            None => None,
        };
        Ok(Op::Set { test, to, not, combine })
    }

    /// A predicate of a pair, or `_`.
    pub(super) fn sink(&self, line: &Line, operand: &Operand) -> Result<Option<Slot>, ParseError> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(None),
            Operand::Name(name) => self.predicate_named(line, name).map(Some),
            _ => Err(line.error("a predicate was expected as result")),
        }
    }

    pub(super) fn selp(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        let kind = line.any()?;
        let width = bits(kind)
            .filter(|&bits| bits >= 16)
            .ok_or_else(|| line.error(&format!("type .{kind} cannot be selected")))?;
        match (self.value_out(line, width)?, self.value_in(line, width)?, self.value_in(line, width)?) {
            (Reg::Word(to), Reg::Word(a), Reg::Word(b)) => {
                Ok(Op::SelectWord { to, a, b, predicate: self.predicate_in(line)? })
            }
            (Reg::Long(to), Reg::Long(a), Reg::Long(b)) => {
                Ok(Op::SelectLong { to, a, b, predicate: self.predicate_in(line)? })
            }
            _ => Err(line.error("registers of one width were expected")),
        }
    }
}
