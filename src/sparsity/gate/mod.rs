//! Gate skip: in a gated FFN the gate itself says which neurons count for nothing.
//!
//! The inner of a gated neuron is `act(gate . x) * (up . x)`. Where the first factor is close to zero so is the product, and the
//! `up` row and `down` column, two thirds of the neuron's bytes, need not be read. ReLU makes it exactly zero; SiLU does not, so
//! *close* is a calibrated threshold and the skip is lossy. It works on what a plan has kept: the plan proposes, the gate
//! disposes. Over the dense plan it is CATS.
//!
//! ```text
//! text --calibrate_gate--> GateThresholds (a file, all fractions) --at(0.5)--> GateSkip (one threshold per neuron) --> kernel
//! ```
//!
//! Two statistics say how small is small ([`GateStatistic`]). Both become one threshold per neuron, so they cost the kernel the
//! same: one more number per neuron that is kept.
//!
//! Sources: CATS (Lee et al., *CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models*, COLM 2024); TEAL (Liu
//! et al., *Training-Free Activation Sparsity in Large Language Models*, 2024).

mod calibrate;
mod file;
mod histogram;
mod mask;

use serde::{Deserialize, Serialize};
use shadowllm_weights::ModelConfig;

pub use calibrate::{GateCalibration, calibrate_gate};
pub use mask::GateMask;

use super::{ModelIdentity, Units};
use crate::{Error, Result};

/// By what a neuron's gate is judged small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateStatistic {
    /// `abs(g) * rms(up) * norm(down)`: the size of what the layer's output loses, the `up` product taken at its root mean square
    /// over the calibration text.
    #[default]
    Weighted,
    /// `abs(g)`, the activated gate alone, as in CATS.
    Plain,
}

impl GateStatistic {
    /// Name on the command line and in files.
    pub const fn name(self) -> &'static str {
        match self {
            GateStatistic::Weighted => "weighted",
            GateStatistic::Plain => "plain",
        }
    }
}

impl std::fmt::Display for GateStatistic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for GateStatistic {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [GateStatistic::Weighted, GateStatistic::Plain]
            .into_iter()
            .find(|statistic| statistic.name() == name)
            .ok_or_else(|| Error::UnknownGateStatistic { found: name.to_owned() })
    }
}

/// Calibrated thresholds of one model, for every fraction of neurons that one may want to skip.
#[derive(Clone, Debug, PartialEq)]
pub struct GateThresholds {
    /// Model that they were calibrated for.
    pub model: ModelIdentity,
    /// What they are thresholds of.
    pub statistic: GateStatistic,
    /// The calibration text, in words.
    pub data: String,
    /// Tokens of it that were counted.
    pub tokens: u64,
    /// `[Q]`, ascending, over 0 and under 1: the fractions that `limits` are for.
    pub fractions: Vec<f32>,
    /// `[L, Q]`: this fraction of a layer's neurons had a statistic under this limit. Ascending along a row.
    pub limits: Vec<f32>,
    /// `[L, F]`: the factor of `abs(g)` in the statistic; `None` for [`GateStatistic::Plain`], where it is 1.
    pub scales: Option<Vec<f32>>,
}

impl GateThresholds {
    /// The thresholds that skip about `fraction` of the neurons of every layer but layer 0, which is never skipped in: predictors
    /// look at what leaves it. Between two calibrated fractions limits are interpolated. 0 skips nothing.
    ///
    /// # Errors
    /// [`Error::GateFraction`] unless `fraction` is at least 0 and at most the largest calibrated one.
    pub fn at(&self, fraction: f32, units: impl Into<Units>) -> Result<GateSkip> {
        let units = units.into();
        let most = self.fractions.last().copied().unwrap_or(0.0);
        // False for NaN too.
        if !(fraction >= 0.0 && fraction <= most) {
            return Err(Error::GateFraction { value: fraction, most });
        }
        let mut thresholds = vec![0.0; units.layers * units.neurons];
        for (layer, row) in thresholds.chunks_exact_mut(units.neurons.max(1)).enumerate().skip(1) {
            let limit = self.limit(layer, fraction);
            match &self.scales {
                None => row.fill(limit),
                Some(scales) => {
                    for (threshold, scale) in row.iter_mut().zip(&scales[layer * units.neurons..]) {
                        // A neuron that adds nothing has scale 0 and is under every limit but 0.
                        *threshold = if limit > 0.0 { limit / scale } else { 0.0 };
                    }
                }
            }
        }
        Ok(GateSkip { fraction, units, thresholds })
    }

    /// The limit of a layer at a fraction in the calibrated range.
    fn limit(&self, layer: usize, fraction: f32) -> f32 {
        let q = self.fractions.len();
        let limits = &self.limits[layer * q..][..q];
        let above = self.fractions.partition_point(|&f| f < fraction).min(q - 1);
        let (before, low) = if above == 0 { (0.0, 0.0) } else { (self.fractions[above - 1], limits[above - 1]) };
        let part = (fraction - before) / (self.fractions[above] - before);
        low + part * (limits[above] - low)
    }
}

/// Thresholds in force: one per neuron.
#[derive(Clone, Debug, PartialEq)]
pub struct GateSkip {
    fraction: f32,
    units: Units,
    /// `[L, F]`
    thresholds: Vec<f32>,
}

impl GateSkip {
    /// The fraction of neurons that it was calibrated to skip.
    pub fn fraction(&self) -> f32 {
        self.fraction
    }

    /// Per neuron of a layer the size under which its activated gate counts as 0; `[F]`. Zeros for layer 0.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn layer(&self, layer: usize) -> &[f32] {
        &self.thresholds[layer * self.units.neurons..][..self.units.neurons]
    }

    /// Checks that it is for a model of this shape.
    ///
    /// # Errors
    /// [`Error::NotGated`], [`Error::GateShape`].
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        check_gated(config)?;
        let (found, expected) = ((self.units.layers, self.units.neurons), (config.layers, config.ffn));
        if found != expected {
            return Err(Error::GateShape { found, expected });
        }
        Ok(())
    }
}

/// Checks that a model has gates.
fn check_gated(config: &ModelConfig) -> Result<()> {
    match config.gated {
        true => Ok(()),
        false => Err(Error::NotGated { architecture: config.architecture.name() }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sparsity::testing::UNITS;

    /// Thresholds for [`UNITS`] at 0.25, 0.5 and 0.75.
    pub(super) fn sample(scales: bool) -> GateThresholds {
        GateThresholds {
            model: ModelIdentity::from("abc".to_owned()),
            statistic: if scales { GateStatistic::Weighted } else { GateStatistic::Plain },
            data: "a text".to_owned(),
            tokens: 512,
            fractions: vec![0.25, 0.5, 0.75],
            limits: vec![9.0, 9.0, 9.0, 1.0, 2.0, 4.0, 0.0, 0.5, 0.5],
            scales: scales.then(|| (0..96).map(|i| (i % 4) as f32).collect()),
        }
    }

    #[test]
    fn limits_are_interpolated_between_fractions() {
        let thresholds = sample(false);
        for (fraction, layers) in [
            (0.0, [0.0, 0.0, 0.0]),
            (0.125, [0.0, 0.5, 0.0]),
            (0.25, [0.0, 1.0, 0.0]),
            (0.375, [0.0, 1.5, 0.25]),
            (0.5, [0.0, 2.0, 0.5]),
            (0.75, [0.0, 4.0, 0.5]),
        ] {
            let skip = thresholds.at(fraction, UNITS).unwrap();
            assert_eq!(skip.fraction(), fraction);
            for (layer, expected) in layers.into_iter().enumerate() {
                assert_eq!(skip.layer(layer), [expected; 32], "{fraction}, layer {layer}");
            }
        }
    }

    #[test]
    fn scales_divide_the_limit() {
        let skip = sample(true).at(0.5, UNITS).unwrap();
        assert_eq!(skip.layer(0), [0.0; 32]);
        assert_eq!(skip.layer(1)[..4], [f32::INFINITY, 2.0, 1.0, 2.0 / 3.0]);
        // Nothing is under a limit of 0, not even what adds nothing.
        assert_eq!(sample(true).at(0.25, UNITS).unwrap().layer(2), [0.0; 32]);
    }

    #[test]
    fn fractions_out_of_range_are_refused() {
        for (value, shown) in [(-0.1, "-0.1"), (0.8, "0.8"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
            let error = sample(false).at(value, UNITS).unwrap_err().to_string();
            let expected = format!(
                "the fraction of neurons to skip by their gate is {shown}; expected a number from 0, which skips none, to 0.75"
            );
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn another_shape_is_refused() {
        let skip = sample(false).at(0.5, UNITS).unwrap();
        let opt = crate::sparsity::testing::config();
        assert_eq!(
            skip.check(&opt).unwrap_err().to_string(),
            "gate skip needs a gated FFN, such as Llama's, and this opt model has none; its ReLU skip, which is exact, is on by default"
        );
        let gated = ModelConfig { gated: true, layers: 4, ..opt };
        assert_eq!(
            skip.check(&gated).unwrap_err().to_string(),
            "the gate thresholds are for 3 layers of 32 neurons, but the model has 4 layers of 32; calibrate them for this model"
        );
    }
}
