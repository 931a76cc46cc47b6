//! Checkpoints with random weights, for measuring speed at the shape of a model whose weights are not at hand.
//!
//! The weights are scaled as at initialisation (variance `1/fan_in`), so activations stay in the range of a real model and
//! half of a ReLU layer's neurons are active.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use half::{bf16, f16};
use serde_json::{Value, json};
use shadowllm_weights::{
    Checkpoint, DType, ModelConfig, ModelNames, Progress, SafetensorsWriter, StagedDirectory, TensorData, TensorSpec,
};

use crate::{Error, Result};

/// A published model's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape(&'static Known);

#[derive(Debug, PartialEq, Eq)]
struct Known {
    name: &'static str,
    family: Family,
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    ffn: usize,
    vocab: usize,
    context: usize,
    tied: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Opt,
    Llama { theta: u32 },
}

/// OPT: Zhang et al., arXiv 2205.01068, table 1 and the published `config.json` files.
const fn opt(name: &'static str, layers: usize, hidden: usize, heads: usize) -> Known {
    Known {
        name,
        family: Family::Opt,
        layers,
        hidden,
        heads,
        kv_heads: heads,
        ffn: 4 * hidden,
        vocab: 50272,
        context: 2048,
        tied: true,
    }
}

/// Llama family, from the published `config.json` files.
const SHAPES: [Known; 11] = [
    opt("opt-125m", 12, 768, 12),
    opt("opt-1.3b", 24, 2048, 32),
    opt("opt-2.7b", 32, 2560, 32),
    opt("opt-6.7b", 32, 4096, 32),
    opt("opt-13b", 40, 5120, 40),
    opt("opt-30b", 48, 7168, 56),
    opt("opt-66b", 64, 9216, 72),
    Known {
        name: "smollm2-135m",
        family: Family::Llama { theta: 100_000 },
        layers: 30,
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        ffn: 1536,
        vocab: 49152,
        context: 8192,
        tied: true,
    },
    Known {
        name: "llama-3.2-1b",
        family: Family::Llama { theta: 500_000 },
        layers: 16,
        hidden: 2048,
        heads: 32,
        kv_heads: 8,
        ffn: 8192,
        vocab: 128_256,
        context: 8192,
        tied: true,
    },
    Known {
        name: "llama-2-7b",
        family: Family::Llama { theta: 10_000 },
        layers: 32,
        hidden: 4096,
        heads: 32,
        kv_heads: 32,
        ffn: 11008,
        vocab: 32000,
        context: 4096,
        tied: false,
    },
    Known {
        name: "llama-3-8b",
        family: Family::Llama { theta: 500_000 },
        layers: 32,
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        ffn: 14336,
        vocab: 128_256,
        context: 8192,
        tied: false,
    },
];

impl Shape {
    /// All shapes that can be named.
    pub fn all() -> impl Iterator<Item = Shape> {
        SHAPES.iter().map(Shape)
    }

    /// Its name, as in `opt-1.3b`.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// `config.json` of a model of this shape.
    pub fn config_json(self, dtype: DType) -> Value {
        let k = self.0;
        let torch_dtype = match dtype {
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
        };
        match k.family {
            Family::Opt => json!({
                "architectures": ["OPTForCausalLM"],
                "model_type": "opt",
                "vocab_size": k.vocab,
                "hidden_size": k.hidden,
                "word_embed_proj_dim": k.hidden,
                "ffn_dim": k.ffn,
                "num_hidden_layers": k.layers,
                "num_attention_heads": k.heads,
                "max_position_embeddings": k.context,
                "do_layer_norm_before": true,
                "activation_function": "relu",
                "tie_word_embeddings": k.tied,
                "bos_token_id": 2,
                "eos_token_id": 2,
                "pad_token_id": 1,
                "torch_dtype": torch_dtype,
            }),
            Family::Llama { theta } => json!({
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "vocab_size": k.vocab,
                "hidden_size": k.hidden,
                "intermediate_size": k.ffn,
                "num_hidden_layers": k.layers,
                "num_attention_heads": k.heads,
                "num_key_value_heads": k.kv_heads,
                "max_position_embeddings": k.context,
                "rms_norm_eps": 1e-5,
                "rope_theta": f64::from(theta),
                "hidden_act": "silu",
                "tie_word_embeddings": k.tied,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "torch_dtype": torch_dtype,
            }),
        }
    }
}

impl FromStr for Shape {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Shape::all().find(|s| s.name() == name).ok_or_else(|| Error::UnknownShape {
            found: name.to_owned(),
            known: Shape::all().map(Shape::name).collect::<Vec<_>>().join(", "),
        })
    }
}

/// A model of any configuration with random weights, in memory.
///
/// # Errors
/// [`Error::Weights`] if the sizes overflow.
pub fn random_checkpoint(config: ModelConfig, dtype: DType, seed: u64) -> Result<Checkpoint> {
    let mut state = seed;
    let mut tensors = Vec::new();
    for spec in specs(&config, dtype) {
        let weights = Distribution::of(&spec);
        let values: Vec<f32> = (0..spec.shape.iter().product()).map(|_| weights.draw(&mut state)).collect();
        tensors.push((spec.name, TensorData::from_f32_as(&spec.shape, dtype, &values)?));
    }
    Ok(Checkpoint::from_tensors(config, tensors))
}

fn specs(config: &ModelConfig, dtype: DType) -> Vec<TensorSpec> {
    let layout = ModelNames::of(config, |_| false).layout(config);
    layout.into_iter().map(|(name, shape)| TensorSpec { name, dtype, shape }).collect()
}

/// Values made and written at a time.
const BLOCK: usize = 1 << 20;

/// Writes a checkpoint of `shape` to the new directory `dir` and returns the number of weights.
///
/// # Errors
/// [`Error::Weights`] if the directory is not empty or cannot be written; nothing is left behind then.
/// [`Error::Interrupted`] if `progress` says so.
pub fn write_random(dir: &Path, shape: Shape, dtype: DType, seed: u64, progress: &dyn Progress) -> Result<u64> {
    let config = serde_json::to_vec_pretty(&shape.config_json(dtype)).unwrap_or_default();
    let parsed = ModelConfig::from_json(&config)?;
    let specs = specs(&parsed, dtype);
    let count = |spec: &TensorSpec| spec.shape.iter().product::<usize>();
    let total: u64 = specs.iter().map(|s| count(s) as u64).sum();
    let staged = StagedDirectory::create(dir)?;
    staged.write("config.json", &config)?;
    let mut file = SafetensorsWriter::create(&staged.path().join("model.safetensors"), &specs, &BTreeMap::new())
        .map_err(|e| staged.finally(e))?;
    progress.start("random weights", Some(total * dtype.size() as u64));
    let mut state = seed;
    for spec in &specs {
        let weights = Distribution::of(spec);
        let mut left = count(spec);
        let mut bytes = Vec::with_capacity(BLOCK.min(left) * dtype.size());
        while left > 0 {
            let now = left.min(BLOCK);
            bytes.clear();
            for _ in 0..now {
                push(weights.draw(&mut state), dtype, &mut bytes);
            }
            file.append(&spec.name, &bytes).map_err(|e| staged.finally(e))?;
            progress.advance(bytes.len() as u64);
            if !progress.go_on() {
                return Err(Error::Interrupted);
            }
            left -= now;
        }
    }
    progress.finish();
    file.finish().map_err(|e| staged.finally(e))?;
    staged.finish()?;
    Ok(total)
}

/// Uniform values around a centre.
struct Distribution {
    centre: f32,
    half_width: f32,
}

impl Distribution {
    /// As at initialisation: matrices of variance `1/fan_in`, norm weights near 1, biases near 0.
    fn of(spec: &TensorSpec) -> Self {
        let vector = spec.shape.len() == 1;
        match (vector, spec.name.contains("norm") && spec.name.ends_with("weight")) {
            (true, true) => Distribution { centre: 1.0, half_width: 0.1 },
            (true, false) => Distribution { centre: 0.0, half_width: 0.02 },
            (false, _) => {
                let fan_in = spec.shape.last().copied().unwrap_or(1).max(1) as f32;
                Distribution { centre: 0.0, half_width: (3.0 / fan_in).sqrt() }
            }
        }
    }

    fn draw(&self, state: &mut u64) -> f32 {
        // The upper 24 bits of a random word are a uniform fraction that f32 holds exactly.
        let unit = (next_random(state) >> 40) as f32 / (1u64 << 24) as f32;
        self.centre + self.half_width * (2.0 * unit - 1.0)
    }
}

fn push(value: f32, dtype: DType, out: &mut Vec<u8>) {
    match dtype {
        DType::F32 => out.extend_from_slice(&value.to_le_bytes()),
        DType::F16 => out.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
        DType::BF16 => out.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
    }
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
