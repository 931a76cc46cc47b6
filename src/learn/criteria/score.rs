//! All criteria of a text from one pass.

use rayon::prelude::*;

use super::{Criterion, Curvature, Form, LayerInput, UnitKind, curvature};
use crate::Result;
use crate::kernels::Cpu;
use crate::learn::{BackwardWorkspace, LayerRecord, LayerVisitor, Loss, LossValue, backward};
use crate::model::Model;
use crate::sparsity::Scores;

/// The sequence form of `criteria` for one text: one [`Scores`] each, 0 for units that a criterion says nothing about. One forward
/// and one backward pass for all of them; three backward passes more if one [needs them](Criterion::needs_curvature).
///
/// # Errors
/// As [`backward()`].
pub fn sequence_scores(
    cpu: &Cpu,
    model: &Model,
    tokens: &[u32],
    loss: &Loss,
    criteria: &[&dyn Criterion],
    work: &mut BackwardWorkspace,
) -> Result<(LossValue, Vec<Scores>)> {
    let curvature = match criteria.iter().any(|criterion| criterion.needs_curvature()) {
        true => Some(curvature(cpu, model, tokens, loss, work)?),
        false => None,
    };
    let scores = vec![Scores::zeros(&model.config); criteria.len()];
    let mut text = Text { cpu, model, tokens, criteria, curvature, scores };
    let loss = backward(cpu, model, tokens, loss, work, &mut text)?;
    Ok((loss, text.scores))
}

struct Text<'a> {
    cpu: &'a Cpu,
    model: &'a Model,
    tokens: &'a [u32],
    criteria: &'a [&'a dyn Criterion],
    curvature: Option<Curvature>,
    /// One for each criterion.
    scores: Vec<Scores>,
}

impl LayerVisitor for Text<'_> {
    fn layer(&mut self, record: &LayerRecord<'_>) -> Result<()> {
        let (h, f) = (self.model.config.heads, self.model.config.ffn);
        let input = LayerInput {
            cpu: self.cpu,
            model: self.model,
            tokens: self.tokens,
            record,
            curvature: self.curvature.as_ref(),
        };
        // Each criterion is the work of one thread, so their number changes nothing.
        self.cpu.install(|| {
            let criteria = self.criteria.par_iter().zip(&mut self.scores);
            criteria.try_for_each(|(criterion, scores)| score(*criterion, &input, scores, h, f))
        })
    }
}

/// Scores of the layer's units.
fn score(
    criterion: &dyn Criterion,
    input: &LayerInput<'_>,
    scores: &mut Scores,
    heads: usize,
    neurons: usize,
) -> Result<()> {
    let layer = input.record.layer;
    let rows = [
        (UnitKind::Heads, &mut scores.heads[layer * heads..][..heads]),
        (UnitKind::Neurons, &mut scores.neurons[layer * neurons..][..neurons]),
    ];
    for (kind, out) in rows {
        if criterion.has(kind, Form::Sequence) {
            criterion.score(input, kind, Form::Sequence, out)?;
        }
    }
    Ok(())
}
