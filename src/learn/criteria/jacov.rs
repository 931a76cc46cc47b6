//! `jacov`: how differently the loss reacts to the head from token to token (Mellor et al., first version, 2020): with the
//! eigenvalues `v` of the correlations of the gradients of several tokens, `-sum(ln(v + k) + 1/(v + k))`, `k` = 1e-5. It is largest
//! where all are uncorrelated. A neuron's gradient is one number, which correlates with nothing, so neurons have no score.
//!
//! Correlations of `n` vectors of `d_h` components have rank `d_h - 1` at most. Published code draws 200 tokens where `d_h` is 64 or
//! 128: more than a hundred eigenvalues are then rounding errors, each with a term of up to 1/k, and the score is their noise.
//! Here groups of `d_h / 2` tokens, evenly spread over the text, are scored, and the groups' mean is taken: every token takes
//! part, and nothing is drawn. Tokens without a gradient are left out.

use super::linear_algebra::{correlations, eigenvalues};
use super::{Criterion, Form, LayerInput, UnitKind};
use crate::Result;

/// See the head of this file.
pub(super) struct Jacov;

/// Keeps the logarithm finite.
pub(super) const K: f64 = 1e-5;

impl Criterion for Jacov {
    fn name(&self) -> &'static str {
        "jacov"
    }

    fn has(&self, kind: UnitKind, form: Form) -> bool {
        kind == UnitKind::Heads && form == Form::Sequence
    }

    fn score(&self, input: &LayerInput<'_>, kind: UnitKind, _: Form, out: &mut [f32]) -> Result<()> {
        let heads = input.activations(kind);
        for (head, out) in out.iter_mut().enumerate() {
            let vectors: Vec<&[f32]> = heads
                .grads
                .chunks_exact(heads.width)
                .skip(head)
                .step_by(heads.units)
                .filter(|grads| grads.iter().any(|&v| v != 0.0))
                .collect();
            let size = (heads.width / 2).max(2);
            let groups = vectors.len() / size;
            let sum: f64 = (0..groups)
                .map(|group| {
                    let members: Vec<&[f32]> = vectors.iter().skip(group).step_by(groups).take(size).copied().collect();
                    let values = eigenvalues(&mut correlations(&members), size);
                    -values.into_iter().map(|v| v.max(0.0) + K).map(|v| v.ln() + 1.0 / v).sum::<f64>()
                })
                .sum();
            *out = if groups > 0 { (sum / groups as f64) as f32 } else { 0.0 };
        }
        Ok(())
    }
}
