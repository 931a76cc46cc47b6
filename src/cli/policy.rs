//! Options that say which policy keeps how many units, for decoding and for evaluation.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::console::Console;
use crate::eval::{Importance, PolicyMaker, PolicySource};
use crate::generate::Engine;
use crate::sparsity::predictor::{Choice, parse_max_increase};
use crate::sparsity::{Budget, ModelIdentity, Predictor, Scope, ScoresFile};
use crate::{Error, Result};

/// Who chooses the units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PolicyName {
    /// All units: what the others compare with
    Dense,
    /// The same units for every token, by the scores of a file
    Static,
    /// By a predictor after layer 0, once per token
    Shadow,
    /// By a predictor per layer, one layer ahead
    Dejavu,
    /// At random
    Random,
    /// By what the dense model computes for the token: a bound, which no decoder can reach
    Oracle,
}

impl PolicyName {
    /// For commands that decode: the oracle is not among the values that help and errors list, and has an error of its own.
    pub(super) fn decoding() -> impl TypedValueParser<Value = PolicyName> {
        let shown = |name: &PolicyName| Some(name.to_possible_value()?.hide(*name == PolicyName::Oracle));
        let names = PossibleValuesParser::new(PolicyName::value_variants().iter().filter_map(shown));
        names.try_map(|name| PolicyName::from_str(&name, false))
    }

    /// The policy of a name.
    pub(super) fn named(name: &str) -> Option<Self> {
        PolicyName::from_str(name, false).ok()
    }

    /// What is in the file that it needs, if it needs one.
    pub(super) fn file(self) -> Option<&'static str> {
        match self {
            PolicyName::Static => Some("scores"),
            PolicyName::Shadow | PolicyName::Dejavu => Some("a predictor"),
            PolicyName::Dense | PolicyName::Random | PolicyName::Oracle => None,
        }
    }

    /// What it chooses by. Of the files the one that it needs is read.
    pub(super) fn source(
        self,
        scores: Option<&Path>,
        predictor: Option<&Path>,
        seed: u64,
        engine: &Engine,
    ) -> Result<PolicySource> {
        Ok(match self {
            PolicyName::Dense => PolicySource::Dense,
            PolicyName::Random => PolicySource::Random { seed },
            PolicyName::Static => {
                let path = scores.ok_or(Error::PolicyNeeds { policy: "static", option: "--scores FILE" })?;
                let file = ScoresFile::read(path, engine.config(), &ModelIdentity::of(engine.model()))?;
                PolicySource::Static(Arc::new(file.scores))
            }
            PolicyName::Shadow => PolicySource::Shadow(Arc::new(self.predictor(predictor, engine)?)),
            PolicyName::Dejavu => PolicySource::Dejavu(Arc::new(self.predictor(predictor, engine)?)),
            PolicyName::Oracle => PolicySource::Oracle(Importance::Magnitude),
        })
    }

    /// The predictor that was named; for `shadow` otherwise that of the embedded model, if this is it.
    fn predictor(self, path: Option<&Path>, engine: &Engine) -> Result<Predictor> {
        if let Some(path) = path {
            return open_predictor(path, engine);
        }
        if self == PolicyName::Shadow {
            match Predictor::embedded(engine.config(), &ModelIdentity::of(engine.model())) {
                Err(Error::OtherModel { .. } | Error::Weights(shadowllm_weights::Error::NoEmbeddedModel)) => {}
                embedded => return embedded,
            }
        }
        let policy = if self == PolicyName::Shadow { "shadow" } else { "dejavu" };
        Err(Error::PolicyNeeds { policy, option: "--predictor FILE" })
    }
}

/// How many units are kept, and what the policy chooses by.
#[derive(Clone, Debug, Args)]
pub(super) struct PolicyArgs {
    /// Fraction of the heads and of the neurons to keep, above 0 and at most 1 [default: 0.5].
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true, requires = "policy")]
    keep: Option<f32>,

    /// Fraction of the heads to keep [default: that of --keep].
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true, requires = "policy")]
    head_keep: Option<f32>,

    /// Fraction of the neurons to keep [default: that of --keep].
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true, requires = "policy")]
    neuron_keep: Option<f32>,

    /// In place of these: keep as little as the predictor was measured to need for perplexity to grow by at most this much, such as
    /// 5% or 0.05. The curves that it goes by are those of `shadowllm validate`.
    #[arg(long, value_name = "X", value_parser = max_increase, allow_hyphen_values = true, requires = "policy",
        conflicts_with_all = ["keep", "head_keep", "neuron_keep", "budget"])]
    max_ppl_increase: Option<f64>,

    /// Whether every layer keeps its fraction (local) or all layers together do (global).
    #[arg(long, value_name = "SCOPE", default_value_t = Scope::Local, requires = "policy")]
    budget: Scope,

    /// File with a score for every unit, for the policy static.
    #[arg(long, value_name = "FILE", requires = "policy")]
    scores: Option<PathBuf>,

    /// File with a trained predictor, for the policies shadow and dejavu; `embedded` is that of the embedded model, which shadow
    /// takes for this model by itself.
    #[arg(long, value_name = "FILE", requires = "policy")]
    predictor: Option<PathBuf>,

    /// Seed of the policy random.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "policy")]
    policy_seed: u64,
}

const DEFAULT_KEEP: f32 = 0.5;

fn max_increase(text: &str) -> Result<f64, String> {
    parse_max_increase(text).map_err(|error| error.to_string())
}

/// How many units are kept, and why.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BudgetReport {
    /// `heads`, `neurons` and `scope`.
    #[serde(flatten)]
    pub(super) budget: Budget,
    /// With `--max-ppl-increase`: what it was chosen by; otherwise `null`.
    chosen: Option<Chosen>,
    /// Why the quality at this budget is not known, for policies with a predictor; `null` if it was measured.
    warning: Option<String>,
}

/// By what a budget was chosen.
#[derive(Clone, Debug, Serialize)]
struct Chosen {
    /// The most by which perplexity was allowed to grow, as a fraction.
    max_increase: f64,
    /// By how much it is expected to grow.
    expected_increase: f64,
    /// The text that this was measured on, in words.
    data: String,
    /// Tokens of it that were scored.
    tokens: u64,
}

impl BudgetReport {
    /// One that was asked for.
    pub(super) fn given(budget: Budget) -> Self {
        BudgetReport { budget, chosen: None, warning: None }
    }

    /// Says what was chosen, and what is not known of it, on standard error.
    pub(super) fn note(&self, console: &Console) {
        if let Some(chosen) = &self.chosen {
            console.note(&format!(
                "chosen: {:.1} % of the heads and {:.1} % of the neurons, the fewest bytes for at most {} % more perplexity; \
                 expected are {:.2} % more, by {} tokens of {}",
                100.0 * self.budget.heads,
                100.0 * self.budget.neurons,
                // As a person would write it: 5, not 5.000000000000001.
                (1e8 * chosen.max_increase).round() / 1e6,
                100.0 * chosen.expected_increase,
                chosen.tokens,
                chosen.data,
            ));
        }
        if let Some(warning) = &self.warning {
            console.note(&format!("warning: {warning}; `shadowllm validate` measures it"));
        }
    }
}

/// What chooses the units of texts, files read.
pub(super) struct LoadedPolicy {
    /// `random` draws otherwise for every number.
    pub(super) maker: PolicyMaker,
    /// `None` for the policy that keeps everything.
    pub(super) budget: Option<BudgetReport>,
}

impl PolicyArgs {
    /// How many units may be kept, if that was not left to what a predictor costs.
    pub(super) fn budget(&self, name: PolicyName) -> Result<Budget> {
        if self.max_ppl_increase.is_some() {
            let policy = name.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
            return Err(Error::IncreaseNeedsPredictor { policy });
        }
        let keep = self.keep.unwrap_or(DEFAULT_KEEP);
        Budget::new(self.head_keep.unwrap_or(keep), self.neuron_keep.unwrap_or(keep), self.budget)
    }

    /// What makes policies, and how many units they keep.
    pub(super) fn load(&self, name: PolicyName, engine: &Engine) -> Result<LoadedPolicy> {
        let given = if self.max_ppl_increase.is_none() || name.file() != Some("a predictor") {
            Some(self.budget(name)?)
        } else {
            None
        };
        let source = name.source(self.scores.as_deref(), self.predictor.as_deref(), self.policy_seed, engine)?;
        let report = self.report(given, &source, engine)?;
        let maker = source.maker(report.budget, engine.config())?;
        Ok(LoadedPolicy { maker, budget: (name != PolicyName::Dense).then_some(report) })
    }

    /// The budget: that which was given, or the choice by what the predictor of `source` costs.
    fn report(&self, given: Option<Budget>, source: &PolicySource, engine: &Engine) -> Result<BudgetReport> {
        match (given, self.max_ppl_increase, source.predictor()) {
            (None, Some(most), Some(predictor)) => {
                let choice = predictor.choose_budget(engine.model(), most);
                let choice = choice.map_err(|error| match &self.predictor {
                    Some(path) => error.in_file(path),
                    None => error,
                })?;
                let Choice { budget, max_increase, expected_increase, data, tokens } = choice;
                let chosen = Some(Chosen { max_increase, expected_increase, data, tokens });
                Ok(BudgetReport { budget, chosen, warning: None })
            }
            (budget, _, predictor) => {
                let budget = budget.unwrap_or(Budget::DENSE);
                let warning = predictor.and_then(|p| p.unvalidated(&budget)).map(|reason| reason.to_string());
                Ok(BudgetReport { budget, chosen: None, warning })
            }
        }
    }
}

/// The name of the predictor that is compiled into the program.
pub(super) const EMBEDDED: &str = "embedded";

/// Reads a predictor for the model of `engine`: a file, or [`EMBEDDED`].
pub(super) fn open_predictor(path: &Path, engine: &Engine) -> Result<Predictor> {
    let identity = ModelIdentity::of(engine.model());
    if path == Path::new(EMBEDDED) {
        return Predictor::embedded(engine.config(), &identity).map_err(|error| error.in_file(path));
    }
    Predictor::open(path, engine.config(), &identity)
}
