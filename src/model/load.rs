//! From a checkpoint's tensors to layers, every shape checked.

use shadowllm_weights::{
    Checkpoint, DType, FfnNames, LayerNames, ModelConfig, ModelNames, NormKind, PackedCheckpoint, PackedLayer,
    Positions, TensorData,
};

use super::{Attention, Ffn, Layer, Linear, Model, Norm, Weight};
use crate::Error;
use crate::kernels::RopeTable;
use crate::tensor::Matrix;

impl Model {
    /// Takes a model's weights from a checkpoint. Matrices stay in the checkpoint's memory.
    ///
    /// # Errors
    /// [`Error::Weights`] if a tensor is missing or has another shape than the configuration asks for.
    pub fn load(checkpoint: &Checkpoint) -> Result<Model, Error> {
        Reader { checkpoint, config: checkpoint.config(), packed: None }.model()
    }

    /// Takes a model's weights from a packed checkpoint. Matrices stay in its memory: those of the layers are rows of its records.
    ///
    /// # Errors
    /// [`Error::Weights`], as [`Model::load`]; none for a checkpoint that was opened, whose shapes were checked.
    pub fn load_packed(packed: &PackedCheckpoint) -> Result<Model, Error> {
        Reader { checkpoint: packed.checkpoint(), config: packed.config(), packed: Some(packed) }.model()
    }
}

/// Reads tensors of known shape.
struct Reader<'a> {
    /// Everything, or what is not packed.
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    /// Where the matrices of the layers are, if they are packed.
    packed: Option<&'a PackedCheckpoint>,
}

impl Reader<'_> {
    fn model(&self) -> Result<Model, Error> {
        let c = self.config;
        let names = ModelNames::of(c, |name| self.checkpoint.get(name).is_some());
        let (d, e) = (c.hidden, c.embed_dim);
        let embedding = self.matrix(&names.embedding, c.vocab, e)?;
        let positions = match (&names.positions, c.positions) {
            (Some(name), Positions::Learned { offset }) => Some(self.matrix(name, c.max_positions + offset, d)?),
            _ => None,
        };
        let layers = (0..c.layers).map(|i| self.layer(i, &names.layers[i])).collect::<Result<_, Error>>()?;
        let project = |name: &Option<String>, rows, cols| -> Result<Option<Linear>, Error> {
            let Some(name) = name else { return Ok(None) };
            Ok(Some(Linear { weight: Weight::ByOutput(self.matrix(name, rows, cols)?), bias: None }))
        };
        Ok(Model {
            project_in: project(&names.project_in, d, e)?,
            project_out: project(&names.project_out, e, d)?,
            final_norm: names.final_norm.as_ref().map(|name| self.norm(name)).transpose()?,
            head: match &names.head {
                Some(name) => self.matrix(name, c.vocab, e)?,
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

    fn layer(&self, index: usize, names: &LayerNames) -> Result<Layer, Error> {
        let c = self.config;
        let (d, f, width, kv) = (c.hidden, c.ffn, c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let packed = self.packed.map(|packed| packed.layer(index));
        let linear = |part, name: &str, outputs, inputs, bias| -> Result<Linear, Error> {
            Ok(Linear {
                weight: match packed {
                    Some(layer) => self.part(layer, part)?,
                    None => self.weight(part, name, outputs, inputs)?,
                },
                bias: if bias { Some(self.vector(&format!("{name}.bias"), outputs)?) } else { None },
            })
        };
        Ok(Layer {
            attention_norm: self.norm(&names.attention_norm)?,
            attention: Attention {
                q: linear(Part::HeadRows, &names.q, width, d, c.bias.qkv)?,
                k: linear(Part::KvHeadRows(0), &names.k, kv, d, c.bias.qkv)?,
                v: linear(Part::KvHeadRows(1), &names.v, kv, d, c.bias.qkv)?,
                out: linear(Part::HeadColumns, &names.out, d, width, c.bias.out)?,
                window: c.windows[index],
            },
            ffn_norm: self.norm(&names.ffn_norm)?,
            ffn: match &names.ffn {
                FfnNames::Plain { fc1, fc2 } => Ffn::Plain {
                    fc1: linear(Part::NeuronRow(0), fc1, f, d, c.bias.ffn)?,
                    fc2: linear(Part::NeuronColumn(1), fc2, d, f, c.bias.ffn)?,
                },
                FfnNames::Gated { gate, up, down } => Ffn::Gated {
                    gate: linear(Part::NeuronRow(0), gate, f, d, c.bias.ffn)?,
                    up: linear(Part::NeuronRow(1), up, f, d, c.bias.ffn)?,
                    down: linear(Part::NeuronColumn(2), down, d, f, c.bias.ffn)?,
                },
            },
        })
    }

    /// A matrix that is a part of records.
    fn part(&self, layer: PackedLayer<'_>, part: Part) -> Result<Weight, Error> {
        let lines = |records: &TensorData, at: usize, height: usize| {
            Matrix::in_records(records.clone(), at * height..(at + 1) * height)
        };
        let head_dim = self.config.head_dim;
        Ok(match part {
            Part::HeadRows => Weight::ByOutput(lines(layer.heads, 0, head_dim)?),
            Part::HeadColumns => Weight::ByInput(lines(layer.heads, 1, head_dim)?),
            Part::KvHeadRows(at) => Weight::ByOutput(lines(layer.kv_heads, at, head_dim)?),
            Part::NeuronRow(at) => Weight::ByOutput(lines(layer.neurons, at, 1)?),
            Part::NeuronColumn(at) => Weight::ByInput(lines(layer.neurons, at, 1)?),
        })
    }

    /// A matrix of its own. In a checkpoint of int8 weights those by which the blocks end are stored by input.
    fn weight(&self, part: Part, name: &str, outputs: usize, inputs: usize) -> Result<Weight, Error> {
        let ends_a_block = matches!(part, Part::HeadColumns | Part::NeuronColumn(_));
        let int8 = self.checkpoint.tensor(&format!("{name}.weight"))?.dtype() == DType::I8;
        match ends_a_block && int8 {
            true => Ok(Weight::ByInput(self.matrix(name, inputs, outputs)?)),
            false => Ok(Weight::ByOutput(self.matrix(name, outputs, inputs)?)),
        }
    }

    /// The matrix `{name}.weight`, `[rows, cols]`.
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error> {
        Ok(Matrix::new(self.checkpoint.tensor_with_shape(&format!("{name}.weight"), &[rows, cols])?.clone())?)
    }

    /// A vector, widened to `f32`.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        Ok(self.checkpoint.tensor_with_shape(name, &[len])?.to_f32())
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

/// Where a packed layer has a matrix: records, and which of their parts.
#[derive(Clone, Copy)]
enum Part {
    /// A head's rows of Wq.
    HeadRows,
    /// A head's columns of Wo.
    HeadColumns,
    /// A key/value head's rows of Wk (0) or Wv (1).
    KvHeadRows(usize),
    /// This line of a neuron's record, a row of fc1, gate or up.
    NeuronRow(usize),
    /// This line of a neuron's record, a column of fc2 or down.
    NeuronColumn(usize),
}
