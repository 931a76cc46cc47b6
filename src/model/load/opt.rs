//! Tensor names of OPT.

use shadowllm_weights::Positions;

use super::{Layout, Reader};
use crate::Error;
use crate::model::{Attention, Ffn, Layer, Model};

/// `OPTForCausalLM` writes the first, the original checkpoints of facebook/opt-* (saved from `OPTModel`) the second.
const PREFIXES: [&str; 2] = ["model.decoder.", "decoder."];

pub(super) fn load(reader: &Reader<'_>) -> Result<Model, Error> {
    let c = reader.config;
    let prefix = reader.prefix(&PREFIXES, "embed_tokens.weight");
    let (d, f, e, width, kv) = (c.hidden, c.ffn, c.embed_dim, c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let embedding = reader.matrix(&format!("{prefix}embed_tokens.weight"), c.vocab, e)?;
    let positions = match c.positions {
        Positions::Learned { offset } => {
            Some(reader.matrix(&format!("{prefix}embed_positions.weight"), c.max_positions + offset, d)?)
        }
        Positions::Rope(_) => None,
    };
    let mut layers = Vec::with_capacity(c.layers);
    for (i, &window) in c.windows.iter().enumerate() {
        let at = |name: &str| format!("{prefix}layers.{i}.{name}");
        layers.push(Layer {
            attention_norm: reader.norm(&at("self_attn_layer_norm"))?,
            attention: Attention {
                q: reader.linear(&at("self_attn.q_proj"), width, d, c.bias.qkv)?,
                k: reader.linear(&at("self_attn.k_proj"), kv, d, c.bias.qkv)?,
                v: reader.linear(&at("self_attn.v_proj"), kv, d, c.bias.qkv)?,
                out: reader.linear(&at("self_attn.out_proj"), d, width, c.bias.out)?,
                window,
            },
            ffn_norm: reader.norm(&at("final_layer_norm"))?,
            ffn: Ffn::Plain {
                fc1: reader.linear(&at("fc1"), f, d, c.bias.ffn)?,
                fc2: reader.linear(&at("fc2"), d, f, c.bias.ffn)?,
            },
        });
    }
    let narrow = e != d;
    let project = |name: &str, rows, cols| {
        narrow.then(|| reader.linear(&format!("{prefix}{name}"), rows, cols, false)).transpose()
    };
    Ok(Model {
        project_in: project("project_in", d, e)?,
        project_out: project("project_out", e, d)?,
        final_norm: c.final_norm.then(|| reader.norm(&format!("{prefix}final_layer_norm"))).transpose()?,
        head: reader.head(&embedding)?,
        rope: reader.rope(),
        config: c.clone(),
        embedding,
        positions,
        layers,
    })
}

pub(super) fn layout(layout: &mut Layout<'_>) {
    let c = layout.config;
    let prefix = PREFIXES[0];
    let (d, f, e, width, kv) = (c.hidden, c.ffn, c.embed_dim, c.heads * c.head_dim, c.kv_heads * c.head_dim);
    layout.tensors.push((format!("{prefix}embed_tokens.weight"), vec![c.vocab, e]));
    if let Positions::Learned { offset } = c.positions {
        layout.tensors.push((format!("{prefix}embed_positions.weight"), vec![c.max_positions + offset, d]));
    }
    if e != d {
        layout.linear(&format!("{prefix}project_in"), d, e, false);
        layout.linear(&format!("{prefix}project_out"), e, d, false);
    }
    for i in 0..c.layers {
        let at = |name: &str| format!("{prefix}layers.{i}.{name}");
        layout.norm(&at("self_attn_layer_norm"));
        layout.linear(&at("self_attn.q_proj"), width, d, c.bias.qkv);
        layout.linear(&at("self_attn.k_proj"), kv, d, c.bias.qkv);
        layout.linear(&at("self_attn.v_proj"), kv, d, c.bias.qkv);
        layout.linear(&at("self_attn.out_proj"), d, width, c.bias.out);
        layout.norm(&at("final_layer_norm"));
        layout.linear(&at("fc1"), f, d, c.bias.ffn);
        layout.linear(&at("fc2"), d, f, c.bias.ffn);
    }
    if c.final_norm {
        layout.norm(&format!("{prefix}final_layer_norm"));
    }
}
