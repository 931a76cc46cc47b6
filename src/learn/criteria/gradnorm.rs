//! `gradnorm`: how strongly the loss reacts to the output of the unit.
//!
//! Published code takes the FFN form from the gradient of a weight row, which is 0 for a neuron that ReLU has closed whatever its
//! output would do. Here it is the gradient of the inner.

use super::{Criterion, Form, LayerInput, UnitKind, dot};
use crate::Result;

/// See the head of this file.
pub(super) struct GradNorm;

impl Criterion for GradNorm {
    fn name(&self) -> &'static str {
        "gradnorm"
    }

    fn has(&self, _: UnitKind, _: Form) -> bool {
        true
    }

    fn score(&self, input: &LayerInput<'_>, kind: UnitKind, form: Form, out: &mut [f32]) -> Result<()> {
        input.activations(kind).sum(form, out, |_, da| dot(da, da));
        out.iter_mut().for_each(|v| *v = v.sqrt());
        Ok(())
    }
}
