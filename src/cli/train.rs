//! `shadowllm train`: a predictor for a model.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::console::{Console, Heeded};
use super::options::ModelArgs;
use super::policy::open_predictor;
use super::samples::SampleArgs;
use super::validate::{measure, table, write};
use crate::eval::KEPT;
use crate::generate::Engine;
use crate::learn::SampleSource;
use crate::learn::trace::{TextSource, TraceSource};
use crate::learn::train::{
    Exported, Factors, FileSize, Judgement, Loss, Preset, TrainEvent, TrainOptions, TrainReport, Width, train,
};
use crate::sparsity::ModelIdentity;
use crate::sparsity::predictor::{Validation, WeightFormat};
use crate::{Error, Result};

/// Train a predictor of the units that each token needs.
///
/// The model reads the text; what its units did is what the predictor learns to foresee from an early layer. Nothing but the
/// predictor is stored. Some documents are held out, and after every portion of the text the predictor is judged on them, beside
/// one that always predicts the mean.
///
/// The run can be stopped at any time with Ctrl-C: its state is beside the output, in FILE.state, and --resume goes on from it.
#[derive(Debug, Args)]
pub(super) struct Train {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    samples: SampleArgs,

    /// Learn from the trace in this folder, which `shadowllm trace` made, in place of text.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["text", "tasks", "shots", "tokens", "window", "input", "stations", "criterion"])]
    trace: Option<PathBuf>,

    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Go on with a run that was stopped.
    #[arg(long)]
    resume: bool,

    /// A set of settings: shadow, one predictor on the residual stream; paper, the published settings of ShadowLLM; dejavu, one
    /// predictor per layer. What is given beside it takes precedence.
    #[arg(long, value_name = "NAME", default_value_t)]
    preset: Preset,

    /// Hidden units for heads and for neurons, each [default: 128; paper: 2048 and 1024].
    #[arg(long, value_name = "N")]
    width: Option<usize>,

    /// Hidden units for heads; 0: heads are not predicted [default: that of --width].
    #[arg(long, value_name = "N")]
    head_width: Option<usize>,

    /// Hidden units for neurons; 0: neurons are not predicted [default: that of --width].
    #[arg(long, value_name = "N")]
    neuron_width: Option<usize>,

    /// Hidden units as the file has room for: bytes, or a share of the bytes of the model's blocks. Other widths, and those of the
    /// preset, then count as proportions, so that predictors of different kinds compare at the same size.
    #[arg(long, value_name = "BYTES|PERCENT%", conflicts_with = "width")]
    size: Option<FileSize>,

    /// One hidden layer of --width units for both.
    #[arg(long, conflicts_with_all = ["head_width", "neuron_width"])]
    shared: bool,

    /// What is minimised: mse, the squared error of the importances; bce, whether a unit is of the best; listwise, the
    /// cross-entropy of a layer's importances; or pairwise, by how much more important units fall short of their lead over others.
    #[arg(long, value_name = "LOSS")]
    loss: Option<Loss>,

    /// Tokens whose gradients are measured first: neurons are then ranked by their predicted size times the usual size of their
    /// gradient. 0: by what is predicted alone [default: 8192 for the preset shadow with the criterion magnitude, else 0].
    #[arg(long, value_name = "N", conflicts_with = "trace")]
    gradient_tokens: Option<usize>,

    /// Rank heads by their predicted size times the usual size of their gradient, too; on some models that is worse.
    #[arg(long, conflicts_with = "trace")]
    head_gradients: bool,

    /// Fraction of the heads and neurons that counts as best, in reports and for bce.
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true)]
    keep: Option<f32>,

    /// Times that the text is read.
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,

    /// Times that a token is used while it is in memory.
    #[arg(long, value_name = "N")]
    passes: Option<usize>,

    /// Tokens in memory at once [default: as many as fit into 1 GiB, but at most 65536].
    #[arg(long, value_name = "N")]
    portion: Option<usize>,

    /// Tokens of one step.
    #[arg(long, value_name = "N")]
    batch: Option<usize>,

    /// Largest learning rate.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    rate: Option<f32>,

    /// Share of the documents that is held out.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    held_out: Option<f64>,

    /// Number format of the file's weights.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    format: Format,

    /// Do not measure afterwards, on documents that were held out, what the predictor costs in perplexity; `shadowllm validate` does
    /// it later.
    #[arg(long)]
    no_validate: bool,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    F32,
    F16,
    #[default]
    Int8,
}

impl From<Format> for WeightFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::F32 => WeightFormat::F32,
            Format::F16 => WeightFormat::F16,
            Format::Int8 => WeightFormat::Int8,
        }
    }
}

/// What `train --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Where the model came from.
    model: &'a str,
    /// The file written.
    out: &'a Path,
    /// Its size.
    bytes: u64,
    /// Its number format.
    format: Format,
    /// The text.
    data: &'a str,
    /// Tokens that it was trained on.
    tokens: u64,
    /// Tokens read and learnt from per second, in this run.
    tokens_per_second: f64,
    /// How the file predicts heads: `loss`, `loss_of_mean`, `ranking` and, for layers 1 to L-1, `layers`.
    heads: &'a Option<Judgement>,
    /// The same of neurons.
    neurons: &'a Option<Judgement>,
    /// The networks after every portion of the text.
    history: &'a [TrainReport],
    /// What it costs on text that was held out, per budget; empty if that was not measured.
    validated: &'a [Validation],
}

const GRADIENTS_BAR: &str = "measuring gradients [{bar:30}] {pos}/{len} tokens, {eta} left";
const BAR: &str = "training [{bar:30}] {pos}/{len} tokens, {per_sec}, {eta} left";

impl Train {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let options = self.options();
        options.validate()?;
        let state = state_path(&self.out);
        if !self.resume && state.exists() {
            return Err(Error::StateExists { path: state });
        }
        let engine = self.model.fast_engine_of(&self.model.checkpoint(console)?)?;
        let heeded = console.heed_interrupts();
        let (mut from_text, mut from_trace);
        let mut held_out = Vec::new();
        let (source, factors): (&mut dyn SampleSource, _) = match &self.trace {
            Some(directory) => {
                from_trace = TraceSource::open(directory, &ModelIdentity::of(engine.model()))?;
                (&mut from_trace, None)
            }
            None => {
                from_text = self.samples.source(&engine, &self.preset.samples(engine.config().layers))?;
                if !self.no_validate {
                    held_out = held_out_texts(&from_text, &options);
                }
                let factors = factors(console, &heeded, &from_text, &options)?;
                (&mut from_text, factors)
            }
        };
        let width = match self.size {
            Some(size) => {
                let limit = size.bytes(engine.model().active_bytes(0).blocks);
                options.width.fitting(source.info(), &options, self.format.into(), limit)?
            }
            None => options.width,
        };
        let options = TrainOptions { width, ..options };
        let (bar, start) = (console.bar(0, BAR), std::time::Instant::now());
        let mut rows = [None, None];
        let mut hear = |event: TrainEvent<'_>| {
            match event {
                TrainEvent::HeldOut { .. } => {}
                TrainEvent::Progress { rows: done, of } => {
                    if rows[0].is_none() {
                        bar.set_length(of);
                        bar.reset_eta();
                    }
                    rows = [rows[0].or(Some(done)), Some(done)];
                    bar.set_position(done);
                }
                TrainEvent::Report(report) => bar.suspend(|| console.note(&line(report))),
            }
            if heeded.go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let result = train(engine.cpu(), source, &options, factors.as_ref(), Some(&state), self.resume, &mut hear);
        bar.finish_and_clear();
        if matches!(result, Err(Error::Interrupted)) && state.exists() {
            console.note(&format!("{} holds the state of this run: go on with --resume", state.display()));
        }
        let trained = result?;
        let rate = (rows[1].unwrap_or(0) - rows[0].unwrap_or(0)) as f64 / start.elapsed().as_secs_f64();
        let mut exported = trained.write(engine.cpu(), &self.out, engine.config(), self.format.into())?;
        // Of no use any more; left behind it would only be in the way of the next run.
        let _ = std::fs::remove_file(&state);
        let whole = self.validate(console, &heeded, &engine, &held_out, &mut exported);
        if !matches!(whole, Ok(()) | Err(Error::Interrupted)) {
            return whole;
        }
        if self.json {
            console.json(&Report {
                model: engine.location(),
                out: &self.out,
                bytes: exported.bytes,
                format: self.format,
                data: &exported.info.training.data,
                tokens: exported.info.training.tokens,
                tokens_per_second: rate,
                heads: &exported.heads,
                neurons: &exported.neurons,
                history: trained.history(),
                validated: &exported.info.validated,
            })?;
            return whole;
        }
        let judgements = [("neurons", &exported.neurons), ("heads", &exported.heads)];
        let judgements: Vec<String> =
            judgements.into_iter().filter_map(|(n, j)| Some(judged(n, j.as_ref()?))).collect();
        console.line(&format!(
            "{}: {:.2} MB, from {} tokens of {} ({rate:.0} tokens/s)\n{}",
            self.out.display(),
            exported.bytes as f64 / 1e6,
            exported.info.training.tokens,
            exported.info.training.data,
            judgements.join("\n"),
        ))?;
        if let Some(first) = exported.info.validated.first() {
            console.line(&format!("perplexity on {} tokens of {}", first.tokens, first.data))?;
            table(&exported.info.validated).iter().try_for_each(|line| console.line(line))?;
        }
        whole
    }

    /// Measures the predictor that was written on texts that were held out, and writes what it costs into its file.
    fn validate(
        &self,
        console: &Console,
        heeded: &Heeded,
        engine: &Engine,
        texts: &[Vec<u32>],
        exported: &mut Exported,
    ) -> Result<()> {
        if texts.is_empty() {
            if !self.no_validate {
                console
                    .note("without text the predictor was not validated; `shadowllm validate` measures what it costs");
            }
            return Ok(());
        }
        let predictor = Arc::new(open_predictor(&self.out, engine)?);
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let data = format!("what was held out of {}", exported.info.training.data);
        let measured = measure(console, heeded, engine, &predictor, &texts, &KEPT, &data);
        if matches!(measured, Err(Error::Interrupted)) {
            let path = self.out.display();
            console.note(&format!(
                "{path} is complete but was not validated; `shadowllm validate` measures what it costs"
            ));
        }
        let validated = measured?;
        exported.bytes = write(&self.out, &self.out, &validated)?;
        exported.info.validated = validated;
        Ok(())
    }

    /// The preset's settings under those given.
    fn options(&self) -> TrainOptions {
        let base = self.preset.options();
        let Width::Separate { heads, neurons } = base.width else { return base };
        let width = match self.shared {
            true => Width::Shared(self.width.unwrap_or(neurons)),
            false => Width::Separate {
                heads: self.head_width.or(self.width).unwrap_or(heads),
                neurons: self.neuron_width.or(self.width).unwrap_or(neurons),
            },
        };
        TrainOptions {
            seed: self.samples.texts.seed,
            width,
            gradient_tokens: self.gradient_tokens.unwrap_or(match self.samples.criterion.as_deref() {
                None | Some("magnitude") if self.trace.is_none() => base.gradient_tokens,
                _ => 0,
            }),
            head_gradients: self.head_gradients || base.head_gradients,
            loss: self.loss.unwrap_or(base.loss),
            kept: self.keep.map_or(base.kept, |keep| [keep; 2]),
            epochs: self.epochs.unwrap_or(base.epochs),
            passes: self.passes.unwrap_or(base.passes),
            portion: self.portion.or(base.portion),
            batch: self.batch.unwrap_or(base.batch),
            learning_rate: self.rate.unwrap_or(base.learning_rate),
            held_out: self.held_out.unwrap_or(base.held_out),
            ..base
        }
    }
}

/// What predictions of neurons are multiplied with, if gradients are to be measured.
fn factors(
    console: &Console,
    heeded: &Heeded,
    source: &TextSource<'_>,
    options: &TrainOptions,
) -> Result<Option<Factors>> {
    if options.gradient_tokens == 0 {
        return Ok(None);
    }
    let (bar, split) = (console.bar(0, GRADIENTS_BAR), options.split());
    let mut hear = |done, of| {
        bar.set_length(of);
        bar.set_position(done);
        if heeded.go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let wanted = |document| !split.holds_out(document);
    let factors = Factors::saliency(source, &wanted, options.gradient_tokens, options.head_gradients, &mut hear);
    bar.finish_and_clear();
    factors.map(Some)
}

/// Tokens of held-out text, at most, that a predictor is measured on.
const VALIDATED: usize = 4096;

/// The beginnings of the documents that are held out, a window of each in turn, then the next, up to [`VALIDATED`] tokens.
fn held_out_texts(source: &TextSource<'_>, options: &TrainOptions) -> Vec<Vec<u32>> {
    let split = options.split();
    let documents: Vec<Vec<&[u32]>> = (0..)
        .zip(source.documents())
        .filter(|&(number, _)| split.holds_out(number))
        .map(|(_, document)| document.tokens.chunks(source.window()).filter(|window| window.len() > 1).collect())
        .collect();
    let rounds = documents.iter().map(Vec::len).max().unwrap_or(0);
    let windows = (0..rounds).flat_map(|round| documents.iter().filter_map(move |windows| windows.get(round)));
    let mut left = VALIDATED;
    let mut texts = Vec::new();
    for window in windows {
        let taken = &window[..window.len().min(left)];
        if taken.len() < 2 {
            break;
        }
        left -= taken.len();
        texts.push(taken.to_vec());
    }
    texts
}

/// Where the state of a run is that writes `out`.
fn state_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".state");
    PathBuf::from(name)
}

/// A report in one line.
fn line(report: &TrainReport) -> String {
    let kinds = [("neurons", &report.neurons), ("heads", &report.heads)];
    let kinds: Vec<String> = kinds.into_iter().filter_map(|(name, j)| Some(judged(name, j.as_ref()?))).collect();
    format!("{} tokens: {}", report.rows, kinds.join("; "))
}

/// A judgement in words, each measure with that of the mean predictor behind it.
fn judged(name: &str, judgement: &Judgement) -> String {
    let Judgement { loss, loss_of_mean, ranking, .. } = judgement;
    format!(
        "{name}: loss {loss:.5} (mean {loss_of_mean:.5}), recall {:.3} ({:.3}), Spearman {:.3} ({:.3})",
        ranking.recall, ranking.recall_of_mean, ranking.spearman, ranking.spearman_of_mean
    )
}
