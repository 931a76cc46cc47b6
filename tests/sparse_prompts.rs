//! Prompts of sessions that have a policy: dense ones that decide from their last token, and sparse ones.

#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::sync::Arc;

use shadowllm::generate::{Prompts, Sparsity};
use shadowllm::model::random::random_checkpoint;
use shadowllm::model::{NoProbe, PackedModel, SparseOptions};
use shadowllm::sparsity::predictor::{
    HiddenActivation, Normalization, PredictorInput, Training, WeightFormat, random_predictor, write_predictor,
};
use shadowllm::sparsity::{Budget, ModelIdentity, Policy, Predictor, PredictorInfo, Random, Refresh, Scope, Shadow};
use shadowllm::weights::{DType, ModelConfig, PackedCheckpoint};
use shadowllm::{Engine, EngineOptions, Error, Session, SessionOptions};

const BUDGET: Budget = Budget { heads: 0.5, neurons: 0.25, scope: Scope::Local };

struct Loaded {
    engine: Engine,
    packed: Arc<PackedModel>,
    _directory: tempfile::TempDir,
}

fn load() -> Loaded {
    let config = r#"{"model_type": "llama", "vocab_size": 61, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5}"#;
    let checkpoint = random_checkpoint(ModelConfig::from_json(config.as_bytes()).unwrap(), DType::BF16, 5).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.shadow.safetensors");
    let packed = PackedCheckpoint::open_or_pack_at(&file, &checkpoint, &()).unwrap();
    let packed = Arc::new(PackedModel::load(&packed).unwrap());
    Loaded { engine: Engine::load(&checkpoint, EngineOptions::default()).unwrap(), packed, _directory: directory }
}

impl Loaded {
    fn shadow(&self, input: PredictorInput) -> Box<dyn Policy> {
        let (config, model) = (self.engine.config(), ModelIdentity::of(self.engine.model()));
        let info = PredictorInfo {
            model: model.clone(),
            stations: vec![0],
            input,
            normalization: Normalization::MinMax,
            activation: HiddenActivation::Relu,
            criterion: "test".to_owned(),
            training: Training::default(),
            validated: Vec::new(),
        };
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("predictor.safetensors");
        write_predictor(&file, &info, &random_predictor(&info, config, 6, 8, 5), WeightFormat::F32).unwrap();
        let predictor = Predictor::open(&file, config, &model).unwrap();
        Box::new(Shadow::new(Arc::new(predictor), BUDGET).unwrap())
    }

    fn session(&self, policy: Box<dyn Policy>, refresh: Refresh, prompts: Prompts) -> Session {
        let mut session = self.engine.session(SessionOptions::default()).unwrap();
        session.set_sparsity(Some(self.sparsity(policy, refresh).prompts(prompts).unwrap())).unwrap();
        session
    }

    fn sparsity(&self, policy: Box<dyn Policy>, refresh: Refresh) -> Sparsity {
        let options = SparseOptions { kv_flush: 5, ..SparseOptions::default() };
        Sparsity::new(Arc::clone(&self.packed), policy, refresh, self.engine.config(), options)
    }
}

fn tokens(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * i + 7) % 61).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|v| v.to_bits()).collect()
}

/// The plan of a prompt is the one that its last token would make if it were decoded, and holds until the next prompt.
#[test]
fn refresh_prompt_decides_from_the_last_prompt_token() {
    let loaded = load();
    for input in [PredictorInput::Residual, PredictorInput::Contexts] {
        // The second is longer than one pass of a prompt.
        for length in [1, 9, 600] {
            let prompt = tokens(length);
            let mut held = loaded.session(loaded.shadow(input), Refresh::Prompt, Prompts::Dense);
            let dense = held.prefill(&prompt).unwrap().to_vec();
            let plan = held.sparsity().unwrap().plan().clone();
            let mut plain = loaded.engine.session(SessionOptions::default()).unwrap();
            assert_eq!(bits(plain.prefill(&prompt).unwrap()), bits(&dense), "the prompt itself is dense");

            let mut decoded = loaded.session(loaded.shadow(input), Refresh::EveryToken, Prompts::Dense);
            if let (rest @ [_, ..], _) = prompt.split_at(prompt.len() - 1) {
                decoded.prefill(rest).unwrap();
            }
            decoded.step(prompt[prompt.len() - 1]).unwrap();
            assert_eq!(&plan, decoded.sparsity().unwrap().plan(), "{length} tokens");
            assert_eq!(plan.layers[2].neurons.len(), 20);

            for token in [5, 6, 7] {
                held.step(token).unwrap();
                assert_eq!(&plan, held.sparsity().unwrap().plan());
                assert_eq!(held.sparsity().unwrap().decision_bytes(), 0);
            }
            held.prefill(&[3, 1, 4]).unwrap();
            assert_ne!(&plan, held.sparsity().unwrap().plan(), "another prompt, another plan");
        }
    }
}

/// Without a prompt the first token decides.
#[test]
fn without_a_prompt_the_first_token_decides() {
    let loaded = load();
    let mut session = loaded.session(loaded.shadow(PredictorInput::Residual), Refresh::Prompt, Prompts::Dense);
    session.step(4).unwrap();
    let plan = session.sparsity().unwrap().plan().clone();
    assert_eq!(plan.layers[1].heads.len(), 3);
    session.step(5).unwrap();
    assert_eq!(&plan, session.sparsity().unwrap().plan());
}

/// A sparse prompt is its tokens decoded one by one, bit for bit; ended early it leaves nothing behind.
#[test]
fn sparse_prompts_are_decoded_tokens() {
    let loaded = load();
    let random = || Box::new(Random::new(3, BUDGET, loaded.engine.config()).unwrap());
    let prompt = tokens(23);
    let mut stepped = loaded.session(random(), Refresh::Every(2), Prompts::Dense);
    for &token in &prompt {
        stepped.step(token).unwrap();
    }

    let mut session = loaded.session(random(), Refresh::Every(2), Prompts::Sparse);
    let mut progress = Vec::new();
    let seen = &mut |done| {
        progress.push(done);
        ControlFlow::Continue(())
    };
    let logits = bits(session.prefill_with(&prompt, &mut NoProbe, seen).unwrap());
    assert_eq!(logits, bits(stepped.logits()));
    assert_eq!(progress, (1..=23).collect::<Vec<_>>());
    assert_eq!(bits(session.step(9).unwrap()), bits(stepped.step(9).unwrap()));

    let held = session.tokens().to_vec();
    let stop = &mut |done| if done == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    assert!(matches!(session.prefill_with(&prompt, &mut NoProbe, stop), Err(Error::Interrupted)));
    assert_eq!(session.tokens(), held);
}

#[test]
fn a_sparse_prompt_cannot_be_what_decides() {
    let loaded = load();
    let random = Box::new(Random::new(3, BUDGET, loaded.engine.config()).unwrap());
    let error = loaded.sparsity(random, Refresh::Prompt).prompts(Prompts::Sparse).unwrap_err();
    assert_eq!(
        error.to_string(),
        "with refresh prompt the last prompt token decides, so a prompt cannot be sparse itself; use prefill dense, or refresh \
         every N tokens"
    );
}

/// What is decided from a prompt may be wrong; then the prompt has not been taken.
#[test]
fn a_prompt_whose_decision_fails_is_not_taken() {
    let loaded = load();
    let deeper = random_policy_of_another_depth();
    let mut session = loaded.session(deeper, Refresh::Prompt, Prompts::Dense);
    let error = session.prefill(&[1, 2, 3]).unwrap_err().to_string();
    assert!(error.contains("9 layers"), "{error}");
    assert_eq!(session.tokens(), [0u32; 0]);
    session.set_sparsity(None).unwrap();
    session.prefill(&[1, 2, 3]).unwrap();
}

fn random_policy_of_another_depth() -> Box<dyn Policy> {
    let units = shadowllm::sparsity::Units { layers: 9, heads: 6, neurons: 80 };
    Box::new(Random::new(3, BUDGET, units).unwrap())
}

/// A fork goes on as its origin would, and neither sees what the other does.
#[test]
fn forks_go_their_own_ways() {
    let loaded = load();
    let random = || Box::new(Random::new(3, BUDGET, loaded.engine.config()).unwrap());
    let mut origin = loaded.engine.session(SessionOptions::default()).unwrap();
    origin.prefill(&tokens(9)).unwrap();
    let mut fork = origin.fork();
    assert_eq!((fork.tokens(), bits(fork.logits())), (origin.tokens(), bits(origin.logits())));
    for session in [&mut origin, &mut fork] {
        session.set_sparsity(Some(loaded.sparsity(random(), Refresh::EveryToken))).unwrap();
    }
    for token in 0..8 {
        assert_eq!(bits(origin.step(token).unwrap()), bits(fork.step(token).unwrap()));
    }
    // A fork of a sparse session is dense, and has all keys and values.
    let mut dense = origin.fork();
    assert!(dense.sparsity().is_none());
    origin.set_sparsity(None).unwrap();
    fork.step(60).unwrap();
    assert_eq!(bits(dense.step(1).unwrap()), bits(origin.step(1).unwrap()));
}
