//! Tokens to the syntax tree.

use super::lexer::{Spanned, Token, tokens};
use super::syntax::{Instruction, Kernel, Module, Operand, Space, Statement, Variable};
use crate::error::ParseError;

/// Largest alignment of a variable.
const MAX_ALIGN: u64 = 1 << 20;

/// Parses a module.
pub fn parse(text: &str) -> Result<Module, ParseError> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens, at: 0 };
    let mut module = Module::default();
    while parser.at < parser.tokens.len() {
        parser.top(&mut module)?;
    }
    if module.target.is_empty() {
        return Err(ParseError::new(1, "no `.target` found; this isn't the text of a PTX module"));
    }
    Ok(module)
}

struct Parser {
    tokens: Vec<Spanned>,
    at: usize,
}

impl Parser {
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    fn error(&self, expected: &str) -> ParseError {
        match self.tokens.get(self.at) {
            Some(found) => {
                ParseError::new(found.line, format!("found {}, expected {expected}", found.token.describe()))
            }
            None => ParseError::new(self.line(), format!("the text ends, expected {expected}")),
        }
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|spanned| &spanned.token)
    }

    fn take(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(&Token::Mark(mark));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: char) -> Result<(), ParseError> {
        if self.take(mark) { Ok(()) } else { Err(self.error(&format!("`{mark}`"))) }
    }

    fn word(&mut self, expected: &str) -> Result<String, ParseError> {
        match self.peek() {
            Some(Token::Word(word)) => {
                let word = word.clone();
                self.at += 1;
                Ok(word)
            }
            _ => Err(self.error(expected)),
        }
    }

    fn number(&mut self, expected: &str) -> Result<u64, ParseError> {
        match self.peek() {
            Some(&Token::Integer(value)) => {
                self.at += 1;
                Ok(value)
            }
            _ => Err(self.error(expected)),
        }
    }

    fn small(&mut self, expected: &str) -> Result<u32, ParseError> {
        let value = self.number(expected)?;
        u32::try_from(value).map_err(|_| {
            self.at -= 1;
            self.error(expected)
        })
    }

    fn top(&mut self, module: &mut Module) -> Result<(), ParseError> {
        let word = self.word("a directive such as `.version` or `.entry`")?;
        match word.as_str() {
            ".version" => {
                self.word_or_number()?;
            }
            ".address_size" => {
                if self.number("64")? != 64 {
                    self.at -= 1;
                    return Err(self.error("64: kernels of 32-bit addresses are not emulated"));
                }
            }
            ".target" => {
                module.target = self.word("a target such as `sm_80`")?;
                while self.take(',') {
                    self.word("a target option")?;
                }
            }
            ".visible" | ".weak" => {}
            ".entry" => module.kernels.push(self.kernel()?),
            ".extern" => {
                let mut variable = self.top_variable()?;
                if variable.space != Space::Shared || variable.bytes != 0 {
                    return Err(ParseError::new(
                        variable.line,
                        "only dynamic shared memory (`.extern .shared x[]`) may be external",
                    ));
                }
                variable.external = true;
                module.variables.push(variable);
            }
            ".global" | ".const" | ".shared" => {
                self.at -= 1;
                let variable = self.top_variable()?;
                module.variables.push(variable);
            }
            ".func" => {
                self.at -= 1;
                return Err(self.error("kernels only: functions are not emulated, mark them `__forceinline__`"));
            }
            _ => {
                self.at -= 1;
                return Err(self.error("a directive such as `.version` or `.entry`"));
            }
        }
        Ok(())
    }

    /// `8.8` comes as one number or, since words may hold dots, as a word.
    fn word_or_number(&mut self) -> Result<(), ParseError> {
        match self.peek() {
            Some(Token::Word(_) | Token::Integer(_)) => {
                self.at += 1;
                Ok(())
            }
            _ => Err(self.error("a version")),
        }
    }

    fn top_variable(&mut self) -> Result<Variable, ParseError> {
        let word = self.word("a state space such as `.global`")?;
        let space = match word.as_str() {
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".shared" => Space::Shared,
            _ => {
                self.at -= 1;
                return Err(self.error("`.global`, `.const` or `.shared`"));
            }
        };
        let variable = self.variable(space)?;
        self.expect(';')?;
        Ok(variable)
    }

    /// `.align 4 .b8 name[32] = {1, 2}`, after its state space.
    fn variable(&mut self, space: Space) -> Result<Variable, ParseError> {
        let line = self.line();
        let mut align = 0;
        let mut word = self.word("a type such as `.b8`")?;
        while word == ".align" {
            align = self.number("an alignment")?;
            word = self.word("a type such as `.b8`")?;
        }
        let Some(size) = word.strip_prefix('.').and_then(type_bytes) else {
            self.at -= 1;
            return Err(self.error("a type such as `.b8`"));
        };
        let mut name = self.word("the name of a variable")?;
        // What a parameter points to: nothing that an emulator needs.
        while space == Space::Param && matches!(name.as_str(), ".ptr" | ".global" | ".const" | ".shared" | ".align") {
            if name == ".align" {
                self.number("an alignment")?;
            }
            name = self.word("the name of a parameter")?;
        }
        let mut bytes = size;
        while self.take('[') {
            if self.take(']') {
                bytes = 0;
                continue;
            }
            bytes = bytes
                .checked_mul(self.number("a length")?)
                .filter(|&bytes| bytes <= 1 << 32)
                .ok_or_else(|| ParseError::new(line, format!("variable `{name}` is larger than 4 GiB")))?;
            self.expect(']')?;
        }
        let mut initial = Vec::new();
        if self.take('=') {
            let list = self.take('{');
            loop {
                initial.extend_from_slice(&self.initial_value()?.to_le_bytes()[..size as usize]);
                if !(list && self.take(',')) {
                    break;
                }
            }
            if list {
                self.expect('}')?;
            }
            if initial.len() as u64 > bytes {
                return Err(ParseError::new(line, format!("variable `{name}` has more initial values than elements")));
            }
        }
        let align = if align == 0 { size } else { align };
        if !align.is_power_of_two() || align > MAX_ALIGN {
            let problem = format!("alignment {align} of `{name}` is no power of two up to {MAX_ALIGN}");
            return Err(ParseError::new(line, problem));
        }
        Ok(Variable { space, name, bytes, align, initial, external: false, line })
    }

    fn initial_value(&mut self) -> Result<u64, ParseError> {
        let minus = self.take('-');
        match self.peek() {
            Some(&Token::Integer(value)) => {
                self.at += 1;
                Ok(if minus { value.wrapping_neg() } else { value })
            }
            Some(&Token::Single(bits)) if !minus => {
                self.at += 1;
                Ok(u64::from(bits))
            }
            Some(&Token::Double(bits)) if !minus => {
                self.at += 1;
                Ok(bits)
            }
            _ => Err(self.error("a number (addresses in initial values are not emulated)")),
        }
    }

    fn kernel(&mut self) -> Result<Kernel, ParseError> {
        let line = self.line();
        let name = self.word("the name of a kernel")?;
        let mut parameters = Vec::new();
        if self.take('(') && !self.take(')') {
            loop {
                if self.word("`.param`")? != ".param" {
                    self.at -= 1;
                    return Err(self.error("`.param`"));
                }
                parameters.push(self.variable(Space::Param)?);
                if !self.take(',') {
                    break;
                }
            }
            self.expect(')')?;
        }
        let mut kernel = Kernel { name, line, parameters, max_threads: None, exact_threads: false, body: Vec::new() };
        while let Some(Token::Word(word)) = self.peek() {
            let word = word.clone();
            self.at += 1;
            match word.as_str() {
                ".maxntid" | ".reqntid" => {
                    let mut product = self.small("a number of threads")?;
                    while self.take(',') {
                        product = product.saturating_mul(self.small("a number of threads")?);
                    }
                    kernel.max_threads = Some(product);
                    kernel.exact_threads = word == ".reqntid";
                }
                // Wishes to the register allocator.
                ".minnctapersm" | ".maxnctapersm" | ".maxnreg" => {
                    self.number("a number")?;
                }
                _ => {
                    self.at -= 1;
                    return Err(self.error("`.maxntid`, `.reqntid`, `.minnctapersm`, `.maxnreg` or `{`"));
                }
            }
        }
        self.expect('{')?;
        let mut depth = 0usize;
        loop {
            if self.take('{') {
                depth += 1;
                kernel.body.push(Statement::Open);
            } else if self.take('}') {
                if depth == 0 {
                    return Ok(kernel);
                }
                depth -= 1;
                kernel.body.push(Statement::Close);
            } else if let Some(statement) = self.statement()? {
                kernel.body.push(statement);
            }
        }
    }

    fn statement(&mut self) -> Result<Option<Statement>, ParseError> {
        let line = self.line();
        if self.take('@') {
            let not = self.take('!');
            let register = self.word("a predicate register")?;
            return self.instruction(line, Some((register, not))).map(|i| Some(Statement::Instruction(i)));
        }
        if self.take(';') {
            return Ok(None);
        }
        let word = self.word("an instruction, a label or a directive")?;
        match word.as_str() {
            ".reg" => return self.registers(line).map(Some),
            ".shared" | ".local" => {
                let space = if word == ".shared" { Space::Shared } else { Space::Local };
                let variable = self.variable(space)?;
                self.expect(';')?;
                return Ok(Some(Statement::Variable(variable)));
            }
            ".pragma" => {
                while !self.take(';') {
                    if !matches!(self.peek(), Some(Token::Quoted(_) | Token::Mark(','))) {
                        return Err(self.error("a quoted pragma"));
                    }
                    self.at += 1;
                }
                return Ok(None);
            }
            _ => {}
        }
        if self.take(':') {
            if let Some(Token::Word(next)) = self.peek()
                && next == ".branchtargets"
            {
                self.at += 1;
                let mut labels = vec![self.word("a label")?];
                while self.take(',') {
                    labels.push(self.word("a label")?);
                }
                self.expect(';')?;
                return Ok(Some(Statement::Targets { name: word, labels, line }));
            }
            return Ok(Some(Statement::Label { name: word, line }));
        }
        self.at -= 1;
        self.instruction(line, None).map(|i| Some(Statement::Instruction(i)))
    }

    fn registers(&mut self, line: u32) -> Result<Statement, ParseError> {
        let word = self.word("the type of a register")?;
        let Some(kind) = word.strip_prefix('.') else {
            self.at -= 1;
            return Err(self.error("the type of a register"));
        };
        let mut names = Vec::new();
        loop {
            let name = self.word("the name of a register")?;
            let count = if self.take('<') {
                let count = self.small("a number of registers")?;
                self.expect('>')?;
                Some(count)
            } else {
                None
            };
            names.push((name, count));
            if !self.take(',') {
                break;
            }
        }
        self.expect(';')?;
        Ok(Statement::Registers { kind: kind.to_string(), names, line })
    }

    fn instruction(&mut self, line: u32, guard: Option<(String, bool)>) -> Result<Instruction, ParseError> {
        let word = self.word("an opcode")?;
        let opcode: Vec<String> = word.split('.').map(str::to_string).collect();
        if opcode[0].is_empty() {
            self.at -= 1;
            return Err(self.error("an opcode"));
        }
        let mut operands = Vec::new();
        if !self.take(';') {
            loop {
                operands.push(self.operand()?);
                if !self.take(',') {
                    break;
                }
            }
            self.expect(';')?;
        }
        Ok(Instruction { line, guard, opcode, operands })
    }

    fn operand(&mut self) -> Result<Operand, ParseError> {
        let first = self.simple_operand()?;
        if self.take('|') {
            let second = self.simple_operand()?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn simple_operand(&mut self) -> Result<Operand, ParseError> {
        if self.take('[') {
            let base = match self.peek() {
                Some(Token::Word(_)) => Some(self.word("a register or variable")?),
                _ => None,
            };
            let offset = match (&base, self.peek()) {
                (Some(_), Some(Token::Mark(']'))) => 0,
                (Some(_), Some(Token::Mark('+' | '-'))) => {
                    let mut minus = self.take('-');
                    if !minus {
                        self.expect('+')?;
                        minus = self.take('-');
                    }
                    let value = self.number("an offset")?.cast_signed();
                    if minus { value.wrapping_neg() } else { value }
                }
                _ => self.number("an address")?.cast_signed(),
            };
            self.expect(']')?;
            return Ok(Operand::Address(base, offset));
        }
        if self.take('{') {
            let mut elements = Vec::new();
            loop {
                elements.push(self.simple_operand()?);
                if !self.take(',') {
                    break;
                }
            }
            self.expect('}')?;
            return Ok(Operand::Vector(elements));
        }
        if self.take('!') {
            return Ok(Operand::Not(self.word("a predicate register")?));
        }
        let minus = self.take('-');
        let operand = match self.peek() {
            Some(&Token::Integer(value)) => Operand::Integer(if minus { value.wrapping_neg() } else { value }),
            Some(&Token::Single(bits)) => Operand::Single(if minus { bits ^ 1 << 31 } else { bits }),
            Some(&Token::Double(bits)) => Operand::Double(if minus { bits ^ 1 << 63 } else { bits }),
            Some(Token::Word(word)) if !minus => Operand::Name(word.clone()),
            _ => return Err(self.error("an operand")),
        };
        self.at += 1;
        Ok(operand)
    }
}

/// Bytes of one element of a variable.
fn type_bytes(name: &str) -> Option<u64> {
    Some(match name {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        _ => return None,
    })
}
