//! A loaded model, ready for any number of sessions.

use std::sync::Arc;

use shadowllm_weights::{Checkpoint, ModelConfig, ModelSource};

use super::{Session, SessionOptions};
use crate::Result;
use crate::kernels::{Cpu, CpuOptions};
use crate::model::Model;

/// How an engine runs.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Instruction set, threads and arithmetic of the kernels.
    pub cpu: CpuOptions,
}

/// A loaded model with its threads. Cheap to clone; all clones share the weights and the threads.
///
/// ```
/// use shadowllm::{Engine, EngineOptions, SessionOptions};
/// use shadowllm::weights::Checkpoint;
///
/// # fn main() -> shadowllm::Result<()> {
/// let engine = Engine::load(&Checkpoint::embedded()?, EngineOptions::default())?;
/// let mut session = engine.session(SessionOptions::default())?;
/// let logits = session.prefill(&[2, 50, 1266, 584, 262, 580])?;
/// assert_eq!(logits.len(), engine.config().vocab);
/// assert_eq!(shadowllm::kernels::argmax(logits), 15); // a comma
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    model: Model,
    cpu: Cpu,
    location: String,
    mapped_bytes: u64,
    #[cfg(feature = "tokenizer")]
    text: super::TextFiles,
}

impl Engine {
    /// Takes the weights from an open checkpoint; nothing is copied but norms and biases.
    ///
    /// # Errors
    /// [`crate::Error::Weights`] if a tensor is missing or has a wrong shape, [`crate::Error::Kernel`] if the processor
    /// cannot run what `options` ask for, [`crate::Error::Generate`] if the tokenizer is not the model's.
    pub fn load(checkpoint: &Checkpoint, options: EngineOptions) -> Result<Engine> {
        let cpu = Cpu::new(&options.cpu)?;
        let model = Model::load(checkpoint)?;
        Ok(Engine {
            inner: Arc::new(Inner {
                #[cfg(feature = "tokenizer")]
                text: super::TextFiles::read(checkpoint, model.config.vocab)?,
                model,
                cpu,
                location: checkpoint.location(),
                mapped_bytes: checkpoint.mapped_bytes(),
            }),
        })
    }

    /// Opens a model by what a user calls it: `embedded`, a directory, or (feature `hub`) a Hugging Face name.
    ///
    /// # Errors
    /// As [`Engine::load`], and [`crate::Error::Weights`] if the model cannot be found or downloaded.
    pub fn open(model: &str, options: EngineOptions) -> Result<Engine> {
        let checkpoint = ModelSource::parse(model)?.open(&())?;
        Engine::load(&checkpoint, options)
    }

    /// Whether both are clones of one engine.
    pub(super) fn is_same(&self, other: &Engine) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Starts a sequence.
    ///
    /// # Errors
    /// [`crate::Error::ContextTooLong`] if `options.context` exceeds the model's positions.
    pub fn session(&self, options: SessionOptions) -> Result<Session> {
        Session::new(self.clone(), options)
    }

    /// Shapes and variants of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.model.config
    }

    /// The model's weights.
    pub fn model(&self) -> &Model {
        &self.inner.model
    }

    /// The kernels and threads it runs on.
    pub fn cpu(&self) -> &Cpu {
        &self.inner.cpu
    }

    /// Where the model came from.
    pub fn location(&self) -> &str {
        &self.inner.location
    }

    /// Bytes of the mapped checkpoint files.
    pub fn mapped_bytes(&self) -> u64 {
        self.inner.mapped_bytes
    }

    /// Tokenizer, chat template and generation defaults found beside the weights.
    #[cfg(feature = "tokenizer")]
    pub fn text(&self) -> &super::TextFiles {
        &self.inner.text
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`crate::Error::NoChatTemplate`] if the model has none or it is broken.
    #[cfg(feature = "tokenizer")]
    pub fn chat_template(&self) -> Result<&super::ChatTemplate> {
        self.inner.text.chat.as_ref().map_err(|error| crate::Error::NoChatTemplate {
            location: self.inner.location.clone(),
            reason: error.to_string(),
        })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`crate::Error::NoTokenizer`] if the checkpoint has none.
    #[cfg(feature = "tokenizer")]
    pub fn tokenizer(&self) -> Result<&super::Tokenizer> {
        let missing = || crate::Error::NoTokenizer { location: self.inner.location.clone() };
        self.inner.text.tokenizer.as_ref().ok_or_else(missing)
    }
}
