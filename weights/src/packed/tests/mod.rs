//! Models to pack, and eyes to see what packing does.
#![allow(clippy::unwrap_used)]

mod bad_files;
mod round_trip;
mod sources;

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::*;
use crate::{Checkpoint, DType, ModelConfig, ModelNames, Progress, SafetensorsWriter, TensorData, TensorSpec};

/// A small OPT model.
const OPT: &str = r#"{"model_type":"opt","hidden_size":8,"num_attention_heads":2,"ffn_dim":6,"num_hidden_layers":2,
    "vocab_size":10,"max_position_embeddings":4,"word_embed_proj_dim":8}"#;

fn config(json: &str) -> ModelConfig {
    ModelConfig::from_json(json.as_bytes()).unwrap()
}

/// Tensors whose values are all over the place; `dtypes` gives the type of a tensor by its name.
fn tensors(
    config: &ModelConfig,
    has: impl Fn(&str) -> bool,
    dtypes: impl Fn(&str) -> DType,
) -> Vec<(String, TensorData)> {
    let layout = ModelNames::of(config, has).layout(config);
    let mut state = 1u64;
    layout
        .into_iter()
        .map(|(name, shape)| {
            let dtype = dtypes(&name);
            let bytes: Vec<u8> = (0..shape.iter().product::<usize>() * dtype.size())
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 56) as u8
                })
                .collect();
            (name, TensorData::from_bytes(&shape, dtype, &bytes).unwrap())
        })
        .collect()
}

/// A model directory with these tensors in files of the given numbers of them.
fn write_model(dir: &Path, json: &str, tensors: &[(String, TensorData)]) {
    std::fs::write(dir.join("config.json"), json).unwrap();
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, t)| TensorSpec { name: name.clone(), dtype: t.dtype(), shape: t.shape().to_vec() })
        .collect();
    let mut writer = SafetensorsWriter::create(&dir.join("model.safetensors"), &specs, &Default::default()).unwrap();
    for (name, tensor) in tensors {
        writer.write(name, tensor.bytes()).unwrap();
    }
    writer.finish().unwrap();
}

/// The small OPT model in a directory.
fn opt_directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), OPT, &tensors(&config(OPT), |_| false, |_| DType::BF16));
    dir
}

fn packed_path(dir: &Path) -> PathBuf {
    dir.join(FILE_NAME)
}

/// All entries of a folder, hidden ones too, except locks, which stay.
fn entries(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| !name.ends_with(".lock")).collect();
    names.sort();
    names
}

/// Remembers what was started, and stops after some bytes.
#[derive(Default)]
struct Watch {
    phases: RefCell<Vec<String>>,
    bytes: RefCell<u64>,
    stop_after: Option<u64>,
}

impl Watch {
    fn phases(self) -> Vec<String> {
        self.phases.into_inner()
    }
}

impl Progress for Watch {
    fn start(&self, what: &str, _total_bytes: Option<u64>) {
        self.phases.borrow_mut().push(what.to_owned());
    }
    fn advance(&self, bytes: u64) {
        *self.bytes.borrow_mut() += bytes;
    }
    fn finish(&self) {}
    fn go_on(&self) -> bool {
        self.stop_after.is_none_or(|limit| *self.bytes.borrow() < limit)
    }
}
