//! What the program does without a command: the main job, on the model that is compiled in, dense and sparse side by side.

mod columns;

use std::ops::ControlFlow;
use std::sync::Arc;

use shadowllm_weights::{Checkpoint, PackedCheckpoint};

use super::console::Console;
use super::generate::{READ_BUFFER, complete};
use crate::eval::{Chooser, Masked, Masking, Windows, perplexity, perplexity_masked};
use crate::generate::{CompletionOptions, Engine, EngineOptions, SessionOptions, Sparsity, Timing};
use crate::kernels::{Compute, CpuOptions, read_bandwidth};
use crate::model::{PackedModel, SparseOptions};
use crate::sparsity::predictor::Choice;
use crate::sparsity::{ModelIdentity, Predictor, Refresh, Shadow};
use crate::{Error, Result};
use columns::beside;

const PROMPTS: [&str; 3] = ["Once upon a time", "The captain looked at the sea and", "\"My dear sir,\" said"];

const TOKENS: usize = 64;

/// By how much perplexity may grow.
const MAX_INCREASE: f64 = 0.05;

/// What perplexity is measured on: written for this, so neither the model nor the predictor can have seen it.
const PASSAGE: &str = include_str!("passage.txt");

/// Characters of a column.
const WIDTH: usize = 48;

/// The two ways of running the model.
struct Sides {
    dense: Engine,
    sparse: Engine,
    packed: Arc<PackedModel>,
    predictor: Arc<Predictor>,
    choice: Choice,
}

pub(super) fn run(console: &mut Console) -> Result<()> {
    let sides = Sides::load()?;
    let (dense, choice) = (&sides.dense, &sides.choice);
    let config = dense.config();
    console.line(&format!(
        "{}: {} layers, {} heads and {} neurons each, {:.1} M parameters\n\
         dense: every token reads all weights. sparse: after layer 0 a predictor chooses the heads and neurons of the later layers, \n\
         the fewest bytes for at most {:.0} % more perplexity: {:.1} % of the heads, {:.1} % of the neurons; expected are {:.1} % more,\n\
         by {} tokens of {}",
        dense.location(),
        config.layers,
        config.heads,
        config.ffn,
        dense.model().parameters() as f64 / 1e6,
        100.0 * MAX_INCREASE,
        100.0 * choice.budget.heads,
        100.0 * choice.budget.neurons,
        100.0 * choice.expected_increase,
        choice.tokens,
        choice.data,
    ))?;
    let read = read_bandwidth(dense.cpu(), READ_BUFFER);
    let mut timings = [Timing::default(); 2];
    for prompt in PROMPTS {
        let texts = sides.texts(console, prompt, &mut timings)?;
        console.line(&format!("\n> {prompt}\n{}", beside(["dense:", "sparse:"], WIDTH)))?;
        console.line(&beside([&texts[0], &texts[1]], WIDTH))?;
    }
    let (tokens, perplexities) = sides.perplexities()?;
    for line in table(&sides, tokens, perplexities, &timings) {
        console.line(&line)?;
    }
    console.line(&format!(
        "\nThis machine reads {read:.1} GB/s from memory; the model's {:.1} MB stay in the cache, where fewer bytes save little time: \n\
         larger models gain what is ideal (docs/src/results.md).\n\
         Next: shadowllm generate --model DIR_OR_NAME \"Your text\", or shadowllm --help",
        dense.mapped_bytes() as f64 / 1e6
    ))
}

impl Sides {
    fn load() -> Result<Sides> {
        let cpu = CpuOptions { compute: Compute::Bf16, ..CpuOptions::default() };
        let checkpoint = Checkpoint::embedded()?;
        let dense = Engine::load(&checkpoint, EngineOptions { cpu })?;
        let predictor = Predictor::embedded(dense.config(), &ModelIdentity::of(dense.model()))?;
        let choice = predictor.choose_budget(dense.model(), MAX_INCREASE)?;
        let packed = packed(&checkpoint)?;
        Ok(Sides {
            sparse: dense.over(&packed)?,
            packed: Arc::new(PackedModel::load(&packed)?),
            dense,
            predictor: Arc::new(predictor),
            choice,
        })
    }

    /// Continues a prompt both ways; times are added to `timings`.
    fn texts(&self, console: &mut Console, prompt: &str, timings: &mut [Timing; 2]) -> Result<[String; 2]> {
        let ids = self.dense.tokenizer()?.encode(prompt, true)?;
        let mut texts = [String::new(), String::new()];
        for (side, engine) in [&self.dense, &self.sparse].into_iter().enumerate() {
            let mut session = engine.session(SessionOptions::default())?;
            if side == 1 {
                let policy = Box::new(Shadow::new(Arc::clone(&self.predictor), self.choice.budget)?);
                let (records, refresh) = (Arc::clone(&self.packed), Refresh::EveryToken);
                let sparsity = Sparsity::new(records, policy, refresh, engine.config(), SparseOptions::default());
                session.set_sparsity(Some(sparsity))?;
            }
            let options = CompletionOptions { max_tokens: Some(TOKENS), ..CompletionOptions::default() };
            let done = complete(console, &mut session, &ids, &options, false)?;
            done.complete()?;
            add(&mut timings[side], &done.timing);
            texts[side] = done.text;
        }
        Ok(texts)
    }

    /// Tokens of the passage that are scored, and perplexity both ways.
    fn perplexities(&self) -> Result<(usize, [f64; 2])> {
        let ids = self.dense.tokenizer()?.encode(PASSAGE, false)?;
        let windows = Windows { size: ids.len(), count: Some(1) };
        let go_on = &mut |_: &_| ControlFlow::Continue(());
        let dense = perplexity(&self.dense, &ids, windows, go_on)?;
        let (predictor, budget) = (Arc::clone(&self.predictor), self.choice.budget);
        let shadow = move |_| Ok::<_, Error>(Box::new(Shadow::new(Arc::clone(&predictor), budget)?) as Box<_>);
        let mut masked = Masked::new(&self.dense, Chooser::Policy(Box::new(shadow)), Masking::default())?;
        let sparse = perplexity_masked(&mut masked, &ids, windows, go_on)?;
        Ok((dense.tokens, [dense.perplexity, sparse.perplexity]))
    }
}

/// The packed weights, in the cache; where that cannot be written, in a folder that is gone again.
fn packed(checkpoint: &Checkpoint) -> Result<PackedCheckpoint> {
    if let Ok(packed) = PackedCheckpoint::open_or_pack(checkpoint, &()) {
        return Ok(packed);
    }
    let folder = std::env::temp_dir().join(format!("shadowllm-{}", std::process::id()));
    let packed = PackedCheckpoint::open_or_pack_at(&folder.join("model.shadow.safetensors"), checkpoint, &());
    // What is mapped stays; where it cannot be removed so, the system cleans up.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(packed?)
}

/// Adds the decoding of one text to that of others.
fn add(sum: &mut Timing, one: &Timing) {
    sum.decode_steps += one.decode_steps;
    sum.decode_seconds += one.decode_seconds;
    sum.decode_bytes += one.decode_bytes;
    sum.dense_bytes += one.dense_bytes;
    sum.kept_heads += one.kept_heads;
    sum.kept_neurons += one.kept_neurons;
}

/// What both ways cost and gave, a line each.
fn table(sides: &Sides, tokens: usize, perplexities: [f64; 2], timings: &[Timing; 2]) -> Vec<String> {
    let kept = timings.map(|timing| timing.kept(sides.dense.config()));
    let share = |of: fn(&crate::sparsity::Kept) -> f64| {
        let text = |kept: &Option<crate::sparsity::Kept>| {
            kept.as_ref().map_or_else(|| "-".to_owned(), |kept| format!("{:.1} %", 100.0 * of(kept)))
        };
        [text(&kept[0]), text(&kept[1])]
    };
    let bytes = timings.map(|timing| timing.bytes_per_token().unwrap_or_default());
    let rates = timings.map(|timing| timing.decode_rate().unwrap_or_default());
    let numbers = |values: [f64; 2]| values.map(|value| format!("{value:.2}"));
    let rows = [
        ("", ["dense".to_owned(), "sparse".to_owned()], String::new()),
        (
            "perplexity",
            numbers(perplexities),
            format!("{:.3} times; {tokens} tokens written for this demonstration", perplexities[1] / perplexities[0]),
        ),
        ("heads kept", share(|kept| kept.heads), "layer 0, which is always dense, included".to_owned()),
        ("neurons kept", share(|kept| kept.neurons), "the same".to_owned()),
        (
            "MB per token",
            numbers(bytes.map(|bytes| bytes / 1e6)),
            format!("predictor included, inactive ReLU halves not; ideally {:.2} times as fast", bytes[0] / bytes[1]),
        ),
        (
            "tokens/s",
            rates.map(|rate| format!("{rate:.0}")),
            format!("{:.2} times as fast, measured", rates[1] / rates[0]),
        ),
    ];
    let line = |(name, [dense, sparse], note): (&str, [String; 2], String)| {
        format!("{name:14} {dense:>9} {sparse:>9}   {note}").trim_end().to_owned()
    };
    std::iter::once(String::new()).chain(rows.map(line)).collect()
}
