//! From a checkpoint's tensors to layers, every shape checked.

use shadowllm_weights::{Checkpoint, FfnNames, ModelConfig, ModelNames, NormKind, Positions};

use super::{Attention, Ffn, Layer, Linear, Model, Norm};
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
        let c = reader.config;
        let names = ModelNames::of(c, |name| checkpoint.get(name).is_some());
        let (d, f, e, width, kv) = (c.hidden, c.ffn, c.embed_dim, c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let embedding = reader.matrix(&names.embedding, c.vocab, e)?;
        let positions = match (&names.positions, c.positions) {
            (Some(name), Positions::Learned { offset }) => Some(reader.matrix(name, c.max_positions + offset, d)?),
            _ => None,
        };
        let mut layers = Vec::with_capacity(c.layers);
        for (layer, &window) in names.layers.iter().zip(&c.windows) {
            layers.push(Layer {
                attention_norm: reader.norm(&layer.attention_norm)?,
                attention: Attention {
                    q: reader.linear(&layer.q, width, d, c.bias.qkv)?,
                    k: reader.linear(&layer.k, kv, d, c.bias.qkv)?,
                    v: reader.linear(&layer.v, kv, d, c.bias.qkv)?,
                    out: reader.linear(&layer.out, d, width, c.bias.out)?,
                    window,
                },
                ffn_norm: reader.norm(&layer.ffn_norm)?,
                ffn: match &layer.ffn {
                    FfnNames::Plain { fc1, fc2 } => Ffn::Plain {
                        fc1: reader.linear(fc1, f, d, c.bias.ffn)?,
                        fc2: reader.linear(fc2, d, f, c.bias.ffn)?,
                    },
                    FfnNames::Gated { gate, up, down } => Ffn::Gated {
                        gate: reader.linear(gate, f, d, c.bias.ffn)?,
                        up: reader.linear(up, f, d, c.bias.ffn)?,
                        down: reader.linear(down, d, f, c.bias.ffn)?,
                    },
                },
            });
        }
        let project = |name: &Option<String>, rows, cols| {
            name.as_ref().map(|name| reader.linear(name, rows, cols, false)).transpose()
        };
        Ok(Model {
            project_in: project(&names.project_in, d, e)?,
            project_out: project(&names.project_out, e, d)?,
            final_norm: names.final_norm.as_ref().map(|name| reader.norm(name)).transpose()?,
            head: match &names.head {
                Some(name) => reader.matrix(name, c.vocab, e)?,
                None => embedding.clone(),
            },
            rope: match &c.positions {
                Positions::Rope(rope) => Some(RopeTable::new(rope, c.head_dim)),
                Positions::Learned { .. } => None,
            },
            config: c.clone(),
            embedding,
            positions,
            layers,
        })
    }
}

/// Reads tensors of known shape.
struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
}

impl Reader<'_> {
    /// The matrix `{name}.weight`, `[rows, cols]`.
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error> {
        Ok(Matrix::new(self.checkpoint.tensor_with_shape(&format!("{name}.weight"), &[rows, cols])?.clone())?)
    }

    /// A vector, widened to `f32`.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        Ok(self.checkpoint.tensor_with_shape(name, &[len])?.to_f32())
    }

    /// `{name}.weight` and, if asked for, `{name}.bias`.
    fn linear(&self, name: &str, rows: usize, cols: usize, bias: bool) -> Result<Linear, Error> {
        Ok(Linear {
            weight: self.matrix(name, rows, cols)?,
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
}
