//! `plainact-weight`: the paper's FFN form of `plainact`, from weights instead of inners.
//!
//! A neuron's score is `sum_j abs(W[i,j] dW[i,j])` over its row of the first FFN matrix (of a gated FFN: of gate and `up`), with the
//! gradient summed over the tokens of the text before the absolute value. It is the one criterion that needs a gradient of
//! weights, one `[F, d]` reduction a layer. Heads are scored as by `plainact`.

use shadowllm_weights::TensorData;

use super::plainact::PlainAct;
use super::{Criterion, Form, LayerInput, UnitKind};
use crate::Result;
use crate::kernels::{embed_row, linear_transposed};
use crate::model::{Ffn, Linear};
use crate::tensor::Matrix;

/// See the head of this file.
pub(super) struct PlainActWeight;

impl Criterion for PlainActWeight {
    fn name(&self) -> &'static str {
        "plainact-weight"
    }

    fn has(&self, kind: UnitKind, form: Form) -> bool {
        kind == UnitKind::Heads || form == Form::Sequence
    }

    fn score(&self, input: &LayerInput<'_>, kind: UnitKind, form: Form, out: &mut [f32]) -> Result<()> {
        if kind == UnitKind::Heads {
            return PlainAct.score(input, kind, form, out);
        }
        let record = input.record;
        out.fill(0.0);
        match &input.model.layers[record.layer].ffn {
            Ffn::Plain { fc1, .. } => add_products(input, fc1, record.gate_grads, out),
            Ffn::Gated { gate, up, .. } => {
                add_products(input, gate, record.gate_grads, out)?;
                add_products(input, up, record.up_grads, out)
            }
        }
    }
}

/// `out[i] += sum_j abs(W[i,j] dW[i,j])`, where `dW = grads^T inputs`; `grads` `[T, F]`.
fn add_products(input: &LayerInput<'_>, linear: &Linear, grads: &[f32], out: &mut [f32]) -> Result<()> {
    // A neuron's row of the first matrices is a row of their memory in every arrangement.
    let weight = linear.weight.stored();
    let (t, d, f) = (input.record.tokens, weight.cols(), weight.rows());
    // The inputs `[T, d]` as the matrix of the product whose sums run down the columns.
    let inputs = Matrix::new(TensorData::from_f32(&[t, d], input.record.ffn_inputs)?)?;
    let mut columns = vec![0.0; f * t];
    for (token, row) in grads.chunks_exact(f).enumerate() {
        for (i, &grad) in row.iter().enumerate() {
            columns[i * t + token] = grad;
        }
    }
    let mut gradient = vec![0.0; f * d];
    linear_transposed(input.cpu, &inputs, None, &columns, &mut gradient);
    let mut row = vec![0.0; d];
    for (i, (out, gradient)) in out.iter_mut().zip(gradient.chunks_exact(d)).enumerate() {
        embed_row(input.cpu, weight, i, &mut row);
        *out += row.iter().zip(gradient).map(|(w, g)| f64::from((w * g).abs())).sum::<f64>() as f32;
    }
    Ok(())
}
