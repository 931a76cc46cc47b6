//! A session's sparsity: who chooses units, how often, and what the last token read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::gpu::{self, GpuError};
use crate::kernels::Cpu;
use crate::model::{Director, KeptUnits, PackedModel, Probe, Rows, SparseCount, SparseOptions};
use crate::sparsity::{GateSkip, Plan, Policy, PolicyInput, Refresh, Station, Units};
use crate::{Error, Result};

/// Makes the decode steps of a session sparse: `Session::set_sparsity`.
pub struct Sparsity {
    pub(super) packed: Arc<PackedModel>,
    pub(super) options: SparseOptions,
    prompts: Prompts,
    course: Course,
    count: SparseCount,
}

/// How a session with a [`Sparsity`] runs prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prompts {
    /// Over all units, many tokens at once: fast, and exactly the dense model.
    #[default]
    Dense,
    /// Token by token over the units that the policy keeps, as decoded tokens run: reads nothing but packed weights.
    Sparse,
}

impl Sparsity {
    /// Steps run over the units that `policy` keeps, decided as often as `refresh` says.
    pub fn new(
        packed: Arc<PackedModel>,
        policy: Box<dyn Policy>,
        refresh: Refresh,
        units: impl Into<Units>,
        options: SparseOptions,
    ) -> Self {
        let units = units.into();
        let plan = Plan::dense(units);
        let course = Course {
            policy,
            refresh,
            plan,
            gate: None,
            units,
            since: 0,
            position: 0,
            due: false,
            deciding: Duration::ZERO,
        };
        Sparsity { packed, options, prompts: Prompts::Dense, course, count: SparseCount::default() }
    }

    /// Runs prompts as `prompts` says.
    ///
    /// # Errors
    /// [`Error::PromptDecides`] if they are to be sparse but their last token is what the only decision is made from.
    pub fn prompts(mut self, prompts: Prompts) -> Result<Self> {
        if prompts == Prompts::Sparse && self.course.refresh == Refresh::Prompt {
            return Err(Error::PromptDecides);
        }
        self.prompts = prompts;
        Ok(self)
    }

    /// Whether prompts run token by token.
    pub(super) fn has_sparse_prompts(&self) -> bool {
        self.prompts == Prompts::Sparse
    }

    /// Whether the last token of a prompt is what decisions are made from.
    pub(super) fn decides_from_prompts(&self) -> bool {
        self.course.refresh == Refresh::Prompt
    }

    /// A probe for the dense pass over the end of a prompt, which decides from the last token, at `position`.
    /// [`PromptWatch::finish`] says how that went.
    pub(super) fn watch<'a>(
        &'a mut self,
        cpu: &'a Cpu,
        position: usize,
        probe: &'a mut (dyn Probe + Send),
    ) -> Result<PromptWatch<'a>> {
        let course = &mut self.course;
        course.start(cpu, position, course.since == 0, true)?;
        Ok(PromptWatch { cpu, probe, course, contexts: Vec::new(), result: Ok(()) })
    }

    /// Also skips, of the neurons that the policy keeps, those whose gate is under its threshold. Changes results.
    #[must_use]
    pub fn with_gate_skip(mut self, skip: Arc<GateSkip>) -> Self {
        self.course.gate = Some(skip);
        self
    }

    /// The gate skip in force.
    pub fn gate_skip(&self) -> Option<&GateSkip> {
        self.course.gate.as_deref()
    }

    /// The policy's name.
    pub fn policy(&self) -> &'static str {
        self.course.policy.name()
    }

    /// The records that it runs over.
    pub fn packed(&self) -> &PackedModel {
        &self.packed
    }

    /// The plan of the last step; the dense one before, and where a device makes its own ([`DeviceSequence::plan`](gpu::DeviceSequence::plan)).
    pub fn plan(&self) -> &Plan {
        &self.course.plan
    }

    /// What the last step read.
    pub fn count(&self) -> SparseCount {
        self.count
    }

    /// Bytes that the decisions of the last step read.
    pub fn decision_bytes(&self) -> u64 {
        if self.course.due { self.course.policy.bytes_per_decision() } else { 0 }
    }

    /// Time that the decisions of the last step took, from input to a plan that was checked. Part of the step's time.
    pub fn decision_time(&self) -> Duration {
        self.course.deciding
    }

    /// Gets ready for the token at `position`.
    pub(super) fn begin(&mut self, cpu: &Cpu, position: usize) -> Result<&mut Course> {
        let course = &mut self.course;
        let (first, due) = (course.since == 0, course.refresh.is_due(course.since));
        course.start(cpu, position, first, due)?;
        Ok(course)
    }

    /// How a device runs its tokens, with room for `context`.
    pub(super) fn on_device(&self, context: usize) -> Result<gpu::Course<'_>> {
        let Course { policy, refresh, gate, .. } = &self.course;
        let not = |what: String, instead| Err(GpuError::NotOnDevice { what, instead }.into());
        if gate.is_some() {
            return not("skipping neurons by their gate".to_owned(), "decode without --gate-skip");
        }
        let rule = policy.predicted();
        if rule.is_some() && !matches!(refresh, Refresh::EveryToken | Refresh::Every(0 | 1)) {
            return not(format!("a plan held for several tokens (refresh {refresh})"), "use --refresh 1");
        }
        let looks = policy.stations().iter().any(|station| matches!(station, Station::AfterLayer(_)));
        if rule.is_none() && looks {
            return not(
                format!("the policy {}, which looks at a token on its way,", policy.name()),
                "use shadow or static",
            );
        }
        let rule = rule.map(|(predictor, budget)| (&**predictor, budget));
        Ok(gpu::Course { context, kv_flush: self.options.kv_flush, rule })
    }

    /// Decides in front of the token at `position`, as far as nothing of the token is looked at, and gives the plan.
    pub(super) fn plan_for_device(&mut self, cpu: &Cpu, position: usize) -> Result<&Plan> {
        let course = self.begin(cpu, position)?;
        if course.due {
            course.plan.validate(course.units)?;
        }
        Ok(&course.plan)
    }

    /// The token is done.
    pub(super) fn end(&mut self, count: SparseCount) {
        self.count = count;
        self.course.since = if self.course.due { 1 } else { self.course.since + 1 };
    }
}

impl std::fmt::Debug for Sparsity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sparsity")
            .field("policy", &self.policy())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A policy on its way through one sequence.
pub(super) struct Course {
    policy: Box<dyn Policy>,
    refresh: Refresh,
    plan: Plan,
    gate: Option<Arc<GateSkip>>,
    units: Units,
    /// Tokens since the last decision; 0 before the first.
    since: usize,
    position: usize,
    /// Whether the present token is decided anew.
    due: bool,
    /// Time of the present token's decisions.
    deciding: Duration,
}

impl Course {
    /// Decisions in front of the first layer.
    fn start(&mut self, cpu: &Cpu, position: usize, first: bool, due: bool) -> Result<()> {
        (self.position, self.due, self.deciding) = (position, due, Duration::ZERO);
        if first {
            self.decide(cpu, Station::Once, &[], &[])?;
        }
        if due {
            self.decide(cpu, Station::Start, &[], &[])?;
            self.plan.validate_layer(0, self.units)?;
        }
        Ok(())
    }

    fn decide(&mut self, cpu: &Cpu, station: Station, contexts: &[f32], residual: &[f32]) -> Result<()> {
        if self.policy.stations().contains(&station) {
            let start = Instant::now();
            let input = PolicyInput { station, position: self.position, residual, contexts, cpu };
            self.policy.decide(input, &mut self.plan)?;
            self.deciding += start.elapsed();
        }
        Ok(())
    }
}

impl Director for Course {
    fn left_layer(&mut self, cpu: &Cpu, layer: usize, contexts: &[f32], residual: &[f32]) -> Result<()> {
        if self.due {
            self.decide(cpu, Station::AfterLayer(layer), contexts, residual)?;
            // A policy is anybody's code, and kernels take a list at its word. Each layer is looked at once, when nothing can
            // change it any more; a plan that is held was looked at when it was made.
            if layer + 1 < self.units.layers {
                self.plan.validate_layer(layer + 1, self.units)?;
            }
        }
        Ok(())
    }

    fn kept(&self, layer: usize) -> KeptUnits<'_> {
        let plan = &self.plan.layers[layer];
        KeptUnits { heads: &plan.heads, neurons: &plan.neurons }
    }

    fn gate_thresholds(&self, layer: usize) -> Option<&[f32]> {
        self.gate.as_ref().map(|gate| gate.layer(layer))
    }
}

/// Lets a policy decide from the last row of a dense pass.
pub(super) struct PromptWatch<'a> {
    cpu: &'a Cpu,
    /// Sees what it would see without this.
    probe: &'a mut (dyn Probe + Send),
    course: &'a mut Course,
    /// Of the last token, in the present layer: `[H, d_h]`.
    contexts: Vec<f32>,
    /// The first error; a pass cannot be stopped.
    result: Result<()>,
}

impl PromptWatch<'_> {
    /// The decision holds for the tokens that follow.
    pub(super) fn finish(self) -> Result<()> {
        self.result?;
        (self.course.since, self.course.due) = (1, false);
        Ok(())
    }
}

impl Probe for PromptWatch<'_> {
    fn residual(&mut self, rows: Rows, values: &mut [f32]) {
        self.probe.residual(rows, values);
        // What enters a layer has left the one before.
        if let (Some(left), Ok(()), true) =
            (rows.layer.checked_sub(1), &self.result, rows.layer < self.course.units.layers)
        {
            let last = &values[values.len() - values.len() / rows.count..];
            self.result = self.course.left_layer(self.cpu, left, &self.contexts, last);
        }
    }

    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        self.probe.contexts(rows, values);
        self.contexts.clear();
        self.contexts.extend_from_slice(&values[values.len() - values.len() / rows.count..]);
    }

    fn gates(&mut self, rows: Rows, gates: &mut [f32], ups: &mut [f32]) {
        self.probe.gates(rows, gates, ups);
    }

    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        self.probe.inners(rows, values);
    }
}
