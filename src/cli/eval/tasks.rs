//! `shadowllm eval tasks`.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::masking::{MaskingArgs, MaskingReport};
use crate::cli::console::Console;
use crate::cli::options::ModelArgs;
use crate::eval::tasks::{Prepared, Shots, TASKS, TaskFormat, TaskResult, likelihoods, read_items, task};
use crate::generate::Engine;
use crate::{Error, Result};

/// Accuracy on multiple-choice tasks.
///
/// The answer to a question is the choice that the model finds most likely; prompts, cuts between tokens and figures are those of
/// lm-evaluation-harness 0.4. Tasks: piqa, copa, openbookqa, winogrande, rte, hellaswag, arc_easy.
#[derive(Debug, Args)]
pub(in crate::cli) struct TasksCommand {
    #[command(flatten)]
    model: ModelArgs,

    /// A task and its data set, a jsonl file with the columns of Hugging Face; may be given several times.
    #[arg(long = "task", value_name = "NAME=FILE", required = true, value_parser = task_file)]
    tasks: Vec<TaskFile>,

    /// Questions from the start of each file [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,

    /// Examples with their answers in front of every question.
    #[arg(long, value_name = "K", default_value_t = 0, requires = "shots_from")]
    shots: usize,

    /// File of examples, the train split of the task; with several tasks one for each, as NAME=FILE.
    #[arg(long, value_name = "[NAME=]FILE", requires = "shots")]
    shots_from: Vec<String>,

    /// Seed of the choice of examples.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,

    // Last: its heading is that of all options after it.
    #[command(flatten)]
    masking: MaskingArgs,
}

/// A task and the file of its records.
#[derive(Clone, Debug)]
pub(in crate::cli) struct TaskFile {
    pub(in crate::cli) task: &'static dyn TaskFormat,
    pub(in crate::cli) path: PathBuf,
}

pub(in crate::cli) fn task_file(text: &str) -> Result<TaskFile, String> {
    let (name, path) = text.split_once('=').ok_or_else(|| {
        format!(
            "expected NAME=FILE, such as piqa=piqa.jsonl; known tasks are {}",
            TASKS.map(TaskFormat::name).join(", ")
        )
    })?;
    let task = task(name).map_err(|error| error.to_string())?;
    Ok(TaskFile { task, path: PathBuf::from(path) })
}

/// What `eval tasks --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Where the model came from.
    model: &'a str,
    /// Examples in front of every question.
    shots: usize,
    /// Each with `task`, `records`, `choices`, `acc`, `acc_stderr`, `acc_norm`, `acc_norm_stderr` and `acc_bytes`.
    tasks: Vec<TaskResult>,
    /// Mean of `acc` over the tasks.
    mean_acc: f64,
    /// Its standard error; `null` if that of a task is.
    mean_acc_stderr: Option<f64>,
    /// Choices scored per second.
    choices_per_second: f64,
    /// `policy`, `budget`, `oracle`, `kept`, `decision`, `causal`, `dense_prefix` and `gate_skip`.
    #[serde(flatten)]
    masking: MaskingReport,
}

const BAR: &str = "{prefix} [{bar:30}] {pos}/{len} questions, {eta} left";

impl TasksCommand {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let engine = self.model.engine(console)?;
        // All files are read before the first is scored: a mistake in the last shows at once.
        let tasks = self.tasks.iter().map(|file| self.prepare(&engine, file)).collect::<Result<Vec<_>>>()?;
        let mut loaded = self.masking.load(console, &engine)?;
        let heeded = console.heed_interrupts();
        let start = Instant::now();
        let mut results = Vec::new();
        for Prepared { task, items, questions } in &tasks {
            let bar = console.bar(items.len() as u64, BAR);
            bar.set_prefix(task.name());
            let found = likelihoods(&mut loaded.masked, questions, &mut |done| {
                bar.set_position(done as u64);
                if heeded.go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            bar.finish_and_clear();
            results.push(TaskResult::of(*task, items, &found?));
        }
        let choices: usize = results.iter().map(|result| result.choices).sum();
        let count = results.len() as f64;
        let squares: Option<f64> = results.iter().map(|result| Some(result.acc_stderr?.powi(2))).sum();
        let report = Report {
            model: engine.location(),
            shots: self.shots,
            mean_acc: results.iter().map(|result| result.acc).sum::<f64>() / count,
            mean_acc_stderr: squares.map(|sum| sum.sqrt() / count),
            tasks: results,
            choices_per_second: choices as f64 / start.elapsed().as_secs_f64(),
            masking: loaded.report(),
        };
        if self.json { console.json(&report) } else { report.print(console) }
    }

    fn prepare(&self, engine: &Engine, file: &TaskFile) -> Result<Prepared> {
        let TaskFile { task, path } = file;
        let limit = self.limit.and_then(|limit| usize::try_from(limit).ok());
        let mut shots = match self.shots {
            0 => Shots::none(),
            count => {
                let from = self.shots_of(*task)?;
                let examples = read_items(&from, *task, None)?;
                Shots::new(&examples, count, self.seed).map_err(|error| error.in_file(&from))?
            }
        };
        Prepared::read(engine, *task, path, limit, &mut shots)
    }

    /// The file of a task's examples.
    fn shots_of(&self, task: &dyn TaskFormat) -> Result<PathBuf> {
        let named = |text: &String| {
            let (name, path) = text.split_once('=')?;
            (name == task.name()).then(|| PathBuf::from(path))
        };
        let is_named = |text: &String| text.split_once('=').is_some_and(|(name, _)| self::task(name).is_ok());
        let only = match &self.shots_from[..] {
            [only] if self.tasks.len() == 1 && !is_named(only) => Some(PathBuf::from(only)),
            _ => None,
        };
        self.shots_from.iter().find_map(named).or(only).ok_or_else(|| Error::NoShots { task: task.name() })
    }
}

impl Report<'_> {
    fn print(&self, console: &mut Console) -> Result<()> {
        self.masking.note(console);
        if let Some(line) = self.masking.line() {
            console.line(&line)?;
        }
        let with_error = |value: Option<f64>, stderr: Option<f64>| match (value, stderr) {
            (Some(value), Some(stderr)) => format!("{value:.4} ± {stderr:.4}"),
            (Some(value), None) => format!("{value:.4}"),
            _ => "-".to_owned(),
        };
        console.line(&format!("{:12} {:>8} {:>17} {:>17}", "task", "records", "acc", "acc_norm"))?;
        for result in &self.tasks {
            console.line(&format!(
                "{:12} {:>8} {:>17} {:>17}",
                result.task,
                result.records,
                with_error(Some(result.acc), result.acc_stderr),
                with_error(result.acc_norm, result.acc_norm_stderr),
            ))?;
        }
        let mean = with_error(Some(self.mean_acc), self.mean_acc_stderr);
        console.line(&format!("{:12} {:>8} {mean:>17}", "mean", ""))?;
        console.note(&format!("{:.0} choices/s", self.choices_per_second));
        Ok(())
    }
}
