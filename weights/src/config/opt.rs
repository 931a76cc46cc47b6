//! OPT: learned positions, LayerNorm with its fixed epsilon, two FFN matrices.
//!
//! Defaults are those of transformers' `OPTConfig`. opt-350m is the odd one of the family: norms behind the blocks, no final
//! norm, embeddings half as wide as the model. Checkpoints fine-tuned before transformers 4.20.1 say `_remove_final_layer_norm`.

use super::{Activation, Architecture, Biases, Fields, ModelConfig, NormKind, NormPlacement, Positions};
use crate::Result;

/// Epsilon of PyTorch's LayerNorm, which OPT uses without naming it.
const NORM_EPS: f32 = 1e-5;
/// Rows of the position table in front of position 0.
const POSITION_OFFSET: usize = 2;

pub(super) fn read(fields: &Fields) -> Result<ModelConfig> {
    let hidden = fields.size("hidden_size")?.unwrap_or(768);
    let heads = fields.size("num_attention_heads")?.unwrap_or(12);
    if !hidden.is_multiple_of(heads) {
        return Err(fields.wrong("num_attention_heads", &format!("a divisor of hidden_size, which is {hidden}")));
    }
    let layers = fields.size("num_hidden_layers")?.unwrap_or(12);
    let pre_norm = fields.flag("do_layer_norm_before", true)?;
    let bias = fields.flag("enable_bias", true)?;
    let activation = fields.text("activation_function")?.unwrap_or_else(|| "relu".to_owned());
    Ok(ModelConfig {
        architecture: Architecture::Opt,
        layers,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        hidden,
        ffn: fields.size("ffn_dim")?.unwrap_or(3072),
        vocab: fields.size("vocab_size")?.unwrap_or(50272),
        max_positions: fields.size("max_position_embeddings")?.unwrap_or(2048),
        embed_dim: fields.size("word_embed_proj_dim")?.unwrap_or(hidden),
        norm: NormKind::LayerNorm { affine: fields.flag("layer_norm_elementwise_affine", true)? },
        norm_eps: NORM_EPS,
        norm_placement: if pre_norm { NormPlacement::Pre } else { NormPlacement::Post },
        final_norm: pre_norm && !fields.flag("_remove_final_layer_norm", false)?,
        activation: Activation::of("activation_function", &activation)?,
        gated: false,
        positions: Positions::Learned { offset: POSITION_OFFSET },
        windows: super::limits::windows(layers, |_| None)?,
        bias: Biases { qkv: bias, out: bias, ffn: bias },
        tied: fields.flag("tie_word_embeddings", true)?,
        dtype: fields.dtype()?,
        bos: or_default(fields, "bos_token_id", fields.token("bos_token_id")?, 2),
        eos: or_default(fields, "eos_token_id", fields.tokens("eos_token_id")?, vec![2]).unwrap_or_default(),
        pad: or_default(fields, "pad_token_id", fields.token("pad_token_id")?, 1),
    })
}

/// The value, or `default` where the key is missing; `null` and negative ids stay none.
pub(super) fn or_default<T>(fields: &Fields, key: &str, value: Option<T>, default: T) -> Option<T> {
    if fields.has(key) { value } else { Some(default) }
}
