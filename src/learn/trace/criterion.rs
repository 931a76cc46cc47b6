//! How much each unit counted for one token.
//!
//! Two importances need the forward pass only, and are computed as it goes by. Every other one is a [`Criterion`] in its token form,
//! and takes the backward pass, too.

use crate::Result;
use crate::kernels::Cpu;
use crate::learn::LearnError;
use crate::learn::criteria::{ALL, Criterion, Form, UnitKind};
use crate::model::Model;

/// An importance that needs no gradient: one number per unit and token, not negative.
pub trait TokenCriterion: Send + Sync {
    /// Name on the command line and in files.
    fn name(&self) -> &'static str;

    /// Importance of every head of `layer`: `contexts` `[T, H, d_h]`, `out` `[T, H]`.
    fn heads(&self, layer: usize, contexts: &[f32], out: &mut [f32]);

    /// Importance of every neuron of `layer`: `inners` `[T, F]`, `out` `[T, F]`.
    fn neurons(&self, layer: usize, inners: &[f32], out: &mut [f32]);
}

/// What samples are of.
pub enum Importance {
    /// Of activations alone.
    Activations(Box<dyn TokenCriterion>),
    /// Of activations and gradients. The last token of a window, which predicts nothing, is no sample then.
    Gradients(&'static dyn Criterion),
}

impl Importance {
    /// The importance of this name for a model: `magnitude`, or a criterion that has a token form.
    ///
    /// # Errors
    /// [`LearnError::UnknownCriterion`].
    pub fn of(name: &str, cpu: &Cpu, model: &Model) -> Result<Self> {
        let norms = |squares: Vec<f64>| squares.into_iter().map(|v| v.sqrt() as f32).collect();
        match name {
            "magnitude" => {
                let norms = model.layers.iter().map(|l| norms(l.ffn.output_squares(cpu))).collect();
                Ok(Importance::Activations(Box::new(Magnitude { norms })))
            }
            "l2norm" => Ok(Importance::Activations(Box::new(L2Norm))),
            _ => {
                let has = |c: &&dyn Criterion| {
                    [UnitKind::Heads, UnitKind::Neurons].iter().all(|&kind| c.has(kind, Form::Token))
                };
                let usable = || ALL.into_iter().filter(has);
                let found = usable().find(|c| c.name() == name && !c.needs_curvature());
                found.map(Importance::Gradients).ok_or_else(|| {
                    let names: Vec<&str> = usable().map(|c| c.name()).collect();
                    LearnError::UnknownCriterion { found: name.to_owned(), known: names.join(", ") }.into()
                })
            }
        }
    }

    /// Name on the command line and in files.
    pub fn name(&self) -> &'static str {
        match self {
            Importance::Activations(criterion) => criterion.name(),
            Importance::Gradients(criterion) => criterion.name(),
        }
    }
}

/// What a unit adds to the residual stream: of a neuron `abs(Z) * norm(w)` with its column `w` of the second FFN matrix, which
/// is exactly the size of what it adds; of a head the squared norm of its context.
struct Magnitude {
    /// For each layer `[F]`.
    norms: Vec<Vec<f32>>,
}

impl TokenCriterion for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn heads(&self, _: usize, contexts: &[f32], out: &mut [f32]) {
        squared_norms(contexts, out);
    }

    fn neurons(&self, layer: usize, inners: &[f32], out: &mut [f32]) {
        let norms = &self.norms[layer];
        for (out, inners) in out.chunks_exact_mut(norms.len()).zip(inners.chunks_exact(norms.len())) {
            for ((out, z), norm) in out.iter_mut().zip(inners).zip(norms) {
                *out = z.abs() * norm;
            }
        }
    }
}

/// The norm of the activation itself: of a head that of its context, of a neuron `abs(Z)`.
struct L2Norm;

impl TokenCriterion for L2Norm {
    fn name(&self) -> &'static str {
        "l2norm"
    }

    fn heads(&self, _: usize, contexts: &[f32], out: &mut [f32]) {
        squared_norms(contexts, out);
        out.iter_mut().for_each(|v| *v = v.sqrt());
    }

    fn neurons(&self, _: usize, inners: &[f32], out: &mut [f32]) {
        out.iter_mut().zip(inners).for_each(|(out, z)| *out = z.abs());
    }
}

/// Squared norm of each of `out.len()` vectors.
fn squared_norms(values: &[f32], out: &mut [f32]) {
    let width = values.len().checked_div(out.len()).unwrap_or(0).max(1);
    for (out, vector) in out.iter_mut().zip(values.chunks_exact(width)) {
        *out = vector.iter().map(|v| v * v).sum();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn formulas() {
        let magnitude = Magnitude { norms: vec![vec![], vec![2.0, 0.5]] };
        let (mut heads, mut neurons) = ([0.0; 2], [0.0; 4]);
        magnitude.heads(1, &[3.0, -4.0, 1.0, 0.0], &mut heads);
        magnitude.neurons(1, &[1.0, -2.0, 0.0, 4.0], &mut neurons);
        assert_eq!((heads, neurons), ([25.0, 1.0], [2.0, 1.0, 0.0, 2.0]));
        L2Norm.heads(1, &[3.0, -4.0, 1.0, 0.0], &mut heads);
        L2Norm.neurons(1, &[1.0, -2.0, 0.0, 4.0], &mut neurons);
        assert_eq!((heads, neurons), ([5.0, 1.0], [1.0, 2.0, 0.0, 4.0]));
    }
}
