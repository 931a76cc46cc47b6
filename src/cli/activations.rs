//! `shadowllm activations`: contexts, inners and their gradients of a text, in a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use shadowllm_weights::{DType, ModelConfig, SafetensorsWriter, TensorSpec};

use super::console::{Console, Heeded};
use super::options::ModelArgs;
use super::text::TextArgs;
use crate::learn::{BackwardWorkspace, LayerRecord, LayerVisitor, Loss, LossValue, Reduction, backward};
use crate::sparsity::ModelIdentity;
use crate::{Error, Result};

/// Write contexts, inners and the loss's gradients with respect to them to a file.
///
/// The text is one sequence from position 0. The file has, for every layer i, layers.i.attn_heads and layers.i.attn_heads.grad
/// (T x H x head width), layers.i.ffn_inner and layers.i.ffn_inner.grad (T x F), as f32.
#[derive(Debug, Args)]
pub(super) struct Activations {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    text: TextArgs,

    /// Only the first N tokens of the text.
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,

    /// Score the last N tokens only, as the answer of a task [default: all but the first].
    #[arg(long, value_name = "N")]
    answer: Option<usize>,

    /// Differentiate the mean of the tokens' losses rather than their sum.
    #[arg(long)]
    mean: bool,

    /// The safetensors file to write; replaced if it exists.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What `activations --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Where the model came from.
    model: &'a str,
    /// Tokens of the text.
    tokens: usize,
    /// What was differentiated: the sum or the mean of the losses, in nats.
    loss: f64,
    /// `sum` or `mean`.
    reduction: &'static str,
    /// Tokens scored.
    scored: usize,
    /// The file written.
    out: &'a Path,
    /// Tensors in it.
    tensors: usize,
    /// Its size.
    bytes: u64,
    /// Tokens per second, forward, backward and writing.
    tokens_per_second: f64,
}

const BAR: &str = "layers [{bar:30}] {pos}/{len}, {eta} left";

impl Activations {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let engine = self.model.engine(console)?;
        let mut tokens = self.text.tokens(&engine)?;
        tokens.truncate(self.tokens.unwrap_or(usize::MAX));
        let reduction = if self.mean { Reduction::Mean } else { Reduction::Sum };
        // An answer longer than the text begins at token 0, which the loss then rejects.
        let answer = self.answer.map(|n| tokens.len().saturating_sub(n)..tokens.len());
        let loss = Loss { tokens: answer, reduction };
        let mut metadata = BTreeMap::new();
        metadata.insert("model".to_owned(), ModelIdentity::of(engine.model()).to_string());
        let ids: Vec<String> = tokens.iter().map(u32::to_string).collect();
        metadata.insert("ids".to_owned(), ids.join(","));
        let mut file = ActivationsFile {
            path: &self.out,
            config: engine.config(),
            tokens: tokens.len(),
            metadata,
            writer: None,
            bar: console.bar(engine.config().layers as u64, BAR),
            heeded: console.heed_interrupts(),
        };
        let start = Instant::now();
        let mut work = BackwardWorkspace::new();
        let loss = backward(engine.cpu(), engine.model(), &tokens, &loss, &mut work, &mut file)?;
        let (tensors, bytes) = file.finish()?;
        let report = Report {
            model: engine.location(),
            tokens: tokens.len(),
            loss: loss.value(),
            reduction: name(reduction),
            scored: loss.tokens,
            out: &self.out,
            tensors,
            bytes,
            tokens_per_second: tokens.len() as f64 / start.elapsed().as_secs_f64(),
        };
        if self.json {
            return console.json(&report);
        }
        console.line(&format!(
            "{}: {tensors} tensors, {:.1} MB; {} tokens, {} loss of {} of them {:.4} ({:.0} tokens/s)",
            self.out.display(),
            bytes as f64 / 1e6,
            report.tokens,
            report.reduction,
            report.scored,
            report.loss,
            report.tokens_per_second,
        ))
    }
}

fn name(reduction: Reduction) -> &'static str {
    match reduction {
        Reduction::Sum => "sum",
        Reduction::Mean => "mean",
    }
}

/// Writes each layer as it comes. Nothing is at the path before everything is there.
struct ActivationsFile<'a> {
    path: &'a Path,
    config: &'a ModelConfig,
    tokens: usize,
    metadata: BTreeMap<String, String>,
    /// Made when the loss, which stands in the head of the file, is known.
    writer: Option<SafetensorsWriter>,
    bar: ProgressBar,
    heeded: Heeded,
}

impl ActivationsFile<'_> {
    /// Closes the file: its tensors and bytes.
    fn finish(self) -> Result<(usize, u64)> {
        self.bar.finish_and_clear();
        let Some(writer) = self.writer else { return Ok((0, 0)) };
        let written = (writer.order().count(), writer.file_len());
        writer.finish()?;
        Ok(written)
    }
}

impl LayerVisitor for ActivationsFile<'_> {
    fn loss(&mut self, loss: &LossValue) -> Result<()> {
        let heads = vec![self.tokens, self.config.heads, self.config.head_dim];
        let neurons = vec![self.tokens, self.config.ffn];
        let mut specs = Vec::new();
        for layer in 0..self.config.layers {
            for (unit, shape) in [("attn_heads", &heads), ("ffn_inner", &neurons)] {
                for suffix in ["", ".grad"] {
                    let name = format!("layers.{layer}.{unit}{suffix}");
                    specs.push(TensorSpec { name, dtype: DType::F32, shape: shape.clone() });
                }
            }
        }
        self.metadata.insert("loss".to_owned(), loss.value().to_string());
        self.metadata.insert("reduction".to_owned(), name(loss.reduction).to_owned());
        self.metadata.insert("scored_tokens".to_owned(), loss.tokens.to_string());
        self.writer = Some(SafetensorsWriter::create(self.path, &specs, &self.metadata)?);
        Ok(())
    }

    fn layer(&mut self, record: &LayerRecord<'_>) -> Result<()> {
        if !self.heeded.go_on() {
            return Err(Error::Interrupted);
        }
        if let Some(writer) = &mut self.writer {
            let tensors = [
                ("attn_heads", record.contexts),
                ("attn_heads.grad", record.context_grads),
                ("ffn_inner", record.inners),
                ("ffn_inner.grad", record.inner_grads),
            ];
            for (name, values) in tensors {
                writer.write(&format!("layers.{}.{name}", record.layer), bytemuck::cast_slice(values))?;
            }
        }
        self.bar.inc(1);
        Ok(())
    }
}
