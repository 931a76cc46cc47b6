//! Options of commands that may keep a part of the units.

use std::sync::Arc;

use clap::{Args, ValueEnum};
use shadowllm_weights::{Checkpoint, PackedCheckpoint};

use super::console::Console;
use super::gate::GateArgs;
use super::policy::{PolicyArgs, PolicyName};
use crate::Result;
use crate::generate::{Engine, Prompts, Sparsity};
use crate::model::{PackedModel, SparseOptions};
use crate::sparsity::Refresh;

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

    /// What a session is to do, packing the weights if need be; `None` without a policy. Gate skip alone is over the dense plan.
    pub(super) fn load(&self, console: &Console, checkpoint: &Checkpoint, engine: &Engine) -> Result<Option<Sparsity>> {
        let gate = self.gate.load(engine)?;
        let Some(name) = self.policy.or(gate.as_ref().map(|_| PolicyName::Dense)) else { return Ok(None) };
        let policy = self.units.policy(name, engine)?;
        let packed = PackedCheckpoint::open_or_pack(checkpoint, &console.bytes_progress())?;
        let packed = Arc::new(PackedModel::load(&packed)?);
        let options = SparseOptions { relu_skip: !self.no_relu_skip, ..SparseOptions::default() };
        let prompts = match self.prefill {
            Prefill::Dense => Prompts::Dense,
            Prefill::Sparse => Prompts::Sparse,
        };
        let sparsity = Sparsity::new(packed, policy, self.refresh, engine.config(), options).prompts(prompts)?;
        Ok(Some(match gate {
            Some(gate) => sparsity.with_gate_skip(gate),
            None => sparsity,
        }))
    }
}
