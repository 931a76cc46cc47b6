//! The protocol: a prompt, then tokens one by one, all policies in turn.
//!
//! A machine that is shared changes its speed from second to second, and two policies that run one after the other are compared at
//! the mercy of that. So all rows decode at the same time, token by token in turn, and each token of a policy is held against the
//! dense token of the same turn. Models that a cache could hold take turns of several tokens, so that they find it as they left it.
//! Each row has sequences of its own for all of a repetition: what a sparse token leaves out of the cache is its own debt, to be paid
//! in its own time. Where memory is too small for so many sequences rows form groups, each with dense steps of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::machine::Bandwidth;
use super::policy::{Kind, PolicySpec, predictor_bytes};
use super::rows::{Row, Setting, Spread, row};
use super::watch::Watch;
use crate::generate::{Engine, Session, SessionOptions, Sparsity};
use crate::model::{PackedModel, SparseOptions};
use crate::sparsity::{ModelIdentity, Predictor, Refresh};
use crate::{Error, Result};

/// What is measured of one shape.
pub(super) struct Plan<'a> {
    pub(super) prompt: usize,
    pub(super) generate: usize,
    /// Ascending.
    pub(super) contexts: Vec<usize>,
    pub(super) batches: &'a [usize],
    /// All but `dense`, with kept fractions.
    pub(super) rows: Vec<(&'a PolicySpec, f32)>,
    pub(super) repetitions: usize,
    pub(super) warm_up: usize,
    pub(super) sparse: SparseOptions,
    pub(super) seed: u64,
}

impl Plan<'_> {
    /// Positions that a sequence may reach.
    pub(super) fn positions(&self, context: usize) -> usize {
        context + self.generate.max(self.warm_up)
    }

    /// Rows that will be measured.
    pub(super) fn count(&self) -> usize {
        (self.rows.len() + 1) * self.contexts.len() * self.batches.len()
    }

    /// Steps that will be decoded, for a bar.
    pub(super) fn steps(&self) -> u64 {
        (self.count() * (self.warm_up + self.repetitions * self.generate)) as u64
    }
}

/// One decoded token: seconds and bytes by sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) seconds: f64,
    pub(super) bytes: f64,
    /// Of the seconds, those of decisions.
    pub(super) deciding: f64,
}

/// One row while it is measured.
pub(super) struct Case {
    pub(super) policy: String,
    pub(super) keep: f32,
    /// Sequences that are decoded together.
    pub(super) sessions: Vec<Session>,
    pub(super) samples: Vec<Sample>,
    /// Bytes of weights and predictor.
    pub(super) weights: u64,
    /// The most bytes that its sequences held.
    pub(super) held: u64,
}

impl Case {
    /// Decodes a token of every sequence.
    fn step(&mut self, engine: &Engine, token: u32) -> Result<Sample> {
        let n = self.sessions.len();
        let vocab = engine.config().vocab as u32;
        let tokens: Vec<u32> = (0..n as u32).map(|i| (token + 100 * i) % vocab).collect();
        let mut sessions: Vec<&mut Session> = self.sessions.iter_mut().collect();
        let start = Instant::now();
        let step = engine.step_batch(&mut sessions, &tokens)?;
        let seconds = start.elapsed().as_secs_f64() / n as f64;
        let deciding = self.sessions.iter().filter_map(Session::sparsity).map(Sparsity::decision_time);
        let deciding = deciding.sum::<Duration>().as_secs_f64() / n as f64;
        Ok(Sample { seconds, bytes: step.bytes as f64 / n as f64, deciding })
    }

    fn rewind(&mut self, context: usize) {
        self.sessions.iter_mut().for_each(|session| session.truncate(context));
    }

    fn note_memory(&mut self) {
        self.held = self.held.max(self.sessions.iter().map(Session::memory_bytes).sum());
    }
}

/// An engine over one arrangement of the weights, and a sequence that holds the context.
struct Side {
    engine: Engine,
    base: Session,
    /// Runs the prompt again and again.
    prompt: Session,
    /// Seconds per token of the prompt.
    prefill: Vec<f64>,
}

impl Side {
    fn new(engine: Engine, plan: &Plan<'_>) -> Result<Self> {
        let longest = plan.contexts.last().map_or(plan.prompt, |&context| plan.positions(context));
        let base = engine.session(SessionOptions { context: Some(longest) })?;
        let prompt = engine.session(SessionOptions { context: Some(plan.prompt) })?;
        Ok(Side { engine, base, prompt, prefill: Vec::new() })
    }

    /// Makes the base hold `context` tokens, with room for what follows.
    fn extend(&mut self, plan: &Plan<'_>, context: usize, watch: &Watch) -> Result<()> {
        let tokens = prompt_tokens(self.base.tokens().len()..context, self.engine.config().vocab);
        self.base.reserve(plan.positions(context));
        if !tokens.is_empty() {
            self.base.prefill_with(&tokens, &mut crate::model::NoProbe, &mut |_| watch.flow())?;
        }
        Ok(())
    }

    fn measure_prefill(&mut self, prompt: usize) -> Result<()> {
        let tokens = prompt_tokens(0..prompt, self.engine.config().vocab);
        self.prompt.truncate(0);
        let start = Instant::now();
        self.prompt.prefill(&tokens)?;
        self.prefill.push(start.elapsed().as_secs_f64() / prompt as f64);
        Ok(())
    }
}

/// Tokens of a prompt: all over the vocabulary, and always the same.
pub(super) fn prompt_tokens(positions: std::ops::Range<usize>, vocab: usize) -> Vec<u32> {
    positions.map(|i| ((i * 7919 + 11) % vocab) as u32).collect()
}

/// A shape in memory, ready to be measured.
pub(super) struct Bench<'a> {
    name: &'a str,
    plan: &'a Plan<'a>,
    plain: Side,
    /// `None` if only the dense model is measured.
    packed: Option<(Side, Arc<PackedModel>)>,
    predictors: Vec<Option<Arc<Predictor>>>,
    /// Bytes that are several times the last-level cache.
    beyond_caches: u64,
    /// Bytes that sequences may take together; `None`: as many as they want.
    room: Option<u64>,
}

/// Tokens of a turn for models that the caches could hold.
const TURN: usize = 16;

impl<'a> Bench<'a> {
    pub(super) fn new(
        name: &'a str,
        plan: &'a Plan<'a>,
        plain: Engine,
        packed: Option<Engine>,
        predictors: Vec<Option<Arc<Predictor>>>,
        beyond_caches: u64,
        room: Option<u64>,
    ) -> Result<Self> {
        let packed = match packed {
            Some(engine) => engine.packed().cloned().map(|records| Ok::<_, Error>((Side::new(engine, plan)?, records))),
            None => None,
        };
        let plain = Side::new(plain, plan)?;
        Ok(Bench { name, plan, plain, packed: packed.transpose()?, predictors, beyond_caches, room })
    }

    /// Bytes that the dense model reads for a token after `context` others.
    pub(super) fn dense_bytes(&self, context: usize) -> u64 {
        self.plain.engine.model().active_bytes(context).total()
    }

    /// Measures everything, or as much as there is time for. `bandwidth` is measured between the repetitions; shares are of the second
    /// one, if there is one.
    pub(super) fn run(&mut self, bandwidth: &mut [Bandwidth], watch: &Watch) -> Result<Vec<(Row, Spread)>> {
        let mut rows = Vec::new();
        for &context in &self.plan.contexts {
            watch.say(&format!("{}: prompt", self.name));
            let sides = [Some(&mut self.plain), self.packed.as_mut().map(|(side, _)| side)];
            for side in sides.into_iter().flatten() {
                match side.extend(self.plan, context, watch) {
                    Err(Error::Interrupted) => return Ok(rows),
                    result => result?,
                }
            }
            for &batch in self.plan.batches {
                rows.extend(self.measure(context, batch, bandwidth, watch)?);
                if !watch.go_on() {
                    return Ok(rows);
                }
            }
        }
        Ok(rows)
    }

    /// Rows of one context and batch.
    fn measure(
        &mut self,
        context: usize,
        batch: usize,
        bandwidth: &mut [Bandwidth],
        watch: &Watch,
    ) -> Result<Vec<(Row, Spread)>> {
        let at_once = self.rows_at_once(context, batch).max(1);
        let rows: Vec<usize> = (0..self.plan.rows.len()).collect();
        let mut dense = self.dense(batch)?;
        let mut groups = Vec::new();
        self.plain.prefill.clear();
        self.packed.iter_mut().for_each(|(side, _)| side.prefill.clear());
        // Without others the dense model is a group of its own.
        for indices in rows.chunks(at_once).chain(rows.is_empty().then_some(&[][..])) {
            let mut cases = indices.iter().map(|&index| self.case(index, batch)).collect::<Result<Vec<_>>>()?;
            let first = dense.samples.len();
            let result = self.run_group(context, &mut dense, &mut cases, bandwidth, watch);
            cases.iter_mut().for_each(|case| case.sessions.clear());
            groups.push((first, cases));
            result?;
            if !watch.go_on() {
                break;
            }
        }
        let gb_per_second = bandwidth.last().map_or(f64::NAN, Bandwidth::gb_per_second);
        let of = |prefill| Setting { shape: self.name, context, batch, gb_per_second, prefill };
        let mut done: Vec<_> = row(&of(&self.plain.prefill), &dense, &dense.samples).into_iter().collect();
        if let Some((packed, _)) = &self.packed {
            let cases = groups.iter().flat_map(|(first, cases)| cases.iter().map(move |case| (*first, case)));
            done.extend(cases.filter_map(|(first, case)| row(&of(&packed.prefill), case, &dense.samples[first..])));
        }
        Ok(done)
    }

    /// Rows that have room for their sequences beside the dense ones.
    fn rows_at_once(&self, context: usize, batch: usize) -> usize {
        let Some(room) = self.room else { return usize::MAX };
        let row =
            batch as u64 * sequence_bytes(self.plain.engine.config(), self.plan.positions(context), &self.plan.sparse);
        usize::try_from(room / row.max(1)).unwrap_or(usize::MAX).saturating_sub(1)
    }

    fn dense(&mut self, batch: usize) -> Result<Case> {
        let sessions = (0..batch).map(|_| self.plain.base.fork()).collect();
        let (weights, held) = (self.plain.engine.model().weight_bytes(), self.plain.base.memory_bytes());
        Ok(Case { policy: "dense".to_owned(), keep: 1.0, sessions, samples: Vec::new(), weights, held })
    }

    fn case(&mut self, index: usize, batch: usize) -> Result<Case> {
        let (spec, keep) = self.plan.rows[index];
        let predictor = self.predictors[index].as_ref();
        let mut sessions = Vec::with_capacity(batch);
        let mut weights = predictor.map_or(0, |predictor| predictor_bytes(predictor));
        let mut held = 0;
        if let Some((side, records)) = &mut self.packed {
            let (config, cpu) = (side.engine.config().clone(), side.engine.cpu().clone());
            for i in 0..batch as u64 {
                // Sequences of a batch have the same static plan, and different ones otherwise.
                let seed = self.plan.seed + if spec.kind == Kind::Static { 0 } else { i };
                let policy = spec.policy(predictor, keep, seed, &config, &cpu)?;
                let sparsity =
                    Sparsity::new(Arc::clone(records), policy, Refresh::EveryToken, &config, self.plan.sparse);
                let mut session = side.base.fork();
                session.set_sparsity(Some(sparsity))?;
                sessions.push(session);
            }
            weights += side.engine.model().weight_bytes();
            held = side.base.memory_bytes();
        }
        Ok(Case { policy: spec.name.clone(), keep, sessions, samples: Vec::new(), weights, held })
    }

    fn run_group(
        &mut self,
        context: usize,
        dense: &mut Case,
        cases: &mut [Case],
        bandwidth: &mut [Bandwidth],
        watch: &Watch,
    ) -> Result<()> {
        let plan = self.plan;
        let plain = self.plain.engine.clone();
        let packed = self.packed.as_ref().map_or_else(|| plain.clone(), |(side, _)| side.engine.clone());
        let mut all = vec![(&plain, dense)];
        all.extend(cases.iter_mut().map(|case| (&packed, case)));
        let turn = if self.dense_bytes(context) < self.beyond_caches { TURN } else { 1 };
        let tokens = prompt_tokens(context..plan.positions(context), plain.config().vocab);
        watch.say(&format!("{}: warm-up", self.name));
        for &token in tokens.iter().take(plan.warm_up) {
            for (engine, case) in &mut all {
                case.step(engine, token)?;
                watch.advance();
                if !watch.go_on() {
                    return Ok(());
                }
            }
        }
        for repetition in 1..=plan.repetitions {
            watch.say(&format!("{}: repetition {repetition} of {}", self.name, plan.repetitions));
            self.plain.measure_prefill(plan.prompt)?;
            if let Some((side, _)) = &mut self.packed {
                side.measure_prefill(plan.prompt)?;
            }
            all.iter_mut().for_each(|(_, case)| case.rewind(context));
            for tokens in tokens[..plan.generate].chunks(turn) {
                for (engine, case) in &mut all {
                    for &token in tokens {
                        let sample = case.step(engine, token)?;
                        case.samples.push(sample);
                        watch.advance();
                        if !watch.go_on() {
                            return Ok(());
                        }
                    }
                }
            }
            all.iter_mut().for_each(|(_, case)| case.note_memory());
            bandwidth.iter_mut().for_each(|bandwidth| bandwidth.measure_again(plain.cpu()));
        }
        Ok(())
    }
}

/// Bytes of a sequence of this many positions: keys and values, what missing ones are made from, and logits.
pub(super) fn sequence_bytes(config: &shadowllm_weights::ModelConfig, positions: usize, sparse: &SparseOptions) -> u64 {
    let cache = 2 * config.layers * config.kv_heads * config.head_dim * positions;
    let pending = config.layers * config.hidden * sparse.kv_flush.min(positions);
    4 * (cache + pending + config.vocab) as u64
}

/// Predictors of the rows: rows of the same policy share one.
pub(super) fn predictors(
    plan: &Plan<'_>,
    engine: &Engine,
    beyond_caches: u64,
    watch: &Watch,
) -> Result<Vec<Option<Arc<Predictor>>>> {
    let (config, identity) = (engine.config(), ModelIdentity::of(engine.model()));
    let mut made: Vec<(&PolicySpec, Option<Arc<Predictor>>)> = Vec::new();
    for &(spec, _) in &plan.rows {
        if !made.iter().any(|(other, _)| *other == spec) {
            watch.say(&format!("{}: random predictor", spec.name));
            made.push((spec, spec.predictor(config, &identity, beyond_caches, plan.seed)?));
        }
    }
    let of = |spec: &PolicySpec| made.iter().find(|(other, _)| *other == spec).and_then(|(_, made)| made.clone());
    Ok(plan.rows.iter().map(|(spec, _)| of(spec)).collect())
}
