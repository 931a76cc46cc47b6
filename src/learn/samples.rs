//! Samples: what a predictor sees of a token, and how much each unit then counted.
//!
//! A sample is one token: the inputs of the predictor's stations and the importance of every unit of layers 1 to L-1. That is
//! some hundred thousand numbers for a model of a few billion weights, so samples are never all in memory. A [`SampleSource`]
//! makes them as they are needed, from text by running the model or from trace files, and says which document each is of:
//! neighbouring tokens are much alike, and a predictor that is judged on neighbours of what it was trained on looks better
//! than it is. Training and judgement therefore divide documents, never rows ([`Split`]).

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::learn::LearnError;
use crate::sparsity::predictor::PredictorInput;
use crate::sparsity::{ModelIdentity, Units};

/// What all samples of a source have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleInfo {
    /// Model that they were made with.
    pub model: ModelIdentity,
    /// Its layers.
    pub layers: usize,
    /// Heads of a layer.
    pub heads: usize,
    /// Neurons of a layer.
    pub neurons: usize,
    /// Layers after which inputs are taken, ascending.
    pub stations: Vec<usize>,
    /// What the inputs are.
    pub input: PredictorInput,
    /// Values of one input.
    pub inputs: usize,
    /// Criterion of the importances.
    pub criterion: String,
    /// The text, in words.
    pub data: String,
}

impl SampleInfo {
    /// The model's shape.
    pub fn units(&self) -> Units {
        Units { layers: self.layers, heads: self.heads, neurons: self.neurons }
    }

    /// Heads of layers 1 to L-1.
    pub fn head_targets(&self) -> usize {
        self.layers.saturating_sub(1) * self.heads
    }

    /// Neurons of layers 1 to L-1.
    pub fn neuron_targets(&self) -> usize {
        self.layers.saturating_sub(1) * self.neurons
    }
}

/// Some samples, as a source gives them. The same memory serves for all batches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleBatch {
    /// Samples.
    pub rows: usize,
    /// `[rows]`: the document that each is of.
    pub documents: Vec<u32>,
    /// For each station `[rows, n]`.
    pub inputs: Vec<Vec<f32>>,
    /// `[rows, (L-1) * H]`, by layer, then by head. Not negative.
    pub heads: Vec<f32>,
    /// `[rows, (L-1) * F]`, by layer, then by neuron. Not negative.
    pub neurons: Vec<f32>,
}

impl SampleBatch {
    /// Makes room for `rows` samples; their values are arbitrary.
    pub fn resize(&mut self, info: &SampleInfo, rows: usize) {
        self.rows = rows;
        self.documents.resize(rows, 0);
        self.inputs.resize(info.stations.len(), Vec::new());
        self.inputs.iter_mut().for_each(|x| x.resize(rows * info.inputs, 0.0));
        self.heads.resize(rows * info.head_targets(), 0.0);
        self.neurons.resize(rows * info.neuron_targets(), 0.0);
    }

    /// Checks that every value can be trained on.
    ///
    /// # Errors
    /// [`LearnError::BadSample`] names the first input that is not finite or importance that is negative or not finite.
    pub fn validate(&self, info: &SampleInfo) -> Result<()> {
        for (station, x) in self.inputs.iter().enumerate() {
            if let Some(at) = position(x, |v| !v.is_finite()) {
                return Err(LearnError::BadSample {
                    what: format!("input {} after layer {}", at % info.inputs.max(1), info.stations[station]),
                    value: x[at],
                }
                .into());
            }
        }
        for (unit, width, values) in [("head", info.heads, &self.heads), ("neuron", info.neurons, &self.neurons)] {
            // NaN is caught by the comparison, too.
            if let Some(at) = position(values, |v| !(0.0..f32::INFINITY).contains(&v)) {
                let (layer, index) = (at / width % (info.layers - 1) + 1, at % width);
                return Err(LearnError::BadSample {
                    what: format!("the importance of {unit} {index} of layer {layer}"),
                    value: values[at],
                }
                .into());
            }
        }
        Ok(())
    }
}

/// As `position`, but without an exit in the loop, so that it runs at the speed of memory where nothing is found.
fn position(values: &[f32], wrong: impl Fn(f32) -> bool) -> Option<usize> {
    let any = values.iter().fold(false, |any, &v| any | wrong(v));
    any.then(|| values.iter().position(|&v| wrong(v))).flatten()
}

/// Where samples come from. It has a fixed order, and places in it can be returned to: that is what lets training be resumed.
pub trait SampleSource {
    /// What all samples have in common.
    fn info(&self) -> &SampleInfo;

    /// Samples of the documents that are wanted.
    fn rows(&self, wanted: &dyn Fn(u32) -> bool) -> u64;

    /// Puts the next samples of wanted documents into `batch`; documents that are not wanted cost nothing. False, and an empty
    /// batch, at the end.
    ///
    /// # Errors
    /// Whatever keeps the source from going on; [`LearnError::BadSample`] for values that are no numbers.
    fn next(&mut self, wanted: &dyn Fn(u32) -> bool, batch: &mut SampleBatch) -> Result<bool>;

    /// The place of the next sample.
    fn position(&self) -> u64;

    /// Goes to a place that [`SampleSource::position`] named; 0 is the beginning.
    fn seek(&mut self, position: u64);
}

/// Which documents are kept from training and judged on: about a share `held_out` of them, chosen by seed and number alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Another seed holds out other documents.
    pub seed: u64,
    /// Share of the documents, 0 to 1.
    pub held_out: f64,
}

impl Split {
    /// Whether a document is held out.
    pub fn holds_out(&self, document: u32) -> bool {
        let unit = (mix(self.seed, u64::from(document)) >> 11) as f64 / (1_u64 << 53) as f64;
        unit < self.held_out
    }
}

/// A number that depends on both in no visible way (splitmix64).
pub(super) fn mix(seed: u64, value: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Puts `items` into an order that depends on `seed` alone (Fisher and Yates).
pub(super) fn shuffle<T>(seed: u64, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        // The bias of the remainder is one in 2^40 for the lengths that occur.
        items.swap(i, (mix(seed, i as u64) % (i as u64 + 1)) as usize);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    pub(in crate::learn) fn info() -> SampleInfo {
        SampleInfo {
            model: ModelIdentity::from("abc".to_owned()),
            layers: 3,
            heads: 4,
            neurons: 32,
            stations: vec![0, 1],
            input: PredictorInput::Residual,
            inputs: 8,
            criterion: "magnitude".to_owned(),
            data: "none".to_owned(),
        }
    }

    #[test]
    fn the_split_is_by_document_and_seed() {
        let split = Split { seed: 1, held_out: 0.1 };
        let held: Vec<u32> = (0..10_000).filter(|&d| split.holds_out(d)).collect();
        assert!((800..1200).contains(&held.len()), "{}", held.len());
        let other = Split { seed: 2, ..split };
        let both = held.iter().filter(|&&d| other.holds_out(d)).count();
        assert!(both < 200, "{both} of {}", held.len());
        assert!((0..100).all(|d| !Split { held_out: 0.0, ..split }.holds_out(d)));
        assert!((0..100).all(|d| Split { held_out: 1.0, ..split }.holds_out(d)));
    }

    #[test]
    fn shuffling_keeps_everything() {
        let mut items: Vec<u32> = (0..1000).collect();
        shuffle(1, &mut items);
        let fixed = items.iter().enumerate().filter(|&(i, &v)| i == v as usize).count();
        assert!(fixed < 10, "{fixed}");
        let mut again: Vec<u32> = (0..1000).collect();
        shuffle(1, &mut again);
        assert_eq!(items, again);
        items.sort_unstable();
        assert_eq!(items, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn values_that_are_no_numbers_are_named() {
        let info = info();
        let mut batch = SampleBatch::default();
        batch.resize(&info, 2);
        batch.validate(&info).unwrap();
        let message = |batch: &SampleBatch| batch.validate(&info).unwrap_err().to_string();
        batch.neurons[64 + 32 + 5] = f32::NAN;
        assert_eq!(
            message(&batch),
            "the importance of neuron 5 of layer 2 is NaN; samples must be finite numbers, importances not negative: \
             check the checkpoint for NaN, infinite or wrongly converted weights"
        );
        batch.heads[3] = -1.0;
        assert!(message(&batch).starts_with("the importance of head 3 of layer 1 is -1; "));
        batch.inputs[1][9] = f32::INFINITY;
        assert!(message(&batch).starts_with("input 1 after layer 1 is inf; "));
    }
}
