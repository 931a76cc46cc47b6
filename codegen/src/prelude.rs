//! Text that stands in front of all kernels: conversions, sums, exponentials.
//!
//! There are no includes, so that a kernel compiles in tens of milliseconds and the text is all there is. Products are added by
//! `fmaf` where it is written and never elsewhere (`--fmad=false`); the exponential is the polynomial of the CPU engine, not the
//! hardware's approximation. So an emulator, a CPU twin and a GPU that add in the same order have the same bits.

/// The prelude.
pub(crate) const PRELUDE: &str = r#"typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;
#define DEVICE __device__ __forceinline__
#define ALL_LANES 0xffffffffu

// All dynamic shared memory; kernels cut it themselves.
extern __shared__ float4 shared_memory[];

// Weights and caches: 16 bytes hold SIZE values, widened exactly.
struct F32 {
    typedef float value;
    static const int SIZE = 4;
    static DEVICE void widen(uint4 v, float (&x)[4]) {
        x[0] = __uint_as_float(v.x);
        x[1] = __uint_as_float(v.y);
        x[2] = __uint_as_float(v.z);
        x[3] = __uint_as_float(v.w);
    }
    static DEVICE float narrow(float x) { return x; }
};

DEVICE float half_bits_to_float(u16 h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}

DEVICE float brain_bits_to_float(u16 b) { return __uint_as_float((u32)b << 16); }

struct F16 {
    typedef u16 value;
    static const int SIZE = 8;
    static DEVICE void widen(uint4 v, float (&x)[8]) {
        const u32 pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x[2 * i] = half_bits_to_float((u16)(pairs[i] & 0xffffu));
            x[2 * i + 1] = half_bits_to_float((u16)(pairs[i] >> 16));
        }
    }
    static DEVICE u16 narrow(float x) {
        u16 h;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
        return h;
    }
};

struct BF16 {
    typedef u16 value;
    static const int SIZE = 8;
    static DEVICE void widen(uint4 v, float (&x)[8]) {
        const u32 pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x[2 * i] = __uint_as_float(pairs[i] << 16);
            x[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
        }
    }
    static DEVICE u16 narrow(float x) {
        u16 h;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x));
        return h;
    }
};

// 2^n for -126 <= n <= 127.
DEVICE float power_of_two(int n) { return __uint_as_float((u32)(n + 127) << 23); }

// e^x: x = n ln 2 + r with |r| <= ln(2)/2, then 2^n (1 + r + r^2 P(r)). At most 2 ULP; 0 below -104, infinity above 88.73.
DEVICE float exponential(float x) {
    x = x < -105.0f ? -105.0f : (x > 89.0f ? 89.0f : x);
    const float n = fmaf(x, 1.44269502f, 12582912.0f) - 12582912.0f;
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 0.0013926191f;
    p = fmaf(p, r, 0.008363185f);
    p = fmaf(p, r, 0.041666556f);
    p = fmaf(p, r, 0.16666577f);
    p = fmaf(p, r, 0.5f);
    const float e = 1.0f + fmaf(r * r, p, r);
    // In two steps, because 2^n alone may be no number.
    const int k = (int)n;
    return e * power_of_two(k >> 1) * power_of_two(k - (k >> 1));
}

DEVICE void add(float4& sum, float4 x) {
    sum.x += x.x;
    sum.y += x.y;
    sum.z += x.z;
    sum.w += x.w;
}

// Sum over the lanes that differ from this one in bits below WIDTH, a power of two: by 16, 8, 4, 2, 1. Every lane has it.
template <int WIDTH> DEVICE float lanes_sum(float x) {
#pragma unroll
    for (int step = WIDTH / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}
template <int WIDTH> DEVICE int lanes_sum(int x) {
#pragma unroll
    for (int step = WIDTH / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}
template <int WIDTH> DEVICE float lanes_max(float x) {
#pragma unroll
    for (int step = WIDTH / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}
template <int WIDTH> DEVICE float lanes_min(float x) {
#pragma unroll
    for (int step = WIDTH / 2; step > 0; step /= 2) x = fminf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// Sum over the block: lanes, then warps in order. `slots` [WARPS, rounded up to 4] are written, and free again after the next barrier.
template <int WARPS> DEVICE float block_sum(float x, float* slots) {
    x = lanes_sum<32>(x);
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = x;
    // They are read four at a time.
    if (WARPS % 4 > 0 && threadIdx.x >= WARPS && threadIdx.x < (WARPS + 3) / 4 * 4) slots[threadIdx.x] = 0.0f;
    __syncthreads();
    float total = slots[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++) total += slots[w];
    return total;
}

// A vector in shared memory that is multiplied with rows of weights. Sixteen bytes of weights meet SIZE values of it; these lie in
// planes of four, so that neighbouring lanes read neighbouring 16 bytes: values 4i .. 4i+3 are at place(i).
template <class W, int VECTORS> DEVICE u32 place(u32 i) {
    return W::SIZE == 4 ? i : (i % 2) * VECTORS + i / 2;
}

// acc + w . x for the 16 bytes `w`, value after value.
template <class W, int VECTORS> DEVICE float multiply(uint4 w, const float4* x, u32 v, float acc) {
    float e[W::SIZE];
    W::widen(w, e);
#pragma unroll
    for (int k = 0; k < W::SIZE / 4; k++) {
        const float4 q = x[k * VECTORS + v];
        acc = fmaf(e[4 * k], q.x, acc);
        acc = fmaf(e[4 * k + 1], q.y, acc);
        acc = fmaf(e[4 * k + 2], q.z, acc);
        acc = fmaf(e[4 * k + 3], q.w, acc);
    }
    return acc;
}

template <class W, int VECTORS, int ROWS, int STEPS>
DEVICE void dot_steps(const uint4* __restrict__ row, u32 stride, const float4* x, u32 v, float (&acc)[ROWS]) {
    uint4 w[STEPS][ROWS];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) w[s][r] = __ldg(row + r * stride + v + 32 * s);
    }
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) acc[r] = multiply<W, VECTORS>(w[s][r], x, v + 32 * s, acc[r]);
    }
}

// A warp's products of ROWS rows, `stride` vectors apart, with x: this lane's share, vectors lane, lane + 32, ... in order. Eight
// loads of 16 bytes are in flight.
template <class W, int VECTORS, int ROWS>
DEVICE void lane_dots(const uint4* __restrict__ row, u32 stride, const float4* x, u32 lane, float (&acc)[ROWS]) {
    const int WHOLE = VECTORS / 32, BATCH = 8 / ROWS;
#pragma unroll
    for (int r = 0; r < ROWS; r++) acc[r] = 0.0f;
    u32 v = lane;
#pragma unroll 1
    for (int s = 0; s < WHOLE / BATCH; s++, v += 32 * BATCH) {
        dot_steps<W, VECTORS, ROWS, BATCH>(row, stride, x, v, acc);
    }
    if constexpr (WHOLE % BATCH > 0) {
        dot_steps<W, VECTORS, ROWS, WHOLE % BATCH>(row, stride, x, v, acc);
        v += 32 * (WHOLE % BATCH);
    }
    if constexpr (VECTORS % 32 > 0) {
        if (lane < VECTORS % 32) dot_steps<W, VECTORS, ROWS, 1>(row, stride, x, v, acc);
    }
}

// Adds rows times factors to sums that the threads of a group of GROUP hold together: thread t has vectors t, t + GROUP, ... This
// group adds rows first, first + step, ... below `rows`, in order; as many are in flight as make about eight loads.
// row_of(i) is a row's start, factor_of(i) its factor.
template <class W, int VECTORS, int GROUP, int PASSES, class Row, class Factor>
DEVICE void add_rows(u32 t, u32 first, u32 step, u32 rows, Row row_of, Factor factor_of, float (&acc)[PASSES][W::SIZE]) {
    const int FLIGHT = PASSES >= 8 ? 1 : 8 / PASSES;
#pragma unroll 1
    for (u32 i = first; i < rows; i += FLIGHT * step) {
        uint4 w[FLIGHT][PASSES];
        float factor[FLIGHT];
#pragma unroll
        for (int b = 0; b < FLIGHT; b++) {
            const u32 k = i + b * step;
            const bool there = k < rows;
            const uint4* row = row_of(there ? k : i);
            factor[b] = there ? factor_of(k) : 0.0f;
#pragma unroll
            for (int p = 0; p < PASSES; p++) {
                const u32 v = t + p * GROUP;
                w[b][p] = make_uint4(0u, 0u, 0u, 0u);
                if (there && v < VECTORS) w[b][p] = __ldg(row + v);
            }
        }
#pragma unroll
        for (int b = 0; b < FLIGHT; b++) {
#pragma unroll
            for (int p = 0; p < PASSES; p++) {
                float e[W::SIZE];
                W::widen(w[b][p], e);
#pragma unroll
                for (int k = 0; k < W::SIZE; k++) acc[p][k] = fmaf(factor[b], e[k], acc[p][k]);
            }
        }
    }
}

// Adds the sums of all groups in order and writes them, [VECTORS * SIZE]. Uses shared memory `meet`, which nobody reads any more, for
// all groups but the first. All threads of the block take part.
template <class W, int VECTORS, int GROUP, int GROUPS, int PASSES>
DEVICE void write_sums(u32 group, u32 t, float (&acc)[PASSES][W::SIZE], float4* meet, float* out) {
    const int FOURS = W::SIZE / 4;
    if (group > 0) {
#pragma unroll
        for (int p = 0; p < PASSES; p++) {
            const u32 v = t + p * GROUP;
#pragma unroll
            for (int k = 0; k < FOURS; k++) {
                const float4 q = make_float4(acc[p][4 * k], acc[p][4 * k + 1], acc[p][4 * k + 2], acc[p][4 * k + 3]);
                if (v < VECTORS) meet[((group - 1) * FOURS + k) * VECTORS + v] = q;
            }
        }
    }
    __syncthreads();
    if (group == 0) {
#pragma unroll
        for (int p = 0; p < PASSES; p++) {
            const u32 v = t + p * GROUP;
            if (v < VECTORS) {
#pragma unroll
                for (int k = 0; k < FOURS; k++) {
                    float4 q = make_float4(acc[p][4 * k], acc[p][4 * k + 1], acc[p][4 * k + 2], acc[p][4 * k + 3]);
                    for (int g = 1; g < GROUPS; g++) add(q, meet[((g - 1) * FOURS + k) * VECTORS + v]);
                    ((float4*)out)[v * FOURS + k] = q;
                }
            }
        }
    }
}

// Whether this block is the last of `blocks` to come here, counted in `counter`. What the others wrote before is then there, for loads that
// pass by the first-level cache (__ldcg). `flag` is shared memory. All threads of the block take part.
DEVICE bool arrives_last(u32* counter, u32 blocks, u32* flag) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *flag = atomicAdd(counter, 1u) + 1 == blocks ? 1u : 0u;
    __syncthreads();
    const bool last = *flag != 0u;
    if (last) __threadfence();
    return last;
}

// Positions that the token at `position` sees: at most the last `window`, all if that is 0. They are cut into SPLITS pieces of
// equal length, a multiple of 32.
struct Visible {
    u32 first;
    u32 end;
    u32 length;
};
template <int SPLITS> DEVICE Visible visible(u32 position, u32 window) {
    Visible v;
    v.end = position + 1;
    v.first = window > 0 && v.end > window ? v.end - window : 0;
    v.length = ((v.end - v.first + SPLITS - 1) / SPLITS + 31) / 32 * 32;
    return v;
}
"#;

/// The prelude's name of a type.
pub(crate) const fn class(dtype: crate::DType) -> &'static str {
    match dtype {
        crate::DType::F32 => "F32",
        crate::DType::F16 => "F16",
        crate::DType::BF16 => "BF16",
    }
}
