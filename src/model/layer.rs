//! Weights of a model, with the shape of every tensor.
//!
//! Matrices stay in the checkpoint's memory and type. Vectors (norm weights, biases) are a few thousandths of the bytes
//! and are widened to `f32` once, when the model is loaded.

use shadowllm_weights::{Activation, ModelConfig};

use crate::kernels::{
    AttentionShape, Cpu, RopeTable, embed_row, layer_norm, layer_norm_backward, linear, linear_transposed, rms_norm,
    rms_norm_backward,
};
use crate::tensor::Matrix;

/// `y = W x + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Matrix,
    /// `[out]`.
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// Applies it to the rows of `x` (`[T, in]`) into `out` (`[T, out]`).
    pub fn apply(&self, cpu: &Cpu, x: &[f32], out: &mut [f32]) {
        linear(cpu, &self.weight, self.bias.as_deref(), x, out);
    }

    /// From the gradient `dy` of its output (`[T, out]`) to that of its input, `dx` (`[T, in]`).
    pub fn apply_transposed(&self, cpu: &Cpu, dy: &[f32], dx: &mut [f32]) {
        linear_transposed(cpu, &self.weight, None, dy, dx);
    }

    /// Bytes of weight and bias.
    pub fn bytes(&self) -> u64 {
        self.weight.bytes() as u64 + self.bias.as_ref().map_or(0, |b| 4 * b.len() as u64)
    }
}

/// Normalisation of one residual row.
#[derive(Clone, Debug)]
pub enum Norm {
    /// Mean and variance; weight and bias where the checkpoint has them.
    Layer {
        /// `[d]`.
        weight: Option<Vec<f32>>,
        /// `[d]`.
        bias: Option<Vec<f32>>,
        /// Added to the variance.
        eps: f32,
    },
    /// Root mean square.
    Rms {
        /// `[d]`.
        weight: Vec<f32>,
        /// Added to the mean square.
        eps: f32,
    },
}

impl Norm {
    /// Normalises the rows of `x` (`[T, d]`) into `out` (`[T, d]`).
    pub fn apply(&self, cpu: &Cpu, x: &[f32], width: usize, out: &mut [f32]) {
        match self {
            Norm::Layer { weight, bias, eps } => {
                // Without weight and bias nothing tells the kernel where a row ends.
                for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                    layer_norm(cpu, x, weight.as_deref(), bias.as_deref(), *eps, out);
                }
            }
            Norm::Rms { weight, eps } => rms_norm(cpu, x, weight, *eps, out),
        }
    }

    /// Adds the gradient of its input to `dx`: `x` is the input, `dy` the gradient of the output, all `[T, d]`.
    pub fn apply_backward(&self, cpu: &Cpu, x: &[f32], width: usize, dy: &[f32], dx: &mut [f32]) {
        match self {
            Norm::Layer { weight, eps, .. } => layer_norm_backward(cpu, x, width, weight.as_deref(), *eps, dy, dx),
            Norm::Rms { weight, eps } => rms_norm_backward(cpu, x, weight, *eps, dy, dx),
        }
    }

    /// Bytes of its vectors, as `f32`.
    pub fn bytes(&self) -> u64 {
        let len = |v: &Option<Vec<f32>>| v.as_ref().map_or(0, Vec::len);
        4 * match self {
            Norm::Layer { weight, bias, .. } => len(weight) + len(bias),
            Norm::Rms { weight, .. } => weight.len(),
        } as u64
    }
}

/// Attention weights of one layer.
#[derive(Clone, Debug)]
pub struct Attention {
    /// `[H*d_h, d]`.
    pub q: Linear,
    /// `[H_kv*d_h, d]`.
    pub k: Linear,
    /// `[H_kv*d_h, d]`.
    pub v: Linear,
    /// `[d, H*d_h]`.
    pub out: Linear,
    /// How many of the last positions a token sees; `None`: all.
    pub window: Option<usize>,
}

/// FFN weights of one layer.
#[derive(Clone, Debug)]
pub enum Ffn {
    /// `fc2(act(fc1 x))`; the inner `Z` is `act(fc1 x)`.
    Plain {
        /// `[F, d]`.
        fc1: Linear,
        /// `[d, F]`.
        fc2: Linear,
    },
    /// `down(act(gate x) * up x)`; the inner `Z` is `act(gate x) * up x`.
    Gated {
        /// `[F, d]`.
        gate: Linear,
        /// `[F, d]`.
        up: Linear,
        /// `[d, F]`.
        down: Linear,
    },
}

impl Ffn {
    /// The second matrix, `[d, F]`: what a neuron adds to the residual stream is its inner times its column.
    pub fn second(&self) -> &Linear {
        match self {
            Ffn::Plain { fc2, .. } => fc2,
            Ffn::Gated { down, .. } => down,
        }
    }

    /// Squared norm of every column of the second matrix, `[F]`.
    pub fn output_squares(&self, cpu: &Cpu) -> Vec<f64> {
        let weight = &self.second().weight;
        let (mut squares, mut row) = (vec![0.0; weight.cols()], vec![0.0; weight.cols()]);
        for i in 0..weight.rows() {
            embed_row(cpu, weight, i, &mut row);
            squares.iter_mut().zip(&row).for_each(|(square, w)| *square += f64::from(*w) * f64::from(*w));
        }
        squares
    }
}

/// One decoder layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Norm of the attention block.
    pub attention_norm: Norm,
    /// Attention block.
    pub attention: Attention,
    /// Norm of the FFN block.
    pub ffn_norm: Norm,
    /// FFN block.
    pub ffn: Ffn,
}

/// A loaded model. Immutable: any number of sequences may run on it at once.
#[derive(Debug)]
pub struct Model {
    /// Shapes and variants.
    pub config: ModelConfig,
    /// Token embedding, `[V, embed_dim]`.
    pub embedding: Matrix,
    /// Learned positions, `[max_positions + offset, d]`.
    pub positions: Option<Matrix>,
    /// `[d, embed_dim]`, where the embedding is narrower than the model.
    pub project_in: Option<Linear>,
    /// `L` layers.
    pub layers: Vec<Layer>,
    /// Norm after the last layer.
    pub final_norm: Option<Norm>,
    /// `[embed_dim, d]`, where the LM head is narrower than the model.
    pub project_out: Option<Linear>,
    /// LM head, `[V, embed_dim]`; shares the embedding's memory if tied.
    pub head: Matrix,
    /// Rotary angles, where the model has them.
    pub rope: Option<RopeTable>,
}

impl Model {
    /// Non-linearity of the FFN.
    pub fn activation(&self) -> Activation {
        self.config.activation
    }

    /// Attention of a layer with this window.
    pub(crate) fn attention_shape(&self, window: Option<usize>) -> AttentionShape {
        let c = &self.config;
        AttentionShape {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            window,
            scale: (c.head_dim as f32).powf(-0.5),
        }
    }
}
