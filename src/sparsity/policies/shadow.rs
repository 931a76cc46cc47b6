//! `shadow`: one look after layer 0 decides for the whole model.
//!
//! A single decision per token costs one small network instead of one per layer, and nothing waits for it in between. With a
//! predictor of several stations the later ones correct the course; with one, a global budget is counted over the whole model.

use std::sync::Arc;

use super::predicted::Predicted;
use crate::Result;
use crate::sparsity::predictor::Predictor;
use crate::sparsity::{Budget, MaskRows, Plan, Policy, PolicyInput, RowsInput, Station};

/// Plans by a predictor with few stations, usually one.
#[derive(Debug)]
pub struct Shadow {
    predicted: Predicted,
}

impl Shadow {
    /// A policy for one sequence; the predictor may serve any number.
    ///
    /// # Errors
    /// [`crate::Error::BudgetFraction`]; [`crate::Error::PredictorLacks`] if the budget prunes units that the predictor does
    /// not rank.
    pub fn new(predictor: Arc<Predictor>, budget: Budget) -> Result<Self> {
        Ok(Shadow { predicted: Predicted::new(predictor, budget)? })
    }
}

impl Policy for Shadow {
    fn name(&self) -> &'static str {
        "shadow"
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
        Box::new(Shadow { predicted: self.predicted.fork() })
    }

    fn bytes_per_decision(&self) -> u64 {
        self.predicted.bytes_per_decision()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sparsity::predictor::{
        PredictorInfo, PredictorInput, StationWeights, WeightFormat, constant_predictor, random_predictor,
        write_predictor,
    };
    use crate::sparsity::testing::{UNITS, config, cpu, info, scores};
    use crate::sparsity::{DejaVu, Scope, Selector, select};

    fn load(info: &PredictorInfo, stations: &[StationWeights]) -> Arc<Predictor> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p.safetensors");
        write_predictor(&path, info, stations, WeightFormat::Int8).unwrap();
        Arc::new(Predictor::open(&path, &config(), &info.model).unwrap())
    }

    /// Runs all stations of one token, layer by layer.
    fn plan(policy: &mut impl Policy, residual: &[f32], contexts: &[f32]) -> Plan {
        let mut plan = Plan::dense(UNITS);
        for station in policy.stations().to_vec() {
            let before = plan.clone();
            policy.decide(PolicyInput { station, position: 5, residual, contexts, cpu: &cpu() }, &mut plan).unwrap();
            let Station::AfterLayer(layer) = station else { panic!("{station:?}") };
            assert_eq!(plan.layers[..=layer], before.layers[..=layer], "the past cannot be changed");
        }
        plan.validate(UNITS).unwrap();
        plan
    }

    #[test]
    fn the_plan_is_the_selection_of_what_is_predicted() {
        let predictor = load(&info(), &constant_predictor(&info(), &config(), &scores(8)));
        for scope in [Scope::Local, Scope::Global] {
            let budget = Budget::new(0.5, 0.25, scope).unwrap();
            let mut expected = Plan::dense(UNITS);
            select(&scores(8), &budget, UNITS, &mut expected).unwrap();
            let mut policy = Shadow::new(Arc::clone(&predictor), budget).unwrap();
            assert_eq!(plan(&mut policy, &[0.5; 8], &[]), expected);
            assert_eq!((policy.name(), policy.stations()), ("shadow", &[Station::AfterLayer(0)][..]));
            assert!(policy.bytes_per_decision() > 0);
        }
    }

    #[test]
    fn dejavu_decides_layer_by_layer() {
        let info = PredictorInfo { stations: vec![0, 1], ..info() };
        let predictor = load(&info, &constant_predictor(&info, &config(), &scores(8)));
        let budget = Budget::new(0.5, 0.25, Scope::Global).unwrap();
        let mut policy = DejaVu::new(Arc::clone(&predictor), budget).unwrap();
        let mut expected = Plan::dense(UNITS);
        let mut selector = Selector::new();
        for layer in 1..3 {
            selector.select_layers(None, &scores(8), &budget, UNITS, layer..layer + 1, &mut expected).unwrap();
        }
        assert_eq!(plan(&mut policy, &[0.5; 8], &[]), expected);
        assert_eq!(policy.name(), "dejavu");
        assert_eq!(policy.stations(), [Station::AfterLayer(0), Station::AfterLayer(1)]);
        // The same predictor may serve `shadow`, but not the other way round.
        assert!(Shadow::new(predictor, budget).is_ok());
        let single = load(&PredictorInfo { stations: vec![0], ..info.clone() }, &{
            let info = PredictorInfo { stations: vec![0], ..info };
            constant_predictor(&info, &config(), &scores(8))
        });
        assert_eq!(
            DejaVu::new(single, budget).unwrap_err().to_string(),
            "the predictor has stations after layers [0]; policy dejavu needs one after every layer but the last"
        );
    }

    #[test]
    fn it_looks_at_the_input_that_the_predictor_was_trained_on() {
        let x: Vec<f32> = (0..8).map(|i| i as f32 - 3.5).collect();
        let y: Vec<f32> = x.iter().rev().copied().collect();
        let budget = Budget::new(0.5, 0.5, Scope::Local).unwrap();
        let by = |input| {
            let info = PredictorInfo { input, ..info() };
            let policy = Shadow::new(load(&info, &random_predictor(&info, &config(), 8, 8, 2)), budget);
            let mut policy = policy.unwrap();
            (plan(&mut policy, &x, &y), plan(&mut policy, &y, &x))
        };
        let (residual, contexts) = (by(PredictorInput::Residual), by(PredictorInput::Contexts));
        assert_ne!(residual.0, residual.1);
        assert_eq!(residual, (contexts.1, contexts.0));
    }

    #[test]
    fn kinds_that_are_kept_whole_are_not_predicted() {
        let mut stations = random_predictor(&info(), &config(), 8, 8, 2);
        let both = load(&info(), &stations);
        stations[0].neurons = None;
        let heads_only = load(&info(), &stations);
        let budget = Budget::new(0.5, 1.0, Scope::Global).unwrap();
        let mut policy = Shadow::new(Arc::clone(&both), budget).unwrap();
        let mut other = Shadow::new(Arc::clone(&heads_only), budget).unwrap();
        assert_eq!(policy.bytes_per_decision(), other.bytes_per_decision());
        let found = plan(&mut policy, &[0.5; 8], &[]);
        assert_eq!(found, plan(&mut other, &[0.5; 8], &[]));
        assert_eq!(found.kept_fraction(UNITS).neurons, 1.0);
        let dense = Shadow::new(both, Budget::DENSE).unwrap();
        assert_eq!((dense.stations(), dense.bytes_per_decision()), (&[][..], 0));
        let budget = Budget::new(0.5, 0.25, Scope::Global).unwrap();
        assert_eq!(
            Shadow::new(heads_only, budget).unwrap_err().to_string(),
            "the predictor ranks no neurons, but the budget keeps only 0.25 of them; keep all neurons, or use another predictor"
        );
    }
}
