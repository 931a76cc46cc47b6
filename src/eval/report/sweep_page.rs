//! The report of a sweep.

use super::axis::Axis;
use super::chart::{Chart, Line, STYLES};
use super::head_map::head_map;
use super::page::Page;
use crate::eval::Decision;
use crate::eval::sweep::{Kinds, Point, PolicyRecord, Quality, Recall, SweepResults, TaskAccuracy};

/// The page, of as much as was measured.
pub fn sweep_page(results: &SweepResults) -> String {
    let mut page = Page::new(&format!("Sweep of {}", results.conditions.model));
    introduction(&mut page, results);
    perplexities(&mut page, results);
    costs(&mut page, results);
    accuracies(&mut page, results);
    recalls(&mut page, results);
    heads(&mut page, results);
    widths(&mut page, results);
    tables(&mut page, results);
    page.finish()
}

fn introduction(page: &mut Page, results: &SweepResults) {
    let c = &results.conditions;
    let dense = results.dense.perplexity.map_or_else(|| "not measured yet".to_owned(), |value| format!("{value:.4}"));
    page.paragraph(&format!(
        "Perplexity of the dense model: {dense}, over {} tokens of {} in {} windows of {}. {} layers of {} heads and {} neurons; \
         layer 0 keeps everything. Budget {}, decision {}.",
        results.dense.tokens,
        c.text,
        c.windows,
        c.window,
        results.layers,
        results.heads,
        results.neurons,
        c.budget,
        c.decision,
    ));
    let measured = results.points.iter().filter(|point| point.quality.is_some()).count();
    page.paragraph(&format!(
        "{measured} points of {} policies, each beside the dense model on the same text. Units that are not kept are set to zero, \
         which is what sparse decoding gives. Ran on {} with {} threads, products in {}.",
        results.policies.len(),
        c.isa,
        c.threads,
        c.compute,
    ));
    if c.decision == Decision::Sequence {
        page.paragraph(
            "Decision sequence is not causal: the last token of a text chose the units of all. No decoder can do that; for \
             comparison only.",
        );
    }
    if let Some(fraction) = c.gate_skip {
        page.paragraph(&format!("Gate skip {fraction} beside every policy: lossy."));
    }
}

/// The style of a policy, the same in all charts.
fn style(results: &SweepResults, label: &str) -> usize {
    results.policies.iter().position(|policy| policy.label == label).unwrap_or(0)
}

fn policy_legend(page: &mut Page, results: &SweepResults) {
    page.legend(results.policies.iter().enumerate().map(|(style, policy)| (policy.label.as_str(), style, false)));
}

/// For each policy the points of these kinds, largest fraction first, as far as `value` has something to say of them.
fn lines(results: &SweepResults, kinds: Kinds, value: impl Fn(&Point) -> Option<(f64, f64)>) -> Vec<Line> {
    let line = |policy: &PolicyRecord| {
        let points = results.points.iter().filter(|point| point.label == policy.label && point.kinds == kinds);
        let points = points.filter_map(&value).filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        let style = style(results, &policy.label);
        Line { name: policy.label.clone(), style, dashed: false, points }
    };
    results.policies.iter().map(line).filter(|line| !line.points.is_empty()).collect()
}

/// A chart for each of the kinds that have points, over the same axes.
fn by_kinds(
    results: &SweepResults,
    labels: [&str; 2],
    level: Option<(f64, &str)>,
    mark: Option<(f64, f64)>,
    value: impl Fn(&Point) -> Option<(f64, f64)>,
) -> Vec<(String, String)> {
    let all: Vec<(Kinds, Vec<Line>)> =
        results.kinds().into_iter().map(|kinds| (kinds, lines(results, kinds, &value))).collect();
    let points = || all.iter().flat_map(|(_, lines)| lines).flat_map(|line| line.points.iter().copied());
    let x = Axis::linear(labels[0], points().map(|p| p.0).chain(mark.map(|mark| mark.0)));
    let y = Axis::of(labels[1], points().map(|p| p.1).chain(level.map(|l| l.0)).chain(mark.map(|mark| mark.1)));
    let charts = all.into_iter().filter(|(_, lines)| !lines.is_empty()).map(|(kinds, lines)| Chart {
        title: title(kinds).to_owned(),
        x: x.clone(),
        y: y.clone(),
        lines,
        level: level.map(|(level, name)| (level, name.to_owned())),
        mark: mark.map(|(x, y)| (x, y, "dense".to_owned())),
    });
    charts.map(|chart| (chart.draw(), String::new())).collect()
}

fn title(kinds: Kinds) -> &'static str {
    match kinds {
        Kinds::Heads => "heads",
        Kinds::Neurons => "neurons",
        Kinds::Both => "heads and neurons",
    }
}

fn perplexities(page: &mut Page, results: &SweepResults) {
    page.heading("Perplexity against kept fraction");
    page.paragraph(
        "Times the perplexity of the dense model, which is the dotted line; lower is better. The oracle knows what the dense model \
         computes and cannot be had while decoding.",
    );
    policy_legend(page, results);
    page.pictures(&by_kinds(results, ["kept fraction", "perplexity / dense"], Some((1.0, "dense")), None, |point| {
        Some((f64::from(point.keep), point.quality.as_ref()?.ratio))
    }));
}

fn costs(page: &mut Page, results: &SweepResults) {
    page.heading("Quality against bytes read per token");
    page.paragraph(
        "What decoding by these plans reads, decisions and the key/value cache included, on average over the positions of a window. \
         Left and down is better; the cross is the dense model.",
    );
    policy_legend(page, results);
    let dense = (results.dense.bytes_per_token / 1e6, 1.0);
    page.pictures(&by_kinds(results, ["MB per token", "perplexity / dense"], None, Some(dense), |point| {
        let quality = point.quality.as_ref()?;
        Some((quality.bytes_per_token / 1e6, quality.ratio))
    }));
    let mut times: Vec<f64> =
        results.points.iter().filter_map(|p| Some(p.speed.as_ref()?.dense_ms_per_token)).collect();
    if times.is_empty() {
        return;
    }
    times.sort_by(f64::total_cmp);
    let dense = (times[times.len() / 2], 1.0);
    page.heading("Quality against measured time per token");
    page.paragraph(
        "Time of a decoded token over the packed weights of the same model, decisions included: medians, each measured in turn with \
         the dense model. The cross is the dense model, at the median of its times.",
    );
    policy_legend(page, results);
    page.pictures(&by_kinds(results, ["ms per token", "perplexity / dense"], None, Some(dense), |point| {
        Some((point.speed.as_ref()?.ms_per_token, point.quality.as_ref()?.ratio))
    }));
}

fn accuracies(page: &mut Page, results: &SweepResults) {
    if results.tasks.is_empty() {
        return;
    }
    page.heading("Accuracy on tasks against kept fraction");
    page.paragraph("Share of questions whose right answer is the most likely one. The dotted line is the dense model.");
    policy_legend(page, results);
    for task in &results.tasks {
        let dense = results.dense.tasks.iter().find(|found| found.task == task.task).map(|found| (found.acc, "dense"));
        let label = format!("{}, {} questions", task.task, task.records);
        page.pictures(&by_kinds(results, ["kept fraction", &label], dense, None, |point| {
            Some((f64::from(point.keep), point.task(&task.task)?.acc))
        }));
    }
}

/// Takes the recall of one kind of unit.
type Take = fn(&Quality) -> Option<&Recall>;

fn recalls(page: &mut Page, results: &SweepResults) {
    let takes: [(&str, Take); 2] =
        [("heads", |quality| quality.head_recall.as_ref()), ("neurons", |quality| quality.neuron_recall.as_ref())];
    let mut shown = Vec::new();
    for kinds in results.kinds() {
        let kept = results.kept(kinds);
        let open = middle(&kept);
        for keep in kept {
            let prunes = |name: &str| kinds == Kinds::Both || kinds.name() == name;
            for (name, take) in takes.iter().filter(|(name, _)| prunes(name)) {
                if let Some(chart) = recall(results, kinds, keep, name, *take) {
                    // What both prune is near what each does alone.
                    let alone = kinds != Kinds::Both || results.kinds().len() == 1;
                    shown.push((Some(keep) == open && alone, chart));
                }
            }
        }
    }
    if shown.is_empty() {
        return;
    }
    page.heading("Recall per layer");
    page.paragraph(
        "Share of the units that are truly best for a token, by the sizes of the dense model, that were kept. The dashed line is the \
         best that any policy could have that keeps the same units for all tokens: what is above it is contextual.",
    );
    let constant = ("best constant plan", CONSTANT, true);
    let policies = results.policies.iter().enumerate().map(|(style, policy)| (policy.label.as_str(), style, false));
    page.legend(policies.chain([constant]));
    let of = |open: bool| -> Vec<(String, String)> {
        shown.iter().filter(|chart| chart.0 == open).map(|chart| (chart.1.clone(), String::new())).collect()
    };
    page.pictures(&of(true));
    let others = of(false);
    if !others.is_empty() {
        page.folded("Other fractions and kinds", |page| page.pictures(&others));
    }
}

/// The style of the constant plan.
const CONSTANT: usize = STYLES - 1;

/// Of several fractions the one that is nearest to a half.
fn middle(kept: &[f32]) -> Option<f32> {
    kept.iter().copied().min_by(|a, b| (a - 0.5).abs().total_cmp(&(b - 0.5).abs()))
}

fn recall(results: &SweepResults, kinds: Kinds, keep: f32, name: &str, take: Take) -> Option<String> {
    let found: Vec<(&str, &Recall)> = results
        .points
        .iter()
        .filter(|point| point.kinds == kinds && point.keep == keep)
        .filter_map(|point| Some((point.label.as_str(), take(point.quality.as_ref()?)?)))
        .collect();
    let points = |shares: &[f64]| (1..).zip(shares).map(|(layer, &share)| (f64::from(layer), share)).collect();
    let line = |(label, recall): &(&str, &Recall)| Line {
        name: (*label).to_owned(),
        style: style(results, label),
        dashed: false,
        points: points(&recall.layers),
    };
    let mut lines: Vec<Line> = found.iter().map(line).collect();
    lines.push(Line {
        name: "best constant plan".to_owned(),
        style: CONSTANT,
        dashed: true,
        points: points(&found.first()?.1.layers_of_constant),
    });
    let among = if kinds == Kinds::Both { ", both pruned" } else { "" };
    let chart = Chart {
        title: format!("{name}, {} kept{among}", keep),
        x: Axis::linear("layer", [1.0, results.layers as f64 - 1.0].into_iter()),
        y: Axis::linear("recall", lines.iter().flat_map(|line| line.points.iter().map(|point| point.1)).chain([1.0])),
        lines,
        level: None,
        mark: None,
    };
    Some(chart.draw())
}

fn heads(page: &mut Page, results: &SweepResults) {
    let shown = |kinds: Kinds| {
        let mut pictures = Vec::new();
        for point in results.points.iter().filter(|point| point.kinds == kinds) {
            let Some(uses) = point.quality.as_ref().and_then(|quality| quality.head_use.as_ref()) else { continue };
            let [always, some, never] = uses.census();
            let caption = format!("{always} always, {some} contextual, {never} never");
            pictures.push((head_map(&format!("{}, {} kept", point.label, point.keep), uses), caption));
        }
        pictures
    };
    // What both prune is near what each does alone.
    let (alone, both) = (shown(Kinds::Heads), shown(Kinds::Both));
    if alone.is_empty() && both.is_empty() {
        return;
    }
    page.heading("Which heads are contextual");
    page.paragraph(
        "Grey heads were kept by every token, blank ones by none; blue ones depend on the token, darker the more often they were \
         kept. Counts are of layers 1 and up.",
    );
    match (alone.is_empty(), both.is_empty()) {
        (true, _) => page.pictures(&both),
        (false, true) => page.pictures(&alone),
        (false, false) => {
            page.pictures(&alone);
            page.folded("Neurons pruned, too", |page| page.pictures(&both));
        }
    }
}

/// Hidden units that a predictor has for units of these kinds.
fn width(policy: &PolicyRecord, kinds: Kinds) -> Option<usize> {
    let predictor = policy.predictor.as_ref()?;
    Some(match kinds {
        Kinds::Heads => predictor.head_width,
        Kinds::Neurons => predictor.neuron_width,
        Kinds::Both => predictor.head_width.max(predictor.neuron_width),
    })
}

fn widths(page: &mut Page, results: &SweepResults) {
    let predicted: Vec<&PolicyRecord> = results.policies.iter().filter(|policy| policy.predictor.is_some()).collect();
    if predicted.is_empty() {
        return;
    }
    page.heading("Predictor width against quality");
    page.paragraph(
        "Hidden units of the predictors, those for neurons where both are pruned and they are more. Lines join predictors of one kind \
         at one kept fraction; sweep over predictors of several widths to see them.",
    );
    let mut names: Vec<(&str, f32)> = Vec::new();
    let mut charts = Vec::new();
    for kinds in results.kinds() {
        let mut lines: Vec<Line> = Vec::new();
        for keep in results.kept(kinds) {
            for policy in &predicted {
                let known = results.point(&policy.label, kinds, keep).and_then(|point| point.quality.as_ref());
                let (Some(quality), Some(width)) = (known, width(policy, kinds)) else { continue };
                let name = (policy.policy.as_str(), keep);
                let style = names.iter().position(|&known| known == name).unwrap_or_else(|| {
                    names.push(name);
                    names.len() - 1
                });
                let place = (width as f64, quality.ratio);
                match lines.iter_mut().find(|line| line.style == style) {
                    Some(line) => line.points.push(place),
                    None => {
                        let name = format!("{}, {} kept", policy.policy, keep);
                        lines.push(Line { name, style, dashed: false, points: vec![place] });
                    }
                }
            }
        }
        lines.iter_mut().for_each(|line| line.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
        let points = || lines.iter().flat_map(|line| line.points.iter().copied());
        if let Some((first, _)) = points().next() {
            // A single width has nothing beside it but zero.
            let alone = points().all(|point| point.0 == first);
            let chart = Chart {
                title: title(kinds).to_owned(),
                x: Axis::of("hidden units", points().map(|p| p.0).chain(alone.then_some(0.0))),
                y: Axis::of("perplexity / dense", points().map(|p| p.1).chain([1.0])),
                level: Some((1.0, "dense".to_owned())),
                mark: None,
                lines,
            };
            charts.push((chart.draw(), String::new()));
        }
    }
    let names: Vec<String> = names.iter().map(|(policy, keep)| format!("{policy}, {keep} kept")).collect();
    page.legend(names.iter().enumerate().map(|(style, name)| (name.as_str(), style, false)));
    page.pictures(&charts);
}

fn tables(page: &mut Page, results: &SweepResults) {
    page.heading("All figures");
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let none = || "–".to_owned();
    let mut head = [
        "policy",
        "pruned",
        "keep",
        "perplexity",
        "/ dense",
        "heads kept",
        "neurons kept",
        "MB/token",
        "ideal",
        "head recall",
        "constant",
        "neuron recall",
        "constant",
        "ms/token",
        "dense ms",
        "speed-up",
    ]
    .map(str::to_owned)
    .to_vec();
    head.extend(results.tasks.iter().map(|task| task.task.clone()));
    let accuracy = |found: &[TaskAccuracy]| {
        let of = |task: &str| found.iter().find(|found| found.task == task);
        let cells = results.tasks.iter().map(|task| of(&task.task));
        cells.map(|found| found.map_or_else(none, |found| format!("{:.4}", found.acc))).collect::<Vec<_>>()
    };
    let dense = &results.dense;
    let mut first = vec![none(); head.len()];
    first[0] = "dense".to_owned();
    first[3] = dense.perplexity.map_or_else(none, |value| format!("{value:.4}"));
    first[4] = "1".to_owned();
    (first[5], first[6]) = (percent(1.0), percent(1.0));
    first[7] = format!("{:.2}", dense.bytes_per_token / 1e6);
    first[8] = "1.00".to_owned();
    first.truncate(head.len() - results.tasks.len());
    first.extend(accuracy(&dense.tasks));
    let mut rows = vec![first];
    for point in &results.points {
        let (quality, speed) = (point.quality.as_ref(), point.speed.as_ref());
        let of = |value: Option<f64>, write: &dyn Fn(f64) -> String| value.map_or_else(none, write);
        let two = |value: f64| format!("{value:.2}");
        let four = |value: f64| format!("{value:.4}");
        let recall = |take: Take| {
            let recall = quality.and_then(take);
            [of(recall.map(|r| r.mean), &percent), of(recall.map(|r| r.mean_of_constant), &percent)]
        };
        let mut row = vec![
            point.label.clone(),
            title(point.kinds).to_owned(),
            point.keep.to_string(),
            of(quality.map(|q| q.perplexity), &four),
            of(quality.map(|q| q.ratio), &four),
            of(quality.map(|q| q.kept.heads), &percent),
            of(quality.map(|q| q.kept.neurons), &percent),
            of(quality.map(|q| q.bytes_per_token / 1e6), &two),
            of(quality.map(|q| dense.bytes_per_token / q.bytes_per_token), &two),
        ];
        row.extend(recall(|quality| quality.head_recall.as_ref()));
        row.extend(recall(|quality| quality.neuron_recall.as_ref()));
        row.push(of(speed.map(|s| s.ms_per_token), &four));
        row.push(of(speed.map(|s| s.dense_ms_per_token), &four));
        row.push(of(speed.map(|s| s.speedup), &two));
        row.extend(accuracy(&point.tasks));
        rows.push(row);
    }
    page.table(&head, &rows);
    page.folded("Policies", |page| policies(page, results));
    page.folded("Recall of every layer", |page| layers(page, results));
}

fn policies(page: &mut Page, results: &SweepResults) {
    let head = ["name", "policy", "file", "stations", "hidden units", "criterion", "trained on"].map(str::to_owned);
    let row = |policy: &PolicyRecord| {
        let predictor = policy.predictor.as_ref();
        let stations = |p: &crate::eval::sweep::PredictorRecord| {
            p.stations.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        vec![
            policy.label.clone(),
            policy.policy.clone(),
            policy.file.as_ref().map_or_else(String::new, |file| file.name.clone()),
            predictor.map_or_else(String::new, stations),
            predictor.map_or_else(String::new, |p| format!("{} heads, {} neurons", p.head_width, p.neuron_width)),
            predictor.map_or_else(String::new, |p| p.criterion.clone()),
            predictor.map_or_else(String::new, |p| p.trained_on.clone()),
        ]
    };
    page.table(&head, &results.policies.iter().map(row).collect::<Vec<_>>());
}

fn layers(page: &mut Page, results: &SweepResults) {
    let mut head = ["policy", "pruned", "keep", "units"].map(str::to_owned).to_vec();
    head.extend((1..results.layers).map(|layer| layer.to_string()));
    let mut rows = Vec::new();
    for point in &results.points {
        let Some(quality) = &point.quality else { continue };
        for (name, recall) in [("heads", &quality.head_recall), ("neurons", &quality.neuron_recall)] {
            let Some(recall) = recall else { continue };
            for (units, shares) in
                [(name.to_owned(), &recall.layers), (format!("{name}, constant"), &recall.layers_of_constant)]
            {
                let mut row = vec![point.label.clone(), title(point.kinds).to_owned(), point.keep.to_string(), units];
                row.extend(shares.iter().map(|share| format!("{share:.3}")));
                rows.push(row);
            }
        }
    }
    page.table(&head, &rows);
}
