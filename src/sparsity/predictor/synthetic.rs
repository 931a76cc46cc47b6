//! Predictors that nobody trained.
//!
//! One with known outputs shows that decisions are carried out as made. One of random weights reads as many bytes as a trained
//! one of the same form and makes plans that differ from token to token: what a measurement of speed needs, and no more.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use shadowllm_weights::ModelConfig;

use super::{LayerWeights, NetworkWeights, PredictorInfo, PredictorInput, StationWeights};
use crate::sparsity::{Scores, Units};

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
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(bytes);
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
    let mut value = || {
        // 24 bits are a fraction that f32 holds exactly.
        let unit = (rng.next_u32() >> 8) as f32 / (1_u32 << 24) as f32;
        half_width * (2.0 * unit - 1.0)
    };
    LayerWeights {
        weight: (0..rows * cols).map(|_| value()).collect(),
        cols,
        bias: Some((0..rows).map(|_| value()).collect()),
    }
}
