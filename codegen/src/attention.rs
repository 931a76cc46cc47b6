//! Attention of one token over the kept heads.
//!
//! A block takes one key/value head, the kept query heads that share it, and one piece of the context. Inside it the lanes that
//! hold a row of keys together are a worker: workers take positions in turn, four at a time, each with its own running maximum,
//! sum and weighted values, so nothing waits for anything until the end. Workers are then put together in order. The block that comes
//! to the end last of all pieces of its heads puts these together in order: which block that is depends on chance, the sum does not.
//!
//! The kernel also moves the watermarks of the lazy fill: the projection in front of it read them, and nothing else does.

use crate::kernel::{Access, Draft, Element, Kernel, Param, Traffic};
use crate::prelude::class;
use crate::template::fill;
use crate::{KernelSpec, embed, norm};

const THREADS: usize = 128;

const BODY: &str = r#"    u32* needed = (u32*)shared_memory;
    const u32 position = state[1], kept = counts[0];
    if (blockIdx.x == 0 && blockIdx.y == 0) {
        const bool flush = position + 1 - watermark[$KV] >= $FLUSH;
        const u32 filled = needed_heads<$THREADS>(list, kept, flush, needed);
        for (u32 i = threadIdx.x; i < filled; i += $THREADS) watermark[needed[i]] = position + 1;
        __syncthreads();
        if (threadIdx.x < 32) {
            bool all = true;
            for (u32 g = threadIdx.x; g < $KV; g += 32) all = all && watermark[g] == position + 1;
            if (__all_sync(ALL_LANES, all) && threadIdx.x == 0) watermark[$KV] = position + 1;
        }
        __syncthreads();
    }
    // The kept query heads of this key/value head, as places in the list.
    const u32 g = blockIdx.x / $CHUNKS;
    u32* range = needed;
    if (threadIdx.x == 0) range[0] = range[1] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < kept; i += $THREADS) {
        if (list[i] / $GROUP == g) {
            if (i == 0 || list[i - 1] / $GROUP != g) range[0] = i;
            if (i + 1 == kept || list[i + 1] / $GROUP != g) range[1] = i + 1;
        }
    }
    __syncthreads();
$CLEAR    const u32 place = range[0] + blockIdx.x % $CHUNKS * $QUERIES;
    const u32 run = range[1] <= place ? 0 : (range[1] - place < $QUERIES ? range[1] - place : $QUERIES);
    const Visible seen = visible<$SPLITS>(position, window);
    const u32 first = seen.first + blockIdx.y * seen.length;
    if (run == 0 || first >= seen.end) return;
    const u32 end = first + seen.length < seen.end ? first + seen.length : seen.end;

    // A worker is $LANES lanes; lane `sub` of it holds vectors sub, sub + $LANES, ... of a row.
    const u32 worker = threadIdx.x / $LANES, sub = threadIdx.x % $LANES;
    float query[$QUERIES][$HELD], acc[$QUERIES][$HELD], most[$QUERIES], sum[$QUERIES];
#pragma unroll
    for (int h = 0; h < $QUERIES; h++) {
        most[h] = -3.0e38f;
        sum[h] = 0.0f;
#pragma unroll
        for (int e = 0; e < $HELD; e++) {
            const u32 c = (sub + e / $C::SIZE * $LANES) * $C::SIZE + e % $C::SIZE;
            query[h][e] = h < run && c < $DH ? queries[(place + h) * $DH + c] : 0.0f;
            acc[h][e] = 0.0f;
        }
    }
    const uint4* key_rows = keys + (u64)g * $CONTEXT * $ROW;
    const uint4* value_rows = values + (u64)g * $CONTEXT * $ROW;
#pragma unroll 1
    for (u32 base = first; base < end; base += $WORKERS * $FLIGHT) {
        uint4 k[$FLIGHT][$LOADS], v[$FLIGHT][$LOADS];
#pragma unroll
        for (int u = 0; u < $FLIGHT; u++) {
            const u32 p = base + u * $WORKERS + worker;
#pragma unroll
            for (int l = 0; l < $LOADS; l++) {
                const u32 at = sub + l * $LANES;
                const bool there = p < end && at < $ROW;
                k[u][l] = there ? __ldg(key_rows + (u64)p * $ROW + at) : make_uint4(0u, 0u, 0u, 0u);
                v[u][l] = there ? __ldg(value_rows + (u64)p * $ROW + at) : make_uint4(0u, 0u, 0u, 0u);
            }
        }
        float score[$QUERIES][$FLIGHT];
#pragma unroll
        for (int u = 0; u < $FLIGHT; u++) {
            float dot[$QUERIES];
#pragma unroll
            for (int h = 0; h < $QUERIES; h++) dot[h] = 0.0f;
#pragma unroll
            for (int l = 0; l < $LOADS; l++) {
                float e[$C::SIZE];
                $C::widen(k[u][l], e);
#pragma unroll
                for (int h = 0; h < $QUERIES; h++) {
#pragma unroll
                    for (int i = 0; i < $C::SIZE; i++) dot[h] = fmaf(e[i], query[h][l * $C::SIZE + i], dot[h]);
                }
            }
#pragma unroll
            for (int h = 0; h < $QUERIES; h++) score[h][u] = lanes_sum<$LANES>(dot[h]) * $SCALE;
        }
#pragma unroll
        for (int h = 0; h < $QUERIES; h++) {
            float now = most[h];
#pragma unroll
            for (int u = 0; u < $FLIGHT; u++) {
                if (base + u * $WORKERS + worker < end && score[h][u] > now) now = score[h][u];
            }
            const float shrink = exponential(most[h] - now);
            most[h] = now;
            sum[h] *= shrink;
#pragma unroll
            for (int e = 0; e < $HELD; e++) acc[h][e] *= shrink;
#pragma unroll
            for (int u = 0; u < $FLIGHT; u++) {
                score[h][u] = base + u * $WORKERS + worker < end ? exponential(score[h][u] - now) : 0.0f;
                sum[h] += score[h][u];
            }
        }
#pragma unroll
        for (int u = 0; u < $FLIGHT; u++) {
#pragma unroll
            for (int l = 0; l < $LOADS; l++) {
                float e[$C::SIZE];
                $C::widen(v[u][l], e);
#pragma unroll
                for (int h = 0; h < $QUERIES; h++) {
#pragma unroll
                    for (int i = 0; i < $C::SIZE; i++) {
                        acc[h][l * $C::SIZE + i] = fmaf(score[h][u], e[i], acc[h][l * $C::SIZE + i]);
                    }
                }
            }
        }
    }

    // All workers of a query head, in order.
    float* stats = (float*)(needed + $NEEDED);
    float* sums = stats + 2 * $WORKERS * $QUERIES;
#pragma unroll
    for (int h = 0; h < $QUERIES; h++) {
        const u32 at = worker * $QUERIES + h;
        if (sub == 0) {
            stats[2 * at] = most[h];
            stats[2 * at + 1] = sum[h];
        }
#pragma unroll
        for (int e = 0; e < $HELD; e++) {
            const u32 c = (sub + e / $C::SIZE * $LANES) * $C::SIZE + e % $C::SIZE;
            if (c < $DH) sums[at * $DH + c] = acc[h][e];
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < run * $DH; i += $THREADS) {
        const u32 h = i / $DH, c = i % $DH;
        float top = stats[2 * h];
        for (u32 w = 1; w < $WORKERS; w++) top = fmaxf(top, stats[2 * (w * $QUERIES + h)]);
        float total = 0.0f, weight = 0.0f;
        for (u32 w = 0; w < $WORKERS; w++) {
            const float factor = exponential(stats[2 * (w * $QUERIES + h)] - top);
            weight = fmaf(stats[2 * (w * $QUERIES + h) + 1], factor, weight);
            total = fmaf(sums[(w * $QUERIES + h) * $DH + c], factor, total);
        }
        const u32 at = (place + h) * $SPLITS + blockIdx.y;
        piece_sums[(u64)at * $DH + c] = total;
        if (c == 0) {
            piece_stats[2 * at] = top;
            piece_stats[2 * at + 1] = weight;
        }
    }

    // The last block of these heads puts their pieces together.
    const u32 pieces = (seen.end - seen.first + seen.length - 1) / seen.length;
    if (!arrives_last(arrivals + blockIdx.x, pieces, needed)) return;
    for (u32 i = threadIdx.x; i < run * $DH; i += $THREADS) {
        const u32 h = i / $DH, c = i % $DH, at = (place + h) * $SPLITS;
        float top = __ldcg(piece_stats + 2 * at);
        for (u32 s = 1; s < pieces; s++) top = fmaxf(top, __ldcg(piece_stats + 2 * (at + s)));
        float total = 0.0f, weight = 0.0f;
        for (u32 s = 0; s < pieces; s++) {
            const float factor = exponential(__ldcg(piece_stats + 2 * (at + s)) - top);
            weight = fmaf(__ldcg(piece_stats + 2 * (at + s) + 1), factor, weight);
            total = fmaf(__ldcg(piece_sums + (u64)(at + s) * $DH + c), factor, total);
        }
        contexts[list[place + h] * $DH + c] = total * (1.0f / weight);
    }
"#;

/// Contexts of heads that are not kept are zeros, for a predictor to read.
const CLEAR: &str = r#"    if (blockIdx.x % $CHUNKS == 0 && blockIdx.y == 0) {
        for (u32 i = threadIdx.x; i < $GROUP * $DH; i += $THREADS) {
            const u32 head = g * $GROUP + i / $DH;
            bool there = false;
            for (u32 at = range[0]; at < range[1]; at++) there = there || list[at] == head;
            if (!there) contexts[head * $DH + i % $DH] = 0.0f;
        }
    }
"#;

/// How a row of keys is shared by lanes.
struct Lanes {
    /// Vectors of a row.
    row: usize,
    /// Lanes of a worker, a power of two.
    lanes: usize,
    /// Vectors of a row for each lane.
    loads: usize,
    /// Query heads that a block takes at most, so that queries and sums stay in registers.
    queries: usize,
}

impl Lanes {
    fn of(spec: &KernelSpec) -> Lanes {
        let row = spec.sizes.head_dim / spec.cache.vector();
        let lanes = row.next_power_of_two().min(32);
        let loads = row.div_ceil(lanes);
        let queries = spec.group().min((32 / (loads * spec.cache.vector())).max(1));
        Lanes { row, lanes, loads, queries }
    }
}

/// Query heads of a key/value head, in groups that a block takes at once.
fn chunks(spec: &KernelSpec) -> usize {
    spec.group().div_ceil(Lanes::of(spec).queries)
}

/// Counters of blocks that have come to their end: one for the pieces of each group of heads.
pub(crate) fn arrivals(spec: &KernelSpec) -> usize {
    spec.sizes.kv_heads * chunks(spec)
}

/// `contexts` `[H, d_h]` of the kept heads; with `all_contexts` zeros of the others. Between its blocks `piece_sums` `[H, splits, d_h]`
/// and `piece_stats` `[H, splits, 2]` (maximum, sum) of the kept heads, in the order of the list.
pub(crate) fn kernel(spec: &KernelSpec, all_contexts: bool) -> Kernel {
    let s = &spec.sizes;
    let (dh, splits) = (s.head_dim, spec.splits());
    let Lanes { row, lanes, loads, queries } = Lanes::of(spec);
    let workers = THREADS / lanes;
    let chunks = chunks(spec);
    let cached = Traffic { cached: spec.cached_row(), ..Traffic::NONE };
    let per_head = |bytes: usize| Traffic { head: bytes as u64, ..Traffic::NONE };
    let cache = |name| Param { weights: false, ..Param::weights(name, cached) };
    let params = vec![
        cache("keys"),
        cache("values"),
        Param::buffer("queries", Element::F32, Access::Read, per_head(4 * dh)),
        Param::buffer("list", Element::U32, Access::Read, per_head(4)),
        Param::read("counts", Element::U32, 1),
        embed::state(),
        Param::buffer("watermark", Element::U32, Access::ReadWrite, Traffic::fixed(8 * (s.kv_heads + 1))),
        // Written and read, at most; of a short context fewer pieces have positions.
        Param::buffer("piece_sums", Element::F32, Access::ReadWrite, per_head(2 * 4 * splits * dh)),
        Param::buffer("piece_stats", Element::F32, Access::ReadWrite, per_head(2 * 8 * splits)),
        Param::buffer("arrivals", Element::U32, Access::ReadWrite, Traffic::fixed(8 * arrivals(spec))),
        match all_contexts {
            true => Param::written("contexts", Element::F32, s.heads * dh),
            false => Param::buffer("contexts", Element::F32, Access::Write, per_head(4 * dh)),
        },
        Param::number("window"),
    ];
    let needed = 2 * s.kv_heads + 1;
    let body = BODY.replace("$CLEAR", if all_contexts { CLEAR } else { "" });
    Draft {
        name: format!("attention_h{}x{}_kv{}_{}", s.heads, dh, s.kv_heads, spec.cache.name()),
        purpose: "Attention of kept heads over pieces of the context, put together; moves the watermarks of the lazy fill.",
        grid: [s.kv_heads * chunks, splits],
        threads: THREADS,
        resident: 1,
        shared: 4 * (needed + workers * queries * (dh + 2)),
        params,
        body: fill(
            &body,
            &[
                ("C", &class(spec.cache)),
                ("KV", &s.kv_heads),
                ("DH", &dh),
                ("GROUP", &spec.group()),
                ("CHUNKS", &chunks),
                ("QUERIES", &queries),
                ("SPLITS", &splits),
                ("LANES", &lanes),
                ("LOADS", &loads),
                ("HELD", &(loads * spec.cache.vector())),
                ("FLIGHT", &(if loads == 1 { 4 } else { 2 })),
                ("WORKERS", &workers),
                ("ROW", &row),
                ("CONTEXT", &s.context),
                ("FLUSH", &spec.kv_flush),
                ("NEEDED", &needed),
                ("SCALE", &norm::float((dh as f32).powf(-0.5))),
                ("THREADS", &THREADS),
            ],
        ),
    }
    .finish()
}
