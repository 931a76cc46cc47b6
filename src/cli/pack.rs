//! `shadowllm pack`: weights in the order in which sparse decoding reads them.

use std::path::PathBuf;

use clap::Args;
use shadowllm_weights::{ModelSource, pack, packed_location};

use super::console::Console;
use crate::Result;

/// Pack a model's weights so that each head and each neuron is one contiguous record.
///
/// Sparse decoding reads packed weights and makes them itself when they are missing or stale; this command makes them
/// beforehand, or anew.
#[derive(Debug, Args)]
pub(super) struct Pack {
    /// The model: `embedded`, a directory in Hugging Face format, or a Hugging Face name, as for `generate`.
    #[arg(long, short, default_value = "embedded", value_name = "MODEL")]
    model: String,

    /// The file to write [default: model.shadow.safetensors in the model's directory, or a file in the cache folder].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Pack {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let progress = console.bytes_progress();
        let checkpoint = ModelSource::parse(&self.model)?.open(&progress)?;
        let file = self.out.map_or_else(|| packed_location(&checkpoint), Ok)?;
        let done = pack(&checkpoint, &file, &progress)?;
        if self.json {
            return console.json(&done);
        }
        console.line(&format!(
            "{}: {} layers, {:.1} MB of records, {:.1} MB in all, {}",
            done.file.display(),
            done.layers,
            done.packed_bytes as f64 / 1e6,
            done.bytes as f64 / 1e6,
            done.dtype,
        ))
    }
}
