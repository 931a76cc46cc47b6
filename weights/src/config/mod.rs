//! One description of a model for OPT and the whole Llama family.
//!
//! Hugging Face writes a different `config.json` for every architecture and has changed its style over time. The engine sees
//! only this normalised form: what to compute, with every default filled in.

mod fields;
mod generation;
mod limits;
mod llama;
mod opt;
mod rope;
mod write;

use crate::{DType, Error, Result};
use fields::Fields;

pub(crate) use generation::GenerationDefaults;

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

impl Architecture {
    /// `model_type` in `config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::Opt => "opt",
            Architecture::Llama => "llama",
            Architecture::Mistral => "mistral",
            Architecture::Qwen2 => "qwen2",
        }
    }

    /// First of `architectures` in `config.json`.
    pub const fn class_name(self) -> &'static str {
        match self {
            Architecture::Opt => "OPTForCausalLM",
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Mistral => "MistralForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
        }
    }

    const ALL: [Architecture; 4] = [Architecture::Opt, Architecture::Llama, Architecture::Mistral, Architecture::Qwen2];

    /// By `model_type`, or by `architectures` where an old file has no `model_type`.
    fn of(fields: &Fields) -> Result<Self> {
        if let Some(found) = fields.text("model_type")? {
            return Self::ALL
                .into_iter()
                .find(|a| a.name() == found)
                .ok_or_else(|| Error::UnsupportedModel { found: format!("{found:?}") });
        }
        let classes = fields.texts("architectures")?.unwrap_or_default();
        // Also the class without the LM head, as some old OPT files say `OPTModel`.
        let base = |class: &str| class.trim_end_matches("ForCausalLM").trim_end_matches("Model").to_owned();
        Self::ALL.into_iter().find(|a| classes.iter().any(|class| base(class) == base(a.class_name()))).ok_or_else(
            || Error::UnsupportedModel {
                found: if classes.is_empty() {
                    "(config.json has neither model_type nor architectures)".to_owned()
                } else {
                    format!("{:?}", classes.join(", "))
                },
            },
        )
    }
}

impl Activation {
    /// By the name that transformers uses.
    fn of(key: &str, name: &str) -> Result<Self> {
        match name {
            "relu" => Ok(Activation::Relu),
            "gelu" | "gelu_python" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_accurate" | "gelu_python_tanh" => {
                Ok(Activation::GeluTanh)
            }
            "silu" | "swish" => Ok(Activation::Silu),
            other => Err(Error::UnsupportedFeature {
                feature: format!("{key} {other:?}"),
                supported: "supported are relu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, silu and swish"
                    .to_owned(),
            }),
        }
    }

    /// Name in `config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Activation::Relu => "relu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_pytorch_tanh",
            Activation::Silu => "silu",
        }
    }
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

impl ModelConfig {
    /// Reads a `config.json`, in the style of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) or 5
    /// (`rope_parameters`, `dtype`). Missing keys take the defaults of the family's configuration class.
    ///
    /// # Errors
    /// One of the variants under "Configurations" of [`Error`]: not JSON, a value that cannot be, a family or a feature that the
    /// engine does not have, sizes that contradict each other or overflow.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let fields = Fields::parse(bytes)?;
        let architecture = Architecture::of(&fields)?;
        if let Some(quantization) = fields.object("quantization_config")? {
            let method = quantization.text("quant_method")?.unwrap_or_else(|| "of unknown method".to_owned());
            return Err(Error::UnsupportedFeature {
                feature: format!("quantization_config ({method})"),
                supported: "use the checkpoint in f32, f16 or bf16, or import a GGUF file of the model".to_owned(),
            });
        }
        let mut config = match architecture {
            Architecture::Opt => opt::read(&fields)?,
            Architecture::Llama | Architecture::Mistral | Architecture::Qwen2 => llama::read(&fields, architecture)?,
        };
        limits::check(&mut config)?;
        Ok(config)
    }

    /// Without what does not change any logit: special tokens and the declared type.
    pub(crate) fn structure(&self) -> Self {
        ModelConfig { dtype: None, bos: None, eos: Vec::new(), pad: None, ..self.clone() }
    }

    /// Writes a `config.json` in the style of transformers 4, which transformers 5 reads too; `from_json` gives the same
    /// configuration back.
    pub fn to_json(&self) -> Vec<u8> {
        write::to_json(self)
    }

    /// Whether [`ModelConfig::to_json`] says all that counts.
    ///
    /// # Errors
    /// [`Error::ConfigImpossible`].
    pub(crate) fn check_writable(&self) -> Result<()> {
        let again = ModelConfig::from_json(&self.to_json())?;
        if again.structure() == self.structure() {
            return Ok(());
        }
        let reason = format!("no config.json of type {} can say what this one says", self.architecture.name());
        Err(Error::ConfigImpossible { reason })
    }
}
