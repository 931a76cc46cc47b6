//! The Hessian of the loss of a text, with respect to a factor on every unit, times its gradient.
//!
//! The right definition is the derivative of the gradient along itself, `H g`. It is computed as a difference: the gradient at
//! `1 + e g` less that at `1 - e g`, over `2 e`, with `e` so small that no factor moves by more than [`LARGEST_STEP`]. The error is
//! of the order of its square; a second-order backward pass would be exact and need every operation's second derivative, and
//! with ReLU the Hessian is exact only between its kinks either way.

use crate::Result;
use crate::kernels::Cpu;
use crate::learn::{BackwardWorkspace, LayerRecord, LayerVisitor, Loss, UnitFactors, backward_scaled};
use crate::model::Model;

/// Most that a factor is moved. Smaller differences drown in the rounding of `f32`, larger ones leave the neighbourhood.
const LARGEST_STEP: f32 = 1.0 / 64.0;

/// `H g` of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Curvature {
    /// `[L, H]`.
    pub heads: Vec<f32>,
    /// `[L, F]`.
    pub neurons: Vec<f32>,
}

/// Computes it, in three backward passes.
///
/// # Errors
/// As [`backward`](crate::learn::backward::backward).
pub fn curvature(
    cpu: &Cpu,
    model: &Model,
    tokens: &[u32],
    loss: &Loss,
    work: &mut BackwardWorkspace,
) -> Result<Curvature> {
    let config = &model.config;
    let ones =
        UnitFactors { heads: vec![1.0; config.layers * config.heads], neurons: vec![1.0; config.layers * config.ffn] };
    let mut gradient = |factors: &UnitFactors| -> Result<[Vec<f64>; 2]> {
        let mut sums = FactorGradients { factors, head_dim: config.head_dim, sums: zeros(factors) };
        backward_scaled(cpu, model, tokens, loss, factors, work, &mut sums)?;
        Ok(sums.sums)
    };
    let direction = gradient(&ones)?;
    let largest = direction.iter().flatten().fold(0.0f64, |a, v| a.max(v.abs()));
    if largest == 0.0 {
        return Ok(Curvature { heads: vec![0.0; ones.heads.len()], neurons: vec![0.0; ones.neurons.len()] });
    }
    let step = f64::from(LARGEST_STEP) / largest;
    let moved = |sign: f64| {
        let along = |values: &[f64]| values.iter().map(|g| (1.0 + sign * step * g) as f32).collect();
        UnitFactors { heads: along(&direction[0]), neurons: along(&direction[1]) }
    };
    let (above, below) = (gradient(&moved(1.0))?, gradient(&moved(-1.0))?);
    let difference =
        |kind: usize| above[kind].iter().zip(&below[kind]).map(|(a, b)| ((a - b) / (2.0 * step)) as f32).collect();
    Ok(Curvature { heads: difference(0), neurons: difference(1) })
}

fn zeros(factors: &UnitFactors) -> [Vec<f64>; 2] {
    [vec![0.0; factors.heads.len()], vec![0.0; factors.neurons.len()]]
}

/// Gradients with respect to the factors: `<A, dA> / m` summed over tokens, where `A` has been multiplied by `m`.
struct FactorGradients<'a> {
    factors: &'a UnitFactors,
    head_dim: usize,
    /// `[L, H]` and `[L, F]`
    sums: [Vec<f64>; 2],
}

impl LayerVisitor for FactorGradients<'_> {
    fn layer(&mut self, record: &LayerRecord<'_>) -> Result<()> {
        let kinds = [
            (record.contexts, record.context_grads, self.head_dim, &self.factors.heads),
            (record.inners, record.inner_grads, 1, &self.factors.neurons),
        ];
        for ((values, grads, width, factors), sums) in kinds.into_iter().zip(&mut self.sums) {
            let units = values.len() / record.tokens / width;
            let range = record.layer * units..(record.layer + 1) * units;
            let (sums, factors) = (&mut sums[range.clone()], &factors[range]);
            let vectors = values.chunks_exact(width).zip(grads.chunks_exact(width));
            for (i, (values, grads)) in vectors.enumerate() {
                sums[i % units] += values.iter().zip(grads).map(|(a, g)| f64::from(a * g)).sum::<f64>();
            }
            sums.iter_mut().zip(factors).for_each(|(sum, factor)| *sum /= f64::from(*factor));
        }
        Ok(())
    }
}
