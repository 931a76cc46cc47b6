//! Products of a block of tokens with rows of weights, or with columns, tile by tile through shared memory.
//!
//! A block of threads has all tokens and 128 outputs, so weights are read once; eight warps hold 32 tokens by 64 outputs each. The depth
//! is walked 32 at a time in three stages (two of `f32`): while one is multiplied, the others are copied, 16 bytes at a time and past the
//! registers, so that about 20 KB of weights are on their way to every multiprocessor.
//! Rows in shared memory are 16 bytes longer than their content, so that the eight rows of a fragment lie in different banks. Tokens that
//! the block does not have are neither copied nor multiplied.

use crate::KernelSpec;
use crate::template::{fill, round_up};
use crate::{DType, prelude::class};

/// Outputs of a block of threads.
pub(super) const OUTPUTS: usize = 128;
/// Depth of a stage.
pub(super) const DEPTH: usize = 32;
/// Threads of a block.
pub(super) const THREADS: usize = 256;

const TYPE: &str = r#"
// Activations of a block of tokens are split in planes [$TOKENS, width] of numbers of the weights' type, whose sum they are.
typedef $W::value part;
"#;

const PRODUCT: &str = r#"
DEVICE void copy_async(void* to, const void* from, u32 bytes) {
    const u32 at = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}

// Copies one stage: split activations x [planes][$TOKENS, WIDTH] at depth k .. k + $DEPTH, then weights. Of row_of(i) the rows are whole, of
// COLUMNS 128 outputs from the first on; it is 0 where there is no row.
template <int K, bool COLUMNS, class Row>
DEVICE void copy_stage(part* stage, const part* x, u32 count, u32 k, u32 first, Row row_of) {
    const int SIZE = $W::SIZE, WIDTH = (K + SIZE - 1) / SIZE * SIZE, CHUNKS = $DEPTH / SIZE;
    const u32 tokens = (count + 15) / 16 * 16;
    for (u32 i = threadIdx.x; i < tokens * CHUNKS; i += $THREADS) {
        const u32 chunk = i % CHUNKS, t = i / CHUNKS, at = k + chunk * SIZE;
        const bool there = t < count && at < K;
        const u32 bytes = there ? (K - at < SIZE ? (K - at) * sizeof(part) : 16) : 0;
#pragma unroll
        for (int p = 0; p < $PLANES; p++) {
            copy_async(stage + (p * $TOKENS + t) * $X_ROW + chunk * SIZE,
                       x + (there ? (u64)(p * $TOKENS + t) * WIDTH + at : 0), bytes);
        }
    }
    part* weights = stage + $PLANES * $TOKENS * $X_ROW;
    if constexpr (COLUMNS) {
        const int ROW_CHUNKS = $OUTPUTS / SIZE;
        for (u32 i = threadIdx.x; i < $DEPTH * ROW_CHUNKS; i += $THREADS) {
            const u32 chunk = i % ROW_CHUNKS, r = i / ROW_CHUNKS, at = first / SIZE + chunk;
            const bool there = k + r < K && at < $NV;
            copy_async(weights + r * $COLUMN_ROW + chunk * SIZE, there ? (const void*)(row_of(k + r) + at) : x, there ? 16 : 0);
        }
    } else {
        for (u32 i = threadIdx.x; i < $OUTPUTS * CHUNKS; i += $THREADS) {
            const u32 chunk = i % CHUNKS, n = i / CHUNKS, at = k + chunk * SIZE;
            const uint4* row = row_of(n);
            const bool there = row != 0 && at < K;
            copy_async(weights + n * $X_ROW + chunk * SIZE, there ? (const void*)(row + at / SIZE) : x, there ? 16 : 0);
        }
    }
}

// Adds the products of steps `step` .. `end` of the depth K. This thread's sums: acc[i][j][e] is token 32 (warp % 4) + 16 i + lane / 4 + 8
// (e / 2), output 64 (warp / 4) + 8 j + 2 (lane % 4) + e % 2.
template <int K, bool COLUMNS, class Row>
DEVICE void block_product(const part* x, u32 count, u32 step, u32 end, u32 first, Row row_of, float (&acc)[2][8][4]) {
    part* stages = (part*)shared_memory;
#pragma unroll
    for (u32 s = 0; s < $STAGES - 1; s++) {
        if (step + s < end) copy_stage<K, COLUMNS>(stages + s * $STAGE, x, count, (step + s) * $DEPTH, first, row_of);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
#pragma unroll 1
    for (u32 turn = 0; step < end; step++, turn = (turn + 1) % $STAGES) {
        asm volatile("cp.async.wait_group $WAITING;" ::: "memory");
        // This stage is there for all, and all are through with the one before it, which is filled again.
        __syncthreads();
        if (step + $STAGES - 1 < end) {
            part* free = stages + (turn + $STAGES - 1) % $STAGES * $STAGE;
            copy_stage<K, COLUMNS>(free, x, count, (step + $STAGES - 1) * $DEPTH, first, row_of);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        multiply_stage<COLUMNS>(stages + turn * $STAGE, count, acc);
    }
}

// Outputs in pairs: the second 32 of a warp's 64 belong to the first. each(token, pair, a, b) for the tokens that there are.
template <class Each> DEVICE void each_pair(u32 count, const float (&acc)[2][8][4], Each each) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const u32 t = warp % 4 * 32 + i * 16 + lane / 4 + e / 2 * 8;
                if (t < count) each(t, warp / 4 * 32 + j * 8 + lane % 4 * 2 + e % 2, acc[i][j][e], acc[i][j + 4][e]);
            }
        }
    }
}
"#;

const TENSOR: &str = r#"
DEVICE void store_split(part* planes, u32 plane, u64 at, float x) {
    const u16 high = $W::narrow(x);
    planes[at] = high;
    planes[plane + at] = $W::narrow(x - $WIDEN(high));
}
DEVICE void store_split(part* planes, u32 plane, u64 at, float4 x) {
    const float values[4] = {x.x, x.y, x.z, x.w};
    u32 high[4], low[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        high[k] = $W::narrow(values[k]);
        low[k] = $W::narrow(values[k] - $WIDEN((u16)high[k]));
    }
    *(uint2*)(planes + at) = make_uint2(high[0] | high[1] << 16, high[2] | high[3] << 16);
    *(uint2*)(planes + plane + at) = make_uint2(low[0] | low[1] << 16, low[2] | low[3] << 16);
}

// Four 8x8 matrices whose rows' addresses the lanes give.
DEVICE void load_matrices(const part* row, u32 (&to)[4]) {
    const u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}
DEVICE void load_transposed(const part* row, u32 (&to)[4]) {
    const u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

DEVICE void multiply_add(float (&sum)[4], const u32 (&a)[4], u32 low, u32 high) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.$KIND.$KIND.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(low), "r"(high));
}

template <bool COLUMNS> DEVICE void multiply_stage(const part* stage, u32 count, float (&acc)[2][8][4]) {
    const part* weights = stage + $PLANES * $TOKENS * $X_ROW;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, token = warp % 4 * 32, output = warp / 4 * 64;
    if (token >= count) return;
    const bool both = token + 16 < count;
#pragma unroll
    for (int k = 0; k < $DEPTH; k += 16) {
        u32 a[$PLANES][2][4];
#pragma unroll
        for (int p = 0; p < $PLANES; p++) {
            const part* row = stage + (p * $TOKENS + token + lane % 16) * $X_ROW + k + lane / 16 * 8;
            load_matrices(row, a[p][0]);
            if (both) load_matrices(row + 16 * $X_ROW, a[p][1]);
        }
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            // Depths k and k + 8 of outputs 8j, then of outputs 8j + 8.
            u32 b[4];
            if constexpr (COLUMNS) {
                load_transposed(weights + (k + lane % 16) * $COLUMN_ROW + output + j * 8 + lane / 16 * 8, b);
            } else {
                load_matrices(weights + (output + j * 8 + lane / 16 * 8 + lane % 8) * $X_ROW + k + lane / 8 % 2 * 8, b);
            }
#pragma unroll
            for (int p = 0; p < $PLANES; p++) {
                multiply_add(acc[0][j], a[p][0], b[0], b[1]);
                multiply_add(acc[0][j + 1], a[p][0], b[2], b[3]);
                if (both) {
                    multiply_add(acc[1][j], a[p][1], b[0], b[1]);
                    multiply_add(acc[1][j + 1], a[p][1], b[2], b[3]);
                }
            }
        }
    }
}
"#;

const PLAIN: &str = r#"
DEVICE void store_split(part* planes, u32, u64 at, float x) { planes[at] = x; }
DEVICE void store_split(part* planes, u32, u64 at, float4 x) { *(float4*)(planes + at) = x; }

template <bool COLUMNS> DEVICE void multiply_stage(const part* stage, u32 count, float (&acc)[2][8][4]) {
    const part* weights = stage + $TOKENS * $X_ROW;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, token = warp % 4 * 32, output = warp / 4 * 64 + lane % 4 * 2;
    if (token >= count) return;
    const bool both = token + 16 < count;
#pragma unroll 1
    for (u32 k = 0; k < $DEPTH; k++) {
        float a[2][2] = {};
        for (int i = 0; i < (both ? 2 : 1); i++) {
            a[i][0] = stage[(token + i * 16 + lane / 4) * $X_ROW + k];
            a[i][1] = stage[(token + i * 16 + lane / 4 + 8) * $X_ROW + k];
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const u32 n = output + j * 8 + e;
                const float b = COLUMNS ? weights[k * $COLUMN_ROW + n] : weights[n * $X_ROW + k];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    acc[i][j][e] = fmaf(a[i][0], b, acc[i][j][e]);
                    acc[i][j][2 + e] = fmaf(a[i][1], b, acc[i][j][2 + e]);
                }
            }
        }
    }
}
"#;

/// Elements of a row of activations, and of rows of weights, in shared memory.
const fn row(spec: &KernelSpec) -> usize {
    DEPTH + spec.dtype.vector()
}

/// Elements of a row of outputs in shared memory.
const fn column_row(spec: &KernelSpec) -> usize {
    OUTPUTS + spec.dtype.vector()
}

/// Elements of a stage.
fn stage(spec: &KernelSpec) -> usize {
    let weights = (OUTPUTS * row(spec)).max(DEPTH * column_row(spec));
    super::planes(spec.dtype) * super::TOKENS * row(spec) + round_up(weights, 8)
}

/// Stages of which a block has room, within what a multiprocessor of every generation has.
const fn stages(dtype: DType) -> usize {
    match dtype {
        DType::F32 => 2,
        DType::F16 | DType::BF16 => 3,
    }
}

/// Bytes of shared memory of a product.
pub(super) fn shared(spec: &KernelSpec) -> usize {
    stages(spec.dtype) * stage(spec) * spec.dtype.size()
}

/// The device functions for a spec.
pub(crate) fn functions(spec: &KernelSpec) -> String {
    let (own, widen, kind) = match spec.dtype {
        DType::F32 => (PLAIN, "", ""),
        DType::F16 => (TENSOR, "half_bits_to_float", "f16"),
        DType::BF16 => (TENSOR, "brain_bits_to_float", "bf16"),
    };
    fill(
        &format!("{TYPE}{own}{PRODUCT}"),
        &[
            ("W", &class(spec.dtype)),
            ("WIDEN", &widen),
            ("KIND", &kind),
            ("NV", &spec.vectors()),
            ("TOKENS", &super::TOKENS),
            ("OUTPUTS", &OUTPUTS),
            ("DEPTH", &DEPTH),
            ("THREADS", &THREADS),
            ("PLANES", &super::planes(spec.dtype)),
            ("X_ROW", &row(spec)),
            ("COLUMN_ROW", &column_row(spec)),
            ("STAGE", &stage(spec)),
            ("STAGES", &stages(spec.dtype)),
            ("WAITING", &(stages(spec.dtype) - 2)),
        ],
    )
}
