//! One instruction while it is decoded: a cursor over its modifiers and one over its operands. What is left over at the end is
//! an error, so nothing is ever ignored.

use super::Decoder;
use super::scope::Register;
use crate::error::ParseError;
use crate::parse::{Instruction, Operand};
use crate::program::{Address, Reg, Slot};

/// The cursors.
pub struct Line<'a> {
    instruction: &'a Instruction,
    modifier: usize,
    operand: usize,
}

impl<'a> Line<'a> {
    /// At the beginning of an instruction.
    pub fn new(instruction: &'a Instruction) -> Self {
        Self { instruction, modifier: 1, operand: 0 }
    }

    /// `ld` of `ld.global.u32`.
    pub fn root(&self) -> &'a str {
        &self.instruction.opcode[0]
    }

    /// Its line.
    pub fn number(&self) -> u32 {
        self.instruction.line
    }

    fn opcode(&self) -> String {
        self.instruction.opcode.join(".")
    }

    /// An error at this line.
    pub fn error(&self, problem: &str) -> ParseError {
        ParseError::new(self.instruction.line, format!("`{}`: {problem}", self.opcode()))
    }

    /// The next modifier, if it is one of these.
    pub fn modifier(&mut self, known: &[&str]) -> Option<&'a str> {
        let next = self.instruction.opcode.get(self.modifier)?;
        if known.contains(&next.as_str()) {
            self.modifier += 1;
            return Some(next);
        }
        None
    }

    /// Whether the next modifier is this one; it is taken.
    pub fn flag(&mut self, name: &str) -> bool {
        self.modifier(&[name]).is_some()
    }

    /// The next modifier without taking it.
    pub fn peek(&self) -> Option<&'a str> {
        self.instruction.opcode.get(self.modifier).map(String::as_str)
    }

    /// The next modifier, which must be one of these.
    pub fn need(&mut self, known: &[&str]) -> Result<&'a str, ParseError> {
        self.modifier(known).ok_or_else(|| {
            let found = self.peek().map_or("nothing".to_string(), |found| format!("`.{found}`"));
            let known: Vec<String> = known.iter().map(|name| format!(".{name}")).collect();
            self.error(&format!("found {found}, expected {}", known.join(", ")))
        })
    }

    /// The next modifier, whatever it is.
    pub fn any(&mut self) -> Result<&'a str, ParseError> {
        let next = self.peek().ok_or_else(|| self.error("a modifier is missing at the end"))?;
        self.modifier += 1;
        Ok(next)
    }

    /// The next operand.
    pub fn operand(&mut self) -> Result<&'a Operand, ParseError> {
        let next = self.instruction.operands.get(self.operand).ok_or_else(|| self.error("an operand is missing"))?;
        self.operand += 1;
        Ok(next)
    }

    /// Whether another operand follows.
    pub fn more(&self) -> bool {
        self.operand < self.instruction.operands.len()
    }

    /// Nothing may be left.
    pub fn finish(&self) -> Result<(), ParseError> {
        if let Some(left) = self.peek() {
            return Err(self.error(&format!("unknown modifier `.{left}`")));
        }
        if self.more() {
            let (taken, given) = (self.operand, self.instruction.operands.len());
            return Err(self.error(&format!("has {given} operands, expected {taken}")));
        }
        Ok(())
    }
}

/// Bits of a type in a register.
pub fn bits(kind: &str) -> Option<u32> {
    Some(match kind {
        "b8" | "u8" | "s8" => 8,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 16,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 32,
        "b64" | "u64" | "s64" | "f64" => 64,
        _ => return None,
    })
}

impl Decoder<'_> {
    /// The predicate register of a name.
    pub fn predicate_named(&self, line: &Line, name: &str) -> Result<Slot, ParseError> {
        match self.scope.register(name) {
            Some(Register::Predicate(slot)) => Ok(slot),
            Some(_) => Err(line.error(&format!("`{name}` is no predicate"))),
            None => Err(line.error(&format!("register `{name}` is not declared"))),
        }
    }

    /// A predicate operand that is read, and whether it is negated.
    pub fn predicate_in(&mut self, line: &mut Line) -> Result<(Slot, bool), ParseError> {
        match line.operand()? {
            Operand::Name(name) => Ok((self.predicate_named(line, name)?, false)),
            Operand::Not(name) => Ok((self.predicate_named(line, name)?, true)),
            _ => Err(line.error("a predicate was expected as operand")),
        }
    }

    /// A predicate operand that is written.
    pub fn predicate_out(&mut self, line: &mut Line) -> Result<Slot, ParseError> {
        match line.operand()? {
            Operand::Name(name) => self.predicate_named(line, name),
            _ => Err(line.error("a predicate was expected as result")),
        }
    }

    /// A value that is read, in `bits` bits.
    pub fn value_of(&mut self, line: &Line, operand: &Operand, bits: u32) -> Result<Reg, ParseError> {
        let constant = match operand {
            Operand::Name(name) => {
                match self.scope.register(name) {
                    Some(register) => return check(line, name, register, bits),
                    None if bits == 32 => {
                        if let Some(slot) = self.scope.special(name, line.number())? {
                            return Ok(Reg::Word(slot));
                        }
                    }
                    None => {}
                }
                return Err(line.error(&format!("`{name}` is no register of {bits} bits")));
            }
            // Integers may be given with their sign bits or without; what doesn't fit otherwise is a mistake.
            Operand::Integer(value) => {
                let fits = bits == 64
                    || *value < 1 << bits
                    || value.cast_signed() < 0 && value.cast_signed() >= -(1 << (bits - 1));
                if !fits {
                    return Err(line.error(&format!("constant {} does not fit into {bits} bits", value.cast_signed())));
                }
                *value
            }
            Operand::Single(value) if bits == 32 => u64::from(*value),
            Operand::Double(value) if bits == 64 => *value,
            _ => return Err(line.error(&format!("a register or constant of {bits} bits was expected as operand"))),
        };
        Ok(if bits == 64 {
            Reg::Long(self.scope.long_constant(constant, line.number())?)
        } else {
            let mask = if bits == 32 { u32::MAX } else { (1 << bits) - 1 };
            Reg::Word(self.scope.word_constant(constant as u32 & mask, line.number())?)
        })
    }

    /// The next operand, read, in `bits` bits.
    pub fn value_in(&mut self, line: &mut Line, bits: u32) -> Result<Reg, ParseError> {
        let operand = line.operand()?;
        self.value_of(line, operand, bits)
    }

    /// The next operand, read, of 16 or 32 bits.
    pub fn word_in(&mut self, line: &mut Line, bits: u32) -> Result<Slot, ParseError> {
        match self.value_in(line, bits)? {
            Reg::Word(slot) => Ok(slot),
            Reg::Long(_) => Err(line.error("a register of at most 32 bits was expected")),
        }
    }

    /// The next operand, read, of 64 bits.
    pub fn long_in(&mut self, line: &mut Line) -> Result<Slot, ParseError> {
        match self.value_in(line, 64)? {
            Reg::Long(slot) => Ok(slot),
            Reg::Word(_) => Err(line.error("a register of 64 bits was expected")),
        }
    }

    /// A register that is written, of `bits` bits.
    pub fn result_of(&mut self, line: &Line, operand: &Operand, bits: u32) -> Result<Reg, ParseError> {
        match operand {
            Operand::Name(name) => match self.scope.register(name) {
                Some(register) => check(line, name, register, bits),
                None => Err(line.error(&format!("register `{name}` is not declared"))),
            },
            _ => Err(line.error(&format!("a register of {bits} bits was expected as result"))),
        }
    }

    /// The next operand, written, of `bits` bits.
    pub fn value_out(&mut self, line: &mut Line, bits: u32) -> Result<Reg, ParseError> {
        let operand = line.operand()?;
        self.result_of(line, operand, bits)
    }

    /// The next operand, written, of 16 or 32 bits.
    pub fn word_out(&mut self, line: &mut Line, bits: u32) -> Result<Slot, ParseError> {
        match self.value_out(line, bits)? {
            Reg::Word(slot) => Ok(slot),
            Reg::Long(_) => Err(line.error("a register of at most 32 bits was expected")),
        }
    }

    /// The next operand, written, of 64 bits.
    pub fn long_out(&mut self, line: &mut Line) -> Result<Slot, ParseError> {
        match self.value_out(line, 64)? {
            Reg::Long(slot) => Ok(slot),
            Reg::Word(_) => Err(line.error("a register of 64 bits was expected")),
        }
    }

    /// A register of memory instructions and conversions, which may be wider than the type of `bits` bits.
    pub fn at_least(&mut self, line: &Line, operand: &Operand, bits: u32) -> Result<Reg, ParseError> {
        match operand {
            Operand::Name(name) => match self.scope.register(name) {
                Some(register) => {
                    let width = match register {
                        Register::Word { bits, .. } => bits,
                        Register::Long(_) => 64,
                        Register::Predicate(_) => 0,
                    };
                    match register.value() {
                        Some(reg) if width >= bits => Ok(reg),
                        _ => Err(line.error(&format!("register `{name}` is too narrow for {bits} bits"))),
                    }
                }
                None => Err(line.error(&format!("register `{name}` is not declared"))),
            },
            _ => Err(line.error("a register was expected as operand")),
        }
    }

    /// The next operand as an address.
    pub fn address(&mut self, line: &mut Line) -> Result<Address, ParseError> {
        let operand = line.operand()?;
        let Operand::Address(base, offset) = operand else {
            return Err(line.error("an address in brackets was expected as operand"));
        };
        let Some(name) = base else { return Ok(Address { base: None, offset: *offset }) };
        if let Some(register) = self.scope.register(name) {
            let base = register.value().ok_or_else(|| line.error(&format!("`{name}` is no address")))?;
            return Ok(Address { base: Some(base), offset: *offset });
        }
        match self.scope.find(name) {
            Some(place) => Ok(Address { base: None, offset: place.cast_signed().wrapping_add(*offset) }),
            None => Err(line.error(&format!("`{name}` is neither a register nor a variable"))),
        }
    }
}

fn check(line: &Line, name: &str, register: Register, bits: u32) -> Result<Reg, ParseError> {
    let found = match register {
        Register::Word { bits, .. } => bits,
        Register::Long(_) => 64,
        Register::Predicate(_) => 1,
    };
    match register.value() {
        Some(reg) if found == bits => Ok(reg),
        Some(_) => Err(line.error(&format!("register `{name}` has {found} bits, expected {bits}"))),
        None => Err(line.error(&format!("`{name}` is a predicate, expected a register of {bits} bits"))),
    }
}
