//! `shadowllm random-model`: a checkpoint of a known shape with random weights.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use shadowllm_weights::DType;

use super::console::Console;
use crate::Result;
use crate::model::random::{Shape, write_random};

/// Write a checkpoint with random weights, to measure speed at a model's real shape without its weights.
#[derive(Debug, Args)]
pub(super) struct RandomModel {
    /// The directory to make; it must not exist or be empty.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Shape of the model.
    #[arg(long, value_name = "SHAPE")]
    shape: Shape,

    /// Type of the weights: f32, f16, bf16 or int8.
    #[arg(long, default_value_t = DType::BF16, value_name = "TYPE")]
    dtype: DType,

    /// Seed of the weights.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What `random-model --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Directory written.
    directory: &'a PathBuf,
    /// Name of the shape.
    shape: &'static str,
    /// Weights written.
    parameters: u64,
    /// Type of the weights.
    dtype: &'static str,
}

impl RandomModel {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let parameters = write_random(&self.dir, self.shape, self.dtype, self.seed, &console.bytes_progress())?;
        let (directory, shape, dtype) = (&self.dir, self.shape.name(), self.dtype.name());
        if self.json {
            return console.json(&Report { directory, shape, parameters, dtype });
        }
        console.line(&format!(
            "{}: {shape} shape, {:.1} M random parameters, {dtype}",
            directory.display(),
            parameters as f64 / 1e6
        ))
    }
}
