//! From text to tokens and back: tokenizers, sampling, stop strings, streaming and chat templates.
//!
//! A model maps token ids to logits and knows nothing of text. What a user sees, text that appears word by word, in the
//! style asked for, and ends where it should, is made here. Two layers: the parts that know nothing of the model, and take
//! `&[f32]` logits and `&[u32]` ids so that each is tested without one; and on top of them the engine, its sessions and the
//! completion that puts everything together.
//!
//! ```text
//! messages --ChatTemplate--> prompt --Tokenizer--> ids --(model)--> logits --Sampler--> id
//!                                                                                       |
//!                user <--text-- TextStream ( tokens to text, then StopMatcher ) <-------+
//! ```
//!
//! | file | idea |
//! | --- | --- |
//! | `engine` | [`Engine`]: a loaded model with its threads, shared by any number of sessions |
//! | `session` | [`Session`]: one sequence: its tokens, key/value cache and logits |
//! | `batch` | [`BatchStep`]: several sequences decoded together |
//! | `sparsity` | [`Sparsity`]: who chooses units for a session's tokens, and what was read |
//! | `completion` | [`Completion`]: sample, stream, stop, and how fast it was |
//! | `sampler_options`, `sampler` | [`SamplerOptions`], [`Sampler`]: the next token, by Hugging Face's rules and a fixed random stream |
//! | `logits` | [`greedy`], [`log_prob`], [`top_log_probs`]: reading logits without sorting the vocabulary |
//! | `stop` | [`StopTokens`], [`StopStrings`], [`StopMatcher`]: when a text ends |
//! | `defaults` | [`GenerationDefaults`]: the settings published with a model |
//! | `tokenizer`, `tokenizer_config`, `vocab_merges`, `tokenizer_checks` | `Tokenizer`: text to ids, from any of the layouts in which models are published |
//! | `detokenizer`, `stream` | `TextStream`: ids to text, never half a character, never part of a stop string |
//! | `chat`, `template` | `ChatTemplate`: a conversation as the prompt its model was trained on |
//! | `text_files` | `TextFiles`: what a checkpoint has of the last three |
//!
//! The last four rows need the feature `tokenizer`. Without it a session works on token ids.

mod batch;
mod completion;
mod defaults;
mod engine;
mod error;
mod logits;
mod sampler;
mod sampler_options;
mod session;
mod sparsity;
mod stop;

#[cfg(feature = "tokenizer")]
mod chat;
#[cfg(feature = "tokenizer")]
mod detokenizer;
#[cfg(feature = "tokenizer")]
mod stream;
#[cfg(feature = "tokenizer")]
mod template;
#[cfg(all(test, feature = "tokenizer"))]
mod test_tokenizers;
#[cfg(feature = "tokenizer")]
mod text_files;
#[cfg(feature = "tokenizer")]
mod tokenizer;
#[cfg(feature = "tokenizer")]
mod tokenizer_checks;
#[cfg(feature = "tokenizer")]
mod tokenizer_config;
#[cfg(feature = "tokenizer")]
mod vocab_merges;

pub use batch::BatchStep;
pub use completion::{Completion, CompletionOptions, Piece, StopReason, Timing};
pub use defaults::GenerationDefaults;
pub use engine::{Engine, EngineOptions};
pub use error::GenerateError;
pub use logits::{TokenLogProb, greedy, log_prob, top_log_probs};
pub use sampler::Sampler;
pub use sampler_options::SamplerOptions;
pub use session::{Session, SessionOptions};
pub use sparsity::{Prompts, Sparsity};
pub use stop::{StopMatcher, StopStrings, StopTokens};

#[cfg(feature = "tokenizer")]
pub use chat::{ChatMessage, ChatOptions, ChatTemplate};
#[cfg(feature = "tokenizer")]
pub use stream::TextStream;
#[cfg(feature = "tokenizer")]
pub use text_files::TextFiles;
#[cfg(feature = "tokenizer")]
pub use tokenizer::Tokenizer;
#[cfg(feature = "tokenizer")]
pub use tokenizer_config::TokenizerConfig;

/// A piece of user input for an error message: at most 120 characters of it.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
