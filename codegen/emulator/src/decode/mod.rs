//! From the syntax tree to a program: every modifier and operand is checked here, once, so that running needs no checks of form.

mod arithmetic;
mod control;
mod line;
mod memory;
mod moves;
mod scope;
mod warp;

use std::collections::HashMap;

use crate::error::ParseError;
use crate::parse::{Instruction, Kernel, Space, Statement, Variable};
use crate::program::{Inst, Op, Program};
use line::Line;
use scope::Scope;

/// The kernel as a program. `places` are the variables of the module with an address, `shared` those in shared memory.
pub fn decode(kernel: &Kernel, places: &HashMap<String, u64>, shared: &[Variable]) -> Result<Program, ParseError> {
    let mut scope = Scope::new(places.clone());
    for parameter in &kernel.parameters {
        scope.variable(parameter)?;
    }
    let mut dynamic_align = 1;
    for variable in shared {
        if variable.external {
            scope.dynamic(&variable.name);
            dynamic_align = dynamic_align.max(variable.align);
        } else {
            scope.variable(variable)?;
        }
    }
    let mut labels = HashMap::new();
    let mut tables = HashMap::new();
    let mut count = 0u32;
    for statement in &kernel.body {
        match statement {
            Statement::Variable(variable) => scope.variable(variable)?,
            Statement::Label { name, line } => {
                if labels.insert(name.as_str(), count).is_some() {
                    return Err(ParseError::new(*line, format!("label `{name}` is set twice")));
                }
            }
            Statement::Targets { name, labels, line } => {
                tables.insert(name.as_str(), (labels.as_slice(), *line));
            }
            Statement::Instruction(_) => count += 1,
            Statement::Registers { .. } | Statement::Open | Statement::Close => {}
        }
    }
    scope.place_dynamic(dynamic_align);

    let mut decoder = Decoder { scope, labels, tables };
    let mut code = Vec::with_capacity(count as usize + 1);
    for statement in &kernel.body {
        match statement {
            Statement::Registers { kind, names, line } => decoder.scope.declare(kind, names, *line)?,
            Statement::Open => decoder.scope.open(),
            Statement::Close => decoder.scope.close(),
            Statement::Instruction(instruction) => code.push(decoder.instruction(instruction)?),
            Statement::Variable(_) | Statement::Label { .. } | Statement::Targets { .. } => {}
        }
    }
    let last = code.last().map_or(kernel.line, |inst| inst.line);
    code.push(Inst { op: Op::Exit, guard: None, line: last });

    let mut scope = decoder.scope;
    let parameters = std::mem::take(&mut scope.parameters);
    let mut shared_names = std::mem::take(&mut scope.shared_names);
    shared_names.sort();
    let (parameter_bytes, shared_bytes, local_bytes) = (scope.parameter_bytes, scope.shared_bytes, scope.local_bytes);
    let finished = scope.finish();
    Ok(Program {
        name: kernel.name.clone(),
        parameters,
        parameter_bytes: parameter_bytes as usize,
        code,
        banks: finished.banks,
        word_constants: finished.word_constants,
        long_constants: finished.long_constants,
        specials: finished.specials,
        shared_bytes,
        shared_names,
        local_bytes: local_bytes.next_multiple_of(8),
        max_threads: kernel.max_threads.map(|threads| (threads, kernel.exact_threads)),
    })
}

/// What decoding one instruction needs to know of the kernel.
struct Decoder<'a> {
    scope: Scope,
    labels: HashMap<&'a str, u32>,
    tables: HashMap<&'a str, (&'a [String], u32)>,
}

impl Decoder<'_> {
    fn instruction(&mut self, instruction: &Instruction) -> Result<Inst, ParseError> {
        let mut line = Line::new(instruction);
        let guard = match &instruction.guard {
            Some((name, not)) => Some((self.predicate_named(&line, name)?, *not)),
            None => None,
        };
        let op = match line.root() {
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "neg" | "abs" | "sad" | "popc"
            | "clz" | "brev" | "bfind" | "bfe" | "bfi" | "shl" | "shr" | "shf" | "prmt" | "lop3" | "dp2a" | "dp4a"
            | "and" | "or" | "xor" | "not" | "cnot" | "copysign" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin"
            | "cos" | "tanh" => self.arithmetic(&mut line)?,
            "mov" => self.mov(&mut line)?,
            "cvt" => self.cvt(&mut line)?,
            "cvta" => self.cvta(&mut line)?,
            "isspacep" => self.is_space(&mut line)?,
            "setp" => self.setp(&mut line)?,
            "selp" => self.selp(&mut line)?,
            "ld" | "ldu" => self.load(&mut line)?,
            "st" => self.store(&mut line)?,
            "atom" => self.atomic(&mut line, true)?,
            "red" => self.atomic(&mut line, false)?,
            "cp" => self.cp_async(&mut line)?,
            "prefetch" | "prefetchu" | "discard" | "applypriority" => self.hint(&mut line)?,
            "nanosleep" => {
                line.need(&["u32"])?;
                self.word_in(&mut line, 32)?;
                Op::Nothing
            }
            "membar" | "fence" => self.fence(&mut line)?,
            "bra" => self.branch(&mut line)?,
            "brx" => self.branch_table(&mut line)?,
            "ret" | "exit" => {
                line.modifier(&["uni"]);
                Op::Exit
            }
            "trap" | "brkpt" => Op::Trap,
            "bar" | "barrier" => self.barrier(&mut line)?,
            "shfl" => self.shuffle(&mut line)?,
            "vote" => self.vote(&mut line)?,
            "match" => self.matching(&mut line)?,
            "redux" => self.reduce(&mut line)?,
            "activemask" => {
                line.need(&["b32"])?;
                Op::ActiveMask { to: self.word_out(&mut line, 32)? }
            }
            "ldmatrix" => self.load_matrix(&mut line)?,
            "mma" => self.multiply(&mut line)?,
            "call" => {
                return Err(line.error("functions are not emulated, mark them `__forceinline__` (and don't print)"));
            }
            root => return Err(line.error(&format!("unknown opcode `{root}`"))),
        };
        line.finish()?;
        Ok(Inst { op, guard, line: instruction.line })
    }

    /// The instruction index of a label.
    fn label(&self, line: &Line, name: &str) -> Result<u32, ParseError> {
        self.labels.get(name).copied().ok_or_else(|| line.error(&format!("label `{name}` is nowhere in the kernel")))
    }

    /// The state space that the next modifier names; generic if it names none.
    fn space(line: &mut Line) -> Space {
        match line.modifier(&["global", "const", "shared", "shared::cta", "local", "param", "param::entry"]) {
            Some("global") => Space::Global,
            Some("const") => Space::Const,
            Some("shared" | "shared::cta") => Space::Shared,
            Some("local") => Space::Local,
            Some("param" | "param::entry") => Space::Param,
            _ => Space::Generic,
        }
    }
}
