//! ShadowLLM: an LLM inference engine that reads and computes only what a token needs.
//!
//! Decoding a token is bound by the bytes of weights that are read for it. This library loads OPT and Llama-family
//! checkpoints as they are on disk, runs them with its own kernels, and is built so that a plan of attention heads and FFN
//! neurons can restrict what is read. See the guide in `docs/` for concepts and formats.
//!
//! ```
//! use shadowllm::{Engine, EngineOptions, SessionOptions};
//!
//! # fn main() -> shadowllm::Result<()> {
//! let engine = Engine::open("embedded", EngineOptions::default())?;
//! let mut session = engine.session(SessionOptions::default())?;
//! let logits = session.prefill(&[2, 50, 1266, 584, 262, 580])?;
//! println!("most likely next token: {}", shadowllm::kernels::argmax(logits));
//! # Ok(())
//! # }
//! ```
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`generate`] | engine, sessions, sampling, streaming, tokenizers, chat templates |
//! | [`gpu`] | decoding on a GPU, or on its emulator |
//! | [`eval`] | perplexity, log-likelihoods and tasks, dense or under a policy |
//! | [`learn`] | gradients of activations, criteria, samples, and the training of predictors |
//! | [`sparsity`] | budgets, plans and the policies that make them, predictors |
//! | [`model`] | configuration to layers, the forward pass, the key/value cache |
//! | [`kernels`] | CPU kernels, each for several instruction sets |
//! | [`tensor`] | the minimal tensor |
//! | [`weights`] | checkpoints: safetensors, GGUF, configurations, models by name |

#[cfg(feature = "cli")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;
mod error;
pub mod eval;
pub mod generate;
pub mod gpu;
pub mod kernels;
pub mod learn;
pub mod model;
pub mod sparsity;
pub mod tensor;

pub use error::{Error, Result};
pub use generate::{Engine, EngineOptions, Session, SessionOptions};
pub use shadowllm_weights as weights;
