//! `shadowllm inspect`: what a model is and what the engine will run.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use shadowllm_weights::{Activation, Checkpoint, ModelConfig, NormKind, NormPlacement, Positions, RopeScaling};

use super::console::Console;
use super::options::ModelArgs;
use super::plan::PlanArgs;
use crate::Result;
use crate::generate::Engine;
use crate::model::ActiveBytes;

/// Show a model's configuration, tensors and bytes, and what the engine will run it with.
///
/// With --policy and a prompt: what the policy keeps for the last token of the prompt, layer by layer.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    model: ModelArgs,

    /// List every tensor.
    #[arg(long)]
    tensors: bool,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,

    // Last: its headings are those of all options after it.
    #[command(flatten)]
    plan: PlanArgs,
}

/// What `inspect --json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// Where the model came from.
    model: String,
    /// Shapes and variants.
    config: Config,
    /// Weights, tied ones counted once.
    parameters: u64,
    /// Tensors in the checkpoint.
    tensors: usize,
    /// Bytes of all tensors by type.
    tensor_bytes: BTreeMap<String, u64>,
    /// Bytes of the checkpoint files, mapped and not copied.
    mapped_bytes: u64,
    /// Bytes read to decode the first token and the last one that fits.
    bytes_per_token: BytesPerToken,
    /// Whether there is a tokenizer, and whether it has a chat template.
    tokenizer: bool,
    chat_template: bool,
    /// What runs it.
    engine: EngineReport,
    /// Every tensor with type and shape; only with `--tensors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tensor_list: Option<Vec<TensorReport>>,
}

#[derive(Debug, Serialize)]
struct Config {
    architecture: String,
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    max_positions: usize,
    embed_dim: usize,
    norm: String,
    activation: String,
    gated: bool,
    positions: String,
    /// Distinct sliding windows over the layers; `null` is full attention.
    windows: Vec<Option<usize>>,
    tied: bool,
    eos: Vec<u32>,
}

#[derive(Debug, Serialize)]
struct BytesPerToken {
    first: ActiveBytes,
    last: ActiveBytes,
}

#[derive(Debug, Serialize)]
struct EngineReport {
    device: &'static str,
    isa: String,
    threads: usize,
    /// Implementation taken for each operation.
    kernels: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct TensorReport {
    name: String,
    dtype: String,
    shape: Vec<usize>,
}

impl Inspect {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let checkpoint = self.model.checkpoint(console)?;
        let engine = self.model.fast_engine_of(&checkpoint)?;
        if self.plan.is_given() {
            return self.plan.run(console, checkpoint, engine, self.json);
        }
        let report = self.report(&checkpoint, &engine);
        if self.json { console.json(&report) } else { report.print(console) }
    }

    fn report(&self, checkpoint: &Checkpoint, engine: &Engine) -> Report {
        let tensors = || checkpoint.names().filter_map(|name| Some((name, checkpoint.get(name)?)));
        let mut tensor_bytes = BTreeMap::new();
        for (_, tensor) in tensors() {
            *tensor_bytes.entry(tensor.dtype().to_string()).or_default() += tensor.bytes().len() as u64;
        }
        let (cpu, model) = (engine.cpu(), engine.model());
        Report {
            model: engine.location().to_owned(),
            config: Config::of(engine.config()),
            parameters: model.parameters(),
            tensors: tensors().count(),
            tensor_bytes,
            mapped_bytes: engine.mapped_bytes(),
            bytes_per_token: BytesPerToken {
                first: model.active_bytes(0),
                last: model.active_bytes(engine.config().max_positions - 1),
            },
            tokenizer: engine.text().tokenizer.is_some(),
            chat_template: engine.text().chat.is_ok(),
            engine: EngineReport {
                device: "cpu",
                isa: cpu.isa().to_string(),
                threads: cpu.threads(),
                kernels: cpu.kernel_names().into_iter().collect(),
            },
            tensor_list: self.tensors.then(|| {
                let list = tensors().map(|(name, tensor)| TensorReport {
                    name: name.to_owned(),
                    dtype: tensor.dtype().to_string(),
                    shape: tensor.shape().to_vec(),
                });
                list.collect()
            }),
        }
    }
}

impl Config {
    fn of(c: &ModelConfig) -> Self {
        let mut windows = c.windows.clone();
        windows.sort_unstable();
        windows.dedup();
        Config {
            architecture: c.architecture.name().to_owned(),
            layers: c.layers,
            hidden: c.hidden,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            ffn: c.ffn,
            vocab: c.vocab,
            max_positions: c.max_positions,
            embed_dim: c.embed_dim,
            norm: norm(c),
            activation: activation(c.activation).to_owned(),
            gated: c.gated,
            positions: match c.positions {
                Positions::Learned { offset } => format!("learned, offset {offset}"),
                Positions::Rope(rope) => match rope.scaling {
                    RopeScaling::None => format!("rope, theta {}", rope.theta),
                    RopeScaling::Linear { factor } => format!("rope, theta {}, linear factor {factor}", rope.theta),
                    RopeScaling::Llama3 { factor, .. } => format!("rope, theta {}, llama3 factor {factor}", rope.theta),
                },
            },
            windows,
            tied: c.tied,
            eos: c.eos.clone(),
        }
    }
}

/// Kind and place of the norms, as the report names them.
fn norm(c: &ModelConfig) -> String {
    let kind = match c.norm {
        NormKind::LayerNorm { affine: true } => "layer norm",
        NormKind::LayerNorm { affine: false } => "layer norm without weights",
        NormKind::RmsNorm => "rms norm",
    };
    let place = match c.norm_placement {
        NormPlacement::Pre => "before",
        NormPlacement::Post => "after",
    };
    format!("{kind} {place} each block")
}

/// The non-linearity, as the report names it.
fn activation(of: Activation) -> &'static str {
    match of {
        Activation::Relu => "relu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Silu => "silu",
    }
}

impl Report {
    fn print(&self, console: &mut Console) -> Result<()> {
        let c = &self.config;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut rows = vec![
            ("model", self.model.clone()),
            ("architecture", format!("{}, {:.1} M parameters", c.architecture, self.parameters as f64 / 1e6)),
            ("layers", format!("{} of width {}", c.layers, c.hidden)),
            ("heads", format!("{} query, {} key/value, width {}", c.heads, c.kv_heads, c.head_dim)),
            ("ffn", format!("{} neurons, {}{}", c.ffn, c.activation, if c.gated { ", gated" } else { "" })),
            ("norm", c.norm.clone()),
            ("positions", format!("{}, context {}", c.positions, c.max_positions)),
        ];
        if c.windows != [None] {
            let windows = c.windows.iter().map(|w| w.map_or("none in some layers".to_owned(), |w| w.to_string()));
            let windows: Vec<_> = windows.rev().collect();
            rows.push(("sliding window", windows.join(", ")));
        }
        let types: Vec<_> = self.tensor_bytes.iter().map(|(t, &b)| format!("{t} {:.1} MiB", mib(b))).collect();
        let tied = if c.tied { "tied" } else { "untied" };
        let present = |b: bool| if b { "yes" } else { "no" };
        rows.extend([
            ("vocabulary", format!("{}, head {tied}", c.vocab)),
            ("tensors", format!("{}: {}", self.tensors, types.join(", "))),
            ("mapped", format!("{:.1} MiB", mib(self.mapped_bytes))),
            (
                "bytes per token",
                format!(
                    "{:.1} MiB (context 1) to {:.1} MiB (context {})",
                    mib(self.bytes_per_token.first.total()),
                    mib(self.bytes_per_token.last.total()),
                    c.max_positions,
                ),
            ),
            ("tokenizer", format!("{}, chat template {}", present(self.tokenizer), present(self.chat_template))),
            ("runs on", format!("{}, {}, {} threads", self.engine.device, self.engine.isa, self.engine.threads)),
        ]);
        for (name, value) in rows {
            console.line(&format!("{name:16} {value}"))?;
        }
        for (op, name) in &self.engine.kernels {
            console.line(&format!("  {op:14} {name}"))?;
        }
        for tensor in self.tensor_list.iter().flatten() {
            console.line(&format!("{:5} {:?} {}", tensor.dtype, tensor.shape, tensor.name))?;
        }
        Ok(())
    }
}
