//! `shadowllm sweep`: many policies at many budgets, as a report.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use shadowllm_weights::PackedCheckpoint;

use super::console::Console;
use super::eval::{TaskFile, task_file};
use super::gate::GateArgs;
use super::options::ModelArgs;
use super::policy::PolicyName;
use super::text::TextArgs;
use crate::eval::report::write_sweep;
use crate::eval::sweep::{FileRecord, Kinds, Store, Sweep, SweepPolicy, SweepResults};
use crate::eval::tasks::{Prepared, Shots};
use crate::eval::{Decision, Masking, Windows};
use crate::generate::Engine;
use crate::sparsity::Scope;
use crate::{Error, Result};

/// Measure policies at many budgets and write a report.
///
/// Every policy is measured at every fraction of heads, of neurons and of both, on the same text, beside the dense model: perplexity,
/// accuracy of tasks, which units were kept and, with --speed, the time of a decoded token from the same weights. Each measurement
/// is on disk when it is made; a sweep that was stopped goes on when it is started again, and more policies, fractions, kinds and
/// tasks may be added to one that is there.
#[derive(Debug, Args)]
pub(super) struct SweepCommand {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    text: TextArgs,

    /// Tokens of one window [default: 512, or the model's context if that is shorter].
    #[arg(long, value_name = "N")]
    window: Option<usize>,

    /// Windows from the start of the text [default: all that are complete].
    #[arg(long, value_name = "K")]
    windows: Option<usize>,

    /// Who chooses: random, oracle, static=SCORES, shadow=PREDICTOR, dejavu=PREDICTOR; a name in front tells several of a kind apart,
    /// as in wide:shadow=FILE. The dense model is always measured.
    #[arg(long, value_name = "[NAME:]POLICY[=FILE],...", value_delimiter = ',', default_value = "random,oracle")]
    policies: Vec<String>,

    /// Fractions to keep, above 0 and at most 1.
    #[arg(
        long,
        value_name = "FRACTION,...",
        value_delimiter = ',',
        allow_negative_numbers = true,
        default_value = "0.9,0.7,0.5,0.3"
    )]
    keep: Vec<f32>,

    /// Of which units: heads, neurons, both.
    #[arg(long, value_name = "KINDS,...", value_delimiter = ',', default_value = "heads,neurons,both")]
    kinds: Vec<Kinds>,

    /// Whether every layer keeps its fraction (local) or all layers together do (global).
    #[arg(long, value_name = "SCOPE", default_value_t = Scope::Local)]
    budget: Scope,

    /// Which token decides: each for itself (causal), as in decoding, or the last of a text for all of it (sequence), which no
    /// decoder can do; for comparison only.
    #[arg(long, value_name = "RULE", default_value_t = Decision::Causal)]
    decision: Decision,

    /// Tokens at the start of each text that keep everything [default: 0; 1 with gate skip].
    #[arg(long, value_name = "N")]
    dense_prefix: Option<usize>,

    /// Seed of the policy random.
    #[arg(long, value_name = "N", default_value_t = 0)]
    policy_seed: u64,

    /// Tasks beside the text, each with its data set: piqa, copa, openbookqa, winogrande, rte, hellaswag, arc_easy.
    #[arg(long, value_name = "NAME=FILE,...", value_delimiter = ',', value_parser = task_file)]
    tasks: Vec<TaskFile>,

    /// Questions from the start of each task's file [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), requires = "tasks")]
    limit: Option<u64>,

    /// Also time decoding under each policy that a decoder can have, in turn with the dense model over the same packed weights,
    /// which are packed once.
    #[arg(long)]
    speed: bool,

    /// The folder to write to, and to go on in: sweep.json, sweep.csv, layers.csv, report.html.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    gate: GateArgs,
}

/// What `sweep --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// The folder.
    out: &'a Path,
    /// The files written there.
    files: Vec<PathBuf>,
    /// Measurements that were made now.
    measured: usize,
    /// What is in `sweep.json`.
    #[serde(flatten)]
    results: &'a SweepResults,
}

const BAR: &str = "[{prefix}] {msg:40!} [{bar:30}] {pos}/{len}";

impl SweepCommand {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let checkpoint = self.model.checkpoint(console)?;
        let engine = self.model.engine_of(&checkpoint)?;
        let tokens = self.text.tokens(&engine)?;
        let policies = self.policies(&engine)?;
        let limit = self.limit.and_then(|limit| usize::try_from(limit).ok());
        let read = |file: &TaskFile| Prepared::read(&engine, file.task, &file.path, limit, &mut Shots::none());
        let tasks = self.tasks.iter().map(read).collect::<Result<Vec<_>>>()?;
        let gate = self.gate.load(&engine)?;
        let dense_prefix = self.dense_prefix.unwrap_or(usize::from(gate.is_some()));
        let size = self.window.unwrap_or_else(|| engine.config().max_positions.min(512));
        let mut sweep = Sweep {
            engine: &engine,
            packed: None,
            text: self.text.name(),
            tokens: &tokens,
            windows: Windows { size, count: self.windows },
            tasks: &tasks,
            policies: &policies,
            kept: &self.keep,
            kinds: &self.kinds,
            budget: self.budget,
            masking: Masking { decision: self.decision, dense_prefix, gate },
            gate_thresholds: self.gate.thresholds().map(FileRecord::of).transpose()?,
        };
        sweep.check(self.speed)?;
        let mut store = sweep.open(&self.out)?;
        let packed;
        if self.speed {
            packed = engine.over(&PackedCheckpoint::open_or_pack(&checkpoint, &console.bytes_progress())?)?;
            sweep.packed = Some(&packed);
        }
        let (result, measured) = self.measure(console, &sweep, &mut store);
        if measured > 0 && matches!(result, Err(Error::Interrupted)) {
            console.note(&format!("{} holds what was measured: the same command goes on", self.out.display()));
        }
        // Also of a sweep that was stopped: there is something to look at.
        let files = write_sweep(&self.out, store.results());
        result?;
        let (files, results) = (files?, store.results());
        if self.json {
            return console.json(&Report { out: &self.out, files, measured, results });
        }
        for file in &files {
            console.line(&file.display().to_string())?;
        }
        print(console, results)
    }

    /// Measures with a bar; Ctrl-C ends it. Also says how many measurements were begun.
    fn measure(&self, console: &Console, sweep: &Sweep<'_>, store: &mut Store) -> (Result<()>, usize) {
        let (bar, heeded) = (console.bar(0, BAR), console.heed_interrupts());
        let mut measured = 0;
        let result = sweep.run(store, &mut |event| {
            measured = event.step;
            bar.set_prefix(format!("{}/{}", event.step, event.steps));
            bar.set_message(event.what.to_owned());
            bar.set_length(event.of as u64);
            bar.set_position(event.done as u64);
            if heeded.go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        bar.finish_and_clear();
        (result, measured)
    }

    fn policies(&self, engine: &Engine) -> Result<Vec<SweepPolicy>> {
        let given = self.policies.iter().map(|text| PolicySpec::parse(text)).collect::<Result<Vec<_>>>()?;
        // The dense model is measured anyway.
        let others = given.into_iter().filter(|spec| spec.name != PolicyName::Dense);
        others
            .map(|PolicySpec { label, name, file }| {
                let source = name.source(file.as_deref(), file.as_deref(), self.policy_seed, engine)?;
                SweepPolicy::new(label, source, file.as_deref())
            })
            .collect()
    }
}

/// A policy as it is written: `[NAME:]POLICY[=FILE]`.
#[derive(Debug, PartialEq)]
struct PolicySpec {
    label: String,
    name: PolicyName,
    file: Option<PathBuf>,
}

impl PolicySpec {
    fn parse(text: &str) -> Result<Self> {
        let wrong = |reason: String| Error::SweepPolicy { found: text.to_owned(), reason };
        let (who, file) = match text.trim().split_once('=') {
            Some((who, file)) => (who, Some(PathBuf::from(file))),
            None => (text.trim(), None),
        };
        let (label, name) = who.split_once(':').unwrap_or((who, who));
        let known = PolicyName::named(name).ok_or_else(|| {
            let expected = "is none that is known; expected random, oracle, static=SCORES, shadow=PREDICTOR or dejavu=PREDICTOR, \
                            perhaps with a name in front, such as mine:shadow=PREDICTOR";
            wrong(expected.to_owned())
        })?;
        if label.is_empty() {
            return Err(wrong("has an empty name; write NAME:POLICY".to_owned()));
        }
        match (known.file(), &file) {
            (Some(what), None) => Err(wrong(format!("needs a file with {what}: {who}=FILE"))),
            (None, Some(_)) => Err(wrong(format!("reads no file; write {who} alone"))),
            _ => Ok(PolicySpec { label: label.to_owned(), name: known, file }),
        }
    }
}

fn print(console: &mut Console, results: &SweepResults) -> Result<()> {
    let dense = results.dense.perplexity.unwrap_or(f64::NAN);
    console.line(&format!("dense: perplexity {dense:.4} over {} tokens", results.dense.tokens))?;
    console.line(&format!(
        "{:20} {:8} {:>6} {:>12} {:>10} {:>8}",
        "policy", "kinds", "keep", "perplexity", "ratio", "ms"
    ))?;
    for point in &results.points {
        let (Some(quality), speed) = (&point.quality, &point.speed) else { continue };
        let ms = speed.as_ref().map_or_else(|| "-".to_owned(), |speed| format!("{:.3}", speed.ms_per_token));
        console.line(&format!(
            "{:20} {:8} {:>6} {:>12.4} {:>10.4} {ms:>8}",
            point.label,
            point.kinds.name(),
            point.keep,
            quality.perplexity,
            quality.ratio,
        ))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read() {
        let read = |text: &str| {
            let PolicySpec { label, name, file } = PolicySpec::parse(text).unwrap();
            (label, name, file.map(|file| file.display().to_string()))
        };
        assert_eq!(read("random"), ("random".to_owned(), PolicyName::Random, None));
        assert_eq!(read(" shadow=a:b=c"), ("shadow".to_owned(), PolicyName::Shadow, Some("a:b=c".to_owned())));
        assert_eq!(read("wide:dejavu=f"), ("wide".to_owned(), PolicyName::Dejavu, Some("f".to_owned())));
        let message = |text: &str| PolicySpec::parse(text).unwrap_err().to_string();
        assert_eq!(
            message("luck"),
            "policy \"luck\" is none that is known; expected random, oracle, static=SCORES, shadow=PREDICTOR or dejavu=PREDICTOR, \
             perhaps with a name in front, such as mine:shadow=PREDICTOR"
        );
        assert_eq!(message("shadow"), "policy \"shadow\" needs a file with a predictor: shadow=FILE");
        assert_eq!(message("a:static"), "policy \"a:static\" needs a file with scores: a:static=FILE");
        assert_eq!(message("oracle=f"), "policy \"oracle=f\" reads no file; write oracle alone");
        assert_eq!(message(":random"), "policy \":random\" has an empty name; write NAME:POLICY");
    }
}
