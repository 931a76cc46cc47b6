//! `shadowllm generate`: continue a text.

use std::num::NonZero;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use shadowllm_weights::Checkpoint;

use super::accounting::Accounting;
use super::console::{Console, read_text};
use super::device::DeviceArgs;
use super::options::{ModelArgs, SamplingArgs, token_id};
use super::policy::BudgetReport;
use super::several::Several;
use super::sparsity::SparsityArgs;
use crate::generate::{Completion, CompletionOptions, Engine, Session, SessionOptions, StopReason, Timing};
use crate::kernels::{Cpu, read_passes};
use crate::{Error, Result};

/// Bytes read to measure the bandwidth: many times any last-level cache.
pub(super) const READ_BUFFER: usize = 512 << 20;

/// Continue a text.
#[derive(Debug, Args)]
pub(super) struct Generate {
    #[command(flatten)]
    model: ModelArgs,

    /// Text to continue.
    #[arg(value_name = "PROMPT", required_unless_present_any = ["prompt_file", "prompt_ids", "prompt_option", "prompts"])]
    prompt: Option<String>,

    /// Text to continue, as an option.
    #[arg(long = "prompt", value_name = "PROMPT", conflicts_with = "prompt")]
    prompt_option: Option<String>,

    /// File with the text to continue; - for standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_option"])]
    prompt_file: Option<PathBuf>,

    /// Token ids to continue, used as they are; for models without a tokenizer.
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',', value_parser = token_id, allow_negative_numbers = true,
        conflicts_with_all = ["prompt", "prompt_option", "prompt_file"])]
    prompt_ids: Option<Vec<u32>>,

    /// File with several texts to continue, one on each line that is not empty; they are decoded together, and weights that several
    /// need are read once. - for standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_option", "prompt_file", "prompt_ids", "bandwidth", "device"])]
    prompts: Option<PathBuf>,

    /// With --prompts: most texts that are decoded at the same time.
    #[arg(long, value_name = "N", default_value = "8", requires = "prompts",
        conflicts_with_all = ["prompt", "prompt_option", "prompt_file", "prompt_ids"])]
    batch: NonZero<usize>,

    /// Most tokens to generate.
    #[arg(long, short = 'n', default_value_t = 128, value_name = "N")]
    max_tokens: usize,

    /// Most tokens of prompt and text together [default: the model's context].
    #[arg(long, value_name = "N")]
    context: Option<usize>,

    /// End the text before this string; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,

    /// Go on after the model's end-of-sequence token.
    #[arg(long)]
    ignore_eos: bool,

    /// Also measure the memory bandwidth of this machine, to compare with.
    #[arg(long)]
    bandwidth: bool,

    #[command(flatten)]
    device: DeviceArgs,

    /// Print one JSON document instead of the text as it comes.
    #[arg(long)]
    json: bool,

    // Last: a heading is that of all options after it.
    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    sparsity: SparsityArgs,
}

/// What `generate --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Where the model came from.
    model: &'a str,
    /// The continuation, without the prompt; `null` if the model has no tokenizer.
    text: Option<&'a str>,
    /// Ids of the tokens generated.
    tokens: &'a [u32],
    /// What ended the text: `eos`, `stop_string`, `max_tokens`, `context_full`; `null` if the user did.
    stop_reason: Option<StopReason>,
    /// Number of prompt tokens.
    prompt_tokens: usize,
    /// Ids of the prompt.
    prompt_ids: &'a [u32],
    /// Prompt tokens per second.
    prefill_tokens_per_second: f64,
    /// Decode steps per second; `null` if fewer than two tokens were generated.
    decode_tokens_per_second: Option<f64>,
    /// Bytes that one decode step reads, on average.
    bytes_per_token: Option<f64>,
    /// Bytes read per second while decoding, in 10^9.
    effective_gb_per_second: Option<f64>,
    /// Read bandwidth of the machine with the same threads, in 10^9 bytes per second, median of passes before and after;
    /// only with `--bandwidth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_gb_per_second: Option<f64>,
    /// `effective_gb_per_second / read_gb_per_second`; only with `--bandwidth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth_share: Option<f64>,
    /// What decode steps ran on: `cpu`, or the name of a GPU.
    device: &'a str,
    /// Instruction set of the kernels.
    isa: String,
    /// Threads.
    threads: usize,
    /// Precision of products with many prompt tokens, where the weights are bf16.
    compute: &'static str,
    /// `heads`, `neurons`, `scope`, `chosen` and `warning`; `null` if all units were kept.
    budget: Option<BudgetReport>,
    /// What was kept, and what choosing it cost.
    #[serde(flatten)]
    accounting: Accounting,
}

impl Generate {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let checkpoint = self.model.checkpoint(console)?;
        let engine = self.model.fast_engine_of(&checkpoint)?;
        if let Some(path) = &self.prompts {
            return self.several(console, checkpoint, engine, path);
        }
        let prompt = self.prompt_tokens(&engine)?;
        // Before anything is packed.
        let gpu = self.device.open(console)?;
        // Without a policy nothing else packs the weights.
        let plain =
            if gpu.is_some() && !self.sparsity.is_given() { Some(self.model.checkpoint(console)?) } else { None };
        let (engine, sparsity, budget) = self.sparsity.load(console, checkpoint, engine)?;
        let mut session = engine.session(SessionOptions { context: self.context })?;
        session.set_sparsity(sparsity)?;
        if let Some(gpu) = &gpu {
            self.device.place(console, gpu, plain.as_ref(), &mut session)?;
        }
        let options = self.options();
        let live = !self.json;
        let mut passes = self.read_passes(engine.cpu());
        let done = complete(console, &mut session, &prompt, &options, live)?;
        passes.extend(self.read_passes(engine.cpu()));
        let read = median(passes);
        let share = read.zip(done.timing.gb_per_second()).map(|(read, used)| used / read);
        if self.json {
            console.json(&Report {
                model: engine.location(),
                text: engine.text().tokenizer.is_some().then_some(done.text.as_str()),
                tokens: &done.tokens,
                stop_reason: done.reason,
                prompt_tokens: prompt.len(),
                prompt_ids: &prompt,
                prefill_tokens_per_second: done.timing.prompt_rate(),
                decode_tokens_per_second: done.timing.decode_rate(),
                bytes_per_token: done.timing.bytes_per_token(),
                effective_gb_per_second: done.timing.gb_per_second(),
                read_gb_per_second: read,
                bandwidth_share: share,
                device: session.device().map_or("cpu", |device| device.model().gpu().name()),
                isa: engine.cpu().isa().to_string(),
                threads: engine.cpu().threads(),
                compute: engine.cpu().compute().name(),
                budget,
                accounting: Accounting::new(&session, &done.timing),
            })?;
        } else {
            console.line("")?;
            if done.reason == Some(StopReason::ContextFull) {
                let context = session.tokens().len();
                console.note(&format!("stopped: the context of {context} tokens is full"));
            }
            console.note(&speed(&done.timing, engine.cpu(), read));
            if let Some(device) = session.device() {
                let (name, memory) = (device.model().gpu().name(), device.memory_bytes());
                console.note(&format!("decoded on {name}, with {:.1} MB beside the weights", memory as f64 / 1e6));
            }
            if let Some(note) = Accounting::note(&session, &done.timing) {
                console.note(&note);
            }
        }
        done.complete()
    }

    fn options(&self) -> CompletionOptions {
        CompletionOptions {
            sampler: self.sampling.over(&crate::generate::SamplerOptions::default()),
            max_tokens: Some(self.max_tokens),
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
        }
    }

    fn several(&self, console: &mut Console, checkpoint: Checkpoint, engine: Engine, path: &Path) -> Result<()> {
        let text = read_text(path)?;
        let tokenizer = engine.tokenizer()?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let prompts = lines.map(|line| Ok(tokenizer.encode(line, true)?)).collect::<Result<Vec<_>>>()?;
        if prompts.is_empty() {
            return Err(Error::NoPrompts { path: path.to_owned() });
        }
        let (engine, sparsity) = self.sparsity.open(console, checkpoint, engine)?;
        let (batch, context, options) = (self.batch.get(), self.context, self.options());
        Several { engine: &engine, sparsity, prompts, batch, context, options }.run(console, self.json)
    }

    /// Some measurements of the bandwidth, if they were asked for.
    fn read_passes(&self, cpu: &Cpu) -> Vec<f64> {
        if self.bandwidth { read_passes(cpu, READ_BUFFER, 5) } else { Vec::new() }
    }

    fn prompt_tokens(&self, engine: &Engine) -> Result<Vec<u32>> {
        if let Some(ids) = &self.prompt_ids {
            return Ok(ids.clone());
        }
        let tokenizer = engine.tokenizer()?;
        let text = match &self.prompt_file {
            Some(path) => read_text(path)?,
            None => self.prompt.clone().or_else(|| self.prompt_option.clone()).unwrap_or_default(),
        };
        Ok(tokenizer.encode(&text, true)?)
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A finished completion.
pub(super) struct Done {
    pub text: String,
    pub tokens: Vec<u32>,
    /// `None` if the user interrupted it.
    pub reason: Option<StopReason>,
    pub timing: Timing,
}

impl Done {
    /// [`Error::Interrupted`] if the user ended it.
    pub(super) fn complete(&self) -> Result<()> {
        self.reason.map(drop).ok_or(Error::Interrupted)
    }
}

/// Generates on `session`; with `live` the text, or the ids where there is no tokenizer, goes to standard output as it
/// comes. Ctrl-C ends the text, not the program; while the prompt is processed, that is [`Error::Interrupted`] and the session
/// holds what it held before.
pub(super) fn complete(
    console: &mut Console,
    session: &mut Session,
    prompt: &[u32],
    options: &CompletionOptions,
    live: bool,
) -> Result<Done> {
    let has_text = session.engine().text().tokenizer.is_some();
    let heeded = console.heed_interrupts();
    let go_on = &mut |_| if heeded.go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
    let mut completion = Completion::start_with(session, prompt, options, go_on)?;
    let mut text = String::new();
    while heeded.go_on() {
        let Some(piece) = completion.next_token()? else { break };
        text.push_str(piece.text);
        if live && has_text {
            console.text(piece.text)?;
        } else if live {
            console.text(&format!("{} ", piece.token))?;
        }
    }
    let rest = completion.finish_text();
    text.push_str(rest);
    if live {
        console.text(rest)?;
    }
    let (tokens, reason, timing) = (completion.tokens().to_vec(), completion.stop_reason(), completion.timing());
    Ok(Done { text, tokens, reason, timing })
}

/// One line on how fast a completion was.
pub(super) fn speed(timing: &Timing, cpu: &Cpu, read: Option<f64>) -> String {
    let mut line = format!(
        "{} prompt tokens at {:.0} tokens/s; {} ({}, {} threads)",
        timing.prompt_tokens,
        timing.prompt_rate(),
        match (timing.decode_rate(), timing.bytes_per_token(), timing.gb_per_second()) {
            (Some(rate), Some(bytes), Some(used)) =>
                format!("decoding {rate:.1} tokens/s, {:.1} MB per token, {used:.1} GB/s", bytes / 1e6),
            _ => "nothing decoded".to_owned(),
        },
        cpu.isa(),
        cpu.threads(),
    );
    if let (Some(read), Some(used)) = (read, timing.gb_per_second()) {
        line += &format!("; this machine reads {read:.1} GB/s, {:.0} % of it used", 100.0 * used / read);
    }
    line
}
