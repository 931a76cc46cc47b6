//! `fisher`: the diagonal of the Fisher information of a factor on the unit, `<A, dA>^2` per token.
//!
//! Published code squares each component of a head by itself, and in half precision, where most of the results are 0. The
//! information of the *unit*, which is kept or dropped as a whole, is the square of the sum.

use super::{Criterion, Form, LayerInput, UnitKind, dot};
use crate::Result;

/// See the head of this file.
pub(super) struct Fisher;

impl Criterion for Fisher {
    fn name(&self) -> &'static str {
        "fisher"
    }

    fn has(&self, _: UnitKind, _: Form) -> bool {
        true
    }

    fn score(&self, input: &LayerInput<'_>, kind: UnitKind, form: Form, out: &mut [f32]) -> Result<()> {
        input.activations(kind).sum(form, out, |a, da| dot(a, da).powi(2));
        Ok(())
    }
}
