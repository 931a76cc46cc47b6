//! Checkpoints with random weights, for measuring speed at the shape of a model whose weights are not at hand.
//!
//! The weights are scaled as at initialisation (variance `1/fan_in`), so activations stay in the range of a real model and
//! half of a ReLU layer's neurons are active.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use half::{bf16, f16};
use serde_json::{Value, json};
use shadowllm_weights::{
    Checkpoint, DType, ModelConfig, ModelNames, Progress, SafetensorsWriter, StagedDirectory, Storage, TensorData,
    TensorSpec, checkpoint_metadata, int8_row,
};

use crate::{Error, Result};

/// A published model's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape(&'static Known);

#[derive(Debug, PartialEq, Eq)]
struct Known {
    name: &'static str,
    family: Family,
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    ffn: usize,
    vocab: usize,
    context: usize,
    tied: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Opt,
    Llama { theta: u32 },
}

/// OPT: Zhang et al., arXiv 2205.01068, table 1 and the published `config.json` files.
const fn opt(name: &'static str, layers: usize, hidden: usize, heads: usize) -> Known {
    Known {
        name,
        family: Family::Opt,
        layers,
        hidden,
        heads,
        kv_heads: heads,
        ffn: 4 * hidden,
        vocab: 50272,
        context: 2048,
        tied: true,
    }
}

/// Llama family, from the published `config.json` files.
const SHAPES: [Known; 11] = [
    opt("opt-125m", 12, 768, 12),
    opt("opt-1.3b", 24, 2048, 32),
    opt("opt-2.7b", 32, 2560, 32),
    opt("opt-6.7b", 32, 4096, 32),
    opt("opt-13b", 40, 5120, 40),
    opt("opt-30b", 48, 7168, 56),
    opt("opt-66b", 64, 9216, 72),
    Known {
        name: "smollm2-135m",
        family: Family::Llama { theta: 100_000 },
        layers: 30,
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        ffn: 1536,
        vocab: 49152,
        context: 8192,
        tied: true,
    },
    Known {
        name: "llama-3.2-1b",
        family: Family::Llama { theta: 500_000 },
        layers: 16,
        hidden: 2048,
        heads: 32,
        kv_heads: 8,
        ffn: 8192,
        vocab: 128_256,
        context: 8192,
        tied: true,
    },
    Known {
        name: "llama-2-7b",
        family: Family::Llama { theta: 10_000 },
        layers: 32,
        hidden: 4096,
        heads: 32,
        kv_heads: 32,
        ffn: 11008,
        vocab: 32000,
        context: 4096,
        tied: false,
    },
    Known {
        name: "llama-3-8b",
        family: Family::Llama { theta: 500_000 },
        layers: 32,
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        ffn: 14336,
        vocab: 128_256,
        context: 8192,
        tied: false,
    },
];

impl Shape {
    /// All shapes that can be named.
    pub fn all() -> impl Iterator<Item = Shape> {
        SHAPES.iter().map(Shape)
    }

    /// Its name, as in `opt-1.3b`.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// `config.json` of a model of this shape.
    pub fn config_json(self, dtype: DType) -> Value {
        let k = self.0;
        let torch_dtype = dtype.torch_name();
        match k.family {
            Family::Opt => json!({
                "architectures": ["OPTForCausalLM"],
                "model_type": "opt",
                "vocab_size": k.vocab,
                "hidden_size": k.hidden,
                "word_embed_proj_dim": k.hidden,
                "ffn_dim": k.ffn,
                "num_hidden_layers": k.layers,
                "num_attention_heads": k.heads,
                "max_position_embeddings": k.context,
                "do_layer_norm_before": true,
                "activation_function": "relu",
                "tie_word_embeddings": k.tied,
                "bos_token_id": 2,
                "eos_token_id": 2,
                "pad_token_id": 1,
                "torch_dtype": torch_dtype,
            }),
            Family::Llama { theta } => json!({
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "vocab_size": k.vocab,
                "hidden_size": k.hidden,
                "intermediate_size": k.ffn,
                "num_hidden_layers": k.layers,
                "num_attention_heads": k.heads,
                "num_key_value_heads": k.kv_heads,
                "max_position_embeddings": k.context,
                "rms_norm_eps": 1e-5,
                "rope_theta": f64::from(theta),
                "hidden_act": "silu",
                "tie_word_embeddings": k.tied,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "torch_dtype": torch_dtype,
            }),
        }
    }
}

impl FromStr for Shape {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Shape::all().find(|s| s.name() == name).ok_or_else(|| Error::UnknownShape {
            found: name.to_owned(),
            known: Shape::all().map(Shape::name).collect::<Vec<_>>().join(", "),
        })
    }
}

/// A model of any configuration with random weights, in memory: those that [`write_random`] writes.
///
/// # Errors
/// [`Error::Weights`] if the sizes overflow.
pub fn random_checkpoint(config: ModelConfig, dtype: DType, seed: u64) -> Result<Checkpoint> {
    let layers = config.layers;
    random_checkpoint_sharing(config, dtype, seed, layers, &())
}

/// As [`random_checkpoint`], for a model that is larger than memory: only the first `copies` layers (at least 1) have weights of
/// their own, and the others take theirs in turn, layer `i` those of layer `i % copies`. Reading it takes as long as reading the whole
/// model if the copies are much larger than the caches together.
///
/// # Errors
/// As there, and [`Error::Interrupted`] if `progress` says so.
pub fn random_checkpoint_sharing(
    config: ModelConfig,
    dtype: DType,
    seed: u64,
    copies: usize,
    progress: &dyn Progress,
) -> Result<Checkpoint> {
    let copies = copies.max(1);
    let specs = specs(&config, dtype);
    let own = |spec: &&TensorSpec| layer_of(&spec.name).is_none_or(|layer| layer < copies);
    let total: u64 = specs.iter().filter(own).filter_map(|spec| Some(spec.byte_len()? as u64)).sum();
    progress.start("random weights", Some(total));
    let mut state = seed;
    let mut made: BTreeMap<String, TensorData> = BTreeMap::new();
    let mut tensors = Vec::with_capacity(specs.len());
    for spec in specs {
        let tensor = match layer_of(&spec.name).filter(|&layer| layer >= copies) {
            Some(layer) => {
                let owner = spec.name.replacen(&layer_name(layer), &layer_name(layer % copies), 1);
                made.get(&owner).cloned()
            }
            None => None,
        };
        let tensor = match tensor {
            Some(tensor) => tensor,
            None => random_tensor(&spec, &mut state, progress)?,
        };
        made.insert(spec.name.clone(), tensor.clone());
        tensors.push((spec.name, tensor));
    }
    progress.finish();
    Ok(Checkpoint::from_tensors(config, tensors))
}

/// The part of a tensor's name that says which layer it belongs to.
fn layer_name(layer: usize) -> String {
    format!("layers.{layer}.")
}

fn layer_of(name: &str) -> Option<usize> {
    name.split_once("layers.")?.1.split('.').next()?.parse().ok()
}

fn random_tensor(spec: &TensorSpec, state: &mut u64, progress: &dyn Progress) -> Result<TensorData> {
    let weights = Distribution::of(spec);
    let len = bytes_of(spec)?;
    // Words, so that values of every type are aligned.
    let mut words = vec![0u64; len.div_ceil(size_of::<u64>())];
    let bytes = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..len];
    for block in bytes.chunks_mut(weights.row.block()) {
        weights.fill(state, block);
        progress.advance(block.len() as u64);
        if !progress.go_on() {
            return Err(Error::Interrupted);
        }
    }
    Ok(TensorData::new(Arc::new(Storage::Owned { words, len }), 0..len, spec.dtype, &spec.shape)?)
}

fn count(spec: &TensorSpec) -> usize {
    spec.shape.iter().product()
}

fn bytes_of(spec: &TensorSpec) -> Result<usize> {
    let too_large = shadowllm_weights::Error::TensorSize {
        shape: spec.shape.clone(),
        dtype: spec.dtype,
        expected: usize::MAX,
        found: 0,
    };
    Ok(spec.byte_len().ok_or(too_large)?)
}

fn specs(config: &ModelConfig, dtype: DType) -> Vec<TensorSpec> {
    ModelNames::of(config, |_| false).stored(config, dtype)
}

/// Values made and written at a time.
const BLOCK: usize = 16 << 20;

/// Ends of the names of [`ModelNames::outputs`].
const ENDS: [&str; 4] = [".out_proj.weight", ".o_proj.weight", ".fc2.weight", ".down_proj.weight"];

/// Values that are not worth a thread.
const SMALL: usize = 1 << 16;

/// Writes a checkpoint of `shape` to the new directory `dir` and returns the number of weights.
///
/// # Errors
/// [`Error::Weights`] if the directory is not empty or cannot be written; nothing is left behind then.
/// [`Error::Interrupted`] if `progress` says so.
pub fn write_random(dir: &Path, shape: Shape, dtype: DType, seed: u64, progress: &dyn Progress) -> Result<u64> {
    let config = serde_json::to_vec_pretty(&shape.config_json(dtype)).unwrap_or_default();
    let parsed = ModelConfig::from_json(&config)?;
    let specs = specs(&parsed, dtype);
    let total: u64 = specs.iter().map(|s| count(s) as u64).sum();
    let staged = StagedDirectory::create(dir)?;
    staged.write("config.json", &config)?;
    let mut file =
        SafetensorsWriter::create(&staged.path().join("model.safetensors"), &specs, &checkpoint_metadata(dtype))
            .map_err(|e| staged.finally(e))?;
    progress.start("random weights", Some(specs.iter().filter_map(|s| Some(s.byte_len()? as u64)).sum()));
    let mut state = seed;
    for spec in &specs {
        let weights = Distribution::of(spec);
        let mut left = bytes_of(spec)?;
        let mut bytes = vec![0; weights.row.block().min(left)];
        while left > 0 {
            bytes.truncate(left);
            weights.fill(&mut state, &mut bytes);
            file.append(&spec.name, &bytes).map_err(|e| staged.finally(e))?;
            progress.advance(bytes.len() as u64);
            if !progress.go_on() {
                return Err(Error::Interrupted);
            }
            left -= bytes.len();
        }
    }
    progress.finish();
    file.finish().map_err(|e| staged.finally(e))?;
    staged.finish()?;
    Ok(total)
}

/// How many values are made together, and their bytes: one value, or one of the rows that are rounded as a whole.
#[derive(Clone, Copy)]
struct Row {
    dtype: DType,
    values: usize,
    bytes: usize,
}

impl Row {
    fn of(dtype: DType, cols: usize) -> Self {
        let values = if dtype == DType::I8 { cols.max(1) } else { 1 };
        Row { dtype, values, bytes: dtype.row_bytes(values) }
    }

    /// Bytes of a block: at most [`BLOCK`] values, or one row.
    fn block(self) -> usize {
        (BLOCK / self.values).max(1) * self.bytes
    }
}

/// Uniform values around a centre.
struct Distribution {
    centre: f32,
    half_width: f32,
    row: Row,
}

impl Distribution {
    /// As at initialisation: matrices of variance `1/fan_in`, norm weights near 1, biases near 0.
    fn of(spec: &TensorSpec) -> Self {
        let vector = spec.shape.len() == 1;
        let row = Row::of(spec.dtype, spec.shape.last().copied().unwrap_or(1));
        // Where outputs are the columns, as in int8 checkpoints, every input has a row.
        let by_input = spec.dtype == DType::I8 && ENDS.iter().any(|end| spec.name.ends_with(end));
        match (vector, spec.name.contains("norm") && spec.name.ends_with("weight")) {
            (true, true) => Distribution { centre: 1.0, half_width: 0.1, row },
            (true, false) => Distribution { centre: 0.0, half_width: 0.02, row },
            (false, _) => {
                let inputs = if by_input { spec.shape.first() } else { spec.shape.last() };
                let fan_in = inputs.copied().unwrap_or(1).max(1) as f32;
                Distribution { centre: 0.0, half_width: (3.0 / fan_in).sqrt(), row }
            }
        }
    }

    fn draw(&self, state: &mut u64) -> f32 {
        // The upper 24 bits of a random word are a uniform fraction that f32 holds exactly.
        let unit = (next_random(state) >> 40) as f32 / (1u64 << 24) as f32;
        self.centre + self.half_width * (2.0 * unit - 1.0)
    }

    /// Draws values, whole rows, until `out` is full, on all processors: the same values as one after the other.
    fn fill(&self, state: &mut u64, out: &mut [u8]) {
        let (Row { dtype, values, bytes }, start) = (self.row, *state);
        let rows = out.len() / bytes;
        *state = start.wrapping_add(STEP.wrapping_mul((rows * values) as u64));
        let part = |first: usize, out: &mut [u8]| {
            let mut state = start.wrapping_add(STEP.wrapping_mul((first * values) as u64));
            let mut drawn = vec![0.0; values];
            for row in out.chunks_exact_mut(bytes) {
                drawn.iter_mut().for_each(|value| *value = self.draw(&mut state));
                put(&drawn, dtype, row);
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let each = rows.div_ceil(threads).max(SMALL.div_ceil(values));
        if each >= rows {
            return part(0, out);
        }
        std::thread::scope(|scope| {
            for (index, out) in out.chunks_mut(each * bytes).enumerate() {
                scope.spawn(move || part(index * each, out));
            }
        });
    }
}

/// Writes a row: of all types but int8 a single value.
fn put(row: &[f32], dtype: DType, out: &mut [u8]) {
    let value = row[0];
    match dtype {
        DType::F32 => out.copy_from_slice(&value.to_le_bytes()),
        DType::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        DType::BF16 => out.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        DType::I8 => int8_row(row, out),
    }
}

/// By how much the state of [`next_random`] grows with every word: word `n` can be had without those before it.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(STEP);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn threads_change_nothing() {
        let weights = Distribution { centre: 1.0, half_width: 0.5, row: Row::of(DType::F32, 5) };
        let (mut state, mut one_by_one) = (7, 7);
        let mut bytes = vec![0; 4 * (3 * SMALL + 5)];
        weights.fill(&mut state, &mut bytes);
        for value in bytes.chunks_exact(4) {
            assert_eq!(value, weights.draw(&mut one_by_one).to_le_bytes());
        }
        assert_eq!(state, one_by_one);
        // Rows that are rounded as a whole.
        let rows = Distribution { row: Row::of(DType::I8, 300), ..weights };
        let (mut state, mut one_by_one) = (7, 7);
        let mut bytes = vec![0; DType::I8.row_bytes(300) * (SMALL / 100)];
        rows.fill(&mut state, &mut bytes);
        for row in bytes.chunks_exact(DType::I8.row_bytes(300)) {
            let mut expected = vec![0; row.len()];
            let values: Vec<f32> = (0..300).map(|_| rows.draw(&mut one_by_one)).collect();
            int8_row(&values, &mut expected);
            assert_eq!(row, expected);
        }
        assert_eq!(state, one_by_one);
    }

    #[test]
    fn layers_share_in_turn() {
        let json = br#"{"model_type": "opt", "num_hidden_layers": 5, "hidden_size": 8, "num_attention_heads": 2, "ffn_dim": 12,
            "vocab_size": 10, "max_position_embeddings": 16, "word_embed_proj_dim": 8}"#;
        let config = ModelConfig::from_json(json).unwrap();
        let whole = random_checkpoint(config.clone(), DType::BF16, 3).unwrap();
        let shared = random_checkpoint_sharing(config, DType::BF16, 3, 2, &()).unwrap();
        let name = |layer: usize| format!("model.decoder.layers.{layer}.fc1.weight");
        let bytes = |checkpoint: &Checkpoint, layer| checkpoint.tensor(&name(layer)).unwrap().bytes().to_vec();
        let start = |layer| shared.tensor(&name(layer)).unwrap().bytes().as_ptr();
        assert_ne!(start(0), start(1));
        assert_eq!([start(2), start(3), start(4)], [start(0), start(1), start(0)]);
        // What has weights of its own has those of the whole model.
        assert_eq!([bytes(&shared, 0), bytes(&shared, 1)], [bytes(&whole, 0), bytes(&whole, 1)]);
        assert_eq!(shared.names().count(), whole.names().count());
    }
}
