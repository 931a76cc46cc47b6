//! Measures what is missing, one thing after the other.

use std::ops::ControlFlow;

use super::bytes::{RecordBytes, dense_bytes};
use super::conditions::{Conditions, FileRecord, TaskRecord};
use super::grid::{Kinds, SweepPolicy, check_labels};
use super::plans::PlanStats;
use super::results::{PolicyRecord, Quality, SweepResults, TaskAccuracy, rounded};
use super::speed::speed;
use super::store::Store;
use super::truth::Truth;
use crate::eval::EvalError;
use crate::eval::tasks::{Prepared, TaskResult, likelihoods};
use crate::eval::{Chooser, Decision, Masked, Masking, PolicySource, Windows, perplexity, perplexity_observed};
use crate::generate::Engine;
use crate::sparsity::{Budget, ModelIdentity, PlanMasks, Scope, Units, digest};
use crate::{Error, Result};

/// Everything that is to be measured.
#[derive(Debug)]
pub struct Sweep<'a> {
    /// The model. Quality is measured here.
    pub engine: &'a Engine,
    /// The same model over packed weights, to measure time; `None`: no time is measured.
    pub packed: Option<&'a Engine>,
    /// Name of the text.
    pub text: String,
    /// Its tokens.
    pub tokens: &'a [u32],
    /// How they are cut.
    pub windows: Windows,
    /// Tasks beside the text.
    pub tasks: &'a [Prepared],
    /// Who chooses. The dense model is always measured.
    pub policies: &'a [SweepPolicy],
    /// Fractions to keep.
    pub kept: &'a [f32],
    /// Of which units.
    pub kinds: &'a [Kinds],
    /// What fractions are counted over.
    pub budget: Scope,
    /// How tokens are masked.
    pub masking: Masking,
    /// Where the gate's thresholds are from.
    pub gate_thresholds: Option<FileRecord>,
}

/// How far a sweep is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepEvent<'a> {
    /// The measurement, from 1.
    pub step: usize,
    /// Measurements that were missing.
    pub steps: usize,
    /// What it is.
    pub what: &'a str,
    /// Parts of it that are done: windows, questions or turns.
    pub done: usize,
    /// Parts that it has.
    pub of: usize,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    DenseText,
    DenseTask(usize),
    Text(Place),
    Task(Place, usize),
    Speed(Place),
}

/// A policy at a budget.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Place {
    /// Index of the policy.
    policy: usize,
    kinds: Kinds,
    keep: f32,
}

type Progress<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + 'a;

impl Sweep<'_> {
    /// Checks that all of it can be measured, so that no mistake shows after hours. `timed`: decoding will be timed, too.
    ///
    /// # Errors
    /// [`EvalError::SweepSetting`], [`Error::BudgetFraction`], [`EvalError::Windows`], those of the policies and of [`Masked::new`], the
    /// first that there is.
    pub fn check(&self, timed: bool) -> Result<()> {
        let nothing =
            |what: &str| Err(EvalError::SweepSetting { reason: format!("nothing to sweep over: {what}") }.into());
        check_labels(self.policies)?;
        if self.policies.is_empty() {
            return nothing("no policy is given");
        }
        if self.kept.is_empty() || self.kinds.is_empty() {
            return nothing("no fraction or no kind of unit is given");
        }
        let size = self.windows.cut(self.tokens, self.engine.config().max_positions)?.len() * self.windows.size;
        if timed && self.masking.decision == Decision::Sequence {
            let reason = "with decision sequence the last token chooses the units of those before it, so there is no \
                          decoding to time; leave out --speed, or use decision causal";
            return Err(EvalError::SweepSetting { reason: reason.to_owned() }.into());
        }
        if timed && size < 4 {
            let reason = format!("the windows have {size} tokens, too few to time decoding; use at least 4");
            return Err(EvalError::SweepSetting { reason }.into());
        }
        let named = |place: &Place, error: Error| {
            let what = self.what(Step::Text(*place));
            Error::from(EvalError::SweepPoint { point: what, source: Box::new(error) })
        };
        for place in self.places() {
            // This says all that there is to say.
            place.kinds.budget(place.keep, self.budget)?;
            // Nothing else can be wrong with the oracle, and it looks at all weights.
            if self.policies[place.policy].source.decodes() {
                self.masked(&place).map_err(|error| named(&place, error))?;
            }
        }
        Ok(())
    }

    /// The results in a folder, to be gone on with.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(&self, directory: &std::path::Path) -> Result<Store> {
        let tasks: Vec<TaskRecord> = self.tasks.iter().map(task_record).collect();
        let policies: Vec<PolicyRecord> = self.policies.iter().map(SweepPolicy::record).collect();
        Store::open(directory, self.conditions()?, self.engine.config().into(), &tasks, &policies)
    }

    fn conditions(&self) -> Result<Conditions> {
        let (engine, cpu) = (self.engine, self.engine.cpu());
        let windows = self.windows.cut(self.tokens, engine.config().max_positions)?;
        Ok(Conditions {
            model: engine.location().to_owned(),
            identity: ModelIdentity::of(engine.model()),
            text: self.text.clone(),
            text_digest: digest(windows.iter().map(|window| bytemuck::cast_slice(window))),
            window: self.windows.size,
            windows: windows.len(),
            decision: self.masking.decision,
            dense_prefix: self.masking.dense_prefix,
            budget: self.budget,
            gate_skip: self.masking.gate.as_ref().map(|gate| gate.fraction()),
            gate_thresholds: self.gate_thresholds.clone(),
            isa: cpu.isa().to_string(),
            threads: cpu.threads(),
            compute: cpu.compute().name().to_owned(),
        })
    }

    /// Measures what is missing. `progress` may stop it; what was measured is then in the store.
    ///
    /// # Errors
    /// Those of the measurements; [`Error::Interrupted`]; [`Error::Weights`] if results cannot be written.
    pub fn run(&self, store: &mut Store, progress: &mut dyn FnMut(SweepEvent<'_>) -> ControlFlow<()>) -> Result<()> {
        let steps = self.missing(store.results());
        let records = RecordBytes::of(self.engine.model());
        let mut truth = None;
        for (index, &step) in steps.iter().enumerate() {
            let what = self.what(step);
            let tell =
                &mut |done, of| progress(SweepEvent { step: index + 1, steps: steps.len(), what: &what, done, of });
            if tell(0, 1).is_break() {
                return Err(Error::Interrupted);
            }
            match step {
                Step::DenseText => self.dense_text(store, tell)?,
                Step::DenseTask(task) => {
                    let chooser = PolicySource::Dense.chooser(Budget::DENSE, self.engine.config())?;
                    let mut masked = Masked::new(self.engine, chooser, Masking::default())?;
                    let found = self.task(&mut masked, task, tell)?;
                    store.record(|results| results.dense.tasks.push(found))?;
                }
                Step::Text(place) => self.text(store, &place, &records, &mut truth, tell)?,
                Step::Task(place, task) => {
                    let found = self.task(&mut self.masked(&place)?, task, tell)?;
                    self.record(store, &place, |point| point.tasks.push(found))?;
                }
                Step::Speed(place) => {
                    let Some(packed) = self.packed else { continue };
                    let budget = place.kinds.budget(place.keep, self.budget)?;
                    let policy = self.policies[place.policy].source.maker(budget, packed.config())?(0)?;
                    let found = speed(packed, self.tokens, policy, self.masking.gate.as_ref(), tell)?;
                    self.record(store, &place, |point| point.speed = Some(found))?;
                }
            }
        }
        Ok(())
    }

    fn record(&self, store: &mut Store, place: &Place, change: impl FnOnce(&mut super::results::Point)) -> Result<()> {
        let label = &self.policies[place.policy].label;
        store.record(|results| change(results.entry(label, place.kinds, place.keep)))
    }

    /// All policies at all budgets: those of a budget together.
    fn places(&self) -> Vec<Place> {
        let mut kept = self.kept.to_vec();
        kept.sort_by(|a, b| b.total_cmp(a));
        kept.dedup();
        let mut places = Vec::new();
        for kinds in Kinds::ALL.into_iter().filter(|kinds| self.kinds.contains(kinds)) {
            for &keep in &kept {
                places.extend((0..self.policies.len()).map(|policy| Place { policy, kinds, keep }));
            }
        }
        places
    }

    /// What was not measured yet, in the order in which it will be.
    fn missing(&self, results: &SweepResults) -> Vec<Step> {
        let places = self.places();
        let known = |place: &Place| results.point(&self.policies[place.policy].label, place.kinds, place.keep);
        let asked = |tasks: &[TaskAccuracy], task: usize| tasks.iter().any(|t| t.task == self.tasks[task].task.name());
        let mut steps = Vec::new();
        steps.extend(results.dense.perplexity.is_none().then_some(Step::DenseText));
        let lacking = places.iter().filter(|place| known(place).is_none_or(|point| point.quality.is_none()));
        steps.extend(lacking.map(|&place| Step::Text(place)));
        for task in 0..self.tasks.len() {
            steps.extend((!asked(&results.dense.tasks, task)).then_some(Step::DenseTask(task)));
            let lacking = places.iter().filter(|place| known(place).is_none_or(|point| !asked(&point.tasks, task)));
            steps.extend(lacking.map(|&place| Step::Task(place, task)));
        }
        if self.packed.is_some() {
            let lacking = places.iter().filter(|place| {
                let policy = &self.policies[place.policy];
                policy.source.decodes() && known(place).is_none_or(|point| point.speed.is_none())
            });
            steps.extend(lacking.map(|&place| Step::Speed(place)));
        }
        steps
    }

    /// A measurement in words.
    fn what(&self, step: Step) -> String {
        let point = |place: Place| format!("{}, {} {}", self.policies[place.policy].label, place.kinds, place.keep);
        match step {
            Step::DenseText => "dense".to_owned(),
            Step::DenseTask(task) => format!("dense, {}", self.tasks[task].task.name()),
            Step::Text(place) => point(place),
            Step::Task(place, task) => format!("{}, {}", point(place), self.tasks[task].task.name()),
            Step::Speed(place) => format!("{}, time", point(place)),
        }
    }

    fn masked(&self, place: &Place) -> Result<Masked> {
        let budget = place.kinds.budget(place.keep, self.budget)?;
        let chooser = self.policies[place.policy].source.chooser(budget, self.engine.config())?;
        Masked::new(self.engine, chooser, self.masking.clone())
    }

    fn dense_text(&self, store: &mut Store, tell: &mut Progress<'_>) -> Result<()> {
        let count = store.results().conditions.windows;
        let found =
            perplexity(self.engine, self.tokens, self.windows, &mut |so_far| tell(so_far.windows.len(), count))?;
        let bytes = dense_bytes(self.engine.model(), self.windows.size);
        store.record(|results| {
            results.dense.perplexity = Some(rounded(found.perplexity));
            results.dense.tokens = found.tokens;
            results.dense.bytes_per_token = rounded(bytes);
        })
    }

    /// `truth` is that of the last budget; all policies of a budget come one after the other.
    fn text(
        &self,
        store: &mut Store,
        place: &Place,
        records: &RecordBytes,
        truth: &mut Option<(Budget, Truth)>,
        tell: &mut Progress<'_>,
    ) -> Result<()> {
        let budget = place.kinds.budget(place.keep, self.budget)?;
        let (engine, units, prefix) = (self.engine, Units::from(self.engine.config()), self.masking.dense_prefix);
        let windows = self.windows.cut(self.tokens, engine.config().max_positions)?;
        if !budget.is_dense() && truth.as_ref().is_none_or(|(of, _)| *of != budget) {
            *truth = Some((budget, Truth::of(engine, &windows, budget, prefix, tell)?));
        }
        let truth = truth.as_ref().filter(|(of, _)| *of == budget).map(|(_, truth)| truth);
        let mut masked = self.masked(place)?;
        let mut stats = PlanStats::new(units, records, truth, prefix);
        let observe = &mut |window, range, masks: &PlanMasks| stats.add(window, range, masks);
        let cut = self.windows.cut(self.tokens, self.engine.config().max_positions)?;
        let found =
            perplexity_observed(&mut masked, &cut, observe, &mut |so_far| tell(so_far.windows.len(), windows.len()))?;
        let policy = self.policies[place.policy].source.chooser(budget, engine.config())?;
        let decision_bytes = match policy {
            Chooser::Policy(make) => make(0)?.bytes_per_decision(),
            Chooser::Oracle { .. } => 0,
        };
        let dense = store.results().dense.perplexity.unwrap_or(found.perplexity);
        let kept = masked.kept();
        let quality = Quality {
            perplexity: rounded(found.perplexity),
            dense_perplexity: dense,
            ratio: rounded(found.perplexity / dense),
            kept: crate::sparsity::Kept { heads: rounded(kept.heads), neurons: rounded(kept.neurons) },
            bytes_per_token: rounded(stats.bytes_per_token() + decision_bytes as f64),
            decision_bytes,
            gate_skipped: masked.gate_skipped().map(rounded),
            head_recall: if budget.heads < 1.0 { stats.recall(0) } else { None },
            neuron_recall: if budget.neurons < 1.0 { stats.recall(1) } else { None },
            head_use: (budget.heads < 1.0).then(|| stats.head_use()),
        };
        self.record(store, place, |point| point.quality = Some(quality))
    }

    fn task(&self, masked: &mut Masked, task: usize, tell: &mut Progress<'_>) -> Result<TaskAccuracy> {
        let Prepared { task, items, questions } = &self.tasks[task];
        let found = likelihoods(masked, questions, &mut |done| tell(done, questions.len()))?;
        Ok(TaskAccuracy::from(&TaskResult::of(*task, items, &found)))
    }
}

fn task_record(task: &Prepared) -> TaskRecord {
    let golds: Vec<u64> = task.items.iter().map(|item| item.gold as u64).collect();
    let requests = task.questions.iter().flatten().map(|request| bytemuck::cast_slice(&request.tokens));
    TaskRecord {
        task: task.task.name().to_owned(),
        records: task.items.len(),
        digest: digest(requests.chain([bytemuck::cast_slice(&golds)])),
    }
}
