//! The small gated model that files of scores, predictors and gate thresholds are fuzzed against; their seeds are made for it.

use shadowllm::sparsity::ModelIdentity;
use shadowllm::weights::ModelConfig;

/// Three layers of two heads and six neurons, `d` of 8.
pub fn config() -> Option<ModelConfig> {
    let json = br#"{"model_type": "llama", "num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 6, "vocab_size": 10, "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5}"#;
    ModelConfig::from_json(json).ok()
}

/// The fingerprint in the seeds.
pub fn identity() -> ModelIdentity {
    ModelIdentity::from("fuzz".to_owned())
}
