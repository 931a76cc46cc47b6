//! From tensor names to layers: one file per family, on one reader that checks every shape.

mod llama;
mod opt;

use shadowllm_weights::{Architecture, Checkpoint, ModelConfig, NormKind, Positions};

use super::{Linear, Model, Norm};
use crate::Error;
use crate::kernels::RopeTable;
use crate::tensor::Matrix;

impl Model {
    /// Takes a model's weights from a checkpoint. Matrices stay in the checkpoint's memory.
    ///
    /// # Errors
    /// [`Error::Weights`] if a tensor is missing or has another shape than the configuration asks for.
    pub fn load(checkpoint: &Checkpoint) -> Result<Model, Error> {
        let reader = Reader { checkpoint, config: checkpoint.config() };
        match reader.config.architecture {
            Architecture::Opt => opt::load(&reader),
            Architecture::Llama | Architecture::Mistral | Architecture::Qwen2 => llama::load(&reader),
        }
    }
}

/// Names and shapes of all tensors of a model, as its `...ForCausalLM` class writes them.
pub(super) fn layout(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let mut layout = Layout { config, tensors: Vec::new() };
    match config.architecture {
        Architecture::Opt => opt::layout(&mut layout),
        Architecture::Llama | Architecture::Mistral | Architecture::Qwen2 => llama::layout(&mut layout),
    }
    if !config.tied {
        layout.tensors.push(("lm_head.weight".to_owned(), vec![config.vocab, config.embed_dim]));
    }
    layout.tensors
}

/// Collects the tensors of a model.
struct Layout<'a> {
    config: &'a ModelConfig,
    tensors: Vec<(String, Vec<usize>)>,
}

impl Layout<'_> {
    fn linear(&mut self, name: &str, rows: usize, cols: usize, bias: bool) {
        self.tensors.push((format!("{name}.weight"), vec![rows, cols]));
        if bias {
            self.tensors.push((format!("{name}.bias"), vec![rows]));
        }
    }

    fn norm(&mut self, name: &str) {
        let (weight, bias) = match self.config.norm {
            NormKind::LayerNorm { affine } => (affine, affine),
            NormKind::RmsNorm => (true, false),
        };
        for (leaf, present) in [("weight", weight), ("bias", bias)] {
            if present {
                self.tensors.push((format!("{name}.{leaf}"), vec![self.config.hidden]));
            }
        }
    }
}

/// Reads tensors of known shape.
struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
}

impl Reader<'_> {
    /// The first of `prefixes` under which `name` exists; the first one if none does, so that the error names it.
    fn prefix<'p>(&self, prefixes: &[&'p str], name: &str) -> &'p str {
        let found = prefixes.iter().find(|p| self.checkpoint.get(&format!("{p}{name}")).is_some());
        found.or(prefixes.first()).copied().unwrap_or_default()
    }

    /// A matrix `[rows, cols]`.
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error> {
        Ok(Matrix::new(self.checkpoint.tensor_with_shape(name, &[rows, cols])?.clone())?)
    }

    /// A vector, widened to `f32`.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        Ok(self.checkpoint.tensor_with_shape(name, &[len])?.to_f32())
    }

    /// `{name}.weight` and, if asked for, `{name}.bias`.
    fn linear(&self, name: &str, rows: usize, cols: usize, bias: bool) -> Result<Linear, Error> {
        Ok(Linear {
            weight: self.matrix(&format!("{name}.weight"), rows, cols)?,
            bias: if bias { Some(self.vector(&format!("{name}.bias"), rows)?) } else { None },
        })
    }

    /// A norm of the model's kind and width.
    fn norm(&self, name: &str) -> Result<Norm, Error> {
        let (d, eps) = (self.config.hidden, self.config.norm_eps);
        let part = |leaf: &str| self.vector(&format!("{name}.{leaf}"), d);
        Ok(match self.config.norm {
            NormKind::LayerNorm { affine: true } => {
                Norm::Layer { weight: Some(part("weight")?), bias: Some(part("bias")?), eps }
            }
            NormKind::LayerNorm { affine: false } => Norm::Layer { weight: None, bias: None, eps },
            NormKind::RmsNorm => Norm::Rms { weight: part("weight")?, eps },
        })
    }

    /// The LM head: the embedding if tied, else `lm_head.weight`.
    fn head(&self, embedding: &Matrix) -> Result<Matrix, Error> {
        if self.config.tied {
            return Ok(embedding.clone());
        }
        self.matrix("lm_head.weight", self.config.vocab, self.config.embed_dim)
    }

    /// Rotary angles, where the model has them.
    fn rope(&self) -> Option<RopeTable> {
        match &self.config.positions {
            Positions::Rope(rope) => Some(RopeTable::new(rope, self.config.head_dim)),
            Positions::Learned { .. } => None,
        }
    }
}
