//! GGUF metadata to `config.json` and `generation_config.json`.
//!
//! What Hugging Face's configuration says but GGUF does not (activation, dropout, initialisation) is fixed by the
//! architecture. What GGUF says but the configuration cannot express is refused: a model that loads and computes something
//! else is worse than one that does not load.

use serde_json::{Map, Value, json};

use super::problem::{GgufProblem, GgufResult};
use super::reader::Gguf;
use super::rope;
use crate::DType;

/// Architectures that can be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Qwen2,
}

impl Family {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
        }
    }
}

/// What the metadata says of the model, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Hyper {
    pub(crate) family: Family,
    /// `L`.
    pub(crate) layers: usize,
    /// `H`.
    pub(crate) heads: usize,
    /// `H_kv`.
    pub(crate) kv_heads: usize,
    /// `d_h`.
    pub(crate) head_dim: usize,
    /// `d`.
    pub(crate) hidden: usize,
    /// `F`.
    pub(crate) ffn: usize,
    context: usize,
    norm_eps: f32,
    theta: f32,
    /// `rope_scaling` of `config.json`.
    rope_scaling: Value,
}

/// What the tensors say of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// `V`: rows of the embedding table.
    pub(crate) vocab: usize,
    /// No separate LM head.
    pub(crate) tied: bool,
    /// Biases of all four attention matrices (for qwen2: of q, k and v).
    pub(crate) attention_bias: bool,
    /// Biases of all three FFN matrices.
    pub(crate) ffn_bias: bool,
}

/// The shortest decimal number that is this `f32`: 0.00001 and not 0.000009999999747378752.
pub(crate) fn shortest(value: f32) -> f64 {
    // The shortest text of an f32 is read back as the f64 of that text; a finite f32 always parses.
    value.to_string().parse().unwrap_or(f64::from(value))
}

impl Hyper {
    /// Reads the metadata.
    ///
    /// # Errors
    /// Missing keys, wrong types and values, and features without an equivalent.
    pub(crate) fn read(gguf: &Gguf) -> GgufResult<Self> {
        let family = match gguf.str("general.architecture")? {
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            other => return Err(GgufProblem::Architecture { found: other.to_owned() }),
        };
        let key = |leaf: &str| format!("{}.{leaf}", family.name());
        let hidden = gguf.size(&key("embedding_length"))?;
        let heads = gguf.size(&key("attention.head_count"))?;
        let kv_key = key("attention.head_count_kv");
        let kv_heads = if gguf.metadata.contains_key(kv_key.as_str()) { gguf.size(&kv_key)? } else { heads };
        if !heads.is_multiple_of(kv_heads) {
            return Err(GgufProblem::KeyValue {
                key: kv_key,
                found: kv_heads.to_string(),
                expected: format!("a divisor of the {heads} query heads"),
            });
        }
        let head_key = key("attention.key_length");
        let head_dim = match gguf.metadata.contains_key(head_key.as_str()) {
            true => gguf.size(&head_key)?,
            false if hidden.is_multiple_of(heads) => hidden / heads,
            false => return Err(GgufProblem::MissingKey { key: head_key }),
        };
        if !head_dim.is_multiple_of(2) {
            return Err(GgufProblem::KeyValue {
                key: head_key,
                found: head_dim.to_string(),
                expected: "an even number: rotation works on pairs".to_owned(),
            });
        }
        for leaf in ["rope.dimension_count", "attention.value_length"] {
            match gguf.opt_int(&key(leaf))? {
                Some(n) if n != head_dim as u64 => {
                    return Err(GgufProblem::KeyValue {
                        key: key(leaf),
                        found: n.to_string(),
                        expected: format!("the head width {head_dim}"),
                    });
                }
                _ => {}
            }
        }
        for (leaf, what) in [("expert_count", "experts"), ("attention.sliding_window", "a sliding window")] {
            if let Some(n) = gguf.opt_int(&key(leaf))?.filter(|&n| n > 0) {
                return Err(GgufProblem::Unsupported { what: format!("the model has {what} ({} = {n})", key(leaf)) });
            }
        }
        let theta = gguf.opt_f32(&key("rope.freq_base"))?.unwrap_or(10_000.0);
        Ok(Hyper {
            family,
            layers: gguf.size(&key("block_count"))?,
            heads,
            kv_heads,
            head_dim,
            hidden,
            ffn: gguf.size(&key("feed_forward_length"))?,
            context: gguf.size(&key("context_length"))?,
            norm_eps: gguf.f32(&key("attention.layer_norm_rms_epsilon"))?,
            theta,
            rope_scaling: rope::scaling(gguf, family.name(), theta, head_dim)?,
        })
    }

    /// Longest context, in tokens.
    pub(crate) fn context(&self) -> usize {
        self.context
    }

    /// The contents of `config.json`.
    pub(crate) fn config(&self, found: Found, special: &SpecialIds, dtype: DType) -> Value {
        let mut config = Map::new();
        let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
        match self.family {
            Family::Llama => {
                set("architectures", json!(["LlamaForCausalLM"]));
                set("model_type", json!("llama"));
                set("attention_bias", json!(found.attention_bias));
                set("mlp_bias", json!(found.ffn_bias));
                set("head_dim", json!(self.head_dim));
                set("pretraining_tp", json!(1));
            }
            Family::Qwen2 => {
                set("architectures", json!(["Qwen2ForCausalLM"]));
                set("model_type", json!("qwen2"));
                set("use_sliding_window", json!(false));
                set("max_window_layers", json!(self.layers));
                set("sliding_window", Value::Null);
                if self.head_dim * self.heads != self.hidden {
                    set("head_dim", json!(self.head_dim));
                }
            }
        }
        set("attention_dropout", json!(0.0));
        set("bos_token_id", json!(special.bos));
        set("eos_token_id", json!(special.eos));
        set("pad_token_id", json!(special.pad));
        set("hidden_act", json!("silu"));
        set("hidden_size", json!(self.hidden));
        set("initializer_range", json!(0.02));
        set("intermediate_size", json!(self.ffn));
        set("max_position_embeddings", json!(self.context));
        set("num_attention_heads", json!(self.heads));
        set("num_hidden_layers", json!(self.layers));
        set("num_key_value_heads", json!(self.kv_heads));
        set("rms_norm_eps", json!(shortest(self.norm_eps)));
        set("rope_scaling", self.rope_scaling.clone());
        set("rope_theta", json!(shortest(self.theta)));
        set("tie_word_embeddings", json!(found.tied));
        set("use_cache", json!(true));
        set("vocab_size", json!(found.vocab));
        set("torch_dtype", json!(dtype.torch_name()));
        Value::Object(config)
    }
}

/// Ids of the special tokens, where the model has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpecialIds {
    pub(crate) bos: Option<u64>,
    pub(crate) eos: Option<u64>,
    pub(crate) pad: Option<u64>,
    pub(crate) unknown: Option<u64>,
}

impl SpecialIds {
    /// Reads the ids and checks that they are below `V`.
    ///
    /// # Errors
    /// [`GgufProblem::TokenId`], [`GgufProblem::KeyType`].
    pub(crate) fn read(gguf: &Gguf, vocab: usize) -> GgufResult<Self> {
        let id = |key: &'static str| match gguf.opt_int(key)? {
            Some(id) if id >= vocab as u64 => Err(GgufProblem::TokenId { key, id, tokens: vocab }),
            id => Ok(id),
        };
        Ok(SpecialIds {
            bos: id("tokenizer.ggml.bos_token_id")?,
            eos: id("tokenizer.ggml.eos_token_id")?,
            pad: id("tokenizer.ggml.padding_token_id")?,
            unknown: id("tokenizer.ggml.unknown_token_id")?,
        })
    }

    /// The metadata keys and their ids, in the order bos, eos, pad, unknown.
    pub(crate) fn keys(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("tokenizer.ggml.bos_token_id", self.bos),
            ("tokenizer.ggml.eos_token_id", self.eos),
            ("tokenizer.ggml.padding_token_id", self.pad),
            ("tokenizer.ggml.unknown_token_id", self.unknown),
        ]
    }

    /// The contents of `generation_config.json`.
    pub(crate) fn generation_config(&self) -> Value {
        json!({ "bos_token_id": self.bos, "eos_token_id": self.eos, "pad_token_id": self.pad })
    }
}
