//! `config.json` from a configuration, for checkpoints that this crate makes.

use serde_json::{Map, Value, json};

use super::{Architecture, ModelConfig, NormKind, NormPlacement, Positions, Rope, RopeScaling};

pub(super) fn to_json(config: &ModelConfig) -> Vec<u8> {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("architectures", json!([config.architecture.class_name()]));
    put("model_type", json!(config.architecture.name()));
    put("vocab_size", json!(config.vocab));
    put("hidden_size", json!(config.hidden));
    put("num_hidden_layers", json!(config.layers));
    put("num_attention_heads", json!(config.heads));
    put("max_position_embeddings", json!(config.max_positions));
    put("tie_word_embeddings", json!(config.tied));
    put("bos_token_id", json!(config.bos));
    put("eos_token_id", if let [id] = config.eos[..] { json!(id) } else { json!(config.eos) });
    put("pad_token_id", json!(config.pad));
    if let Some(dtype) = config.dtype {
        put("torch_dtype", json!(dtype.torch_name()));
    }
    match config.architecture {
        Architecture::Opt => put_opt(config, &mut put),
        Architecture::Llama | Architecture::Mistral | Architecture::Qwen2 => put_llama(config, &mut put),
    }
    let mut bytes = format!("{:#}", Value::Object(out)).into_bytes();
    bytes.push(b'\n');
    bytes
}

fn put_opt(config: &ModelConfig, put: &mut impl FnMut(&str, Value)) {
    let pre_norm = config.norm_placement == NormPlacement::Pre;
    put("activation_function", json!(config.activation.name()));
    put("ffn_dim", json!(config.ffn));
    put("word_embed_proj_dim", json!(config.embed_dim));
    put("do_layer_norm_before", json!(pre_norm));
    put("_remove_final_layer_norm", json!(pre_norm && !config.final_norm));
    put("layer_norm_elementwise_affine", json!(config.norm != NormKind::LayerNorm { affine: false }));
    put("enable_bias", json!(config.bias.ffn));
}

fn put_llama(config: &ModelConfig, put: &mut impl FnMut(&str, Value)) {
    put("hidden_act", json!(config.activation.name()));
    put("intermediate_size", json!(config.ffn));
    put("num_key_value_heads", json!(config.kv_heads));
    put("head_dim", json!(config.head_dim));
    put("rms_norm_eps", number(config.norm_eps));
    if let Positions::Rope(Rope { theta, scaling }) = config.positions {
        put("rope_theta", number(theta));
        put("rope_scaling", rope_scaling(scaling));
    }
    let window = config.windows.iter().flatten().next();
    match config.architecture {
        Architecture::Llama => {
            put("attention_bias", json!(config.bias.qkv));
            put("mlp_bias", json!(config.bias.ffn));
        }
        Architecture::Mistral => put("sliding_window", json!(window)),
        Architecture::Qwen2 => {
            let kind = |w: &Option<usize>| if w.is_some() { "sliding_attention" } else { "full_attention" };
            put("use_sliding_window", json!(window.is_some()));
            put("sliding_window", json!(window));
            put("layer_types", config.windows.iter().map(kind).collect());
        }
        Architecture::Opt => {}
    }
}

fn rope_scaling(scaling: RopeScaling) -> Value {
    match scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": number(factor)}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
            "rope_type": "llama3",
            "factor": number(factor),
            "low_freq_factor": number(low_freq_factor),
            "high_freq_factor": number(high_freq_factor),
            "original_max_position_embeddings": original_max_positions,
        }),
    }
}

/// The shortest decimal that reads back as the same f32: 1e-5 rather than 9.999999747378752e-6.
fn number(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, |shortest| json!(shortest))
}
