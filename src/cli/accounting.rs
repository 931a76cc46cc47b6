//! What commands that decode report of the units that were read.

use serde::Serialize;

use super::gate::GateReport;
use crate::generate::{Session, Sparsity, Timing};
use crate::sparsity::Kept;

/// Fields that `generate --json` and `chat --json` share.
#[derive(Debug, Serialize)]
pub(super) struct Accounting {
    /// Who chose the units of each token: `dense`, `static`, `shadow`, `dejavu`, `random`.
    policy: &'static str,
    /// Units kept / units, over all layers and decode steps; `null` if there was no step.
    kept: Option<Kept>,
    /// `fraction`, `skipped` and `lossy`; `null` without gate skip.
    gate_skip: Option<GateReport>,
    /// Bytes that the decisions read, on average per token; part of `bytes_per_token`.
    predictor_bytes_per_token: Option<f64>,
    /// Milliseconds that the decisions took, on average per token; part of the time of a decode step.
    predictor_ms_per_token: Option<f64>,
    /// Bytes that a decode step over all units reads, on average.
    dense_bytes_per_token: Option<f64>,
    /// `dense_bytes_per_token / bytes_per_token`: the speed-up if time were bytes.
    ideal_speedup: Option<f64>,
    /// Memory of the key/value cache.
    cache_bytes: u64,
    /// Memory of the attention inputs that missing keys and values are made from.
    pending_bytes: u64,
}

impl Accounting {
    pub(super) fn new(session: &Session, timing: &Timing) -> Self {
        Accounting {
            policy: session.sparsity().map_or("dense", Sparsity::policy),
            kept: timing.kept(session.engine().config()),
            gate_skip: gate_skip(session, timing),
            predictor_bytes_per_token: timing.per_step(timing.decision_bytes),
            predictor_ms_per_token: timing.decision_ms_per_token(),
            dense_bytes_per_token: timing.per_step(timing.dense_bytes),
            ideal_speedup: timing.ideal_speedup(),
            cache_bytes: timing.cache_bytes,
            pending_bytes: timing.pending_bytes,
        }
    }

    /// One line, and one for gate skip; nothing if every token was dense or there was none.
    pub(super) fn note(session: &Session, timing: &Timing) -> Option<String> {
        let (sparsity, kept) = (session.sparsity()?, timing.kept(session.engine().config())?);
        let gate = gate_skip(session, timing).map_or_else(String::new, |gate| format!("\n{}", gate.note()));
        Some(format!(
            "policy {}: {:.1} % of the heads and {:.1} % of the neurons kept, ideally {:.2} times as fast as dense; decisions \
             take {:.3} ms per token, {:.1} % of its time; {:.1} MB held for missing keys and values{gate}",
            sparsity.policy(),
            100.0 * kept.heads,
            100.0 * kept.neurons,
            timing.ideal_speedup()?,
            timing.decision_ms_per_token()?,
            100.0 * timing.decision_seconds / timing.decode_seconds,
            timing.pending_bytes as f64 / 1e6,
        ))
    }
}

fn gate_skip(session: &Session, timing: &Timing) -> Option<GateReport> {
    let skip = session.sparsity()?.gate_skip()?;
    Some(GateReport::new(skip, timing.skipped()))
}
