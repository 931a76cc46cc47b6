//! A session's sparsity: who chooses units, how often, and what the last token read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Result;
use crate::kernels::Cpu;
use crate::model::{Director, KeptUnits, PackedModel, SparseCount, SparseOptions};
use crate::sparsity::{Plan, Policy, PolicyInput, Refresh, Station, Units};

/// Makes the decode steps of a session sparse: `Session::set_sparsity`.
pub struct Sparsity {
    pub(super) packed: Arc<PackedModel>,
    pub(super) options: SparseOptions,
    course: Course,
    count: SparseCount,
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
        let course =
            Course { policy, refresh, plan, units, since: 0, position: 0, due: false, deciding: Duration::ZERO };
        Sparsity { packed, options, course, count: SparseCount::default() }
    }

    /// The policy's name.
    pub fn policy(&self) -> &'static str {
        self.course.policy.name()
    }

    /// The records that it runs over.
    pub fn packed(&self) -> &PackedModel {
        &self.packed
    }

    /// The plan of the last step; the dense one before.
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
        course.position = position;
        course.deciding = Duration::ZERO;
        course.due = course.refresh.is_due(course.since);
        if course.since == 0 {
            course.decide(cpu, Station::Once, &[], &[])?;
        }
        if course.due {
            course.decide(cpu, Station::Start, &[], &[])?;
        }
        Ok(course)
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
    fn decide(&mut self, cpu: &Cpu, station: Station, contexts: &[f32], residual: &[f32]) -> Result<()> {
        if self.policy.stations().contains(&station) {
            let start = Instant::now();
            let input = PolicyInput { station, position: self.position, residual, contexts, cpu };
            self.policy.decide(input, &mut self.plan)?;
            // A policy is anybody's code, and kernels take a list at its word.
            self.plan.validate(self.units)?;
            self.deciding += start.elapsed();
        }
        Ok(())
    }
}

impl Director for Course {
    fn left_layer(&mut self, cpu: &Cpu, layer: usize, contexts: &[f32], residual: &[f32]) -> Result<()> {
        if self.due { self.decide(cpu, Station::AfterLayer(layer), contexts, residual) } else { Ok(()) }
    }

    fn kept(&self, layer: usize) -> KeptUnits<'_> {
        let plan = &self.plan.layers[layer];
        KeptUnits { heads: &plan.heads, neurons: &plan.neurons }
    }
}
