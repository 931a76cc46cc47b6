//! A predictor from its file: everything is checked before the first prediction.

use std::collections::BTreeSet;
use std::path::Path;

use safetensors::Dtype;
use shadowllm_weights::{Checkpoint, ModelConfig};

use super::info::KEY;
use super::normalize::Standard;
use super::weights::{Int8, Layer, Weight};
use super::{Network, Networks, Normalization, Predictor, PredictorInfo, PredictorInput};
use crate::sparsity::file::File;
use crate::sparsity::{ModelIdentity, Units};
use crate::tensor::Matrix;
use crate::{Error, Result};

impl Predictor {
    /// Reads a predictor for the model with this configuration and fingerprint.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InFile`] with what is wrong: no safetensors file, no description or one of another version
    /// ([`Error::PredictorVersion`]), another model ([`Error::OtherModel`]), impossible stations, a tensor that is missing, too
    /// many, or of another shape or type.
    pub fn open(path: &Path, config: &ModelConfig, model: &ModelIdentity) -> Result<Self> {
        let file = File::read(path)?;
        Self::of(&file, config, model).map_err(|e| e.in_file(path))
    }

    /// As [`Predictor::open`], for the content of a file.
    ///
    /// # Errors
    /// As there, but for those of reading.
    pub fn from_bytes(bytes: &[u8], config: &ModelConfig, model: &ModelIdentity) -> Result<Self> {
        Self::of(&File::from_bytes(bytes)?, config, model)
    }

    /// The predictor that is compiled into the library with the embedded model.
    ///
    /// # Errors
    /// As [`Predictor::from_bytes`], [`Error::OtherModel`] foremost; [`Error::Weights`] if the build has no embedded model.
    pub fn embedded(config: &ModelConfig, model: &ModelIdentity) -> Result<Self> {
        Self::from_bytes(Checkpoint::embedded_predictor()?, config, model)
    }

    fn of(file: &File, config: &ModelConfig, model: &ModelIdentity) -> Result<Self> {
        let info = PredictorInfo::from_json(file.expect_metadata(KEY)?)?;
        if info.model != *model {
            return Err(Error::OtherModel { found: info.model, expected: model.clone() });
        }
        info.check_stations(config.layers)?;
        let inputs = match info.input {
            PredictorInput::Residual => config.hidden,
            PredictorInput::Contexts => config.heads * config.head_dim,
        };
        let units = Units::from(config);
        let mut reader = Reader { file, used: BTreeSet::new() };
        let mut stations = Vec::with_capacity(info.stations.len());
        for (s, &after) in info.stations.iter().enumerate() {
            let until = info.stations.get(s + 1).copied().unwrap_or(config.layers - 1);
            stations.push(reader.networks(s, after + 1..until + 1, inputs, units, info.normalization)?);
        }
        if let Some(name) = file.names().find(|name| !reader.used.contains(*name)) {
            return Err(Error::FileTensorUnknown { name: name.to_owned() });
        }
        let predictor = Predictor { info, units, inputs, stations };
        let (all, any) = (predictor.ranks(), &predictor.stations);
        if any.iter().any(|n| n.heads.is_some()) != all.heads || any.iter().any(|n| n.neurons.is_some()) != all.neurons
        {
            return Err(Error::FileMetadata {
                key: KEY.to_owned(),
                reason: "some stations have networks for heads or neurons that others lack; all must have the same"
                    .into(),
            });
        }
        Ok(predictor)
    }
}

struct Reader<'a> {
    file: &'a File,
    /// Names of the tensors that were read.
    used: BTreeSet<String>,
}

impl Reader<'_> {
    fn networks(
        &mut self,
        station: usize,
        layers: std::ops::Range<usize>,
        inputs: usize,
        units: Units,
        normalization: Normalization,
    ) -> Result<Networks> {
        let standard = match normalization {
            Normalization::Standardize => Some(Standard {
                mean: self.f32(format!("{station}.mean"), inputs)?,
                scale: self.f32(format!("{station}.scale"), inputs)?,
            }),
            Normalization::None | Normalization::MinMax => None,
        };
        let trunk_name = format!("{station}.trunk.hidden");
        let trunk = match self.file.has(&format!("{trunk_name}.weight")) {
            true => Some(self.hidden(&trunk_name, inputs)?),
            false => None,
        };
        let mut network = |kind: &str, width: usize| {
            let name = format!("{station}.{kind}");
            if !self.file.has(&format!("{name}.output.weight")) {
                return Ok(None);
            }
            let hidden = match trunk {
                Some(_) => None,
                None => Some(self.hidden(&format!("{name}.hidden"), inputs)?),
            };
            let between = hidden.as_ref().or(trunk.as_ref()).map_or(0, Layer::rows);
            let output = self.layer(&format!("{name}.output"), layers.len() * width, between)?;
            Ok::<_, Error>(Some(Network { hidden, output }))
        };
        let heads = network("heads", units.heads)?;
        let neurons = network("neurons", units.neurons)?;
        if heads.is_none() && neurons.is_none() {
            return Err(Error::FileTensorMissing {
                name: format!("{station}.heads.output.weight or {station}.neurons.output.weight"),
                known: self.file.listing(),
            });
        }
        Ok(Networks { layers, standard, trunk, heads, neurons })
    }

    /// A first layer: its number of outputs is the file's choice.
    fn hidden(&mut self, name: &str, inputs: usize) -> Result<Layer> {
        let rows = self.file.shape(&format!("{name}.weight")).and_then(|shape| shape.first()).copied().unwrap_or(1);
        self.layer(name, rows.max(1), inputs)
    }

    fn layer(&mut self, name: &str, rows: usize, cols: usize) -> Result<Layer> {
        let weight_name = format!("{name}.weight");
        let shape = [rows, cols];
        let weight = if self.file.entry(&weight_name, &shape)?.dtype == Dtype::I8 {
            let (storage, range) = self.file.i8(&weight_name, &shape)?;
            let scale = self.f32(format!("{name}.weight.scale"), rows)?;
            Weight::Int8(Int8 { storage, range, scale, cols })
        } else {
            Weight::Float(Matrix::new(self.file.tensor(&weight_name, &shape)?)?)
        };
        self.used.insert(weight_name);
        let bias_name = format!("{name}.bias");
        let bias = match self.file.has(&bias_name) {
            true => Some(self.f32(bias_name, rows)?),
            false => None,
        };
        Ok(Layer { weight, bias })
    }

    fn f32(&mut self, name: String, len: usize) -> Result<Vec<f32>> {
        let values = self.file.f32(&name, &[len])?;
        self.used.insert(name);
        Ok(values)
    }
}
