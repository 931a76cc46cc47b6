//! What a sweep measured: the content of `sweep.json`.

use serde::{Deserialize, Serialize};

use super::conditions::{Conditions, FileRecord, TaskRecord};
use super::grid::Kinds;
use crate::eval::tasks::TaskResult;
use crate::sparsity::Kept;

/// Everything that was measured so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepResults {
    /// Version of the format.
    pub version: u32,
    /// What all points have in common.
    pub conditions: Conditions,
    /// Tasks and their questions.
    pub tasks: Vec<TaskRecord>,
    /// `L`, layers of the model.
    pub layers: usize,
    /// `H`, heads of a layer.
    pub heads: usize,
    /// `F`, neurons of a layer.
    pub neurons: usize,
    /// The policies, in the order in which they were named.
    pub policies: Vec<PolicyRecord>,
    /// The model that all are compared with.
    pub dense: DenseResult,
    /// By policy, then kinds, then kept fraction, largest first.
    pub points: Vec<Point>,
}

/// A policy of the sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// Its name in the results.
    pub label: String,
    /// Which policy it is.
    pub policy: String,
    /// Whether a decoder can have it.
    pub decodes: bool,
    /// Of `random`.
    pub seed: Option<u64>,
    /// What it chooses by.
    pub file: Option<FileRecord>,
    /// What the predictor is like, if there is one.
    pub predictor: Option<PredictorRecord>,
}

/// A predictor of the sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictorRecord {
    /// Layers after which it reads.
    pub stations: Vec<usize>,
    /// Hidden units for heads; 0 without a hidden layer.
    pub head_width: usize,
    /// Hidden units for neurons.
    pub neuron_width: usize,
    /// Criterion that it was trained on.
    pub criterion: String,
    /// Text that it was trained on, in words.
    pub trained_on: String,
}

/// The dense model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DenseResult {
    /// Perplexity on the text; `None` if not measured yet.
    pub perplexity: Option<f64>,
    /// Tokens scored.
    pub tokens: usize,
    /// Bytes that decoding a token reads, on average over the positions of a window.
    pub bytes_per_token: f64,
    /// Accuracies.
    pub tasks: Vec<TaskAccuracy>,
}

/// A policy at a budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Name of the policy.
    pub label: String,
    /// Units that were pruned.
    pub kinds: Kinds,
    /// Fraction of them that the budget keeps.
    pub keep: f32,
    /// On the text; `None` if not measured yet.
    pub quality: Option<Quality>,
    /// On the tasks.
    pub tasks: Vec<TaskAccuracy>,
    /// Of decoding; `None` if not measured.
    pub speed: Option<Speed>,
}

/// Quality on the text, and what was kept there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Perplexity per token.
    pub perplexity: f64,
    /// Of the dense model.
    pub dense_perplexity: f64,
    /// `perplexity / dense_perplexity`.
    pub ratio: f64,
    /// Units kept / units, over all layers and tokens that were decided.
    pub kept: Kept,
    /// Bytes that decoding a token by these plans reads, decisions included, on average. ReLU skip and gate skip, which spare more,
    /// are not in it, and keys and values of heads that were dropped count when they would be made.
    pub bytes_per_token: f64,
    /// Bytes of it that decisions read.
    pub decision_bytes: u64,
    /// Share of the kept neurons that gate skip set to zero.
    pub gate_skipped: Option<f64>,
    /// Of the heads that are truly best; `None` if all were kept.
    pub head_recall: Option<Recall>,
    /// Of the neurons.
    pub neuron_recall: Option<Recall>,
    /// Which heads were kept how often; `None` if all were kept.
    pub head_use: Option<HeadUse>,
}

/// Share of the truly best units, by the sizes of the dense model, that were kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// Over layers 1 to L-1.
    pub mean: f64,
    /// Of the plan that keeps, for all tokens, the units that are most often best: no policy that is the same for every token can
    /// have more.
    pub mean_of_constant: f64,
    /// Each of layers 1 to L-1.
    pub layers: Vec<f64>,
    /// Of that constant plan.
    pub layers_of_constant: Vec<f64>,
    /// Tokens that were compared.
    pub tokens: u64,
}

/// How often heads were kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadUse {
    /// Tokens that were decided.
    pub tokens: u64,
    /// `[L][H]`: tokens that kept it.
    pub times: Vec<Vec<u64>>,
}

impl HeadUse {
    /// Heads of layers 1 to L-1 that every token kept, that some did, and that none did.
    pub fn census(&self) -> [usize; 3] {
        let mut census = [0; 3];
        for &times in self.times.iter().skip(1).flatten() {
            census[match times {
                0 => 2,
                times if times == self.tokens => 0,
                _ => 1,
            }] += 1;
        }
        census
    }
}

/// Accuracy on a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskAccuracy {
    /// Name of the task.
    pub task: String,
    /// Questions answered.
    pub records: usize,
    /// Share of right answers.
    pub acc: f64,
    /// Its standard error.
    pub acc_stderr: Option<f64>,
    /// The same by likelihood per character, where lm-evaluation-harness reports it.
    pub acc_norm: Option<f64>,
}

impl From<&TaskResult> for TaskAccuracy {
    fn from(result: &TaskResult) -> Self {
        TaskAccuracy {
            task: result.task.to_owned(),
            records: result.records,
            acc: rounded(result.acc),
            acc_stderr: result.acc_stderr.map(rounded),
            acc_norm: result.acc_norm.map(rounded),
        }
    }
}

/// Time of a decoded token, in turn with the dense model over the same packed weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Milliseconds of a token, median.
    pub ms_per_token: f64,
    /// Of the dense model, in the same minutes.
    pub dense_ms_per_token: f64,
    /// `dense_ms_per_token / ms_per_token`.
    pub speedup: f64,
    /// Of `ms_per_token`, what decisions take, median.
    pub decision_ms_per_token: f64,
    /// Bytes that a token read, on average, ReLU skip and late keys and values included.
    pub bytes_per_token: f64,
    /// Of the dense model at the same positions.
    pub dense_bytes_per_token: f64,
    /// Tokens that were timed.
    pub tokens: usize,
}

/// To 15 digits: so many survive being written as JSON and read again, and a sweep that is gone on with is the one that was not
/// interrupted, bit for bit.
pub(super) fn rounded(value: f64) -> f64 {
    format!("{value:.14e}").parse().unwrap_or(value)
}

impl SweepResults {
    /// The point of a policy at a budget.
    pub fn point(&self, label: &str, kinds: Kinds, keep: f32) -> Option<&Point> {
        self.points.iter().find(|point| point.is(label, kinds, keep))
    }

    /// Kinds that were swept over.
    pub fn kinds(&self) -> Vec<Kinds> {
        Kinds::ALL.into_iter().filter(|&kinds| self.points.iter().any(|point| point.kinds == kinds)).collect()
    }

    /// Kept fractions of points of these kinds, largest first.
    pub fn kept(&self, kinds: Kinds) -> Vec<f32> {
        let mut kept: Vec<f32> = self.points.iter().filter(|point| point.kinds == kinds).map(|p| p.keep).collect();
        kept.sort_by(|a, b| b.total_cmp(a));
        kept.dedup();
        kept
    }

    /// The place of the point, which is made if need be, and whether it was.
    pub(super) fn entry(&mut self, label: &str, kinds: Kinds, keep: f32) -> &mut Point {
        let order = |label: &str| self.policies.iter().position(|policy| policy.label == label);
        let rank = |label: &str, kinds: Kinds, keep: f32| (order(label), kinds, std::cmp::Reverse(keep.to_bits()));
        // Fractions are positive, so their bits order as they do.
        let wanted = rank(label, kinds, keep);
        let at = self.points.partition_point(|point| rank(&point.label, point.kinds, point.keep) < wanted);
        if !self.points.get(at).is_some_and(|point| point.is(label, kinds, keep)) {
            let label = label.to_owned();
            self.points.insert(at, Point { label, kinds, keep, quality: None, tasks: Vec::new(), speed: None });
        }
        &mut self.points[at]
    }
}

impl Point {
    /// Whether it is the one of this policy and budget.
    pub fn is(&self, label: &str, kinds: Kinds, keep: f32) -> bool {
        self.label == label && self.kinds == kinds && self.keep == keep
    }

    /// Its accuracy on a task.
    pub fn task(&self, name: &str) -> Option<&TaskAccuracy> {
        self.tasks.iter().find(|task| task.task == name)
    }
}
