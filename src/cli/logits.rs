//! `shadowllm logits`: logits at every position, for comparison with other engines.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use shadowllm_weights::{DType, SafetensorsWriter, TensorSpec};

use super::console::Console;
use super::options::{ModelArgs, token_id};
use crate::generate::SessionOptions;
use crate::{Error, Result};

/// Write the logits after every token of a sequence to a safetensors file.
#[derive(Debug, Args)]
pub(super) struct Logits {
    #[command(flatten)]
    model: ModelArgs,

    /// Token ids, used as they are.
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',', value_parser = token_id, allow_negative_numbers = true,
        required_unless_present = "text")]
    ids: Option<Vec<u32>>,

    /// A text, tokenised with the model's special tokens.
    #[arg(long, conflicts_with = "ids")]
    text: Option<String>,

    /// File to write: tensor `logits`, [T, V], f32.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What `logits --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Where the model came from.
    model: &'a str,
    /// File written.
    out: &'a PathBuf,
    /// The tokens, `T` of them.
    ids: &'a [u32],
    /// Shape of tensor `logits`: `[T, V]`.
    shape: [usize; 2],
}

impl Logits {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let engine = self.model.engine(console)?;
        let ids = match (&self.ids, &self.text) {
            (Some(ids), _) => ids.clone(),
            (None, Some(text)) => engine.tokenizer()?.encode(text, true)?,
            (None, None) => return Err(Error::NoTokens),
        };
        engine.model().check_tokens(&ids)?;
        let shape = [ids.len(), engine.config().vocab];
        let mut session = engine.session(SessionOptions::default())?;
        let spec = TensorSpec { name: "logits".to_owned(), dtype: DType::F32, shape: shape.to_vec() };
        let mut rows = Vec::with_capacity(shape[0] * shape[1]);
        session.score(&ids, 0, &mut |_, logits| {
            rows.extend_from_slice(logits);
            ControlFlow::Continue(())
        })?;
        // From here to the end Ctrl-C would leave a temporary file.
        let _heeded = console.heed_interrupts();
        let mut file = SafetensorsWriter::create(&self.out, &[spec], &BTreeMap::new())?;
        file.write("logits", bytemuck::cast_slice(&rows))?;
        file.finish()?;
        if self.json {
            return console.json(&Report { model: engine.location(), out: &self.out, ids: &ids, shape });
        }
        console.line(&format!("{}: logits [{}, {}] f32", self.out.display(), shape[0], shape[1]))
    }
}
