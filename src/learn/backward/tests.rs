use proptest::prelude::*;
use serde_json::{Value, json};
use shadowllm_weights::{Activation, DType, ModelConfig};

use super::*;
use crate::Error;
use crate::kernels::testing::{cpu, on_every_isa, values};
use crate::kernels::{Compute, Cpu, IsaName, log_sum_exp};
use crate::model::random::random_checkpoint;
use crate::model::{KvCache, Model, NoProbe, Norm, Probe, Rows, Segment, Workspace};

const VOCAB: usize = 61;

/// Every structure of an OPT model.
fn opt() -> impl Strategy<Value = Value> {
    let activation = prop::sample::select(vec!["relu", "gelu", "gelu_new"]);
    let (pre, biases, affine, no_final) = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (activation, pre, biases, affine, no_final, any::<bool>(), any::<bool>()).prop_map(
        |(activation, pre, biases, affine, no_final, narrow, tied)| {
            json!({
                "model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": VOCAB, "hidden_size": 24,
                "word_embed_proj_dim": if narrow { 16 } else { 24 }, "ffn_dim": 56, "num_hidden_layers": 3,
                "num_attention_heads": 3, "max_position_embeddings": 64, "do_layer_norm_before": pre,
                "activation_function": activation, "enable_bias": biases, "layer_norm_elementwise_affine": affine,
                "_remove_final_layer_norm": no_final, "tie_word_embeddings": tied,
            })
        },
    )
}

/// Every structure of the Llama family.
fn llama() -> impl Strategy<Value = Value> {
    let family = prop::sample::select(vec!["llama", "mistral", "qwen2"]);
    let activation = prop::sample::select(vec!["silu", "relu", "gelu", "gelu_pytorch_tanh"]);
    let scaling = prop::sample::select(vec![
        Value::Null,
        json!({ "rope_type": "linear", "factor": 2.0 }),
        json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32 }),
    ]);
    let window = prop::option::of(2usize..9);
    let kv_heads = prop::sample::select(vec![1usize, 2, 4]);
    (family, activation, scaling, window, kv_heads, any::<bool>(), any::<bool>()).prop_map(
        |(family, activation, scaling, window, kv_heads, biases, tied)| {
            let mut config = json!({
                "model_type": family, "vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": 40,
                "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": kv_heads,
                "max_position_embeddings": 64, "rms_norm_eps": 1e-3, "rope_theta": 10000.0, "hidden_act": activation,
                "tie_word_embeddings": tied,
            });
            match family {
                "llama" => {
                    config["rope_scaling"] = scaling;
                    config["attention_bias"] = json!(biases);
                    config["mlp_bias"] = json!(biases);
                    config["head_dim"] = json!(if tied { 8 } else { 6 });
                }
                "mistral" => config["sliding_window"] = json!(window),
                _ => {
                    config["use_sliding_window"] = json!(window.is_some());
                    config["sliding_window"] = json!(window.unwrap_or(4));
                    config["max_window_layers"] = json!(1);
                }
            }
            config
        },
    )
}

fn model(config: &Value, seed: u64) -> Model {
    let config = ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
    Model::load(&random_checkpoint(config, DType::F32, seed).unwrap()).unwrap()
}

fn text(seed: u64, len: usize) -> Vec<u32> {
    values(seed, len).into_iter().map(|v| ((v + 1.0) * 0.5 * VOCAB as f32) as u32 % VOCAB as u32).collect()
}

/// Everything that was shown of a layer.
#[derive(Clone, Debug, Default, PartialEq)]
struct Layer {
    contexts: Vec<f32>,
    context_grads: Vec<f32>,
    inners: Vec<f32>,
    inner_grads: Vec<f32>,
    residual: Vec<f32>,
    gates: Vec<f32>,
    gate_grads: Vec<f32>,
    ffn_inputs: Vec<f32>,
    up_grads: Vec<f32>,
}

/// All layers, in the order of the model.
#[derive(Default)]
struct Recorder {
    layers: Vec<Layer>,
    order: Vec<usize>,
    losses: Vec<LossValue>,
}

impl LayerVisitor for Recorder {
    fn loss(&mut self, loss: &LossValue) -> Result<()> {
        self.losses.push(*loss);
        Ok(())
    }

    fn layer(&mut self, record: &LayerRecord<'_>) -> Result<()> {
        self.order.push(record.layer);
        self.layers.resize(self.layers.len().max(record.layer + 1), Layer::default());
        self.layers[record.layer] = Layer {
            contexts: record.contexts.to_vec(),
            context_grads: record.context_grads.to_vec(),
            inners: record.inners.to_vec(),
            inner_grads: record.inner_grads.to_vec(),
            residual: record.residual.to_vec(),
            gates: record.gates.to_vec(),
            gate_grads: record.gate_grads.to_vec(),
            ffn_inputs: record.ffn_inputs.to_vec(),
            up_grads: record.up_grads.to_vec(),
        };
        Ok(())
    }
}

fn record(cpu: &Cpu, model: &Model, tokens: &[u32], loss: &Loss) -> (LossValue, Vec<Layer>) {
    let mut recorder = Recorder::default();
    let value = backward(cpu, model, tokens, loss, &mut BackwardWorkspace::new(), &mut recorder).unwrap();
    assert!(recorder.order.iter().rev().copied().eq(0..model.layers.len()), "the last layer comes first");
    assert_eq!(recorder.losses, [value]);
    (value, recorder.layers)
}

/// The loss by the forward pass alone.
fn loss_with(cpu: &Cpu, model: &Model, tokens: &[u32], loss: &Loss, probe: &mut dyn Probe) -> f64 {
    let mut cache = KvCache::new(&model.config, tokens.len());
    let mut workspace = Workspace::default();
    model.forward(cpu, &mut [Segment { tokens, cache: &mut cache }], &mut workspace, probe).unwrap();
    let v = model.config.vocab;
    let mut logits = vec![0.0; tokens.len() * v];
    model.logits(cpu, &mut workspace, 0..tokens.len(), &mut logits);
    let range = loss.range(tokens.len()).unwrap();
    let of = |at: usize| {
        let row = &logits[(at - 1) * v..at * v];
        log_sum_exp(cpu, row) - f64::from(row[tokens[at] as usize])
    };
    let sum: f64 = range.clone().map(of).sum();
    if loss.reduction == Reduction::Sum { sum } else { sum / range.len() as f64 }
}

/// Moves the contexts or the inners of a layer along a direction.
struct Move<'a> {
    layer: usize,
    inners: bool,
    direction: &'a [f32],
    step: f32,
}

impl Move<'_> {
    fn apply(&self, values: &mut [f32]) {
        values.iter_mut().zip(self.direction).for_each(|(v, d)| *v += self.step * d);
    }
}

impl Probe for Move<'_> {
    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        if rows.layer == self.layer && !self.inners {
            self.apply(values);
        }
    }

    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        if rows.layer == self.layer && self.inners {
            self.apply(values);
        }
    }
}

fn check_differences(cpu: &Cpu, config: &Value, len: usize, loss: &Loss, seed: u64) -> Result<(), TestCaseError> {
    let model = model(config, seed);
    let tokens = text(seed ^ 5, len);
    let (value, layers) = record(cpu, &model, &tokens, loss);
    let expected = loss_with(cpu, &model, &tokens, loss, &mut NoProbe);
    prop_assert!((value.value() - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{value:?}, {expected}");
    for (layer, recorded) in layers.iter().enumerate() {
        for (inners, grads) in [(false, &recorded.context_grads), (true, &recorded.inner_grads)] {
            let direction = values(seed ^ (layer as u64 + 77), grads.len());
            let product: f64 = grads.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            let size: f64 = grads.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let mut slopes = Vec::new();
            // With ReLU a step crosses kinks, the fewer the shorter it is; a short one suffers from the rounding of the loss.
            let relu = model.config.activation == Activation::Relu;
            let steps: &[f32] = if relu { &[2048.0, 8192.0] } else { &[256.0] };
            let agrees = steps.iter().any(|parts| {
                let step = 1.0 / parts;
                let at = |step: f32| {
                    let mut probe = Move { layer, inners, direction: &direction, step };
                    loss_with(cpu, &model, &tokens, loss, &mut probe)
                };
                let (above, below) = (at(step), at(-step));
                let found = (above - below) / (2.0 * f64::from(step));
                let rounding = 5e-7 * (1.0 + expected.abs()) / f64::from(step);
                // Where a kink was crossed the slopes on both sides differ, and the gradient is one of them. Where one was
                // crossed on each side they may not, so the shorter step is asked, too.
                let kinks = (above + below - 2.0 * expected).abs() / f64::from(step);
                slopes.push(found);
                (found - product).abs() <= 2e-2 * size + rounding + kinks
            });
            prop_assert!(
                agrees,
                "layer {layer}, {}: {product} instead of {slopes:?}, gradient of size {size}, {config}",
                if inners { "inners" } else { "contexts" }
            );
        }
    }
    Ok(())
}

fn loss() -> impl Strategy<Value = Loss> {
    prop_oneof![Just(Loss::sum()), (1usize..5, 5usize..7).prop_map(|(a, b)| Loss::of_answer(a..b))]
}

fn equal_to_finite_differences(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    let cases = (prop_oneof![opt(), llama()], 7usize..20, loss(), 0u64..1 << 40);
    proptest!(ProptestConfig::with_cases(40), |((config, len, loss, seed) in cases)| {
        check_differences(&cpu, &config, len, &loss, seed)?;
    });
}

on_every_isa!(equal_to_finite_differences);

fn plain() -> Value {
    json!({
        "model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": VOCAB, "hidden_size": 24, "ffn_dim": 56,
        "word_embed_proj_dim": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "max_position_embeddings": 64,
        "do_layer_norm_before": true, "activation_function": "relu",
    })
}

fn gated() -> Value {
    json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-3,
    })
}

fn fast() -> Cpu {
    Cpu::new(&crate::kernels::CpuOptions::default()).unwrap()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |a, v| a.max(v.abs()))
}

#[test]
fn losses_of_parts_add_up() {
    let (cpu, model, tokens) = (fast(), model(&gated(), 1), text(2, 20));
    let part = |range: std::ops::Range<usize>, reduction| {
        record(&cpu, &model, &tokens, &Loss { tokens: Some(range), reduction })
    };
    let (whole, all) = record(&cpu, &model, &tokens, &Loss::sum());
    let (first, a) = part(1..8, Reduction::Sum);
    let (second, b) = part(8..20, Reduction::Sum);
    assert!((first.sum + second.sum - whole.sum).abs() < 1e-4);
    assert_eq!((first.tokens, second.tokens, whole.tokens), (7, 12, 19));
    let (mean, c) = part(1..20, Reduction::Mean);
    assert!((mean.value() * 19.0 - whole.sum).abs() < 1e-4);
    for (((all, a), b), c) in all.iter().zip(&a).zip(&b).zip(&c) {
        for of in [|l: &Layer| l.context_grads.clone(), |l: &Layer| l.inner_grads.clone()] {
            let (all, a, b, c) = (of(all), of(a), of(b), of(c));
            let bound = 1e-5 * largest(&all);
            for i in 0..all.len() {
                assert!((a[i] + b[i] - all[i]).abs() <= bound && (19.0 * c[i] - all[i]).abs() <= bound);
            }
        }
    }
    // A token says nothing about those after the last one that is scored.
    let after = &a[1].inner_grads[7 * 40..];
    assert!(after.iter().all(|&v| v == 0.0), "tokens 7.. have no part in the losses of 1..8");
}

#[test]
fn threads_change_nothing() {
    let tokens = text(3, 60);
    for config in [plain(), gated()] {
        let model = model(&config, 4);
        let run = |threads| {
            let options = crate::kernels::CpuOptions { threads: Some(threads), ..Default::default() };
            record(&Cpu::new(&options).unwrap(), &model, &tokens, &Loss::sum())
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(3));
    }
}

#[test]
fn a_workspace_may_be_used_again_with_other_models() {
    let cpu = fast();
    let mut work = BackwardWorkspace::new();
    for (config, len) in [(plain(), 50), (gated(), 13), (plain(), 20), (gated(), 30)] {
        let model = model(&config, 4);
        let tokens = text(3, len);
        let mut recorder = Recorder::default();
        backward(&cpu, &model, &tokens, &Loss::sum(), &mut work, &mut recorder).unwrap();
        assert_eq!(recorder.layers, record(&cpu, &model, &tokens, &Loss::sum()).1);
    }
}

#[test]
fn memory_grows_with_the_text_and_not_with_its_square() {
    let (cpu, mut config) = (fast(), gated());
    config["max_position_embeddings"] = json!(4096);
    let model = model(&config, 4);
    let bytes = |len| {
        let mut work = BackwardWorkspace::new();
        backward(&cpu, &model, &text(3, len), &Loss::sum(), &mut work, &mut Recorder::default()).unwrap();
        work.bytes()
    };
    let (short, long) = (bytes(256), bytes(1024));
    assert!(long <= 4 * short, "{short} bytes for 256 tokens, {long} for 1024");
}

#[test]
fn observing_shows_what_the_backward_pass_recomputes() {
    let cpu = fast();
    for config in [plain(), gated()] {
        let (model, tokens) = (model(&config, 4), text(3, 30));
        let mut recorder = Recorder::default();
        observe(&cpu, &model, &tokens, &mut BackwardWorkspace::new(), &mut recorder).unwrap();
        assert_eq!(recorder.order, [0, 1, 2]);
        let (_, layers) = record(&cpu, &model, &tokens, &Loss::sum());
        for (seen, full) in recorder.layers.iter().zip(&layers) {
            assert_eq!((&seen.contexts, &seen.inners, &seen.residual), (&full.contexts, &full.inners, &full.residual));
            assert!(seen.context_grads.is_empty() && seen.inner_grads.is_empty());
        }
    }
}

#[test]
fn factors_of_one_change_nothing_and_others_are_differentiated() {
    let cpu = fast();
    for config in [plain(), gated()] {
        let (model, tokens, loss) = (model(&config, 4), text(3, 30), Loss::sum());
        let (h, f) = (model.config.heads, model.config.ffn);
        let factors = |step: f32, direction: &UnitFactors| UnitFactors {
            heads: direction.heads.iter().map(|v| 1.0 + step * v).collect(),
            neurons: direction.neurons.iter().map(|v| 1.0 + step * v).collect(),
        };
        let direction = UnitFactors { heads: values(5, 3 * h), neurons: values(6, 3 * f) };
        let run = |step: f32| {
            let mut recorder = Recorder::default();
            let factors = factors(step, &direction);
            let mut work = BackwardWorkspace::new();
            let value = backward_scaled(&cpu, &model, &tokens, &loss, &factors, &mut work, &mut recorder).unwrap();
            (value, recorder.layers)
        };
        assert_eq!(run(0.0), record(&cpu, &model, &tokens, &loss));
        // The derivative along the direction at factors that are not 1.
        let base = 0.25f32;
        let (_, layers) = run(base);
        let used = factors(base, &direction);
        let mut product = 0.0;
        for (layer, recorded) in layers.iter().enumerate() {
            let d = recorded.contexts.len() / 30 / h;
            for (i, (a, g)) in recorded.contexts.iter().zip(&recorded.context_grads).enumerate() {
                let unit = layer * h + i / d % h;
                product += f64::from(a * g / used.heads[unit] * direction.heads[unit]);
            }
            for (i, (z, g)) in recorded.inners.iter().zip(&recorded.inner_grads).enumerate() {
                let unit = layer * f + i % f;
                product += f64::from(z * g / used.neurons[unit] * direction.neurons[unit]);
            }
        }
        let step = 1.0 / 1024.0;
        let found = (run(base + step).0.sum - run(base - step).0.sum) / (2.0 * f64::from(step));
        assert!((found - product).abs() < 0.01 * product.abs() + 0.05, "{product} instead of {found}");
    }
}

#[test]
fn what_cannot_be_differentiated_is_an_error() {
    let (cpu, sound) = (fast(), model(&plain(), 1));
    let run = |model: &Model, tokens: &[u32], loss: &Loss| {
        let mut work = BackwardWorkspace::new();
        backward(&cpu, model, tokens, loss, &mut work, &mut Recorder::default()).unwrap_err().to_string()
    };
    let text = text(1, 10);
    assert_eq!(
        run(&sound, &text[..1], &Loss::sum()),
        "the text has 1 token(s), and a loss needs at least 2: one to predict and one before it; use a longer text"
    );
    for (start, end) in [(0, 4), (4, 4), (5, 11)] {
        assert_eq!(
            run(&sound, &text, &Loss { tokens: Some(start..end), reduction: Reduction::Sum }),
            format!(
                "the loss is of tokens {start}..{end} of a text of 10; expected a range that is not empty, starts at 1 or \
                 later, because nothing predicts token 0, and ends at 10 at the latest"
            )
        );
    }
    assert_eq!(
        run(&sound, &[1, 2, 99], &Loss::sum()),
        "token id 99 at index 2 is out of range: the model's vocabulary has 61 entries (0 to 60)"
    );
    assert!(run(&sound, &[1; 65], &Loss::sum()).starts_with("the context is full: it holds 64 tokens"));

    let mut broken = model(&plain(), 1);
    if let Some(Norm::Layer { weight: Some(weight), .. }) = &mut broken.final_norm {
        weight[3] = f32::NAN;
    }
    assert_eq!(
        run(&broken, &text, &Loss::sum()),
        "the loss of the text is not finite: the forward pass broke down; \
         check the checkpoint for NaN, infinite or wrongly converted weights"
    );
}

#[test]
fn a_visitor_can_end_the_pass() {
    struct Stop(usize);
    impl LayerVisitor for Stop {
        fn layer(&mut self, record: &LayerRecord<'_>) -> Result<()> {
            self.0 += 1;
            if record.layer == 1 { Err(Error::Interrupted) } else { Ok(()) }
        }
    }
    let (cpu, model, tokens) = (fast(), model(&gated(), 1), text(1, 10));
    let mut stop = Stop(0);
    let mut work = BackwardWorkspace::new();
    let result = backward(&cpu, &model, &tokens, &Loss::sum(), &mut work, &mut stop);
    assert!(matches!(result, Err(Error::Interrupted)));
    assert_eq!(stop.0, 2);
    let mut stop = Stop(0);
    assert!(matches!(observe(&cpu, &model, &tokens, &mut work, &mut stop), Err(Error::Interrupted)));
    assert_eq!(stop.0, 2);
}

#[test]
fn gradients_of_gates_are_those_of_the_activation() {
    let (cpu, model, tokens) = (fast(), model(&plain(), 1), text(1, 10));
    let (_, layers) = record(&cpu, &model, &tokens, &Loss::sum());
    for layer in &layers {
        for i in 0..layer.gates.len() {
            let open = layer.gates[i] > 0.0;
            assert_eq!(layer.inners[i], if open { layer.gates[i] } else { 0.0 });
            assert_eq!(layer.gate_grads[i], if open { layer.inner_grads[i] } else { 0.0 });
        }
        assert_eq!((layer.ffn_inputs.len(), layer.up_grads.len()), (10 * 24, 0));
    }
}
