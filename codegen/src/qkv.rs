//! Queries of the kept heads, keys and values of the heads that need them.
//!
//! A warp computes two rows at a time, components `c` and `c + d_h/2` of one head, which is the pair that a rotation mixes. Rows
//! are dealt out to the warps of all blocks in turn: first those of the queries, then keys and values.
//!
//! Lazy fill: `watermark[g]` is the first position that key/value head `g` lacks, `watermark[H_kv]` the first whose attention input
//! is kept in `pending`, a ring of `kv_flush` rows. A head that is needed now gets all rows up to the present position; the
//! watermarks move in the attention kernel, when no block reads them any more. A row that is made late has the same products in
//! the same order as one that is made at once, so the cache is bit for bit the same. The weights are read from memory once;
//! rows of earlier positions are made four at a time with weights from the first-level cache.
//!
//! It also sets the counters of arrivals to zero that later kernels of the token find their last blocks by.

use crate::kernel::{Access, Draft, Element, Kernel, Param, Traffic};
use crate::prelude::class;
use crate::template::fill;
use crate::{DType, KernelSpec, attention, embed, norm};

/// Device functions of this and the attention kernel.
const FUNCTIONS: &str = r#"
// Which key/value heads are needed: those of kept query heads, or all if `flush`. Leaves their indices, ascending, in `needed` and
// returns how many they are. `needed` [2 * $KV + 1] is shared memory.
template <int THREADS>
DEVICE u32 needed_heads(const u32* __restrict__ list, u32 count, bool flush, u32* needed) {
    u32* flags = needed + $KV + 1;
    for (u32 g = threadIdx.x; g < $KV; g += THREADS) flags[g] = flush ? 1u : 0u;
    __syncthreads();
    // The list ascends, so the heads of one key/value head stand together: the first of them speaks for all.
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        const u32 g = list[i] / $GROUP;
        if (i == 0 || list[i - 1] / $GROUP != g) flags[g] = 1u;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        u32 total = 0;
        for (u32 base = 0; base < $KV; base += 32) {
            const u32 g = base + threadIdx.x;
            const bool wanted = g < $KV && flags[g] != 0u;
            const u32 all = __ballot_sync(ALL_LANES, wanted);
            if (wanted) needed[total + __popc(all & ((1u << threadIdx.x) - 1u))] = g;
            total += __popc(all);
        }
        if (threadIdx.x == 0) needed[$KV] = total;
    }
    __syncthreads();
    return needed[$KV];
}
"#;

const FILL: &str = r#"
// Products of two rows, `stride` vectors apart, with the attention inputs of `count` <= 4 positions from `position` on: this lane's
// share, in the order of lane_dots.
DEVICE void fill_dots(const uint4* __restrict__ row, u32 stride, const float* pending, u32 position, u32 count, u32 lane,
                      float (&acc)[2][4]) {
#pragma unroll
    for (int t = 0; t < 4; t++) acc[0][t] = acc[1][t] = 0.0f;
    for (u32 v = lane; v < $NV; v += 32) {
        float low[$W::SIZE], high[$W::SIZE];
        $W::widen(__ldg(row + v), low);
        $W::widen(__ldg(row + stride + v), high);
#pragma unroll
        for (int t = 0; t < 4; t++) {
            if (t < count) {
                const float4* x = (const float4*)(pending + (u64)((position + t) % $FLUSH) * $D) + v * ($W::SIZE / 4);
#pragma unroll
                for (int k = 0; k < $W::SIZE / 4; k++) {
                    const float4 q = x[k];
                    acc[0][t] = fmaf(low[4 * k], q.x, acc[0][t]);
                    acc[0][t] = fmaf(low[4 * k + 1], q.y, acc[0][t]);
                    acc[0][t] = fmaf(low[4 * k + 2], q.z, acc[0][t]);
                    acc[0][t] = fmaf(low[4 * k + 3], q.w, acc[0][t]);
                    acc[1][t] = fmaf(high[4 * k], q.x, acc[1][t]);
                    acc[1][t] = fmaf(high[4 * k + 1], q.y, acc[1][t]);
                    acc[1][t] = fmaf(high[4 * k + 2], q.z, acc[1][t]);
                    acc[1][t] = fmaf(high[4 * k + 3], q.w, acc[1][t]);
                }
            }
        }
    }
}
"#;

const BODY: &str = r#"    float4* x = shared_memory;
    float* slots = (float*)(x + $D / 4);
    u32* needed = (u32*)(slots + 64);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 position = state[1], kept = counts[0];
    const bool flush = position + 1 - watermark[$KV] >= $FLUSH;
    const u32 filling = needed_heads<$THREADS>(list, kept, flush, needed);
    $NORM
    __syncthreads();
    if (blockIdx.x == 0) {
        float4* row = (float4*)(pending + (u64)(position % $FLUSH) * $D);
        for (u32 i = threadIdx.x; i < $D / 4; i += $THREADS) row[i] = x[place<$W, $NV>(i)];
        for (u32 i = threadIdx.x; i < $ARRIVALS; i += $THREADS) arrivals[i] = 0u;
    }
    const u32 queries_end = kept * $HALF, end = queries_end + filling * $DH;
    for (u32 unit = blockIdx.x * $WARPS + warp; unit < end; unit += $BLOCKS * $WARPS) {
        float acc[2];
        if (unit < queries_end) {
            const u32 at = unit / $HALF, c = unit % $HALF, head = list[at];
            lane_dots<$W, $NV, 2>(heads + (u64)head * $RECORD + c * $NV, $HALF * $NV, x, lane, acc);
            float a = lanes_sum<32>(acc[0]), b = lanes_sum<32>(acc[1]);
$QUERY_BIAS$QUERY_ROPE            if (lane == 0) {
                queries[at * $DH + c] = a;
                queries[at * $DH + c + $HALF] = b;
            }
        } else {
            const u32 at = (unit - queries_end) / $DH, r = (unit - queries_end) % $DH, g = needed[at];
            const bool key = r < $HALF;
            const u32 c = key ? r : r - $HALF;
            const uint4* row = kv_heads + (u64)g * $RECORD + (key ? c : c + $DH) * $NV;
            $C::value* cache = (key ? keys : values) + (u64)g * $CONTEXT * $DH + c;
$CACHE_BIAS            lane_dots<$W, $NV, 2>(row, $HALF * $NV, x, lane, acc);
            u32 p = position;
            float a = lanes_sum<32>(acc[0]), b = lanes_sum<32>(acc[1]);
            $STORE
            for (u32 first = watermark[g]; first < position; first += 4) {
                const u32 count = position - first < 4 ? position - first : 4;
                float late[2][4];
                fill_dots(row, $HALF * $NV, pending, first, count, lane, late);
#pragma unroll
                for (int t = 0; t < 4; t++) {
                    if (t < count) {
                        p = first + t;
                        a = lanes_sum<32>(late[0][t]), b = lanes_sum<32>(late[1][t]);
                        $STORE
                    }
                }
            }
        }
    }
"#;

const ROTATE: &str = r#"const float cos = rope[(u64)POSITION * $DH + c], sin = rope[(u64)POSITION * $DH + $HALF + c], low = a;
INDENTa = low * cos - b * sin;
INDENTb = fmaf(b, cos, low * sin);
"#;

/// Device functions that the kernels of the attention share.
pub(crate) fn functions(spec: &KernelSpec) -> String {
    let (w, s) = (class(spec.dtype), &spec.sizes);
    let values: &[(&str, &dyn std::fmt::Display)] = &[
        ("W", &w),
        ("D", &s.hidden),
        ("NV", &spec.vectors()),
        ("KV", &s.kv_heads),
        ("GROUP", &spec.group()),
        ("FLUSH", &spec.kv_flush),
    ];
    fill(FUNCTIONS, values) + &fill(FILL, values)
}

/// Bytes of shared memory of `needed_heads`.
pub(crate) const fn needed_bytes(spec: &KernelSpec) -> usize {
    4 * (2 * spec.sizes.kv_heads + 1)
}

/// Element of the cache behind a pointer.
pub(crate) const fn cache_element(cache: DType) -> Element {
    match cache {
        DType::F32 => Element::F32,
        DType::F16 | DType::BF16 => Element::U16,
    }
}

/// `queries` `[kept, d_h]`, and rows of `keys` and `values` `[H_kv, context, d_h]`.
pub(crate) fn kernel(spec: &KernelSpec) -> Kernel {
    const THREADS: usize = 512;
    let s = &spec.sizes;
    let (dh, half, llama) = (s.head_dim, s.head_dim / 2, spec.family.is_llama());
    let cache = cache_element(spec.cache);
    let record = spec.row_bytes() * 2 * dh as u64;
    let mut params = vec![
        Param::weights("heads", Traffic { head: record / 2, ..Traffic::NONE }),
        Param::weights("kv_heads", Traffic { kv_head: record, ..Traffic::NONE }),
    ];
    params.extend(norm::params(spec));
    let f32s = |name, traffic| Param::buffer(name, Element::F32, Access::Read, traffic);
    let head_row = 4 * dh as u64;
    if spec.bias.qkv {
        params.push(f32s("query_bias", Traffic { head: head_row, ..Traffic::NONE }));
        params.push(f32s("key_bias", Traffic { kv_head: head_row, ..Traffic::NONE }));
        params.push(f32s("value_bias", Traffic { kv_head: head_row, ..Traffic::NONE }));
    }
    if llama {
        // The rows of a position serve all heads; late positions are few.
        params.push(f32s("rope", Traffic::fixed(4 * dh)));
    }
    let made = Traffic { made: spec.cached_row(), ..Traffic::NONE };
    params.extend([
        Param::buffer("list", Element::U32, Access::Read, Traffic { head: 4, ..Traffic::NONE }),
        Param::read("counts", Element::U32, 1),
        embed::state(),
        Param::read("watermark", Element::U32, s.kv_heads + 1),
        Param::buffer(
            "pending",
            Element::F32,
            Access::ReadWrite,
            Traffic { fixed: 4 * s.hidden as u64, late: 4 * s.hidden as u64, ..Traffic::NONE },
        ),
        Param::buffer("keys", cache, Access::Write, made),
        Param::buffer("values", cache, Access::Write, made),
        Param::buffer("queries", Element::F32, Access::Write, Traffic { head: head_row, ..Traffic::NONE }),
        Param::written("arrivals", Element::U32, attention::arrivals(spec) + 1),
    ]);
    let rotate = |indent: &str, position: &str| ROTATE.replace("INDENT", indent).replace("POSITION", position);
    let query_bias = match spec.bias.qkv {
        true => "            a += query_bias[head * $DH + c];\n            b += query_bias[head * $DH + c + $HALF];\n",
        false => "",
    };
    let query_rope = if llama { format!("            {}", rotate("            ", "position")) } else { String::new() };
    let cache_bias = match spec.bias.qkv {
        true => {
            "            const float* bias = (key ? key_bias : value_bias) + g * $DH + c;\n            const float bias_a = bias[0], bias_b = bias[$HALF];\n"
        }
        false => "",
    };
    let store = |indent: &str| {
        let mut text = String::new();
        if spec.bias.qkv {
            text += &format!("a += bias_a;\n{indent}b += bias_b;\n{indent}");
        }
        if llama {
            let inner = format!("{indent}    ");
            text += &format!("if (key) {{\n{inner}{}{indent}}}\n{indent}", rotate(&inner, "p"));
        }
        text += &format!(
            "if (lane == 0) {{\n{indent}    cache[(u64)p * $DH] = $C::narrow(a);\n{indent}    cache[(u64)p * $DH + $HALF] = $C::narrow(b);\n{indent}}}"
        );
        text
    };
    let body = BODY
        .replace("$QUERY_BIAS", query_bias)
        .replace("$QUERY_ROPE", &query_rope)
        .replace("$CACHE_BIAS", cache_bias)
        .replacen("$STORE", &store("            "), 1)
        .replacen("$STORE", &store("                        "), 1);
    let blocks = spec.blocks(s.heads * half + s.kv_heads * dh);
    let (w, c) = (class(spec.dtype), class(spec.cache));
    Draft {
        name: format!(
            "qkv_d{}_h{}x{}_kv{}_{}_{}",
            s.hidden,
            s.heads,
            dh,
            s.kv_heads,
            spec.dtype.name(),
            spec.cache.name()
        ),
        purpose: "Queries of kept heads; keys and values that kept heads lack, up to this position.",
        grid: [blocks, 1],
        threads: THREADS,
        resident: 1,
        shared: 4 * s.hidden + norm::SLOTS + needed_bytes(spec),
        params,
        body: fill(
            &body,
            &[
                ("W", &w),
                ("C", &c),
                ("D", &s.hidden),
                ("NV", &spec.vectors()),
                ("KV", &s.kv_heads),
                ("DH", &dh),
                ("HALF", &half),
                ("RECORD", &(2 * dh * spec.vectors())),
                ("CONTEXT", &s.context),
                ("FLUSH", &spec.kv_flush),
                ("ARRIVALS", &(attention::arrivals(spec) + 1)),
                ("THREADS", &THREADS),
                ("WARPS", &(THREADS / 32)),
                ("BLOCKS", &blocks),
                ("NORM", &norm::call(spec, THREADS)),
            ],
        ),
    }
    .finish()
}
