//! A model on disk as one thing: configuration, tensors, side files.
//!
//! Opening maps the weight files and reads their headers; no weight is read before the engine touches it, so a checkpoint of any
//! size opens at once and costs no memory of its own.

#[cfg(feature = "embedded-model")]
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::closest::closest;
use crate::config::GenerationDefaults;
use crate::shards::{self, Tensor, Tensors, WeightFile};
use crate::{Error, ModelConfig, Result, TensorData, files};

/// Largest `config.json` or `generation_config.json` accepted; real ones have a few kB.
const MAX_CONFIG: u64 = 16 << 20;
/// Largest side file accepted; the largest tokenizers have about 40 MB.
const MAX_SIDE_FILE: u64 = 256 << 20;

/// Where the files that are not weights come from.
#[derive(Clone)]
enum Place {
    Directory(PathBuf),
    #[cfg(feature = "embedded-model")]
    Embedded,
    Memory,
}

/// A checkpoint: configuration, named tensors, side files.
pub struct Checkpoint {
    config: ModelConfig,
    tensors: Tensors,
    place: Place,
}

impl Checkpoint {
    /// Opens a Hugging Face model directory: `config.json`, and `model.safetensors` or `model.safetensors.index.json` with its
    /// shards. The end-of-text tokens of `generation_config.json`, if it is there, are added to those of the configuration.
    ///
    /// The files stay mapped for as long as the checkpoint or one of its tensors lives. Replace them by renaming only: shortening
    /// a mapped file in place ends any program that reads it.
    ///
    /// # Errors
    /// [`Error::NotADirectory`], [`Error::NoConfig`], [`Error::NoWeights`], an unsupported or impossible configuration, or an
    /// [`Error::InFile`] that says what is wrong in which file.
    ///
    /// ```
    /// # fn main() -> Result<(), shadowllm_weights::Error> {
    /// # let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("embedded/tiny-opt");
    /// let checkpoint = shadowllm_weights::Checkpoint::open(&dir)?;
    /// let config = checkpoint.config();
    /// let table = checkpoint.tensor_with_shape("model.decoder.embed_tokens.weight", &[config.vocab, config.embed_dim])?;
    /// assert_eq!(table.dtype(), shadowllm_weights::DType::BF16);
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::NotADirectory { path: dir.to_owned() });
        }
        let config_path = dir.join("config.json");
        let Some(json) = files::read_if_there(&config_path, MAX_CONFIG)? else {
            return Err(Error::NoConfig { path: dir.to_owned() });
        };
        let mut config = ModelConfig::from_json(&json).map_err(|e| e.in_file(&config_path))?;
        let generation_path = dir.join("generation_config.json");
        if let Some(json) = files::read_if_there(&generation_path, MAX_CONFIG)? {
            GenerationDefaults::from_json(&json)
                .and_then(|defaults| defaults.merge_into(&mut config))
                .map_err(|e| e.in_file(&generation_path))?;
        }
        let tensors = shards::read_directory(dir, &config)?;
        Ok(Checkpoint { config, tensors, place: Place::Directory(dir.to_owned()) })
    }

    /// The small OPT model that is compiled into the library.
    ///
    /// # Errors
    /// [`Error::NoEmbeddedModel`] without the feature `embedded-model`.
    pub fn embedded() -> Result<Self> {
        #[cfg(feature = "embedded-model")]
        {
            use crate::embedded;
            let mut config = ModelConfig::from_json(embedded::CONFIG)?;
            GenerationDefaults::from_json(embedded::GENERATION_CONFIG)?.merge_into(&mut config)?;
            let storage = crate::Storage::Static(embedded::model());
            let tensors = shards::read_storage(shards::SINGLE, storage, None, &HashMap::new())?;
            Ok(Checkpoint { config, tensors, place: Place::Embedded })
        }
        #[cfg(not(feature = "embedded-model"))]
        {
            Err(Error::NoEmbeddedModel)
        }
    }

    /// The predictor file for the model that is compiled into the library: which of its heads and neurons a token needs.
    ///
    /// # Errors
    /// [`Error::NoEmbeddedModel`] without the feature `embedded-model`.
    pub fn embedded_predictor() -> Result<&'static [u8]> {
        #[cfg(feature = "embedded-model")]
        {
            Ok(crate::embedded::PREDICTOR)
        }
        #[cfg(not(feature = "embedded-model"))]
        {
            Err(Error::NoEmbeddedModel)
        }
    }

    /// A checkpoint of tensors made in memory, for tests and for tools that make models.
    pub fn from_tensors(config: ModelConfig, tensors: impl IntoIterator<Item = (String, TensorData)>) -> Self {
        let mut all = Tensors::default();
        for (name, tensor) in tensors {
            all.bytes += tensor.bytes().len() as u64;
            all.by_name.insert(name, Tensor::Loaded(tensor));
        }
        Checkpoint { config, tensors: all, place: Place::Memory }
    }

    /// The model's description.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Takes the description of another checkpoint of the same model, and its side files.
    pub(crate) fn describe_as(&mut self, model: &Checkpoint) {
        self.config = model.config.clone();
        self.place = model.place.clone();
    }

    /// Takes the side files of a directory.
    pub(crate) fn set_directory(&mut self, directory: &Path) {
        self.place = Place::Directory(directory.to_owned());
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] with the most similar names; [`Error::UnsupportedTensor`] if its type is not f32, f16 or bf16.
    pub fn tensor(&self, name: &str) -> Result<&TensorData> {
        match self.tensors.by_name.get(name) {
            Some(Tensor::Loaded(tensor)) => Ok(tensor),
            Some(Tensor::Unsupported(dtype)) => {
                Err(Error::UnsupportedTensor { name: name.to_owned(), dtype: dtype.clone() })
            }
            None => Err(self.missing(name)),
        }
    }

    /// As [`Checkpoint::tensor`], of exactly this shape.
    ///
    /// # Errors
    /// Also [`Error::TensorShape`].
    pub fn tensor_with_shape(&self, name: &str, shape: &[usize]) -> Result<&TensorData> {
        let tensor = self.tensor(name)?;
        if tensor.shape() != shape {
            return Err(Error::TensorShape {
                name: name.to_owned(),
                found: tensor.shape().to_vec(),
                expected: shape.to_vec(),
            });
        }
        Ok(tensor)
    }

    /// The tensor `name`, if it is there and of a supported type.
    pub fn get(&self, name: &str) -> Option<&TensorData> {
        match self.tensors.by_name.get(name) {
            Some(Tensor::Loaded(tensor)) => Some(tensor),
            _ => None,
        }
    }

    /// Names of all tensors of supported types, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.by_name.iter().filter(|(_, t)| matches!(t, Tensor::Loaded(_))).map(|(name, _)| name.as_str())
    }

    /// Names and types of the tensors that the engine cannot compute with, sorted. Asking for one is an error.
    pub fn unsupported(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tensors.by_name.iter().filter_map(|(name, tensor)| match tensor {
            Tensor::Unsupported(dtype) => Some((name.as_str(), dtype.as_str())),
            Tensor::Loaded(_) => None,
        })
    }

    /// Contents of a file beside the weights, such as `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` or
    /// `generation_config.json`; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NotAFile`] or [`Error::FileTooLarge`] if it is there and cannot be read.
    pub fn side_file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match &self.place {
            Place::Directory(dir) => files::read_if_there(&dir.join(name), MAX_SIDE_FILE),
            #[cfg(feature = "embedded-model")]
            Place::Embedded => Ok(crate::embedded::side_file(name).map(<[u8]>::to_vec)),
            Place::Memory => Ok(None),
        }
    }

    /// The directory, or `embedded:tiny-opt`, or `memory`.
    pub fn location(&self) -> String {
        match &self.place {
            Place::Directory(dir) => dir.display().to_string(),
            #[cfg(feature = "embedded-model")]
            Place::Embedded => crate::embedded::LOCATION.to_owned(),
            Place::Memory => "memory".to_owned(),
        }
    }

    /// The directory, if it is one.
    pub(crate) fn directory(&self) -> Option<&Path> {
        match &self.place {
            Place::Directory(dir) => Some(dir),
            _ => None,
        }
    }

    /// The files that the tensors are in; none if they were made in memory.
    pub(crate) fn weight_files(&self) -> &[WeightFile] {
        &self.tensors.files
    }

    /// Size of the weight files: bytes mapped, not bytes read.
    pub fn mapped_bytes(&self) -> u64 {
        self.tensors.bytes
    }

    fn missing(&self, name: &str) -> Error {
        let names = closest(name, self.names(), 3);
        let closest = if names.is_empty() {
            "it has no tensors at all".to_owned()
        } else {
            format!("the most similar names are {}", names.join(", "))
        };
        Error::MissingTensor { location: self.location(), name: name.to_owned(), closest }
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({}, {} tensors)", self.location(), self.tensors.by_name.len())
    }
}
