//! A sweep as tables for other programs: one line for each point, and one for each layer of each point.

use crate::eval::Decision;
use crate::eval::sweep::{Point, SweepResults, TaskAccuracy};

/// One field: in quotes where a comma, a quote or a line break would end it.
fn field(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

fn line(fields: impl IntoIterator<Item = String>) -> String {
    fields.into_iter().map(|text| field(&text)).collect::<Vec<_>>().join(",") + "\n"
}

/// A number, or nothing.
fn some<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

const COLUMNS: [&str; 32] = [
    "label",
    "policy",
    "kinds",
    "keep",
    "budget",
    "decision",
    "causal",
    "perplexity",
    "dense_perplexity",
    "ratio",
    "kept_heads",
    "kept_neurons",
    "gate_skipped",
    "bytes_per_token",
    "dense_bytes_per_token",
    "ideal_speedup",
    "decision_bytes",
    "head_width",
    "neuron_width",
    "stations",
    "head_recall",
    "head_recall_of_constant",
    "neuron_recall",
    "neuron_recall_of_constant",
    "heads_always",
    "heads_contextual",
    "heads_never",
    "ms_per_token",
    "dense_ms_per_token",
    "speedup",
    "decision_ms_per_token",
    "timed_bytes_per_token",
];

/// The dense model, then every point.
pub fn sweep_csv(results: &SweepResults) -> String {
    let tasks = results.tasks.iter().flat_map(|task| ["acc", "acc_norm"].map(|what| format!("{}_{what}", task.task)));
    let mut out = line(COLUMNS.map(str::to_owned).into_iter().chain(tasks));
    out += &dense(results);
    results.points.iter().for_each(|point| out += &self::point(results, point));
    out
}

fn accuracies(results: &SweepResults, found: &[TaskAccuracy]) -> Vec<String> {
    let of = |task: &str| found.iter().find(|found| found.task == task);
    let both = |task: &str| [some(of(task).map(|f| f.acc)), some(of(task).and_then(|f| f.acc_norm))];
    results.tasks.iter().flat_map(|task| both(&task.task)).collect()
}

fn dense(results: &SweepResults) -> String {
    let dense = &results.dense;
    let mut fields = vec![String::new(); COLUMNS.len()];
    let mut set = |column: &str, value: String| {
        if let Some(at) = COLUMNS.iter().position(|&name| name == column) {
            fields[at] = value;
        }
    };
    for column in ["label", "policy"] {
        set(column, "dense".to_owned());
    }
    set("causal", "true".to_owned());
    set("perplexity", some(dense.perplexity));
    set("dense_perplexity", some(dense.perplexity));
    for column in ["ratio", "keep", "kept_heads", "kept_neurons", "ideal_speedup"] {
        set(column, "1".to_owned());
    }
    set("kinds", "both".to_owned());
    set("bytes_per_token", dense.bytes_per_token.to_string());
    set("dense_bytes_per_token", dense.bytes_per_token.to_string());
    fields.extend(accuracies(results, &dense.tasks));
    line(fields)
}

fn point(results: &SweepResults, point: &Point) -> String {
    let Point { label, kinds, keep, quality, tasks, speed } = point;
    let policy = results.policies.iter().find(|policy| policy.label == *label);
    let predictor = policy.and_then(|policy| policy.predictor.as_ref());
    let (quality, speed) = (quality.as_ref(), speed.as_ref());
    let dense = results.dense.bytes_per_token;
    let decision = results.conditions.decision;
    let recalls = [quality.and_then(|q| q.head_recall.as_ref()), quality.and_then(|q| q.neuron_recall.as_ref())];
    let census = quality.and_then(|q| q.head_use.as_ref()).map(|uses| uses.census());
    let mut fields = vec![
        label.clone(),
        some(policy.map(|policy| &policy.policy)),
        kinds.to_string(),
        keep.to_string(),
        results.conditions.budget.to_string(),
        decision.to_string(),
        some(policy.map(|policy| policy.decodes && decision == Decision::Causal)),
        some(quality.map(|q| q.perplexity)),
        some(quality.map(|q| q.dense_perplexity)),
        some(quality.map(|q| q.ratio)),
        some(quality.map(|q| q.kept.heads)),
        some(quality.map(|q| q.kept.neurons)),
        some(quality.and_then(|q| q.gate_skipped)),
        some(quality.map(|q| q.bytes_per_token)),
        dense.to_string(),
        some(quality.map(|q| dense / q.bytes_per_token)),
        some(quality.map(|q| q.decision_bytes)),
        some(predictor.map(|p| p.head_width)),
        some(predictor.map(|p| p.neuron_width)),
        some(predictor.map(|p| p.stations.len())),
    ];
    for recall in recalls {
        fields.extend([some(recall.map(|r| r.mean)), some(recall.map(|r| r.mean_of_constant))]);
    }
    fields.extend((0..3).map(|what| some(census.map(|census| census[what]))));
    fields.extend([
        some(speed.map(|s| s.ms_per_token)),
        some(speed.map(|s| s.dense_ms_per_token)),
        some(speed.map(|s| s.speedup)),
        some(speed.map(|s| s.decision_ms_per_token)),
        some(speed.map(|s| s.bytes_per_token)),
    ]);
    fields.extend(accuracies(results, tasks));
    line(fields)
}

/// Recall of layers 1 to L-1 of every point.
pub fn layers_csv(results: &SweepResults) -> String {
    let columns = ["head_recall", "head_recall_of_constant", "neuron_recall", "neuron_recall_of_constant"];
    let mut out = line(["label", "kinds", "keep", "layer"].into_iter().chain(columns).map(str::to_owned));
    for point in &results.points {
        let Some(quality) = &point.quality else { continue };
        let recalls = [quality.head_recall.as_ref(), quality.neuron_recall.as_ref()];
        for layer in 0..results.layers.saturating_sub(1) {
            let mut fields =
                vec![point.label.clone(), point.kinds.to_string(), point.keep.to_string(), (layer + 1).to_string()];
            for recall in recalls {
                fields.push(some(recall.and_then(|r| r.layers.get(layer))));
                fields.push(some(recall.and_then(|r| r.layers_of_constant.get(layer))));
            }
            out += &line(fields);
        }
    }
    out
}
