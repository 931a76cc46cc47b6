//! What policies that ask a predictor have in common.

use std::sync::Arc;

use super::rows::{BLOCK, RowSelectors};
use crate::sparsity::predictor::{Predictor, PredictorInput, PredictorScratch, Wanted};
use crate::sparsity::{Budget, MaskRows, Plan, PolicyInput, RowsInput, Scores, Selector, Station};
use crate::{Error, Result};

/// A predictor, a budget, and what it takes to turn one's scores into the other's plan without allocating.
#[derive(Debug)]
pub(super) struct Predicted {
    predictor: Arc<Predictor>,
    budget: Budget,
    wanted: Wanted,
    stations: Vec<Station>,
    scores: Scores,
    selector: Selector,
    scratch: PredictorScratch,
    rows: RowSelectors,
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
        Ok(Predicted::of(predictor, budget, wanted, stations))
    }

    fn of(predictor: Arc<Predictor>, budget: Budget, wanted: Wanted, stations: Vec<Station>) -> Self {
        let scores = Scores::zeros(predictor.units());
        let (selector, scratch, rows) = (Selector::new(), PredictorScratch::default(), RowSelectors::default());
        Predicted { predictor, budget, wanted, stations, scores, selector, scratch, rows }
    }

    /// For another sequence: decisions do not depend on earlier ones, so buffers stay here.
    pub(super) fn fork(&self) -> Self {
        Predicted::of(Arc::clone(&self.predictor), self.budget, self.wanted, self.stations.clone())
    }

    pub(super) fn stations(&self) -> &[Station] {
        &self.stations
    }

    /// What every plan is the selection of; `None` if nothing is selected.
    pub(super) fn rule(&self) -> Option<(&Arc<Predictor>, &Budget)> {
        (!self.stations.is_empty()).then_some((&self.predictor, &self.budget))
    }

    /// Predicts and selects for the layers of the station. At other stations it does nothing.
    pub(super) fn decide(&mut self, input: PolicyInput<'_>, plan: &mut Plan) -> Result<()> {
        let Some(station) = self.stations.iter().position(|&s| s == input.station) else {
            return Ok(());
        };
        let x = self.input(input.residual, input.contexts);
        self.predictor.predict(input.cpu, station, x, self.wanted, &mut self.scratch, &mut self.scores)?;
        let layers = self.predictor.layers(station);
        self.selector.select_layers(Some(input.cpu), &self.scores, &self.budget, self.predictor.units(), layers, plan)
    }

    /// As [`Predicted::decide`] for each row, bit for bit: a block of rows reads the predictor once.
    pub(super) fn decide_rows(&mut self, input: RowsInput<'_>, masks: &mut MaskRows<'_>) -> Result<()> {
        let Some(station) = self.stations.iter().position(|&s| s == input.station) else {
            return Ok(());
        };
        let x = self.input(input.residual, input.contexts);
        let (units, layers) = (self.predictor.units(), self.predictor.layers(station));
        let mut rows: Vec<_> = masks.rows().collect();
        for (block, x) in rows.chunks_mut(BLOCK).zip(x.chunks(BLOCK * (x.len() / input.rows))) {
            let mut scores = self.rows.scores(block.len(), units);
            self.predictor.predict_rows(input.cpu, station, x, self.wanted, &mut self.scratch, &mut scores)?;
            self.rows.select(input.cpu, &self.budget, units, layers.clone(), block)?;
        }
        Ok(())
    }

    /// What the predictor reads.
    fn input<'a>(&self, residual: &'a [f32], contexts: &'a [f32]) -> &'a [f32] {
        match self.predictor.info().input {
            PredictorInput::Residual => residual,
            PredictorInput::Contexts => contexts,
        }
    }

    pub(super) fn bytes_per_decision(&self) -> u64 {
        if self.stations.is_empty() { 0 } else { self.predictor.bytes(self.wanted) }
    }
}
