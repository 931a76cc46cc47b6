//! Names, shapes and metadata of a packed file, and the check of one that was found.

use std::collections::{BTreeMap, HashMap, HashSet};

use safetensors::Dtype;

use super::PackedProblem;
use super::identity::SourceIdentity;
use crate::header::safetensors_metadata;
use crate::{
    DType, Error, FfnNames, HeaderTensor, INT8_GROUP, LayerNames, ModelConfig, ModelNames, parse_safetensors_header,
};

/// Metadata entry `format` of every packed file.
pub(super) const FORMAT: &str = "shadowllm-packed";
/// Version that is written and read.
pub(super) const VERSION: &str = "1";

/// Name of the query and output rows of layer `i`.
pub(super) fn heads_name(i: usize) -> String {
    format!("layers.{i}.heads")
}

/// Name of the key and value rows of layer `i`.
pub(super) fn kv_heads_name(i: usize) -> String {
    format!("layers.{i}.kv_heads")
}

/// Name of the FFN records of layer `i`.
pub(super) fn neurons_name(i: usize) -> String {
    format!("layers.{i}.neurons")
}

/// Names and shapes of the packed tensors, layer by layer.
pub(super) fn packed_layout(config: &ModelConfig) -> impl Iterator<Item = (String, Vec<usize>)> {
    let (pair, d) = (2 * config.head_dim, config.hidden);
    let (heads, kv_heads) = (vec![config.heads, pair, d], vec![config.kv_heads, pair, d]);
    let neurons = vec![config.ffn, if config.gated { 3 } else { 2 }, d];
    (0..config.layers).flat_map(move |i| {
        [(heads_name(i), heads.clone()), (kv_heads_name(i), kv_heads.clone()), (neurons_name(i), neurons.clone())]
    })
}

/// The matrices of a layer that are packed.
pub(super) fn packed_matrices(layer: &LayerNames) -> Vec<&str> {
    let mut names = vec![layer.q.as_str(), &layer.k, &layer.v, &layer.out];
    match &layer.ffn {
        FfnNames::Plain { fc1, fc2 } => names.extend([fc1.as_str(), fc2]),
        FfnNames::Gated { gate, up, down } => names.extend([gate.as_str(), up, down]),
    }
    names
}

/// Names and shapes of the model's tensors that keep their names.
pub(super) fn rest_layout(config: &ModelConfig, names: &ModelNames) -> Vec<(String, Vec<usize>)> {
    let packed: HashSet<String> =
        names.layers.iter().flat_map(packed_matrices).map(|name| format!("{name}.weight")).collect();
    let mut layout = names.layout(config);
    layout.retain(|(name, _)| !packed.contains(name));
    layout
}

/// What a packed file says of itself, all of it checked.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedHeader {
    /// The model.
    pub config: ModelConfig,
    /// Type of all packed tensors.
    pub dtype: DType,
    /// [`Checkpoint::fingerprint`](crate::Checkpoint::fingerprint) of the model.
    pub fingerprint: String,
    /// What the weights were packed from.
    pub source: SourceIdentity,
    /// All tensors in the order of their bytes.
    pub tensors: Vec<HeaderTensor>,
}

/// The metadata of a packed file.
pub(super) fn metadata(
    config: &ModelConfig,
    dtype: DType,
    fingerprint: &str,
    source: &SourceIdentity,
) -> BTreeMap<String, String> {
    let config = String::from_utf8_lossy(&config.to_json()).into_owned();
    let group = (dtype == DType::I8).then(|| ("group", INT8_GROUP.to_string()));
    let entries = [
        ("format", FORMAT.to_owned()),
        ("version", VERSION.to_owned()),
        ("dtype", dtype.name().to_owned()),
        ("config_hash", blake3::hash(config.as_bytes()).to_hex().to_string()),
        ("config", config),
        ("fingerprint", fingerprint.to_owned()),
        ("source", serde_json::json!(source).to_string()),
    ];
    entries.into_iter().chain(group).map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Whether `file` says that it is a packed file, of whatever version.
pub(super) fn claims_to_be_packed(file: &[u8]) -> bool {
    safetensors_metadata(file).is_ok_and(|m| m.get("format").is_some_and(|f| f == FORMAT))
}

/// Reads and checks everything but the weights of a packed file. `file` is the whole file; only its header is touched.
///
/// # Errors
/// What is wrong with it, except [`PackedProblem::Stale`] and [`PackedProblem::Busy`], which do not show in the file.
pub fn parse_packed_header(file: &[u8]) -> Result<PackedHeader, PackedProblem> {
    let header_problem = |error: Error| PackedProblem::of_header(error, file.len());
    let metadata = safetensors_metadata(file).map_err(header_problem)?;
    if metadata.get("format").is_none_or(|format| format != FORMAT) {
        return Err(PackedProblem::NotPacked);
    }
    let wrong = |key, reason: String| PackedProblem::Metadata { key, reason };
    let entry = |key| metadata.get(key).ok_or_else(|| wrong(key, "it is missing".to_owned()));
    let version = entry("version")?;
    if version != VERSION {
        return Err(PackedProblem::Version { found: version.clone() });
    }
    let tensors = parse_safetensors_header(file).map_err(header_problem)?;
    let text = entry("config")?;
    if blake3::hash(text.as_bytes()).to_hex().as_str() != entry("config_hash")? {
        return Err(wrong("config_hash", "it is not the hash of the configuration".to_owned()));
    }
    let config = ModelConfig::from_json(text.as_bytes()).map_err(|e| wrong("config", e.to_string()))?;
    let dtype: DType = entry("dtype")?.parse().map_err(|e: Error| wrong("dtype", e.to_string()))?;
    if dtype == DType::I8 && *entry("group")? != INT8_GROUP.to_string() {
        return Err(wrong(
            "group",
            format!("it is {:?}, and this program reads groups of {INT8_GROUP}", entry("group")?),
        ));
    }
    let source = serde_json::from_str(entry("source")?).map_err(|e| wrong("source", e.to_string()))?;
    let fingerprint = entry("fingerprint")?.clone();
    check_tensors(&config, dtype, &tensors)?;
    Ok(PackedHeader { config, dtype, fingerprint, source, tensors })
}

/// Exactly the tensors that the configuration asks for, each with its shape, type and alignment.
fn check_tensors(config: &ModelConfig, dtype: DType, tensors: &[HeaderTensor]) -> Result<(), PackedProblem> {
    let mut found: HashMap<&str, &HeaderTensor> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut take = |name: String, shape: Vec<usize>, dtype: DType| {
        let Some(expected) = dtype.stored_shape(&shape) else {
            return Err(PackedProblem::Shape { name, found: Vec::new(), expected: shape });
        };
        let Some(tensor) = found.remove(name.as_str()) else {
            return Err(PackedProblem::MissingTensor { name });
        };
        if tensor.shape != expected {
            return Err(PackedProblem::Shape { name, found: tensor.shape.clone(), expected });
        }
        let size = tensor.dtype.bitsize() / 8;
        if size != 0 && !tensor.range.start.is_multiple_of(size) {
            let offset = tensor.range.start as u64;
            return Err(PackedProblem::Damaged(Box::new(Error::TensorMisaligned { name, offset, size })));
        }
        Ok(tensor)
    };
    // First the packed ones: a file without them cannot make this loop long, whatever its configuration says.
    for (name, shape) in packed_layout(config) {
        let tensor = take(name, shape, dtype)?;
        if type_of(tensor.dtype) != Some(dtype) {
            return Err(PackedProblem::dtype(&tensor.name, tensor.dtype, dtype));
        }
    }
    let names = ModelNames::of(config, |name| tensors.iter().any(|t| t.name == name));
    for (name, shape) in rest_layout(config, &names) {
        let own = if dtype == DType::I8 && shape.len() > 1 { DType::I8 } else { DType::F32 };
        let tensor = take(name, shape, own)?;
        match type_of(tensor.dtype) {
            // What is not packed may have another type than the records, but for int8.
            Some(found) if (found == DType::I8) == (own == DType::I8) => {}
            _ if own == DType::I8 => return Err(PackedProblem::dtype(&tensor.name, tensor.dtype, own)),
            _ => {
                let (name, found) = (tensor.name.clone(), tensor.dtype.to_string());
                return Err(PackedProblem::Type { name, found, expected: "f32, f16 or bf16".to_owned() });
            }
        }
    }
    match found.into_keys().min() {
        Some(name) => Err(PackedProblem::UnknownTensor { name: name.to_owned() }),
        None => Ok(()),
    }
}

/// Shapes of the tensors of int8 rows of a file that was checked; none in files of other types.
pub(super) fn int8_shapes(config: &ModelConfig, dtype: DType, tensors: &[HeaderTensor]) -> HashMap<String, Vec<usize>> {
    if dtype != DType::I8 {
        return HashMap::new();
    }
    let names = ModelNames::of(config, |name| tensors.iter().any(|t| t.name == name));
    packed_layout(config).chain(rest_layout(config, &names)).filter(|(_, shape)| shape.len() > 1).collect()
}

/// The engine's name of a safetensors type.
fn type_of(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::I8 => Some(DType::I8),
        _ => None,
    }
}
