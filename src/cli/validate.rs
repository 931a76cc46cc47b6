//! `shadowllm validate`: what a predictor costs, into its file.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use shadowllm_weights::{Checkpoint, write_atomic};

use super::console::{Console, Heeded};
use super::options::ModelArgs;
use super::policy::{EMBEDDED, open_predictor};
use super::text::TextArgs;
use crate::eval::{KEPT, Windows, validate_predictor};
use crate::generate::Engine;
use crate::sparsity::Predictor;
use crate::sparsity::predictor::{Validation, with_validation};
use crate::{Error, Result};

/// Measure what a predictor costs in perplexity, and write it into its file.
///
/// The text is scored by the dense model, then with fewer and fewer heads, fewer and fewer neurons, and both, each token deciding
/// for itself. The curves that come of it are what --max-ppl-increase goes by. Use text of the kind that will be generated, and none
/// that the predictor was trained on. `train` does this by itself on documents that it held out.
#[derive(Debug, Args)]
pub(super) struct Validate {
    #[command(flatten)]
    model: ModelArgs,

    /// The predictor's file; `embedded` is that of the embedded model.
    #[arg(long, value_name = "FILE")]
    predictor: PathBuf,

    #[command(flatten)]
    text: TextArgs,

    /// Tokens of one window [default: 512, or the model's context if that is shorter].
    #[arg(long, value_name = "N")]
    window: Option<usize>,

    /// Windows from the start of the text [default: 8, or as many as are complete].
    #[arg(long, value_name = "K")]
    windows: Option<usize>,

    /// Fractions to keep.
    #[arg(long, value_name = "FRACTION,...", value_delimiter = ',', allow_negative_numbers = true, default_values_t = KEPT)]
    keep: Vec<f32>,

    /// Another file to write, the predictor's being left as it is.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What `validate --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Where the model came from.
    model: &'a str,
    /// The file written.
    out: &'a Path,
    /// The text, in words.
    data: &'a str,
    /// Tokens scored.
    tokens: u64,
    /// Perplexity of the dense model.
    dense_perplexity: f64,
    /// Per budget `heads`, `neurons` (fractions kept), `perplexity` and `ratio`.
    validated: Vec<Point>,
}

/// One budget.
#[derive(Debug, Serialize)]
struct Point {
    heads: f32,
    neurons: f32,
    perplexity: f64,
    ratio: f64,
}

/// Windows that are measured unless told otherwise.
pub(super) const WINDOWS: usize = 8;

impl Validate {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let out = match &self.out {
            Some(out) => out,
            None if self.predictor == Path::new(EMBEDDED) => return Err(Error::EmbeddedPredictorStays),
            None => &self.predictor,
        };
        let engine = self.model.engine(console)?;
        let predictor = Arc::new(open_predictor(&self.predictor, &engine)?);
        let (tokens, data) = (self.text.tokens(&engine)?, self.text.name());
        let context = engine.config().max_positions;
        let size = self.window.unwrap_or_else(|| context.min(512));
        let complete = tokens.len().checked_div(size).unwrap_or(0).clamp(1, WINDOWS);
        let windows = Windows { size, count: Some(self.windows.unwrap_or(complete)) };
        let texts = windows.cut(&tokens, context)?;
        let data = format!("{data}, {} window{} of {size}", texts.len(), if texts.len() == 1 { "" } else { "s" });
        let heeded = console.heed_interrupts();
        let validated = measure(console, &heeded, &engine, &predictor, &texts, &self.keep, &data)?;
        write(&self.predictor, out, &validated)?;
        let report = Report {
            model: engine.location(),
            out,
            data: &data,
            tokens: validated.first().map_or(0, |v| v.tokens),
            dense_perplexity: validated.first().map_or(f64::NAN, |v| v.perplexity_dense),
            validated: validated.iter().map(Point::of).collect(),
        };
        if self.json {
            return console.json(&report);
        }
        console.line(&format!("{}: measured on {} tokens of {data}", out.display(), report.tokens))?;
        table(&validated).iter().try_for_each(|line| console.line(line))
    }
}

const BAR: &str = "validating [{bar:30}] {pos}/{len}, {eta} left, {msg}";

/// Measures a predictor with a bar; Ctrl-C ends it.
pub(super) fn measure(
    console: &Console,
    heeded: &Heeded,
    engine: &Engine,
    predictor: &Arc<Predictor>,
    texts: &[&[u32]],
    kept: &[f32],
    data: &str,
) -> Result<Vec<Validation>> {
    let bar = console.bar(0, BAR);
    let validated = validate_predictor(engine, predictor, texts, kept, data, &mut |progress| {
        bar.set_length(progress.of as u64);
        bar.set_position(progress.done as u64);
        bar.set_message(format!("heads {}, neurons {}", progress.budget.heads, progress.budget.neurons));
        if heeded.go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    bar.finish_and_clear();
    validated
}

/// Writes the file `from` with these validations to `to`, which may be the same, and returns its size.
pub(super) fn write(from: &Path, to: &Path, validated: &[Validation]) -> Result<u64> {
    let revised = if from == Path::new(EMBEDDED) {
        with_validation(Checkpoint::embedded_predictor()?, validated)
    } else {
        let bytes =
            std::fs::read(from).map_err(|source| Error::Io { action: "read", path: from.to_owned(), source })?;
        with_validation(&bytes, validated)
    };
    let revised = revised.map_err(|error| error.in_file(from))?;
    write_atomic(to, &revised)?;
    Ok(revised.len() as u64)
}

/// The validations, a line for each.
pub(super) fn table(validated: &[Validation]) -> Vec<String> {
    let dense = validated.first().map(|v| format!("{:>7} {:>9} {:>12.4}", "all", "all", v.perplexity_dense));
    let share =
        |kept: f32| if kept == 1.0 { "all".to_owned() } else { format!("{} %", (kept * 1000.0).round() / 10.0) };
    let rows = validated.iter().map(|v| {
        let (heads, neurons) = (share(v.budget.heads), share(v.budget.neurons));
        format!("{heads:>7} {neurons:>9} {:>12.4} {:>8.4}", v.perplexity_sparse, v.ratio())
    });
    let head = format!("{:>7} {:>9} {:>12} {:>8}", "heads", "neurons", "perplexity", "ratio");
    std::iter::once(head).chain(dense).chain(rows).collect()
}

impl Point {
    fn of(validation: &Validation) -> Self {
        let budget = validation.budget;
        Point {
            heads: budget.heads,
            neurons: budget.neurons,
            perplexity: validation.perplexity_sparse,
            ratio: validation.ratio(),
        }
    }
}
