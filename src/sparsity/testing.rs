//! What this module's tests share.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use shadowllm_weights::{ModelConfig, TensorData};

use super::predictor::{HiddenActivation, Normalization, PredictorInfo, PredictorInput, Ranking, Training, Validation};
use super::{Budget, ModelIdentity, Plan, Policy, PolicyInput, Scope, Scores, Units};
use crate::kernels::{Cpu, CpuOptions};
use crate::tensor::Matrix;

pub(crate) const UNITS: Units = Units { layers: 3, heads: 4, neurons: 32 };

/// Different scores for every seed.
pub(crate) fn scores(seed: u32) -> Scores {
    let value = |i: usize| ((i as u32).wrapping_add(97 * seed).wrapping_mul(2_654_435_761) >> 16) as f32;
    Scores { heads: (0..12).map(value).collect(), neurons: (0..96).map(value).collect() }
}

/// One thread.
pub(crate) fn cpu() -> Cpu {
    Cpu::new(&CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap()
}

/// The plan that a policy without stations behind layers makes for `position`.
pub(crate) fn decide(policy: &mut impl Policy, position: usize) -> Plan {
    let mut plan = Plan::dense(UNITS);
    let cpu = cpu();
    for station in policy.stations().to_vec() {
        let input = PolicyInput { station, position, residual: &[], contexts: &[], cpu: &cpu };
        policy.decide(input, &mut plan).unwrap();
    }
    plan
}

/// A configuration with the shape of [`UNITS`] and `d` of 8.
pub(crate) fn config() -> ModelConfig {
    let json =
        br#"{"model_type": "opt", "num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 4, "ffn_dim": 32,
        "vocab_size": 10, "max_position_embeddings": 16, "word_embed_proj_dim": 8, "do_layer_norm_before": true,
        "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}"#;
    ModelConfig::from_json(json).unwrap()
}

/// A matrix of one row.
pub(crate) fn row(values: &[f32]) -> Matrix {
    Matrix::new(TensorData::from_f32(&[1, values.len()], values).unwrap()).unwrap()
}

/// Description of a predictor for the model "abc" with one station.
pub(crate) fn info() -> PredictorInfo {
    PredictorInfo {
        model: ModelIdentity::from("abc".to_owned()),
        stations: vec![0],
        input: PredictorInput::Residual,
        normalization: Normalization::None,
        activation: HiddenActivation::Relu,
        criterion: "saliency".to_owned(),
        training: Training { data: "none".to_owned(), tokens: 0, seed: 1, run: None },
        validated: vec![Validation {
            budget: Budget { heads: 0.5, neurons: 0.7, scope: Scope::Global },
            data: "a text".to_owned(),
            tokens: 511,
            perplexity_dense: 10.5,
            perplexity_sparse: 11.25,
            heads: Some(Ranking { recall: 0.75, recall_of_mean: 0.5, spearman: 0.5, spearman_of_mean: 0.25 }),
            neurons: None,
        }],
    }
}

/// Deterministic values in 0..1.
pub(crate) fn rng(seed: u64) -> impl FnMut() -> f32 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    move || (rng.next_u32() >> 8) as f32 / (1_u32 << 24) as f32
}
