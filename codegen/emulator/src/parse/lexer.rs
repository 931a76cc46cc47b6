//! PTX text to tokens that know their line.

use crate::error::ParseError;

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// An identifier, register, directive, label or opcode with all of its modifiers: `%r1`, `.reg`, `ld.global.v4.u32`.
    Word(String),
    /// An integer as its 64 bits; `minus` is applied by the parser.
    Integer(u64),
    /// `0f3F800000`: the bits of an f32.
    Single(u32),
    /// `0d3FF0000000000000`: the bits of an f64.
    Double(u64),
    /// A quoted string, as in `.pragma "nounroll";`.
    Quoted(String),
    /// Punctuation.
    Mark(char),
}

impl Token {
    /// The token as messages show it.
    pub fn describe(&self) -> String {
        match self {
            Self::Word(word) => format!("`{word}`"),
            Self::Integer(value) => format!("`{value}`"),
            Self::Single(bits) => format!("`0f{bits:08X}`"),
            Self::Double(bits) => format!("`0d{bits:016X}`"),
            Self::Quoted(text) => format!("\"{text}\""),
            Self::Mark(mark) => format!("`{mark}`"),
        }
    }
}

/// A token and the line it stands in, from 1.
#[derive(Clone, Debug)]
pub struct Spanned {
    /// The token.
    pub token: Token,
    /// Its line.
    pub line: u32,
}

/// All tokens of `text`. Comments are left out.
pub fn tokens(text: &str) -> Result<Vec<Spanned>, ParseError> {
    let mut lexer = Lexer { bytes: text.as_bytes(), at: 0, line: 1 };
    let mut out = Vec::new();
    while let Some(token) = lexer.next()? {
        out.push(Spanned { token, line: lexer.line });
    }
    Ok(out)
}

struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u32,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn skip_blank(&mut self) -> Result<(), ParseError> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'\n', _) => {
                    self.line += 1;
                    self.at += 1;
                }
                (b' ' | b'\t' | b'\r', _) => self.at += 1,
                (b'/', b'/') => {
                    while self.at < self.bytes.len() && self.peek(0) != b'\n' {
                        self.at += 1;
                    }
                }
                (b'/', b'*') => {
                    let start = self.line;
                    while (self.peek(0), self.peek(1)) != (b'*', b'/') {
                        if self.at >= self.bytes.len() {
                            return Err(ParseError::new(start, "comment is not closed; expected `*/`"));
                        }
                        self.line += u32::from(self.peek(0) == b'\n');
                        self.at += 1;
                    }
                    self.at += 2;
                }
                _ => return Ok(()),
            }
        }
    }

    fn next(&mut self) -> Result<Option<Token>, ParseError> {
        self.skip_blank()?;
        if self.at >= self.bytes.len() {
            return Ok(None);
        }
        let token = match self.peek(0) {
            b'0'..=b'9' => self.number()?,
            b'"' => self.quoted()?,
            byte if is_word(byte) => Token::Word(self.word()),
            byte @ (b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'<' | b'>' | b',' | b';' | b':' | b'=' | b'+' | b'-'
            | b'@' | b'!' | b'|') => {
                self.at += 1;
                Token::Mark(char::from(byte))
            }
            byte => {
                return Err(ParseError::new(
                    self.line,
                    format!("character {:?} has no place in PTX", char::from(byte)),
                ));
            }
        };
        Ok(Some(token))
    }

    /// Letters, digits, `_`, `$`, `%`, `.`; and `::` inside, as in `.L2::128B`.
    fn word(&mut self) -> String {
        let start = self.at;
        loop {
            if is_word(self.peek(0)) {
                self.at += 1;
            } else if self.peek(0) == b':' && self.peek(1) == b':' && is_word(self.peek(2)) {
                self.at += 2;
            } else {
                break;
            }
        }
        String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned()
    }

    fn quoted(&mut self) -> Result<Token, ParseError> {
        let start = self.at + 1;
        self.at = start;
        while self.peek(0) != b'"' {
            if self.at >= self.bytes.len() || self.peek(0) == b'\n' {
                return Err(ParseError::new(
                    self.line,
                    "string is not closed; expected `\"` before the end of the line",
                ));
            }
            self.at += 1;
        }
        let text = String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned();
        self.at += 1;
        Ok(Token::Quoted(text))
    }

    fn number(&mut self) -> Result<Token, ParseError> {
        let text = self.word();
        let bad = |what: &str| ParseError::new(self.line, format!("`{text}` is no {what}"));
        if let Some(bits) = text.strip_prefix("0f").or_else(|| text.strip_prefix("0F")) {
            return match u32::from_str_radix(bits, 16) {
                Ok(value) if bits.len() == 8 => Ok(Token::Single(value)),
                _ => Err(bad("f32: `0f` and eight hexadecimal digits were expected")),
            };
        }
        if let Some(bits) = text.strip_prefix("0d").or_else(|| text.strip_prefix("0D")) {
            return match u64::from_str_radix(bits, 16) {
                Ok(value) if bits.len() == 16 => Ok(Token::Double(value)),
                _ => Err(bad("f64: `0d` and sixteen hexadecimal digits were expected")),
            };
        }
        if text.contains('.') {
            return Ok(Token::Word(text));
        }
        let digits = text.strip_suffix('U').unwrap_or(&text);
        let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        value.map(Token::Integer).map_err(|_| bad("integer of at most 64 bits"))
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}
