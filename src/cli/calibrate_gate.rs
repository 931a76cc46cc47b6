//! `shadowllm calibrate-gate`: thresholds under which a gate counts for nothing.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::console::Console;
use super::options::ModelArgs;
use super::text::TextArgs;
use crate::Result;
use crate::sparsity::{GateCalibration, GateStatistic, calibrate_gate};

/// Calibrate the thresholds of gate skip on a text.
///
/// The dense model reads the text and the sizes of its gates are counted. The file serves every `--gate-skip` fraction from 0.01 to
/// 0.99. Use text of the kind that will be generated.
#[derive(Debug, Args)]
pub(super) struct CalibrateGate {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    text: TextArgs,

    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Most tokens of the text to read.
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    tokens: usize,

    /// What is compared with a threshold: weighted, the size of what the layer's output would lose; or plain, the size of the gate
    /// alone, as in CATS.
    #[arg(long, value_name = "STATISTIC", default_value_t)]
    statistic: GateStatistic,

    /// Tokens that are read in one go, from position 0 [default: 512, or the model's context if that is shorter].
    #[arg(long, value_name = "N")]
    window: Option<usize>,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What `calibrate-gate --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Where the model came from.
    model: &'a str,
    /// The file written.
    out: &'a std::path::Path,
    /// `weighted` or `plain`.
    statistic: GateStatistic,
    /// The text.
    data: &'a str,
    /// Tokens whose gates were counted.
    tokens: u64,
    /// Smallest and largest fraction that the file serves.
    fractions: [f32; 2],
    /// Tokens read per second.
    tokens_per_second: f64,
}

const BAR: &str = "calibrating [{bar:30}] {pos}/{len} tokens, {per_sec}, {eta} left";

impl CalibrateGate {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let engine = self.model.engine(console)?;
        let (mut tokens, data) = (self.text.tokens(&engine)?, self.text.name());
        tokens.truncate(self.tokens);
        let window = self.window.unwrap_or_else(|| engine.config().max_positions.min(512));
        let options = GateCalibration { statistic: self.statistic, window, data };
        let (bar, heeded, start) = (console.bar(0, BAR), console.heed_interrupts(), std::time::Instant::now());
        let mut read = 0;
        let thresholds = calibrate_gate(engine.cpu(), engine.model(), &tokens, &options, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            read = done;
            if heeded.go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        bar.finish_and_clear();
        thresholds.write(&self.out, engine.config())?;
        let rate = read as f64 / start.elapsed().as_secs_f64();
        if self.json {
            let (first, last) = (thresholds.fractions.first(), thresholds.fractions.last());
            return console.json(&Report {
                model: engine.location(),
                out: &self.out,
                statistic: thresholds.statistic,
                data: &thresholds.data,
                tokens: thresholds.tokens,
                fractions: [first, last].map(|fraction| fraction.copied().unwrap_or_default()),
                tokens_per_second: rate,
            });
        }
        console.line(&format!(
            "{}: {} thresholds from {} tokens of {} ({rate:.0} tokens/s)",
            self.out.display(),
            thresholds.statistic,
            thresholds.tokens,
            thresholds.data,
        ))
    }
}
