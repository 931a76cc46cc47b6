//! Options of commands that may keep a part of the units.

use std::sync::Arc;

use clap::{Args, ValueEnum};
use shadowllm_weights::{Checkpoint, PackedCheckpoint};

use super::console::Console;
use super::gate::GateArgs;
use super::policy::{BudgetReport, LoadedPolicy, PolicyArgs, PolicyName};
use crate::Result;
use crate::eval::PolicyMaker;
use crate::generate::{Engine, Prompts, Sparsity};
use crate::model::{PackedModel, SparseOptions};
use crate::sparsity::{GateSkip, Refresh};

/// Which units a decoded token reads.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sparsity")]
pub(super) struct SparsityArgs {
    /// Who chooses the heads and neurons of each token. Without it every token is dense; with it the weights are packed
    /// once, beside the model or in the cache.
    #[arg(long, value_name = "POLICY", value_parser = PolicyName::decoding())]
    policy: Option<PolicyName>,

    #[command(flatten)]
    units: PolicyArgs,

    /// Choose anew every N tokens, or once (prompt).
    #[arg(long, value_name = "N|prompt", default_value_t = Refresh::EveryToken, requires = "policy")]
    refresh: Refresh,

    /// Whether prompts are processed over all units, many tokens at once (dense), or token by token over those that the policy
    /// keeps (sparse).
    #[arg(long, value_name = "HOW", value_enum, default_value = "dense", requires = "policy")]
    prefill: Prefill,

    /// Read the second half of every kept neuron, also where ReLU makes it count for nothing.
    #[arg(long, requires = "policy")]
    no_relu_skip: bool,

    #[command(flatten)]
    gate: GateArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Prefill {
    Dense,
    Sparse,
}

impl SparsityArgs {
    /// Whether anything is to be kept from being read.
    pub(super) fn is_given(&self) -> bool {
        self.policy.is_some() || self.gate.is_given()
    }

    /// The engine to run on, what a session is to do there, and the budget; see [`SparsityArgs::open`].
    pub(super) fn load(
        &self,
        console: &Console,
        checkpoint: Checkpoint,
        engine: Engine,
    ) -> Result<(Engine, Option<Sparsity>, Option<BudgetReport>)> {
        let (engine, source) = self.open(console, checkpoint, engine)?;
        let Some(source) = source else { return Ok((engine, None, None)) };
        let sparsity = source.sparsity(0, &engine)?;
        Ok((engine, Some(sparsity), source.budget))
    }

    /// The engine to run on and what makes the sparsity of sessions there. With a policy that is an engine over packed weights, which
    /// are made if need be, and nothing of the plain ones stays mapped; without one it is the engine as it came. Gate skip alone is
    /// over the dense plan.
    pub(super) fn open(
        &self,
        console: &Console,
        checkpoint: Checkpoint,
        engine: Engine,
    ) -> Result<(Engine, Option<SparsitySource>)> {
        let gate = self.gate.load(&engine)?;
        let Some(name) = self.policy.or(gate.as_ref().map(|_| PolicyName::Dense)) else { return Ok((engine, None)) };
        // A file that does not fit is to be known before anything is packed.
        let LoadedPolicy { maker: policies, budget } = self.units.load(name, &engine)?;
        if let Some(budget) = &budget {
            budget.note(console);
        }
        let packed = PackedCheckpoint::open_or_pack(&checkpoint, &console.bytes_progress())?;
        let (engine, packed) = (engine.over(&packed)?, Arc::new(PackedModel::load(&packed)?));
        let options = SparseOptions { relu_skip: !self.no_relu_skip, ..SparseOptions::default() };
        let prompts = match self.prefill {
            Prefill::Dense => Prompts::Dense,
            Prefill::Sparse => Prompts::Sparse,
        };
        Ok((engine, Some(SparsitySource { packed, policies, budget, refresh: self.refresh, prompts, options, gate })))
    }
}

/// Makes the sparsity of any number of sessions; weights, predictor and thresholds are shared.
pub(super) struct SparsitySource {
    packed: Arc<PackedModel>,
    policies: PolicyMaker,
    /// `None`: everything is kept.
    pub(super) budget: Option<BudgetReport>,
    refresh: Refresh,
    prompts: Prompts,
    options: SparseOptions,
    gate: Option<Arc<GateSkip>>,
}

impl SparsitySource {
    /// That of session `number`.
    pub(super) fn sparsity(&self, number: u64, engine: &Engine) -> Result<Sparsity> {
        let (packed, policy) = (Arc::clone(&self.packed), (self.policies)(number)?);
        let sparsity =
            Sparsity::new(packed, policy, self.refresh, engine.config(), self.options).prompts(self.prompts)?;
        Ok(match &self.gate {
            Some(gate) => sparsity.with_gate_skip(Arc::clone(gate)),
            None => sparsity,
        })
    }
}
