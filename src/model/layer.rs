//! Weights of a model, with the shape of every tensor.
//!
//! Matrices stay in the checkpoint's memory and type, in the arrangement that they have there: a packed checkpoint holds them as
//! records of units, in which output matrices are transposed. Vectors (norm weights, biases) are a few thousandths of the bytes
//! and are widened to `f32` once, when the model is loaded.

use shadowllm_weights::{Activation, ModelConfig};

use crate::kernels::{
    AttentionShape, Cpu, RopeTable, embed_row, layer_norm, layer_norm_backward, linear, linear_transposed, rms_norm,
    rms_norm_backward,
};
use crate::tensor::Matrix;

/// A matrix `W`, as it is stored.
#[derive(Clone, Debug)]
pub enum Weight {
    /// `[out, in]`: a row holds the weights of one output.
    ByOutput(Matrix),
    /// `[in, out]`: a row holds the weights of one input, such as a head's or a neuron's share of a block's output.
    ByInput(Matrix),
}

impl Weight {
    /// The matrix in its memory, whichever way.
    pub fn stored(&self) -> &Matrix {
        match self {
            Weight::ByOutput(matrix) | Weight::ByInput(matrix) => matrix,
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.stored().bytes() as u64
    }

    /// For every input the sum of the squares of its weights, `[in]`.
    pub fn input_squares(&self, cpu: &Cpu) -> Vec<f64> {
        let square = |w: &f32| f64::from(*w) * f64::from(*w);
        let matrix = self.stored();
        let mut row = vec![0.0; matrix.cols()];
        match self {
            Weight::ByOutput(_) => {
                let mut sums = vec![0.0; matrix.cols()];
                for i in 0..matrix.rows() {
                    embed_row(cpu, matrix, i, &mut row);
                    sums.iter_mut().zip(&row).for_each(|(sum, w)| *sum += square(w));
                }
                sums
            }
            Weight::ByInput(_) => {
                let sum = |i| {
                    embed_row(cpu, matrix, i, &mut row);
                    row.iter().map(square).sum()
                };
                (0..matrix.rows()).map(sum).collect()
            }
        }
    }
}

/// `y = W x + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `W`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// Applies it to the rows of `x` (`[T, in]`) into `out` (`[T, out]`).
    pub fn apply(&self, cpu: &Cpu, x: &[f32], out: &mut [f32]) {
        match &self.weight {
            Weight::ByOutput(w) => linear(cpu, w, self.bias.as_deref(), x, out),
            Weight::ByInput(w) => linear_transposed(cpu, w, self.bias.as_deref(), x, out),
        }
    }

    /// From the gradient `dy` of its output (`[T, out]`) to that of its input, `dx` (`[T, in]`).
    pub fn apply_transposed(&self, cpu: &Cpu, dy: &[f32], dx: &mut [f32]) {
        match &self.weight {
            Weight::ByOutput(w) => linear_transposed(cpu, w, None, dy, dx),
            Weight::ByInput(w) => linear(cpu, w, None, dy, dx),
        }
    }

    /// Bytes of weight and bias.
    pub fn bytes(&self) -> u64 {
        self.weight.bytes() + self.bias.as_ref().map_or(0, |b| 4 * b.len() as u64)
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
    /// From `d` to `H*d_h`.
    pub q: Linear,
    /// From `d` to `H_kv*d_h`.
    pub k: Linear,
    /// From `d` to `H_kv*d_h`.
    pub v: Linear,
    /// From `H*d_h` to `d`.
    pub out: Linear,
    /// How many of the last positions a token sees; `None`: all.
    pub window: Option<usize>,
}

/// FFN weights of one layer.
#[derive(Clone, Debug)]
pub enum Ffn {
    /// `fc2(act(fc1 x))`; the inner `Z` is `act(fc1 x)`.
    Plain {
        /// From `d` to `F`.
        fc1: Linear,
        /// From `F` to `d`.
        fc2: Linear,
    },
    /// `down(act(gate x) * up x)`; the inner `Z` is `act(gate x) * up x`.
    Gated {
        /// From `d` to `F`.
        gate: Linear,
        /// From `d` to `F`.
        up: Linear,
        /// From `F` to `d`.
        down: Linear,
    },
}

impl Ffn {
    /// The first matrix, `[F, d]`: fc1 or the gate.
    pub fn first(&self) -> &Linear {
        match self {
            Ffn::Plain { fc1, .. } => fc1,
            Ffn::Gated { gate, .. } => gate,
        }
    }

    /// The second matrix, `[d, F]`: what a neuron adds to the residual stream is its inner times its column.
    pub fn second(&self) -> &Linear {
        match self {
            Ffn::Plain { fc2, .. } => fc2,
            Ffn::Gated { down, .. } => down,
        }
    }

    /// Squared norm of every column of the second matrix, `[F]`.
    pub fn output_squares(&self, cpu: &Cpu) -> Vec<f64> {
        self.second().weight.input_squares(cpu)
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
    /// From `embed_dim` to `d`, where the embedding is narrower than the model.
    pub project_in: Option<Linear>,
    /// `L` layers.
    pub layers: Vec<Layer>,
    /// Norm after the last layer.
    pub final_norm: Option<Norm>,
    /// From `d` to `embed_dim`, where the LM head is narrower than the model.
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernels::CpuOptions;
    use shadowllm_weights::TensorData;

    #[test]
    fn both_arrangements_are_the_same_layer() {
        let cpu = Cpu::new(&CpuOptions::default()).unwrap();
        let matrix =
            |rows, cols, values: &[f32]| Matrix::new(TensorData::from_f32(&[rows, cols], values).unwrap()).unwrap();
        // Small integers: every sum is exact.
        let by_output = Weight::ByOutput(matrix(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        let by_input = Weight::ByInput(matrix(3, 2, &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
        for weight in [by_output, by_input] {
            assert_eq!((weight.bytes(), weight.input_squares(&cpu)), (24, vec![17.0, 29.0, 45.0]));
            let layer = Linear { weight, bias: Some(vec![10.0, 20.0]) };
            let (mut y, mut x) = ([0.0; 4], [0.0; 6]);
            layer.apply(&cpu, &[1.0, 0.0, 1.0, 0.0, -1.0, 2.0], &mut y);
            assert_eq!(y, [14.0, 30.0, 14.0, 27.0]);
            layer.apply_transposed(&cpu, &[1.0, 1.0, 0.0, 2.0], &mut x);
            assert_eq!(x, [5.0, 7.0, 9.0, 8.0, 10.0, 12.0]);
            assert_eq!(layer.bytes(), 32);
        }
    }
}
