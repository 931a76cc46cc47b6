//! What a predictor file says about itself.
//!
//! A predictor without its history is a guess: which model, which text, at which budget was it tried and what did it cost. All
//! of that travels in the file, as one JSON object in the metadata, and a file that cannot tell is refused.

use serde::{Deserialize, Serialize};

use crate::sparsity::{Budget, ModelIdentity};
use crate::{Error, Result};

/// Version of the format that is written and read.
pub(super) const VERSION: u32 = 1;
/// Key of the metadata.
pub(super) const KEY: &str = "predictor";

/// A predictor's description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictorInfo {
    /// Model that it was trained for.
    pub model: ModelIdentity,
    /// Layers after which it reads, ascending, the first 0. Each station predicts the layers from the next one up to and
    /// including the following station's, the last one up to layer L-1.
    pub stations: Vec<usize>,
    /// What it reads.
    pub input: PredictorInput,
    /// How that is normalised.
    pub normalization: Normalization,
    /// Non-linearity between its two layers.
    pub activation: HiddenActivation,
    /// Criterion of the importances that it was trained on.
    pub criterion: String,
    /// Data, seed and length of the training.
    pub training: Training,
    /// Where it was tried: fewer and fewer heads, then neurons, then both at the same fraction. May be empty: then nothing is
    /// known of its quality.
    #[serde(default)]
    pub validated: Vec<Validation>,
}

/// A predictor's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictorInput {
    /// The residual stream after the station's layer, `[d]`.
    #[default]
    Residual,
    /// The contexts of the station's layer, `[H * d_h]`; the paper's.
    Contexts,
}

/// What is done to the input first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// Nothing; also where a standardisation was folded into the first layer.
    #[default]
    None,
    /// To 0..1 over the vector, `(x - min x) / (max x - min x)`; the paper's. A constant vector becomes zeros.
    MinMax,
    /// `(x[i] - mean[i]) * scale[i]` with vectors of the file: mean and inverse standard deviation over the training text.
    Standardize,
}

/// Non-linearity of the hidden layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenActivation {
    /// `max(x, 0)`.
    #[default]
    Relu,
    /// None, as in DejaVu's predictors.
    None,
}

/// Where a predictor comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// The text, in words.
    pub data: String,
    /// Tokens that it saw.
    pub tokens: u64,
    /// Seed of the training.
    pub seed: u64,
    /// How it was trained and what came of it; `None` if nothing trained it, or a program that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<TrainingRun>,
}

/// How a predictor was trained, and how well it did on documents that were held out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingRun {
    /// Program and version that trained it.
    pub program: String,
    /// Hidden units for heads; of the trunk, if heads and neurons share it.
    pub head_width: usize,
    /// Hidden units for neurons.
    pub neuron_width: usize,
    /// What was minimised: `mse`, `bce` or `listwise`.
    pub loss: String,
    /// How targets were scaled: `max` or `min_max`.
    pub target_scale: String,
    /// Times that every token was used.
    pub passes: usize,
    /// Steps of the optimiser.
    pub steps: u64,
    /// Largest learning rate.
    pub learning_rate: f32,
    /// Share of the documents that were held out.
    pub held_out: f64,
    /// Held-out tokens that the rankings are over.
    pub judged: u64,
    /// Fraction of the heads that counts as best in the ranking.
    pub kept_heads: f32,
    /// Fraction of the neurons that counts as best in the ranking.
    pub kept_neurons: f32,
    /// How the weights of this file rank heads.
    #[serde(default)]
    pub heads: Option<Ranking>,
    /// How the weights of this file rank neurons.
    #[serde(default)]
    pub neurons: Option<Ranking>,
}

/// One trial of a predictor on text that it was not trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Budget that it was tried at.
    pub budget: Budget,
    /// The text, in words.
    pub data: String,
    /// Tokens of it that were scored; 0 if a program did not say.
    #[serde(default)]
    pub tokens: u64,
    /// Perplexity of the dense model.
    pub perplexity_dense: f64,
    /// Perplexity with this predictor at this budget.
    pub perplexity_sparse: f64,
    /// How well it ranks heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<Ranking>,
    /// How well it ranks neurons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neurons: Option<Ranking>,
}

impl Validation {
    /// Perplexity over that of the dense model.
    pub fn ratio(&self) -> f64 {
        self.perplexity_sparse / self.perplexity_dense
    }

    fn validate(&self) -> Result<()> {
        self.budget.validate()?;
        let ratio = self.ratio();
        if !(self.perplexity_dense > 0.0 && ratio > 0.0 && ratio.is_finite()) {
            return Err(wrong(format!(
                "a validation has perplexity {} dense and {} sparse; expected numbers over 0",
                self.perplexity_dense, self.perplexity_sparse
            )));
        }
        Ok(())
    }
}

/// How well units are ranked, averaged over tokens and layers; beside it what the mean of the training targets gets, because
/// the profile of a layer alone scores high.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ranking {
    /// Share of the truly best units that it keeps.
    pub recall: f64,
    /// The same for a constant predictor.
    pub recall_of_mean: f64,
    /// Rank correlation with the true importances.
    pub spearman: f64,
    /// The same for a constant predictor.
    pub spearman_of_mean: f64,
}

impl PredictorInfo {
    /// As the value of [`KEY`].
    pub(super) fn to_json(&self) -> Result<String> {
        let wrong = |e: serde_json::Error| wrong(e.to_string());
        let mut value = serde_json::to_value(self).map_err(wrong)?;
        if let Some(object) = value.as_object_mut() {
            object.insert("version".to_owned(), VERSION.into());
        }
        Ok(value.to_string())
    }

    /// Reads the value of [`KEY`].
    ///
    /// # Errors
    /// [`Error::FileMetadata`], [`Error::BudgetFraction`]; [`Error::PredictorVersion`], which is looked at first: another version may have other fields.
    pub(super) fn from_json(json: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let Version { version } = serde_json::from_str(json).map_err(|e| wrong(e.to_string()))?;
        if version != u64::from(VERSION) {
            return Err(Error::PredictorVersion { found: version, expected: VERSION });
        }
        let info: PredictorInfo = serde_json::from_str(json).map_err(|e| wrong(e.to_string()))?;
        info.validated.iter().try_for_each(Validation::validate)?;
        Ok(info)
    }

    /// Checks the stations against a model of `layers` layers.
    pub(super) fn check_stations(&self, layers: usize) -> Result<()> {
        let s = &self.stations;
        let ascending = s.windows(2).all(|pair| pair[0] < pair[1]);
        if s.first() != Some(&0) || !ascending || s.last().is_some_and(|&last| last + 1 >= layers) {
            return Err(wrong(format!(
                "stations are {s:?}; expected ascending layers that begin with 0 and end before the last layer, {}",
                layers.saturating_sub(1)
            )));
        }
        Ok(())
    }
}

fn wrong(reason: String) -> Error {
    Error::FileMetadata { key: KEY.to_owned(), reason }
}
