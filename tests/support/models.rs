//! Random small models of every kind, loaded and packed, and the masked dense model that sparse runs are held to.

#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;
use shadowllm::generate::Sparsity;
use shadowllm::kernels::{CpuOptions, IsaName};
use shadowllm::model::random::random_checkpoint;
use shadowllm::model::{PackedModel, Probe, Rows, SparseOptions};
use shadowllm::sparsity::{Budget, Plan, Random, Refresh};
use shadowllm::weights::{DType, ModelConfig, PackedCheckpoint, pack};
use shadowllm::{Engine, EngineOptions};

use crate::support::NARROWEST;

/// A model's shape and variant.
#[derive(Clone, Debug)]
pub struct Kind {
    pub opt: bool,
    pub kv_heads: usize,
    pub group: usize,
    pub head_dim: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub layers: usize,
    pub relu: bool,
    pub post_norm: bool,
    pub window: bool,
    pub dtype: DType,
}

impl Kind {
    pub fn config(&self) -> ModelConfig {
        let heads = self.kv_heads * self.group;
        let json = if self.opt {
            serde_json::json!({
                "model_type": "opt", "vocab_size": 61, "hidden_size": heads * self.head_dim, "ffn_dim": self.ffn,
                "word_embed_proj_dim": heads * self.head_dim, "num_hidden_layers": self.layers,
                "num_attention_heads": heads, "max_position_embeddings": 200,
                "do_layer_norm_before": !self.post_norm,
                "activation_function": if self.relu { "relu" } else { "gelu" },
            })
        } else {
            serde_json::json!({
                "model_type": if self.window { "mistral" } else { "llama" }, "vocab_size": 61,
                "hidden_size": self.hidden, "intermediate_size": self.ffn, "num_hidden_layers": self.layers,
                "num_attention_heads": heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
                "max_position_embeddings": 200, "rms_norm_eps": 1e-5, "sliding_window": 7,
                "hidden_act": if self.relu { "relu" } else { "silu" },
            })
        };
        ModelConfig::from_json(json.to_string().as_bytes()).unwrap()
    }
}

pub fn kinds() -> impl Strategy<Value = Kind> {
    let shape = (1usize..4, 1usize..4, 1usize..9, NARROWEST..40, 4usize..70, 1usize..4);
    let flags = (any::<[bool; 4]>(), prop::sample::select(DType::ALL.to_vec()));
    (shape, flags).prop_map(
        |((kv_heads, group, half, hidden, ffn, layers), ([opt, relu, post_norm, window], dtype))| {
            // OPT's heads are as wide as the model together.
            let (group, least) = if opt { (1, NARROWEST.div_ceil(2 * kv_heads)) } else { (group, 1) };
            let head_dim = 2 * half.max(least);
            Kind { opt, kv_heads, group, head_dim, hidden, ffn, layers, relu, post_norm, window, dtype }
        },
    )
}

pub struct Loaded {
    pub engine: Engine,
    pub packed: Arc<PackedModel>,
}

pub fn load(config: &ModelConfig, dtype: DType, isa: IsaName, seed: u64) -> Loaded {
    let checkpoint = random_checkpoint(config.clone(), dtype, seed).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("packed.shadow.safetensors");
    pack(&checkpoint, &file, &()).unwrap();
    let packed = PackedCheckpoint::open_for(&file, &checkpoint, &()).unwrap();
    let options = EngineOptions { cpu: CpuOptions { isa: Some(isa), threads: Some(2), ..CpuOptions::default() } };
    // What is dense runs over the plain weights, or over the packed ones as everything else.
    let engine = match seed % 2 {
        0 => Engine::load(&checkpoint, options).unwrap(),
        _ => Engine::load_packed(&packed, options).unwrap(),
    };
    Loaded { engine, packed: Arc::new(PackedModel::load(&packed).unwrap()) }
}

/// The dense model with contexts and inners of dropped units set to zero, row by row.
pub struct Mask<'a> {
    /// One per row; `None`: dense.
    pub plans: &'a [Option<Plan>],
    pub heads: usize,
    pub neurons: usize,
}

fn zero_all_but(values: &mut [f32], units: usize, kept: &[u32]) {
    let width = values.len() / units;
    for (unit, values) in values.chunks_exact_mut(width).enumerate() {
        if !kept.contains(&(unit as u32)) {
            values.fill(0.0);
        }
    }
}

impl Probe for Mask<'_> {
    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        let width = values.len() / rows.count;
        for (row, values) in values.chunks_exact_mut(width).enumerate() {
            if let Some(plan) = &self.plans[row] {
                zero_all_but(values, self.heads, &plan.layers[rows.layer].heads);
            }
        }
    }

    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        let width = values.len() / rows.count;
        for (row, values) in values.chunks_exact_mut(width).enumerate() {
            if let Some(plan) = &self.plans[row] {
                zero_all_but(values, self.neurons, &plan.layers[rows.layer].neurons);
            }
        }
    }
}

/// Units at random, anew as often as `refresh` says.
pub fn sparsity(loaded: &Loaded, seed: u64, budget: Budget, refresh: Refresh, options: SparseOptions) -> Sparsity {
    let config = loaded.engine.config();
    let policy = Random::new(seed, budget, config).unwrap();
    Sparsity::new(Arc::clone(&loaded.packed), Box::new(policy), refresh, config, options)
}
