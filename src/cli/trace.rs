//! `shadowllm trace`: samples on disk.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::console::Console;
use super::options::ModelArgs;
use super::samples::SampleArgs;
use crate::Result;
use crate::learn::SampleSource;
use crate::learn::trace::{Shard, TraceReport, TraceSource, write_trace};
use crate::learn::train::Preset;
use crate::sparsity::{ModelIdentity, ScoresFile};

/// Write what a model's units do on a text, to train predictors from.
///
/// Training needs no trace: it makes its samples as it goes. A trace is for training several predictors on the same text, and for
/// sharing the work: machines with different --shard write different files of the same trace. A run that was stopped goes on
/// where it was when it is started again.
#[derive(Debug, Args)]
pub(super) struct Trace {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    samples: SampleArgs,

    /// The folder to write into.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Which part of the work: 2/4 is that of the second of four machines.
    #[arg(long, value_name = "K/N", default_value_t)]
    shard: Shard,

    /// Write the mean importance of every unit to this file, for the policy static; the trace must be complete.
    #[arg(long, value_name = "FILE")]
    scores: Option<PathBuf>,

    /// Samples for a predictor of this preset: shadow, paper or dejavu.
    #[arg(long, value_name = "NAME", default_value_t)]
    preset: Preset,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What `trace --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Where the model came from.
    model: &'a str,
    /// The folder.
    out: &'a Path,
    /// `files` of the whole trace, `written` now, `found` there already; `tokens` read and `bytes` written now.
    #[serde(flatten)]
    report: TraceReport,
    /// Tokens read per second.
    tokens_per_second: f64,
}

const BAR: &str = "tracing [{bar:30}] {pos}/{len} tokens, {per_sec}, {eta} left";

impl Trace {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let engine = self.model.fast_engine_of(&self.model.checkpoint(console)?)?;
        let mut source = self.samples.source(&engine, &self.preset.samples(engine.config().layers))?;
        let (bar, heeded, start) = (console.bar(0, BAR), console.heed_interrupts(), std::time::Instant::now());
        let report = write_trace(&mut source, &self.out, self.shard, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
            if heeded.go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        bar.finish_and_clear();
        let rate = report.tokens as f64 / start.elapsed().as_secs_f64();
        if let Some(path) = &self.scores {
            let model = ModelIdentity::of(engine.model());
            let mut trace = TraceSource::open(&self.out, &model)?;
            let scores = trace.scores()?;
            let criterion = trace.info().criterion.clone();
            ScoresFile { scores, criterion, model: Some(model) }.write(path, engine.config())?;
        }
        if self.json {
            return console.json(&Report { model: engine.location(), out: &self.out, report, tokens_per_second: rate });
        }
        console.line(&format!(
            "{}: {} files written, {} found, of {} in all; {} tokens ({rate:.0} tokens/s), {:.1} MB",
            self.out.display(),
            report.written,
            report.found,
            report.files,
            report.tokens,
            report.bytes as f64 / 1e6,
        ))
    }
}
