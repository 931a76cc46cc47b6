//! Policies by name, with predictors of a stated size.
//!
//! A predictor's weights are random: what it costs depends on its form alone. It is really run, so that its time is in every
//! token's, and a budget keeps exactly the fraction that was asked for, whatever the scores are.

use std::str::FromStr;
use std::sync::Arc;

use shadowllm_weights::ModelConfig;

use super::BenchError;
use crate::Result;
use crate::kernels::Cpu;
use crate::sparsity::predictor::{HiddenActivation, Normalization, PredictorInput, Training, Wanted, WeightFormat};
use crate::sparsity::{
    Budget, DejaVu, Fixed, ModelIdentity, Plan, Policy, PolicyInput, Predictor, PredictorInfo, Random, Scope, Shadow,
    Station, Units,
};

/// Who chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Dense,
    Static,
    Random,
    Shadow,
    Dejavu,
}

/// A policy, and the size of its predictor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PolicySpec {
    /// As it was asked for.
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Hidden units for heads and for neurons.
    widths: [usize; 2],
    format: WeightFormat,
}

/// Hidden units of `shadow`.
const SHADOW: usize = 256;
/// Far more than any predictor has.
const MAX_WIDTH: usize = 1 << 16;

impl FromStr for PolicySpec {
    type Err = BenchError;

    fn from_str(text: &str) -> Result<Self, BenchError> {
        let wrong = || BenchError::UnknownPolicy { found: text.to_owned() };
        let mut parts = text.split(':');
        let (kind, mut widths, mut format) = match parts.next() {
            Some("dense") => (Kind::Dense, [0; 2], WeightFormat::F32),
            Some("static") => (Kind::Static, [0; 2], WeightFormat::F32),
            Some("random") => (Kind::Random, [0; 2], WeightFormat::F32),
            Some("shadow") => (Kind::Shadow, [SHADOW; 2], WeightFormat::Int8),
            Some("dejavu") => (Kind::Dejavu, [DejaVu::RANKS.0, DejaVu::RANKS.1], WeightFormat::F16),
            _ => return Err(wrong()),
        };
        for part in parts {
            if !matches!(kind, Kind::Shadow | Kind::Dejavu) {
                return Err(wrong());
            }
            if let Some(named) = WeightFormat::ALL.into_iter().find(|format| format.name() == part) {
                format = named;
                continue;
            }
            let (heads, neurons) = part.split_once('/').unwrap_or((part, part));
            for (width, text) in widths.iter_mut().zip([heads, neurons]) {
                *width = text.parse().ok().filter(|n| (1..=MAX_WIDTH).contains(n)).ok_or_else(wrong)?;
            }
        }
        Ok(PolicySpec { name: text.to_owned(), kind, widths, format })
    }
}

impl PolicySpec {
    /// What it costs, in words; nothing for policies without a predictor.
    pub(super) fn describe(&self) -> Option<String> {
        let where_to = match self.kind {
            Kind::Shadow => "one predictor after layer 0",
            Kind::Dejavu => "a predictor after every layer but the last",
            Kind::Dense | Kind::Static | Kind::Random => return None,
        };
        let [heads, neurons] = self.widths;
        Some(format!(
            "{}: {where_to}, {heads} hidden units for heads and {neurons} for neurons, {}",
            self.name,
            self.format.name()
        ))
    }

    fn stations(&self, config: &ModelConfig) -> Vec<usize> {
        match self.kind {
            Kind::Dejavu => (0..config.layers.saturating_sub(1)).collect(),
            _ => vec![0],
        }
    }

    /// Bytes of the weights of one station, about, and the number of stations.
    fn station_bytes(&self, config: &ModelConfig) -> (u64, usize) {
        let stations = self.stations(config).len();
        let layers = config.layers.saturating_sub(1).div_ceil(stations.max(1));
        let network = |hidden: usize, units: usize| hidden * (config.hidden + layers * units);
        let weights = network(self.widths[0], config.heads) + network(self.widths[1], config.ffn);
        ((weights * self.format.size()) as u64, stations)
    }

    /// Stations with weights of their own: enough that together they are several times the last-level cache.
    fn copies(&self, config: &ModelConfig, beyond_caches: u64) -> usize {
        let (bytes, stations) = self.station_bytes(config);
        usize::try_from(beyond_caches / bytes.max(1) + 2).unwrap_or(usize::MAX).min(stations)
    }

    /// Bytes that its predictor takes in memory, about.
    pub(super) fn memory(&self, config: &ModelConfig, beyond_caches: u64) -> u64 {
        match self.kind {
            Kind::Shadow | Kind::Dejavu => self.station_bytes(config).0 * self.copies(config, beyond_caches) as u64,
            Kind::Dense | Kind::Static | Kind::Random => 0,
        }
    }

    /// Its predictor, if it has one.
    pub(super) fn predictor(
        &self,
        config: &ModelConfig,
        model: &ModelIdentity,
        beyond_caches: u64,
        seed: u64,
    ) -> Result<Option<Arc<Predictor>>> {
        let activation = match self.kind {
            Kind::Shadow => HiddenActivation::Relu,
            Kind::Dejavu => HiddenActivation::None,
            Kind::Dense | Kind::Static | Kind::Random => return Ok(None),
        };
        let info = PredictorInfo {
            model: model.clone(),
            stations: self.stations(config),
            input: PredictorInput::Residual,
            normalization: Normalization::None,
            activation,
            criterion: "none: random weights".into(),
            training: Training::default(),
            validated: Vec::new(),
        };
        let copies = self.copies(config, beyond_caches);
        Ok(Some(Arc::new(Predictor::random(info, config, self.widths, self.format, copies, seed)?)))
    }

    /// A policy for one sequence.
    pub(super) fn policy(
        &self,
        predictor: Option<&Arc<Predictor>>,
        keep: f32,
        seed: u64,
        config: &ModelConfig,
        cpu: &Cpu,
    ) -> Result<Box<dyn Policy>> {
        let budget = Budget::new(keep, keep, Scope::Local)?;
        Ok(match (self.kind, predictor) {
            (Kind::Shadow, Some(predictor)) => Box::new(Shadow::new(Arc::clone(predictor), budget)?),
            (Kind::Dejavu, Some(predictor)) => Box::new(DejaVu::new(Arc::clone(predictor), budget)?),
            (Kind::Static, _) => Box::new(Fixed::with_plan(drawn(budget, seed, config, cpu)?, config)?),
            _ => Box::new(Random::new(seed, budget, config)?),
        })
    }
}

/// A plan of random units, each once.
fn drawn(budget: Budget, seed: u64, config: &ModelConfig, cpu: &Cpu) -> Result<Plan> {
    let mut plan = Plan::dense(Units::from(config));
    let input = PolicyInput { station: Station::Start, position: 0, residual: &[], contexts: &[], cpu };
    Random::new(seed, budget, config)?.decide(input, &mut plan)?;
    Ok(plan)
}

/// Bytes of a predictor that decisions read, as if every station had weights of its own.
pub(super) fn predictor_bytes(predictor: &Predictor) -> u64 {
    predictor.bytes(Wanted { heads: true, neurons: true })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sparsity::testing::config;

    #[test]
    fn names_state_sizes() {
        let spec = |text: &str| text.parse::<PolicySpec>().unwrap();
        assert_eq!((spec("shadow").widths, spec("shadow").format), ([256, 256], WeightFormat::Int8));
        assert_eq!((spec("dejavu").widths, spec("dejavu").format), ([512, 1000], WeightFormat::F16));
        assert_eq!((spec("dejavu:2048").widths, spec("dejavu:2048").format), ([2048, 2048], WeightFormat::F16));
        let other = spec("shadow:64/128:f32");
        assert_eq!(
            (other.widths, other.format, other.name.as_str()),
            ([64, 128], WeightFormat::F32, "shadow:64/128:f32")
        );
        assert_eq!(
            other.describe().unwrap(),
            "shadow:64/128:f32: one predictor after layer 0, 64 hidden units for heads and 128 for neurons, f32"
        );
        assert!(spec("static").describe().is_none());
        for text in ["", "oracle", "static:5", "shadow:", "shadow:0", "dejavu:1/2/3", "shadow:70000", "shadow:f8"] {
            let error = text.parse::<PolicySpec>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("unknown policy {text:?}; expected dense, static, random,")), "{error}");
        }
    }

    #[test]
    fn memory_is_what_predictors_take() {
        let (config, model) = (config(), ModelIdentity::from("abc".to_owned()));
        for text in ["shadow:16", "dejavu:16/32", "dejavu:16/32:f32"] {
            let spec: PolicySpec = text.parse().unwrap();
            let predictor = spec.predictor(&config, &model, u64::MAX, 1).unwrap().unwrap();
            // But for biases and scales.
            let (expected, found) = (predictor_bytes(&predictor), spec.memory(&config, u64::MAX));
            assert!(found <= expected && 2 * found > expected, "{text}: {found} of {expected}");
        }
        assert_eq!("static".parse::<PolicySpec>().unwrap().memory(&config, u64::MAX), 0);
    }
}
