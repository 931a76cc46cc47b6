//! `shadowllm inspect --policy`: the plan of a prompt's last token, and how plans change over the tokens after it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use shadowllm_weights::{Checkpoint, write_atomic};

use super::console::{Console, Heeded};
use super::options::token_id;
use super::sparsity::SparsityArgs;
use crate::eval::plan_picture;
use crate::generate::{Engine, Session, SessionOptions, Sparsity, greedy};
use crate::model::{KeptUnits, NoProbe, UnitBytes};
use crate::sparsity::{Kept, LayerPlan, Plan, PlanTally, UnitTally};
use crate::{Error, Result};

/// Whose plan to show.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Plan of a prompt")]
pub(super) struct PlanArgs {
    /// Show what --policy keeps for the last token of this text. All tokens before it are dense.
    #[arg(long, value_name = "TEXT", requires = "policy", conflicts_with = "tensors")]
    prompt: Option<String>,

    /// The same for token ids, used as they are.
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',', value_parser = token_id, allow_negative_numbers = true,
        requires = "policy", conflicts_with_all = ["prompt", "tensors"])]
    prompt_ids: Option<Vec<u32>>,

    /// Tokens to look at: the last of the prompt and N - 1 after it, the most likely each time.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one, requires = "policy")]
    tokens: usize,

    /// Also write a picture of the plan: layers by units, kept or not.
    #[arg(long, value_name = "FILE", requires = "policy")]
    svg: Option<PathBuf>,

    // Last: its heading is that of all options after it.
    #[command(flatten)]
    sparsity: SparsityArgs,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a number of tokens, at least 1".to_owned())
}

/// What `inspect --policy --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Where the model came from.
    model: &'a str,
    /// Who chose the units.
    policy: &'static str,
    /// Number of prompt tokens.
    prompt_tokens: usize,
    /// The tokens whose plans are shown.
    tokens: &'a [u32],
    /// Units kept / units, over all layers and tokens.
    kept: Kept,
    /// Bytes that a token read, on average: everything, as `generate` counts it.
    bytes_per_token: f64,
    /// Bytes of it that the decisions read.
    predictor_bytes_per_token: f64,
    /// Bytes that the tokens read over all units, on average.
    dense_bytes_per_token: f64,
    /// One per layer.
    layers: Vec<Row>,
    /// All layers together; `overlap` is the mean over the layers.
    total: Row,
    /// The picture that was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    svg: Option<&'a Path>,
}

/// Units of one layer, or of all.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Row {
    /// From 0; `null` in the total.
    layer: Option<usize>,
    heads: Column,
    neurons: Column,
    /// Bytes of the records of all units.
    dense_bytes: u64,
    /// `(heads.bytes + neurons.bytes) / dense_bytes`.
    share: f64,
}

/// Units of one kind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Column {
    /// Units kept, on average over the tokens.
    kept: f64,
    /// Units that there are.
    of: usize,
    /// Bytes of the records of what is kept, on average; with heads, of the key/value heads that they use too.
    bytes: f64,
    /// Units that every token kept.
    always: usize,
    /// Units that no token kept.
    never: usize,
    /// Units kept by both of two neighbouring tokens / units kept by either, on average; `null` for a single token.
    overlap: Option<f64>,
}

/// The plans of some tokens and what they cost.
struct Course {
    tokens: Vec<u32>,
    tally: PlanTally,
    /// Bytes of what was kept: one per layer, sums over the tokens.
    bytes: Vec<UnitBytes>,
    /// Bytes of all units, one per layer.
    all: Vec<UnitBytes>,
    read: u64,
    decision: u64,
    dense: u64,
}

impl PlanArgs {
    /// Whether a plan was asked for.
    pub(super) fn is_given(&self) -> bool {
        self.sparsity.is_given()
    }

    pub(super) fn run(&self, console: &mut Console, checkpoint: Checkpoint, engine: Engine, json: bool) -> Result<()> {
        let prompt = match (&self.prompt_ids, &self.prompt) {
            (Some(ids), _) => ids.clone(),
            (None, Some(text)) => engine.tokenizer()?.encode(text, true)?,
            (None, None) => return Err(Error::PlanNeedsPrompt),
        };
        let Some((&last, before)) = prompt.split_last() else { return Err(Error::NoTokens) };
        let (engine, sparsity, _) = self.sparsity.load(console, checkpoint, engine)?;
        let mut session = engine.session(SessionOptions::default())?;
        session.set_sparsity(sparsity)?;
        let heeded = console.heed_interrupts();
        if !before.is_empty() {
            let go_on = &mut |_| if heeded.go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
            session.prefill_with(before, &mut NoProbe, go_on)?;
        }
        let course = Course::run(&mut session, last, self.tokens, &heeded)?;
        let policy = session.sparsity().map_or("dense", Sparsity::policy);
        let report = course.report(&engine, policy, prompt.len(), self.svg.as_deref());
        if let Some(path) = &self.svg {
            let title = format!("{}: plan of policy {policy}", engine.location());
            write_atomic(path, plan_picture(&course.tally, &title, &report.summary()).as_bytes())?;
        }
        if json { console.json(&report) } else { report.print(console) }
    }
}

impl Course {
    /// Steps over `first` and the most likely tokens after it, `count` in all, fewer if the model ends the text.
    fn run(session: &mut Session, first: u32, count: usize, heeded: &Heeded) -> Result<Course> {
        let config = session.engine().config().clone();
        let mut course = Course {
            tokens: Vec::new(),
            tally: PlanTally::new(&config),
            bytes: vec![UnitBytes::default(); config.layers],
            all: session.sparsity().map_or_else(Vec::new, |s| bytes_of(s, &Plan::dense(&config))),
            read: 0,
            decision: 0,
            dense: 0,
        };
        let mut token = first;
        while course.tokens.len() < count {
            if !heeded.go_on() {
                return Err(Error::Interrupted);
            }
            let position = session.tokens().len();
            let next = greedy(session.step(token)?)?;
            course.tokens.push(token);
            course.read += session.step_bytes();
            course.dense += session.engine().model().active_bytes(position).total();
            if let Some(sparsity) = session.sparsity() {
                course.decision += sparsity.decision_bytes();
                course.count(sparsity);
            }
            if config.eos.contains(&next) {
                break;
            }
            token = next;
        }
        Ok(course)
    }

    fn count(&mut self, sparsity: &Sparsity) {
        self.tally.add(sparsity.plan());
        for (sum, bytes) in self.bytes.iter_mut().zip(bytes_of(sparsity, sparsity.plan())) {
            sum.heads += bytes.heads;
            sum.neurons += bytes.neurons;
        }
    }

    fn report<'a>(
        &'a self,
        engine: &'a Engine,
        policy: &'static str,
        prompt_tokens: usize,
        svg: Option<&'a Path>,
    ) -> Report<'a> {
        let steps = self.tokens.len();
        let mean = |sum: u64| sum as f64 / steps as f64;
        let layers: Vec<Row> = (self.tally.layers().iter().zip(&self.bytes).zip(&self.all).enumerate())
            .map(|(layer, ((tally, bytes), all))| Row {
                layer: Some(layer),
                heads: Column::of(&tally.heads, steps, mean(bytes.heads)),
                neurons: Column::of(&tally.neurons, steps, mean(bytes.neurons)),
                dense_bytes: all.total(),
                share: mean(bytes.total()) / all.total() as f64,
            })
            .collect();
        let total = Row::total(&layers);
        Report {
            model: engine.location(),
            policy,
            prompt_tokens,
            tokens: &self.tokens,
            kept: Kept { heads: total.heads.fraction(), neurons: total.neurons.fraction() },
            bytes_per_token: mean(self.read),
            predictor_bytes_per_token: mean(self.decision),
            dense_bytes_per_token: mean(self.dense),
            layers,
            total,
            svg,
        }
    }
}

/// Bytes of what `plan` keeps, layer by layer.
fn bytes_of(sparsity: &Sparsity, plan: &Plan) -> Vec<UnitBytes> {
    fn kept(plan: &LayerPlan) -> KeptUnits<'_> {
        KeptUnits { heads: &plan.heads, neurons: &plan.neurons }
    }
    sparsity.packed().layers.iter().zip(&plan.layers).map(|(records, plan)| records.unit_bytes(kept(plan))).collect()
}

impl Column {
    fn of(tally: &UnitTally, tokens: usize, bytes: f64) -> Self {
        Column {
            kept: tally.mean_kept(tokens),
            of: tally.times.len(),
            bytes,
            always: tally.always(tokens),
            never: tally.never(),
            overlap: tally.overlap(tokens),
        }
    }

    /// Those of all layers: sums, and the mean overlap.
    fn total(layers: impl Iterator<Item = Column> + Clone) -> Self {
        let overlaps: Option<Vec<f64>> = layers.clone().map(|column| column.overlap).collect();
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        layers.fold(Column { overlap: overlaps.map(mean), ..Column::default() }, |sum, column| Column {
            kept: sum.kept + column.kept,
            of: sum.of + column.of,
            bytes: sum.bytes + column.bytes,
            always: sum.always + column.always,
            never: sum.never + column.never,
            overlap: sum.overlap,
        })
    }

    fn fraction(&self) -> f64 {
        self.kept / self.of as f64
    }
}

impl Row {
    fn total(layers: &[Row]) -> Self {
        let heads = Column::total(layers.iter().map(|row| row.heads));
        let neurons = Column::total(layers.iter().map(|row| row.neurons));
        let dense_bytes = layers.iter().map(|row| row.dense_bytes).sum();
        Row { layer: None, heads, neurons, dense_bytes, share: (heads.bytes + neurons.bytes) / dense_bytes as f64 }
    }

    /// One line of the table; `change` adds the columns that need several tokens.
    fn line(&self, change: bool) -> String {
        // A number of units may be a mean over tokens.
        let kept = |column: &Column| {
            let digits = usize::from(column.kept.fract() != 0.0);
            format!("{:.digits$}/{}", column.kept, column.of)
        };
        let layer = self.layer.map_or_else(|| "all".to_owned(), |layer| layer.to_string());
        let mut line = format!(
            "{layer:>5} {:>12} {:>16} {:>10.3} {:>10.3} {:>10.3} {:>7.1}",
            kept(&self.heads),
            kept(&self.neurons),
            self.heads.bytes / 1e6,
            self.neurons.bytes / 1e6,
            self.dense_bytes as f64 / 1e6,
            100.0 * self.share,
        );
        if change {
            for column in [&self.heads, &self.neurons] {
                let overlap = column.overlap.unwrap_or(1.0);
                line += &format!(" {overlap:>8.3} {:>7} {:>7}", column.always, column.never);
            }
        }
        line
    }
}

impl Report<'_> {
    /// Kept fractions and bytes, in one line.
    fn summary(&self) -> String {
        let tokens = match self.tokens.len() {
            1 => "last token of the prompt".to_owned(),
            n => format!("last token of the prompt and the next {}", n - 1),
        };
        format!(
            "{tokens}: {:.1} % of the heads and {:.1} % of the neurons kept, {:.2} of {:.2} MB read per token",
            100.0 * self.kept.heads,
            100.0 * self.kept.neurons,
            self.bytes_per_token / 1e6,
            self.dense_bytes_per_token / 1e6,
        )
    }

    fn print(&self, console: &mut Console) -> Result<()> {
        let change = self.tokens.len() > 1;
        console.line(&format!("policy {}, {}", self.policy, self.summary()))?;
        if change {
            let groups = format!("{:76} {:^24} {:^24}", "", "heads over the tokens", "neurons over the tokens");
            console.line(groups.trim_end())?;
        }
        let mut header = format!(
            "{:>5} {:>12} {:>16} {:>10} {:>10} {:>10} {:>7}",
            "layer", "heads", "neurons", "heads MB", "neurons MB", "all MB", "share %"
        );
        if change {
            header += &format!(" {:>8} {:>7} {:>7}", "overlap", "always", "never").repeat(2);
        }
        console.line(&header)?;
        for row in self.layers.iter().chain([&self.total]) {
            console.line(&row.line(change))?;
        }
        Ok(())
    }
}
