//! PTX text to a syntax tree. What isn't known is an error with its line, never skipped.

mod lexer;
mod statements;
mod syntax;

pub use statements::parse;
pub use syntax::{Instruction, Kernel, Operand, Space, Statement, Variable};
