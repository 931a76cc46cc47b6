//! Predictors that nobody trained.
//!
//! One with known outputs shows that decisions are carried out as made. One of random weights reads as many bytes as a trained
//! one of the same form and makes plans that differ from token to token: what a measurement of speed needs, and no more.

use std::sync::Arc;

use half::f16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use shadowllm_weights::{DType, ModelConfig, Storage, TensorData};

use super::weights::{Int8, Layer, Weight};
use super::{
    LayerWeights, Network, NetworkWeights, Networks, Normalization, Predictor, PredictorInfo, PredictorInput,
    StationWeights, WeightFormat,
};
use crate::sparsity::{Scores, Units};
use crate::tensor::Matrix;
use crate::{Error, Result};

impl Predictor {
    /// A predictor with random weights in memory, with hidden widths `heads` and `neurons` and no normalisation: it costs what a
    /// trained one of this form costs. Of the stations that predict the same number of layers only the first `copies` (at least 1)
    /// have weights of their own; the others take theirs in turn, so that many stations need little memory. Decisions take as long
    /// as if all were there if the copies are much larger than the caches together.
    ///
    /// # Errors
    /// [`Error::FileMetadata`] for stations that a model of this configuration cannot have, or for a normalisation.
    pub fn random(
        info: PredictorInfo,
        config: &ModelConfig,
        [heads, neurons]: [usize; 2],
        format: WeightFormat,
        copies: usize,
        seed: u64,
    ) -> Result<Predictor> {
        info.check_stations(config.layers)?;
        if info.normalization == Normalization::Standardize {
            let reason = "random predictors have no means to standardise by".to_owned();
            return Err(Error::FileMetadata { key: super::info::KEY.to_owned(), reason });
        }
        let (inputs, units) = (inputs(&info, config), Units::from(config));
        let mut rng = seeded(seed);
        let mut stations: Vec<Networks> = Vec::new();
        for layers in self::stations(&info, config) {
            let alike = || stations.iter().filter(|other| other.layers.len() == layers.len());
            let (copies, before) = (copies.max(1), alike().count());
            let owner = if before >= copies { alike().nth(before % copies) } else { None };
            let (heads, neurons) = match owner {
                Some(owner) => (owner.heads.clone(), owner.neurons.clone()),
                None => {
                    let mut network = |hidden: usize, width: usize| -> Result<Option<Network>> {
                        let output = weights(&mut rng, layers.len() * width, hidden, format)?;
                        Ok(Some(Network { hidden: Some(weights(&mut rng, hidden, inputs, format)?), output }))
                    };
                    (network(heads, units.heads)?, network(neurons, units.neurons)?)
                }
            };
            stations.push(Networks { layers, standard: None, trunk: None, heads, neurons });
        }
        Ok(Predictor { info, units, inputs, stations })
    }
}

/// Uniform weights of variance `1 / cols` in their final format, without ever being more than that.
fn weights(rng: &mut ChaCha8Rng, rows: usize, cols: usize, format: WeightFormat) -> Result<Layer> {
    let half_width = (3.0 / cols.max(1) as f32).sqrt();
    let len = rows * cols * format.size();
    let mut words = vec![0u64; len.div_ceil(size_of::<u64>())];
    let bytes = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..len];
    match format {
        WeightFormat::Int8 => {
            rng.fill_bytes(bytes);
            // -128 is not among the values of a predictor file.
            bytes.iter_mut().for_each(|byte| *byte = (*byte as i8).max(-127) as u8);
        }
        WeightFormat::F16 => {
            for value in bytes.chunks_exact_mut(2) {
                value.copy_from_slice(&f16::from_f32(half_width * symmetric(rng)).to_le_bytes());
            }
        }
        WeightFormat::F32 => {
            for value in bytes.chunks_exact_mut(4) {
                value.copy_from_slice(&(half_width * symmetric(rng)).to_le_bytes());
            }
        }
    }
    let storage = Arc::new(Storage::Owned { words, len });
    let float = |dtype| -> Result<Weight> {
        Ok(Weight::Float(Matrix::new(TensorData::new(Arc::clone(&storage), 0..len, dtype, &[rows, cols])?)?))
    };
    let weight = match format {
        WeightFormat::Int8 => {
            let scale = vec![half_width / 127.0; rows];
            Weight::Int8(Int8 { storage, range: 0..len, scale, cols })
        }
        WeightFormat::F16 => float(DType::F16)?,
        WeightFormat::F32 => float(DType::F32)?,
    };
    Ok(Layer { weight, bias: Some((0..rows).map(|_| half_width * symmetric(rng)).collect()) })
}

/// Weights of a predictor whose scores are `scores` whatever it reads.
pub fn constant_predictor(info: &PredictorInfo, config: &ModelConfig, scores: &Scores) -> Vec<StationWeights> {
    let inputs = inputs(info, config);
    let units = Units::from(config);
    stations(info, config)
        .map(|layers| {
            let network = |scores: &[f32], width: usize| {
                let bias = scores.get(layers.start * width..layers.end * width).unwrap_or_default().to_vec();
                NetworkWeights {
                    hidden: Some(LayerWeights { weight: vec![0.0; inputs], cols: inputs, bias: None }),
                    output: LayerWeights { weight: vec![0.0; bias.len()], cols: 1, bias: Some(bias) },
                }
            };
            StationWeights {
                heads: Some(network(&scores.heads, units.heads)),
                neurons: Some(network(&scores.neurons, units.neurons)),
                ..StationWeights::default()
            }
        })
        .collect()
}

/// Random weights with hidden widths `heads` and `neurons`, scaled as at initialisation. The same seed gives the same weights.
pub fn random_predictor(
    info: &PredictorInfo,
    config: &ModelConfig,
    heads: usize,
    neurons: usize,
    seed: u64,
) -> Vec<StationWeights> {
    let inputs = inputs(info, config);
    let mut rng = seeded(seed);
    stations(info, config)
        .map(|layers| {
            let mut network = |hidden: usize, width: usize| NetworkWeights {
                hidden: Some(random_layer(&mut rng, hidden, inputs)),
                output: random_layer(&mut rng, layers.len() * width, hidden),
            };
            StationWeights {
                heads: Some(network(heads, config.heads)),
                neurons: Some(network(neurons, config.ffn)),
                ..StationWeights::default()
            }
        })
        .collect()
}

fn seeded(seed: u64) -> ChaCha8Rng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    ChaCha8Rng::from_seed(bytes)
}

/// Uniform in -1..1.
fn symmetric(rng: &mut ChaCha8Rng) -> f32 {
    // 24 bits are a fraction that f32 holds exactly.
    2.0 * ((rng.next_u32() >> 8) as f32 / (1_u32 << 24) as f32) - 1.0
}

fn inputs(info: &PredictorInfo, config: &ModelConfig) -> usize {
    match info.input {
        PredictorInput::Residual => config.hidden,
        PredictorInput::Contexts => config.heads * config.head_dim,
    }
}

/// Layers that each station predicts.
fn stations(info: &PredictorInfo, config: &ModelConfig) -> impl Iterator<Item = std::ops::Range<usize>> {
    let ends = info.stations.iter().skip(1).map(|&next| next + 1).chain([config.layers]);
    info.stations.iter().zip(ends).map(|(&after, end)| after + 1..end)
}

/// Uniform weights and biases of variance `1 / cols`.
fn random_layer(rng: &mut ChaCha8Rng, rows: usize, cols: usize) -> LayerWeights {
    let half_width = (3.0 / cols.max(1) as f32).sqrt();
    let mut value = || half_width * symmetric(rng);
    LayerWeights {
        weight: (0..rows * cols).map(|_| value()).collect(),
        cols,
        bias: Some((0..rows).map(|_| value()).collect()),
    }
}
