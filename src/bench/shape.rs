//! Shapes by name or file, and how their weights lie in memory.
//!
//! What decides the time of a token is how many bytes come from memory, not whether they are always others. A model that is
//! larger than memory is therefore measured with fewer weights: its layers take theirs in turn from as many copies as fit, which
//! together are several times the last-level cache, so that none of them is still there when its turn comes again.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use shadowllm_weights::{Checkpoint, DType, ModelConfig, ModelNames, Progress};

use super::BenchError;
use crate::model::random::{Shape, random_checkpoint_sharing};
use crate::{Error, Result};

/// What is measured.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ShapeName {
    /// A published model's shape.
    Known(Shape),
    /// Random weights of the shape that a `config.json` describes.
    Config(PathBuf),
    /// The weights of a model's directory.
    Model(PathBuf),
}

impl FromStr for ShapeName {
    type Err = BenchError;

    fn from_str(text: &str) -> Result<Self, BenchError> {
        if let Ok(shape) = text.parse().or_else(|_| format!("opt-{text}").parse()) {
            return Ok(ShapeName::Known(shape));
        }
        let path = Path::new(text);
        let config = path.join("config.json");
        let has_weights =
            |dir: &Path| ["model.safetensors", "model.safetensors.index.json"].iter().any(|f| dir.join(f).is_file());
        if path.is_file() {
            Ok(ShapeName::Config(path.to_owned()))
        } else if config.is_file() && !has_weights(path) {
            Ok(ShapeName::Config(config))
        } else if path.is_dir() {
            Ok(ShapeName::Model(path.to_owned()))
        } else {
            let known = Shape::all().map(Shape::name).collect::<Vec<_>>().join(", ");
            Err(BenchError::UnknownShape { found: text.to_owned(), known })
        }
    }
}

/// A shape that was looked at, and how its weights are made.
pub(super) struct Source {
    /// As in `opt-1.3b`.
    pub(super) name: String,
    pub(super) config: ModelConfig,
    weights: Weights,
}

enum Weights {
    Random(DType),
    Given(Box<Checkpoint>),
}

impl ShapeName {
    /// Its name: that of the folder, if it is a path.
    fn name(&self) -> String {
        let path = match self {
            ShapeName::Known(shape) => return shape.name().to_owned(),
            ShapeName::Config(file) if file.ends_with("config.json") => file.parent().unwrap_or(file),
            ShapeName::Config(path) | ShapeName::Model(path) => path,
        };
        path.file_stem().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// Reads its configuration.
    pub(super) fn open(&self, dtype: DType) -> Result<Source> {
        let name = self.name();
        let parsed = |json: &[u8]| ModelConfig::from_json(json);
        let (config, weights) = match self {
            ShapeName::Known(shape) => {
                (parsed(shape.config_json(dtype).to_string().as_bytes())?, Weights::Random(dtype))
            }
            ShapeName::Config(file) => {
                let io = |source| Error::Io { action: "read", path: file.clone(), source };
                let json = std::fs::read(file).map_err(io)?;
                (parsed(&json).map_err(|error| Error::from(error).in_file(file))?, Weights::Random(dtype))
            }
            ShapeName::Model(dir) => {
                let checkpoint = Checkpoint::open(dir)?;
                (checkpoint.config().clone(), Weights::Given(Box::new(checkpoint)))
            }
        };
        Ok(Source { name, config, weights })
    }
}

/// Bytes of a model's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    /// Of one layer.
    layer: u64,
    /// Of everything else.
    rest: u64,
}

/// Shares of memory that are left to everything else on the machine.
const SPARE: u64 = 10;

impl Source {
    fn dtype(&self) -> DType {
        match &self.weights {
            Weights::Random(dtype) => *dtype,
            Weights::Given(checkpoint) => {
                checkpoint.names().filter_map(|name| Some(checkpoint.get(name)?.dtype())).min().unwrap_or(DType::F32)
            }
        }
    }

    fn sizes(&self) -> Sizes {
        let specs = ModelNames::of(&self.config, |_| false).stored(&self.config, self.dtype());
        let bytes = |in_layers: bool| {
            let part = specs.iter().filter(|spec| spec.name.contains("layers.") == in_layers);
            part.filter_map(|spec| Some(spec.byte_len()? as u64)).sum::<u64>()
        };
        Sizes { layer: bytes(true) / self.config.layers.max(1) as u64, rest: bytes(false) }
    }

    /// Layers with weights of their own, if everything else needs `other` bytes. Each is there `layouts` times: plain, and packed.
    ///
    /// # Errors
    /// [`BenchError::Memory`] if not even the fewest that make sense fit.
    pub(super) fn copies(
        &self,
        layouts: u64,
        other: u64,
        available: Option<u64>,
        beyond_caches: u64,
    ) -> Result<usize, BenchError> {
        let (layers, Sizes { layer, rest }) = (self.config.layers, self.sizes());
        let Some(available) = available else { return Ok(layers) };
        let usable = available - available / SPARE;
        let each = (layouts * layer).max(1);
        let most = usize::try_from(usable.saturating_sub(rest + other) / each).unwrap_or(usize::MAX);
        let fewest = match self.weights {
            Weights::Random(_) => usize::try_from(beyond_caches / layer.max(1) + 2).unwrap_or(usize::MAX).min(layers),
            // They are what they are.
            Weights::Given(_) => layers,
        };
        if most < fewest {
            let needed = (rest + other + fewest as u64 * each) * SPARE / (SPARE - 1);
            return Err(BenchError::Memory { shape: self.name.clone(), needed, available });
        }
        Ok(most.min(layers))
    }

    /// The weights, those of layer `i` being those of layer `i % copies`.
    pub(super) fn checkpoint(self, copies: usize, seed: u64, progress: &dyn Progress) -> Result<Checkpoint> {
        match self.weights {
            Weights::Random(dtype) => random_checkpoint_sharing(self.config, dtype, seed, copies, progress),
            Weights::Given(checkpoint) => Ok(*checkpoint),
        }
    }

    /// Bytes of one layer and of all of them.
    pub(super) fn layer_bytes(&self) -> (u64, u64) {
        let layer = self.sizes().layer;
        (layer, layer * self.config.layers as u64)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.parse::<ShapeName>().unwrap().open(DType::BF16).unwrap()
    }

    #[test]
    fn shapes_by_name_and_by_file() {
        assert_eq!(source("1.3b").name, "opt-1.3b");
        assert_eq!(source("llama-3.2-1b").config.kv_heads, 8);
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/embedded/tiny-opt");
        let given = source(root);
        assert_eq!((given.name.as_str(), given.config.layers), ("tiny-opt", 8));
        assert!(matches!(given.weights, Weights::Given(_)));
        let described = source(&format!("{root}/config.json"));
        assert_eq!((described.name.as_str(), described.config.layers), ("tiny-opt", 8));
        assert!(matches!(described.weights, Weights::Random(DType::BF16)));
        let error = "opt-1.4b".parse::<ShapeName>().unwrap_err().to_string();
        assert_eq!(
            error,
            "unknown shape \"opt-1.4b\"; expected opt-125m, opt-1.3b, opt-2.7b, opt-6.7b, opt-13b, opt-30b, opt-66b, smollm2-135m, \
             llama-3.2-1b, llama-2-7b, llama-3-8b, a model's directory, or a config.json"
        );
    }

    #[test]
    fn layers_share_where_memory_ends() {
        let source = source("opt-6.7b");
        let (layer, _) = source.layer_bytes();
        // 12 d^2 weights and some vectors, 2 bytes each.
        assert_eq!(layer / 1_000_000, 402);
        let copies = |available, beyond| source.copies(2, 1 << 30, available, beyond);
        assert_eq!(copies(None, 1 << 30).unwrap(), 32);
        assert_eq!(copies(Some(64 << 30), 1 << 30).unwrap(), 32);
        let some = copies(Some(16 << 30), 1 << 30).unwrap();
        assert!((14..18).contains(&some), "{some}");
        let error = copies(Some(4 << 30), 1 << 30).unwrap_err().to_string();
        assert_eq!(
            error,
            "opt-6.7b needs at least 5.2 GB of memory for this, but 4.3 GB are available; use fewer policies, a smaller --context, \
             --gen or --batch, or a smaller shape"
        );
    }
}
