//! Criteria: formulas that turn activations and gradients into an importance per unit.
//!
//! # Why
//! Which formula is best is a question of experiment, so all of them are computed from the same pass over a text, in the same
//! arithmetic, and adding one is a file here and a line in [`ALL`].
//!
//! # Forms
//! In the *sequence* form a unit has one importance per text; this is the form of the paper, and of static scores. In the *token*
//! form it has one per token, so that a text of 1024 tokens is 1024 training samples. Where a formula is a sum over tokens the
//! token form is the sum's terms; where it says something about the text as a whole there is none ([`Criterion::has`]).
//!
//! | name | head | neuron | forms |
//! | --- | --- | --- | --- |
//! | `plainact` | `sum_t abs(<A, dA>)` | `sum_t abs(Z dZ)` | both |
//! | `plainact-weight` | as `plainact` | `sum_j abs(W[i,j] dW[i,j])` over the first FFN matrix | sequence; heads both |
//! | `fisher` | `sum_t <A, dA>^2` | `sum_t (Z dZ)^2` | both |
//! | `magnitude` | `sum_t norm(A)^2` | `sum_t abs(Z) norm(w)`, `w` the neuron's column of the second FFN matrix | both |
//! | `l2norm` | `sqrt(sum A^2)` | `sqrt(sum Z^2)` | both |
//! | `gradnorm` | `sqrt(sum dA^2)` | `sqrt(sum dZ^2)` | both |
//! | `saliency` | `sum_t norm(A) rms_t(norm(dA))` | `sum_t abs(Z) rms_t(dZ)` | both |
//! | `snip` | `abs(sum_t <A, dA>)` | `abs(sum_t Z dZ)` | sequence |
//! | `nwot` | log-determinant of activation patterns | the same | sequence |
//! | `jacov` | spectrum of the correlations of gradients | | sequence |
//! | `epenas` | spread of those correlations over next tokens | | sequence |
//! | `grasp` | second-order effect on the gradient's norm | the same | sequence |
//!
//! All values and products are `f32` of the model's own scale, and sums over tokens are `f64`: products of small gradients do not
//! vanish, as they do in half precision. Each file says where published code computes something else.

mod curvature;
mod epenas;
mod fisher;
mod gradnorm;
mod grasp;
mod jacov;
mod l2norm;
mod linear_algebra;
mod magnitude;
mod nwot;
mod plainact;
mod plainact_weight;
mod saliency;
mod score;
mod snip;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod testing;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub use curvature::{Curvature, curvature};
pub use score::sequence_scores;

use super::LayerRecord;
use crate::kernels::Cpu;
use crate::learn::LearnError;
use crate::model::Model;
use crate::{Error, Result};

/// Every criterion, in the order in which lists name them.
pub const ALL: [&dyn Criterion; 12] = [
    &magnitude::Magnitude,
    &plainact::PlainAct,
    &plainact_weight::PlainActWeight,
    &fisher::Fisher,
    &l2norm::L2Norm,
    &gradnorm::GradNorm,
    &saliency::Saliency,
    &snip::Snip,
    &nwot::Nwot,
    &jacov::Jacov,
    &epenas::EpeNas,
    &grasp::Grasp,
];

/// A kind of units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnitKind {
    /// Attention heads.
    Heads,
    /// FFN neurons.
    Neurons,
}

/// One importance per token, or per text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `[T, units]`.
    Token,
    /// `[units]`.
    Sequence,
}

/// A formula for the importance of units. More is more important.
pub trait Criterion: Send + Sync {
    /// Name on the command line and in files.
    fn name(&self) -> &'static str;

    /// Whether it says something about these units in this form.
    fn has(&self, kind: UnitKind, form: Form) -> bool;

    /// Whether it reads [`LayerInput::curvature`], which takes three more passes over the text.
    fn needs_curvature(&self) -> bool {
        false
    }

    /// Writes the importances of a layer's units: `out` is `[T, units]` or `[units]`, by the form. Only called for what it
    /// [has](Criterion::has). Nothing predicts from the last token of a text, so where gradients count its importance is 0.
    ///
    /// # Errors
    /// [`LearnError::CurvatureMissing`] if it needs one and there is none.
    fn score(&self, input: &LayerInput<'_>, kind: UnitKind, form: Form, out: &mut [f32]) -> Result<()>;
}

impl fmt::Debug for dyn Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for &'static dyn Criterion {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        ALL.into_iter().find(|criterion| criterion.name() == name).ok_or_else(|| {
            LearnError::UnknownCriterion {
                found: name.to_owned(),
                known: ALL.map(|criterion| criterion.name()).join(", "),
            }
            .into()
        })
    }
}

/// What a criterion may read of one layer of one text.
#[derive(Clone, Copy, Debug)]
pub struct LayerInput<'a> {
    /// The kernels.
    pub cpu: &'a Cpu,
    /// Weights and shapes.
    pub model: &'a Model,
    /// The text.
    pub tokens: &'a [u32],
    /// Activations and gradients.
    pub record: &'a LayerRecord<'a>,
    /// Of the whole text, if it was asked for.
    pub curvature: Option<&'a Curvature>,
}

/// Activations of the units of a layer with their gradients: each unit of a token is a vector, of a neuron one of length 1.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    /// `[T, units, width]`.
    pub values: &'a [f32],
    /// `[T, units, width]`.
    pub grads: &'a [f32],
    /// Units of the layer.
    pub units: usize,
    /// `d_h`, or 1.
    pub width: usize,
}

impl<'a> LayerInput<'a> {
    /// The activations of one kind of units.
    pub fn activations(&self, kind: UnitKind) -> Activations<'a> {
        let (record, config) = (self.record, &self.model.config);
        match kind {
            UnitKind::Heads => Activations {
                values: record.contexts,
                grads: record.context_grads,
                units: config.heads,
                width: config.head_dim,
            },
            UnitKind::Neurons => {
                Activations { values: record.inners, grads: record.inner_grads, units: config.ffn, width: 1 }
            }
        }
    }
}

impl Activations<'_> {
    /// Calls `f(unit, values, grads)` for every unit of every token, in order.
    fn each(&self, mut f: impl FnMut(usize, &[f32], &[f32])) {
        let row = (self.units * self.width).max(1);
        for (values, grads) in self.values.chunks_exact(row).zip(self.grads.chunks_exact(row)) {
            let vectors = values.chunks_exact(self.width).zip(grads.chunks_exact(self.width));
            for (unit, (values, grads)) in vectors.enumerate() {
                f(unit, values, grads);
            }
        }
    }

    /// `term(values, grads)` of every token, or their sums over the tokens.
    fn sum(&self, form: Form, out: &mut [f32], term: impl Fn(&[f32], &[f32]) -> f32) {
        match form {
            Form::Token => {
                let mut out = out.iter_mut();
                self.each(|_, values, grads| {
                    if let Some(out) = out.next() {
                        *out = term(values, grads);
                    }
                });
            }
            Form::Sequence => {
                let mut sums = vec![0.0f64; self.units];
                self.each(|unit, values, grads| sums[unit] += f64::from(term(values, grads)));
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = sum as f32;
                }
            }
        }
    }
}

/// `<a, b>`
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
