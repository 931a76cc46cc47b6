//! `dense`: keeps everything. The baseline that every other policy is measured against, run by the same code.

use crate::Result;
use crate::sparsity::{Plan, Policy, PolicyInput, Station};

/// Keeps every unit of every layer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dense;

impl Policy for Dense {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn stations(&self) -> &[Station] {
        &[]
    }

    fn decide(&mut self, _: PolicyInput<'_>, _: &mut Plan) -> Result<()> {
        Ok(())
    }

    fn fork(&self) -> Box<dyn Policy> {
        Box::new(*self)
    }

    fn bytes_per_decision(&self) -> u64 {
        0
    }
}
