//! LM head and the greedy choice.
//!
//! The final norm is in front of the head; each warp computes whole rows. Every block keeps the best logit of its rows, and the block
//! that comes to its end last takes the best of those, so the greedy choice reads the logits once, while they are made. It also moves
//! the sequence on: the next token's launch needs nothing from the host.
//!
//! Other samplers (temperature, top-k, top-p) run on the host, from the logits: they are defined by 64-bit sums in a fixed order
//! and a stream of random numbers, and the same seed must give the same tokens on every device.

use crate::kernel::{Access, Draft, Element, Kernel, Param, Traffic};
use crate::prelude::class;
use crate::template::fill;
use crate::{KernelSpec, norm};

/// A logit is NaN or positive infinity, or none is finite.
pub const STATUS_BAD_LOGIT: u32 = 1;
/// A predicted score is NaN or infinite.
pub const STATUS_BAD_SCORE: u32 = 2;

const THREADS: usize = 512;

const HEAD: &str = r#"    float4* x = shared_memory;
    float* slots = (float*)(x + $D / 4);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    $NORM
    __syncthreads();
    float best = __uint_as_float(0xff800000u);
    u32 id = 0xffffffffu;
    bool sound = true;
    for (u32 row = blockIdx.x * $WARPS + warp; row < $V; row += $BLOCKS * $WARPS) {
        float acc[1];
        lane_dots<$W, $NV, 1>(head + (u64)row * $NV, 0, x, lane, acc);
        const float logit = lanes_sum<32>(acc[0]);
        if (lane == 0) logits[row] = logit;
        // False for NaN and for infinity.
        sound = sound && logit < __uint_as_float(0x7f800000u);
        if (logit > best) {
            best = logit;
            id = row;
        }
    }
    // Every warp's best, then the block's; of equal ones the lowest row.
    float* warp_best = slots;
    u32* warp_id = (u32*)(slots + $WARPS);
    __syncthreads();
    if (lane == 0) {
        warp_best[warp] = best;
        warp_id[warp] = id;
        if (!sound) atomicOr(state + 2, $BAD);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 w = 1; w < $WARPS; w++) {
            if (warp_best[w] > best || (warp_best[w] == best && warp_id[w] < id)) {
                best = warp_best[w];
                id = warp_id[w];
            }
        }
        block_best[blockIdx.x] = best;
        block_id[blockIdx.x] = id;
    }
    // The best logit's token becomes the next token. Of equal logits the lowest token.
    if (!arrives_last(arrivals, $BLOCKS, warp_id) || threadIdx.x >= 32) return;
    best = __uint_as_float(0xff800000u);
    id = 0xffffffffu;
    for (u32 i = threadIdx.x; i < $BLOCKS; i += 32) {
        const float other = __ldcg(block_best + i);
        const u32 other_id = __ldcg(block_id + i);
        if (other > best || (other == best && other_id < id)) {
            best = other;
            id = other_id;
        }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, best, step);
        const u32 other_id = __shfl_xor_sync(ALL_LANES, id, step);
        if (other > best || (other == best && other_id < id)) {
            best = other;
            id = other_id;
        }
    }
    if (threadIdx.x == 0) {
        if (id >= $V) {
            // No logit is finite.
            atomicOr(state + 2, $BAD);
            id = 0;
        }
        const u32 position = state[1] + 1;
        if (position < $CONTEXT) tokens[position] = id;
        state[0] = id;
        state[1] = position;
    }
"#;

/// Blocks of the LM head.
pub(crate) const fn blocks(spec: &KernelSpec) -> usize {
    spec.blocks(spec.sizes.vocab)
}

/// `logits` `[V]`, and the greedy choice; moves the sequence on by one position.
pub(crate) fn kernel(spec: &KernelSpec) -> Kernel {
    let s = &spec.sizes;
    let blocks = blocks(spec);
    let mut params = vec![Param::weights("head", Traffic::fixed(s.vocab * spec.row_bytes() as usize))];
    params.extend(norm::params(spec));
    let best = Traffic::fixed(2 * 4 * blocks);
    params.extend([
        Param::written("logits", Element::F32, s.vocab),
        Param::buffer("block_best", Element::F32, Access::ReadWrite, best),
        Param::buffer("block_id", Element::U32, Access::ReadWrite, best),
        Param::buffer("arrivals", Element::U32, Access::ReadWrite, Traffic::fixed(8)),
        Param::buffer("state", Element::U32, Access::ReadWrite, Traffic::fixed(16)),
        Param::written("tokens", Element::U32, 1),
    ]);
    Draft {
        name: format!("head_d{}_v{}_{}", s.hidden, s.vocab, spec.dtype.name()),
        purpose: "Final norm, LM head and the greedy choice.",
        grid: [blocks, 1],
        threads: THREADS,
        resident: 1,
        shared: 4 * s.hidden + norm::SLOTS,
        params,
        body: fill(
            HEAD,
            &[
                ("W", &class(spec.dtype)),
                ("D", &s.hidden),
                ("NV", &spec.vectors()),
                ("V", &s.vocab),
                ("BLOCKS", &blocks),
                ("WARPS", &(THREADS / 32)),
                ("CONTEXT", &s.context),
                ("BAD", &STATUS_BAD_LOGIT),
                ("NORM", &norm::call(spec, THREADS)),
            ],
        ),
    }
    .finish()
}
