//! Attention of a block of a prompt's tokens over all positions up to their own.
//!
//! A block of threads takes 16 tokens of one query head and walks the positions that any of them sees, 32 at a time through shared memory.
//! Eight lanes share a token: each has every eighth position's score and every eighth piece of the context, with a running maximum and
//! sum. Sums are in `f32` as in the kernel of a single token.

use super::{TOKENS, block, split};
use crate::kernel::{Access, Draft, Element, Kernel, Param, Traffic};
use crate::prelude::class;
use crate::template::fill;
use crate::{KernelSpec, norm};

const THREADS: usize = 128;
/// Tokens of a block of threads.
const QUERIES: usize = THREADS / LANES;
/// Lanes that share a token.
const LANES: usize = 8;
/// Positions at a time.
const KEYS: usize = 32;

const BODY: &str = r#"    const u32 start = block[0], count = block[1], head = blockIdx.x, base = blockIdx.y * $QUERIES;
    if (base >= count) return;
    float* own = (float*)shared_memory;
    float* key_tile = own + $QUERIES * $ROW;
    float* value_tile = key_tile + $KEYS * $ROW;
    float* weights = value_tile + $KEYS * $ROW;
    const u32 q = threadIdx.x / $LANES, sub = threadIdx.x % $LANES, token = base + q, position = start + token;
    for (u32 i = threadIdx.x; i < $QUERIES * ($DH / 4); i += $THREADS) {
        const u32 t = i / ($DH / 4), piece = i % ($DH / 4);
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (base + t < count) x = ((const float4*)queries)[((u64)(base + t) * $H + head) * ($DH / 4) + piece];
        ((float4*)(own + t * $ROW))[piece] = x;
    }
    // Positions that one of the tokens sees, and those that this one does.
    const u32 end = start + (base + $QUERIES < count ? base + $QUERIES : count);
    const u32 lowest = window > 0 && start + base + 1 > window ? start + base + 1 - window : 0;
    const u32 first = window > 0 && position + 1 > window ? position + 1 - window : 0;
    const u64 rows = (u64)(head / $GROUP) * $CONTEXT;
    float most = -3.0e38f, sum = 0.0f;
    float4 acc[$PIECES];
#pragma unroll
    for (int j = 0; j < $PIECES; j++) acc[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (u32 tile = lowest; tile < end; tile += $KEYS) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < $KEYS * $VECTORS; i += $THREADS) {
            const u32 k = i / $VECTORS, v = i % $VECTORS;
            float x[$C::SIZE] = {}, y[$C::SIZE] = {};
            if (tile + k < end) {
                $C::widen(__ldg(keys + (rows + tile + k) * $VECTORS + v), x);
                $C::widen(__ldg(values + (rows + tile + k) * $VECTORS + v), y);
            }
#pragma unroll
            for (int e = 0; e < $C::SIZE; e += 4) {
                *(float4*)(key_tile + k * $ROW + v * $C::SIZE + e) = make_float4(x[e], x[e + 1], x[e + 2], x[e + 3]);
                *(float4*)(value_tile + k * $ROW + v * $C::SIZE + e) = make_float4(y[e], y[e + 1], y[e + 2], y[e + 3]);
            }
        }
        __syncthreads();
        float score[$KEYS / $LANES];
        float now = most;
#pragma unroll
        for (int u = 0; u < $KEYS / $LANES; u++) {
            const float4* a = (const float4*)(own + q * $ROW);
            const float4* b = (const float4*)(key_tile + (sub + u * $LANES) * $ROW);
            float dot = 0.0f;
#pragma unroll 4
            for (u32 i = 0; i < $DH / 4; i++) {
                dot = fmaf(a[i].x, b[i].x, dot);
                dot = fmaf(a[i].y, b[i].y, dot);
                dot = fmaf(a[i].z, b[i].z, dot);
                dot = fmaf(a[i].w, b[i].w, dot);
            }
            const u32 p = tile + sub + u * $LANES;
            const bool seen = p >= first && p <= position && p < end;
            score[u] = seen ? dot * $SCALE : -3.0e38f;
            now = score[u] > now ? score[u] : now;
        }
        now = lanes_max<$LANES>(now);
        const float shrink = exponential(most - now);
        most = now;
        float part_sum = 0.0f;
#pragma unroll
        for (int u = 0; u < $KEYS / $LANES; u++) {
            const u32 p = tile + sub + u * $LANES;
            const bool seen = p >= first && p <= position && p < end;
            const float weight = seen ? exponential(score[u] - now) : 0.0f;
            weights[q * ($KEYS + 1) + sub + u * $LANES] = weight;
            part_sum += weight;
        }
        sum = fmaf(sum, shrink, lanes_sum<$LANES>(part_sum));
        // The lanes of a token are of one warp.
        __syncwarp();
#pragma unroll
        for (int j = 0; j < $PIECES; j++) {
            acc[j].x *= shrink;
            acc[j].y *= shrink;
            acc[j].z *= shrink;
            acc[j].w *= shrink;
        }
        for (u32 k = 0; k < $KEYS; k++) {
            const float weight = weights[q * ($KEYS + 1) + k];
#pragma unroll
            for (int j = 0; j < $PIECES; j++) {
                const u32 piece = sub + j * $LANES;
                if (piece < $DH / 4) {
                    const float4 v = ((const float4*)(value_tile + k * $ROW))[piece];
                    acc[j].x = fmaf(weight, v.x, acc[j].x);
                    acc[j].y = fmaf(weight, v.y, acc[j].y);
                    acc[j].z = fmaf(weight, v.z, acc[j].z);
                    acc[j].w = fmaf(weight, v.w, acc[j].w);
                }
            }
        }
    }
    if (token < count) {
        const float factor = 1.0f / sum;
#pragma unroll
        for (int j = 0; j < $PIECES; j++) {
            const u32 piece = sub + j * $LANES;
            const float4 x = make_float4(acc[j].x * factor, acc[j].y * factor, acc[j].z * factor, acc[j].w * factor);
            if (piece < $DH / 4) store_split(contexts, $PLANE, (u64)token * ($H * $DH) + head * $DH + 4 * piece, x);
        }
    }
"#;

/// `contexts` `[tokens, H, d_h]`, split.
pub(crate) fn kernel(spec: &KernelSpec) -> Kernel {
    let s = &spec.sizes;
    let (dh, width) = (s.head_dim, s.heads * s.head_dim);
    // The block's own rows and those in front, which the launch does not know.
    let cached = Traffic::fixed(TOKENS * s.kv_heads * spec.cached_row() as usize);
    let cache = |name| Param { weights: false, ..Param::weights(name, cached) };
    let row = dh + 4;
    Draft {
        name: format!(
            "prompt_attention_h{}x{dh}_kv{}_{}_{}",
            s.heads,
            s.kv_heads,
            spec.dtype.name(),
            spec.cache.name()
        ),
        purpose: "Attention of a block of a prompt, all heads.",
        grid: [s.heads, TOKENS / QUERIES],
        threads: THREADS,
        resident: 1,
        shared: 4 * ((QUERIES + 2 * KEYS) * row + QUERIES * (KEYS + 1)),
        params: vec![
            cache("keys"),
            cache("values"),
            Param::read("queries", Element::F32, TOKENS * width),
            block(),
            split(spec, "contexts", Access::Write, width),
            Param::number("window"),
        ],
        body: fill(
            BODY,
            &[
                ("C", &class(spec.cache)),
                ("H", &s.heads),
                ("DH", &dh),
                ("GROUP", &spec.group()),
                ("CONTEXT", &s.context),
                ("VECTORS", &(dh / spec.cache.vector())),
                ("PIECES", &(dh / 4).div_ceil(LANES)),
                ("ROW", &row),
                ("PLANE", &(TOKENS * width)),
                ("QUERIES", &QUERIES),
                ("LANES", &LANES),
                ("KEYS", &KEYS),
                ("SCALE", &norm::float((dh as f32).powf(-0.5))),
                ("THREADS", &THREADS),
            ],
        ),
    }
    .finish()
}
