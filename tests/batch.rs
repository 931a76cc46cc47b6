//! Sequences that are decoded together are those decoded alone, and weights are read once for all of them.

#![allow(clippy::unwrap_used)]

#[path = "support/models.rs"]
mod models;
mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use shadowllm::generate::{BatchStep, Completion, CompletionOptions, Sparsity, StopReason};
use shadowllm::model::SparseOptions;
use shadowllm::sparsity::{
    Budget, Dense, GateStatistic, GateThresholds, ModelIdentity, Plan, Policy, PolicyInput, Random, Refresh, Scope,
    Station,
};
use shadowllm::weights::{Checkpoint, DType, PackedCheckpoint};
use shadowllm::{Engine, EngineOptions, Error, Session, SessionOptions};

use models::{Kind, Loaded, kinds, load, sparsity};
use support::isas;

/// How one sequence of a batch is decoded.
#[derive(Clone, Debug)]
struct Way {
    prompt: usize,
    /// `None`: dense.
    sparse: Option<Sparse>,
}

#[derive(Clone, Debug)]
struct Sparse {
    heads: f32,
    neurons: f32,
    scope: Scope,
    every: usize,
    kv_flush: usize,
    relu_skip: bool,
    gate_skip: Option<f32>,
    seed: u64,
}

fn ways() -> impl Strategy<Value = Vec<Way>> {
    let budget = (0.05f32..=1.0, 0.05f32..=1.0, prop::sample::select(vec![Scope::Local, Scope::Global]));
    let how = (1usize..4, 1usize..9, any::<bool>(), prop::option::of(0.1f32..0.9), 0u64..5);
    let sparse = (budget, how).prop_map(|((heads, neurons, scope), (every, kv_flush, relu_skip, gate_skip, seed))| {
        Sparse { heads, neurons, scope, every, kv_flush, relu_skip, gate_skip, seed }
    });
    let way = (1usize..6, prop::option::weighted(0.85, sparse)).prop_map(|(prompt, sparse)| Way { prompt, sparse });
    // Up to 10: more than are taken at once.
    prop_oneof![5 => prop::collection::vec(way.clone(), 1..6), 1 => prop::collection::vec(way, 7..11)]
}

/// Thresholds that skip the fraction asked for of gates between 0 and 0.5.
fn thresholds(loaded: &Loaded) -> GateThresholds {
    let config = loaded.engine.config();
    let fractions: Vec<f32> = (1..=9).map(|tenths| tenths as f32 / 10.0).collect();
    GateThresholds {
        model: ModelIdentity::of(loaded.engine.model()),
        statistic: GateStatistic::Plain,
        data: "made up".to_owned(),
        tokens: 1,
        limits: (0..config.layers).flat_map(|_| fractions.iter().map(|fraction| 0.5 * fraction)).collect(),
        fractions,
        scales: None,
    }
}

impl Way {
    fn session(&self, loaded: &Loaded) -> Session {
        let config = loaded.engine.config();
        let mut session = loaded.engine.session(SessionOptions::default()).unwrap();
        session.prefill(&(0..self.prompt as u32).map(|i| (7 * i + 3) % 61).collect::<Vec<_>>()).unwrap();
        if let Some(way) = &self.sparse {
            let budget = Budget { heads: way.heads, neurons: way.neurons, scope: way.scope };
            let options = SparseOptions { relu_skip: way.relu_skip, kv_flush: way.kv_flush };
            let sparsity = sparsity(loaded, way.seed, budget, Refresh::Every(way.every), options);
            session
                .set_sparsity(Some(match way.gate_skip.filter(|_| config.gated) {
                    Some(fraction) => {
                        sparsity.with_gate_skip(Arc::new(thresholds(loaded).at(fraction, config).unwrap()))
                    }
                    None => sparsity,
                }))
                .unwrap();
        }
        session
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Units of all layers that any of the plans keeps.
fn union<'a>(plans: impl Iterator<Item = &'a Plan>) -> (u64, u64) {
    let (mut heads, mut neurons) = (BTreeSet::new(), BTreeSet::new());
    for plan in plans {
        for (layer, plan) in plan.layers.iter().enumerate() {
            heads.extend(plan.heads.iter().map(|head| (layer, *head)));
            neurons.extend(plan.neurons.iter().map(|neuron| (layer, *neuron)));
        }
    }
    (heads.len() as u64, neurons.len() as u64)
}

fn step(loaded: &Loaded, sessions: &mut [Session], tokens: &[u32]) -> Result<BatchStep, Error> {
    loaded.engine.step_batch(&mut sessions.iter_mut().collect::<Vec<_>>(), tokens)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Bit for bit, whatever is together: policies, budgets, refresh, flushes, skips, dense sequences, lengths; with what each
    /// reads counted as it would be alone, and what is read together counted as the union.
    #[test]
    fn sequences_together_are_those_alone(kind in kinds(), ways in ways(), steps in 1usize..12, seed in any::<u64>()) {
        let all = isas();
        let isa = all[seed as usize % all.len()];
        let loaded = load(&kind.config(), kind.dtype, isa, seed);
        let mut together: Vec<Session> = ways.iter().map(|way| way.session(&loaded)).collect();
        let mut alone: Vec<Session> = ways.iter().map(|way| way.session(&loaded)).collect();
        for i in 0..steps {
            let tokens: Vec<u32> = (0..ways.len()).map(|s| ((11 * i + 5 * s + 1) % 61) as u32).collect();
            let read = step(&loaded, &mut together, &tokens).unwrap();
            let mut sum = 0;
            for ((one, same), &token) in alone.iter_mut().zip(&together).zip(&tokens) {
                one.step(token).unwrap();
                prop_assert_eq!(bits(one.logits()), bits(same.logits()), "{:?} {}", kind, isa);
                prop_assert_eq!(one.tokens(), same.tokens());
                prop_assert_eq!(one.step_bytes(), same.step_bytes());
                prop_assert_eq!(one.sparsity().map(Sparsity::count), same.sparsity().map(Sparsity::count));
                prop_assert_eq!(one.sparsity().map(Sparsity::plan), same.sparsity().map(Sparsity::plan));
                sum += one.step_bytes();
            }
            prop_assert_eq!((read.sequences, read.bytes_alone), (ways.len(), sum));
            prop_assert!(read.bytes <= sum, "{} bytes together, {} alone", read.bytes, sum);
            prop_assert!(alone.iter().all(|one| one.step_bytes() <= read.bytes));
            let plans: Vec<&Plan> = together.iter().filter_map(|s| s.sparsity()).map(Sparsity::plan).collect();
            if plans.len() == ways.len() && ways.len() <= 8 {
                prop_assert_eq!((read.heads, read.neurons), union(plans.into_iter()));
                let kept = read.kept();
                prop_assert!(kept.heads > 0.0 && kept.heads <= 1.0 && kept.neurons > 0.0 && kept.neurons <= 1.0);
            }
        }
        // What comes later finds everything in its place.
        for (one, same) in alone.iter_mut().zip(&mut together) {
            one.set_sparsity(None).unwrap();
            same.set_sparsity(None).unwrap();
            prop_assert_eq!(bits(one.step(7).unwrap()), bits(same.step(7).unwrap()));
        }
    }
}

fn kind(layers: usize) -> Kind {
    Kind {
        opt: false,
        kv_heads: 2,
        group: 2,
        head_dim: 8,
        hidden: 40,
        ffn: 200,
        layers,
        relu: false,
        post_norm: false,
        window: false,
        dtype: DType::BF16,
    }
}

fn loaded() -> Loaded {
    load(&kind(3).config(), DType::BF16, *isas().last().unwrap(), 21)
}

fn dense_sparsity(loaded: &Loaded) -> Sparsity {
    let policy = Box::new(Dense);
    let (packed, config) = (Arc::clone(&loaded.packed), loaded.engine.config());
    Sparsity::new(packed, policy, Refresh::EveryToken, config, SparseOptions::default())
}

/// Sequences with the same plan read what one of them reads, but for keys, values and embeddings.
#[test]
fn the_same_plan_is_read_once() {
    let loaded = loaded();
    let way = Sparse {
        heads: 0.5,
        neurons: 0.5,
        scope: Scope::Local,
        every: 1,
        kv_flush: 64,
        relu_skip: true,
        gate_skip: None,
        seed: 1,
    };
    let way = Way { prompt: 3, sparse: Some(way) };
    let mut sessions: Vec<Session> = (0..4).map(|_| way.session(&loaded)).collect();
    let read = step(&loaded, &mut sessions, &[5, 5, 5, 5]).unwrap();
    let one = sessions[0].step_bytes();
    assert_eq!(read.bytes_alone, 4 * one);
    let own = sessions[0].sparsity().unwrap().count().cache + loaded.engine.model().active_bytes(3).embedding;
    assert_eq!(read.bytes, one + 3 * own);
    assert_eq!(read.kept().neurons, (1.0 + 0.5 + 0.5) / 3.0);
}

/// A policy that fails at its second decision.
struct Failing;

impl Policy for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn stations(&self) -> &[Station] {
        &[Station::AfterLayer(1)]
    }

    fn decide(&mut self, _: PolicyInput<'_>, _: &mut Plan) -> Result<(), Error> {
        Err(Error::NoTokens)
    }

    fn bytes_per_decision(&self) -> u64 {
        0
    }

    fn fork(&self) -> Box<dyn Policy> {
        Box::new(Failing)
    }
}

#[test]
fn a_batch_that_fails_changes_no_session() {
    let loaded = loaded();
    let session = |policy: Option<Box<dyn Policy>>| {
        let mut session = loaded.engine.session(SessionOptions { context: Some(8) }).unwrap();
        session.prefill(&[1, 2, 3]).unwrap();
        let sparsity = policy.map(|policy| {
            let (packed, config) = (Arc::clone(&loaded.packed), loaded.engine.config());
            Sparsity::new(packed, policy, Refresh::EveryToken, config, SparseOptions::default())
        });
        session.set_sparsity(sparsity).unwrap();
        session
    };
    let mut sessions = [session(Some(Box::new(Dense))), session(None), session(Some(Box::new(Failing)))];
    for (tokens, message) in [
        (&[4, 5][..], "2 tokens were given for 3 sessions; a batch takes one token of each"),
        (&[4, 61, 6], "token id 61 at index 0 is out of range: the model's vocabulary has 61 entries (0 to 60)"),
        (
            &[4, 5, 6],
            "no tokens were given; a prompt needs at least one (an empty text has none unless the tokenizer adds one)",
        ),
    ] {
        assert_eq!(step(&loaded, &mut sessions, tokens).unwrap_err().to_string(), message);
        assert!(sessions.iter().all(|session| session.tokens() == [1, 2, 3]));
    }
    let mut fresh = [session(Some(Box::new(Dense))), session(None)];
    step(&loaded, &mut sessions[..2], &[4, 5]).unwrap();
    step(&loaded, &mut fresh, &[4, 5]).unwrap();
    for (session, fresh) in sessions.iter().zip(&fresh) {
        assert_eq!(bits(session.logits()), bits(fresh.logits()));
    }
    assert_eq!(step(&loaded, &mut [], &[]).unwrap(), BatchStep::default());
}

#[test]
fn sessions_that_do_not_belong_together_are_refused() {
    let (a, b) = (loaded(), loaded());
    let session = |loaded: &Loaded, packed: &Loaded| {
        let mut session = loaded.engine.session(SessionOptions::default()).unwrap();
        session.set_sparsity(Some(dense_sparsity(packed))).unwrap();
        session
    };
    let ending = "sessions that are stepped together share one engine and one packed model";
    let refused = step(&a, &mut [session(&a, &a), session(&b, &b)], &[1, 2]).unwrap_err().to_string();
    assert_eq!(refused, format!("session 1 of the batch is of another engine; {ending}"));
    let refused = step(&a, &mut [session(&a, &a), session(&a, &b)], &[1, 2]).unwrap_err().to_string();
    assert_eq!(refused, format!("session 1 of the batch runs over other packed weights; {ending}"));
}

/// Threads and the order of a batch change no bit.
#[test]
fn the_order_of_a_batch_changes_nothing() {
    let loaded = loaded();
    let way = |i: u64| Way {
        prompt: 2 + i as usize,
        sparse: (i > 0).then_some(Sparse {
            heads: 0.5,
            neurons: 0.3,
            scope: Scope::Global,
            every: 1,
            kv_flush: 5,
            relu_skip: true,
            gate_skip: None,
            seed: i,
        }),
    };
    let run = |order: &[u64]| {
        let mut sessions: Vec<Session> = order.iter().map(|&i| way(i).session(&loaded)).collect();
        for token in 0..10 {
            step(&loaded, &mut sessions, &vec![token; order.len()]).unwrap();
        }
        let mut all: Vec<_> = order.iter().zip(&sessions).map(|(&i, session)| (i, bits(session.logits()))).collect();
        all.sort();
        all
    };
    assert_eq!(run(&[0, 1, 2, 3]), run(&[3, 1, 0, 2]));
}

/// Texts that are generated together are those generated alone, whenever each of them ends.
#[test]
fn completions_together_are_those_alone() {
    let checkpoint = Checkpoint::embedded().unwrap();
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("tiny.shadow.safetensors");
    let packed = PackedCheckpoint::open_or_pack_at(&file, &checkpoint, &()).unwrap();
    let engine = Engine::load_packed(&packed, EngineOptions::default()).unwrap();
    let packed = Arc::clone(engine.packed().unwrap());
    let prompts = ["Once upon a time", "The captain looked at the sea and", "It was"];
    let options = |i: usize| CompletionOptions { max_tokens: Some([20, 5, 33][i]), ..CompletionOptions::default() };
    let ids = |i: usize| engine.tokenizer().unwrap().encode(prompts[i], true).unwrap();
    let session = |i: usize| {
        let mut session = engine.session(SessionOptions::default()).unwrap();
        let budget = Budget::new(1.0, [1.0, 0.9, 0.5][i], Scope::Local).unwrap();
        let policy = Box::new(Random::new(3, budget, engine.config()).unwrap());
        let (packed, config) = (Arc::clone(&packed), engine.config());
        let sparsity = Sparsity::new(packed, policy, Refresh::EveryToken, config, SparseOptions::default());
        session.set_sparsity((i > 0).then_some(sparsity)).unwrap();
        session
    };
    let mut sessions = [0, 1, 2].map(session);
    let start = |(i, session)| Completion::start(session, &ids(i), &options(i)).unwrap();
    let mut completions: Vec<_> = sessions.iter_mut().enumerate().map(start).collect();
    let mut texts = [const { String::new() }; 3];
    let mut steps = 0;
    while let Some(step) = Completion::next_tokens(&mut completions, &mut |i, piece| {
        texts[i].push_str(piece.text);
        Ok(())
    })
    .unwrap()
    {
        assert_eq!(step.sequences, if steps == 0 { 0 } else { [20, 5, 33].iter().filter(|&&n| n > steps).count() });
        steps += 1;
    }
    assert_eq!(steps, 33);
    for (i, completion) in completions.iter_mut().enumerate() {
        texts[i].push_str(completion.finish_text());
        let mut session = session(i);
        let mut alone = Completion::start(&mut session, &ids(i), &options(i)).unwrap();
        let mut text = String::new();
        while let Some(piece) = alone.next_token().unwrap() {
            text.push_str(piece.text);
        }
        text.push_str(alone.finish_text());
        assert_eq!((completion.tokens(), &texts[i]), (alone.tokens(), &text));
        assert_eq!(completion.stop_reason(), Some(StopReason::MaxTokens));
        let (together, alone) = (completion.timing(), alone.timing());
        assert_eq!((together.decode_steps, together.decode_bytes), (alone.decode_steps, alone.decode_bytes));
    }
}
