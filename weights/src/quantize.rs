//! Checkpoints of int8 weights: made from others, and recognised when they are read.
//!
//! A directory as any other, with a `model.safetensors` of our own kind, which its metadata says: `format` (`shadowllm-int8`),
//! `version`, `group`. Matrices are rows of int8 weights ([`int8_row`]) in tensors of type I8 whose last
//! dimension is the bytes of a row; vectors are f32. The width of a row in values is that of the configuration.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use safetensors::Dtype;

use crate::gguf::ImportReport;
use crate::header::{parse_safetensors_header, safetensors_metadata};
use crate::{
    Checkpoint, DType, Error, INT8_GROUP, ModelConfig, ModelNames, Progress, Result, SafetensorsWriter,
    StagedDirectory, TensorData, int8_row,
};

/// Metadata entry `format`.
const FORMAT: &str = "shadowllm-int8";
/// Version that is written and read.
pub(crate) const VERSION: &str = "1";
/// Values that are converted at a time.
const CHUNK: usize = 1 << 20;
/// What is copied beside the weights, where it is there.
const SIDE_FILES: [&str; 9] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];

/// The metadata of a file of int8 weights.
fn metadata() -> BTreeMap<String, String> {
    let entries = [("format", FORMAT.to_owned()), ("version", VERSION.to_owned()), ("group", INT8_GROUP.to_string())];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The metadata of the `model.safetensors` of a checkpoint of this type: what tells a reader that rows are int8, or else what Hugging
/// Face loaders want to know, which framework's layout it is.
pub fn checkpoint_metadata(dtype: DType) -> BTreeMap<String, String> {
    match dtype {
        DType::I8 => metadata(),
        _ => BTreeMap::from([("format".to_owned(), "pt".to_owned())]),
    }
}

/// Shapes of the tensors of int8 weights in `file`, a whole safetensors file of a model of this configuration; none if it says
/// that it is of another kind.
///
/// # Errors
/// Those of the header, and [`Error::Int8Version`].
pub(crate) fn int8_shapes(file: &[u8], config: &ModelConfig) -> Result<HashMap<String, Vec<usize>>> {
    let tensors = parse_safetensors_header(file)?;
    if tensors.iter().all(|tensor| tensor.dtype != Dtype::I8) {
        return Ok(HashMap::new());
    }
    let metadata = safetensors_metadata(file)?;
    let entry = |key: &str| metadata.get(key).cloned().unwrap_or_default();
    if entry("format") != FORMAT {
        return Ok(HashMap::new());
    }
    if entry("version") != VERSION || entry("group") != INT8_GROUP.to_string() {
        return Err(Error::Int8Version { version: entry("version"), group: entry("group") });
    }
    let found: HashSet<String> = tensors.into_iter().map(|tensor| tensor.name).collect();
    let specs = ModelNames::of(config, |name| found.contains(name)).stored(config, DType::I8);
    let int8 = specs.into_iter().filter(|spec| spec.dtype == DType::I8);
    Ok(int8.map(|spec| (spec.name, spec.shape)).collect())
}

/// Rounds the weights of `source` to int8 and writes them to the new directory `out_dir`, with its configuration and tokenizer.
///
/// Every row of a matrix is rounded by itself, to nearest, with a scale for 64 values. Norms and biases become f32, exactly.
/// `out_dir` must not exist or be empty; it has a temporary name until it is complete. Memory use is that of one matrix.
///
/// ```
/// # fn main() -> Result<(), shadowllm_weights::Error> {
/// # let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("embedded/tiny-opt");
/// # let out = tempfile::tempdir().unwrap();
/// # let target = out.path().join("tiny-int8");
/// use shadowllm_weights::{Checkpoint, DType, quantize};
/// quantize(&Checkpoint::open(&dir)?, &target, &())?;
/// let table = Checkpoint::open(&target)?.tensor("model.decoder.embed_tokens.weight")?.clone();
/// assert_eq!((table.dtype(), table.shape()), (DType::I8, &[4096, 256][..]));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::OutputExists`], [`Error::Write`] if the disk is full, [`Error::NotFinite`], [`Error::AlreadyInt8`],
/// [`Error::Interrupted`]; [`Error::MissingTensor`] and other errors of a checkpoint that is not what its configuration says.
pub fn quantize(source: &Checkpoint, out_dir: &Path, progress: &dyn Progress) -> Result<ImportReport> {
    let mut config = source.config().clone();
    config.check_writable()?;
    let names = ModelNames::of(&config, |name| source.get(name).is_some());
    let mut source_types = BTreeMap::new();
    let mut parameters = 0;
    for (name, shape) in names.layout(&config) {
        let tensor = source.tensor(&name)?;
        if tensor.dtype() == DType::I8 {
            return Err(Error::AlreadyInt8 { location: source.location() });
        }
        source.tensor_with_shape(&name, &shape)?;
        *source_types.entry(tensor.dtype().to_string()).or_insert(0) += 1;
        parameters += tensor.len() as u64;
    }
    config.dtype = Some(DType::I8);

    let staged = StagedDirectory::create(out_dir)?;
    let specs = names.stored(&config, DType::I8);
    let target = staged.path().join("model.safetensors");
    let write = || -> Result<u64> {
        let mut writer = SafetensorsWriter::create(&target, &specs, &metadata())?;
        let bytes = writer.file_len();
        progress.start("quantising", Some(specs.iter().filter_map(|s| s.byte_len()).map(|n| n as u64).sum()));
        let outputs: HashSet<String> = names.outputs().collect();
        for spec in &specs {
            let tensor = source.tensor(&spec.name)?;
            let mut encoder = Encoder::new(&spec.name, tensor.shape(), outputs.contains(&spec.name));
            let mut sink = |bytes: &[u8]| -> Result<()> {
                writer.append(&spec.name, bytes)?;
                progress.advance(bytes.len() as u64);
                if progress.go_on() { Ok(()) } else { Err(Error::Interrupted) }
            };
            for values in pieces(tensor)? {
                encoder.push(&values.to_f32(), &mut sink)?;
            }
            encoder.finish(&mut sink)?;
        }
        writer.finish()?;
        progress.finish();
        Ok(bytes)
    };
    let bytes = write().map_err(|error| staged.finally(error))?;
    staged.write("config.json", &config.to_json())?;
    for name in SIDE_FILES {
        if let Some(content) = source.side_file(name)? {
            staged.write(name, &content)?;
        }
    }
    staged.finish()?;
    Ok(ImportReport {
        directory: out_dir.to_owned(),
        architecture: config.architecture.name().to_owned(),
        dtype: DType::I8.name().to_owned(),
        tensors: specs.len(),
        parameters,
        source_types,
        bytes,
        tied: config.tied,
        tokens: None,
    })
}

/// A tensor in pieces that are not too large to be widened.
fn pieces(tensor: &TensorData) -> Result<Vec<TensorData>> {
    let rows = tensor.shape().first().copied().unwrap_or(0);
    let at_once = (CHUNK / (tensor.len() / rows.max(1)).max(1)).max(1);
    (0..rows).step_by(at_once).map(|start| tensor.slice_rows(start..rows.min(start + at_once))).collect()
}

/// Turns the values of one tensor, given in order and in pieces of any size, into the bytes of a checkpoint of int8 weights.
pub(crate) struct Encoder<'a> {
    name: &'a str,
    /// `[rows, cols]`, or the length of a vector.
    shape: &'a [usize],
    /// Whether columns become rows: then all values are awaited.
    transposed: bool,
    /// Values before `waiting`.
    seen: usize,
    waiting: Vec<f32>,
    bytes: Vec<u8>,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(name: &'a str, shape: &'a [usize], transposed: bool) -> Self {
        Encoder { name, shape, transposed, seen: 0, waiting: Vec::new(), bytes: Vec::new() }
    }

    /// Takes the next values and gives what is ready to `sink`.
    ///
    /// # Errors
    /// [`Error::NotFinite`], and whatever `sink` returns.
    pub(crate) fn push<E: From<Error>>(
        &mut self,
        values: &[f32],
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let &[_, cols] = self.shape else {
            return sink(bytemuck::cast_slice(values));
        };
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let (name, at, value) = (self.name.to_owned(), self.seen + self.waiting.len() + at, values[at]);
            return Err(Error::NotFinite { name, at, value }.into());
        }
        self.waiting.extend_from_slice(values);
        if self.transposed || cols == 0 {
            return Ok(());
        }
        let whole = self.waiting.len() / cols * cols;
        self.seen += whole;
        let rows: Vec<f32> = self.waiting.drain(..whole).collect();
        self.rows(&rows, cols, sink)
    }

    /// Gives what was awaited.
    ///
    /// # Errors
    /// Whatever `sink` returns.
    pub(crate) fn finish<E: From<Error>>(mut self, sink: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let (&[rows, cols], true) = (self.shape, self.transposed) else { return Ok(()) };
        let values = std::mem::take(&mut self.waiting);
        // As many columns at a time as are one cache line of the matrix, or a chunk.
        let at_once = (CHUNK / rows.max(1)).max(16);
        let mut block = Vec::new();
        for start in (0..cols).step_by(at_once) {
            let width = at_once.min(cols - start);
            block.clear();
            block.resize(width * rows, 0.0);
            for (r, row) in values.chunks_exact(cols).enumerate() {
                for (c, &value) in row[start..start + width].iter().enumerate() {
                    block[c * rows + r] = value;
                }
            }
            self.rows(&block, rows, sink)?;
        }
        Ok(())
    }

    /// Gives the bytes of whole rows.
    fn rows<E>(&mut self, values: &[f32], cols: usize, sink: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let row_bytes = DType::I8.row_bytes(cols);
        self.bytes.resize(values.len() / cols.max(1) * row_bytes, 0);
        for (values, row) in values.chunks_exact(cols.max(1)).zip(self.bytes.chunks_exact_mut(row_bytes.max(1))) {
            int8_row(values, row);
        }
        if self.bytes.is_empty() { Ok(()) } else { sink(&self.bytes) }
    }
}
