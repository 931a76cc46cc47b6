//! `epenas`: how differently the head's gradients correlate for different next tokens (Lopes et al.: EPE-NAS, 2021): the tokens of a
//! text are classes by the token that follows; with `s_c` the mean of `ln(abs(correlation) + k)` over the pairs of class `c`, the
//! score is the mean of `abs(s_c - s_c')` over pairs of classes. Neurons have none, as with `jacov`.
//!
//! Published code sums where this takes means: `s_c` then grows with the square of how often a token occurs, and the score compares
//! frequencies. Classes of fewer than 5 tokens say nothing, as there.

use std::collections::BTreeMap;

use super::jacov::K;
use super::linear_algebra::correlations;
use super::{Criterion, Form, LayerInput, UnitKind};
use crate::Result;

/// See the head of this file.
pub(super) struct EpeNas;

/// Tokens of a class that counts.
const LEAST: usize = 5;

impl Criterion for EpeNas {
    fn name(&self) -> &'static str {
        "epenas"
    }

    fn has(&self, kind: UnitKind, form: Form) -> bool {
        kind == UnitKind::Heads && form == Form::Sequence
    }

    fn score(&self, input: &LayerInput<'_>, kind: UnitKind, _: Form, out: &mut [f32]) -> Result<()> {
        let heads = input.activations(kind);
        let mut classes: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (token, &next) in input.tokens.iter().skip(1).enumerate() {
            classes.entry(next).or_default().push(token);
        }
        classes.retain(|_, tokens| tokens.len() >= LEAST);
        for (head, out) in out.iter_mut().enumerate() {
            let vector = |token: &usize| &heads.grads[(token * heads.units + head) * heads.width..][..heads.width];
            let means: Vec<f64> = classes
                .values()
                .map(|tokens| {
                    let n = tokens.len();
                    let matrix = correlations(&tokens.iter().map(vector).collect::<Vec<_>>());
                    let pairs = (0..n).flat_map(|i| (0..i).map(move |j| (i, j)));
                    let sum: f64 = pairs.map(|(i, j)| (matrix[i * n + j].abs() + K).ln()).sum();
                    sum / (n * (n - 1) / 2) as f64
                })
                .collect();
            let pairs = means.len() * means.len().saturating_sub(1) / 2;
            let sum: f64 = (0..means.len()).map(|i| means[..i].iter().map(|s| (means[i] - s).abs()).sum::<f64>()).sum();
            *out = if pairs > 0 { (sum / pairs as f64) as f32 } else { 0.0 };
        }
        Ok(())
    }
}
