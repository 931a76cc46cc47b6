//! Tensor names of Llama, Mistral and Qwen2.

use super::{Layout, Reader};
use crate::Error;
use crate::model::{Attention, Ffn, Layer, Model};

/// The `...ForCausalLM` classes write the first, the bare models the second.
const PREFIXES: [&str; 2] = ["model.", ""];

pub(super) fn load(reader: &Reader<'_>) -> Result<Model, Error> {
    let c = reader.config;
    let prefix = reader.prefix(&PREFIXES, "embed_tokens.weight");
    let (d, f, width, kv) = (c.hidden, c.ffn, c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let embedding = reader.matrix(&format!("{prefix}embed_tokens.weight"), c.vocab, d)?;
    let mut layers = Vec::with_capacity(c.layers);
    for (i, &window) in c.windows.iter().enumerate() {
        let at = |name: &str| format!("{prefix}layers.{i}.{name}");
        layers.push(Layer {
            attention_norm: reader.norm(&at("input_layernorm"))?,
            attention: Attention {
                q: reader.linear(&at("self_attn.q_proj"), width, d, c.bias.qkv)?,
                k: reader.linear(&at("self_attn.k_proj"), kv, d, c.bias.qkv)?,
                v: reader.linear(&at("self_attn.v_proj"), kv, d, c.bias.qkv)?,
                out: reader.linear(&at("self_attn.o_proj"), d, width, c.bias.out)?,
                window,
            },
            ffn_norm: reader.norm(&at("post_attention_layernorm"))?,
            ffn: Ffn::Gated {
                gate: reader.linear(&at("mlp.gate_proj"), f, d, c.bias.ffn)?,
                up: reader.linear(&at("mlp.up_proj"), f, d, c.bias.ffn)?,
                down: reader.linear(&at("mlp.down_proj"), d, f, c.bias.ffn)?,
            },
        });
    }
    Ok(Model {
        project_in: None,
        project_out: None,
        final_norm: c.final_norm.then(|| reader.norm(&format!("{prefix}norm"))).transpose()?,
        head: reader.head(&embedding)?,
        rope: reader.rope(),
        config: c.clone(),
        embedding,
        positions: None,
        layers,
    })
}

pub(super) fn layout(layout: &mut Layout<'_>) {
    let c = layout.config;
    let prefix = PREFIXES[0];
    let (d, f, width, kv) = (c.hidden, c.ffn, c.heads * c.head_dim, c.kv_heads * c.head_dim);
    layout.tensors.push((format!("{prefix}embed_tokens.weight"), vec![c.vocab, d]));
    for i in 0..c.layers {
        let at = |name: &str| format!("{prefix}layers.{i}.{name}");
        layout.norm(&at("input_layernorm"));
        layout.linear(&at("self_attn.q_proj"), width, d, c.bias.qkv);
        layout.linear(&at("self_attn.k_proj"), kv, d, c.bias.qkv);
        layout.linear(&at("self_attn.v_proj"), kv, d, c.bias.qkv);
        layout.linear(&at("self_attn.o_proj"), d, width, c.bias.out);
        layout.norm(&at("post_attention_layernorm"));
        layout.linear(&at("mlp.gate_proj"), f, d, c.bias.ffn);
        layout.linear(&at("mlp.up_proj"), f, d, c.bias.ffn);
        layout.linear(&at("mlp.down_proj"), d, f, c.bias.ffn);
    }
    if c.final_norm {
        layout.norm(&format!("{prefix}norm"));
    }
}
