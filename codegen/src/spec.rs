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

    const fn name(self) -> &'static str {
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

/// Shape and variant of one model on one GPU generation. Two equal specs give the same text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KernelSpec {
    /// Form of the layers.
    pub family: Family,
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
    /// Type of the weights.
    pub dtype: DType,
    /// Non-linearity of the FFN.
    pub activation: Activation,
    /// Norm of the residual stream.
    pub norm: Norm,
    /// Most heads that a plan may keep in a layer.
    pub max_kept_heads: usize,
    /// Most neurons that a plan may keep in a layer.
    pub max_kept_neurons: usize,
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
    /// A plan may keep more units than there are.
    BudgetTooLarge {
        /// The field.
        field: &'static str,
        /// Its value.
        found: usize,
        /// Units of the layer.
        units: usize,
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
            SpecError::BudgetTooLarge { field, found, units } => {
                write!(f, "{field} is {found}, but a layer has {units}")
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
    /// Checks that kernels exist for this shape.
    ///
    /// # Errors
    /// The first thing that is wrong, in the order of [`SpecError`].
    pub fn validate(&self) -> Result<(), SpecError> {
        let sizes = [
            ("layers", self.layers),
            ("hidden", self.hidden),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("ffn", self.ffn),
            ("vocab", self.vocab),
            ("max_kept_heads", self.max_kept_heads),
            ("max_kept_neurons", self.max_kept_neurons),
        ];
        if let Some((field, _)) = sizes.into_iter().find(|&(_, size)| size == 0) {
            return Err(SpecError::Zero { field });
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(SpecError::UnevenHeads { heads: self.heads, kv_heads: self.kv_heads });
        }
        let multiple = 16 / self.dtype.size();
        for (field, found) in [("hidden", self.hidden), ("head_dim", self.head_dim)] {
            if !found.is_multiple_of(multiple) {
                return Err(SpecError::RowNotAligned { field, found, multiple });
            }
        }
        for (field, found, units) in
            [("max_kept_heads", self.max_kept_heads, self.heads), ("max_kept_neurons", self.max_kept_neurons, self.ffn)]
        {
            if found > units {
                return Err(SpecError::BudgetTooLarge { field, found, units });
            }
        }
        Ok(())
    }

    /// Name that the kernels of this spec carry, so that a profile says what ran:
    /// `opt_l24_d2048_h32x64_kv32_f8192_v50272_bf16_sm80`.
    pub fn name(&self) -> String {
        let family = match self.family {
            Family::Opt => "opt",
            Family::Llama => "llama",
        };
        format!(
            "{family}_l{}_d{}_h{}x{}_kv{}_f{}_v{}_{}_sm{}",
            self.layers,
            self.hidden,
            self.heads,
            self.head_dim,
            self.kv_heads,
            self.ffn,
            self.vocab,
            self.dtype.name(),
            self.sm.version()
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn opt_1_3b() -> KernelSpec {
        KernelSpec {
            family: Family::Opt,
            layers: 24,
            hidden: 2048,
            heads: 32,
            kv_heads: 32,
            head_dim: 64,
            ffn: 8192,
            vocab: 50272,
            dtype: DType::BF16,
            activation: Activation::Relu,
            norm: Norm::LayerNorm,
            max_kept_heads: 32,
            max_kept_neurons: 8192,
            sm: Sm::new(80).unwrap(),
        }
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
            Case { change: |s| s.ffn = 0, message: "ffn is 0; every size must be at least 1" },
            Case { change: |s| s.kv_heads = 5, message: "32 query heads cannot share 5 key/value heads evenly" },
            Case {
                change: |s| s.hidden = 2052,
                message: "hidden is 2052, but rows are read 16 bytes at a time: it must be a multiple of 8",
            },
            Case {
                change: |s| (s.dtype, s.head_dim) = (DType::F32, 63),
                message: "head_dim is 63, but rows are read 16 bytes at a time: it must be a multiple of 4",
            },
            Case { change: |s| s.max_kept_heads = 33, message: "max_kept_heads is 33, but a layer has 32" },
            Case { change: |s| s.max_kept_neurons = 9000, message: "max_kept_neurons is 9000, but a layer has 8192" },
        ];
        for Case { change, message } in cases {
            let mut spec = opt_1_3b();
            change(&mut spec);
            assert_eq!(spec.validate().unwrap_err().to_string(), message);
        }
        assert_eq!(
            Sm::new(75).unwrap_err().to_string(),
            "no kernels for sm_75; supported are 80, 86, 89, 90, 100, 120"
        );
    }
}
