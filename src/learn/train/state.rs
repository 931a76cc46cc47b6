//! A training on disk: what a run that was interrupted goes on from.
//!
//! A safetensors file, written after every portion under a temporary name and renamed, so a kill at any moment leaves the state
//! of the last portion. Its metadata has one key, `training`: the settings and samples that it belongs to, and how far it is.
//! Numbers that the training goes on with are in it as bits, so that resuming changes none.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shadowllm_weights::{DType, SafetensorsWriter, TensorSpec};

use super::TrainReport;
use super::network::Networks;
use super::options::TrainOptions;
use crate::learn::LearnError;
use crate::learn::samples::SampleInfo;
use crate::sparsity::file::File;
use crate::sparsity::predictor::Standard;
use crate::{Error, Result};

const KEY: &str = "training";
const VERSION: u32 = 1;

/// How far a training is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Times that the whole source was read.
    pub(super) epoch: usize,
    /// Where the source goes on.
    pub(super) position: u64,
    /// Portions that are done.
    pub(super) portions: u64,
    /// Samples read.
    pub(super) rows: u64,
    /// Samples used, counted every time.
    pub(super) used: u64,
    /// Steps taken.
    pub(super) steps: u64,
    /// Samples that the mean targets are over.
    pub(super) mean_rows: u64,
    /// Bits of the usual norm of each station's gradient.
    pub(super) norms: Vec<u64>,
    /// Bits of the least validation loss.
    pub(super) best: u64,
    /// Reports so far.
    pub(super) history: Vec<TrainReport>,
}

/// Everything that changes while training.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    pub(super) progress: Progress,
    pub(super) networks: Vec<Networks>,
    /// Values of all tensors of each station when the validation loss was least.
    pub(super) best: Vec<Vec<Vec<f32>>>,
    /// For each station; empty until the first portion, or if inputs are not standardised.
    pub(super) standards: Vec<Standard>,
    /// Mean targets of heads and of neurons, `[(L-1) * width]`; empty until the first portion.
    pub(super) means: [Vec<f32>; 2],
}

#[derive(Serialize, Deserialize)]
struct Description {
    version: u32,
    samples: SampleInfo,
    /// Samples that there are to train on and to judge on: another text of the same name is another text.
    rows: [u64; 2],
    options: TrainOptions,
    progress: Progress,
}

/// A tensor of the state: its name and its values.
type Entry<'a> = (String, &'a [f32]);

impl State {
    fn entries(&self) -> Vec<Entry<'_>> {
        let mut entries = Vec::new();
        for (s, networks) in self.networks.iter().enumerate() {
            for (i, (name, tensor)) in networks.tensors().into_iter().enumerate() {
                entries.push((format!("{s}.{name}.value"), &tensor.value[..]));
                entries.push((format!("{s}.{name}.moment1"), &tensor.moments[0][..]));
                entries.push((format!("{s}.{name}.moment2"), &tensor.moments[1][..]));
                if let Some(best) = self.best.get(s) {
                    entries.push((format!("{s}.{name}.best"), &best[i][..]));
                }
            }
            if let Some(standard) = self.standards.get(s) {
                entries.push((format!("{s}.mean"), &standard.mean[..]));
                entries.push((format!("{s}.scale"), &standard.scale[..]));
            }
        }
        for (name, means) in ["targets.heads", "targets.neurons"].into_iter().zip(&self.means) {
            entries.push((name.to_owned(), &means[..]));
        }
        entries
    }

    /// Writes the state of a training with these settings on these samples.
    ///
    /// # Errors
    /// [`Error::Weights`] if it cannot be written.
    pub(super) fn write(&self, path: &Path, info: &SampleInfo, rows: [u64; 2], options: &TrainOptions) -> Result<()> {
        let description = Description {
            version: VERSION,
            samples: info.clone(),
            rows,
            options: options.clone(),
            progress: self.progress.clone(),
        };
        let json = serde_json::to_string(&description).map_err(|e| metadata(e.to_string()))?;
        let entries = self.entries();
        let spec = |(name, values): &Entry<'_>| TensorSpec {
            name: name.clone(),
            dtype: DType::F32,
            shape: vec![values.len()],
        };
        let specs: Vec<TensorSpec> = entries.iter().map(spec).collect();
        let mut writer = SafetensorsWriter::create(path, &specs, &BTreeMap::from([(KEY.to_owned(), json)]))?;
        for (name, values) in &entries {
            writer.write(name, bytemuck::cast_slice(values))?;
        }
        Ok(writer.finish()?)
    }

    /// Reads the state of a training into `self`, which has the right shapes.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InFile`] with what is wrong: another version, other samples or settings
    /// ([`LearnError::OtherTraining`]), a broken file.
    pub(super) fn read(
        &mut self,
        path: &Path,
        info: &SampleInfo,
        rows: [u64; 2],
        options: &TrainOptions,
    ) -> Result<()> {
        let file = File::read(path)?;
        self.read_from(&file, info, rows, options).map_err(|e| e.in_file(path))
    }

    fn read_from(&mut self, file: &File, info: &SampleInfo, rows: [u64; 2], options: &TrainOptions) -> Result<()> {
        let json = file.expect_metadata(KEY)?;
        let found: Description = serde_json::from_str(json).map_err(|e| metadata(e.to_string()))?;
        if found.version != VERSION {
            return Err(metadata(format!("version {} of the format; this program reads {VERSION}", found.version)));
        }
        if found.samples.model != info.model {
            return Err(Error::OtherModel { found: found.samples.model, expected: info.model.clone() });
        }
        if let Some(difference) = difference(&found, info, rows, options)? {
            return Err(LearnError::OtherTraining { difference }.into());
        }
        for (s, networks) in self.networks.iter_mut().enumerate() {
            let names: Vec<String> = networks.tensors().into_iter().map(|(name, _)| name).collect();
            let mut best = Vec::with_capacity(names.len());
            for (name, tensor) in names.iter().zip(networks.tensors_mut()) {
                let shape = [tensor.value.len()];
                tensor.value = file.f32(&format!("{s}.{name}.value"), &shape)?;
                tensor.moments[0] = file.f32(&format!("{s}.{name}.moment1"), &shape)?;
                tensor.moments[1] = file.f32(&format!("{s}.{name}.moment2"), &shape)?;
                best.push(file.f32(&format!("{s}.{name}.best"), &shape)?);
            }
            self.best.push(best);
            if file.has(&format!("{s}.mean")) {
                let [mean, scale] = ["mean", "scale"].map(|name| file.f32(&format!("{s}.{name}"), &[info.inputs]));
                self.standards.push(Standard { mean: mean?, scale: scale? });
            }
        }
        let sizes = [info.head_targets(), info.neuron_targets()];
        for ((means, name), size) in self.means.iter_mut().zip(["targets.heads", "targets.neurons"]).zip(sizes) {
            *means = file.f32(name, &[size])?;
        }
        if found.progress.norms.len() != self.networks.len() {
            return Err(metadata("the number of norms is not that of the stations".to_owned()));
        }
        self.progress = found.progress;
        Ok(())
    }
}

/// What is not as it was, with both values.
fn difference(
    found: &Description,
    info: &SampleInfo,
    rows: [u64; 2],
    options: &TrainOptions,
) -> Result<Option<String>> {
    let fields = |samples: &SampleInfo, options: &TrainOptions, rows: [u64; 2]| {
        // As text, because f32 is widened in a value that was never text.
        let json = serde_json::to_string(&(samples, options))?;
        let (samples, options): (BTreeMap<String, Value>, BTreeMap<String, Value>) = serde_json::from_str(&json)?;
        Ok(samples.into_iter().chain(options).chain([("rows".to_owned(), serde_json::json!(rows))]).collect())
    };
    let fields = |samples: &SampleInfo, options: &TrainOptions, rows| -> Result<BTreeMap<String, Value>> {
        fields(samples, options, rows).map_err(|e: serde_json::Error| metadata(e.to_string()))
    };
    let was = fields(&found.samples, &found.options, found.rows)?;
    let is = fields(info, options, rows)?;
    let different = was.iter().find(|(key, value)| is.get(*key) != Some(value));
    Ok(different.map(|(key, value)| {
        let now = is.get(key).map_or_else(|| "missing".to_owned(), ToString::to_string);
        format!("{key} was {value} and is {now}")
    }))
}

fn metadata(reason: String) -> Error {
    Error::FileMetadata { key: KEY.to_owned(), reason }
}
