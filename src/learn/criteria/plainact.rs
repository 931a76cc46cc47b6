//! `plainact`: the loss that would change, to first order, if the unit were set to zero: `abs(<A, dA>)` per token.
//!
//! Published code takes the FFN form from weights (`plainact-weight`), summed over tokens before the absolute value.

use super::{Criterion, Form, LayerInput, UnitKind, dot};
use crate::Result;

/// See the head of this file.
pub(super) struct PlainAct;

impl Criterion for PlainAct {
    fn name(&self) -> &'static str {
        "plainact"
    }

    fn has(&self, _: UnitKind, _: Form) -> bool {
        true
    }

    fn score(&self, input: &LayerInput<'_>, kind: UnitKind, form: Form, out: &mut [f32]) -> Result<()> {
        input.activations(kind).sum(form, out, |a, da| dot(a, da).abs());
        Ok(())
    }
}
