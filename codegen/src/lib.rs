//! From a model's shape to CUDA source text.
//!
//! A GPU kernel for one model is simpler and faster than one for all models: with every size a literal, loops unroll, index
//! arithmetic folds, and shared memory is sized exactly. So the kernels are emitted per shape, at load time. This crate is
//! the pure part of that: text in, text out, no GPU and no I/O, and the same text for the same input.
//!
//! [`KernelSpec`] is its input, with [`PredictorSpec`] if plans are made on the device; [`Program`] its output: the text, the
//! memory that it needs, and the launches of one token and of a block of a prompt.
//!
//! ```
//! use shadowllm_codegen::{DType, KernelSpec, Program, Sizes, Sm};
//! let sizes = Sizes {
//!     layers: 12, hidden: 768, heads: 12, kv_heads: 12, head_dim: 64, ffn: 3072, vocab: 50272, context: 2048,
//! };
//! let program = Program::emit(&KernelSpec::opt(sizes, DType::F16, Sm::new(90)?), None, &[])?;
//! assert!(program.source().contains("ffn_d768_f3072_f16"));
//! assert_eq!(program.token.len(), 1 + 12 * 5 + 1);
//! # Ok::<(), shadowllm_codegen::SpecError>(())
//! ```

mod attention;
mod embed;
mod ffn;
mod geometry;
mod head;
mod kernel;
mod norm;
mod output;
mod predictor;
mod prelude;
pub mod program;
mod prompt;
mod qkv;
mod reduce;
pub mod report;
mod select;
mod spec;
mod template;

pub use head::{STATUS_BAD_LOGIT, STATUS_BAD_SCORE};
pub use kernel::{Access, Counts, Element, Kernel, Param, ParamKind, Traffic};
pub use predictor::{Kind, Normalization, PredictorInput, PredictorSpec, WeightFormat};
pub use program::{Arg, Buffer, Launch, NormSite, Part, Program, Role, Tensor};
pub use prompt::TOKENS as PROMPT_TOKENS;
pub use spec::{Activation, Biases, DType, Family, KernelSpec, Norm, Scope, Sizes, Sm, SpecError};
