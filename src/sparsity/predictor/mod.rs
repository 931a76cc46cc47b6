//! The predictor: a small network that foresees which units a token will need.
//!
//! Asking the layers themselves which of their units matter would mean computing them. A predictor guesses from what an early
//! layer has computed: `y = W2 act(W1 norm(x) + b1) + b2`, one output per unit. ShadowLLM runs one such network after layer 0
//! for the whole model; DejaVu runs one after every layer for the next. Both are *stations* of one predictor here: a station
//! reads after its layer and predicts the layers up to and including the next station's.
//!
//! # File
//! A safetensors file. Its metadata has one key, `predictor`: a JSON object, the fields of [`PredictorInfo`] and `version`. Of
//! station `s`, counted from 0 in the order of `stations`, `n` inputs and `p` hidden units, predicting `l` layers, it has
//!
//! | tensor | shape | what |
//! | --- | --- | --- |
//! | `{s}.heads.hidden.weight` | `[p, n]` | `W1` |
//! | `{s}.heads.output.weight` | `[l * H, p]` | `W2` |
//! | `{s}.neurons.hidden.weight` | `[p, n]` | `W1` |
//! | `{s}.neurons.output.weight` | `[l * F, p]` | `W2` |
//! | `{s}.trunk.hidden.weight` | `[p, n]` | `W1` of both, in place of the two |
//! | `{s}.mean`, `{s}.scale` | `[n]`, F32 | if `normalization` is `standardize` |
//!
//! Weights are F32, F16, BF16, or I8 with `.scale` (F32, one per row) beside `.weight`; `.bias` (F32, one per row) may be there.
//! Heads or neurons may be missing, at all stations alike; a policy then keeps them all.

mod choice;
mod curve;
mod info;
mod normalize;
mod read;
mod revise;
mod synthetic;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod weights;
mod write;

use std::ops::Range;

pub use choice::{Choice, UnitCosts, parse_max_increase};
pub use curve::{Curves, Unvalidated};
pub use info::{
    HiddenActivation, Normalization, PredictorInfo, PredictorInput, Ranking, Training, TrainingRun, Validation,
};
pub use revise::with_validation;
pub use synthetic::{constant_predictor, random_predictor};
pub use write::{LayerWeights, NetworkWeights, StationWeights, WeightFormat, write_predictor};

pub(crate) use normalize::{Standard, min_max};
pub(crate) use write::predictor_bytes;

use super::{Scores, Units};
use crate::kernels::Cpu;
use crate::{Error, Result};
pub(crate) use weights::Layer as PredictorLayer;
use weights::{Integers, Layer};

/// A predictor in memory. Immutable: any number of sequences may use it at once.
#[derive(Debug)]
pub struct Predictor {
    info: PredictorInfo,
    units: Units,
    /// `n`
    inputs: usize,
    stations: Vec<Networks>,
}

/// The networks of one station.
#[derive(Debug)]
struct Networks {
    /// Layers that it predicts.
    layers: Range<usize>,
    standard: Option<Standard>,
    /// Hidden layer that heads and neurons share.
    trunk: Option<Layer>,
    heads: Option<Network>,
    neurons: Option<Network>,
}

/// What predicts one kind of unit.
#[derive(Clone, Debug)]
struct Network {
    /// `None`: it reads the trunk.
    hidden: Option<Layer>,
    output: Layer,
}

/// Which units are asked for: a kind that the budget keeps whole needs no prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whether heads are.
    pub heads: bool,
    /// Whether neurons are.
    pub neurons: bool,
}

/// Memory that predictions reuse.
#[derive(Clone, Debug, Default)]
pub struct PredictorScratch {
    /// Normalised input.
    input: Vec<f32>,
    /// Trunk.
    trunk: Vec<f32>,
    /// Hidden layer of one network.
    hidden: Vec<f32>,
    /// Input of a layer of 8-bit weights.
    integers: Integers,
    /// Scores of several tokens, before each goes to its own.
    output: Vec<f32>,
}

/// The units that a network ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Heads,
    Neurons,
}

/// Applies an output layer to what stands in front of it, `[rows, p]`.
type Output<'a> = dyn FnMut(Kind, &Layer, &[f32], &mut Integers) + 'a;

impl Predictor {
    /// What the file says about it.
    pub fn info(&self) -> &PredictorInfo {
        &self.info
    }

    /// Model shape that it predicts.
    pub fn units(&self) -> Units {
        self.units
    }

    /// Layers that station `station` (an index into [`PredictorInfo::stations`]) predicts.
    pub fn layers(&self, station: usize) -> Range<usize> {
        self.stations.get(station).map_or(0..0, |networks| networks.layers.clone())
    }

    /// The kinds of units that it can rank.
    pub fn ranks(&self) -> Wanted {
        Wanted {
            heads: self.stations.iter().all(|s| s.heads.is_some()),
            neurons: self.stations.iter().all(|s| s.neurons.is_some()),
        }
    }

    /// Hidden units for heads and for neurons of a station, the most that any has; 0 where it has no hidden layer or does not rank
    /// them. A trunk counts for both.
    pub fn widths(&self) -> (usize, usize) {
        let width = |of: fn(&Networks) -> &Option<Network>| {
            let hidden = self.stations.iter().filter_map(|station| {
                let network = of(station).as_ref()?;
                Some(network.hidden.as_ref().or(station.trunk.as_ref())?.rows())
            });
            hidden.max().unwrap_or(0)
        };
        (width(|station| &station.heads), width(|station| &station.neurons))
    }

    /// The hidden layer that ranks a kind at a station; `None` is the one that heads and neurons share.
    pub(crate) fn hidden(&self, station: usize, kind: Option<Kind>) -> Option<&Layer> {
        match kind {
            None => self.stations.get(station)?.trunk.as_ref(),
            Some(kind) => self.network(station, kind)?.hidden.as_ref(),
        }
    }

    /// The output layer that ranks a kind at a station.
    pub(crate) fn output(&self, station: usize, kind: Kind) -> Option<&Layer> {
        Some(&self.network(station, kind)?.output)
    }

    /// Mean and factor of the inputs of a station, if they are standardised.
    pub(crate) fn standard(&self, station: usize) -> Option<(&[f32], &[f32])> {
        let standard = self.stations.get(station)?.standard.as_ref()?;
        Some((&standard.mean, &standard.scale))
    }

    fn network(&self, station: usize, kind: Kind) -> Option<&Network> {
        let networks = self.stations.get(station)?;
        match kind {
            Kind::Heads => networks.heads.as_ref(),
            Kind::Neurons => networks.neurons.as_ref(),
        }
    }

    /// Bytes that the decisions of one token read, all stations together.
    pub fn bytes(&self, wanted: Wanted) -> u64 {
        self.stations.iter().map(|networks| networks.bytes(wanted)).sum()
    }

    /// Writes the scores that station `station` predicts from `x` (`[n]`) into the rows of its layers; other rows stay.
    ///
    /// # Errors
    /// [`Error::PredictorInput`] if `x` has another width, [`Error::ScoresLength`] if `scores` are of another shape.
    ///
    /// # Panics
    /// If there is no such station.
    pub fn predict(
        &self,
        cpu: &Cpu,
        station: usize,
        x: &[f32],
        wanted: Wanted,
        scratch: &mut PredictorScratch,
        scores: &mut Scores,
    ) -> Result<()> {
        self.check(x, 1)?;
        scores.check_lengths(self.units)?;
        self.run(cpu, station, x, wanted, scratch, &mut |kind, layer, between, integers| {
            layer.apply(cpu, between, integers, self.place(station, kind, scores));
        });
        Ok(())
    }

    /// As [`Predictor::predict`] for several tokens at once: `x` is `[rows, n]`, one row for each of `scores`. The weights are read
    /// once. For up to 31 rows the result is bit for bit that of the rows one by one.
    ///
    /// # Errors
    /// As [`Predictor::predict`].
    ///
    /// # Panics
    /// If there is no such station.
    pub fn predict_rows(
        &self,
        cpu: &Cpu,
        station: usize,
        x: &[f32],
        wanted: Wanted,
        scratch: &mut PredictorScratch,
        scores: &mut [&mut Scores],
    ) -> Result<()> {
        self.check(x, scores.len())?;
        scores.iter().try_for_each(|scores| scores.check_lengths(self.units))?;
        let mut output = std::mem::take(&mut scratch.output);
        self.run(cpu, station, x, wanted, scratch, &mut |kind, layer, between, integers| {
            output.resize(scores.len() * layer.rows(), 0.0);
            layer.apply(cpu, between, integers, &mut output);
            for (scores, row) in scores.iter_mut().zip(output.chunks_exact(layer.rows())) {
                self.place(station, kind, scores).copy_from_slice(row);
            }
        });
        scratch.output = output;
        Ok(())
    }

    fn check(&self, x: &[f32], rows: usize) -> Result<()> {
        if x.len() != rows * self.inputs {
            return Err(Error::PredictorInput { found: x.len() / rows.max(1), expected: self.inputs });
        }
        Ok(())
    }

    /// Where the scores of a station are.
    fn place<'a>(&self, station: usize, kind: Kind, scores: &'a mut Scores) -> &'a mut [f32] {
        let layers = &self.stations[station].layers;
        let (all, width) = match kind {
            Kind::Heads => (&mut scores.heads, self.units.heads),
            Kind::Neurons => (&mut scores.neurons, self.units.neurons),
        };
        &mut all[layers.start * width..layers.end * width]
    }

    /// Runs the networks on the rows of `x` up to their output layers, which `output` applies.
    fn run(
        &self,
        cpu: &Cpu,
        station: usize,
        x: &[f32],
        wanted: Wanted,
        scratch: &mut PredictorScratch,
        output: &mut Output<'_>,
    ) {
        let networks = &self.stations[station];
        let PredictorScratch { input, trunk, hidden, integers, .. } = scratch;
        input.clear();
        let rows = x.chunks_exact(self.inputs.max(1));
        let x = match (self.info.normalization, &networks.standard) {
            (Normalization::MinMax, _) => {
                rows.for_each(|x| min_max(x, input));
                &*input
            }
            (Normalization::Standardize, Some(standard)) => {
                rows.for_each(|x| standard.apply(x, input));
                &*input
            }
            _ => x,
        };
        let activation = self.info.activation;
        if let Some(layer) = &networks.trunk {
            apply_hidden(cpu, layer, activation, x, integers, trunk);
        }
        for (kind, network, wanted) in
            [(Kind::Heads, &networks.heads, wanted.heads), (Kind::Neurons, &networks.neurons, wanted.neurons)]
        {
            let Some(network) = network.as_ref().filter(|_| wanted) else {
                continue;
            };
            let between = match &network.hidden {
                Some(layer) => {
                    apply_hidden(cpu, layer, activation, x, integers, hidden);
                    &*hidden
                }
                None => &*trunk,
            };
            output(kind, &network.output, between, integers);
        }
    }
}

/// `x` is `[rows, n]`, `out` becomes `[rows, p]`.
fn apply_hidden(
    cpu: &Cpu,
    layer: &Layer,
    activation: HiddenActivation,
    x: &[f32],
    integers: &mut Integers,
    out: &mut Vec<f32>,
) {
    out.resize(x.len() / layer.cols().max(1) * layer.rows(), 0.0);
    layer.apply(cpu, x, integers, out);
    if activation == HiddenActivation::Relu {
        // Comparing this way round keeps NaN, so that it reaches the scores and is reported there.
        out.iter_mut().for_each(|v| *v = if *v < 0.0 { 0.0 } else { *v });
    }
}

impl Networks {
    fn bytes(&self, wanted: Wanted) -> u64 {
        let network = |network: &Option<Network>, wanted: bool| match network {
            Some(n) if wanted => n.output.bytes() + n.hidden.as_ref().map_or(0, Layer::bytes),
            _ => 0,
        };
        let standard = self.standard.as_ref().map_or(0, |s| 4 * (s.mean.len() + s.scale.len()) as u64);
        let trunk = self.trunk.as_ref().map_or(0, Layer::bytes);
        standard + trunk + network(&self.heads, wanted.heads) + network(&self.neurons, wanted.neurons)
    }
}
