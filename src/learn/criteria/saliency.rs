//! `saliency`: the size of the unit's output in a token, times how strongly the loss reacts to the unit in general.
//!
//! The gradient of one next token is mostly noise, so `plainact` of a token is a noisy target. Its two factors are not: the size
//! belongs to the token, and the size of the gradient, as root mean square over the tokens of the text, to the unit.

use super::{Criterion, Form, LayerInput, UnitKind, dot};
use crate::Result;

/// See the head of this file.
pub(super) struct Saliency;

impl Criterion for Saliency {
    fn name(&self) -> &'static str {
        "saliency"
    }

    fn has(&self, _: UnitKind, _: Form) -> bool {
        true
    }

    fn score(&self, input: &LayerInput<'_>, kind: UnitKind, form: Form, out: &mut [f32]) -> Result<()> {
        let activations = input.activations(kind);
        let mut squares = vec![0.0f64; activations.units];
        activations.each(|unit, _, da| squares[unit] += f64::from(dot(da, da)));
        let tokens = input.record.tokens as f64;
        let scales: Vec<f32> = squares.into_iter().map(|sum| (sum / tokens).sqrt() as f32).collect();
        activations.sum(form, out, |a, _| dot(a, a).sqrt());
        for (out, scale) in out.iter_mut().zip(scales.iter().cycle()) {
            *out *= scale;
        }
        Ok(())
    }
}
