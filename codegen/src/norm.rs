//! The norm in front of a block, inside the kernels that read its result.
//!
//! A norm needs the whole residual stream before the first value of its result, so a kernel of its own would be a few microseconds
//! on one multiprocessor with all others idle. Instead every block of the consumer normalises for itself: `d` values from the
//! second-level cache, which all multiprocessors do at the same time.

use crate::kernel::{Element, Param};
use crate::template::fill;
use crate::{KernelSpec, Norm};

/// Device function `normalise`: `planes` become the normalised row, as factors of weight rows. Ends without a barrier.
///
/// Order: a thread adds its values with ascending index (4t .. 4t+3, then `4 * THREADS` further), then lanes, then warps.
const LAYER_NORM: &str = r#"
// planes = (x - mean) / sqrt(variance + eps) * weight + bias. `slots` [64] is scratch. The caller sets a barrier behind it.
template <int THREADS>
DEVICE void normalise(const float* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
                      float4* planes, float* slots) {
    const int FOURS = $D / 4, STEPS = (FOURS + THREADS - 1) / THREADS;
    float4 own[STEPS];
    float sum = 0.0f;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const u32 i = threadIdx.x + s * THREADS;
        own[s] = i < FOURS ? ((const float4*)x)[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        sum += own[s].x;
        sum += own[s].y;
        sum += own[s].z;
        sum += own[s].w;
    }
    const float mean = block_sum<THREADS / 32>(sum, slots) / $D.0f;
    float squares = 0.0f;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        if (threadIdx.x + s * THREADS < FOURS) {
            own[s].x -= mean;
            own[s].y -= mean;
            own[s].z -= mean;
            own[s].w -= mean;
            squares = fmaf(own[s].x, own[s].x, squares);
            squares = fmaf(own[s].y, own[s].y, squares);
            squares = fmaf(own[s].z, own[s].z, squares);
            squares = fmaf(own[s].w, own[s].w, squares);
        }
    }
    const float factor = 1.0f / sqrtf(block_sum<THREADS / 32>(squares, slots + 32) / $D.0f + $EPS);
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const u32 i = threadIdx.x + s * THREADS;
        if (i < FOURS) {
            const float4 w = ((const float4*)weight)[i], b = ((const float4*)bias)[i];
            planes[place<$W, $NV>(i)] = make_float4(own[s].x * factor * w.x + b.x, own[s].y * factor * w.y + b.y,
                                                    own[s].z * factor * w.z + b.z, own[s].w * factor * w.w + b.w);
        }
    }
}
"#;

const RMS_NORM: &str = r#"
// planes = x / sqrt(mean of squares + eps) * weight. `slots` [64] is scratch. The caller sets a barrier behind it.
template <int THREADS>
DEVICE void normalise(const float* __restrict__ x, const float* __restrict__ weight, float4* planes, float* slots) {
    const int FOURS = $D / 4, STEPS = (FOURS + THREADS - 1) / THREADS;
    float4 own[STEPS];
    float squares = 0.0f;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const u32 i = threadIdx.x + s * THREADS;
        own[s] = i < FOURS ? ((const float4*)x)[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        squares = fmaf(own[s].x, own[s].x, squares);
        squares = fmaf(own[s].y, own[s].y, squares);
        squares = fmaf(own[s].z, own[s].z, squares);
        squares = fmaf(own[s].w, own[s].w, squares);
    }
    const float factor = 1.0f / sqrtf(block_sum<THREADS / 32>(squares, slots) / $D.0f + $EPS);
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const u32 i = threadIdx.x + s * THREADS;
        if (i < FOURS) {
            const float4 w = ((const float4*)weight)[i];
            planes[place<$W, $NV>(i)] = make_float4(own[s].x * factor * w.x, own[s].y * factor * w.y,
                                                    own[s].z * factor * w.z, own[s].w * factor * w.w);
        }
    }
}
"#;

/// Bytes of shared memory that `normalise` scratches in.
pub(crate) const SLOTS: usize = 64 * 4;

/// The device function for a spec.
pub(crate) fn function(spec: &KernelSpec) -> String {
    let text = match spec.norm {
        Norm::LayerNorm => LAYER_NORM,
        Norm::RmsNorm => RMS_NORM,
    };
    let class = crate::prelude::class(spec.dtype);
    fill(text, &[("D", &spec.sizes.hidden), ("NV", &spec.vectors()), ("W", &class), ("EPS", &float(spec.norm_eps))])
}

/// A literal of exactly this value.
pub(crate) fn float(value: f32) -> String {
    format!("{value:e}f")
}

/// The parameters that a kernel with a norm needs, in the order of [`CALL`]'s arguments.
pub(crate) fn params(spec: &KernelSpec) -> Vec<Param> {
    let d = spec.sizes.hidden;
    let mut params = vec![Param::read("residual", Element::F32, d), Param::read("norm_weight", Element::F32, d)];
    if spec.norm == Norm::LayerNorm {
        params.push(Param::read("norm_bias", Element::F32, d));
    }
    params
}

/// The call, with `x` and `slots` in scope.
pub(crate) fn call(spec: &KernelSpec, threads: usize) -> String {
    let bias = match spec.norm {
        Norm::LayerNorm => " norm_bias,",
        Norm::RmsNorm => "",
    };
    format!("normalise<{threads}>(residual, norm_weight,{bias} x, slots);")
}
