//! `shadowllm eval perplexity`.

use std::ops::ControlFlow;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::masking::{MaskingArgs, MaskingReport};
use crate::Result;
use crate::cli::console::{Console, Heeded};
use crate::cli::options::ModelArgs;
use crate::cli::text::TextArgs;
use crate::eval::{Perplexity, Windows, perplexity, perplexity_masked};

/// Perplexity per token of a text, in windows that do not overlap.
///
/// The text is tokenised once, without special tokens, and cut into windows. Each runs on its own from position 0 and all
/// its tokens but the first are scored. With a policy the dense model is measured on the same windows, too.
#[derive(Debug, Args)]
pub(in crate::cli) struct PerplexityCommand {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    text: TextArgs,

    /// Tokens of one window [default: 1024, or the model's context if that is shorter].
    #[arg(long, value_name = "N")]
    window: Option<usize>,

    /// Windows from the start of the text [default: all that are complete].
    #[arg(long, value_name = "K")]
    windows: Option<usize>,

    /// Do not measure the dense model beside the policy.
    #[arg(long)]
    no_dense: bool,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,

    // Last: its heading is that of all options after it.
    #[command(flatten)]
    masking: MaskingArgs,
}

/// What `eval perplexity --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Where the model came from.
    model: &'a str,
    /// Tokens of one window.
    window: usize,
    /// `perplexity`, `tokens` (scored), `nll` (sum, in nats) and `windows` (each with `nll` and `tokens`).
    #[serde(flatten)]
    result: &'a Perplexity,
    /// Tokens scored per second.
    tokens_per_second: f64,
    /// `policy`, `budget`, `oracle`, `kept`, `decision`, `causal`, `dense_prefix` and `gate_skip`.
    #[serde(flatten)]
    masking: MaskingReport,
    /// Of the dense model on the same windows; `null` with `--no-dense`.
    dense_perplexity: Option<f64>,
    /// `perplexity / dense_perplexity`.
    ratio: Option<f64>,
    /// Tokens that the dense model scored per second; `null` if it is what was measured, or was not.
    dense_tokens_per_second: Option<f64>,
}

const BAR: &str = "{prefix} [{bar:30}] {pos}/{len}, {eta} left, perplexity {msg}";

/// A result and how long it took.
struct Timed {
    result: Perplexity,
    tokens_per_second: f64,
}

impl Timed {
    /// Runs `measure` with a bar over `windows` windows; Ctrl-C ends it.
    fn run(
        console: &Console,
        heeded: &Heeded,
        what: &'static str,
        windows: usize,
        measure: impl FnOnce(&mut dyn FnMut(&Perplexity) -> ControlFlow<()>) -> Result<Perplexity>,
    ) -> Result<Timed> {
        let bar = console.bar(windows as u64, BAR);
        bar.set_prefix(what);
        let start = Instant::now();
        let result = measure(&mut |so_far| {
            bar.set_message(format!("{:.3}", so_far.perplexity));
            bar.inc(1);
            if heeded.go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        bar.finish_and_clear();
        let result = result?;
        Ok(Timed { tokens_per_second: result.tokens as f64 / start.elapsed().as_secs_f64(), result })
    }
}

impl PerplexityCommand {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let engine = self.model.engine(console)?;
        let tokens = self.text.tokens(&engine)?;
        let size = self.window.unwrap_or_else(|| engine.config().max_positions.min(1024));
        let windows = Windows { size, count: self.windows };
        let mut loaded = self.masking.load(console, &engine)?;
        let count = windows.cut(&tokens, engine.config().max_positions)?.len();
        let heeded = console.heed_interrupts();
        let dense = |what| {
            Timed::run(console, &heeded, what, count, |progress| perplexity(&engine, &tokens, windows, progress))
        };
        let (measured, beside) = if loaded.is_dense() {
            (dense("windows")?, None)
        } else {
            let beside = if self.no_dense { None } else { Some(dense("dense windows")?) };
            let masked = &mut loaded.masked;
            let measured = Timed::run(console, &heeded, "windows", count, |progress| {
                perplexity_masked(masked, &tokens, windows, progress)
            })?;
            (measured, beside)
        };
        let dense_perplexity = match loaded.is_dense() {
            true => Some(measured.result.perplexity),
            false => beside.as_ref().map(|dense| dense.result.perplexity),
        };
        let report = Report {
            model: engine.location(),
            window: size,
            result: &measured.result,
            tokens_per_second: measured.tokens_per_second,
            masking: loaded.report(),
            dense_perplexity,
            ratio: dense_perplexity.map(|dense| measured.result.perplexity / dense),
            dense_tokens_per_second: beside.as_ref().map(|dense| dense.tokens_per_second),
        };
        if self.json {
            return console.json(&report);
        }
        report.print(console)
    }
}

impl Report<'_> {
    fn print(&self, console: &mut Console) -> Result<()> {
        self.masking.note(console);
        if let Some(line) = self.masking.line() {
            console.line(&line)?;
        }
        console.line(&format!(
            "perplexity {:.4} over {} tokens in {} windows of {} ({:.0} tokens/s)",
            self.result.perplexity,
            self.result.tokens,
            self.result.windows.len(),
            self.window,
            self.tokens_per_second,
        ))?;
        if let (Some(dense), Some(ratio), Some(speed)) =
            (self.dense_perplexity, self.ratio, self.dense_tokens_per_second)
        {
            console.line(&format!("{ratio:.4} times that of the dense model, {dense:.4} ({speed:.0} tokens/s)"))?;
        }
        Ok(())
    }
}
