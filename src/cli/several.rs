//! `shadowllm generate --prompts`: continue several texts, decoded together.

use std::time::Instant;

use serde::Serialize;

use super::accounting::Accounting;
use super::console::Console;
use super::policy::BudgetReport;
use super::sparsity::SparsitySource;
use crate::generate::{BatchStep, Completion, CompletionOptions, Engine, Session, SessionOptions, StopReason, Timing};
use crate::sparsity::Kept;
use crate::{Error, Result};

/// What `generate --prompts --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Where the model came from.
    model: &'a str,
    /// Most sequences that were decoded together.
    batch: usize,
    /// `heads`, `neurons`, `scope`, `chosen` and `warning`, of every sequence; `null` if all units were kept.
    budget: Option<&'a BudgetReport>,
    /// One per prompt, in order; fewer if the user interrupted it.
    sequences: &'a [Sequence],
    /// Prompt tokens per second.
    prefill_tokens_per_second: f64,
    /// Tokens of all sequences per second of decoding; `null` if nothing was decoded.
    decode_tokens_per_second: Option<f64>,
    /// Bytes read while decoding / tokens decoded.
    bytes_per_token: Option<f64>,
    /// The same, had the sequences been decoded one after the other.
    bytes_per_token_alone: Option<f64>,
    /// Units that any sequence of a step keeps / units, on average over the steps.
    kept_by_any: Option<Kept>,
    /// Instruction set of the kernels.
    isa: String,
    /// Threads.
    threads: usize,
    /// Precision of products with many prompt tokens, where the weights are bf16.
    compute: &'static str,
}

/// One text.
#[derive(Debug, Serialize)]
struct Sequence {
    /// The continuation, without the prompt; `null` if the model has no tokenizer.
    text: Option<String>,
    /// Ids of the tokens generated.
    tokens: Vec<u32>,
    /// As for one text; `null` if the user ended it.
    stop_reason: Option<StopReason>,
    /// Ids of the prompt.
    prompt_ids: Vec<u32>,
    /// What it kept, and what it would have read alone.
    #[serde(flatten)]
    accounting: Accounting,
}

/// Texts to continue, and how.
pub(super) struct Several<'a> {
    pub engine: &'a Engine,
    /// `None`: dense.
    pub sparsity: Option<SparsitySource>,
    pub prompts: Vec<Vec<u32>>,
    /// Most that are decoded together.
    pub batch: usize,
    pub context: Option<usize>,
    pub options: CompletionOptions,
}

/// Sums over all steps.
#[derive(Default)]
struct Total {
    prompt_tokens: usize,
    prompt_seconds: f64,
    decode_seconds: f64,
    steps: BatchStep,
}

impl Several<'_> {
    pub(super) fn run(&self, console: &mut Console, json: bool) -> Result<()> {
        let mut total = Total::default();
        let mut sequences = Vec::new();
        let bar = console.bar(self.prompts.len() as u64, "texts [{bar:30}] {pos}/{len}, {eta} left");
        for (group, prompts) in self.prompts.chunks(self.batch).enumerate() {
            let finished = self.group(console, (group * self.batch) as u64, prompts, &mut sequences, &mut total)?;
            bar.inc(prompts.len() as u64);
            if !finished {
                break;
            }
        }
        bar.finish_and_clear();
        if json {
            console.json(&self.report(&sequences, &total))?;
        } else {
            self.print(console, &sequences, &total)?;
        }
        let whole =
            sequences.len() == self.prompts.len() && sequences.iter().all(|sequence| sequence.stop_reason.is_some());
        if whole { Ok(()) } else { Err(Error::Interrupted) }
    }

    /// Generates the texts of some prompts together; false if the user ended it.
    fn group(
        &self,
        console: &Console,
        first: u64,
        prompts: &[Vec<u32>],
        sequences: &mut Vec<Sequence>,
        total: &mut Total,
    ) -> Result<bool> {
        let mut sessions = (0..prompts.len() as u64)
            .map(|i| {
                let mut session = self.engine.session(SessionOptions { context: self.context })?;
                let sparsity = self.sparsity.as_ref().map(|source| source.sparsity(first + i, self.engine));
                session.set_sparsity(sparsity.transpose()?)?;
                Ok(session)
            })
            .collect::<Result<Vec<Session>>>()?;
        let heeded = console.heed_interrupts();
        let mut completions = Vec::with_capacity(prompts.len());
        for (session, prompt) in sessions.iter_mut().zip(prompts) {
            if !heeded.go_on() {
                return Ok(false);
            }
            let completion = Completion::start(session, prompt, &self.options)?;
            total.prompt_tokens += completion.timing().prompt_tokens;
            total.prompt_seconds += completion.timing().prompt_seconds;
            completions.push(completion);
        }
        let mut texts = vec![String::new(); prompts.len()];
        while heeded.go_on() {
            let start = Instant::now();
            let step = Completion::next_tokens(&mut completions, &mut |i, piece| {
                texts[i].push_str(piece.text);
                Ok(())
            })?;
            let Some(step) = step else { break };
            if step.sequences > 0 {
                total.decode_seconds += start.elapsed().as_secs_f64();
                total.steps.add(&step);
            }
        }
        let done: Vec<(Vec<u32>, Option<StopReason>, Timing)> = completions
            .iter_mut()
            .zip(&mut texts)
            .map(|(completion, text)| {
                text.push_str(completion.finish_text());
                (completion.tokens().to_vec(), completion.stop_reason(), completion.timing())
            })
            .collect();
        let has_text = self.engine.text().tokenizer.is_some();
        for (((session, prompt), text), (tokens, stop_reason, timing)) in
            sessions.iter().zip(prompts).zip(texts).zip(done)
        {
            sequences.push(Sequence {
                text: has_text.then_some(text),
                tokens,
                stop_reason,
                prompt_ids: prompt.clone(),
                accounting: Accounting::new(session, &timing),
            });
        }
        Ok(heeded.go_on())
    }

    fn report<'a>(&'a self, sequences: &'a [Sequence], total: &Total) -> Report<'a> {
        let cpu = self.engine.cpu();
        let decoded = (total.steps.sequences > 0).then_some(total.steps.sequences as f64);
        Report {
            model: self.engine.location(),
            batch: self.batch,
            budget: self.sparsity.as_ref().and_then(|source| source.budget.as_ref()),
            sequences,
            prefill_tokens_per_second: total.prompt_tokens as f64 / total.prompt_seconds,
            decode_tokens_per_second: decoded.map(|tokens| tokens / total.decode_seconds),
            bytes_per_token: decoded.map(|tokens| total.steps.bytes as f64 / tokens),
            bytes_per_token_alone: decoded.map(|tokens| total.steps.bytes_alone as f64 / tokens),
            kept_by_any: decoded.map(|_| total.steps.kept()),
            isa: cpu.isa().to_string(),
            threads: cpu.threads(),
            compute: cpu.compute().name(),
        }
    }

    fn print(&self, console: &mut Console, sequences: &[Sequence], total: &Total) -> Result<()> {
        for (i, sequence) in sequences.iter().enumerate() {
            console.line(&format!("--- {}", i + 1))?;
            match &sequence.text {
                Some(text) => console.line(text)?,
                None => console.line(&sequence.tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))?,
            }
        }
        let report = self.report(sequences, total);
        let mut note =
            format!("{} prompt tokens at {:.0} tokens/s; ", total.prompt_tokens, report.prefill_tokens_per_second);
        match (report.decode_tokens_per_second, report.bytes_per_token, report.bytes_per_token_alone) {
            (Some(rate), Some(bytes), Some(alone)) => {
                let kept = total.steps.kept();
                note += &format!(
                    "decoding up to {} together, {rate:.1} tokens/s, {:.1} MB per token ({:.1} MB alone); any of them keeps {:.1} % \
                     of the heads and {:.1} % of the neurons",
                    self.batch,
                    bytes / 1e6,
                    alone / 1e6,
                    100.0 * kept.heads,
                    100.0 * kept.neurons,
                );
            }
            _ => note += "nothing decoded",
        }
        console.note(&format!("{note} ({}, {} threads)", report.isa, report.threads));
        Ok(())
    }
}
