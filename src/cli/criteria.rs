//! `shadowllm criteria`: static scores of every criterion, and how they compare.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use shadowllm_weights::write_atomic;

use super::console::Console;
use super::options::ModelArgs;
use super::samples::TextArgs;
use crate::learn::Criterion;
use crate::learn::criteria::ALL;
use crate::learn::survey::{Correlations, Spread, SurveyOptions, SurveyStatistics, SurveyedText, survey};
use crate::{Error, Result};

/// Score every unit by every criterion, for the policy static, and compare the criteria.
///
/// All criteria are computed from the same pass over the text, and each is written to a file of its own, NAME.safetensors, for
/// --policy static --scores. Scores are averaged over the windows of a text or the records of a task, then over the files. A run
/// that was stopped goes on where it was when it is started again.
#[derive(Debug, Args)]
pub(super) struct Criteria {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    texts: TextArgs,

    /// The folder to write into.
    #[arg(long, value_name = "DIR")]
    scores: PathBuf,

    /// Only these: of magnitude, plainact, plainact-weight, fisher, l2norm, gradnorm, saliency, snip, nwot, jacov, epenas and grasp,
    /// which alone takes more than half of the time [default: all].
    #[arg(long, value_name = "NAME,NAME,...", value_delimiter = ',')]
    criteria: Option<Vec<String>>,

    /// Write statistics to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    statistics: Option<PathBuf>,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What `criteria --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Where the model came from.
    model: &'a str,
    /// Files written, in the order of the criteria.
    files: &'a [PathBuf],
    /// Tokens of a window.
    window: usize,
    /// What was read: for each file `name`, `pieces` (windows or records), `tokens`, tokens `scored` by the loss, mean `loss`.
    texts: &'a [SurveyedText],
    /// Tokens read per second, in this run.
    tokens_per_second: f64,
    /// How scores are spread, and how far criteria agree.
    statistics: &'a SurveyStatistics,
}

const BAR: &str = "scoring [{bar:30}] {pos}/{len} tokens, {per_sec}, {eta} left";

impl Criteria {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let criteria: Vec<&'static dyn Criterion> = match &self.criteria {
            Some(names) => names.iter().map(|name| name.trim().parse()).collect::<Result<_>>()?,
            None => ALL.to_vec(),
        };
        let engine = self.model.engine(console)?;
        let texts = self.texts.documents(&engine)?;
        let options = SurveyOptions { criteria, window: texts.window, texts: texts.names };
        std::fs::create_dir_all(&self.scores).map_err(|source| Error::Io {
            action: "create folder",
            path: self.scores.clone(),
            source,
        })?;
        let state = self.scores.join("criteria.state");
        let (bar, heeded, start) = (console.bar(0, BAR), console.heed_interrupts(), Instant::now());
        let mut read = [None, None];
        let result =
            survey(engine.cpu(), engine.model(), &texts.documents, &options, Some(&state), &mut |done, total| {
                if read[0].is_none() {
                    bar.set_length(total);
                    bar.set_position(done);
                    bar.reset_eta();
                }
                read = [read[0].or(Some(done)), Some(done)];
                bar.set_position(done);
                if heeded.go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
        bar.finish_and_clear();
        if matches!(result, Err(Error::Interrupted)) {
            console.note(&format!("{} holds what was done: start again to go on", state.display()));
        }
        let survey = result?;
        let rate = (read[1].unwrap_or(0) - read[0].unwrap_or(0)) as f64 / start.elapsed().as_secs_f64();
        let mut files = Vec::with_capacity(survey.scores.len());
        for file in survey.files() {
            let path = self.scores.join(format!("{}.safetensors", file.criterion));
            file.write(&path, survey.units)?;
            files.push(path);
        }
        let statistics = survey.statistics();
        let report = Report {
            model: engine.location(),
            files: &files,
            window: options.window,
            texts: &survey.texts,
            tokens_per_second: rate,
            statistics: &statistics,
        };
        if let Some(path) = &self.statistics {
            let json = serde_json::to_vec_pretty(&report).map_err(|e| Error::Io {
                action: "write",
                path: path.clone(),
                source: e.into(),
            })?;
            write_atomic(path, &json)?;
        }
        // Everything is in the files now.
        let _ = std::fs::remove_file(&state);
        if self.json { console.json(&report) } else { report.print(console, &self.scores) }
    }
}

impl Report<'_> {
    fn print(&self, console: &mut Console, directory: &Path) -> Result<()> {
        for text in self.texts {
            console.line(&format!(
                "{}: {} pieces, {} tokens, loss {:.3} of {} of them",
                text.name, text.pieces, text.tokens, text.loss, text.scored
            ))?;
        }
        let criteria = &self.statistics.criteria;
        let of = |spread: fn(&crate::learn::survey::CriterionStatistics) -> Option<Spread>| {
            criteria.iter().filter_map(move |c| Some((c.criterion, spread(c)?))).collect::<Vec<_>>()
        };
        for (kind, rows) in [("heads", of(|c| c.heads)), ("neurons", of(|c| c.neurons))] {
            let head = ["mean", "std", "min", "25 %", "median", "75 %", "max", "zeros"];
            console.line(&format!("\n{kind:16}{}", head.map(|name| format!("{name:>11}")).concat()))?;
            for (criterion, s) in rows {
                let values = [s.mean, s.std, s.min, s.lower_quartile, s.median, s.upper_quartile, s.max];
                let values = values.map(|v| format!("{v:>11.3e}")).concat();
                console.line(&format!("{criterion:16}{values}{:>10.1}%", 100.0 * s.zeros))?;
            }
        }
        let Correlations { criteria, within_layers, .. } = &self.statistics.head_correlations;
        console.line("\nrank correlation on the heads of a layer, mean over the layers")?;
        for (row, (criterion, values)) in criteria.iter().zip(within_layers).enumerate() {
            let values: String = values[..=row].iter().map(|v| format!("{v:>6.2}")).collect();
            console.line(&format!("{criterion:16}{values}"))?;
        }
        let (files, folder, rate) = (self.files.len(), directory.display(), self.tokens_per_second);
        console.line(&format!("\n{folder}: scores by {files} criteria ({rate:.0} tokens/s)"))
    }
}
