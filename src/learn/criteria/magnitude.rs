//! `magnitude`: what the unit adds to the residual stream. Of a neuron `abs(Z) * norm(w)` with its column `w` of the second FFN
//! matrix, which is exactly the size of what it adds; of a head the squared norm of its context. Without gradients, as
//! [`l2norm`](super::l2norm), but neurons of different columns compare.

use super::{Criterion, Form, LayerInput, UnitKind, dot};
use crate::Result;

/// See the head of this file.
pub(super) struct Magnitude;

impl Criterion for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn has(&self, _: UnitKind, _: Form) -> bool {
        true
    }

    fn score(&self, input: &LayerInput<'_>, kind: UnitKind, form: Form, out: &mut [f32]) -> Result<()> {
        input.activations(kind).sum(form, out, |a, _| if kind == UnitKind::Heads { dot(a, a) } else { a[0].abs() });
        if kind == UnitKind::Neurons {
            let squares = input.model.layers[input.record.layer].ffn.output_squares(input.cpu);
            out.iter_mut().zip(squares.iter().cycle()).for_each(|(out, square)| *out *= square.sqrt() as f32);
        }
        Ok(())
    }
}
