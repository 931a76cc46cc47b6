//! A loaded model, ready for any number of sessions.

use std::sync::Arc;

use shadowllm_weights::{Checkpoint, ModelConfig, ModelSource, PackedCheckpoint};

use super::{Session, SessionOptions};
use crate::kernels::{Cpu, CpuOptions};
use crate::model::{Model, PackedModel};
use crate::sparsity::ModelIdentity;
use crate::{Error, Result};

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
    /// The records that the model's matrices are part of.
    packed: Option<Arc<PackedModel>>,
    cpu: Cpu,
    location: String,
    mapped_bytes: u64,
    #[cfg(feature = "tokenizer")]
    text: Arc<super::TextFiles>,
}

impl Engine {
    /// Takes the weights from an open checkpoint; nothing is copied but norms and biases.
    ///
    /// # Errors
    /// [`Error::Weights`] if a tensor is missing or has a wrong shape, [`Error::Kernel`] if the processor
    /// cannot run what `options` ask for, [`Error::Generate`] if the tokenizer is not the model's.
    pub fn load(checkpoint: &Checkpoint, options: EngineOptions) -> Result<Engine> {
        let cpu = Cpu::new(&options.cpu)?;
        let model = Model::load(checkpoint)?;
        Ok(Engine {
            inner: Arc::new(Inner {
                #[cfg(feature = "tokenizer")]
                text: Arc::new(super::TextFiles::read(checkpoint, model.config.vocab)?),
                model,
                packed: None,
                cpu,
                location: checkpoint.location(),
                mapped_bytes: checkpoint.mapped_bytes(),
            }),
        })
    }

    /// Takes the weights from a packed checkpoint, for dense passes as for sparse steps; nothing is copied but norms and biases,
    /// and nothing of the checkpoint that was packed is needed but its tokenizer. The same results as [`Engine::load`], within
    /// the bounds of the kernels.
    ///
    /// ```
    /// use shadowllm::weights::{Checkpoint, PackedCheckpoint};
    /// use shadowllm::{Engine, EngineOptions, SessionOptions};
    ///
    /// # fn main() -> shadowllm::Result<()> {
    /// # let out = tempfile::tempdir().unwrap();
    /// # let file = out.path().join("tiny.shadow.safetensors");
    /// let packed = PackedCheckpoint::open_or_pack_at(&file, &Checkpoint::embedded()?, &())?;
    /// let engine = Engine::load_packed(&packed, EngineOptions::default())?;
    /// let mut session = engine.session(SessionOptions::default())?;
    /// assert_eq!(shadowllm::kernels::argmax(session.prefill(&[2, 50, 1266, 584, 262, 580])?), 15);
    /// assert_eq!(engine.packed().unwrap().layers.len(), 8); // what a `Sparsity` runs over
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load_packed(packed: &PackedCheckpoint, options: EngineOptions) -> Result<Engine> {
        let cpu = Cpu::new(&options.cpu)?;
        Ok(Engine {
            inner: Arc::new(Inner {
                #[cfg(feature = "tokenizer")]
                text: Arc::new(super::TextFiles::read(packed.checkpoint(), packed.config().vocab)?),
                model: Model::load_packed(packed)?,
                packed: Some(Arc::new(PackedModel::load(packed)?)),
                cpu,
                location: packed.checkpoint().location(),
                mapped_bytes: packed.mapped_bytes(),
            }),
        })
    }

    /// The same engine over the packed weights of its model. The plain ones are unmapped with the last clone of this engine and
    /// its checkpoint.
    ///
    /// # Errors
    /// [`Error::PackedModel`] if the packed weights are of another model.
    pub fn over(&self, packed: &PackedCheckpoint) -> Result<Engine> {
        let model = Model::load_packed(packed)?;
        let (found, expected) = (ModelIdentity::of(&model), ModelIdentity::of(self.model()));
        if found != expected {
            return Err(Error::PackedModel { path: packed.path().to_owned(), found, expected });
        }
        Ok(Engine {
            inner: Arc::new(Inner {
                #[cfg(feature = "tokenizer")]
                text: Arc::clone(&self.inner.text),
                model,
                packed: Some(Arc::new(PackedModel::load(packed)?)),
                cpu: self.inner.cpu.clone(),
                location: self.inner.location.clone(),
                mapped_bytes: packed.mapped_bytes(),
            }),
        })
    }

    /// Opens a model by what a user calls it: `embedded`, a directory, or (feature `hub`) a Hugging Face name.
    ///
    /// # Errors
    /// As [`Engine::load`], and [`Error::Weights`] if the model cannot be found or downloaded.
    pub fn open(model: &str, options: EngineOptions) -> Result<Engine> {
        let checkpoint = ModelSource::parse(model)?.open(&())?;
        Engine::load(&checkpoint, options)
    }

    /// Whether both are clones of one engine.
    pub(crate) fn is_same(&self, other: &Engine) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Starts a sequence.
    ///
    /// # Errors
    /// [`Error::ContextTooLong`] if `options.context` exceeds the model's positions.
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

    /// The records of its units, if it was loaded from packed weights.
    pub fn packed(&self) -> Option<&Arc<PackedModel>> {
        self.inner.packed.as_ref()
    }

    /// The kernels and threads it runs on.
    pub fn cpu(&self) -> &Cpu {
        &self.inner.cpu
    }

    /// Where the model came from.
    pub fn location(&self) -> &str {
        &self.inner.location
    }

    /// Bytes of the mapped checkpoint files: the plain ones, or the packed one.
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
    /// [`Error::NoChatTemplate`] if the model has none or it is broken.
    #[cfg(feature = "tokenizer")]
    pub fn chat_template(&self) -> Result<&super::ChatTemplate> {
        self.inner
            .text
            .chat
            .as_ref()
            .map_err(|error| Error::NoChatTemplate { location: self.inner.location.clone(), reason: error.to_string() })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`] if the checkpoint has none.
    #[cfg(feature = "tokenizer")]
    pub fn tokenizer(&self) -> Result<&super::Tokenizer> {
        let missing = || Error::NoTokenizer { location: self.inner.location.clone() };
        self.inner.text.tokenizer.as_ref().ok_or_else(missing)
    }
}
