//! Made-up layers for the criteria's tests.

use serde_json::json;
use shadowllm_weights::{DType, ModelConfig};

use super::{Criterion, Form, LayerInput, UnitKind};
use crate::kernels::testing::values;
use crate::kernels::{Cpu, CpuOptions};
use crate::learn::LayerRecord;
use crate::model::Model;
use crate::model::random::random_checkpoint;

/// A small model: OPT with ReLU, or the Llama family.
pub(super) fn model(gated: bool) -> Model {
    let config = if gated {
        json!({
            "model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-3,
        })
    } else {
        json!({
            "model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 61, "hidden_size": 24, "ffn_dim": 40,
            "word_embed_proj_dim": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
            "max_position_embeddings": 256, "do_layer_norm_before": true, "activation_function": "relu",
        })
    };
    let config = ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
    Model::load(&random_checkpoint(config, DType::F32, 11).unwrap()).unwrap()
}

/// Random token ids.
pub(super) fn text(seed: u64, len: usize) -> Vec<u32> {
    values(seed, len).into_iter().map(|v| ((v + 1.0) * 30.0) as u32).collect()
}

/// One layer of [`model`]: 4 heads of width 6, 40 neurons.
pub(super) struct Sample {
    pub(super) cpu: Cpu,
    pub(super) model: Model,
    pub(super) tokens: Vec<u32>,
    pub(super) contexts: Vec<f32>,
    pub(super) context_grads: Vec<f32>,
    pub(super) inners: Vec<f32>,
    pub(super) inner_grads: Vec<f32>,
    pub(super) ffn_inputs: Vec<f32>,
    pub(super) gates: Vec<f32>,
    pub(super) gate_grads: Vec<f32>,
}

pub(super) const HEADS: usize = 4;
pub(super) const WIDTH: usize = 6;
pub(super) const NEURONS: usize = 40;

impl Sample {
    /// Random values for `t` tokens.
    pub(super) fn new(t: usize, seed: u64) -> Self {
        let of = |seed_of: u64, width: usize| values(seed ^ seed_of, t * width);
        Sample {
            cpu: Cpu::new(&CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap(),
            model: model(false),
            tokens: text(seed, t),
            contexts: of(1, HEADS * WIDTH),
            context_grads: of(2, HEADS * WIDTH),
            inners: of(3, NEURONS),
            inner_grads: of(4, NEURONS),
            ffn_inputs: of(5, 24),
            gates: of(6, NEURONS),
            gate_grads: of(7, NEURONS),
        }
    }

    /// The text twice.
    pub(super) fn twice(mut self) -> Self {
        for values in [
            &mut self.contexts,
            &mut self.context_grads,
            &mut self.inners,
            &mut self.inner_grads,
            &mut self.ffn_inputs,
            &mut self.gates,
            &mut self.gate_grads,
        ] {
            values.extend_from_within(..);
        }
        self.tokens.extend_from_within(..);
        self
    }

    /// Scores of the layer.
    pub(super) fn score(&self, name: &str, kind: UnitKind, form: Form) -> Vec<f32> {
        let criterion: &dyn Criterion = name.parse::<&'static dyn Criterion>().unwrap();
        assert!(criterion.has(kind, form), "{name} has no {form:?} of {kind:?}");
        let record = LayerRecord {
            layer: 1,
            tokens: self.tokens.len(),
            contexts: &self.contexts,
            context_grads: &self.context_grads,
            inners: &self.inners,
            inner_grads: &self.inner_grads,
            residual: &[],
            ffn_inputs: &self.ffn_inputs,
            gates: &self.gates,
            gate_grads: &self.gate_grads,
            ups: &[],
            up_grads: &[],
        };
        let input =
            LayerInput { cpu: &self.cpu, model: &self.model, tokens: &self.tokens, record: &record, curvature: None };
        let units = if kind == UnitKind::Heads { HEADS } else { NEURONS };
        let mut out = vec![f32::NAN; if form == Form::Token { units * self.tokens.len() } else { units }];
        criterion.score(&input, kind, form, &mut out).unwrap();
        out
    }
}
