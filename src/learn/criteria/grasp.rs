//! `grasp`: what the unit contributes to gradient flow (Wang, Zhang, Grosse: GraSP, 2020). With a factor `m` on every unit, at 1, `g`
//! its gradient and `H` its Hessian, removing unit `u` changes `abs(g)^2 / 2` by `-(H g)[u]` to first order, so `(H g)[u]` is what
//! is lost with it, and the importance. See [`curvature`](super::curvature) for how it is computed.
//!
//! Published code multiplies gradients of two passes over the same values, `g1 * g2` with both attached, which differentiates
//! `abs(g)^2` once in each factor and accumulates first-order parts into the result, and it keeps the units with the *least*
//! `H g`: the original removes those.

use super::{Criterion, Form, LayerInput, UnitKind};
use crate::Result;
use crate::learn::LearnError;

/// See the head of this file.
pub(super) struct Grasp;

impl Criterion for Grasp {
    fn name(&self) -> &'static str {
        "grasp"
    }

    fn has(&self, _: UnitKind, form: Form) -> bool {
        form == Form::Sequence
    }

    fn needs_curvature(&self) -> bool {
        true
    }

    fn score(&self, input: &LayerInput<'_>, kind: UnitKind, _: Form, out: &mut [f32]) -> Result<()> {
        let curvature = input.curvature.ok_or(LearnError::CurvatureMissing { criterion: self.name() })?;
        let values = match kind {
            UnitKind::Heads => &curvature.heads,
            UnitKind::Neurons => &curvature.neurons,
        };
        out.copy_from_slice(&values[input.record.layer * out.len()..][..out.len()]);
        Ok(())
    }
}
