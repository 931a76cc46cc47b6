//! `shadowllm import`: other formats to a model directory, and models to int8.

use std::path::{Path, PathBuf};

use clap::Args;
use shadowllm_weights::{DType, ModelSource, gguf, quantize};

use super::console::Console;
use crate::{Error, Result};

/// Convert a GGUF file, or with --dtype int8 any model, to a model directory: weights, configuration, tokenizer.
#[derive(Debug, Args)]
pub(super) struct Import {
    /// The GGUF file (architectures llama and qwen2); with --dtype int8 also a model, as for `generate`.
    #[arg(value_name = "MODEL")]
    source: String,

    /// The directory to make; it must not exist or be empty.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Type of the weights written: f32, f16, bf16 or int8. Quantised weights are widened exactly by f32 only. int8 rounds
    /// matrices to one byte a weight, with a scale for every 64 of a row; norms and biases become f32.
    #[arg(long, default_value_t = DType::BF16, value_name = "TYPE")]
    dtype: DType,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Import {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let (progress, path) = (console.bytes_progress(), Path::new(&self.source));
        let done = match (ModelSource::parse(&self.source), self.dtype) {
            (Ok(source), DType::I8) => quantize(&source.open(&progress)?, &self.dir, &progress)?,
            (Ok(ModelSource::Directory(_) | ModelSource::Embedded), _) => {
                return Err(Error::ImportsToInt8 { model: self.source, dtype: self.dtype });
            }
            _ => gguf::import(path, &self.dir, self.dtype, &progress)?,
        };
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
