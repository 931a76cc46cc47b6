//! `snip`: connection sensitivity (Lee, Ajanthan, Torr: SNIP, 2019), `abs(dLoss/dm)` of a factor `m` on the unit, at 1.
//!
//! The factor is one for the whole text, so the sum over tokens is inside the absolute value; without the sum it is `plainact`,
//! which is why there is no token form. Published code stores the gradient at the attention's output, behind the output
//! projection, cut into as many groups of channels as there are heads: that says nothing about heads, because the projection
//! mixes them.

use super::{Criterion, Form, LayerInput, UnitKind, dot};
use crate::Result;

/// See the head of this file.
pub(super) struct Snip;

impl Criterion for Snip {
    fn name(&self) -> &'static str {
        "snip"
    }

    fn has(&self, _: UnitKind, form: Form) -> bool {
        form == Form::Sequence
    }

    fn score(&self, input: &LayerInput<'_>, kind: UnitKind, form: Form, out: &mut [f32]) -> Result<()> {
        input.activations(kind).sum(form, out, dot);
        out.iter_mut().for_each(|v| *v = v.abs());
        Ok(())
    }
}
