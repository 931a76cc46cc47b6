//! `l2norm`: the size of what the unit puts out. The one criterion without gradients.
//!
//! Published code measures neurons *before* ReLU, so that a neuron that is far from firing counts as large. Here it is the inner,
//! which is 0 then.

use super::{Criterion, Form, LayerInput, UnitKind, dot};
use crate::Result;

/// See the head of this file.
pub(super) struct L2Norm;

impl Criterion for L2Norm {
    fn name(&self) -> &'static str {
        "l2norm"
    }

    fn has(&self, _: UnitKind, _: Form) -> bool {
        true
    }

    fn score(&self, input: &LayerInput<'_>, kind: UnitKind, form: Form, out: &mut [f32]) -> Result<()> {
        input.activations(kind).sum(form, out, |a, _| dot(a, a));
        out.iter_mut().for_each(|v| *v = v.sqrt());
        Ok(())
    }
}
