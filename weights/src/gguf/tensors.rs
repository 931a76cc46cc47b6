//! GGUF tensors to Hugging Face tensors: names, shapes, row order.
//!
//! llama.cpp rotates neighbouring values, Hugging Face values half a head apart, so converters of llama models store the rows
//! of q and k interleaved: GGUF row `h*d_h + 2*i + j` is Hugging Face row `h*d_h + j*(d_h/2) + i`. The import undoes that, for
//! weights and biases. qwen2 is rotated the Hugging Face way in both and stays as it is.

use std::collections::BTreeMap;

use half::{bf16, f16};

use super::config::{Family, Found, Hyper};
use super::problem::{GgufProblem, GgufResult};
use super::reader::{Gguf, GgufTensor};
use super::rope::FREQS_TENSOR;
use crate::{DType, TensorSpec};

/// One tensor of the checkpoint to be written, and where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Planned<'a> {
    /// Name in the checkpoint.
    pub(crate) name: String,
    /// Source.
    pub(crate) tensor: GgufTensor<'a>,
    /// For rows that are stored interleaved: `d_h`.
    interleaved: Option<usize>,
}

/// Everything to be written, and what that says of the model.
#[derive(Clone, Debug)]
pub(crate) struct Plan<'a> {
    /// In the order of the checkpoint.
    pub(crate) tensors: Vec<Planned<'a>>,
    /// Facts for `config.json`.
    pub(crate) found: Found,
}

/// Values that are converted at a time: small enough to stay in the processor's cache.
const CHUNK: usize = 1 << 16;

/// The tensors of a layer: name in GGUF, name in Hugging Face, rows, columns (none for a vector).
type LayerEntry = (&'static str, &'static str, usize, Option<usize>);

/// Matches the tensors of the file with those of the architecture.
///
/// # Errors
/// [`GgufProblem::MissingTensor`], [`GgufProblem::UnexpectedTensor`], [`GgufProblem::TensorShape`].
pub(crate) fn plan<'a>(gguf: &Gguf<'a>, hyper: &Hyper) -> GgufResult<Plan<'a>> {
    let mut left: BTreeMap<&str, &GgufTensor<'a>> = gguf.tensors.iter().map(|t| (t.name, t)).collect();
    if hyper.family == Family::Llama {
        left.remove(FREQS_TENSOR); // Its content is in the configuration.
    }
    let mut tensors = Vec::with_capacity(left.len());
    let mut take = |name: &str, target: String, shape: &[usize], interleaved: Option<usize>| {
        let Some(tensor) = left.remove(name) else {
            return Err(GgufProblem::MissingTensor { name: name.to_owned() });
        };
        if tensor.shape != shape {
            let (found, expected) = (tensor.shape.clone(), shape.to_vec());
            return Err(GgufProblem::TensorShape { name: name.to_owned(), found, expected });
        }
        tensors.push(Planned { name: target, tensor: tensor.clone(), interleaved });
        Ok(())
    };

    let has = |name: &str| gguf.tensors.iter().any(|t| t.name == name);
    let embedding = gguf.tensors.iter().find(|t| t.name == "token_embd.weight");
    let found = Found {
        vocab: embedding.and_then(|t| t.shape.first().copied()).unwrap_or(0),
        tied: !has("output.weight"),
        attention_bias: hyper.family == Family::Qwen2
            || ["attn_q", "attn_k", "attn_v", "attn_output"].iter().any(|k| has(&format!("blk.0.{k}.bias"))),
        ffn_bias: ["ffn_gate", "ffn_up", "ffn_down"].iter().any(|k| has(&format!("blk.0.{k}.bias"))),
    };

    let d = hyper.hidden;
    take("token_embd.weight", "model.embed_tokens.weight".to_owned(), &[found.vocab, d], None)?;
    for layer in 0..hyper.layers {
        for (source, target, rows, columns) in layer_entries(hyper, found) {
            let interleaved = (hyper.family == Family::Llama
                && (source.starts_with("attn_q.") || source.starts_with("attn_k.")))
            .then_some(hyper.head_dim);
            let shape = [rows, columns.unwrap_or(0)];
            let shape = if columns.is_some() { &shape[..] } else { &shape[..1] };
            take(&format!("blk.{layer}.{source}"), format!("model.layers.{layer}.{target}"), shape, interleaved)?;
        }
    }
    take("output_norm.weight", "model.norm.weight".to_owned(), &[d], None)?;
    if !found.tied {
        take("output.weight", "lm_head.weight".to_owned(), &[found.vocab, d], None)?;
    }
    if let Some(name) = left.into_keys().next() {
        return Err(GgufProblem::UnexpectedTensor { name: name.to_owned(), architecture: hyper.family.name() });
    }
    Ok(Plan { tensors, found })
}

fn layer_entries(hyper: &Hyper, found: Found) -> Vec<LayerEntry> {
    let (d, f) = (hyper.hidden, hyper.ffn);
    let q = hyper.heads * hyper.head_dim;
    let kv = hyper.kv_heads * hyper.head_dim;
    let mut entries: Vec<LayerEntry> = vec![
        ("attn_norm.weight", "input_layernorm.weight", d, None),
        ("attn_q.weight", "self_attn.q_proj.weight", q, Some(d)),
        ("attn_k.weight", "self_attn.k_proj.weight", kv, Some(d)),
        ("attn_v.weight", "self_attn.v_proj.weight", kv, Some(d)),
        ("attn_output.weight", "self_attn.o_proj.weight", d, Some(q)),
        ("ffn_norm.weight", "post_attention_layernorm.weight", d, None),
        ("ffn_gate.weight", "mlp.gate_proj.weight", f, Some(d)),
        ("ffn_up.weight", "mlp.up_proj.weight", f, Some(d)),
        ("ffn_down.weight", "mlp.down_proj.weight", d, Some(f)),
    ];
    if found.attention_bias {
        entries.push(("attn_q.bias", "self_attn.q_proj.bias", q, None));
        entries.push(("attn_k.bias", "self_attn.k_proj.bias", kv, None));
        entries.push(("attn_v.bias", "self_attn.v_proj.bias", kv, None));
        if hyper.family == Family::Llama {
            entries.push(("attn_output.bias", "self_attn.o_proj.bias", d, None));
        }
    }
    if found.ffn_bias {
        entries.push(("ffn_gate.bias", "mlp.gate_proj.bias", f, None));
        entries.push(("ffn_up.bias", "mlp.up_proj.bias", f, None));
        entries.push(("ffn_down.bias", "mlp.down_proj.bias", d, None));
    }
    entries
}

impl Planned<'_> {
    /// Declaration for the writer, as [`ModelNames::stored`](crate::ModelNames::stored).
    pub(crate) fn spec(&self, dtype: DType) -> TensorSpec {
        let mut shape = self.tensor.shape.clone();
        let dtype = if dtype == DType::I8 && shape.len() == 1 { DType::F32 } else { dtype };
        if dtype == DType::I8 && self.ends_a_block() {
            shape.reverse();
        }
        TensorSpec { name: self.name.clone(), dtype, shape }
    }

    /// Whether it is one of [`ModelNames::outputs`](crate::ModelNames::outputs).
    pub(crate) fn ends_a_block(&self) -> bool {
        self.name.ends_with(".o_proj.weight") || self.name.ends_with(".down_proj.weight")
    }

    /// Row of the source that becomes row `row`.
    fn source_row(&self, row: usize) -> usize {
        match self.interleaved {
            None => row,
            Some(head_dim) => {
                let (head, within) = (row / head_dim, row % head_dim);
                let (j, i) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * i + j
            }
        }
    }

    /// Converts the tensor piece by piece and gives the little-endian bytes of each piece to `sink`, in order.
    ///
    /// # Errors
    /// [`GgufProblem::F16Overflow`], and whatever `sink` returns.
    pub(crate) fn convert<E: From<GgufProblem>>(
        &self,
        dtype: DType,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let quant = self.tensor.quant;
        let mut bytes = Vec::new();
        let mut emit = |values: &[f32]| -> Result<(), E> {
            bytes.clear();
            encode(&self.tensor, dtype, values, &mut bytes)?;
            sink(&bytes)
        };
        let (rows, columns) = match *self.tensor.shape.as_slice() {
            [rows, columns] => (rows, columns),
            _ => (1, self.tensor.len()),
        };
        if rows == 1 {
            // A vector: rows of its own are single values, which no block can be cut into, so it is converted whole.
            let mut values = vec![0.0; columns];
            quant.dequantize(self.tensor.data, &mut values);
            if self.interleaved.is_some() {
                values = (0..columns).map(|i| values[self.source_row(i)]).collect();
            }
            return emit(&values);
        }
        let row_bytes = columns / quant.block_len() * quant.block_bytes();
        let rows_at_once = (CHUNK / columns.max(1)).max(1);
        let mut values = vec![0.0; rows_at_once.min(rows) * columns];
        for start in (0..rows).step_by(rows_at_once) {
            let count = rows_at_once.min(rows - start);
            let values = &mut values[..count * columns];
            for (row, out) in values.chunks_exact_mut(columns.max(1)).enumerate() {
                let source = self.source_row(start + row) * row_bytes;
                quant.dequantize(&self.tensor.data[source..source + row_bytes], out);
            }
            emit(values)?;
        }
        Ok(())
    }
}

/// Appends `values` in `dtype`, rounded to nearest even.
fn encode(tensor: &GgufTensor, dtype: DType, values: &[f32], bytes: &mut Vec<u8>) -> GgufResult<()> {
    match dtype {
        // Rows of int8 are made of these.
        DType::F32 | DType::I8 => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        DType::BF16 => bytes.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        DType::F16 => {
            for &value in values {
                let half = f16::from_f32(value);
                if half.is_infinite() && value.is_finite() {
                    return Err(GgufProblem::F16Overflow { name: tensor.name.to_owned(), value });
                }
                bytes.extend(half.to_le_bytes());
            }
        }
    }
    Ok(())
}
