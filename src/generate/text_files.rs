//! What a checkpoint says about text: tokenizer, chat template, published generation settings.

use shadowllm_weights::Checkpoint;

use super::{ChatTemplate, GenerateError, GenerationDefaults, Tokenizer};
use crate::{Error, Result};

/// Files beside the weights that turn ids into text and back.
#[derive(Debug)]
pub struct TextFiles {
    /// `None` if the checkpoint has none: the model then works on token ids.
    pub tokenizer: Option<Tokenizer>,
    /// The chat template, or why there is none. A broken template is no reason not to load a model.
    pub chat: Result<ChatTemplate, GenerateError>,
    /// Settings of `generation_config.json`.
    pub defaults: GenerationDefaults,
}

impl TextFiles {
    /// Reads what there is, for a model of `vocab` tokens.
    ///
    /// # Errors
    /// [`Error::Weights`] if a file cannot be read, [`Error::Generate`] if the tokenizer is broken or has ids beyond the
    /// vocabulary, or the settings are not valid.
    pub fn read(checkpoint: &Checkpoint, vocab: usize) -> Result<Self> {
        let side_file = |name: &str| checkpoint.side_file(name).map_err(Error::from);
        let tokenizer = Tokenizer::load(side_file)?;
        if let Some(tokenizer) = &tokenizer {
            tokenizer.check_vocabulary(vocab)?;
        }
        let chat = match ChatTemplate::load(side_file, None) {
            Ok(template) => Ok(template),
            Err(Error::Generate(error)) => Err(error),
            Err(error) => return Err(error),
        };
        let defaults = match side_file("generation_config.json")? {
            Some(bytes) => GenerationDefaults::from_json(&bytes)?,
            None => GenerationDefaults::default(),
        };
        Ok(TextFiles { tokenizer, chat, defaults })
    }
}
