//! Options that several commands share.

use clap::Args;
use shadowllm_weights::{Checkpoint, ModelSource};

use super::console::Console;
use crate::Result;
use crate::generate::{Engine, EngineOptions, SamplerOptions};
use crate::kernels::{Compute, CpuOptions, IsaName};

/// Which model, on what.
#[derive(Clone, Debug, Args)]
pub(super) struct ModelArgs {
    /// The model: `embedded`, a directory in Hugging Face format, or a Hugging Face name such as
    /// facebook/opt-1.3b (with @REVISION if wanted), taken from the cache or downloaded.
    #[arg(long, short, default_value = "embedded", value_name = "MODEL")]
    pub model: String,

    #[command(flatten)]
    pub cpu: CpuArgs,
}

/// On what to run.
#[derive(Clone, Debug, Args)]
pub(crate) struct CpuArgs {
    /// Threads to use [default: the processor's cores].
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,

    /// Instruction set: portable, avx2, avx512 or amx [default: $SHADOWLLM_ISA or the best that the processor has].
    #[arg(long, value_name = "ISA")]
    pub isa: Option<IsaName>,

    /// Products of bf16 and int8 weights with rather many tokens at once: f32 is exact; bf16 rounds activations, and is faster where
    /// the processor has the instructions [default: bf16 for generate, chat, train and shadow-bench, f32 for
    /// everything else].
    #[arg(long, value_name = "TYPE")]
    pub compute: Option<Compute>,
}

/// Far more than any processor's cores; a system may hang on starting as many as a typing error asks for.
const MAX_THREADS: usize = 1024;

fn parse_threads(text: &str) -> Result<usize, String> {
    let threads = text.parse().ok().filter(|n| (1..=MAX_THREADS).contains(n));
    threads.ok_or_else(|| format!("expected a number from 1 to {MAX_THREADS}"))
}

/// One id of a list; spaces around it are as good as none.
pub(super) fn token_id(text: &str) -> Result<u32, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("expected token ids, numbers from 0 to {}, with commas between them", u32::MAX))
}

impl CpuArgs {
    /// The options given, with the command's default for the rest.
    pub(crate) fn options(&self, compute: Compute) -> CpuOptions {
        CpuOptions { isa: self.isa, threads: self.threads, compute: self.compute.unwrap_or(compute) }
    }
}

impl ModelArgs {
    /// Finds the checkpoint, downloading it if need be.
    pub(super) fn checkpoint(&self, console: &Console) -> Result<Checkpoint> {
        Ok(ModelSource::parse(&self.model)?.open(&console.bytes_progress())?)
    }

    /// Loads the model, to measure it: exact products.
    pub(super) fn engine(&self, console: &Console) -> Result<Engine> {
        self.engine_of(&self.checkpoint(console)?)
    }

    /// The same from its checkpoint.
    pub(super) fn engine_of(&self, checkpoint: &Checkpoint) -> Result<Engine> {
        Engine::load(checkpoint, EngineOptions { cpu: self.cpu.options(Compute::F32) })
    }

    /// Loads the model from its checkpoint, to generate text or to learn from it: products in the weights' precision. That moves logits about as much as rounding
    /// the weights to bf16 did (docs/src/results.md), and prompts are processed up to twice as fast.
    pub(super) fn fast_engine_of(&self, checkpoint: &Checkpoint) -> Result<Engine> {
        Engine::load(checkpoint, EngineOptions { cpu: self.cpu.options(Compute::Bf16) })
    }
}

/// How the next token is chosen. What is not given is taken from the command's defaults.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SamplingArgs {
    /// 0 takes the most likely token every time; higher is more varied.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    temperature: Option<f32>,

    /// Only the K most likely tokens; 0 for all.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,

    /// Only the most likely tokens that together have probability P; 1 for all.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,

    /// Only tokens at least P times as likely as the most likely one; 0 for all.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,

    /// Makes tokens that occurred already less likely; 1 does nothing.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,

    /// Seed of the random choice; the same seed gives the same text [default: 0].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The options given, over `base`.
    pub(super) fn over(&self, base: &SamplerOptions) -> SamplerOptions {
        SamplerOptions {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            seed: self.seed.unwrap_or(base.seed),
            ..base.clone()
        }
    }
}
