//! Llama and its relatives Mistral (sliding window) and Qwen2 (biases on query, key and value): RMSNorm, rotary positions,
//! grouped key/value heads, gated FFN.
//!
//! Defaults are those of transformers' `LlamaConfig`, `MistralConfig` and `Qwen2Config`.

use super::opt::or_default;
use super::{Activation, Architecture, Biases, Fields, ModelConfig, NormKind, NormPlacement, Positions, limits, rope};
use crate::{Error, Result};

/// What a missing key means in one family.
struct Defaults {
    hidden: usize,
    ffn: usize,
    vocab: usize,
    max_positions: usize,
    /// `None`: as many as query heads.
    kv_heads: Option<usize>,
    bos: Option<u32>,
    eos: &'static [u32],
}

impl Defaults {
    fn of(architecture: Architecture) -> Self {
        let llama = Defaults {
            hidden: 4096,
            ffn: 11008,
            vocab: 32000,
            max_positions: 2048,
            kv_heads: None,
            bos: Some(1),
            eos: &[2],
        };
        match architecture {
            Architecture::Mistral => Defaults { ffn: 14336, max_positions: 131_072, kv_heads: Some(8), ..llama },
            Architecture::Qwen2 => Defaults {
                ffn: 22016,
                vocab: 151_936,
                max_positions: 32768,
                kv_heads: Some(32),
                bos: None,
                eos: &[],
                ..llama
            },
            Architecture::Llama | Architecture::Opt => llama,
        }
    }
}

pub(super) fn read(fields: &Fields, architecture: Architecture) -> Result<ModelConfig> {
    let defaults = Defaults::of(architecture);
    let hidden = fields.size("hidden_size")?.unwrap_or(defaults.hidden);
    let heads = fields.size("num_attention_heads")?.unwrap_or(32);
    let layers = fields.size("num_hidden_layers")?.unwrap_or(32);
    let kv_heads = match fields.size("num_key_value_heads")? {
        Some(n) => n,
        // `null` means one for each query head in every family.
        None if fields.is_null("num_key_value_heads") => heads,
        None => defaults.kv_heads.unwrap_or(heads),
    };
    let head_dim = match fields.size("head_dim")? {
        Some(n) => n,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(fields
                .wrong("num_attention_heads", &format!("a divisor of hidden_size, which is {hidden}, or head_dim")));
        }
    };
    let max_positions = fields.size("max_position_embeddings")?.unwrap_or(defaults.max_positions);
    let activation = fields.text("hidden_act")?.unwrap_or_else(|| "silu".to_owned());
    let bias = match architecture {
        Architecture::Llama => {
            let attention = fields.flag("attention_bias", false)?;
            Biases { qkv: attention, out: attention, ffn: fields.flag("mlp_bias", false)? }
        }
        Architecture::Qwen2 => Biases { qkv: true, out: false, ffn: false },
        Architecture::Mistral | Architecture::Opt => Biases { qkv: false, out: false, ffn: false },
    };
    Ok(ModelConfig {
        architecture,
        layers,
        heads,
        kv_heads,
        head_dim,
        hidden,
        ffn: fields.size("intermediate_size")?.unwrap_or(defaults.ffn),
        vocab: fields.size("vocab_size")?.unwrap_or(defaults.vocab),
        max_positions,
        embed_dim: hidden,
        norm: NormKind::RmsNorm,
        norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
        norm_placement: NormPlacement::Pre,
        final_norm: true,
        activation: Activation::of("hidden_act", &activation)?,
        gated: true,
        positions: Positions::Rope(rope::read(fields, max_positions)?),
        windows: windows(fields, architecture, layers)?,
        bias,
        tied: fields.flag("tie_word_embeddings", false)?,
        dtype: fields.dtype()?,
        bos: match defaults.bos {
            Some(id) => or_default(fields, "bos_token_id", fields.token("bos_token_id")?, id),
            None => fields.token("bos_token_id")?,
        },
        eos: or_default(fields, "eos_token_id", fields.tokens("eos_token_id")?, defaults.eos.to_vec())
            .unwrap_or_default(),
        pad: fields.token("pad_token_id")?,
    })
}

/// The sliding window of each layer.
fn windows(fields: &Fields, architecture: Architecture, layers: usize) -> Result<Vec<Option<usize>>> {
    const DEFAULT: usize = 4096;
    let declared = match fields.size("sliding_window")? {
        Some(window) => Some(window),
        None if fields.is_null("sliding_window") => None,
        None => Some(DEFAULT),
    };
    match architecture {
        Architecture::Llama | Architecture::Opt => limits::windows(layers, |_| None),
        Architecture::Mistral => limits::windows(layers, |_| declared),
        Architecture::Qwen2 => {
            let window = if fields.flag("use_sliding_window", false)? { declared } else { None };
            let Some(types) = fields.texts("layer_types")? else {
                let first = fields.count("max_window_layers")?.unwrap_or(28);
                return limits::windows(layers, |layer| window.filter(|_| layer >= first));
            };
            if types.len() != layers {
                return Err(Error::ConfigImpossible {
                    reason: format!("layer_types has {} entries, but num_hidden_layers is {layers}", types.len()),
                });
            }
            let sliding = types
                .iter()
                .map(|kind| match kind.as_str() {
                    "full_attention" => Ok(false),
                    "sliding_attention" => Ok(true),
                    other => Err(Error::UnsupportedFeature {
                        feature: format!("layer type {other:?}"),
                        supported: "supported are full_attention and sliding_attention".to_owned(),
                    }),
                })
                .collect::<Result<Vec<bool>>>()?;
            limits::windows(layers, |layer| window.filter(|_| sliding[layer]))
        }
    }
}
