//! Moves, conversions and addresses.

use super::Decoder;
use super::line::{Line, bits};
use super::scope::Register;
use crate::alu::convert::{Conversion, Kind, long_to_word, word_to_long, word_to_word};
use crate::alu::round::Rounding;
use crate::error::ParseError;
use crate::memory::space::{LOCAL_WINDOW, SHARED_WINDOW};
use crate::parse::{Operand, Space};
use crate::program::{Op, Reg};

impl Decoder<'_> {
    pub(super) fn mov(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        let kind = line.any()?;
        if kind == "pred" {
            let to = self.predicate_out(line)?;
            return match line.operand()? {
                Operand::Integer(value) => Ok(Op::PredicateConstant { to, value: *value != 0 }),
                Operand::Name(name) => {
                    let from = (self.predicate_named(line, name)?, false);
                    Ok(Op::Predicates { f: |a, _| a, to, a: from, b: from })
                }
                _ => Err(line.error("a predicate was expected as operand")),
            };
        }
        let width = bits(kind)
            .filter(|&bits| bits >= 16)
            .ok_or_else(|| line.error(&format!("type .{kind} cannot be moved")))?;
        let target = line.operand()?;
        if let Operand::Vector(parts) = target {
            return self.unpack(line, parts, width);
        }
        let to = self.result_of(line, target, width)?;
        let source = line.operand()?;
        if let Operand::Vector(parts) = source {
            return self.pack(line, parts, to, width);
        }
        let from = match source {
            Operand::Name(name) if self.scope.register(name).is_none() => match (self.scope.find(name), width) {
                (Some(place), 64) => Reg::Long(self.scope.long_constant(place, line.number())?),
                (Some(place), 32) if place <= u64::from(u32::MAX) => {
                    Reg::Word(self.scope.word_constant(place as u32, line.number())?)
                }
                _ => self.value_of(line, source, width)?,
            },
            _ => self.value_of(line, source, width)?,
        };
        match (to, from) {
            (Reg::Word(to), Reg::Word(a)) => Ok(Op::MoveWord { to, a }),
            (Reg::Long(to), Reg::Long(a)) => Ok(Op::MoveLong { to, a }),
            _ => Err(line.error("registers of one width were expected")),
        }
    }

    fn part_bits(line: &Line, parts: usize, width: u32) -> Result<u32, ParseError> {
        match (parts, width) {
            (2, 32 | 64) => Ok(width / 2),
            (4, 64) => Ok(16),
            _ => Err(line.error(&format!("{parts} parts do not make {width} bits"))),
        }
    }

    fn pack(&mut self, line: &Line, parts: &[Operand], to: Reg, width: u32) -> Result<Op, ParseError> {
        let bits = Self::part_bits(line, parts.len(), width)?;
        let mut slots = Vec::new();
        for part in parts {
            match self.value_of(line, part, bits)? {
                Reg::Word(slot) => slots.push(slot),
                Reg::Long(_) => return Err(line.error("parts have at most 32 bits")),
            }
        }
        Ok(Op::Pack { to, parts: slots, bits })
    }

    fn unpack(&mut self, line: &mut Line, parts: &[Operand], width: u32) -> Result<Op, ParseError> {
        let bits = Self::part_bits(line, parts.len(), width)?;
        let mut slots = Vec::new();
        for part in parts {
            slots.push(match part {
                Operand::Name(name) if name == "_" => None,
                _ => match self.result_of(line, part, bits)? {
                    Reg::Word(slot) => Some(slot),
                    Reg::Long(_) => return Err(line.error("parts have at most 32 bits")),
                },
            });
        }
        Ok(Op::Unpack { parts: slots, from: self.value_in(line, width)?, bits })
    }

    pub(super) fn cvt(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        let rounding = line.modifier(&["rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"]);
        let relu = line.flag("relu");
        let ftz = line.flag("ftz");
        let saturate = line.flag("sat");
        let to_name = line.any()?;
        let from_name = line.any()?;
        let direction = match rounding {
            Some("rn" | "rni") | None => Rounding::Nearest,
            Some("rz" | "rzi") => Rounding::Zero,
            Some("rm" | "rmi") => Rounding::Down,
            Some("rp" | "rpi") => Rounding::Up,
            _ => return Err(line.error("`.rna` is for tf32, which is not emulated")),
        };
        let integral = rounding.is_some_and(|name| name.ends_with('i'));
        let pair = match to_name {
            "f16x2" => Some("f16"),
            "bf16x2" => Some("bf16"),
            _ => None,
        };
        let kind = |name: &str| {
            Kind::named(name).ok_or_else(|| line.error(&format!("conversion with type .{name} is unknown")))
        };
        let (from, to) = (kind(from_name)?, kind(pair.unwrap_or(to_name))?);
        match (from, to, integral, rounding) {
            (Kind::Float(_), Kind::Integer { .. }, false, _) => {
                return Err(line.error("float to integer needs one of .rni, .rzi, .rmi, .rpi"));
            }
            (Kind::Integer { .. }, Kind::Float(_), _, None) => {
                return Err(line.error("integer to float needs one of .rn, .rz, .rm, .rp"));
            }
            (Kind::Float(a), Kind::Float(b), _, None) if b.fraction < a.fraction || b.exponent < a.exponent => {
                return Err(line.error("float to a narrower float needs one of .rn, .rz, .rm, .rp"));
            }
            (Kind::Integer { .. }, Kind::Integer { .. }, _, Some(_)) => {
                return Err(line.error("integer to integer has no rounding"));
            }
            _ => {}
        }
        if relu && !matches!((from, to), (Kind::Float(_), Kind::Float(_))) {
            return Err(line.error("`.relu` is for floats only"));
        }
        let conversion = Conversion { from, to, rounding: direction, integral, saturate, relu, ftz };
        if pair.is_some() {
            if from_name != "f32" {
                return Err(line.error("pairs are converted from .f32 only"));
            }
            let (to, a, b) = (self.word_out(line, 32)?, self.word_in(line, 32)?, self.word_in(line, 32)?);
            return Ok(Op::ConvertPair { conversion: Box::new(conversion), to, a, b });
        }
        let target = line.operand()?;
        let to = self.at_least(line, target, conversion.to.bits())?;
        let source = line.operand()?;
        let a = match source {
            Operand::Name(name) if self.scope.register(name).is_none() => {
                self.value_of(line, source, conversion.from.bits())?
            }
            Operand::Name(_) => self.at_least(line, source, conversion.from.bits())?,
            _ => self.value_of(line, source, conversion.from.bits())?,
        };
        let width = self.width(target);
        // A register wider than the type is filled up with the sign, which only the general way does.
        let fast = match (to, a) {
            _ if width != conversion.to.bits() => None,
            (Reg::Word(to), Reg::Word(a)) => word_to_word(&conversion).map(|f| Op::W1 { f, to, a }),
            (Reg::Long(to), Reg::Word(a)) => word_to_long(&conversion).map(|f| Op::WL { f, to, a }),
            (Reg::Word(to), Reg::Long(a)) => long_to_word(&conversion).map(|f| Op::LW { f, to, a }),
            (Reg::Long(_), Reg::Long(_)) => None,
        };
        Ok(fast.unwrap_or(Op::Convert { conversion: Box::new(conversion), width, to, a }))
    }

    /// Bits of a register; zero if it is none.
    pub(super) fn width(&self, operand: &Operand) -> u32 {
        let Operand::Name(name) = operand else { return 0 };
        match self.scope.register(name) {
            Some(Register::Word { bits, .. }) => bits,
            Some(Register::Long(_)) => 64,
            _ => 0,
        }
    }

    pub(super) fn cvta(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        let back = line.flag("to");
        let space = Self::space(line);
        let width = if line.need(&["u64", "u32"])? == "u64" { 64 } else { 32 };
        let to = self.value_out(line, width)?;
        let source = line.operand()?;
        let a = match source {
            Operand::Name(name) if self.scope.register(name).is_none() && width == 64 => {
                let place = self.scope.find(name).ok_or_else(|| line.error(&format!("`{name}` is unknown")))?;
                Reg::Long(self.scope.long_constant(place, line.number())?)
            }
            _ => self.value_of(line, source, width)?,
        };
        let window = match space {
            Space::Global | Space::Const | Space::Param => 0,
            Space::Shared => SHARED_WINDOW,
            Space::Local => LOCAL_WINDOW,
            Space::Generic => return Err(line.error("a state space such as .global was expected")),
        };
        if width == 32 && window != 0 {
            return Err(line.error("generic addresses have 64 bits"));
        }
        Ok(Op::Window { to, a, delta: if back { window.wrapping_neg() } else { window } })
    }

    pub(super) fn is_space(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        let space = Self::space(line);
        if space == Space::Generic {
            return Err(line.error("a state space such as .global was expected"));
        }
        Ok(Op::IsSpace { to: self.predicate_out(line)?, a: self.long_in(line)?, space })
    }
}
