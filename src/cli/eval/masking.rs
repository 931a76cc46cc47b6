//! Options and report of evaluations that may keep a part of the units.

use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use crate::Result;
use crate::cli::console::Console;
use crate::cli::gate::{GateArgs, GateReport};
use crate::cli::policy::{BudgetReport, PolicyArgs, PolicyName};
use crate::eval::{Chooser, Decision, Importance, Masked, Masking};
use crate::generate::Engine;
use crate::sparsity::{GateSkip, Kept};

/// Which units the tokens of a text keep.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sparsity")]
pub(super) struct MaskingArgs {
    /// Who chooses the heads and neurons of each token; the others are set to zero, which is what sparse decoding gives. Without
    /// it every token is dense.
    #[arg(long, value_name = "POLICY")]
    policy: Option<PolicyName>,

    #[command(flatten)]
    units: PolicyArgs,

    /// Which token decides: each for itself (causal), as in decoding, or the last of a text for all of it (sequence), which no
    /// decoder can do; for comparison only.
    #[arg(long, value_name = "RULE", default_value_t = Decision::Causal, requires = "policy")]
    decision: Decision,

    /// By what the policy oracle ranks units.
    #[arg(long, value_name = "IMPORTANCE", default_value_t = Importance::Magnitude, requires = "policy")]
    oracle: Importance,

    /// Tokens at the start of each text that keep everything [default: 0; 1 with gate skip, whose thresholds are calibrated
    /// without the first token].
    #[arg(long, value_name = "N")]
    dense_prefix: Option<usize>,

    #[command(flatten)]
    gate: GateArgs,
}

/// What was asked for, ready to run.
pub(super) struct Loaded {
    pub(super) masked: Masked,
    /// `None`: every token is dense.
    budget: Option<BudgetReport>,
    oracle: Option<Importance>,
    skip: Option<Arc<GateSkip>>,
}

impl MaskingArgs {
    /// Reads the files that are needed, and says what budget was chosen.
    pub(super) fn load(&self, console: &Console, engine: &Engine) -> Result<Loaded> {
        let skip = self.gate.load(engine)?;
        let name = self.policy.unwrap_or(PolicyName::Dense);
        let oracle = (name == PolicyName::Oracle).then_some(self.oracle);
        let (chooser, budget) = match oracle {
            Some(importance) => {
                let budget = self.units.budget(name)?;
                (Chooser::Oracle { importance, budget }, Some(BudgetReport::given(budget)))
            }
            None => {
                let loaded = self.units.load(name, engine)?;
                (Chooser::Policy(loaded.maker), loaded.budget)
            }
        };
        if let Some(budget) = &budget {
            budget.note(console);
        }
        let dense_prefix = self.dense_prefix.unwrap_or(usize::from(skip.is_some()));
        let masking = Masking { decision: self.decision, dense_prefix, gate: skip.clone() };
        Ok(Loaded { masked: Masked::new(engine, chooser, masking)?, budget, oracle, skip })
    }
}

impl Loaded {
    /// Whether nothing is set to zero.
    pub(super) fn is_dense(&self) -> bool {
        self.budget.as_ref().is_none_or(|report| report.budget.is_dense()) && self.skip.is_none()
    }

    /// What was done so far.
    pub(super) fn report(&self) -> MaskingReport {
        let masked = &self.masked;
        let decision = self.budget.as_ref().map(|_| masked.decision());
        MaskingReport {
            policy: masked.policy(),
            budget: self.budget.clone(),
            oracle: self.oracle,
            kept: masked.kept(),
            decision,
            causal: decision != Some(Decision::Sequence) && self.oracle.is_none(),
            dense_prefix: masked.dense_prefix(),
            gate_skip: self.skip.as_deref().map(|skip| GateReport::new(skip, masked.gate_skipped())),
        }
    }
}

/// What `--json` says of the policy.
#[derive(Clone, Debug, Serialize)]
pub(super) struct MaskingReport {
    /// Who chose the units.
    policy: &'static str,
    /// `heads`, `neurons`, `scope`, `chosen` and `warning`; `null` if all units were kept.
    budget: Option<BudgetReport>,
    /// By what the oracle ranked units; `null` for other policies.
    oracle: Option<Importance>,
    /// Units kept / units, over all layers and the tokens that were decided.
    kept: Kept,
    /// Which token decided; `null` if none did.
    decision: Option<Decision>,
    /// Whether a decoder could do the same.
    causal: bool,
    /// Tokens at the start of each text that kept everything.
    dense_prefix: usize,
    /// `fraction`, `skipped` and `lossy`; `null` without gate skip.
    gate_skip: Option<GateReport>,
}

impl MaskingReport {
    /// Says what was measured where that is not the dense model.
    pub(super) fn note(&self, console: &Console) {
        if let Some(gate) = &self.gate_skip {
            console.note(&gate.note());
        }
        if self.decision == Some(Decision::Sequence) {
            console.note(
                "decision sequence is not causal: the last token of a text chose the units of all; for comparison only",
            );
        }
    }

    /// One line; `None` if all units were kept.
    pub(super) fn line(&self) -> Option<String> {
        let (budget, decision) = (self.budget.as_ref()?.budget, self.decision?);
        let causal = if decision == Decision::Sequence { " (not causal)" } else { "" };
        let prefix = match self.dense_prefix {
            0 => String::new(),
            n => format!(", first {n} tokens of each text dense"),
        };
        Some(format!(
            "policy {}, {:.1} % of the heads and {:.1} % of the neurons kept, budget {}, decision {decision}{causal}{prefix}",
            self.policy,
            100.0 * self.kept.heads,
            100.0 * self.kept.neurons,
            budget.scope,
        ))
    }
}
