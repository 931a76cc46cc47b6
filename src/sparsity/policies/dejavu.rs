//! `dejavu`: after every layer a predictor of its own decides for the next.
//!
//! The baseline (Liu et al., Deja Vu: contextual sparsity for efficient LLMs at inference time, 2023): fresher input than one
//! look after layer 0, paid for with a network per layer. Networks, ranks and non-linearity are those of the predictor file;
//! DejaVu's own are of rank 512 for heads and 1000 for neurons, linear, without biases. A budget is counted in each layer by
//! itself, whatever its scope, because the others are not known yet.

use std::sync::Arc;

use super::predicted::Predicted;
use crate::sparsity::predictor::Predictor;
use crate::sparsity::{Budget, MaskRows, Plan, Policy, PolicyInput, RowsInput, Station};
use crate::{Error, Result};

/// Plans by a predictor per layer, one layer ahead.
#[derive(Debug)]
pub struct DejaVu {
    predicted: Predicted,
}

impl DejaVu {
    /// Hidden widths that the authors use, for heads and for neurons.
    pub const RANKS: (usize, usize) = (512, 1000);

    /// A policy for one sequence; the predictor may serve any number.
    ///
    /// # Errors
    /// [`Error::PredictorStations`] unless the predictor has a station after every layer but the last;
    /// [`Error::BudgetFraction`]; [`Error::PredictorLacks`] if the budget prunes units that the predictor does not rank.
    pub fn new(predictor: Arc<Predictor>, budget: Budget) -> Result<Self> {
        let stations = &predictor.info().stations;
        if stations.len() + 1 != predictor.units().layers {
            return Err(Error::PredictorStations {
                policy: "dejavu",
                found: stations.clone(),
                expected: "one after every layer but the last",
            });
        }
        Ok(DejaVu { predicted: Predicted::new(predictor, budget)? })
    }
}

impl Policy for DejaVu {
    fn name(&self) -> &'static str {
        "dejavu"
    }

    fn stations(&self) -> &[Station] {
        self.predicted.stations()
    }

    fn decide(&mut self, input: PolicyInput<'_>, plan: &mut Plan) -> Result<()> {
        self.predicted.decide(input, plan)
    }

    fn decide_rows(&mut self, input: RowsInput<'_>, masks: &mut MaskRows<'_>) -> Result<()> {
        self.predicted.decide_rows(input, masks)
    }

    fn predicted(&self) -> Option<(&Arc<Predictor>, &Budget)> {
        self.predicted.rule()
    }

    fn fork(&self) -> Box<dyn Policy> {
        Box::new(DejaVu { predicted: self.predicted.fork() })
    }

    fn bytes_per_decision(&self) -> u64 {
        self.predicted.bytes_per_decision()
    }
}
