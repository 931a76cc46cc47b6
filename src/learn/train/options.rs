//! Settings of a training, and the three sets of them that have a name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::loss::{Loss, TargetScale};
use crate::learn::LearnError;
use crate::learn::samples::Split;
use crate::sparsity::predictor::{HiddenActivation, Normalization, PredictorInput};
use crate::{Error, Result};

/// How a predictor is trained. Which input, stations and criterion it is trained on is decided by the source of the samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainOptions {
    /// Seed of everything random: weights, order, split.
    pub seed: u64,
    /// Times that the source is read.
    pub epochs: usize,
    /// Times that samples are used while they are in memory; making them costs far more than using them.
    pub passes: usize,
    /// Samples in memory at once; `None`: as many as fit into 1 GiB, but at most 65536. The more there are, the less the networks
    /// lean towards what they saw last.
    pub portion: Option<usize>,
    /// Samples of one step.
    pub batch: usize,
    /// Largest learning rate.
    pub learning_rate: f32,
    /// Share of the training in which the learning rate rises to it; afterwards it falls to 0 along a cosine.
    pub warm_up: f64,
    /// Weight decay of AdamW.
    pub weight_decay: f32,
    /// Gradients of more than this many times their usual norm are shortened to it; 0: never.
    pub clip: f32,
    /// Share of the documents that is held out.
    pub held_out: f64,
    /// Held-out samples to judge on.
    pub judged: usize,
    /// Hidden units.
    pub width: Width,
    /// Non-linearity of the hidden units.
    pub activation: HiddenActivation,
    /// What is done to the inputs.
    pub normalization: Normalization,
    /// Tokens over which the gradients of neurons are measured before the training, for [`super::Factors::saliency`]; 0: units are
    /// ranked by what is predicted. Whoever calls [`super::train`] hands the factors over; here it is part of the settings that
    /// a resumed run must share.
    pub gradient_tokens: usize,
    /// Whether heads are ranked by saliency, too. On some models that is worse.
    pub head_gradients: bool,
    /// What is minimised.
    pub loss: Loss,
    /// How importances become targets.
    pub target_scale: TargetScale,
    /// Fractions of the heads and of the neurons that count as best: for [`Loss::Bce`], and in reports of recall.
    pub kept: [f32; 2],
}

/// Hidden units of a station's networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Width {
    /// Two networks.
    Separate {
        /// For heads; 0: heads are not predicted.
        heads: usize,
        /// For neurons; 0: neurons are not predicted.
        neurons: usize,
    },
    /// One hidden layer for both.
    Shared(usize),
}

/// A named set of settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// Ours: one predictor on the residual stream after layer 0.
    #[default]
    Shadow,
    /// The published settings of ShadowLLM.
    Paper,
    /// A predictor per layer, one layer ahead, as in DejaVu.
    DejaVu,
}

/// What a preset asks of the samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresetSamples {
    /// Input of the predictor.
    pub input: PredictorInput,
    /// Layers after which it reads.
    pub stations: Vec<usize>,
    /// Criterion of the importances.
    pub criterion: &'static str,
}

impl Preset {
    const ALL: [Preset; 3] = [Preset::Shadow, Preset::Paper, Preset::DejaVu];

    /// Name on the command line and in files.
    pub const fn name(self) -> &'static str {
        match self {
            Preset::Shadow => "shadow",
            Preset::Paper => "paper",
            Preset::DejaVu => "dejavu",
        }
    }

    /// The samples that it is about, for a model of `layers` layers.
    pub fn samples(self, layers: usize) -> PresetSamples {
        match self {
            Preset::Shadow => {
                PresetSamples { input: PredictorInput::Residual, stations: vec![0], criterion: "magnitude" }
            }
            Preset::Paper => {
                PresetSamples { input: PredictorInput::Contexts, stations: vec![0], criterion: "plainact" }
            }
            Preset::DejaVu => PresetSamples {
                input: PredictorInput::Residual,
                stations: (0..layers.saturating_sub(1)).collect(),
                criterion: "magnitude",
            },
        }
    }

    /// Its settings.
    pub fn options(self) -> TrainOptions {
        let shadow = TrainOptions {
            seed: 0,
            epochs: 1,
            passes: 3,
            portion: None,
            batch: 256,
            learning_rate: 2e-3,
            warm_up: 0.02,
            weight_decay: 0.01,
            clip: 4.0,
            held_out: 0.05,
            judged: 2048,
            width: Width::Separate { heads: 128, neurons: 128 },
            activation: HiddenActivation::Relu,
            normalization: Normalization::Standardize,
            gradient_tokens: 8192,
            head_gradients: false,
            loss: Loss::Mse,
            target_scale: TargetScale::Max,
            kept: [0.5, 0.5],
        };
        match self {
            Preset::Shadow => shadow,
            Preset::Paper => TrainOptions {
                learning_rate: 1e-3,
                warm_up: 0.0,
                clip: 0.0,
                batch: 32,
                width: Width::Separate { heads: 2048, neurons: 1024 },
                normalization: Normalization::MinMax,
                gradient_tokens: 0,
                target_scale: TargetScale::MinMax,
                ..shadow
            },
            Preset::DejaVu => TrainOptions { activation: HiddenActivation::None, gradient_tokens: 0, ..shadow },
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Preset::ALL.into_iter().find(|preset| preset.name() == name);
        known.ok_or_else(|| LearnError::UnknownPreset { found: name.to_owned() }.into())
    }
}

impl Default for TrainOptions {
    fn default() -> Self {
        Preset::Shadow.options()
    }
}

impl TrainOptions {
    /// Which documents are held out.
    pub fn split(&self) -> Split {
        Split { seed: self.seed, held_out: self.held_out }
    }

    /// Checks that all settings mean something.
    ///
    /// # Errors
    /// [`LearnError::TrainSetting`] names the first that does not.
    pub fn validate(&self) -> Result<()> {
        let wrong = |setting: &'static str, found: String, expected: &'static str| {
            Err(LearnError::TrainSetting { setting, found, expected }.into())
        };
        for (setting, value) in [("epochs", self.epochs), ("passes", self.passes), ("batch", self.batch)] {
            if value == 0 {
                return wrong(setting, value.to_string(), "at least 1");
            }
        }
        if self.portion.is_some_and(|rows| rows < self.batch) {
            let found = self.portion.unwrap_or_default().to_string();
            return wrong("portion", found, "at least the samples of one batch");
        }
        let rate = self.learning_rate;
        if !(rate > 0.0 && rate.is_finite()) {
            return wrong("learning rate", rate.to_string(), "a number over 0");
        }
        for (setting, value) in [("weight decay", self.weight_decay), ("clip", self.clip)] {
            if !(value >= 0.0 && value.is_finite()) {
                return wrong(setting, value.to_string(), "a number from 0");
            }
        }
        if !(0.0..=1.0).contains(&self.warm_up) {
            return wrong("warm-up", self.warm_up.to_string(), "a share from 0 to 1");
        }
        if !(self.held_out > 0.0 && self.held_out <= 0.5) {
            return wrong("held-out share", self.held_out.to_string(), "a share over 0, to 0.5");
        }
        if let Width::Separate { heads: 0, neurons: 0 } | Width::Shared(0) = self.width {
            return wrong("width", "0".to_owned(), "at least 1 for heads or for neurons");
        }
        for kept in self.kept {
            if !(kept > 0.0 && kept <= 1.0) {
                return wrong("kept fraction", kept.to_string(), "a number over 0 and at most 1");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_have_names() {
        for preset in Preset::ALL {
            assert_eq!(preset.to_string().parse::<Preset>().unwrap(), preset);
            preset.options().validate().unwrap();
        }
        assert_eq!(
            "ours".parse::<Preset>().unwrap_err().to_string(),
            "unknown preset \"ours\"; expected shadow, paper or dejavu"
        );
        assert_eq!(Preset::DejaVu.samples(4).stations, [0, 1, 2]);
    }

    #[test]
    fn settings_that_mean_nothing_are_named() {
        let base = TrainOptions::default();
        let cases = [
            (TrainOptions { epochs: 0, ..base.clone() }, "epochs is 0; expected at least 1"),
            (TrainOptions { batch: 0, ..base.clone() }, "batch is 0; expected at least 1"),
            (
                TrainOptions { portion: Some(5), ..base.clone() },
                "portion is 5; expected at least the samples of one batch",
            ),
            (
                TrainOptions { learning_rate: f32::NAN, ..base.clone() },
                "learning rate is NaN; expected a number over 0",
            ),
            (TrainOptions { clip: -1.0, ..base.clone() }, "clip is -1; expected a number from 0"),
            (TrainOptions { warm_up: 2.0, ..base.clone() }, "warm-up is 2; expected a share from 0 to 1"),
            (TrainOptions { held_out: 0.0, ..base.clone() }, "held-out share is 0; expected a share over 0, to 0.5"),
            (
                TrainOptions { width: Width::Shared(0), ..base.clone() },
                "width is 0; expected at least 1 for heads or for neurons",
            ),
            (
                TrainOptions { kept: [0.5, 0.0], ..base.clone() },
                "kept fraction is 0; expected a number over 0 and at most 1",
            ),
        ];
        for (options, message) in cases {
            assert_eq!(options.validate().unwrap_err().to_string(), message);
        }
    }
}
