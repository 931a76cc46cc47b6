//! `shadowllm import`: other formats to a Hugging Face directory.

use std::path::PathBuf;

use clap::Args;
use shadowllm_weights::{DType, gguf};

use super::console::Console;
use crate::Result;

/// Convert a GGUF file to a Hugging Face directory: weights, configuration, tokenizer.
#[derive(Debug, Args)]
pub(super) struct Import {
    /// The GGUF file (architectures llama and qwen2).
    #[arg(value_name = "MODEL.gguf")]
    gguf: PathBuf,

    /// The directory to make; it must not exist or be empty.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Type of the weights written: f32, f16 or bf16. Quantised weights are widened exactly by f32 only.
    #[arg(long, default_value_t = DType::BF16, value_name = "TYPE")]
    dtype: DType,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Import {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let done = gguf::import(&self.gguf, &self.dir, self.dtype, &console.bytes_progress())?;
        if self.json {
            return console.json(&done);
        }
        console.line(&format!(
            "{}: {} model, {} tensors, {:.1} M parameters, {}",
            self.dir.display(),
            done.architecture,
            done.tensors,
            done.parameters as f64 / 1e6,
            self.dtype,
        ))
    }
}
