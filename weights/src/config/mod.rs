//! One description of a model for OPT and the whole Llama family.
//!
//! Hugging Face writes a different `config.json` for every architecture and has changed its style over time. The engine sees
//! only this normalised form: what to compute, with every default filled in.

use crate::DType;

/// Which family a checkpoint's tensor names and defaults come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// `OPTForCausalLM`.
    Opt,
    /// `LlamaForCausalLM`.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Qwen2ForCausalLM`.
    Qwen2,
}

/// Normalisation in front of (or behind) each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Mean and variance; with weight and bias if `affine`.
    LayerNorm {
        /// Whether weight and bias exist.
        affine: bool,
    },
    /// Root mean square, weight only.
    RmsNorm,
}

/// Where the norm stands relative to the residual addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// `x + f(norm(x))`.
    Pre,
    /// `norm(x + f(x))`, as in opt-350m.
    Post,
}

/// Non-linearity of the FFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x * Phi(x)` with the error function.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `x * sigmoid(x)`.
    Silu,
}

/// How a token's position enters the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Positions {
    /// A learned table added to the embedding; row `position + offset`.
    Learned {
        /// Rows in front of position 0 (OPT: 2).
        offset: usize,
    },
    /// Rotary embedding of queries and keys, Hugging Face's `rotate_half` order.
    Rope(Rope),
}

/// Parameters of the rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// Stretching for long contexts.
    pub scaling: RopeScaling,
}

/// Stretching of rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Divisor of the frequencies.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
        /// Wavelengths over `original_max_positions / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Wavelengths under `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Context length of the pre-training.
        original_max_positions: usize,
    },
}

/// Which linear layers have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// Query, key and value projections.
    pub qkv: bool,
    /// Output projection of the attention.
    pub out: bool,
    /// FFN matrices.
    pub ffn: bool,
}

/// Everything the engine needs to know of a model apart from its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// `L`.
    pub layers: usize,
    /// `H`, query heads.
    pub heads: usize,
    /// `H_kv`, key/value heads; divides `H`.
    pub kv_heads: usize,
    /// `d_h`.
    pub head_dim: usize,
    /// `d`.
    pub hidden: usize,
    /// `F`, FFN neurons.
    pub ffn: usize,
    /// `V`.
    pub vocab: usize,
    /// Longest context, in tokens.
    pub max_positions: usize,
    /// Width of the embedding table; differs from `d` only where OPT has `word_embed_proj_dim`.
    pub embed_dim: usize,
    /// Kind of norm.
    pub norm: NormKind,
    /// Epsilon of every norm.
    pub norm_eps: f32,
    /// Place of the block norms.
    pub norm_placement: NormPlacement,
    /// Whether a norm follows the last layer.
    pub final_norm: bool,
    /// FFN non-linearity.
    pub activation: Activation,
    /// Whether the FFN is `down(act(gate x) * up x)` rather than `fc2(act(fc1 x))`.
    pub gated: bool,
    /// Position information.
    pub positions: Positions,
    /// Sliding window of each layer, in tokens; length `L`.
    pub windows: Vec<Option<usize>>,
    /// Which biases exist.
    pub bias: Biases,
    /// Whether the LM head is the embedding table.
    pub tied: bool,
    /// Type as declared; the tensors' own types are what counts.
    pub dtype: Option<DType>,
    /// First token of a text, where the model has one.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// Padding token.
    pub pad: Option<u32>,
}
