//! Branches and barriers of a block.

use super::Decoder;
use super::line::Line;
use crate::error::ParseError;
use crate::parse::Operand;
use crate::program::{BarrierOp, BarrierReduce, Op, Reg};

impl Decoder<'_> {
    pub(super) fn branch(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        line.flag("uni");
        match line.operand()? {
            Operand::Name(name) => Ok(Op::Branch { target: self.label(line, name)? }),
            _ => Err(line.error("a label was expected as operand")),
        }
    }

    pub(super) fn branch_table(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        line.need(&["idx"])?;
        line.flag("uni");
        let index = self.word_in(line, 32)?;
        let Operand::Name(name) = line.operand()? else {
            return Err(line.error("the name of a branch table was expected as operand"));
        };
        let (labels, _) = *self
            .tables
            .get(name.as_str())
            .ok_or_else(|| line.error(&format!("branch table `{name}` is nowhere in the kernel")))?;
        let targets = labels.iter().map(|label| self.label(line, label)).collect::<Result<_, _>>()?;
        Ok(Op::BranchTable { index, targets })
    }

    /// `bar.sync`, `bar.red`, `bar.warp.sync`, and the same under `barrier`.
    pub(super) fn barrier(&mut self, line: &mut Line) -> Result<Op, ParseError> {
        if line.root() == "bar" && line.flag("warp") {
            return self.warp_sync(line);
        }
        line.flag("cta");
        let kind = line.need(&["sync", "red"])?;
        let form = if kind == "red" { Some(line.need(&["popc", "and", "or"])?) } else { None };
        line.flag("aligned");
        let to = match form {
            Some("popc") => {
                line.need(&["u32"])?;
                Some(self.word_out(line, 32)?)
            }
            Some(_) => {
                line.need(&["pred"])?;
                Some(self.predicate_out(line)?)
            }
            None => None,
        };
        let id = self.value_in(line, 32)?;
        // Of `bar.red id, {threads,} predicate` only what comes before the predicate is a count.
        let mut threads = None;
        let mut reduce = None;
        match (form, to) {
            (Some(form), Some(to)) => {
                let mut next = line.operand()?;
                if line.more() {
                    threads = Some(self.value_of(line, next, 32)?);
                    next = line.operand()?;
                }
                let from = match next {
                    Operand::Name(name) => (self.predicate_named(line, name)?, false),
                    Operand::Not(name) => (self.predicate_named(line, name)?, true),
                    _ => return Err(line.error("a predicate was expected as operand")),
                };
                reduce = Some(match form {
                    "popc" => BarrierReduce::Count { to, from },
                    "and" => BarrierReduce::All { to, from },
                    _ => BarrierReduce::Any { to, from },
                });
            }
            _ if line.more() => threads = Some(self.value_in(line, 32)?),
            _ => {}
        }
        let id = match id {
            Reg::Word(_) => id,
            Reg::Long(_) => return Err(line.error("the number of a barrier has 32 bits")),
        };
        Ok(Op::Barrier(Box::new(BarrierOp { id, threads, reduce })))
    }
}
