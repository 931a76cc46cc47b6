//! `generation_config.json`: the tokens that end a text are often complete only there.

use super::{Fields, ModelConfig, limits};
use crate::Result;

/// What the file says about special tokens.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GenerationDefaults {
    bos: Option<u32>,
    eos: Vec<u32>,
    pad: Option<u32>,
}

impl GenerationDefaults {
    pub(crate) fn from_json(bytes: &[u8]) -> Result<Self> {
        let fields = Fields::parse(bytes)?;
        Ok(GenerationDefaults {
            bos: fields.token("bos_token_id")?,
            eos: fields.tokens("eos_token_id")?.unwrap_or_default(),
            pad: fields.token("pad_token_id")?,
        })
    }

    /// Adds the end tokens that the configuration does not have, and the others where it has none.
    pub(crate) fn merge_into(self, config: &mut ModelConfig) -> Result<()> {
        for id in self.eos {
            if !config.eos.contains(&id) {
                config.eos.push(id);
            }
        }
        config.bos = config.bos.or(self.bos);
        config.pad = config.pad.or(self.pad);
        limits::check_tokens(config)
    }
}
