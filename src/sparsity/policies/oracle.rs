//! `oracle`: scores given from outside for every decision.
//!
//! With the true importances of each token it is the bound that a predictor can be trained towards; with made-up ones it lets
//! a test ask for any plan.

use std::fmt;

use super::rows::{BLOCK, RowSelectors};
use crate::Result;
use crate::sparsity::{Budget, MaskRows, Plan, Policy, PolicyInput, RowsInput, Scores, Selector, Station, Units};

/// Where an [`Oracle`]'s scores come from. Closures `FnMut(usize, &mut Scores) -> Result<()>` are sources.
pub trait ScoreSource: Send {
    /// Writes the scores for the token at `position`. `scores` holds those of the last decision, zeros at first.
    ///
    /// # Errors
    /// Whatever the source has to say; the decision fails with it.
    fn scores(&mut self, position: usize, scores: &mut Scores) -> Result<()>;
}

impl<F: FnMut(usize, &mut Scores) -> Result<()> + Send> ScoreSource for F {
    fn scores(&mut self, position: usize, scores: &mut Scores) -> Result<()> {
        self(position, scores)
    }
}

/// The best units by scores that someone else knows.
pub struct Oracle<S> {
    source: S,
    budget: Budget,
    units: Units,
    scores: Scores,
    selector: Selector,
    rows: RowSelectors,
}

impl<S: ScoreSource> Oracle<S> {
    /// Asks `source` before layer 0 of every token.
    ///
    /// # Errors
    /// [`crate::Error::BudgetFraction`].
    pub fn new(source: S, budget: Budget, units: impl Into<Units>) -> Result<Self> {
        budget.validate()?;
        let units = units.into();
        Ok(Oracle::of(source, budget, units))
    }
}

impl<S> Oracle<S> {
    fn of(source: S, budget: Budget, units: Units) -> Self {
        let (scores, selector, rows) = (Scores::zeros(units), Selector::new(), RowSelectors::default());
        Oracle { source, budget, units, scores, selector, rows }
    }
}

impl<S: ScoreSource + Clone + 'static> Policy for Oracle<S> {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn stations(&self) -> &[Station] {
        &[Station::Start]
    }

    fn decide(&mut self, input: PolicyInput<'_>, plan: &mut Plan) -> Result<()> {
        self.source.scores(input.position, &mut self.scores)?;
        self.selector.select(&self.scores, &self.budget, self.units, plan)
    }

    fn decide_rows(&mut self, input: RowsInput<'_>, masks: &mut MaskRows<'_>) -> Result<()> {
        let mut rows: Vec<_> = masks.rows().collect();
        for (block, first) in rows.chunks_mut(BLOCK).zip((input.position..).step_by(BLOCK)) {
            for (position, scores) in (first..).zip(self.rows.scores(block.len(), self.units)) {
                self.source.scores(position, scores)?;
            }
            self.rows.select(input.cpu, &self.budget, self.units, 1..self.units.layers, block)?;
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Policy> {
        Box::new(Oracle::of(self.source.clone(), self.budget, self.units))
    }

    fn bytes_per_decision(&self) -> u64 {
        0
    }
}

impl<S> fmt::Debug for Oracle<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oracle").field("budget", &self.budget).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sparsity::testing::{UNITS, decide, scores};
    use crate::sparsity::{Scope, select};

    #[test]
    fn it_asks_for_every_position() {
        let budget = Budget::new(0.5, 0.25, Scope::Local).unwrap();
        let source = |position: usize, into: &mut Scores| {
            into.clone_from(&scores(position as u32));
            Ok(())
        };
        let mut policy = Oracle::new(source, budget, UNITS).unwrap();
        let mut last = Plan::default();
        for position in [4, 9] {
            let mut expected = Plan::dense(UNITS);
            select(&scores(position as u32), &budget, UNITS, &mut expected).unwrap();
            let plan = decide(&mut policy, position);
            assert_eq!(plan, expected);
            assert_ne!(plan, last);
            last = plan;
        }
    }

    #[test]
    fn scores_of_another_shape_are_an_error() {
        let source = |_: usize, into: &mut Scores| {
            into.heads.pop();
            Ok(())
        };
        let mut policy = Oracle::new(source, Budget::DENSE, UNITS).unwrap();
        let cpu = crate::sparsity::testing::cpu();
        let input = PolicyInput { station: Station::Start, position: 0, residual: &[], contexts: &[], cpu: &cpu };
        assert_eq!(
            policy.decide(input, &mut Plan::dense(UNITS)).unwrap_err().to_string(),
            "11 scores for heads were given; a model of 3 layers of 4 heads needs 12"
        );
    }
}
