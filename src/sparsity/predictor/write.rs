//! Writing a predictor file.

use std::collections::HashMap;
use std::path::Path;

use half::f16;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use shadowllm_weights::write_atomic;

use super::PredictorInfo;
use super::info::KEY;
use crate::{Error, Result};

/// Number format of a predictor's weights. Biases and scales are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// As trained.
    F32,
    /// Half precision.
    F16,
    /// 8-bit integers, one scale per row: the largest weight of a row becomes 127.
    #[default]
    Int8,
}

impl WeightFormat {
    /// All formats, widest first.
    pub const ALL: [WeightFormat; 3] = [WeightFormat::F32, WeightFormat::F16, WeightFormat::Int8];

    /// Name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            WeightFormat::F32 => "f32",
            WeightFormat::F16 => "f16",
            WeightFormat::Int8 => "int8",
        }
    }

    /// Bytes of a weight.
    pub const fn size(self) -> usize {
        match self {
            WeightFormat::F32 => 4,
            WeightFormat::F16 => 2,
            WeightFormat::Int8 => 1,
        }
    }
}

/// One linear layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerWeights {
    /// `[rows, cols]`
    pub weight: Vec<f32>,
    /// Inputs.
    pub cols: usize,
    /// `[rows]`
    pub bias: Option<Vec<f32>>,
}

/// What predicts one kind of unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkWeights {
    /// `W1` and `b1`; `None` where the station has a trunk.
    pub hidden: Option<LayerWeights>,
    /// `W2` and `b2`; rows by layer, then by unit.
    pub output: LayerWeights,
}

/// The networks of one station.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StationWeights {
    /// Mean and inverse standard deviation of the inputs, each `[n]`, if the predictor standardises.
    pub standard: Option<(Vec<f32>, Vec<f32>)>,
    /// Hidden layer that heads and neurons share.
    pub trunk: Option<LayerWeights>,
    /// For heads.
    pub heads: Option<NetworkWeights>,
    /// For neurons.
    pub neurons: Option<NetworkWeights>,
}

/// A tensor ready to be written.
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Writes a predictor under a temporary name and renames it. The same input gives the same bytes.
///
/// Whether the tensors fit the model is checked by [`Predictor::open`](super::Predictor::open).
///
/// # Errors
/// [`Error::PredictorWeights`] if a layer's weights are no whole number of rows; [`Error::Weights`] if it cannot be written.
pub fn write_predictor(
    path: &Path,
    info: &PredictorInfo,
    stations: &[StationWeights],
    format: WeightFormat,
) -> Result<()> {
    Ok(write_atomic(path, &predictor_bytes(info, stations, format)?)?)
}

/// The content of a predictor file.
///
/// # Errors
/// As [`write_predictor`], but for those of writing.
pub(crate) fn predictor_bytes(
    info: &PredictorInfo,
    stations: &[StationWeights],
    format: WeightFormat,
) -> Result<Vec<u8>> {
    let mut tensors = Vec::new();
    for (s, station) in stations.iter().enumerate() {
        if let Some((mean, scale)) = &station.standard {
            tensors.push(vector(format!("{s}.mean"), mean));
            tensors.push(vector(format!("{s}.scale"), scale));
        }
        let trunk = station.trunk.as_ref().map(|layer| ("trunk.hidden", layer));
        let heads = station
            .heads
            .iter()
            .flat_map(|n| n.hidden.iter().map(|l| ("heads.hidden", l)).chain([("heads.output", &n.output)]));
        let neurons = station
            .neurons
            .iter()
            .flat_map(|n| n.hidden.iter().map(|l| ("neurons.hidden", l)).chain([("neurons.output", &n.output)]));
        for (name, layer) in trunk.into_iter().chain(heads).chain(neurons) {
            push_layer(&mut tensors, &format!("{s}.{name}"), layer, format)?;
        }
    }
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .map(|t| Ok((t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes)?)))
        .collect::<Result<_, safetensors::SafeTensorError>>()
        .map_err(|e| Error::PredictorWeights { reason: e.to_string() })?;
    // One key only: the order of several would be random.
    let metadata = HashMap::from([(KEY.to_owned(), info.to_json()?)]);
    serialize(views, Some(metadata)).map_err(|e| Error::PredictorWeights { reason: e.to_string() })
}

fn vector(name: String, values: &[f32]) -> Tensor {
    Tensor { name, dtype: Dtype::F32, shape: vec![values.len()], bytes: bytemuck::cast_slice(values).to_vec() }
}

fn push_layer(tensors: &mut Vec<Tensor>, name: &str, layer: &LayerWeights, format: WeightFormat) -> Result<()> {
    let LayerWeights { weight, cols, bias } = layer;
    if *cols == 0 || !weight.len().is_multiple_of(*cols) {
        let reason = format!("{name} has {} weights, which are no whole rows of {cols}", weight.len());
        return Err(Error::PredictorWeights { reason });
    }
    let (dtype, bytes) = match format {
        WeightFormat::F32 => (Dtype::F32, bytemuck::cast_slice(weight).to_vec()),
        WeightFormat::F16 => (Dtype::F16, weight.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()),
        WeightFormat::Int8 => {
            let scales: Vec<f32> = weight.chunks_exact(*cols).map(row_scale).collect();
            let rows = weight.chunks_exact(*cols).zip(&scales);
            let bytes = rows.flat_map(|(row, &scale)| row.iter().map(move |&v| quantise(v, scale) as u8)).collect();
            tensors.push(vector(format!("{name}.weight.scale"), &scales));
            (Dtype::I8, bytes)
        }
    };
    tensors.push(Tensor { name: format!("{name}.weight"), dtype, shape: vec![weight.len() / cols, *cols], bytes });
    if let Some(bias) = bias {
        tensors.push(vector(format!("{name}.bias"), bias));
    }
    Ok(())
}

fn row_scale(row: &[f32]) -> f32 {
    row.iter().fold(0.0_f32, |max, v| max.max(v.abs())) / 127.0
}

/// The nearest multiple of `scale`, within -127..=127.
fn quantise(value: f32, scale: f32) -> i8 {
    if scale == 0.0 { 0 } else { (value / scale).round().clamp(-127.0, 127.0) as i8 }
}
