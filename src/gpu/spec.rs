//! From a model, a predictor and a budget to what the emitter asks for.

use shadowllm_codegen as codegen;
use shadowllm_codegen::{Family, KernelSpec, Norm, PredictorSpec, Sizes, Sm, WeightFormat};
use shadowllm_weights::{Activation, DType, ModelConfig, NormKind, NormPlacement, Positions};

use super::GpuError;
use crate::Result;
use crate::model::{Model, SparseOptions};
use crate::sparsity::predictor::{self, HiddenActivation, Kind, Predictor, PredictorLayer, Wanted};
use crate::sparsity::{Budget, Scope, Units};

fn unsupported(reason: impl Into<String>) -> crate::Error {
    GpuError::Unsupported { reason: reason.into() }.into()
}

/// The same type in the emitter's words.
pub(super) fn dtype(dtype: DType) -> Result<codegen::DType> {
    match dtype {
        DType::F32 => Ok(codegen::DType::F32),
        DType::F16 => Ok(codegen::DType::F16),
        DType::BF16 => Ok(codegen::DType::BF16),
        DType::I8 => Err(unsupported(
            "there are no kernels for int8 weights; take the f16 or bf16 model that they were made from",
        )),
    }
}

fn family(c: &ModelConfig) -> Result<Family> {
    match (&c.positions, c.gated) {
        (Positions::Learned { .. }, false) => Ok(Family::Opt),
        (Positions::Rope(_), true) => Ok(Family::Llama),
        (Positions::Learned { .. }, true) => {
            Err(unsupported("there are no kernels for a gated FFN with learned positions"))
        }
        (Positions::Rope(_), false) => Err(unsupported("there are no kernels for a plain FFN with rotary positions")),
    }
}

/// What kernels of a model are emitted for, with room for `context` positions.
pub(super) fn kernel_spec(model: &Model, context: usize, kv_flush: usize, scope: Scope, sm: Sm) -> Result<KernelSpec> {
    let spec = spec_of(&model.config, one_type(model)?, context, sm)?;
    Ok(KernelSpec { kv_flush, scope: scope_of(scope), ..spec })
}

/// The same scope in the emitter's words.
fn scope_of(scope: Scope) -> codegen::Scope {
    match scope {
        Scope::Local => codegen::Scope::Local,
        Scope::Global => codegen::Scope::Global,
    }
}

/// What kernels of a model with this configuration and weights of this type are emitted for, with the engine's usual settings.
pub(super) fn spec_of(c: &ModelConfig, weights: DType, context: usize, sm: Sm) -> Result<KernelSpec> {
    let family = family(c)?;
    if c.norm_placement == NormPlacement::Post {
        return Err(unsupported("there are no kernels for norms behind the blocks (as in opt-350m)"));
    }
    if c.embed_dim != c.hidden {
        return Err(unsupported(format!(
            "there are no kernels for an embedding of width {} in a model of width {}",
            c.embed_dim, c.hidden
        )));
    }
    if !c.final_norm {
        return Err(unsupported("there are no kernels for a model without a norm in front of the LM head"));
    }
    let spec = KernelSpec {
        family,
        sizes: Sizes {
            layers: c.layers,
            hidden: c.hidden,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            ffn: c.ffn,
            vocab: c.vocab,
            context,
        },
        dtype: dtype(weights)?,
        // The CPU engine's, so that a cache may go from one to the other.
        cache: codegen::DType::F32,
        activation: match c.activation {
            Activation::Relu => codegen::Activation::Relu,
            Activation::Gelu => codegen::Activation::Gelu,
            Activation::GeluTanh => codegen::Activation::GeluTanh,
            Activation::Silu => codegen::Activation::Silu,
        },
        norm: match c.norm {
            NormKind::LayerNorm { .. } => Norm::LayerNorm,
            NormKind::RmsNorm => Norm::RmsNorm,
        },
        norm_eps: c.norm_eps,
        bias: codegen::Biases { qkv: c.bias.qkv, out: c.bias.out, ffn: c.bias.ffn },
        position_offset: match c.positions {
            Positions::Learned { offset } => offset,
            Positions::Rope(_) => 0,
        },
        kv_flush: SparseOptions::default().kv_flush,
        scope: codegen::Scope::Local,
        sm,
    };
    spec.validate().map_err(GpuError::from)?;
    Ok(spec)
}

/// The type of all matrices.
fn one_type(model: &Model) -> Result<DType> {
    let expected = model.embedding.dtype();
    let tables = [Some(&model.embedding), Some(&model.head), model.positions.as_ref()].into_iter().flatten();
    let layers = model.layers.iter().flat_map(|layer| {
        let a = &layer.attention;
        [&a.q, &a.k, &a.v, &a.out, layer.ffn.first(), layer.ffn.second()].map(|linear| linear.weight.stored())
    });
    match tables.chain(layers).map(|matrix| matrix.dtype()).find(|&found| found != expected) {
        Some(found) => {
            Err(unsupported(format!("its weights are of two types, {expected} and {found}, and kernels are for one")))
        }
        None => Ok(expected),
    }
}

/// Positions that each layer sees, 0 for all.
pub(super) fn windows(c: &ModelConfig) -> Vec<u32> {
    c.windows.iter().map(|window| window.map_or(0, |n| u32::try_from(n).unwrap_or(0))).collect()
}

/// A predictor that makes plans on the device, and the counts of its budget.
pub(super) struct Decision {
    pub(super) spec: PredictorSpec,
    /// `[heads of each layer, heads shared, neurons of each layer, neurons shared]`
    pub(super) budget: [u32; 4],
    pub(super) scope: Scope,
}

/// How a device decides as a policy with this predictor and budget does.
pub(super) fn decision(predictor: &Predictor, budget: &Budget) -> Result<Decision> {
    let (info, units) = (predictor.info(), predictor.units());
    let wanted = Wanted { heads: budget.heads < 1.0, neurons: budget.neurons < 1.0 };
    let counts: Vec<usize> = (0..info.stations.len()).map(|station| predictor.layers(station).len()).collect();
    // Of one layer a global budget is a local one.
    let scope = if counts.iter().all(|&layers| layers == 1) { Scope::Local } else { budget.scope };
    if scope == Scope::Global && counts.windows(2).any(|pair| pair[0] != pair[1]) {
        let what = format!("a global budget over stations of {counts:?} layers");
        return Err(GpuError::NotOnDevice { what, instead: "use --budget local" }.into());
    }
    let form = Form::of(predictor, wanted)?;
    let spec = PredictorSpec {
        stations: info.stations.clone(),
        input: match info.input {
            predictor::PredictorInput::Residual => codegen::PredictorInput::Residual,
            predictor::PredictorInput::Contexts => codegen::PredictorInput::Contexts,
        },
        normalization: match info.normalization {
            predictor::Normalization::None => codegen::Normalization::None,
            predictor::Normalization::MinMax => codegen::Normalization::MinMax,
            predictor::Normalization::Standardize => codegen::Normalization::Standardize,
        },
        relu: info.activation == HiddenActivation::Relu,
        format: form.format,
        bias: form.bias,
        heads: form.widths[0],
        neurons: form.widths[1],
        trunk: form.trunk,
    };
    let layers = counts.first().copied().unwrap_or(0);
    Ok(Decision { spec, budget: device_budget(&Budget { scope, ..*budget }, units, layers), scope })
}

/// A budget as the device reads it, counted over `layers` layers.
fn device_budget(budget: &Budget, units: Units, layers: usize) -> [u32; 4] {
    let [heads, neurons] = budget.allowances(units, layers);
    [heads.each, heads.shared, neurons.each, neurons.shared].map(|count| count as u32)
}

/// What all layers of a predictor have in common: kernels are emitted once for all of them.
#[derive(Clone, Debug, PartialEq)]
struct Form {
    format: WeightFormat,
    bias: bool,
    /// Hidden units for heads and for neurons.
    widths: [Option<usize>; 2],
    trunk: bool,
}

impl Form {
    fn of(predictor: &Predictor, wanted: Wanted) -> Result<Form> {
        let mut form: Option<Form> = None;
        let uneven = || unsupported("there are no kernels for a predictor whose layers differ in type, bias or width");
        for station in 0..predictor.info().stations.len() {
            let trunk = predictor.hidden(station, None);
            let width =
                |kind, wanted: bool| predictor.output(station, kind).filter(|_| wanted).map(|output| output.cols());
            let widths = [width(Kind::Heads, wanted.heads), width(Kind::Neurons, wanted.neurons)];
            let kinds = [(Kind::Heads, wanted.heads), (Kind::Neurons, wanted.neurons)];
            let layers = kinds
                .into_iter()
                .filter(|(_, wanted)| *wanted)
                .flat_map(|(kind, _)| [predictor.hidden(station, Some(kind)), predictor.output(station, kind)]);
            for layer in layers.flatten().chain(trunk) {
                let found =
                    Form { format: format(layer)?, bias: layer.bias().is_some(), widths, trunk: trunk.is_some() };
                if form.get_or_insert_with(|| found.clone()) != &found {
                    return Err(uneven());
                }
            }
        }
        form.ok_or_else(uneven)
    }
}

fn format(layer: &PredictorLayer) -> Result<WeightFormat> {
    match layer.float() {
        Some(matrix) => Ok(WeightFormat::Float(dtype(matrix.dtype())?)),
        None => Ok(WeightFormat::Int8),
    }
}
