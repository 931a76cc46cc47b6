//! What can go wrong between text and tokens.
//!
//! Everything here is caused by input a user controls: an option, a tokenizer file, a template, a conversation. So each
//! message names what was found, what was expected and what to do next, and none of these is ever a panic.

/// Any failure of tokenization, sampling, stop strings or chat templates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A sampling option is outside the range in which it means something.
    #[error("{name} is {value}: expected {expected}")]
    SamplerOption {
        /// Name of the option, as in [`SamplerOptions`](super::SamplerOptions).
        name: &'static str,
        /// The value found.
        value: String,
        /// The values allowed, in words.
        expected: &'static str,
    },

    /// A logit is NaN or +infinity, so no distribution over tokens exists.
    #[error(
        "the logit of token {id} is {value}: the forward pass broke down, no token can be chosen; \
         check the checkpoint for NaN, infinite or wrongly converted weights"
    )]
    BadLogit {
        /// Token whose logit is broken.
        id: u32,
        /// `NaN` or `inf`.
        value: f32,
    },

    /// There is no token to choose from: no logits, or every one is -infinity.
    #[error("none of {count} logits is finite: no token can be chosen")]
    NoCandidate {
        /// Number of logits given.
        count: usize,
    },

    /// A token id is not below the vocabulary size.
    #[error("token id {id} is out of range: there are {vocab} logits, so ids go from 0 to {}", vocab.saturating_sub(1))]
    TokenOutOfRange {
        /// The id found.
        id: u32,
        /// Vocabulary size V.
        vocab: usize,
    },

    /// A stop string is empty: it would end every text before its first character.
    #[error("a stop string is empty: it would stop before the first character; leave it out instead")]
    EmptyStopString,

    /// A JSON side file of the checkpoint cannot be read.
    #[error("{file} is not valid JSON: {reason}; download the file again")]
    Json {
        /// File name inside the checkpoint.
        file: &'static str,
        /// The parser's message with line and column.
        reason: String,
    },

    /// A field of a JSON side file has the wrong type or value.
    #[error("{file}: field `{field}` is {found}, expected {expected}")]
    Field {
        /// File name inside the checkpoint.
        file: &'static str,
        /// Name of the field.
        field: String,
        /// The value found, shortened.
        found: String,
        /// What would be right, in words.
        expected: &'static str,
    },

    /// The tokenizer files are present but no tokenizer can be built from them.
    #[error("{file} is not a usable tokenizer: {reason}")]
    Tokenizer {
        /// File name inside the checkpoint.
        file: &'static str,
        /// Why not.
        reason: String,
    },

    /// The tokenizer turns tokens into text by a method this engine does not have.
    #[error(
        "tokenizer.json has the decoder {found}, which is not supported: expected ByteLevel, Metaspace or the \
         Replace, ByteFallback, Fuse, Strip sequence of OPT and Llama-family models; without the file the model works on token ids"
    )]
    UnsupportedDecoder {
        /// The decoder as it stands in the file.
        found: String,
    },

    /// The tokenizer belongs to another model: its vocabulary has ids that the model does not.
    #[error(
        "wrong tokenizer: it knows token id {id} ({token:?}), but the model's vocabulary has {vocab} entries \
         (ids 0 to {}); use the tokenizer that was published with the model", vocab.saturating_sub(1)
    )]
    WrongTokenizer {
        /// Largest id of the tokenizer's vocabulary.
        id: u32,
        /// Its text.
        token: String,
        /// The model's vocabulary size V.
        vocab: usize,
    },

    /// The tokenizer could not encode a text.
    #[error("the text cannot be tokenized: {reason}")]
    Encode {
        /// The tokenizer's message.
        reason: String,
    },

    /// The model has no chat template.
    #[error(
        "the model has no chat template: neither chat_template.jinja nor `chat_template` in tokenizer_config.json; \
         it is probably a base model: use `generate` with a plain prompt, or give a template file"
    )]
    NoChatTemplate,

    /// The model has several chat templates, none of which is the one asked for.
    #[error("there is no chat template named {name:?}: the model has {known}")]
    ChatTemplateName {
        /// The name looked for.
        name: String,
        /// The names that exist, comma-separated.
        known: String,
    },

    /// The chat template is malformed, or broke while rendering.
    #[error("chat template{}: {reason}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
    ChatTemplate {
        /// Line of the template, counted from 1, when known.
        line: Option<usize>,
        /// The template engine's message.
        reason: String,
    },

    /// The chat template refused the conversation (`raise_exception`), for example because of the order of roles.
    #[error("the model's chat template refuses this conversation: {message}")]
    ChatRefused {
        /// The template's own words.
        message: String,
    },
}
