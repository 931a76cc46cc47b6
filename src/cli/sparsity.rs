//! Options of commands that may keep a part of the units.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use shadowllm_weights::{Checkpoint, PackedCheckpoint};

use super::console::Console;
use super::gate::GateArgs;
use crate::generate::{Engine, Prompts, Sparsity};
use crate::model::{PackedModel, SparseOptions};
use crate::sparsity::{
    Budget, DejaVu, Dense, Fixed, ModelIdentity, Policy, Predictor, Random, Refresh, Scope, ScoresFile, Shadow,
};
use crate::{Error, Result};

/// Which units a decoded token reads.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sparsity")]
pub(super) struct SparsityArgs {
    /// Who chooses the heads and neurons of each token. Without it every token is dense; with it the weights are packed
    /// once, beside the model or in the cache.
    #[arg(long, value_name = "POLICY")]
    policy: Option<PolicyName>,

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

    /// Choose anew every N tokens, or once (prompt).
    #[arg(long, value_name = "N|prompt", default_value_t = Refresh::EveryToken, requires = "policy")]
    refresh: Refresh,

    /// Whether prompts are processed over all units, many tokens at once (dense), or token by token over those that the policy
    /// keeps (sparse).
    #[arg(long, value_name = "HOW", value_enum, default_value = "dense", requires = "policy")]
    prefill: Prefill,

    /// Seed of the policy random.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "policy")]
    policy_seed: u64,

    /// Read the second half of every kept neuron, also where ReLU makes it count for nothing.
    #[arg(long, requires = "policy")]
    no_relu_skip: bool,

    #[command(flatten)]
    gate: GateArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PolicyName {
    /// All units, over the same packed weights and kernels: what the others compare with
    Dense,
    /// The same units for every token, by the scores of a file
    Static,
    /// By a predictor after layer 0, once per token
    Shadow,
    /// By a predictor per layer, one layer ahead
    Dejavu,
    /// At random
    Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Prefill {
    Dense,
    Sparse,
}

const DEFAULT_KEEP: f32 = 0.5;

impl SparsityArgs {
    /// Whether anything is to be kept from being read.
    pub(super) fn is_given(&self) -> bool {
        self.policy.is_some() || self.gate.is_given()
    }

    /// The engine to run on and what a session is to do there. With a policy that is an engine over packed weights, which are made
    /// if need be, and nothing of the plain ones stays mapped; without one it is the engine as it came. Gate skip alone is
    /// over the dense plan.
    pub(super) fn load(
        &self,
        console: &Console,
        checkpoint: Checkpoint,
        engine: Engine,
    ) -> Result<(Engine, Option<Sparsity>)> {
        let gate = self.gate.load(&engine)?;
        let Some(name) = self.policy.or(gate.as_ref().map(|_| PolicyName::Dense)) else { return Ok((engine, None)) };
        // A file that does not fit is to be known before anything is packed.
        let policy = self.policy(name, &engine)?;
        let packed = PackedCheckpoint::open_or_pack(&checkpoint, &console.bytes_progress())?;
        let (engine, packed) = (engine.over(&packed)?, Arc::new(PackedModel::load(&packed)?));
        let options = SparseOptions { relu_skip: !self.no_relu_skip, ..SparseOptions::default() };
        let prompts = match self.prefill {
            Prefill::Dense => Prompts::Dense,
            Prefill::Sparse => Prompts::Sparse,
        };
        let sparsity = Sparsity::new(packed, policy, self.refresh, engine.config(), options).prompts(prompts)?;
        let sparsity = match gate {
            Some(gate) => sparsity.with_gate_skip(gate),
            None => sparsity,
        };
        Ok((engine, Some(sparsity)))
    }

    fn policy(&self, name: PolicyName, engine: &Engine) -> Result<Box<dyn Policy>> {
        let keep = self.keep.unwrap_or(DEFAULT_KEEP);
        let (heads, neurons) = (self.head_keep.unwrap_or(keep), self.neuron_keep.unwrap_or(keep));
        let budget = Budget::new(heads, neurons, self.budget)?;
        let missing = |policy, option| Error::PolicyNeeds { policy, option };
        let identity = || ModelIdentity::of(engine.model());
        let predictor = |policy| {
            let path = self.predictor.as_ref().ok_or_else(|| missing(policy, "--predictor FILE"))?;
            Ok::<_, Error>(Arc::new(Predictor::open(path, engine.config(), &identity())?))
        };
        Ok(match name {
            PolicyName::Dense => Box::new(Dense),
            PolicyName::Random => Box::new(Random::new(self.policy_seed, budget, engine.config())?),
            PolicyName::Static => {
                let path = self.scores.as_ref().ok_or_else(|| missing("static", "--scores FILE"))?;
                let file = ScoresFile::read(path, engine.config(), &identity())?;
                Box::new(Fixed::new(&file.scores, &budget, engine.config())?)
            }
            PolicyName::Shadow => Box::new(Shadow::new(predictor("shadow")?, budget)?),
            PolicyName::Dejavu => Box::new(DejaVu::new(predictor("dejavu")?, budget)?),
        })
    }
}
