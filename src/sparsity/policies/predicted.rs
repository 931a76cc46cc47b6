//! What policies that ask a predictor have in common.

use std::sync::Arc;

use crate::sparsity::predictor::{Predictor, PredictorInput, PredictorScratch, Wanted};
use crate::sparsity::{Budget, Plan, PolicyInput, Scores, Selector, Station};
use crate::{Error, Result};

/// A predictor, a budget, and what it takes to turn one's scores into the other's plan without allocating.
#[derive(Clone, Debug)]
pub(super) struct Predicted {
    predictor: Arc<Predictor>,
    budget: Budget,
    wanted: Wanted,
    stations: Vec<Station>,
    scores: Scores,
    selector: Selector,
    scratch: PredictorScratch,
}

impl Predicted {
    /// # Errors
    /// [`Error::BudgetFraction`]; [`Error::PredictorLacks`] if the budget prunes units that the predictor does not rank.
    pub(super) fn new(predictor: Arc<Predictor>, budget: Budget) -> Result<Self> {
        budget.validate()?;
        let ranks = predictor.ranks();
        let wanted = Wanted { heads: budget.heads < 1.0, neurons: budget.neurons < 1.0 };
        for (units, kept, lacks) in [
            ("heads", budget.heads, wanted.heads && !ranks.heads),
            ("neurons", budget.neurons, wanted.neurons && !ranks.neurons),
        ] {
            if lacks {
                return Err(Error::PredictorLacks { units, kept });
            }
        }
        let stations = match budget.is_dense() {
            // Nothing to predict: the plan is dense from the start.
            true => Vec::new(),
            false => predictor.info().stations.iter().map(|&layer| Station::AfterLayer(layer)).collect(),
        };
        let scores = Scores::zeros(predictor.units());
        let (selector, scratch) = (Selector::new(), PredictorScratch::default());
        Ok(Predicted { predictor, budget, wanted, stations, scores, selector, scratch })
    }

    pub(super) fn stations(&self) -> &[Station] {
        &self.stations
    }

    /// Predicts and selects for the layers of the station. At other stations it does nothing.
    pub(super) fn decide(&mut self, input: PolicyInput<'_>, plan: &mut Plan) -> Result<()> {
        let Some(station) = self.stations.iter().position(|&s| s == input.station) else {
            return Ok(());
        };
        let x = match self.predictor.info().input {
            PredictorInput::Residual => input.residual,
            PredictorInput::Contexts => input.contexts,
        };
        self.predictor.predict(input.cpu, station, x, self.wanted, &mut self.scratch, &mut self.scores)?;
        let layers = self.predictor.layers(station);
        self.selector.select_layers(Some(input.cpu), &self.scores, &self.budget, self.predictor.units(), layers, plan)
    }

    pub(super) fn bytes_per_decision(&self) -> u64 {
        if self.stations.is_empty() { 0 } else { self.predictor.bytes(self.wanted) }
    }
}
