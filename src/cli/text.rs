//! The text that a command reads: where it comes from, its tokens, and what it is called.

use std::path::{Path, PathBuf};

use clap::Args;

use super::console::read_text;
use super::options::token_id;
use crate::Result;
use crate::generate::Engine;

/// A text file or token ids.
#[derive(Clone, Debug, Args)]
pub(super) struct TextArgs {
    /// Text file (UTF-8), tokenised without special tokens; - for standard input.
    #[arg(long, value_name = "FILE", required_unless_present = "ids")]
    text: Option<PathBuf>,

    /// Token ids instead of a text, for models without a tokenizer.
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',', value_parser = token_id, allow_negative_numbers = true,
        conflicts_with = "text")]
    ids: Option<Vec<u32>>,
}

impl TextArgs {
    /// The tokens.
    pub(super) fn tokens(&self, engine: &Engine) -> Result<Vec<u32>> {
        match (&self.ids, &self.text) {
            (Some(ids), _) => Ok(ids.clone()),
            (None, Some(path)) => Ok(engine.tokenizer()?.encode(&read_text(path)?, false)?),
            (None, None) => Ok(Vec::new()),
        }
    }

    /// What reports and files call it.
    pub(super) fn name(&self) -> String {
        self.text.as_deref().map_or_else(|| "token ids".to_owned(), file_name)
    }
}

/// A file's name without its folder.
pub(super) fn file_name(path: &Path) -> String {
    match path.file_name() {
        Some(name) if path != Path::new("-") => name.to_string_lossy().into_owned(),
        _ => "standard input".to_owned(),
    }
}
