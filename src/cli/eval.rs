//! `shadowllm eval`: quality of a model.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::console::{Console, read_text};
use super::gate::{GateArgs, GateReport};
use super::options::{ModelArgs, token_id};
use crate::Result;
use crate::eval::{Perplexity, Windows, perplexity, perplexity_with};
use crate::sparsity::GateMask;

/// Measure a model's quality.
#[derive(Debug, Subcommand)]
pub(super) enum Eval {
    Perplexity(PerplexityCommand),
}

impl Eval {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        match self {
            Eval::Perplexity(command) => command.run(console),
        }
    }
}

/// Perplexity per token of a text, in windows that do not overlap.
///
/// The text is tokenised once, without special tokens, and cut into windows. Each runs on its own from position 0 and all
/// its tokens but the first are scored.
#[derive(Debug, Args)]
pub(super) struct PerplexityCommand {
    #[command(flatten)]
    model: ModelArgs,

    /// Text file (UTF-8); - for standard input.
    #[arg(long, value_name = "FILE", required_unless_present = "ids")]
    text: Option<PathBuf>,

    /// Token ids instead of a text, for models without a tokenizer.
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',', value_parser = token_id, allow_negative_numbers = true,
        conflicts_with = "text")]
    ids: Option<Vec<u32>>,

    /// Tokens of one window [default: 1024, or the model's context if that is shorter].
    #[arg(long, value_name = "N")]
    window: Option<usize>,

    /// Windows from the start of the text [default: all that are complete].
    #[arg(long, value_name = "K")]
    windows: Option<usize>,

    #[command(flatten)]
    gate: GateArgs,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,
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
    /// `fraction`, `skipped` and `lossy`; `null` without gate skip.
    gate_skip: Option<GateReport>,
}

const BAR: &str = "windows [{bar:30}] {pos}/{len}, {eta} left, perplexity {msg}";

impl PerplexityCommand {
    fn run(self, console: &mut Console) -> Result<()> {
        let engine = self.model.engine(console)?;
        let tokens = match (&self.ids, &self.text) {
            (Some(ids), _) => ids.clone(),
            (None, Some(path)) => engine.tokenizer()?.encode(&read_text(path)?, false)?,
            (None, None) => Vec::new(),
        };
        let size = self.window.unwrap_or_else(|| engine.config().max_positions.min(1024));
        let windows = Windows { size, count: self.windows };
        let skip = self.gate.load(&engine)?;
        let bar = console.bar(windows.cut(&tokens, engine.config().max_positions)?.len() as u64, BAR);
        let start = std::time::Instant::now();
        let progress = &mut |so_far: &Perplexity| {
            bar.set_message(format!("{:.3}", so_far.perplexity));
            bar.inc(1);
            ControlFlow::Continue(())
        };
        let (result, gate_skip) = match skip {
            None => (perplexity(&engine, &tokens, windows, progress)?, None),
            Some(skip) => {
                // The first token of a sequence is always part of a prompt, and prompts are dense.
                let mask = GateMask::new(engine.cpu(), engine.config(), skip.clone())?;
                let mut mask = mask.dense_prefix(1, size);
                let result = perplexity_with(&engine, &tokens, windows, &mut mask, progress)?;
                (result, Some(GateReport::new(&skip, Some(mask.skipped()))))
            }
        };
        bar.finish_and_clear();
        let tokens_per_second = result.tokens as f64 / start.elapsed().as_secs_f64();
        if self.json {
            return console.json(&Report {
                model: engine.location(),
                window: size,
                result: &result,
                tokens_per_second,
                gate_skip,
            });
        }
        if let Some(gate) = gate_skip {
            console.note(&gate.note());
        }
        console.line(&format!(
            "perplexity {:.4} over {} tokens in {} windows of {size} ({tokens_per_second:.0} tokens/s)",
            result.perplexity,
            result.tokens,
            result.windows.len(),
        ))
    }
}
