//! Options that say which policy keeps how many units, for decoding and for evaluation.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};

use crate::eval::{Importance, PolicyMaker, PolicySource};
use crate::generate::Engine;
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
        let missing = |policy, option| Error::PolicyNeeds { policy, option };
        let identity = || ModelIdentity::of(engine.model());
        let predictor = |policy| {
            let path = predictor.ok_or_else(|| missing(policy, "--predictor FILE"))?;
            Ok::<_, Error>(Arc::new(Predictor::open(path, engine.config(), &identity())?))
        };
        Ok(match self {
            PolicyName::Dense => PolicySource::Dense,
            PolicyName::Random => PolicySource::Random { seed },
            PolicyName::Static => {
                let path = scores.ok_or_else(|| missing("static", "--scores FILE"))?;
                let file = ScoresFile::read(path, engine.config(), &identity())?;
                PolicySource::Static(Arc::new(file.scores))
            }
            PolicyName::Shadow => PolicySource::Shadow(predictor("shadow")?),
            PolicyName::Dejavu => PolicySource::Dejavu(predictor("dejavu")?),
            PolicyName::Oracle => PolicySource::Oracle(Importance::Magnitude),
        })
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

    /// Whether every layer keeps its fraction (local) or all layers together do (global).
    #[arg(long, value_name = "SCOPE", default_value_t = Scope::Local, requires = "policy")]
    budget: Scope,

    /// File with a score for every unit, for the policy static.
    #[arg(long, value_name = "FILE", requires = "policy")]
    scores: Option<PathBuf>,

    /// File with a trained predictor, for the policies shadow and dejavu.
    #[arg(long, value_name = "FILE", requires = "policy")]
    predictor: Option<PathBuf>,

    /// Seed of the policy random.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "policy")]
    policy_seed: u64,
}

const DEFAULT_KEEP: f32 = 0.5;

impl PolicyArgs {
    /// How many units may be kept.
    pub(super) fn budget(&self) -> Result<Budget> {
        let keep = self.keep.unwrap_or(DEFAULT_KEEP);
        Budget::new(self.head_keep.unwrap_or(keep), self.neuron_keep.unwrap_or(keep), self.budget)
    }

    /// What makes policies, files read once; `random` draws otherwise for every number.
    pub(super) fn maker(&self, name: PolicyName, engine: &Engine) -> Result<PolicyMaker> {
        let budget = self.budget()?;
        let source = name.source(self.scores.as_deref(), self.predictor.as_deref(), self.policy_seed, engine)?;
        source.maker(budget, engine.config())
    }
}
