//! Evaluation by masking against what it stands for: decoding the same tokens sparsely, step by step.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/models.rs"]
mod models;

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::Arc;

use proptest::prelude::*;
use shadowllm::eval::tasks::{Request, likelihoods};
use shadowllm::eval::{
    Chooser, Decision, Importance, Job, Masked, Masking, PolicyMaker, Windows, log_likelihood, perplexity,
    perplexity_masked,
};
use shadowllm::generate::Sparsity;
use shadowllm::kernels::CpuOptions;
use shadowllm::model::random::random_checkpoint;
use shadowllm::model::{Probe, Rows, SparseOptions};
use shadowllm::sparsity::predictor::{
    HiddenActivation, Normalization, PredictorInput, Training, WeightFormat, random_predictor, write_predictor,
};
use shadowllm::sparsity::{
    Budget, DejaVu, Dense, Fixed, GateCalibration, GateSkip, ModelIdentity, Oracle, Plan, Policy, PolicyInput,
    Predictor, PredictorInfo, Random, Refresh, Scope, Scores, Shadow, Station, Units, calibrate_gate,
};
use shadowllm::weights::{DType, ModelConfig};
use shadowllm::{Engine, EngineOptions, SessionOptions};

use models::{Kind, Mask, kinds, load};
use support::{isas, largest_difference};

/// Who chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Dense,
    Static,
    Random,
    Oracle,
    Shadow { stations: usize, contexts: bool },
    Dejavu,
}

fn anyone() -> impl Strategy<Value = Who> {
    prop_oneof![
        Just(Who::Dense),
        Just(Who::Static),
        Just(Who::Random),
        Just(Who::Oracle),
        (1usize..3, any::<bool>()).prop_map(|(stations, contexts)| Who::Shadow { stations, contexts }),
        Just(Who::Dejavu),
    ]
}

fn scores(units: Units, seed: u64) -> Scores {
    let value =
        |i: usize| (seed.wrapping_mul(97).wrapping_add(i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32;
    Scores {
        heads: (0..units.layers * units.heads).map(value).collect(),
        neurons: (0..units.layers * units.neurons).map(|i| value(i + 5000)).collect(),
    }
}

fn predictor(engine: &Engine, stations: Vec<usize>, contexts: bool, seed: u64) -> Arc<Predictor> {
    let model = ModelIdentity::of(engine.model());
    let info = PredictorInfo {
        model: model.clone(),
        stations,
        input: if contexts { PredictorInput::Contexts } else { PredictorInput::Residual },
        normalization: Normalization::MinMax,
        activation: HiddenActivation::Relu,
        criterion: "test".to_owned(),
        training: Training::default(),
        validated: Vec::new(),
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("predictor.safetensors");
    let format = [WeightFormat::F32, WeightFormat::F16, WeightFormat::Int8][seed as usize % 3];
    write_predictor(&file, &info, &random_predictor(&info, engine.config(), 6, 8, seed), format).unwrap();
    Arc::new(Predictor::open(&file, engine.config(), &model).unwrap())
}

/// What makes the policies of `who`; those of the oracle are made from the scores of its own.
fn maker(who: Who, engine: &Engine, budget: Budget, seed: u64) -> PolicyMaker {
    let (config, units) = (engine.config().clone(), Units::from(engine.config()));
    // Without a second layer there is nothing to predict.
    let layers = units.layers;
    match who {
        Who::Dense => Box::new(|_| Ok(Box::new(Dense))),
        Who::Static => Box::new(move |_| Ok(Box::new(Fixed::new(&scores(units, seed), &budget, units)?))),
        Who::Shadow { stations, contexts } if layers > 1 => {
            let stations = (0..layers - 1).step_by(layers.div_ceil(stations)).collect();
            let predictor = predictor(engine, stations, contexts, seed);
            Box::new(move |_| Ok(Box::new(Shadow::new(Arc::clone(&predictor), budget)?)))
        }
        Who::Dejavu if layers > 1 => {
            let predictor = predictor(engine, (0..layers - 1).collect(), false, seed);
            Box::new(move |_| Ok(Box::new(DejaVu::new(Arc::clone(&predictor), budget)?)))
        }
        _ => Box::new(move |number| Ok(Box::new(Random::new(seed.wrapping_add(number), budget, &config)?))),
    }
}

/// Magnitudes by their definition, from a dense pass: scores of every token.
struct Sizes {
    units: Units,
    /// Columns of the second FFN matrix, `[L][F]`, as norms.
    norms: Vec<Vec<f32>>,
    scores: Vec<Scores>,
}

impl Sizes {
    fn of(engine: &Engine, tokens: &[u32]) -> Vec<Scores> {
        let units = Units::from(engine.config());
        let norms = engine.model().layers.iter().map(|layer| {
            let second = match &layer.ffn {
                shadowllm::model::Ffn::Plain { fc2, .. } => fc2,
                shadowllm::model::Ffn::Gated { down, .. } => down,
            };
            let squares = second.weight.input_squares(engine.cpu());
            squares.into_iter().map(|sum| sum.sqrt() as f32).collect()
        });
        let mut probe = Sizes { units, norms: norms.collect(), scores: vec![Scores::zeros(units); tokens.len()] };
        let mut session = engine.session(SessionOptions::default()).unwrap();
        session.score_with(tokens, tokens.len(), &mut probe, &mut |_, _| ControlFlow::Continue(())).unwrap();
        probe.scores
    }
}

impl Probe for Sizes {
    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        let width = values.len() / rows.count;
        for (scores, values) in self.scores.iter_mut().zip(values.chunks_exact(width)) {
            for (head, context) in values.chunks_exact(width / self.units.heads).enumerate() {
                scores.heads[rows.layer * self.units.heads + head] = context.iter().map(|v| v * v).sum();
            }
        }
    }

    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        for (scores, values) in self.scores.iter_mut().zip(values.chunks_exact(self.units.neurons)) {
            for (i, (z, norm)) in values.iter().zip(&self.norms[rows.layer]).enumerate() {
                scores.neurons[rows.layer * self.units.neurons + i] = z.abs() * norm;
            }
        }
    }
}

/// The oracle's policy from scores that are known.
fn oracle_of(all: Vec<Scores>, budget: Budget, units: Units) -> Box<dyn Policy> {
    let all = Arc::new(all);
    let source = move |position: usize, scores: &mut Scores| {
        scores.clone_from(&all[position]);
        Ok(())
    };
    Box::new(Oracle::new(source, budget, units).unwrap())
}

fn chooser(who: Who, engine: &Engine, budget: Budget, seed: u64) -> Chooser {
    match who {
        Who::Oracle => Chooser::Oracle { importance: Importance::Magnitude, budget },
        _ => Chooser::Policy(maker(who, engine, budget, seed)),
    }
}

fn one_policy(who: Who, engine: &Engine, budget: Budget, seed: u64, tokens: &[u32]) -> Box<dyn Policy> {
    match who {
        Who::Oracle => oracle_of(Sizes::of(engine, tokens), budget, engine.config().into()),
        _ => maker(who, engine, budget, seed)(0).unwrap(),
    }
}

/// All logits and plans of a text, run in parts.
fn masked_run(masked: &mut Masked, tokens: &[u32], cut: usize) -> (Vec<Vec<f32>>, Vec<Plan>) {
    let (mut logits, mut plans) = (Vec::new(), Vec::new());
    let mut text = masked.text(0, tokens.len()).unwrap();
    for part in [&tokens[..cut], &tokens[cut..]] {
        let mut go_on = text.fork();
        let mut each = |_: usize, _: usize, row: &[f32]| {
            logits.push(row.to_vec());
            ControlFlow::Continue(())
        };
        masked.run(&mut [Job { text: &mut go_on, tokens: part, from: 0 }], &mut each).unwrap();
        plans.extend((0..part.len()).map(|row| masked.masks().plan(row)));
        text = go_on;
    }
    assert_eq!(text.len(), tokens.len());
    (logits, plans)
}

/// Relative to the largest logit.
fn off(got: &[f32], want: &[f32]) -> f32 {
    largest_difference(got, want) / want.iter().fold(1.0f32, |a, b| a.max(b.abs()))
}

fn gate_skip(engine: &Engine, fraction: f32) -> Arc<GateSkip> {
    let text: Vec<u32> = (0..300u32).map(|i| (i * i + i / 7) % 61).collect();
    let options = GateCalibration { window: 50, data: "numbers".to_owned(), ..GateCalibration::default() };
    let continued = &mut |_, _| ControlFlow::Continue(());
    let thresholds = calibrate_gate(engine.cpu(), engine.model(), &text, &options, continued).unwrap();
    Arc::new(thresholds.at(fraction, engine.config()).unwrap())
}

/// Products of many rows differ from those of one in their last bits, so scores may, and units that are all but equally important
/// may change places; from there on two texts differ. What comes before is compared.
#[test]
fn masked_evaluation_is_sparse_decoding() {
    let seen = Cell::new([0; 2]);
    let budgets = (0.05f32..=1.0, 0.05f32..=1.0, any::<bool>());
    let how = (anyone(), budgets, 0usize..4, 1usize..16, prop::option::of(0.1f32..0.9), any::<u64>());
    proptest!(ProptestConfig::with_cases(400), |(kind in kinds(), how in how)| {
        let (who, (heads, neurons, global), prefix, cut, skip, seed) = how;
        let all = isas();
        let loaded = load(&kind.config(), kind.dtype, all[seed as usize % all.len()], seed);
        let engine = &loaded.engine;
        let scope = if global { Scope::Global } else { Scope::Local };
        let budget = Budget { heads, neurons, scope };
        let tokens: Vec<u32> = (0..16).map(|i| ((i * 7 + seed as usize % 50) % 61) as u32).collect();
        // With ReLU what gate skip leaves out is not all that decoding counts.
        let gate = skip.filter(|_| engine.config().gated && !kind.relu).map(|fraction| gate_skip(engine, fraction));

        let masking = Masking { decision: Decision::Causal, dense_prefix: prefix, gate: gate.clone() };
        let mut masked = Masked::new(engine, chooser(who, engine, budget, seed), masking).unwrap();
        let (got, plans) = masked_run(&mut masked, &tokens, cut);

        let policy = one_policy(who, engine, budget, seed, &tokens);
        let options = SparseOptions { kv_flush: 5, ..SparseOptions::default() };
        let config = engine.config();
        let sparsity = Sparsity::new(Arc::clone(&loaded.packed), policy, Refresh::EveryToken, config, options);
        let sparsity = match &gate {
            Some(gate) => sparsity.with_gate_skip(Arc::clone(gate)),
            None => sparsity,
        };
        let mut session = engine.session(SessionOptions::default()).unwrap();
        if prefix > 0 {
            session.prefill(&tokens[..prefix]).unwrap();
        }
        session.set_sparsity(Some(sparsity)).unwrap();
        let (mut compared, mut kept, mut active) = (0, 0, 0);
        let mut failed = None;
        for at in prefix..tokens.len() {
            let want = session.step(tokens[at]).unwrap().to_vec();
            let (plan, count) = (session.sparsity().unwrap().plan(), session.sparsity().unwrap().count());
            if plan != &plans[at] {
                break;
            }
            kept += count.neurons;
            active += count.neurons_active;
            let worst = off(&got[at], &want);
            if worst >= 1e-4 {
                failed = Some((at, worst));
                break;
            }
            compared += 1;
        }
        let whole = compared == tokens.len() - prefix;
        if whole {
            let units = (config.layers * config.ffn * compared) as f64;
            prop_assert_eq!(masked.kept().neurons, kept as f64 / units);
        }
        if let Some(share) = masked.gate_skipped() && whole {
            let skipped = (share * kept as f64).round() as u64;
            // A gate that is all but on its threshold may fall on either side.
            prop_assert!(skipped.abs_diff(kept - active) <= 1, "{skipped} skipped instead of {}", kept - active);
        }
        // With gate skip such a gate may be the cause; it is rare.
        prop_assert!(failed.is_none() || gate.is_some(), "{who:?}, {kind:?}: token {failed:?}");
        let [sum, of] = seen.get();
        seen.set([sum + compared, of + tokens.len() - prefix]);
    });
    let [compared, of] = seen.get();
    assert!(100 * compared > 95 * of, "only {compared} of {of} tokens could be compared");
}

/// The last row's input at a station, and what it takes to let a plan hold for all rows.
struct Watched<'a> {
    mask: Mask<'a>,
    layer: usize,
    contexts: Vec<f32>,
    residual: Vec<f32>,
}

impl Probe for Watched<'_> {
    fn residual(&mut self, rows: Rows, values: &mut [f32]) {
        if rows.layer == self.layer + 1 {
            self.residual = values[values.len() - values.len() / rows.count..].to_vec();
        }
    }

    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        self.mask.contexts(rows, values);
        if rows.layer == self.layer {
            self.contexts = values[values.len() - values.len() / rows.count..].to_vec();
        }
    }

    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        self.mask.inners(rows, values);
    }
}

/// Decision sequence by its definition: up to each station the text runs with the plan as it is; there the last token decides; at
/// the end the text runs from scratch.
fn sequence(engine: &Engine, mut policy: Box<dyn Policy>, tokens: &[u32], prefix: usize) -> (Vec<Vec<f32>>, Plan) {
    let config = engine.config();
    let mut plan = Plan::dense(config);
    let rows =
        |plan: &Plan| (0..tokens.len()).map(|row| (row >= prefix).then(|| plan.clone())).collect::<Vec<Option<Plan>>>();
    for station in policy.stations().to_vec() {
        let plans = rows(&plan);
        let mask = Mask { plans: &plans, heads: config.heads, neurons: config.ffn };
        let layer = if let Station::AfterLayer(layer) = station { layer } else { usize::MAX - 1 };
        let mut probe = Watched { mask, layer, contexts: Vec::new(), residual: Vec::new() };
        let mut session = engine.session(SessionOptions::default()).unwrap();
        session.score_with(tokens, tokens.len(), &mut probe, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let position = if station == Station::Once { prefix } else { tokens.len() - 1 };
        let (residual, contexts) = (&probe.residual[..], &probe.contexts[..]);
        policy.decide(PolicyInput { station, position, residual, contexts, cpu: engine.cpu() }, &mut plan).unwrap();
    }
    let plans = rows(&plan);
    let mut mask = Mask { plans: &plans, heads: config.heads, neurons: config.ffn };
    let mut logits = Vec::new();
    let each = &mut |_: usize, row: &[f32]| {
        logits.push(row.to_vec());
        ControlFlow::Continue(())
    };
    engine.session(SessionOptions::default()).unwrap().score_with(tokens, 0, &mut mask, each).unwrap();
    (logits, plan)
}

#[test]
fn the_last_token_decides_for_the_sequence() {
    let compared = Cell::new([0; 2]);
    let budgets = (0.05f32..=0.9, 0.05f32..=0.9, any::<bool>());
    proptest!(ProptestConfig::with_cases(200), |(
        kind in kinds(), who in anyone(), (heads, neurons, global) in budgets, prefix in 0usize..3, seed in any::<u64>(),
    )| {
        let loaded = load(&kind.config(), kind.dtype, *isas().last().unwrap(), seed);
        let engine = &loaded.engine;
        let budget = Budget { heads, neurons, scope: if global { Scope::Global } else { Scope::Local } };
        let tokens: Vec<u32> = (0..14).map(|i| ((i * 11 + seed as usize % 50) % 61) as u32).collect();
        let masking = Masking { decision: Decision::Sequence, dense_prefix: prefix, gate: None };
        let masked = Masked::new(engine, chooser(who, engine, budget, seed), masking);
        if let Who::Dense | Who::Static = who {
            let name = if who == Who::Dense { "dense" } else { "static" };
            prop_assert_eq!(
                masked.unwrap_err().to_string(),
                format!(
                    "decision sequence makes one plan of a text from its last token, but the plans of policy {name} with this \
                     budget depend on no token; use decision causal"
                )
            );
            return Ok(());
        }
        let mut masked = masked.unwrap();
        let mut text = masked.text(0, tokens.len()).unwrap();
        let mut got = Vec::new();
        let each = &mut |_: usize, _: usize, row: &[f32]| {
            got.push(row.to_vec());
            ControlFlow::Continue(())
        };
        masked.run(&mut [Job { text: &mut text, tokens: &tokens, from: 0 }], each).unwrap();
        let policy = one_policy(who, engine, budget, seed, &tokens);
        let (want, plan) = sequence(engine, policy, &tokens, prefix);
        let [sum, of] = compared.get();
        let same = masked.masks().plan(tokens.len() - 1) == plan;
        compared.set([sum + usize::from(same), of + 1]);
        if same {
            for row in prefix..tokens.len() {
                prop_assert_eq!(&masked.masks().plan(row), &plan);
            }
            for (got, want) in got.iter().zip(&want) {
                prop_assert!(off(got, want) < 1e-4, "{who:?}, {kind:?}");
            }
        }
    });
    let [same, of] = compared.get();
    assert!(100 * same > 95 * of, "only {same} of {of} plans are the same");
}

fn small() -> Kind {
    Kind {
        opt: false,
        kv_heads: 2,
        group: 2,
        head_dim: 8,
        hidden: 24,
        ffn: 70,
        layers: 4,
        relu: false,
        post_norm: false,
        window: false,
        dtype: DType::BF16,
    }
}

/// Neither the number of threads nor what else shares a pass changes a decision; threads change no bit.
#[test]
fn threads_change_nothing() {
    let mut seen: Option<Vec<Vec<u32>>> = None;
    for threads in [1, 2, 3] {
        let checkpoint = random_checkpoint(small().config(), DType::BF16, 3).unwrap();
        let cpu = CpuOptions { threads: Some(threads), ..CpuOptions::default() };
        let engine = Engine::load(&checkpoint, EngineOptions { cpu }).unwrap();
        let budget = Budget { heads: 0.5, neurons: 0.4, scope: Scope::Global };
        let mut all = Vec::new();
        for who in [Who::Static, Who::Random, Who::Oracle, Who::Shadow { stations: 2, contexts: false }, Who::Dejavu] {
            let gate = Some(gate_skip(&engine, 0.3));
            let masking = Masking { gate, ..Masking::default() };
            let mut masked = Masked::new(&engine, chooser(who, &engine, budget, 4), masking).unwrap();
            let texts: [Vec<u32>; 2] = [5, 7].map(|step| (0..40).map(|i| i * step % 61).collect());
            let (mut a, mut b) = (masked.text(0, 40).unwrap(), masked.text(1, 40).unwrap());
            let mut jobs =
                [Job { text: &mut a, tokens: &texts[0], from: 30 }, Job { text: &mut b, tokens: &texts[1], from: 20 }];
            let mut order = Vec::new();
            let each = &mut |job: usize, index: usize, row: &[f32]| {
                order.push((job, index));
                all.push(row.iter().map(|v| v.to_bits()).collect());
                ControlFlow::Continue(())
            };
            masked.run(&mut jobs, each).unwrap();
            assert_eq!(order, (30..40).map(|i| (0, i)).chain((20..40).map(|i| (1, i))).collect::<Vec<_>>());
        }
        assert!(seen.as_ref().is_none_or(|seen| *seen == all), "{threads} threads");
        seen = Some(all);
    }
}

/// Texts longer than a pass: what decides is the text, not how it is cut.
#[test]
fn long_texts_are_cut_into_passes() {
    let json = serde_json::json!({
        "model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 70, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2000, "rms_norm_eps": 1e-5,
    });
    let config = ModelConfig::from_json(json.to_string().as_bytes()).unwrap();
    let engine = Engine::load(&random_checkpoint(config, DType::F32, 8).unwrap(), EngineOptions::default()).unwrap();
    let tokens: Vec<u32> = (0..1300).map(|i| (i * i + i / 5) % 61).collect();
    let budget = Budget { heads: 0.5, neurons: 0.5, scope: Scope::Local };
    let windows = Windows { size: 650, count: None };
    let progress = &mut |_: &_| ControlFlow::Continue(());
    let dense = perplexity(&engine, &tokens, windows, progress).unwrap();
    for (who, decision) in [
        (Who::Dense, Decision::Causal),
        (Who::Random, Decision::Causal),
        (Who::Oracle, Decision::Causal),
        (Who::Shadow { stations: 1, contexts: true }, Decision::Causal),
        (Who::Shadow { stations: 1, contexts: true }, Decision::Sequence),
        (Who::Oracle, Decision::Sequence),
    ] {
        let masking = Masking { decision, ..Masking::default() };
        let mut masked = Masked::new(&engine, chooser(who, &engine, budget, 4), masking).unwrap();
        let result = perplexity_masked(&mut masked, &tokens, windows, progress).unwrap();
        if who == Who::Dense {
            assert_eq!(result, dense, "the same passes, the same bits");
            continue;
        }
        // Many small jobs are the same text, to rounding.
        let window = &tokens[650..];
        let mut nll = 0.0;
        let mut text = masked.text(1, window.len()).unwrap();
        let parts = if decision == Decision::Causal { 100 } else { window.len() };
        for (start, part) in (0..).step_by(parts).zip(window.chunks(parts)) {
            let each = &mut |_: usize, index: usize, logits: &[f32]| {
                if let Some(&next) = window.get(start + index + 1) {
                    nll += shadowllm::kernels::log_sum_exp(engine.cpu(), logits) - f64::from(logits[next as usize]);
                }
                ControlFlow::Continue(())
            };
            masked.run(&mut [Job { text: &mut text, tokens: part, from: 0 }], each).unwrap();
        }
        let off = (nll / result.windows[1].nll - 1.0).abs();
        assert!(off < 1e-3, "{who:?}, {decision}: off by {off}");
        assert_ne!(result.nll, dense.nll);
    }
}

/// Choices share the run of what they have in common; the likelihoods are those of every choice alone.
#[test]
fn choices_share_their_context() {
    let loaded = load(&small().config(), DType::F32, *isas().last().unwrap(), 5);
    let engine = &loaded.engine;
    let request = |context: &[u32], continuation: &[u32]| Request {
        tokens: context.iter().chain(continuation).copied().collect(),
        context: context.len(),
    };
    let long: Vec<u32> = (0..120).map(|i| i * 7 % 61).collect();
    let mut questions = vec![
        vec![request(&[1, 2, 3, 4], &[5, 6]), request(&[1, 2, 3, 4], &[5, 7, 8]), request(&[1, 2, 3, 4], &[9])],
        // Contexts that differ, one token, no beginning in common.
        vec![request(&[1, 2, 3], &[4, 5]), request(&[1, 2, 9, 9], &[4, 5])],
        vec![request(&[7], &[8]), request(&[7], &[9])],
        vec![request(&[7, 8], &[8]), request(&[9, 8], &[9])],
        vec![request(&long, &[8, 9]), request(&long, &long[..40])],
    ];
    // More than one batch.
    questions.extend(vec![questions[4].clone(); 15]);
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let budget = Budget { heads: 0.5, neurons: 0.4, scope: Scope::Local };
    for (who, decision) in [
        (Who::Dense, Decision::Causal),
        (Who::Static, Decision::Causal),
        (Who::Oracle, Decision::Causal),
        (Who::Shadow { stations: 2, contexts: false }, Decision::Causal),
        (Who::Random, Decision::Causal),
        (Who::Oracle, Decision::Sequence),
        (Who::Dejavu, Decision::Sequence),
    ] {
        let masked = || {
            let masking = Masking { decision, ..Masking::default() };
            Masked::new(engine, chooser(who, engine, budget, 6), masking).unwrap()
        };
        let mut progress = Vec::new();
        let found = likelihoods(&mut masked(), &questions, &mut |done| {
            progress.push(done);
            ControlFlow::Continue(())
        });
        let found = found.unwrap();
        assert!(progress.len() > 1 && progress.last() == Some(&questions.len()), "{progress:?}");
        assert_eq!(found.len(), questions.len());
        for (number, (question, found)) in questions.iter().zip(&found).enumerate() {
            for (request, found) in question.iter().zip(found) {
                let (context, continuation) = request.tokens.split_at(request.context);
                let want = match who {
                    Who::Dense => log_likelihood(&mut session, context, continuation).unwrap().log_likelihood,
                    // Its stream is that of the question's number.
                    Who::Random => {
                        let mut masked = masked();
                        let mut text = masked.text(number as u64, 200).unwrap();
                        alone(engine, &mut masked, &mut text, request)
                    }
                    _ => {
                        let mut masked = masked();
                        let mut text = masked.text(0, 200).unwrap();
                        alone(engine, &mut masked, &mut text, request)
                    }
                };
                let off = (found.log_likelihood - want).abs();
                assert!(
                    off < 1e-3,
                    "{who:?}, {decision}, question {number}: {} instead of {want}",
                    found.log_likelihood
                );
                assert_eq!(found.tokens, continuation.len());
            }
        }
    }
    let mut dense = Masked::new(engine, chooser(Who::Dense, engine, budget, 0), Masking::default()).unwrap();
    let go_on = &mut |_| ControlFlow::Continue(());
    for bad in [request(&[], &[1]), request(&[1], &[])] {
        let error = likelihoods(&mut dense, &[vec![bad]], go_on).unwrap_err();
        assert!(matches!(error, shadowllm::Error::NoTokens), "{error}");
    }
    let stopped = likelihoods(&mut dense, &questions, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(shadowllm::Error::Interrupted)));
}

/// One request from its beginning.
fn alone(engine: &Engine, masked: &mut Masked, text: &mut shadowllm::eval::MaskedText, request: &Request) -> f64 {
    let mut sum = 0.0;
    let tokens = &request.tokens[..request.tokens.len() - 1];
    let each = &mut |_: usize, index: usize, logits: &[f32]| {
        let next = request.tokens[index + 1] as usize;
        sum += f64::from(logits[next]) - shadowllm::kernels::log_sum_exp(engine.cpu(), logits);
        ControlFlow::Continue(())
    };
    masked.run(&mut [Job { text, tokens, from: request.context - 1 }], each).unwrap();
    sum
}
