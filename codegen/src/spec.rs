//! Everything that emitted text depends on.

use std::fmt;

/// Form of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Learned positions, biases, FFN `fc2(act(fc1 x))`.
    Opt,
    /// Rotary positions, FFN `down(act(gate x) * up x)`.
    Llama,
}

impl Family {
    /// Name in names.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Opt => "opt",
            Family::Llama => "llama",
        }
    }

    /// Whether the FFN is gated and positions are rotations.
    pub(crate) const fn is_llama(self) -> bool {
        matches!(self, Family::Llama)
    }
}

/// Element type of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// binary32; for tests.
    F32,
    /// binary16.
    F16,
    /// bfloat16.
    BF16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// Elements in 16 bytes, the width of every load of weights.
    pub const fn vector(self) -> usize {
        16 / self.size()
    }

    /// Name in text and in names of kernels.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
        }
    }
}

/// Non-linearity of the FFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// GELU with the error function.
    Gelu,
    /// The tanh form of GELU.
    GeluTanh,
    /// `x * sigmoid(x)`.
    Silu,
}

/// Normalisation of the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Norm {
    /// Mean and variance.
    LayerNorm,
    /// Root mean square.
    RmsNorm,
}

/// Streaming-multiprocessor version, as in `sm_80`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sm(u32);

impl Sm {
    /// Versions that text is emitted for: Ampere, Ada, Hopper, Blackwell.
    pub const SUPPORTED: [Sm; 6] = [Sm(80), Sm(86), Sm(89), Sm(90), Sm(100), Sm(120)];

    /// A supported version.
    ///
    /// # Errors
    /// [`SpecError::UnsupportedSm`] for any other.
    pub fn new(version: u32) -> Result<Sm, SpecError> {
        let sm = Sm(version);
        if Sm::SUPPORTED.contains(&sm) { Ok(sm) } else { Err(SpecError::UnsupportedSm { found: version }) }
    }

    /// The version whose code a GPU runs best: code runs on all later ones of its generation. `None` if there is none.
    pub fn of_device(version: u32) -> Option<Sm> {
        let fits = |sm: &Sm| sm.version() / 10 == version / 10 && sm.version() <= version;
        Sm::SUPPORTED.into_iter().filter(fits).max()
    }

    /// The number: 80 for `sm_80`.
    pub const fn version(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Sm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.0)
    }
}

/// Over which units a budget is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The same count in every layer.
    Local,
    /// Every layer keeps a few, and the rest goes to the best of all layers together.
    Global,
}

/// Which biases a model has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Biases {
    /// Query, key and value projections.
    pub qkv: bool,
    /// Output projection of the attention.
    pub out: bool,
    /// FFN matrices.
    pub ffn: bool,
}

/// The sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// `L`.
    pub layers: usize,
    /// `d`.
    pub hidden: usize,
    /// `H`.
    pub heads: usize,
    /// `H_kv`.
    pub kv_heads: usize,
    /// `d_h`.
    pub head_dim: usize,
    /// `F`.
    pub ffn: usize,
    /// `V`.
    pub vocab: usize,
    /// Positions that the key/value cache has room for.
    pub context: usize,
}

/// Shape and variant of one model on one GPU generation. Two equal specs give the same text.
///
/// Norms stand in front of the blocks, and the embedding is as wide as the model: the one published model of which neither is true
/// (OPT-350M) runs on the CPU engine.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelSpec {
    /// Form of the layers.
    pub family: Family,
    /// The model's sizes.
    pub sizes: Sizes,
    /// Type of the weights.
    pub dtype: DType,
    /// Type of the key/value cache. The CPU engine's is `f32`, so that is what agrees with it; the others halve its bytes.
    pub cache: DType,
    /// Non-linearity of the FFN.
    pub activation: Activation,
    /// Norm of the residual stream.
    pub norm: Norm,
    /// Added to the variance or the mean square.
    pub norm_eps: f32,
    /// Which biases there are.
    pub bias: Biases,
    /// Row of the table of learned positions that belongs to position 0 (OPT: 2).
    pub position_offset: usize,
    /// Positions after which the keys and values of all heads are made, kept or not.
    pub kv_flush: usize,
    /// Over which units the budget is counted.
    pub scope: Scope,
    /// GPU generation.
    pub sm: Sm,
}

/// Why no kernels can be emitted for a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpecError {
    /// A size is zero.
    Zero {
        /// The field.
        field: &'static str,
    },
    /// Query heads are not shared evenly by the key/value heads.
    UnevenHeads {
        /// `H`.
        heads: usize,
        /// `H_kv`.
        kv_heads: usize,
    },
    /// Weight rows cannot be read 16 bytes at a time.
    RowNotAligned {
        /// The size that is the length of a row.
        field: &'static str,
        /// Its value.
        found: usize,
        /// Elements in 16 bytes.
        multiple: usize,
    },
    /// More than the kernels are made for.
    TooMany {
        /// The field.
        field: &'static str,
        /// Its value.
        found: usize,
        /// The most that it may be.
        most: usize,
    },
    /// Stations of a predictor that cannot be.
    Stations {
        /// As given.
        found: Vec<usize>,
        /// `L`.
        layers: usize,
    },
    /// One hidden layer of two widths.
    Trunk {
        /// Hidden units for heads.
        heads: Option<usize>,
        /// Hidden units for neurons.
        neurons: Option<usize>,
    },
    /// A GPU generation without kernels.
    UnsupportedSm {
        /// As asked for.
        found: u32,
    },
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpecError::Zero { field } => write!(f, "{field} is 0; every size must be at least 1"),
            SpecError::UnevenHeads { heads, kv_heads } => {
                write!(f, "{heads} query heads cannot share {kv_heads} key/value heads evenly")
            }
            SpecError::RowNotAligned { field, found, multiple } => {
                write!(
                    f,
                    "{field} is {found}, but rows are read 16 bytes at a time: it must be a multiple of {multiple}"
                )
            }
            SpecError::TooMany { field, found, most } => {
                write!(f, "{field} is {found}, but the CUDA kernels are made for at most {most}; use the CPU engine")
            }
            SpecError::Stations { found, layers } => {
                write!(f, "the predictor has stations {found:?}; expected ascending layers from 0 on, below {layers}")
            }
            SpecError::Trunk { heads, neurons } => {
                let width = |units: &Option<usize>| units.map_or("none".to_owned(), |n| n.to_string());
                write!(
                    f,
                    "the hidden layer that heads and neurons share has {} units for heads and {} for neurons",
                    width(heads),
                    width(neurons)
                )
            }
            SpecError::UnsupportedSm { found } => {
                let known: Vec<_> = Sm::SUPPORTED.iter().map(|sm| sm.version().to_string()).collect();
                write!(f, "no kernels for sm_{found}; supported are {}", known.join(", "))
            }
        }
    }
}

impl std::error::Error for SpecError {}

impl KernelSpec {
    /// An OPT model as published: ReLU, layer norms, biases everywhere, learned positions.
    pub fn opt(sizes: Sizes, dtype: DType, sm: Sm) -> KernelSpec {
        KernelSpec {
            family: Family::Opt,
            sizes,
            dtype,
            cache: DType::F32,
            activation: Activation::Relu,
            norm: Norm::LayerNorm,
            norm_eps: 1e-5,
            bias: Biases { qkv: true, out: true, ffn: true },
            position_offset: 2,
            kv_flush: 64,
            scope: Scope::Local,
            sm,
        }
    }

    /// A Llama model as published: gated SiLU, RMS norms, no biases, rotary positions.
    pub fn llama(sizes: Sizes, dtype: DType, sm: Sm) -> KernelSpec {
        KernelSpec {
            family: Family::Llama,
            activation: Activation::Silu,
            norm: Norm::RmsNorm,
            bias: Biases::default(),
            position_offset: 0,
            ..KernelSpec::opt(sizes, dtype, sm)
        }
    }

    /// Checks that kernels exist for this shape.
    ///
    /// # Errors
    /// The first thing that is wrong, in the order of [`SpecError`].
    pub fn validate(&self) -> Result<(), SpecError> {
        let s = &self.sizes;
        let sizes = [
            ("layers", s.layers),
            ("hidden", s.hidden),
            ("heads", s.heads),
            ("kv_heads", s.kv_heads),
            ("head_dim", s.head_dim),
            ("ffn", s.ffn),
            ("vocab", s.vocab),
            ("context", s.context),
            ("kv_flush", self.kv_flush),
        ];
        if let Some((field, _)) = sizes.into_iter().find(|&(_, size)| size == 0) {
            return Err(SpecError::Zero { field });
        }
        if !s.heads.is_multiple_of(s.kv_heads) {
            return Err(SpecError::UnevenHeads { heads: s.heads, kv_heads: s.kv_heads });
        }
        for (field, found, multiple) in
            [("hidden", s.hidden, self.dtype.vector()), ("head_dim", s.head_dim, self.cache.vector())]
        {
            if !found.is_multiple_of(multiple) {
                return Err(SpecError::RowNotAligned { field, found, multiple });
            }
        }
        for (field, found, most) in [
            ("hidden", s.hidden, MOST_HIDDEN),
            ("heads", s.heads, MOST_HEADS),
            ("head_dim", s.head_dim, MOST_HEAD_DIM),
            ("ffn", s.ffn, MOST_NEURONS),
        ] {
            if found > most {
                return Err(SpecError::TooMany { field, found, most });
            }
        }
        Ok(())
    }

    /// Name of this spec, so that a profile or a cached file says what it is of:
    /// `opt_l24_d2048_h32x64_kv32_f8192_v50272_bf16_sm80`.
    pub fn name(&self) -> String {
        let s = &self.sizes;
        format!(
            "{}_l{}_d{}_h{}x{}_kv{}_f{}_v{}_{}_sm{}",
            self.family.name(),
            s.layers,
            s.hidden,
            s.heads,
            s.head_dim,
            s.kv_heads,
            s.ffn,
            s.vocab,
            self.dtype.name(),
            self.sm.version()
        )
    }
}

/// Values of the residual stream that a block keeps in shared memory.
const MOST_HIDDEN: usize = 12_288;
/// Heads of a layer that one block ranks.
const MOST_HEADS: usize = 1024;
/// Values of a head that the lanes of a warp keep in registers.
const MOST_HEAD_DIM: usize = 256;
/// Neurons of a layer whose keys a block of 1024 threads keeps in registers while it ranks them.
const MOST_NEURONS: usize = 36_864;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn opt_1_3b() -> KernelSpec {
        let sizes = Sizes {
            layers: 24,
            hidden: 2048,
            heads: 32,
            kv_heads: 32,
            head_dim: 64,
            ffn: 8192,
            vocab: 50272,
            context: 2048,
        };
        KernelSpec::opt(sizes, DType::BF16, Sm::new(80).unwrap())
    }

    #[test]
    fn the_name_carries_the_shape() {
        assert_eq!(opt_1_3b().validate(), Ok(()));
        assert_eq!(opt_1_3b().name(), "opt_l24_d2048_h32x64_kv32_f8192_v50272_bf16_sm80");
    }

    #[test]
    fn every_error_says_what_was_found_and_expected() {
        struct Case {
            change: fn(&mut KernelSpec),
            message: &'static str,
        }
        let cases = [
            Case { change: |s| s.sizes.ffn = 0, message: "ffn is 0; every size must be at least 1" },
            Case { change: |s| s.kv_flush = 0, message: "kv_flush is 0; every size must be at least 1" },
            Case { change: |s| s.sizes.kv_heads = 5, message: "32 query heads cannot share 5 key/value heads evenly" },
            Case {
                change: |s| s.sizes.hidden = 2052,
                message: "hidden is 2052, but rows are read 16 bytes at a time: it must be a multiple of 8",
            },
            Case {
                change: |s| s.sizes.head_dim = 63,
                message: "head_dim is 63, but rows are read 16 bytes at a time: it must be a multiple of 4",
            },
            Case {
                change: |s| s.sizes.hidden = 16384,
                message: "hidden is 16384, but the CUDA kernels are made for at most 12288; use the CPU engine",
            },
            Case {
                change: |s| s.sizes.ffn = 70_000,
                message: "ffn is 70000, but the CUDA kernels are made for at most 36864; use the CPU engine",
            },
        ];
        for Case { change, message } in cases {
            let mut spec = opt_1_3b();
            change(&mut spec);
            assert_eq!(spec.validate().unwrap_err().to_string(), message);
        }
        let of_device = |version| Sm::of_device(version).map(Sm::version);
        assert_eq!(
            [75, 80, 87, 90, 103, 121].map(of_device),
            [None, Some(80), Some(86), Some(90), Some(100), Some(120)]
        );
        assert_eq!(
            Sm::new(75).unwrap_err().to_string(),
            "no kernels for sm_75; supported are 80, 86, 89, 90, 100, 120"
        );
    }
}
