//! Everything that can be wrong with a checkpoint, one variant each.

use std::path::PathBuf;

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a checkpoint could not be found, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb: "open", "map", "write".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Something is wrong inside one file; the source says what.
    #[error("{path}: {source}")]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: Box<Error>,
    },

    // Headers of safetensors files.
    /// A file too short to hold even the length of a safetensors header.
    #[error("{found} bytes are too few for a safetensors file; it is empty or cut off: download or copy it again")]
    HeaderMissing {
        /// Bytes of the file.
        found: u64,
    },
    /// A header length that no real file has: it is not a safetensors file.
    #[error(
        "header length of {declared} bytes, more than the {limit} that the format allows; this is not a safetensors file"
    )]
    HeaderTooLong {
        /// Length as declared.
        declared: u64,
        /// Longest allowed.
        limit: u64,
    },
    /// The file ends inside the header.
    #[error("header of {declared} bytes, but only {found} follow; the file is cut off: download or copy it again")]
    HeaderCut {
        /// Length as declared.
        declared: u64,
        /// Bytes behind the length.
        found: u64,
    },
    /// The header is not the JSON object that the format asks for.
    #[error("header is no valid safetensors header: {reason}")]
    HeaderSyntax {
        /// What the JSON reader says.
        reason: String,
    },
    /// A name that stands twice in one header.
    #[error("tensor {name:?} is listed twice; the file is damaged or hostile")]
    RepeatedTensor {
        /// The name.
        name: String,
    },
    /// A type that the safetensors format does not have.
    #[error("tensor {name:?} has type {dtype:?}, which is no safetensors type")]
    StrangeDType {
        /// The tensor.
        name: String,
        /// Its type as written.
        dtype: String,
    },
    /// A shape whose size in bytes does not fit in memory addresses.
    #[error("tensor {name:?} of shape {shape:?} is larger than any memory; the file is damaged or hostile")]
    ShapeOverflow {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// A tensor's place in the file is not as long as its shape and type.
    #[error(
        "tensor {name:?} ({dtype}, shape {shape:?}) needs {expected} bytes, but its offsets {start}..{end} hold {found}"
    )]
    TensorLength {
        /// The tensor.
        name: String,
        /// Type as written.
        dtype: String,
        /// Shape.
        shape: Vec<u64>,
        /// Bytes that shape and type ask for.
        expected: u64,
        /// First byte, counted from the end of the header.
        start: u64,
        /// Byte behind the last.
        end: u64,
        /// Bytes between.
        found: u64,
    },
    /// A tensor that ends before it begins.
    #[error("tensor {name:?} has offsets {start}..{end}, which end before they begin")]
    TensorReversed {
        /// The tensor.
        name: String,
        /// First byte, counted from the end of the header.
        start: u64,
        /// Byte behind the last.
        end: u64,
    },
    /// A tensor that reaches beyond the end of the file.
    #[error(
        "tensor {name:?} ends at byte {end} of the data, but the file has {found}; it is cut off: download or copy it again"
    )]
    TensorCut {
        /// The tensor.
        name: String,
        /// Byte behind its last, counted from the end of the header.
        end: u64,
        /// Bytes of data in the file.
        found: u64,
    },
    /// Two tensors that share bytes.
    #[error("tensors {first:?} and {second:?} overlap; the file is damaged or hostile")]
    TensorsOverlap {
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins inside it.
        second: String,
    },
    /// Bytes that belong to no tensor, which the format forbids.
    #[error("{bytes} bytes at {start} of the data belong to no tensor; the file is damaged or hostile")]
    UnusedBytes {
        /// First of them, counted from the end of the header.
        start: u64,
        /// How many.
        bytes: u64,
    },
    /// A tensor that does not begin at a multiple of its element size.
    #[error(
        "tensor {name:?} begins at byte {offset} of the file, which is no multiple of its element size {size}; \
         rewrite the file with a current safetensors library"
    )]
    TensorMisaligned {
        /// The tensor.
        name: String,
        /// First byte, counted from the start of the file.
        offset: u64,
        /// Element size in bytes.
        size: usize,
    },

    // Directories.
    /// A model path that is no directory.
    #[error("{path} is not a directory; expected a Hugging Face model directory with config.json and *.safetensors")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A model directory without `config.json`.
    #[error("{path} has no config.json; expected a Hugging Face model directory with config.json and *.safetensors")]
    NoConfig {
        /// The directory.
        path: PathBuf,
    },
    /// A model directory without weights that can be read.
    #[error("{path} has no model.safetensors and no model.safetensors.index.json; {hint}")]
    NoWeights {
        /// The directory.
        path: PathBuf,
        /// What is there instead and what to do with it.
        hint: String,
    },
    /// A directory, device or pipe where a file should be.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A JSON file far larger than any real one.
    #[error("{path} has {found} bytes; a file of this kind has at most {limit}")]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// Largest accepted.
        limit: u64,
    },
    /// `model.safetensors.index.json` is not what it should be.
    #[error("not a valid index of shards: {reason}")]
    IndexSyntax {
        /// What is wrong.
        reason: String,
    },
    /// An index that points outside its directory.
    #[error("tensor {tensor:?} is said to be in {shard:?}; a shard must be a plain file name in the same directory")]
    ShardName {
        /// The tensor.
        tensor: String,
        /// The shard as written.
        shard: String,
    },
    /// A shard that the index names but the directory does not have.
    #[error(
        "shard {shard:?} is missing (the index puts tensor {tensor:?} there); download it or copy it to the directory"
    )]
    MissingShard {
        /// The file name.
        shard: String,
        /// One tensor of it.
        tensor: String,
    },
    /// A tensor that the index puts in a shard that does not have it.
    #[error(
        "the index puts tensor {tensor:?} in shard {shard:?}, which has no such tensor; index and shards are of different models"
    )]
    NotInShard {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// A tensor that two shards have.
    #[error("tensor {tensor:?} is in shard {first:?} and in shard {second:?}; remove shards of other models")]
    InTwoShards {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: String,
        /// The other.
        second: String,
    },

    // Tensors as the engine asks for them.
    /// A tensor that the checkpoint does not have.
    #[error("{location} has no tensor {name:?}; {closest}")]
    MissingTensor {
        /// Where it was looked for.
        location: String,
        /// The name asked for.
        name: String,
        /// The most similar names, as a clause.
        closest: String,
    },
    /// A tensor of another shape than the configuration asks for.
    #[error(
        "tensor {name:?} has shape {found:?}, but the configuration asks for {expected:?}; config.json and weights are of different models"
    )]
    TensorShape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// Shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor of a type that the engine has no kernels for.
    #[error("tensor {name:?} has type {dtype}; supported are F32, F16 and BF16: convert the checkpoint to one of them")]
    UnsupportedTensor {
        /// The tensor.
        name: String,
        /// Its type as written.
        dtype: String,
    },
    /// The embedded model was asked of a build that has none.
    #[error("this build has no embedded model; rebuild with the feature `embedded-model`, or name a model directory")]
    NoEmbeddedModel,
    /// [`Progress::go_on`](crate::Progress::go_on) said no.
    #[error("interrupted")]
    Interrupted,
    /// A model was asked for by name of a build that cannot look names up.
    #[error("this build cannot find {name} by name; rebuild with the feature `hub`, or name a model directory")]
    NoHub {
        /// The name.
        name: String,
    },

    // Configurations.
    /// `config.json` is no JSON object.
    #[error("not a valid configuration: {reason}")]
    ConfigSyntax {
        /// What the JSON reader says.
        reason: String,
    },
    /// A key of `config.json` has a value that it cannot have.
    #[error("{key} is {found}; expected {expected}")]
    ConfigValue {
        /// The key.
        key: String,
        /// Its value as JSON.
        found: String,
        /// What would be valid.
        expected: String,
    },
    /// A key without a default is not there.
    #[error("{key} is missing; expected {expected}")]
    ConfigMissing {
        /// The key.
        key: String,
        /// What would be valid.
        expected: String,
    },
    /// Values of `config.json` that contradict each other or multiply to more than fits in memory addresses.
    #[error("impossible configuration: {reason}")]
    ConfigImpossible {
        /// What does not fit.
        reason: String,
    },
    /// An architecture that the engine does not have.
    #[error("model type {found} is not supported; supported are opt, llama, mistral and qwen2")]
    UnsupportedModel {
        /// As declared.
        found: String,
    },
    /// A feature of a supported architecture that the engine does not have.
    #[error("{feature} is not supported; {supported}")]
    UnsupportedFeature {
        /// Key and value.
        feature: String,
        /// What is supported, or what to do.
        supported: String,
    },

    /// A model cannot be had from the hub or its cache.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] crate::HubError),

    // Finding a model.
    /// A `--model` value that is neither a directory nor a Hugging Face name.
    #[error(
        "no model {given:?}: {reason}; expected \"embedded\", a model directory, or a Hugging Face name like facebook/opt-125m"
    )]
    NoSuchModel {
        /// The value.
        given: String,
        /// What was looked for.
        reason: String,
    },
    /// A number format that the engine has no kernels for.
    #[error("unknown dtype {found:?}; expected f32, f16, bf16 or int8")]
    UnknownDType {
        /// The name as given.
        found: String,
    },
    /// A weight that int8 cannot hold.
    #[error(
        "tensor {name:?} has the value {value} at index {at}, and int8 weights are finite numbers; mend the checkpoint"
    )]
    NotFinite {
        /// The tensor.
        name: String,
        /// Where.
        at: usize,
        /// The value.
        value: f32,
    },
    /// Weights that are quantised already.
    #[error("{location} has int8 weights already; quantise the model that it was made from")]
    AlreadyInt8 {
        /// The model.
        location: String,
    },
    /// An int8 checkpoint of another version of the format.
    #[error(
        "its int8 weights have format version {version} and groups of {group}, this program reads version {} and groups of {}; \
         make them again with `shadowllm import --dtype int8`",
        crate::quantize::VERSION,
        crate::INT8_GROUP
    )]
    Int8Version {
        /// Version as written.
        version: String,
        /// Size of a group as written.
        group: String,
    },
    /// A tensor of int8 rows of another shape than the configuration asks for.
    #[error(
        "tensor {name:?} of int8 rows has shape {found:?} in bytes, but the configuration asks for {expected:?}; make the \
         checkpoint again with `shadowllm import --dtype int8`"
    )]
    Int8Shape {
        /// The tensor.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor's bytes are not in its storage.
    #[error("tensor bytes {start}..{end} do not lie in a storage of {len} bytes")]
    TensorRange {
        /// First byte.
        start: usize,
        /// Byte behind the last.
        end: usize,
        /// Bytes of the storage.
        len: usize,
    },
    /// Rows that a tensor does not have.
    #[error("rows {start}..{end} do not lie in a tensor of shape {shape:?}")]
    RowRange {
        /// First row.
        start: usize,
        /// Row behind the last.
        end: usize,
        /// The tensor's shape.
        shape: Vec<usize>,
    },
    /// A tensor's bytes do not fit its shape and type.
    #[error("tensor of shape {shape:?} and type {dtype} needs {expected} bytes, but {found} were given")]
    TensorSize {
        /// Declared shape.
        shape: Vec<usize>,
        /// Declared type.
        dtype: crate::DType,
        /// Bytes that the shape and type ask for.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// A tensor's bytes do not start at a multiple of its element size.
    #[error(
        "tensor data starts at an address that is no multiple of {size} bytes; rewrite the file with a current safetensors library"
    )]
    Misaligned {
        /// Element size in bytes.
        size: usize,
    },

    // Writing files.
    /// A file could not be written; the temporary file was removed and what was at the path before is untouched.
    #[error("cannot write {path}: {source}; the whole file takes {needed} bytes; nothing was replaced")]
    Write {
        /// The file that was to be made.
        path: PathBuf,
        /// Bytes of the complete file.
        needed: u64,
        /// The operating system's reason, such as a full disk.
        source: std::io::Error,
    },
    /// A tensor was written that the file's header does not have.
    #[error(
        "tensor {name:?} was not declared when {path} was begun; declare every tensor of a file before the first write"
    )]
    UndeclaredTensor {
        /// The file that was to be made.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor was given more or fewer bytes than its header entry asks for.
    #[error("tensor {name:?} of {path} takes {expected} bytes, but was given {found}")]
    TensorBytes {
        /// The file that was to be made.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Bytes declared.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// One name for two tensors of a file.
    #[error("tensor {name:?} occurs twice in {path}; a name stands for one tensor")]
    DuplicateTensor {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },

    // Packed weights.
    /// A file of packed weights cannot be used or made.
    #[error("{path}: {problem}")]
    Packed {
        /// The file of packed weights.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        problem: crate::packed::PackedProblem,
    },
    /// A checkpoint whose layers cannot be packed, because a record needs one type.
    #[error(
        "tensor {first:?} is {first_type}, but {second:?} is {second_type}; the matrices of all layers must have one type to \
         be packed: convert the checkpoint to one"
    )]
    MixedTypes {
        /// A matrix.
        first: String,
        /// Its type.
        first_type: crate::DType,
        /// Another matrix.
        second: String,
        /// Its type.
        second_type: crate::DType,
    },
    /// The model's directory cannot be written, and no cache folder can be determined.
    #[error("no home directory to keep packed weights in; set SHADOWLLM_CACHE")]
    NoPackedCache,

    // GGUF import.
    /// A GGUF file is damaged, or something in it cannot be imported.
    #[error("cannot import {path}: {problem}")]
    Gguf {
        /// The GGUF file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        problem: crate::gguf::GgufProblem,
    },
    /// The directory to be made is there already.
    #[error("{path} exists and is not an empty directory; choose another name or remove it; nothing was changed")]
    OutputExists {
        /// The directory.
        path: PathBuf,
    },
}

impl Error {
    /// A failed operation on a file or directory.
    pub(crate) fn io(action: &'static str, path: &std::path::Path, source: std::io::Error) -> Self {
        Error::Io { action, path: path.to_owned(), source }
    }

    /// Says in which file it happened.
    pub(crate) fn in_file(self, path: &std::path::Path) -> Self {
        Error::InFile { path: path.to_owned(), source: Box::new(self) }
    }

    /// The error itself, without the name of the file it happened in.
    pub fn cause(&self) -> &Error {
        match self {
            Error::InFile { source, .. } => source.cause(),
            other => other,
        }
    }
}
