//! What is differentiated: the cross-entropy of next tokens.

use std::ops::Range;

use super::BackwardWorkspace;
use crate::Result;
use crate::kernels::{Cpu, cross_entropy_backward, linear_transposed};
use crate::learn::LearnError;
use crate::model::Model;
use crate::model::sized;

/// Rows of logits that exist at a time: enough that the LM head's weights, read once per block, are used as often as the blocked
/// product can use them.
const LOGIT_ROWS: usize = 128;

/// Which tokens are scored, and how their losses are put together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Places in the text of the tokens whose prediction is scored, as of the answer in a task. `None`: all but the first, which
    /// nothing predicts.
    pub tokens: Option<Range<usize>>,
    /// Sum or mean.
    pub reduction: Reduction,
}

/// How the losses of the tokens are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum: a token's gradient does not depend on how long the text is.
    #[default]
    Sum,
    /// Their mean.
    Mean,
}

/// The loss of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossValue {
    /// Sum of the cross-entropies, in nats.
    pub sum: f64,
    /// Tokens scored.
    pub tokens: usize,
    /// What was differentiated.
    pub reduction: Reduction,
}

impl LossValue {
    /// Cross-entropy per token.
    pub fn mean(&self) -> f64 {
        self.sum / self.tokens as f64
    }

    /// The sum or the mean: what the gradients are of.
    pub fn value(&self) -> f64 {
        match self.reduction {
            Reduction::Sum => self.sum,
            Reduction::Mean => self.mean(),
        }
    }
}

impl Loss {
    /// All tokens, summed.
    pub fn sum() -> Self {
        Loss::default()
    }

    /// The tokens at these places only, averaged: the loss of a task's answer.
    pub fn of_answer(tokens: Range<usize>) -> Self {
        Loss { tokens: Some(tokens), reduction: Reduction::Mean }
    }

    /// The scored places in a text of `len` tokens.
    ///
    /// # Errors
    /// [`LearnError::NothingToPredict`], [`LearnError::LossRange`].
    pub fn range(&self, len: usize) -> Result<Range<usize>> {
        if len < 2 {
            return Err(LearnError::NothingToPredict { tokens: len }.into());
        }
        match &self.tokens {
            None => Ok(1..len),
            Some(range) if range.start >= 1 && range.start < range.end && range.end <= len => Ok(range.clone()),
            Some(range) => Err(LearnError::LossRange { start: range.start, end: range.end, len }.into()),
        }
    }

    /// The loss of the last forward pass over `tokens`, and its gradient with respect to the rows that came out of it, after the
    /// final norm, in `gradient` `[T, d]` of `work`.
    pub(super) fn run(
        &self,
        cpu: &Cpu,
        model: &Model,
        tokens: &[u32],
        work: &mut BackwardWorkspace,
    ) -> Result<LossValue> {
        let range = self.range(tokens.len())?;
        let (d, e, v) = (model.config.hidden, model.config.embed_dim, model.config.vocab);
        let gradient = sized(&mut work.layer.gradient, tokens.len() * d);
        gradient.fill(0.0);
        let factor = match self.reduction {
            Reduction::Sum => 1.0,
            Reduction::Mean => 1.0 / range.len() as f32,
        };
        let mut sum = 0.0;
        for first in range.clone().step_by(LOGIT_ROWS) {
            let targets = &tokens[first..range.end.min(first + LOGIT_ROWS)];
            // The row of a token predicts the next one.
            let rows = first - 1..first - 1 + targets.len();
            let logits = sized(&mut work.logits, rows.len() * v);
            let losses = sized(&mut work.losses, rows.len());
            model.logits(cpu, &mut work.forward, rows.clone(), logits);
            cross_entropy_backward(cpu, logits, targets, factor, losses);
            sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            let gradient = &mut gradient[rows.start * d..rows.end * d];
            match &model.project_out {
                Some(project) => {
                    let narrow = sized(&mut work.narrow, rows.len() * e);
                    linear_transposed(cpu, &model.head, None, logits, narrow);
                    project.apply_transposed(cpu, narrow, gradient);
                }
                None => linear_transposed(cpu, &model.head, None, logits, gradient),
            }
        }
        if !sum.is_finite() {
            return Err(LearnError::BadLoss.into());
        }
        Ok(LossValue { sum, tokens: range.len(), reduction: self.reduction })
    }
}
