//! The dense model with gate skip applied: what sparse decoding with thresholds has to give, and how its cost in quality is
//! measured on many tokens at once.

use std::sync::Arc;

use shadowllm_weights::ModelConfig;

use super::GateSkip;
use crate::Result;
use crate::kernels::{Cpu, activate};
use crate::model::{Probe, Rows};
use crate::sparsity::PlanMasks;

/// A probe that sets the inners of neurons under their threshold to zero, and counts them.
#[derive(Debug)]
pub struct GateMask {
    cpu: Cpu,
    skip: Arc<GateSkip>,
    config: ModelConfig,
    /// Rows of a window, and how many of its first stay as they are.
    window: usize,
    prefix: usize,
    /// Rows whose last layer has been seen.
    seen: usize,
    /// `[rows, F]`
    sizes: Vec<f32>,
    neurons: u64,
    skipped: u64,
}

impl GateMask {
    /// Masks every row.
    ///
    /// # Errors
    /// As [`GateSkip::check`].
    pub fn new(cpu: &Cpu, config: &ModelConfig, skip: Arc<GateSkip>) -> Result<Self> {
        skip.check(config)?;
        let (cpu, config, sizes) = (cpu.clone(), config.clone(), Vec::new());
        Ok(GateMask { cpu, skip, config, window: usize::MAX, prefix: 0, seen: 0, sizes, neurons: 0, skipped: 0 })
    }

    /// Leaves the first `prefix` of every `window` rows as they are, like the prompts of sequences that are run one after the
    /// other.
    pub fn dense_prefix(self, prefix: usize, window: usize) -> Self {
        GateMask { prefix, window: window.max(1), ..self }
    }

    /// The share of the kept inners that were set to zero in the rows that are masked, over all layers; 0 before the first.
    pub fn skipped(&self) -> f64 {
        self.skipped as f64 / self.neurons.max(1) as f64
    }
}

impl GateMask {
    /// Sets `ups` (`[rows, F]`) of skipped neurons to zero, and counts. `kept` says of a row which neurons a plan has kept, as bits,
    /// or that the row stays as it is.
    pub(crate) fn mask<'k>(
        &mut self,
        layer: usize,
        gates: &[f32],
        ups: &mut [f32],
        kept: impl Fn(usize) -> Option<&'k [u64]>,
    ) {
        self.sizes.clear();
        self.sizes.extend_from_slice(gates);
        activate(&self.cpu, self.config.activation, &mut self.sizes);
        let thresholds = self.skip.layer(layer);
        let f = thresholds.len();
        for (row, (sizes, ups)) in self.sizes.chunks_exact(f).zip(ups.chunks_exact_mut(f)).enumerate() {
            let Some(kept) = kept(row) else { continue };
            for (i, ((size, up), threshold)) in sizes.iter().zip(ups).zip(thresholds).enumerate() {
                if size.abs() < *threshold {
                    *up = 0.0;
                    self.skipped += kept[i / 64] >> (i % 64) & 1;
                }
            }
            self.neurons += kept.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        }
    }
}

impl Probe for GateMask {
    fn gates(&mut self, rows: Rows, gates: &mut [f32], ups: &mut [f32]) {
        let (seen, window, prefix) = (self.seen, self.window, self.prefix);
        let all = PlanMasks::all(self.config.ffn);
        self.mask(rows.layer, gates, ups, |row| ((seen + row) % window >= prefix).then_some(&all[..]));
        if rows.layer + 1 == self.config.layers {
            self.seen += rows.count;
        }
    }
}
