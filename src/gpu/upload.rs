//! The bytes of a tensor as a device has them: mostly those of the packed file, as they lie.

use std::borrow::Cow;

use shadowllm_codegen as codegen;
use shadowllm_codegen::{NormSite, Part, Tensor};

use super::GpuError;
use crate::Result;
use crate::model::{Ffn, Layer, Linear, Model, Norm, PackedModel};
use crate::sparsity::predictor::{Kind, Predictor, PredictorLayer};

/// Where tensors come from.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) model: &'a Model,
    pub(super) packed: &'a PackedModel,
    pub(super) predictor: Option<&'a Predictor>,
}

fn floats(values: &[f32]) -> Cow<'_, [u8]> {
    Cow::Borrowed(bytemuck::cast_slice(values))
}

fn repeated<'a>(value: f32, len: usize) -> Cow<'a, [u8]> {
    Cow::Owned(bytemuck::cast_slice(&vec![value; len]).to_vec())
}

impl<'a> Source<'a> {
    /// The bytes of `tensor`.
    pub(super) fn bytes(&self, tensor: Tensor) -> Result<Cow<'a, [u8]>> {
        let (model, width) = (self.model, self.model.config.hidden);
        let found = match tensor {
            Tensor::Embedding => Some(Cow::Borrowed(model.embedding.view_bytes())),
            Tensor::Positions => model.positions.as_ref().map(|table| Cow::Borrowed(table.view_bytes())),
            Tensor::LmHead => Some(Cow::Borrowed(model.head.view_bytes())),
            Tensor::Heads(layer) => Some(Cow::Borrowed(self.packed.layers[layer].heads.view_bytes())),
            Tensor::KvHeads(layer) => Some(Cow::Borrowed(self.packed.layers[layer].kv_heads.view_bytes())),
            Tensor::Neurons(layer) => Some(Cow::Borrowed(self.packed.layers[layer].neurons.view_bytes())),
            Tensor::NormWeight(site) => self.norm(site).map(|norm| match norm {
                Norm::Layer { weight: Some(weight), .. } | Norm::Rms { weight, .. } => floats(weight),
                Norm::Layer { weight: None, .. } => repeated(1.0, width),
            }),
            Tensor::NormBias(site) => self.norm(site).map(|norm| match norm {
                Norm::Layer { bias: Some(bias), .. } => floats(bias),
                _ => repeated(0.0, width),
            }),
            Tensor::QueryBias(layer) => bias(&self.layer(layer).attention.q),
            Tensor::KeyBias(layer) => bias(&self.layer(layer).attention.k),
            Tensor::ValueBias(layer) => bias(&self.layer(layer).attention.v),
            Tensor::OutBias(layer) => bias(&self.layer(layer).attention.out),
            Tensor::FirstBias(layer) => bias(self.layer(layer).ffn.first()),
            Tensor::UpBias(layer) => match &self.layer(layer).ffn {
                Ffn::Gated { up, .. } => bias(up),
                Ffn::Plain { .. } => None,
            },
            Tensor::SecondBias(layer) => bias(self.layer(layer).ffn.second()),
            Tensor::Rope => self.rope(),
            Tensor::Mean(station) => self.predictor.and_then(|p| p.standard(station)).map(|(mean, _)| floats(mean)),
            Tensor::Scale(station) => self.predictor.and_then(|p| p.standard(station)).map(|(_, scale)| floats(scale)),
            Tensor::Hidden(station, kind, part) => {
                self.predictor.and_then(|p| p.hidden(station, kind.map(own_kind))).and_then(|l| predictor_part(l, part))
            }
            Tensor::Output(station, kind, part) => {
                self.predictor.and_then(|p| p.output(station, own_kind(kind))).and_then(|l| predictor_part(l, part))
            }
        };
        found.ok_or_else(|| GpuError::Unsupported { reason: format!("it has no tensor {tensor:?}") }.into())
    }

    fn layer(&self, layer: usize) -> &'a Layer {
        &self.model.layers[layer]
    }

    fn norm(&self, site: NormSite) -> Option<&'a Norm> {
        match site {
            NormSite::Attention(layer) => Some(&self.layer(layer).attention_norm),
            NormSite::Ffn(layer) => Some(&self.layer(layer).ffn_norm),
            NormSite::Final => self.model.final_norm.as_ref(),
        }
    }

    /// `[positions, d_h]`: cosines, then sines.
    fn rope(&self) -> Option<Cow<'a, [u8]>> {
        let (table, c) = (self.model.rope.as_ref()?, &self.model.config);
        let mut values = Vec::with_capacity(4 * c.max_positions * c.head_dim);
        for position in 0..c.max_positions {
            let (cos, sin) = table.row(position);
            values.extend_from_slice(bytemuck::cast_slice(cos));
            values.extend_from_slice(bytemuck::cast_slice(sin));
        }
        Some(Cow::Owned(values))
    }
}

fn own_kind(kind: codegen::Kind) -> Kind {
    match kind {
        codegen::Kind::Heads => Kind::Heads,
        codegen::Kind::Neurons => Kind::Neurons,
    }
}

fn bias(linear: &Linear) -> Option<Cow<'_, [u8]>> {
    linear.bias.as_deref().map(floats)
}

/// A part of a predictor's layer; rows of weights are padded with zeros to 16 bytes.
fn predictor_part(layer: &PredictorLayer, part: Part) -> Option<Cow<'_, [u8]>> {
    match part {
        Part::Weight => Some(padded(layer.weight_bytes(), layer.rows())),
        Part::RowScale => layer.row_scale().map(floats),
        Part::Bias => layer.bias().map(floats),
    }
}

fn padded(bytes: &[u8], rows: usize) -> Cow<'_, [u8]> {
    let row = bytes.len() / rows.max(1);
    if row.is_multiple_of(16) {
        return Cow::Borrowed(bytes);
    }
    let stride = row.next_multiple_of(16);
    let mut all = vec![0; rows * stride];
    for (to, from) in all.chunks_exact_mut(stride).zip(bytes.chunks_exact(row)) {
        to[..row].copy_from_slice(from);
    }
    Cow::Owned(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_to_sixteen_bytes() {
        let rows: Vec<u8> = (1..=6).collect();
        let mut expected = vec![0; 32];
        expected[..3].copy_from_slice(&[1, 2, 3]);
        expected[16..19].copy_from_slice(&[4, 5, 6]);
        assert_eq!(padded(&rows, 2), expected);
        let whole: Vec<u8> = (0..32).collect();
        assert!(matches!(padded(&whole, 2), Cow::Borrowed(bytes) if bytes == whole));
    }
}
