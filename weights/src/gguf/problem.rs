//! Everything that can be wrong with a GGUF file, one variant each.
//!
//! A GGUF file comes from somewhere else and was made by some version of some converter. The message has to tell whoever
//! holds it whether the download broke, the file is not what it says, or it is fine and this import does not go that far.

use super::quants::{QuantType, supported_names};

/// Why a GGUF file could not be imported.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufProblem {
    /// The first four bytes are not "GGUF".
    #[error("not a GGUF file: it begins with bytes {found:02x?}, expected \"GGUF\"")]
    Magic {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// A version of the format that is not read.
    #[error("GGUF version {found}; versions 2 and 3 are read; convert the original model with a current converter")]
    Version {
        /// Version as written.
        found: u32,
    },
    /// The file was written for big-endian machines.
    #[error(
        "big-endian GGUF; only little-endian files are read; convert the original model for little-endian machines"
    )]
    BigEndian,
    /// The file ends too early.
    #[error(
        "the file ends inside {what}: {needed} bytes are needed and {available} are left; the download is probably incomplete"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Bytes it takes.
        needed: u64,
        /// Bytes left in the file.
        available: u64,
    },
    /// A count that no file of this size can satisfy.
    #[error("{what} is {found}, but the rest of the file has room for at most {limit}; the file is damaged")]
    Count {
        /// What is counted.
        what: String,
        /// Count as written.
        found: u64,
        /// The most that could be there.
        limit: u64,
    },
    /// A string is not UTF-8.
    #[error("{what} is not valid UTF-8; the file is damaged")]
    NotUtf8 {
        /// What was being read.
        what: String,
    },
    /// A metadata value has a type number that the format does not define.
    #[error("key {key:?} has value type {found}; the format defines 0 to 12; the file is damaged")]
    ValueType {
        /// The key.
        key: String,
        /// Type number.
        found: u32,
    },
    /// Arrays of arrays of arrays ...
    #[error("key {key:?} nests arrays deeper than {limit}; the file is damaged")]
    Nesting {
        /// The key.
        key: String,
        /// Deepest nesting that is read.
        limit: usize,
    },
    /// A metadata key occurs twice.
    #[error("key {key:?} occurs twice; which one counts is undefined")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A tensor name occurs twice.
    #[error("tensor {name:?} occurs twice; which one counts is undefined")]
    DuplicateTensor {
        /// The tensor.
        name: String,
    },
    /// The alignment is not a power of two.
    #[error("general.alignment is {found}; expected a power of two from 1 to 65536")]
    Alignment {
        /// Alignment as written.
        found: u32,
    },
    /// A tensor has no or too many dimensions.
    #[error("tensor {name:?} has {found} dimensions; expected 1 to 4")]
    Dimensions {
        /// The tensor.
        name: String,
        /// Number of dimensions.
        found: u32,
    },
    /// A tensor's size is beyond the address space.
    #[error("tensor {name:?} of shape {shape:?} is larger than any file; the file is damaged")]
    Shape {
        /// The tensor.
        name: String,
        /// Sizes, outermost first.
        shape: Vec<u64>,
    },
    /// A tensor type that this import does not dequantise.
    #[error(
        "tensor {name:?} has type {found}; supported are {}; quantise the model with one of these",
        supported_names()
    )]
    TensorType {
        /// The tensor.
        name: String,
        /// Type name, or its number if the format does not define it.
        found: String,
    },
    /// A row is not made of whole quantisation blocks.
    #[error("tensor {name:?} has rows of {row} values; {quant} stores blocks of {}", quant.block_len())]
    Blocks {
        /// The tensor.
        name: String,
        /// Row length.
        row: u64,
        /// Type.
        quant: QuantType,
    },
    /// A tensor's data does not start at a multiple of the alignment.
    #[error("tensor {name:?} starts at data offset {offset}, which is no multiple of the alignment {alignment}")]
    Misaligned {
        /// The tensor.
        name: String,
        /// Offset as written.
        offset: u64,
        /// Alignment of the file.
        alignment: u64,
    },
    /// A tensor's data lies outside the file.
    #[error(
        "tensor {name:?} ends at byte {end} of the data, which has {available}; the download is probably incomplete"
    )]
    OutOfBounds {
        /// The tensor.
        name: String,
        /// End of its data.
        end: u64,
        /// Bytes of data in the file.
        available: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap; the file is damaged")]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The one that starts inside it.
        second: String,
    },
    /// A metadata key that is needed is absent.
    #[error("key {key:?} is missing; convert the original model with a current converter")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata key has a value of the wrong type.
    #[error("key {key:?} is {found}; expected {expected}")]
    KeyType {
        /// The key.
        key: String,
        /// Type found.
        found: String,
        /// Type needed.
        expected: &'static str,
    },
    /// A metadata key has a value that makes no sense or that this import does not handle.
    #[error("key {key:?} is {found}; expected {expected}")]
    KeyValue {
        /// The key.
        key: String,
        /// Value found.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// An architecture that this import does not know.
    #[error("architecture {found:?}; llama and qwen2 can be imported")]
    Architecture {
        /// Architecture as written.
        found: String,
    },
    /// A feature of the model that has no equivalent here.
    #[error("{what}, which this import does not handle; use the model's original Hugging Face checkpoint")]
    Unsupported {
        /// The feature.
        what: String,
    },
    /// A tensor of the architecture is absent.
    #[error("tensor {name:?} is missing; the file is incomplete or part of a split model, which must be merged first")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor that the architecture does not have.
    #[error(
        "tensor {name:?} is not part of architecture {architecture}; leaving it out would give a different model, so nothing was imported"
    )]
    UnexpectedTensor {
        /// The tensor.
        name: String,
        /// The architecture.
        architecture: &'static str,
    },
    /// A tensor's shape contradicts the metadata.
    #[error("tensor {name:?} has shape {found:?}; the metadata asks for {expected:?}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// Shape found, outermost first.
        found: Vec<usize>,
        /// Shape expected, outermost first.
        expected: Vec<usize>,
    },
    /// A value is too large for the type asked for.
    #[error("tensor {name:?} holds {value}, which f16 cannot represent; import with --dtype bf16 or f32")]
    F16Overflow {
        /// The tensor.
        name: String,
        /// The value.
        value: f32,
    },
    /// A list of the tokenizer is not as long as the list of tokens.
    #[error("key {key:?} has {found} entries for {expected} tokens; expected one per token")]
    TokenList {
        /// The key.
        key: &'static str,
        /// Length found.
        found: usize,
        /// Number of tokens.
        expected: usize,
    },
    /// Tokens that the model has no embedding for.
    #[error("the tokenizer has {tokens} tokens, but token_embd.weight only {rows} rows")]
    TokensWithoutRow {
        /// Number of tokens.
        tokens: usize,
        /// Rows of the embedding table.
        rows: usize,
    },
    /// One text for two tokens.
    #[error("token {token:?} has the two ids {first} and {second}; a token stands for one id")]
    DuplicateToken {
        /// The token.
        token: String,
        /// Lower id.
        first: usize,
        /// Higher id.
        second: usize,
    },
    /// A merge rule is not two tokens separated by one space.
    #[error("merge {index} is {found:?}; expected two tokens separated by one space")]
    Merge {
        /// Place in the list.
        index: usize,
        /// The rule.
        found: String,
    },
    /// A merge rule uses or makes a token that does not exist.
    #[error("merge {index} ({rule:?}) needs token {token:?}, which the vocabulary does not have")]
    MergeToken {
        /// Place in the list.
        index: usize,
        /// The rule.
        rule: String,
        /// The missing token.
        token: String,
    },
    /// A special token's id lies outside the vocabulary.
    #[error("key {key:?} is {id}, but the vocabulary has {tokens} tokens")]
    TokenId {
        /// The key.
        key: &'static str,
        /// Id as written.
        id: u64,
        /// Number of tokens.
        tokens: usize,
    },
}

/// Result of reading a GGUF file that lies in memory.
pub type GgufResult<T> = std::result::Result<T, GgufProblem>;
