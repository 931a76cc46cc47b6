//! Options and report of commands that may skip neurons by their gate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use crate::Result;
use crate::generate::Engine;
use crate::sparsity::{GateSkip, GateThresholds, ModelIdentity};

/// Which neurons to leave half read.
#[derive(Clone, Debug, Args)]
pub(super) struct GateArgs {
    /// Fraction of a gated FFN's neurons of which only the gate is read, because it is small; 0 for none. Changes results.
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true, requires = "gate_thresholds")]
    gate_skip: Option<f32>,

    /// File with calibrated thresholds, made by `calibrate-gate`.
    #[arg(long, value_name = "FILE", requires = "gate_skip")]
    gate_thresholds: Option<PathBuf>,
}

impl GateArgs {
    /// Whether anything is to be skipped.
    pub(super) fn is_given(&self) -> bool {
        self.gate_skip.is_some()
    }

    /// The file of the thresholds.
    pub(super) fn thresholds(&self) -> Option<&Path> {
        self.gate_thresholds.as_deref()
    }

    /// The thresholds for the fraction that was asked for, if any was.
    pub(super) fn load(&self, engine: &Engine) -> Result<Option<Arc<GateSkip>>> {
        let (Some(fraction), Some(path)) = (self.gate_skip, &self.gate_thresholds) else { return Ok(None) };
        let thresholds = GateThresholds::read(path, engine.config(), &ModelIdentity::of(engine.model()))?;
        Ok(Some(Arc::new(thresholds.at(fraction, engine.config())?)))
    }
}

/// What gate skip did.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct GateReport {
    /// The fraction that was asked for.
    fraction: f32,
    /// Share of the kept neurons, over all layers, of which only the gate was read; `null` if no token was sparse.
    skipped: Option<f64>,
    /// Always true: results are not those of the same plan without it.
    lossy: bool,
}

impl GateReport {
    pub(super) fn new(skip: &GateSkip, skipped: Option<f64>) -> Self {
        GateReport { fraction: skip.fraction(), skipped, lossy: true }
    }

    /// One line.
    pub(super) fn note(&self) -> String {
        let skipped = self.skipped.map_or_else(|| "nothing".to_owned(), |share| format!("{:.1} %", 100.0 * share));
        format!("gate skip {}: {skipped} of the kept neurons left after their gate; lossy", self.fraction)
    }
}
