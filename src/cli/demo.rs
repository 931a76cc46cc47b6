//! What the program does without a command: the main job, on the model that is compiled in.

use super::console::Console;
use super::generate::{READ_BUFFER, complete, speed};
use crate::Result;
use crate::generate::{CompletionOptions, Engine, EngineOptions, SessionOptions};
use crate::kernels::{Compute, CpuOptions, read_bandwidth};

const PROMPTS: [&str; 3] = ["Once upon a time", "The captain looked at the sea and", "\"My dear sir,\" said"];

const TOKENS: usize = 64;

pub(super) fn run(console: &mut Console) -> Result<()> {
    let options = EngineOptions { cpu: CpuOptions { compute: Compute::Bf16, ..CpuOptions::default() } };
    let engine = Engine::open("embedded", options)?;
    let config = engine.config();
    console.line(&format!(
        "{}: {} layers, {} heads, {} neurons each, {:.1} M parameters",
        engine.location(),
        config.layers,
        config.heads,
        config.ffn,
        engine.model().parameters() as f64 / 1e6
    ))?;
    let read = read_bandwidth(engine.cpu(), READ_BUFFER);
    for prompt in PROMPTS {
        let ids = engine.tokenizer()?.encode(prompt, true)?;
        let mut session = engine.session(SessionOptions::default())?;
        let options = CompletionOptions { max_tokens: Some(TOKENS), ..CompletionOptions::default() };
        console.text(&format!("\n> {prompt}"))?;
        let done = complete(console, &mut session, &ids, &options, true)?;
        console.line(&format!("\n[{}]", speed(&done.timing, engine.cpu(), None)))?;
        done.complete()?;
    }
    console.line(&format!(
        "\nThis machine reads {read:.1} GB/s from memory; the model's {:.1} MB stay in the cache.\n\
         Next: shadowllm generate --model DIR_OR_NAME \"Your text\", or shadowllm --help",
        engine.mapped_bytes() as f64 / 1e6
    ))
}
