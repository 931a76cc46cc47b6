//! Names: registers by scope, variables, labels, constants.

use std::collections::HashMap;

use crate::error::ParseError;
use crate::parse::{Space, Variable};
use crate::program::{Banks, Parameter, Reg, Slot, Special};

/// A declared register.
#[derive(Clone, Copy, Debug)]
pub enum Register {
    /// Of 16 or 32 bits.
    Word {
        /// Its slot.
        slot: Slot,
        /// Its bits.
        bits: u32,
    },
    /// Of 64 bits.
    Long(Slot),
    /// A predicate.
    Predicate(Slot),
}

/// Registers that are declared as a stem and a count: `%r<10>`.
#[derive(Clone, Copy)]
struct Stem {
    kind: Kind,
    first: u32,
    count: u32,
}

#[derive(Clone, Copy)]
enum Kind {
    Word(u32),
    Long,
    Predicate,
}

/// All names of a kernel.
pub struct Scope {
    stems: Vec<HashMap<String, Stem>>,
    singles: Vec<HashMap<String, Register>>,
    /// Offset in shared, local or parameter memory; address in global and constant memory.
    places: HashMap<String, u64>,
    words: HashMap<u32, Slot>,
    longs: HashMap<u64, Slot>,
    specials: Vec<(Slot, Special)>,
    banks: Banks,
    /// Bytes of shared memory so far.
    pub shared_bytes: u64,
    /// Names of shared variables.
    pub shared_names: Vec<(u64, String)>,
    /// Bytes of local memory so far.
    pub local_bytes: u64,
    /// Parameters.
    pub parameters: Vec<Parameter>,
    /// Bytes of parameters so far.
    pub parameter_bytes: u64,
    dynamic: Vec<String>,
}

impl Scope {
    /// A scope with the places that the module has.
    pub fn new(places: HashMap<String, u64>) -> Self {
        Self {
            stems: vec![HashMap::new()],
            singles: vec![HashMap::new()],
            places,
            words: HashMap::new(),
            longs: HashMap::new(),
            specials: Vec::new(),
            banks: Banks::default(),
            shared_bytes: 0,
            shared_names: Vec::new(),
            local_bytes: 0,
            parameters: Vec::new(),
            parameter_bytes: 0,
            dynamic: Vec::new(),
        }
    }

    /// `{`
    pub fn open(&mut self) {
        self.stems.push(HashMap::new());
        self.singles.push(HashMap::new());
    }

    /// `}`
    pub fn close(&mut self) {
        self.stems.pop();
        self.singles.pop();
    }

    fn fresh(&mut self, kind: Kind, count: u32, line: u32) -> Result<u32, ParseError> {
        let bank = match kind {
            Kind::Word(_) => &mut self.banks.words,
            Kind::Long => &mut self.banks.longs,
            Kind::Predicate => &mut self.banks.predicates,
        };
        let first = *bank;
        *bank += count as usize;
        if *bank > usize::from(Slot::MAX) {
            return Err(ParseError::new(
                line,
                format!("kernel declares {bank} registers of a kind, at most 65535 fit"),
            ));
        }
        Ok(first as u32)
    }

    /// A `.reg` declaration.
    pub fn declare(&mut self, kind: &str, names: &[(String, Option<u32>)], line: u32) -> Result<(), ParseError> {
        let kind = match kind {
            "pred" => Kind::Predicate,
            "b16" | "u16" | "s16" | "f16" | "bf16" => Kind::Word(16),
            "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => Kind::Word(32),
            "b64" | "u64" | "s64" | "f64" => Kind::Long,
            _ => {
                return Err(ParseError::new(
                    line,
                    format!("registers of type `.{kind}` are unknown, expected .pred or a type of 16, 32 or 64 bits"),
                ));
            }
        };
        for (name, count) in names {
            let first = self.fresh(kind, count.unwrap_or(1), line)?;
            let depth = self.stems.len() - 1;
            match count {
                Some(count) => {
                    self.stems[depth].insert(name.clone(), Stem { kind, first, count: *count });
                }
                None => {
                    self.singles[depth].insert(name.clone(), register(kind, first));
                }
            }
        }
        Ok(())
    }

    /// The register of a name, if it is one.
    pub fn register(&self, name: &str) -> Option<Register> {
        let split = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (stem, number) = name.split_at(split);
        for (stems, singles) in self.stems.iter().zip(&self.singles).rev() {
            if let Some(&found) = singles.get(name) {
                return Some(found);
            }
            if let (Some(found), Ok(number)) = (stems.get(stem), number.parse::<u32>())
                && number < found.count
            {
                return Some(register(found.kind, found.first + number));
            }
        }
        None
    }

    /// A shared or local variable, or a parameter.
    pub fn variable(&mut self, variable: &Variable) -> Result<(), ParseError> {
        let end = match variable.space {
            Space::Shared => &mut self.shared_bytes,
            Space::Local => &mut self.local_bytes,
            _ => &mut self.parameter_bytes,
        };
        let address = end.next_multiple_of(variable.align);
        *end = address + variable.bytes;
        match variable.space {
            Space::Shared => self.shared_names.push((address, variable.name.clone())),
            Space::Param => self.parameters.push(Parameter { offset: address, bytes: variable.bytes }),
            _ => {}
        }
        self.place(&variable.name, address, variable.line)
    }

    /// Dynamic shared memory: its place is known when all other variables are.
    pub fn dynamic(&mut self, name: &str) {
        self.dynamic.push(name.to_string());
        self.places.insert(name.to_string(), 0);
    }

    /// Puts dynamic shared memory behind all else. Shared variables must all be declared.
    pub fn place_dynamic(&mut self, align: u64) {
        self.shared_bytes =
            if self.dynamic.is_empty() { self.shared_bytes } else { self.shared_bytes.next_multiple_of(align) };
        for name in std::mem::take(&mut self.dynamic) {
            self.shared_names.push((self.shared_bytes, name.clone()));
            self.places.insert(name, self.shared_bytes);
        }
    }

    fn place(&mut self, name: &str, place: u64, line: u32) -> Result<(), ParseError> {
        match self.places.insert(name.to_string(), place) {
            None => Ok(()),
            Some(_) => Err(ParseError::new(line, format!("`{name}` is declared twice"))),
        }
    }

    /// The place of a variable.
    pub fn find(&self, name: &str) -> Option<u64> {
        self.places.get(name).copied()
    }

    /// The register that holds a constant of up to 32 bits.
    pub fn word_constant(&mut self, value: u32, line: u32) -> Result<Slot, ParseError> {
        if let Some(&slot) = self.words.get(&value) {
            return Ok(slot);
        }
        let slot = self.fresh(Kind::Word(32), 1, line)? as Slot;
        self.words.insert(value, slot);
        Ok(slot)
    }

    /// The register that holds a constant of 64 bits.
    pub fn long_constant(&mut self, value: u64, line: u32) -> Result<Slot, ParseError> {
        if let Some(&slot) = self.longs.get(&value) {
            return Ok(slot);
        }
        let slot = self.fresh(Kind::Long, 1, line)? as Slot;
        self.longs.insert(value, slot);
        Ok(slot)
    }

    /// The register of a special register, if the name is one.
    pub fn special(&mut self, name: &str, line: u32) -> Result<Option<Slot>, ParseError> {
        let Some(special) = special(name) else { return Ok(None) };
        if let Some((slot, _)) = self.specials.iter().find(|(_, known)| *known == special) {
            return Ok(Some(*slot));
        }
        let slot = self.fresh(Kind::Word(32), 1, line)? as Slot;
        self.specials.push((slot, special));
        Ok(Some(slot))
    }

    /// A register that nobody reads: the target of `_`.
    pub fn sink_word(&mut self, line: u32) -> Result<Slot, ParseError> {
        self.fresh(Kind::Word(32), 1, line).map(|slot| slot as Slot)
    }

    /// What the program needs of all this.
    pub fn finish(self) -> Finished {
        let mut word_constants: Vec<_> = self.words.into_iter().map(|(value, slot)| (slot, value)).collect();
        let mut long_constants: Vec<_> = self.longs.into_iter().map(|(value, slot)| (slot, value)).collect();
        word_constants.sort_unstable();
        long_constants.sort_unstable();
        Finished { banks: self.banks, word_constants, long_constants, specials: self.specials }
    }
}

/// The registers of a finished scope.
pub struct Finished {
    /// Sizes of the banks.
    pub banks: Banks,
    /// Constants of up to 32 bits.
    pub word_constants: Vec<(Slot, u32)>,
    /// Constants of 64 bits.
    pub long_constants: Vec<(Slot, u64)>,
    /// Special registers.
    pub specials: Vec<(Slot, Special)>,
}

fn register(kind: Kind, slot: u32) -> Register {
    match kind {
        Kind::Word(bits) => Register::Word { slot: slot as Slot, bits },
        Kind::Long => Register::Long(slot as Slot),
        Kind::Predicate => Register::Predicate(slot as Slot),
    }
}

impl Register {
    /// The register as a value; `None` for a predicate.
    pub fn value(self) -> Option<Reg> {
        match self {
            Self::Word { slot, .. } => Some(Reg::Word(slot)),
            Self::Long(slot) => Some(Reg::Long(slot)),
            Self::Predicate(_) => None,
        }
    }
}

fn special(name: &str) -> Option<Special> {
    let axis = |rest: &str| match rest {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    if let Some((stem, rest)) = name.split_once('.') {
        let axis = axis(rest)?;
        return match stem {
            "%tid" => Some(Special::Thread(axis)),
            "%ntid" => Some(Special::Threads(axis)),
            "%ctaid" => Some(Special::Block(axis)),
            "%nctaid" => Some(Special::Blocks(axis)),
            _ => None,
        };
    }
    Some(match name {
        "%laneid" => Special::Lane,
        "%warpid" => Special::Warp,
        "%nwarpid" => Special::Warps,
        "%lanemask_eq" => Special::LaneMask { lower: false, own: true, higher: false },
        "%lanemask_lt" => Special::LaneMask { lower: true, own: false, higher: false },
        "%lanemask_le" => Special::LaneMask { lower: true, own: true, higher: false },
        "%lanemask_gt" => Special::LaneMask { lower: false, own: false, higher: true },
        "%lanemask_ge" => Special::LaneMask { lower: false, own: true, higher: true },
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        _ => return None,
    })
}
