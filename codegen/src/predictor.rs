//! The predictor: `y = W2 act(W1 norm(x) + b1) + b2`.
//!
//! Two kernels for a hidden layer and an output layer, each for heads and neurons beside each other. Each normalises (and for 8-bit weights rounds) its own input in every block, for the same reason as the
//! model's norms. Rows of the output layer are short, so lanes share a warp by rows: the smallest power of two of lanes that has
//! a lane for every vector of a row takes one row, and each lane has four rows in flight.
//!
//! 8-bit weights are multiplied as the CPU engine does, bit for bit: inputs are rounded to 16-bit integers with the largest at 32767,
//! 512 products at a time are summed exactly, and these sums are added as `f32` in order.
//!
//! Rows are padded with zeros to 16 bytes when they are uploaded.

use crate::kernel::{Access, Draft, Element, Kernel, Param, Traffic};
use crate::template::{fill, round_up};
use crate::{DType, KernelSpec, SpecError};

/// Number format of a predictor's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// A floating-point type.
    Float(DType),
    /// 8-bit integers with a scale per row.
    Int8,
}

/// What a predictor reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PredictorInput {
    /// The residual stream after the station's layer, `[d]`.
    Residual,
    /// The contexts of the station's layer, `[H * d_h]`.
    Contexts,
}

/// What is done to the input first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Normalization {
    /// Nothing.
    None,
    /// `(x - min) / (max - min)` over the vector; zeros if all are equal.
    MinMax,
    /// `(x[i] - mean[i]) * scale[i]`.
    Standardize,
}

/// Form of a predictor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PredictorSpec {
    /// Layers after which it reads, ascending. Station `s` predicts the layers up to and including that of station `s + 1`.
    pub stations: Vec<usize>,
    /// What it reads.
    pub input: PredictorInput,
    /// How that is normalised.
    pub normalization: Normalization,
    /// Whether the hidden layer ends in a ReLU.
    pub relu: bool,
    /// Format of all weights.
    pub format: WeightFormat,
    /// Whether rows have biases.
    pub bias: bool,
    /// Hidden units that rank heads; `None`: all heads are kept.
    pub heads: Option<usize>,
    /// Hidden units that rank neurons; `None`: all neurons are kept.
    pub neurons: Option<usize>,
    /// Whether heads and neurons share one hidden layer; their hidden units are then the same.
    pub trunk: bool,
}

/// The units that a network ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Attention heads.
    Heads,
    /// FFN neurons.
    Neurons,
}

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Heads, Kind::Neurons];

    /// Name in names.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Heads => "heads",
            Kind::Neurons => "neurons",
        }
    }
}

impl WeightFormat {
    /// Values in 16 bytes.
    pub const fn vector(self) -> usize {
        match self {
            WeightFormat::Float(dtype) => dtype.vector(),
            WeightFormat::Int8 => 16,
        }
    }

    /// Bytes of a row of `n` weights, padded to 16 bytes.
    pub const fn row_bytes(self, n: usize) -> usize {
        16 * n.div_ceil(self.vector())
    }

    const fn name(self) -> &'static str {
        match self {
            WeightFormat::Float(dtype) => dtype.name(),
            WeightFormat::Int8 => "i8",
        }
    }
}

impl PredictorSpec {
    /// Inputs of the first layer.
    pub fn inputs(&self, spec: &KernelSpec) -> usize {
        match self.input {
            PredictorInput::Residual => spec.sizes.hidden,
            PredictorInput::Contexts => spec.sizes.heads * spec.sizes.head_dim,
        }
    }

    /// Hidden units that rank a kind.
    pub fn width(&self, kind: Kind) -> Option<usize> {
        match kind {
            Kind::Heads => self.heads,
            Kind::Neurons => self.neurons,
        }
    }

    /// Units of a kind's hidden layer, or of the trunk.
    pub(crate) fn hidden_width(&self, kind: Option<Kind>) -> usize {
        let width = kind.map_or(self.heads.or(self.neurons), |kind| self.width(kind));
        width.unwrap_or(0)
    }

    /// Layers that station `station` predicts.
    pub fn layers(&self, spec: &KernelSpec, station: usize) -> std::ops::Range<usize> {
        let end = self.stations.get(station + 1).map_or(spec.sizes.layers, |next| next + 1);
        self.stations.get(station).map_or(0..0, |first| first + 1..end.max(first + 1))
    }

    /// Checks that kernels exist for this predictor.
    ///
    /// # Errors
    /// [`SpecError::Stations`], [`SpecError::Zero`], [`SpecError::TooMany`], [`SpecError::Trunk`].
    pub fn validate(&self, spec: &KernelSpec) -> Result<(), SpecError> {
        let ascending = self.stations.windows(2).all(|pair| pair[0] < pair[1]);
        if self.stations.first() != Some(&0) || !ascending || self.stations.last() >= Some(&spec.sizes.layers) {
            return Err(SpecError::Stations { found: self.stations.clone(), layers: spec.sizes.layers });
        }
        for (field, width) in [("hidden units for heads", self.heads), ("hidden units for neurons", self.neurons)] {
            match width {
                Some(0) => return Err(SpecError::Zero { field }),
                Some(found) if found > MOST_WIDTH => {
                    return Err(SpecError::TooMany { field, found, most: MOST_WIDTH });
                }
                _ => {}
            }
        }
        if self.trunk && self.heads.is_some() && self.neurons.is_some() && self.heads != self.neurons {
            return Err(SpecError::Trunk { heads: self.heads, neurons: self.neurons });
        }
        Ok(())
    }
}

/// Hidden units that a block keeps in shared memory.
const MOST_WIDTH: usize = 8192;
const THREADS: usize = 256;
/// Rows that each lane has in flight.
const FLIGHT: usize = 4;

/// Device functions, if there is a predictor.
pub(crate) const FUNCTIONS: &str = r#"
// x[0 .. N] in shared memory becomes 16-bit integers there, [planes of 8, two per vector of 16 weights], zeros behind the last. Returns
// what 1 stands for; NaN if a value is not finite, so that scores show it. `slots` [64] is scratch. Barriers before and behind.
template <int N, int VECTORS, int THREADS> DEVICE float round_input(const float* x, uint4* planes, float* slots) {
    float largest = 0.0f;
    u32 broken = 0;
    for (u32 i = threadIdx.x; i < N; i += THREADS) {
        largest = fmaxf(largest, fabsf(x[i]));
        broken |= (__float_as_uint(x[i]) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
    }
    largest = lanes_max<32>(largest);
    broken = __any_sync(ALL_LANES, broken != 0u);
    if (threadIdx.x % 32 == 0) {
        slots[threadIdx.x / 32] = largest;
        slots[32 + threadIdx.x / 32] = broken ? 1.0f : 0.0f;
    }
    __syncthreads();
    for (u32 w = 0; w < THREADS / 32; w++) {
        largest = fmaxf(largest, slots[w]);
        if (slots[32 + w] != 0.0f) broken = 1;
    }
    const float unit = broken ? __uint_as_float(0x7fc00000u) : largest / 32767.0f;
    const float per_unit = unit > 0.0f ? 1.0f / unit : 0.0f;
    for (u32 i = threadIdx.x; i < 2 * VECTORS; i += THREADS) {
        u32 pairs[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            u32 pair = 0;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 at = 8 * i + 2 * k + half;
                int q = at < N ? __float2int_rn(x[at < N ? at : 0] * per_unit) : 0;
                q = q < -32768 ? -32768 : (q > 32767 ? 32767 : q);
                pair |= ((u32)q & 0xffffu) << (16 * half);
            }
            pairs[k] = pair;
        }
        planes[i % 2 * VECTORS + i / 2] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
    __syncthreads();
    return unit;
}

// Sum of 4 products: bytes of w with 16-bit halves of a and b, all signed.
DEVICE int multiply_bytes(u32 w, u32 a, u32 b, int sum) {
    sum += ((int)(w << 24) >> 24) * ((int)(a << 16) >> 16);
    sum += ((int)(w << 16) >> 24) * ((int)a >> 16);
    sum += ((int)(w << 8) >> 24) * ((int)(b << 16) >> 16);
    sum += ((int)w >> 24) * ((int)b >> 16);
    return sum;
}
"#;

const NORMALISED: &str = r#"    for (u32 i = threadIdx.x; i < $N; i += $THREADS) x[i] = input[i];
"#;

const STANDARDISED: &str = r#"    for (u32 i = threadIdx.x; i < $N; i += $THREADS) x[i] = (input[i] - mean[i]) * scale[i];
"#;

/// NaN is neither less nor more than anything, so it does not count for the ends and stays where it is.
const MIN_MAX: &str = r#"    float low = __uint_as_float(0x7f800000u), high = __uint_as_float(0xff800000u);
    for (u32 i = threadIdx.x; i < $N; i += $THREADS) {
        low = fminf(low, input[i]);
        high = fmaxf(high, input[i]);
    }
    low = lanes_min<32>(low), high = lanes_max<32>(high);
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = low, slots[32 + threadIdx.x / 32] = high;
    __syncthreads();
    for (u32 w = 0; w < $THREADS / 32; w++) low = fminf(low, slots[w]), high = fmaxf(high, slots[32 + w]);
    const float factor = high > low ? 1.0f / (high - low) : 0.0f;
    for (u32 i = threadIdx.x; i < $N; i += $THREADS) x[i] = (input[i] - low) * factor;
"#;

const FLOAT: &str = r#"    __syncthreads();
    // Values behind the last are zeros, as are those of the rows.
    float4* planes = (float4*)(x + $N4);
    for (u32 i = threadIdx.x; i < $NV * $F::SIZE / 4; i += $THREADS) {
        float q[4];
#pragma unroll
        for (int k = 0; k < 4; k++) q[k] = 4 * i + k < $N ? x[4 * i + k < $N ? 4 * i + k : 0] : 0.0f;
        planes[place<$F, $NV>(i)] = make_float4(q[0], q[1], q[2], q[3]);
    }
    __syncthreads();
    for (u32 base = blockIdx.x * $ROWS; base < rows; base += gridDim.x * $ROWS * $FLIGHT) {
        float sum[$FLIGHT];
#pragma unroll
        for (int f = 0; f < $FLIGHT; f++) sum[f] = 0.0f;
        for (u32 v = sub; v < $STEPS * $LANES; v += $LANES) {
            uint4 w[$FLIGHT];
#pragma unroll
            for (int f = 0; f < $FLIGHT; f++) {
                const u32 row = base + f * (gridDim.x * $ROWS) + own;
                w[f] = row < rows && v < $NV ? __ldg(weight + (u64)row * $NV + v) : make_uint4(0u, 0u, 0u, 0u);
            }
#pragma unroll
            for (int f = 0; f < $FLIGHT; f++) {
                if (v < $NV) sum[f] = multiply<$F, $NV>(w[f], planes, v, sum[f]);
            }
        }
#pragma unroll
        for (int f = 0; f < $FLIGHT; f++) {
            const u32 row = base + f * (gridDim.x * $ROWS) + own;
            float y = lanes_sum<$LANES>(sum[f]);
            if (sub == 0 && row < rows) {
$BIAS$RELU                out[row] = y;
            }
        }
    }
"#;

const INTEGERS: &str = r#"    __syncthreads();
    uint4* planes = (uint4*)(x + $N4);
    const float unit = round_input<$N, $NV, $THREADS>(x, planes, slots + 64);
    for (u32 base = blockIdx.x * $ROWS; base < rows; base += gridDim.x * $ROWS * $FLIGHT) {
        float sum[$FLIGHT];
#pragma unroll
        for (int f = 0; f < $FLIGHT; f++) sum[f] = 0.0f;
        // A step is 512 products or the whole row: their sum is exact.
        for (u32 v = sub; v < $STEPS * $LANES; v += $LANES) {
            uint4 w[$FLIGHT];
#pragma unroll
            for (int f = 0; f < $FLIGHT; f++) {
                const u32 row = base + f * (gridDim.x * $ROWS) + own;
                w[f] = row < rows && v < $NV ? __ldg(weight + (u64)row * $NV + v) : make_uint4(0u, 0u, 0u, 0u);
            }
            const u32 at = v < $NV ? v : 0;
            const uint4 a = planes[at], b = planes[$NV + at];
#pragma unroll
            for (int f = 0; f < $FLIGHT; f++) {
                int part = multiply_bytes(w[f].x, a.x, a.y, 0);
                part = multiply_bytes(w[f].y, a.z, a.w, part);
                part = multiply_bytes(w[f].z, b.x, b.y, part);
                part = multiply_bytes(w[f].w, b.z, b.w, part);
                sum[f] += (float)lanes_sum<$LANES>(part);
            }
        }
#pragma unroll
        for (int f = 0; f < $FLIGHT; f++) {
            const u32 row = base + f * (gridDim.x * $ROWS) + own;
            if (sub == 0 && row < rows) {
                float y = row_scale[row] * (sum[f] * unit);
$BIAS$RELU                out[row] = y;
            }
        }
    }
"#;

const START: &str = r#"    float* slots = (float*)shared_memory;
    float* x = slots + 128;
    const u32 sub = threadIdx.x % $LANES, own = threadIdx.x / $LANES;
"#;

/// One layer of a predictor.
struct Layer {
    name: String,
    purpose: &'static str,
    /// Inputs.
    n: usize,
    /// Rows, for the declared bytes; the launch says how many.
    rows: usize,
    normalization: Normalization,
    relu: bool,
}

impl Layer {
    fn draft(self, spec: &KernelSpec, predictor: &PredictorSpec) -> Draft<'static> {
        let Layer { name, purpose, n, rows, normalization, relu } = self;
        let format = predictor.format;
        let vectors = n.div_ceil(format.vector());
        let lanes = vectors.next_power_of_two().min(32);
        // Rows of a block at a time.
        let at_once = THREADS / lanes;
        let blocks = rows.div_ceil(at_once).min(2 * spec.sm.multiprocessors());
        let mut params = vec![Param::weights("weight", Traffic::fixed(rows * format.row_bytes(n)))];
        if format == WeightFormat::Int8 {
            params.push(Param::read("row_scale", Element::F32, rows));
        }
        if predictor.bias {
            params.push(Param::read("bias", Element::F32, rows));
        }
        params.push(Param::read("input", Element::F32, n));
        if normalization == Normalization::Standardize {
            params.push(Param::read("mean", Element::F32, n));
            params.push(Param::read("scale", Element::F32, n));
        }
        params.push(Param::buffer("out", Element::F32, Access::Write, Traffic::fixed(4 * rows)));
        params.push(Param::number("rows"));
        let (products, class) = match format {
            WeightFormat::Float(dtype) => (FLOAT, crate::prelude::class(dtype)),
            WeightFormat::Int8 => (INTEGERS, ""),
        };
        let normalise = match normalization {
            Normalization::None => NORMALISED,
            Normalization::Standardize => STANDARDISED,
            Normalization::MinMax => MIN_MAX,
        };
        let bias = if predictor.bias { "                y += bias[row];\n" } else { "" };
        // This way round NaN stays, so that it reaches the scores and is reported there.
        let relu = if relu { "                y = y < 0.0f ? 0.0f : y;\n" } else { "" };
        let body = format!("{START}{normalise}{products}").replace("$BIAS", bias).replace("$RELU", relu);
        let n4 = round_up(n, 4);
        let plane_bytes = match format {
            WeightFormat::Float(dtype) => 4 * vectors * dtype.vector(),
            WeightFormat::Int8 => 32 * vectors,
        };
        Draft {
            name,
            purpose,
            grid: [blocks, 1],
            threads: THREADS,
            resident: 1,
            shared: 4 * 128 + 4 * n4 + plane_bytes,
            params,
            body: fill(
                &body,
                &[
                    ("F", &class),
                    ("N", &n),
                    ("N4", &n4),
                    ("NV", &vectors),
                    ("LANES", &lanes),
                    ("STEPS", &vectors.div_ceil(lanes)),
                    ("ROWS", &at_once),
                    ("FLIGHT", &FLIGHT),
                    ("THREADS", &THREADS),
                ],
            ),
        }
    }
}

/// The hidden layers of these kinds beside each other, or the trunk.
pub(crate) fn hidden(spec: &KernelSpec, predictor: &PredictorSpec, kinds: &[Option<Kind>]) -> Kernel {
    let n = predictor.inputs(spec);
    let drafts = kinds.iter().map(|&kind| {
        let width = predictor.hidden_width(kind);
        Layer {
            name: match kind {
                None => format!("trunk_p{width}"),
                Some(kind) => format!("{}_p{width}", kind.name()),
            },
            purpose: "Hidden layer of the predictor, from its normalised input.",
            n,
            rows: width,
            normalization: predictor.normalization,
            relu: predictor.relu,
        }
        .draft(spec, predictor)
    });
    let draft = Draft::beside(drafts.collect());
    let name = format!("predict_hidden_n{n}_{}_{}", draft.name, predictor.format.name());
    Draft { name, ..draft }.finish()
}

/// The output layers that rank these kinds, beside each other; the bytes are those of the first station.
pub(crate) fn output(spec: &KernelSpec, predictor: &PredictorSpec, kinds: &[Kind]) -> Kernel {
    let layers = predictor.layers(spec, 0).len();
    let drafts = kinds.iter().map(|&kind| {
        let (width, rows) = (predictor.hidden_width(Some(kind)), layers * units(spec, kind));
        Layer {
            name: format!("{}_p{width}_r{rows}", kind.name()),
            purpose: "Output layer of the predictor: a score for every unit of the layers that a station predicts.",
            n: width,
            rows,
            normalization: Normalization::None,
            relu: false,
        }
        .draft(spec, predictor)
    });
    let draft = Draft::beside(drafts.collect());
    let name = format!("predict_{}_{}", draft.name, predictor.format.name());
    Draft { name, ..draft }.finish()
}

/// Units of a layer.
pub(crate) const fn units(spec: &KernelSpec, kind: Kind) -> usize {
    match kind {
        Kind::Heads => spec.sizes.heads,
        Kind::Neurons => spec.sizes.ffn,
    }
}
