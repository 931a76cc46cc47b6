//! Texts under a policy, many at once.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::oracle::{Magnitudes, Recorded, TextScores, column_norms};
use super::probe::{MaskProbe, Span};
use super::{Chooser, Decision, Importance, Masking};
use crate::eval::EvalError;
use crate::generate::Engine;
use crate::kernels::Cpu;
use crate::model::{KvCache, NoProbe, Segment, Workspace};
use crate::sparsity::{
    Budget, Dense, GateMask, Kept, KeptCount, Oracle, Plan, PlanMasks, Policy, PolicyInput, Station, Units,
};
use crate::{Error, Result};

/// Rows of one pass through the layers: enough to be compute bound, few enough that activations stay small.
const PASS_ROWS: usize = 512;

/// Rows of one pass through the LM head; `V` floats each.
const LOGIT_ROWS: usize = 128;

/// Runs texts of one model under one policy.
///
/// ```
/// use std::ops::ControlFlow;
/// use shadowllm::eval::{Chooser, Job, Masked, Masking};
/// use shadowllm::sparsity::{Budget, Random, Scope};
/// use shadowllm::{Engine, EngineOptions};
///
/// # fn main() -> shadowllm::Result<()> {
/// let engine = Engine::open("embedded", EngineOptions::default())?;
/// let (budget, config) = (Budget::new(1.0, 0.5, Scope::Local)?, engine.config().clone());
/// let chooser = Chooser::Policy(Box::new(move |seed| Ok(Box::new(Random::new(seed, budget, &config)?))));
/// let mut masked = Masked::new(&engine, chooser, Masking::default())?;
/// let mut text = masked.text(0, 6)?;
/// let mut best = Vec::new();
/// let each = &mut |_job: usize, _index: usize, logits: &[f32]| {
///     best.push(shadowllm::kernels::argmax(logits));
///     ControlFlow::Continue(())
/// };
/// masked.run(&mut [Job { text: &mut text, tokens: &[2, 50, 1266, 584, 262, 580], from: 4 }], each)?;
/// assert_eq!(best.len(), 2);
/// assert!(masked.kept().neurons < 0.6);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Masked {
    engine: Engine,
    chooser: Chooser,
    decision: Decision,
    dense_prefix: usize,
    name: &'static str,
    units: Units,
    gate: Option<GateMask>,
    /// Of the oracle: `[L, F]`.
    norms: Vec<f32>,
    recorded: Arc<Recorded>,
    masks: PlanMasks,
    contexts: Vec<f32>,
    workspace: Workspace,
    kept: KeptCount,
}

/// A text on its way: what it has been through and who decides for it.
pub struct MaskedText {
    cache: KvCache,
    /// Keys and values of the dense model, for the oracle.
    dense: Option<KvCache>,
    policy: Box<dyn Policy>,
    /// Plan of the tokens as far as they have one in common; `None` before the first that is decided.
    plan: Option<Plan>,
}

/// Tokens by which a text goes on.
pub struct Job<'a> {
    /// The text.
    pub text: &'a mut MaskedText,
    /// Its next tokens, at least one.
    pub tokens: &'a [u32],
    /// The first of them whose logits are wanted.
    pub from: usize,
}

/// Is told logits: the job, the index into its tokens, and `[V]`. May stop the work.
pub type EachLogits<'a> = dyn FnMut(usize, usize, &[f32]) -> ControlFlow<()> + Send + 'a;

/// Is shown the plans of a pass. Its rows are the tokens of a job that a range names, job after job.
pub type EachPass<'a> = dyn FnMut(&[(usize, Range<usize>)], &PlanMasks) + 'a;

impl MaskedText {
    /// Another text that begins with all tokens of this one.
    pub fn fork(&self) -> MaskedText {
        MaskedText {
            cache: self.cache.clone(),
            dense: self.dense.clone(),
            policy: self.policy.fork(),
            plan: self.plan.clone(),
        }
    }

    /// Tokens that it has been through.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether it has not begun.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }
}

impl std::fmt::Debug for MaskedText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MaskedText").field("tokens", &self.len()).field("policy", &self.policy.name()).finish()
    }
}

impl Masked {
    /// Checks that everything fits together.
    ///
    /// # Errors
    /// Those of the policy; [`Error::NotGated`] or [`Error::GateShape`] if the gate thresholds are of another model;
    /// [`EvalError::NothingToDecide`] if one token is to decide for all but nothing depends on a token.
    pub fn new(engine: &Engine, chooser: Chooser, masking: Masking) -> Result<Self> {
        let (cpu, model) = (engine.cpu(), engine.model());
        let units = Units::from(engine.config());
        let Masking { decision, dense_prefix, gate } = masking;
        let (name, decides) = match &chooser {
            Chooser::Policy(make) => {
                let policy = make(0)?;
                (policy.name(), policy.stations().iter().any(|&station| station != Station::Once))
            }
            Chooser::Oracle { budget, .. } => {
                budget.validate()?;
                ("oracle", true)
            }
        };
        if decision == Decision::Sequence && !decides {
            return Err(EvalError::NothingToDecide { policy: name }.into());
        }
        let norms = match chooser {
            Chooser::Oracle { importance: Importance::Magnitude, .. } => cpu.install(|| column_norms(cpu, model)),
            Chooser::Policy(_) => Vec::new(),
        };
        Ok(Masked {
            gate: gate.map(|skip| GateMask::new(cpu, engine.config(), skip)).transpose()?,
            engine: engine.clone(),
            chooser,
            decision,
            dense_prefix,
            name,
            units,
            norms,
            recorded: Arc::default(),
            masks: PlanMasks::new(units),
            contexts: Vec::new(),
            workspace: Workspace::default(),
            kept: KeptCount::default(),
        })
    }

    /// The engine that it runs on.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The policy's name.
    pub fn policy(&self) -> &'static str {
        self.name
    }

    /// Which token decides.
    pub fn decision(&self) -> Decision {
        self.decision
    }

    /// Tokens of a text that keep everything.
    pub fn dense_prefix(&self) -> usize {
        self.dense_prefix
    }

    /// Units kept / units, over all layers and the tokens that were decided so far; 1 before the first.
    pub fn kept(&self) -> Kept {
        self.kept.fraction(self.units)
    }

    /// The share of the kept neurons that gate skip set to zero; `None` without it.
    pub fn gate_skipped(&self) -> Option<f64> {
        self.gate.as_ref().map(GateMask::skipped)
    }

    /// Plans of the rows of the last pass: the tokens of all its jobs, in order.
    pub fn masks(&self) -> &PlanMasks {
        &self.masks
    }

    /// A text of at most `most` tokens. Texts of other numbers have other random streams.
    ///
    /// # Errors
    /// Those of the policy.
    pub fn text(&self, number: u64, most: usize) -> Result<MaskedText> {
        let cache = || KvCache::new(self.engine.config(), most.min(self.engine.config().max_positions));
        let (policy, dense) = match &self.chooser {
            Chooser::Policy(make) => (make(number)?, None),
            Chooser::Oracle { .. } => (Box::new(Dense) as Box<dyn Policy>, Some(cache())),
        };
        Ok(MaskedText { cache: cache(), dense, policy, plan: None })
    }

    /// Takes texts further and hands over the logits that are wanted. Jobs share passes,
    /// and long ones are cut, unless their last token decides for all: then a job has to be a whole text.
    ///
    /// # Errors
    /// As [`crate::model::Model::forward`]; [`Error::Interrupted`] if `each` says so. The texts are of no use then.
    pub fn run(&mut self, jobs: &mut [Job<'_>], each: &mut EachLogits<'_>) -> Result<()> {
        self.run_with(jobs, &mut |_, _| (), each)
    }

    /// [`Masked::run`], which also shows the plans of every pass, before its logits.
    ///
    /// # Errors
    /// As [`Masked::run`].
    pub fn run_with(
        &mut self,
        jobs: &mut [Job<'_>],
        passed: &mut EachPass<'_>,
        each: &mut EachLogits<'_>,
    ) -> Result<()> {
        let mut done = vec![0; jobs.len()];
        if jobs.iter().any(|job| job.tokens.is_empty()) {
            return Err(Error::NoTokens);
        }
        loop {
            let parts = self.next_pass(jobs, &done);
            if parts.is_empty() {
                return Ok(());
            }
            self.pass(jobs, &parts)?;
            passed(&parts, &self.masks);
            let mut wanted = Vec::new();
            let mut row = 0;
            for (job, part) in parts {
                let from = jobs[job].from.max(part.start);
                wanted.extend((from..part.end).map(|index| (job, index, row + index - part.start)));
                row += part.len();
                done[job] = part.end;
            }
            self.hand_over(&wanted, each)?;
        }
    }

    /// Which tokens of which jobs the next pass takes.
    fn next_pass(&self, jobs: &[Job<'_>], done: &[usize]) -> Vec<(usize, Range<usize>)> {
        let mut parts: Vec<(usize, Range<usize>)> = Vec::new();
        let mut room = PASS_ROWS;
        for (index, (job, &start)) in jobs.iter().zip(done).enumerate() {
            let left = job.tokens.len() - start;
            let taken = match self.decision {
                Decision::Causal => left.min(room),
                Decision::Sequence if left <= room || parts.is_empty() => left,
                Decision::Sequence => 0,
            };
            if taken > 0 {
                parts.push((index, start..start + taken));
                room = room.saturating_sub(taken);
            }
            if room == 0 {
                break;
            }
        }
        parts
    }

    /// One pass through the layers over `parts` of the jobs' tokens.
    fn pass(&mut self, jobs: &mut [Job<'_>], parts: &[(usize, Range<usize>)]) -> Result<()> {
        let engine = self.engine.clone();
        let (cpu, model) = (engine.cpu(), engine.model());
        let rows = parts.iter().map(|(_, part)| part.len()).sum();
        if let Chooser::Oracle { budget, .. } = self.chooser {
            self.consult(jobs, parts, rows, budget)?;
        }
        self.masks.reset(rows);
        let (mut segments, mut spans) = (Vec::new(), Vec::new());
        let mut row = 0;
        for (job, part) in taken(jobs, parts) {
            let MaskedText { cache, policy, plan, .. } = &mut *job.text;
            let dense = self.dense_prefix.saturating_sub(cache.len()).min(part.len());
            let (decided, position) = (row + dense..row + part.len(), cache.len() + dense);
            row += part.len();
            if !decided.is_empty() {
                let plan = common_plan(cpu, self.units, &mut **policy, plan, position)?;
                if policy.stations().contains(&Station::Once) {
                    for mut row in self.masks.rows_mut(decided.clone()).rows() {
                        (0..self.units.layers).for_each(|layer| row.set(layer, &plan.layers[layer]));
                    }
                }
                spans.push(Span { rows: decided, position, policy: &mut **policy, plan });
            }
            segments.push(Segment { tokens: &job.tokens[part.clone()], cache });
        }
        let decided: Vec<Range<usize>> = spans.iter().map(|span| span.rows.clone()).collect();
        let workspace = &mut self.workspace;
        if self.gate.is_none() && spans.iter().all(|span| span.policy.stations().is_empty()) {
            cpu.install(|| model.forward(cpu, &mut segments, workspace, &mut NoProbe))?;
        } else {
            let mut probe = MaskProbe {
                cpu,
                units: self.units,
                decision: self.decision,
                spans,
                masks: &mut self.masks,
                gate: self.gate.as_mut(),
                contexts: &mut self.contexts,
                result: Ok(()),
            };
            cpu.install(|| {
                probe.start();
                model.forward(cpu, &mut segments, workspace, &mut probe)
            })?;
            probe.result?;
        }
        decided.into_iter().for_each(|rows| self.kept.add(self.masks.count(rows)));
        if let Chooser::Oracle { .. } = self.chooser {
            // Its policies know this pass only, and hold the memory of its scores.
            taken(jobs, parts).for_each(|(job, _)| job.text.policy = Box::new(Dense));
        }
        Ok(())
    }

    /// Runs the dense model, so that the oracle knows, and gives its policies to the texts.
    fn consult(
        &mut self,
        jobs: &mut [Job<'_>],
        parts: &[(usize, Range<usize>)],
        rows: usize,
        budget: Budget,
    ) -> Result<()> {
        let (cpu, model) = (self.engine.cpu(), self.engine.model());
        if Arc::get_mut(&mut self.recorded).is_none() {
            self.recorded = Arc::default();
        }
        if let Some(recorded) = Arc::get_mut(&mut self.recorded) {
            let mut segments: Vec<Segment<'_>> = taken(jobs, parts)
                .filter_map(|(job, part)| {
                    Some(Segment { tokens: &job.tokens[part.clone()], cache: job.text.dense.as_mut()? })
                })
                .collect();
            let mut probe = Magnitudes::new(self.units, &self.norms, recorded, rows);
            let workspace = &mut self.workspace;
            cpu.install(|| model.forward(cpu, &mut segments, workspace, &mut probe))?;
        }
        let mut row = 0;
        for (job, part) in taken(jobs, parts) {
            let recorded = Arc::clone(&self.recorded);
            let source = TextScores { recorded, row, position: job.text.len() };
            job.text.policy = Box::new(Oracle::new(source, budget, self.units)?);
            row += part.len();
        }
        Ok(())
    }

    /// The LM head for rows `(job, index, row of the pass)`.
    fn hand_over(&mut self, wanted: &[(usize, usize, usize)], each: &mut EachLogits<'_>) -> Result<()> {
        let (cpu, model) = (self.engine.cpu(), self.engine.model());
        let vocab = self.engine.config().vocab;
        let workspace = &mut self.workspace;
        let mut logits = Vec::new();
        for wanted in wanted.chunks(LOGIT_ROWS) {
            let rows: Vec<usize> = wanted.iter().map(|&(_, _, row)| row).collect();
            logits.resize(rows.len() * vocab, 0.0);
            cpu.install(|| model.logits_of(cpu, workspace, &rows, &mut logits));
            for (&(job, index, _), logits) in wanted.iter().zip(logits.chunks_exact(vocab)) {
                if each(job, index, logits).is_break() {
                    return Err(Error::Interrupted);
                }
            }
        }
        Ok(())
    }
}

/// The jobs that a pass takes tokens of, and which.
fn taken<'j, 'a>(
    jobs: &'j mut [Job<'a>],
    parts: &'j [(usize, Range<usize>)],
) -> impl Iterator<Item = (&'j mut Job<'a>, &'j Range<usize>)> {
    let mut parts = parts.iter().peekable();
    let part = move |(index, job)| Some((job, &parts.next_if(|(wanted, _)| *wanted == index)?.1));
    jobs.iter_mut().enumerate().filter_map(part)
}

/// The plan that the tokens of a text have in common, decided with the first of them.
fn common_plan<'a>(
    cpu: &Cpu,
    units: Units,
    policy: &mut dyn Policy,
    plan: &'a mut Option<Plan>,
    position: usize,
) -> Result<&'a mut Plan> {
    if plan.is_none() {
        let mut first = Plan::dense(units);
        if policy.stations().contains(&Station::Once) {
            let station = Station::Once;
            let input = PolicyInput { station, position, residual: &[], contexts: &[], cpu };
            policy.decide(input, &mut first)?;
            first.validate(units)?;
        }
        *plan = Some(first);
    }
    Ok(plan.get_or_insert_with(Plan::default))
}
