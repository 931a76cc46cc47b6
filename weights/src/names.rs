//! The one place that knows what a model's tensors are called.
//!
//! Hugging Face names tensors after the classes of its own code, differently for each family and with a prefix that depends on
//! which class saved the file. The engine, the packed format and the maker of random models ask here, so that a family is
//! added, or a prefix understood, in one place.

use std::collections::HashSet;

use crate::{Architecture, DType, ModelConfig, NormKind, Positions, TensorSpec};

/// Names of all tensors of a model, without `.weight` and `.bias`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelNames {
    /// `[V, e]`, `e` being `embed_dim`.
    pub embedding: String,
    /// `[max_positions + offset, d]`, where positions are learned.
    pub positions: Option<String>,
    /// `[d, e]`, where `e != d`.
    pub project_in: Option<String>,
    /// `[e, d]`, where `e != d`.
    pub project_out: Option<String>,
    /// The norm behind the last layer, where there is one.
    pub final_norm: Option<String>,
    /// `[V, e]`; `None` if the head is the embedding.
    pub head: Option<String>,
    /// Layer by layer; length `L`.
    pub layers: Vec<LayerNames>,
}

/// Names of the tensors of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerNames {
    /// Norm of the attention block.
    pub attention_norm: String,
    /// `[H*d_h, d]`.
    pub q: String,
    /// `[H_kv*d_h, d]`.
    pub k: String,
    /// `[H_kv*d_h, d]`.
    pub v: String,
    /// `[d, H*d_h]`.
    pub out: String,
    /// Norm of the FFN block.
    pub ffn_norm: String,
    /// The FFN.
    pub ffn: FfnNames,
}

/// Names of the FFN's matrices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FfnNames {
    /// `fc2(act(fc1 x))`.
    Plain {
        /// `[F, d]`.
        fc1: String,
        /// `[d, F]`.
        fc2: String,
    },
    /// `down(act(gate x) * up x)`.
    Gated {
        /// `[F, d]`.
        gate: String,
        /// `[F, d]`.
        up: String,
        /// `[d, F]`.
        down: String,
    },
}

/// What differs between the families.
struct Family {
    /// The `...ForCausalLM` class writes the first; bare models and the original checkpoints of facebook/opt-* the second.
    prefixes: [&'static str; 2],
    attention_norm: &'static str,
    out: &'static str,
    ffn_norm: &'static str,
    final_norm: &'static str,
}

const OPT: Family = Family {
    prefixes: ["model.decoder.", "decoder."],
    attention_norm: "self_attn_layer_norm",
    out: "self_attn.out_proj",
    ffn_norm: "final_layer_norm",
    final_norm: "final_layer_norm",
};

const LLAMA: Family = Family {
    prefixes: ["model.", ""],
    attention_norm: "input_layernorm",
    out: "self_attn.o_proj",
    ffn_norm: "post_attention_layernorm",
    final_norm: "norm",
};

impl ModelNames {
    /// The names of a model of this configuration in a checkpoint that `has` tensors. Where several prefixes are in use, the
    /// one under which the embedding exists; if none does, the one that the `...ForCausalLM` class writes.
    ///
    /// ```
    /// use shadowllm_weights::{Checkpoint, ModelNames};
    /// # let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("embedded/tiny-opt");
    /// let checkpoint = Checkpoint::open(&dir)?;
    /// let names = ModelNames::of(checkpoint.config(), |name| checkpoint.get(name).is_some());
    /// assert_eq!(names.layers[3].out, "model.decoder.layers.3.self_attn.out_proj");
    /// # Ok::<(), shadowllm_weights::Error>(())
    /// ```
    pub fn of(config: &ModelConfig, has: impl Fn(&str) -> bool) -> Self {
        let family = match config.architecture {
            Architecture::Opt => OPT,
            Architecture::Llama | Architecture::Mistral | Architecture::Qwen2 => LLAMA,
        };
        let found = family.prefixes.iter().find(|prefix| has(&format!("{prefix}embed_tokens.weight")));
        let prefix = found.unwrap_or(&family.prefixes[0]);
        let at = |name: &str| format!("{prefix}{name}");
        let narrow = config.embed_dim != config.hidden;
        ModelNames {
            embedding: at("embed_tokens"),
            positions: matches!(config.positions, Positions::Learned { .. }).then(|| at("embed_positions")),
            project_in: narrow.then(|| at("project_in")),
            project_out: narrow.then(|| at("project_out")),
            final_norm: config.final_norm.then(|| at(family.final_norm)),
            head: (!config.tied).then(|| "lm_head".to_owned()),
            layers: (0..config.layers)
                .map(|i| {
                    let at = |name: &str| format!("{prefix}layers.{i}.{name}");
                    LayerNames {
                        attention_norm: at(family.attention_norm),
                        q: at("self_attn.q_proj"),
                        k: at("self_attn.k_proj"),
                        v: at("self_attn.v_proj"),
                        out: at(family.out),
                        ffn_norm: at(family.ffn_norm),
                        ffn: if config.gated {
                            FfnNames::Gated {
                                gate: at("mlp.gate_proj"),
                                up: at("mlp.up_proj"),
                                down: at("mlp.down_proj"),
                            }
                        } else {
                            FfnNames::Plain { fc1: at("fc1"), fc2: at("fc2") }
                        },
                    }
                })
                .collect(),
        }
    }

    /// Full names of the matrices by which the blocks end, `[d, units]`: the output projections, and `fc2` or `down`.
    pub fn outputs(&self) -> impl Iterator<Item = String> {
        let names = self.layers.iter().flat_map(|layer| {
            let second = match &layer.ffn {
                FfnNames::Plain { fc2, .. } => fc2,
                FfnNames::Gated { down, .. } => down,
            };
            [&layer.out, second]
        });
        names.map(|name| format!("{name}.weight"))
    }

    /// What a checkpoint of this type holds. As [`ModelNames::layout`]; but in one of `int8` vectors are `f32`, and the matrices by
    /// which the blocks end are transposed, so that a row is a unit's.
    pub fn stored(&self, config: &ModelConfig, dtype: DType) -> Vec<TensorSpec> {
        let outputs: HashSet<String> = self.outputs().collect();
        let spec = |(name, mut shape): (String, Vec<usize>)| {
            let dtype = if dtype == DType::I8 && shape.len() == 1 { DType::F32 } else { dtype };
            if dtype == DType::I8 && outputs.contains(&name) {
                shape.reverse();
            }
            TensorSpec { name, dtype, shape }
        };
        self.layout(config).into_iter().map(spec).collect()
    }

    /// Full names and shapes of all tensors, in the order in which a token meets them; an untied head comes last.
    pub fn layout(&self, config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        let c = config;
        let (d, f, e, width, kv) = (c.hidden, c.ffn, c.embed_dim, c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let mut layout = Layout { config, tensors: Vec::new() };
        layout.linear(&self.embedding, c.vocab, e, false);
        if let (Some(name), Positions::Learned { offset }) = (&self.positions, c.positions) {
            layout.linear(name, c.max_positions + offset, d, false);
        }
        for (name, rows, cols) in [(&self.project_in, d, e), (&self.project_out, e, d)] {
            if let Some(name) = name {
                layout.linear(name, rows, cols, false);
            }
        }
        for layer in &self.layers {
            layout.norm(&layer.attention_norm);
            layout.linear(&layer.q, width, d, c.bias.qkv);
            layout.linear(&layer.k, kv, d, c.bias.qkv);
            layout.linear(&layer.v, kv, d, c.bias.qkv);
            layout.linear(&layer.out, d, width, c.bias.out);
            layout.norm(&layer.ffn_norm);
            match &layer.ffn {
                FfnNames::Plain { fc1, fc2 } => {
                    layout.linear(fc1, f, d, c.bias.ffn);
                    layout.linear(fc2, d, f, c.bias.ffn);
                }
                FfnNames::Gated { gate, up, down } => {
                    layout.linear(gate, f, d, c.bias.ffn);
                    layout.linear(up, f, d, c.bias.ffn);
                    layout.linear(down, d, f, c.bias.ffn);
                }
            }
        }
        if let Some(norm) = &self.final_norm {
            layout.norm(norm);
        }
        if let Some(head) = &self.head {
            layout.linear(head, c.vocab, e, false);
        }
        layout.tensors
    }
}

/// Collects the tensors of a model.
struct Layout<'a> {
    config: &'a ModelConfig,
    tensors: Vec<(String, Vec<usize>)>,
}

impl Layout<'_> {
    fn linear(&mut self, name: &str, rows: usize, cols: usize, bias: bool) {
        self.tensors.push((format!("{name}.weight"), vec![rows, cols]));
        if bias {
            self.tensors.push((format!("{name}.bias"), vec![rows]));
        }
    }

    fn norm(&mut self, name: &str) {
        let (weight, bias) = match self.config.norm {
            NormKind::LayerNorm { affine } => (affine, affine),
            NormKind::RmsNorm => (true, false),
        };
        for (leaf, present) in [("weight", weight), ("bias", bias)] {
            if present {
                self.tensors.push((format!("{name}.{leaf}"), vec![self.config.hidden]));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config(json: &str) -> ModelConfig {
        ModelConfig::from_json(json.as_bytes()).unwrap()
    }

    #[test]
    fn prefixes() {
        let opt = config(r#"{"model_type":"opt"}"#);
        let llama = config(r#"{"model_type":"llama"}"#);
        for (config, stored, embedding) in [
            (&opt, "model.decoder.embed_tokens.weight", "model.decoder.embed_tokens"),
            (&opt, "decoder.embed_tokens.weight", "decoder.embed_tokens"),
            (&opt, "nothing", "model.decoder.embed_tokens"),
            (&llama, "model.embed_tokens.weight", "model.embed_tokens"),
            (&llama, "embed_tokens.weight", "embed_tokens"),
            (&llama, "nothing", "model.embed_tokens"),
        ] {
            let names = ModelNames::of(config, |name| name == stored);
            assert_eq!(names.embedding, embedding);
            assert_eq!(names.head.is_none(), config.tied);
        }
    }

    #[test]
    fn layout_of_a_narrow_opt_and_a_grouped_llama() {
        let opt = config(
            r#"{"model_type":"opt","hidden_size":8,"word_embed_proj_dim":4,"num_attention_heads":2,"ffn_dim":16,
                "num_hidden_layers":1,"vocab_size":10,"max_position_embeddings":6,"tie_word_embeddings":false}"#,
        );
        let text = |config: &ModelConfig| {
            let layout = ModelNames::of(config, |_| false).layout(config);
            layout.iter().map(|(name, shape)| format!("{name} {shape:?}\n")).collect::<String>()
        };
        let expected = "\
model.decoder.embed_tokens.weight [10, 4]
model.decoder.embed_positions.weight [8, 8]
model.decoder.project_in.weight [8, 4]
model.decoder.project_out.weight [4, 8]
model.decoder.layers.0.self_attn_layer_norm.weight [8]
model.decoder.layers.0.self_attn_layer_norm.bias [8]
model.decoder.layers.0.self_attn.q_proj.weight [8, 8]
model.decoder.layers.0.self_attn.q_proj.bias [8]
model.decoder.layers.0.self_attn.k_proj.weight [8, 8]
model.decoder.layers.0.self_attn.k_proj.bias [8]
model.decoder.layers.0.self_attn.v_proj.weight [8, 8]
model.decoder.layers.0.self_attn.v_proj.bias [8]
model.decoder.layers.0.self_attn.out_proj.weight [8, 8]
model.decoder.layers.0.self_attn.out_proj.bias [8]
model.decoder.layers.0.final_layer_norm.weight [8]
model.decoder.layers.0.final_layer_norm.bias [8]
model.decoder.layers.0.fc1.weight [16, 8]
model.decoder.layers.0.fc1.bias [16]
model.decoder.layers.0.fc2.weight [8, 16]
model.decoder.layers.0.fc2.bias [8]
model.decoder.final_layer_norm.weight [8]
model.decoder.final_layer_norm.bias [8]
lm_head.weight [10, 4]
";
        assert_eq!(text(&opt), expected);
        let llama = config(
            r#"{"model_type":"llama","hidden_size":8,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":6,
                "intermediate_size":16,"num_hidden_layers":1,"vocab_size":10,"mlp_bias":true,"tie_word_embeddings":true}"#,
        );
        let expected = "\
model.embed_tokens.weight [10, 8]
model.layers.0.input_layernorm.weight [8]
model.layers.0.self_attn.q_proj.weight [24, 8]
model.layers.0.self_attn.k_proj.weight [12, 8]
model.layers.0.self_attn.v_proj.weight [12, 8]
model.layers.0.self_attn.o_proj.weight [8, 24]
model.layers.0.post_attention_layernorm.weight [8]
model.layers.0.mlp.gate_proj.weight [16, 8]
model.layers.0.mlp.gate_proj.bias [16]
model.layers.0.mlp.up_proj.weight [16, 8]
model.layers.0.mlp.up_proj.bias [16]
model.layers.0.mlp.down_proj.weight [8, 16]
model.layers.0.mlp.down_proj.bias [8]
model.norm.weight [8]
";
        assert_eq!(text(&llama), expected);
    }
}
