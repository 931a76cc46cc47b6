//! The FFN over the kept neurons: one pass over their records.
//!
//! The list is cut into as many pieces as there are blocks. In a block each warp takes whole neurons in turn and computes their
//! inner values (first rows times the normalised residual stream, activation); after one barrier all threads add second rows
//! times inner values up. With ReLU, neurons that turned out to be 0 are taken off the list in between, so the second half of
//! their record is not read. A reduction adds the pieces in order.

use crate::kernel::{Access, Draft, Element, Kernel, Param, Traffic};
use crate::prelude::class;
use crate::template::fill;
use crate::{Activation, KernelSpec, norm};

/// Device function `activate`; NaN stays NaN. The formulas of the CPU engine.
pub(crate) fn activation(activation: Activation) -> &'static str {
    match activation {
        Activation::Relu => {
            r#"
DEVICE float activate(float x) { return x < 0.0f ? 0.0f : x; }
"#
        }
        Activation::Silu => {
            r#"
DEVICE float activate(float x) { return x / (1.0f + exponential(-x)); }
"#
        }
        Activation::GeluTanh => {
            r#"
DEVICE float activate(float x) {
    const float twice = x * 1.5957692f * fmaf(x * x, 0.044715f, 1.0f);
    return x / (1.0f + exponential(-twice));
}
"#
        }
        Activation::Gelu => {
            r#"
// x Phi(x): erfc(z) = t Q(t) e^(-z^2) with z = |x| / sqrt(2), t = 1 / (1 + 0.4 z).
DEVICE float activate(float x) {
    const float q[10] = {0.22571686f, 0.22474867f, 0.2166894f, 0.121059984f, 0.2979732f,
                         -0.33431187f, 0.6093422f, -0.5465026f, 0.21878535f, -0.033501126f};
    const float t = 1.0f / fmaf(fabsf(x) * 0.70710678f, 0.4f, 1.0f);
    float p = q[9];
#pragma unroll
    for (int i = 8; i >= 0; i--) p = fmaf(p, t, q[i]);
    const float tail = (0.5f * t) * (p * exponential(x * x * -0.5f));
    return x * (x >= 0.0f ? 1.0f - tail : tail);
}
"#
        }
    }
}

const BODY: &str = r#"    // This block's piece of the list.
    const u32 kept = counts[1];
    const u32 first = kept * blockIdx.x / $BLOCKS, length = kept * (blockIdx.x + 1) / $BLOCKS - first;
    float4* x = shared_memory;
    float* slots = (float*)(shared_memory + $PLANES);
    float* inner = slots + 64;
    u32* units = (u32*)(inner + $MOST);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    $NORM
    __syncthreads();
    for (u32 i = warp; i < length; i += $WARPS) {
        const u32 unit = list[first + i];
        float acc[$FIRSTS];
        lane_dots<$W, $NV, $FIRSTS>(records + (u64)unit * $RECORD, $NV, x, lane, acc);
$INNER        if (lane == 0) {
            inner[i] = z;
            units[i] = unit;
        }
    }
    __syncthreads();
$COMPACT    const u32 group = threadIdx.x / $GROUP, t = threadIdx.x % $GROUP;
    float sums[$PASSES][$W::SIZE] = {};
    add_rows<$W, $NV, $GROUP, $PASSES>(
        t, group, $GROUPS, rest, [&](u32 i) { return records + (u64)units[i] * $RECORD + $FIRSTS * $NV; },
        [&](u32 i) { return inner[i]; }, sums);
    write_sums<$W, $NV, $GROUP, $GROUPS, $PASSES>(group, t, sums, shared_memory, partial + (u64)blockIdx.x * $D);
"#;

/// Takes idle neurons off the list, in place: what a lane writes was read before the ballot by the lane that had it.
const COMPACT: &str = r#"    // Neurons that are not 0, moved together in order. NaN is not 0.
    u32* active = units + $MOST;
    if (threadIdx.x < 32) {
        u32 count = 0;
        for (u32 base = 0; base < length; base += 32) {
            const u32 i = base + lane;
            const float z = i < length ? inner[i] : 0.0f;
            const u32 unit = i < length ? units[i] : 0u;
            const bool counts_in = z != 0.0f;
            const u32 all = __ballot_sync(ALL_LANES, counts_in);
            __syncwarp();
            if (counts_in) {
                const u32 slot = count + __popc(all & ((1u << lane) - 1u));
                inner[slot] = z;
                units[slot] = unit;
            }
            count += __popc(all);
            __syncwarp();
        }
        if (lane == 0) *active = count;
    }
    __syncthreads();
    const u32 rest = *active;
    if (threadIdx.x == 0) read_whole[blockIdx.x] = rest;
"#;

/// `partial` `[FFN pieces, d]`; with ReLU `read_whole` `[FFN pieces]`, how many neurons each piece read to the end.
pub(crate) fn kernel(spec: &KernelSpec) -> Kernel {
    let s = &spec.sizes;
    let (blocks, groups) = (spec.ffn_pieces(), spec.groups());
    let gated = spec.family.is_llama();
    let (firsts, row) = (if gated { 2 } else { 1 }, spec.row_bytes());
    let relu = spec.activation == Activation::Relu && !gated;
    let traffic = match relu {
        true => Traffic { neuron: row, active: row, ..Traffic::NONE },
        false => Traffic { neuron: (firsts as u64 + 1) * row, ..Traffic::NONE },
    };
    let per_neuron = Traffic { neuron: 4, ..Traffic::NONE };
    let mut params = vec![Param::weights("records", traffic)];
    params.extend(norm::params(spec));
    let vector = |name| Param::buffer(name, Element::F32, Access::Read, per_neuron);
    if spec.bias.ffn {
        params.push(vector("first_bias"));
        if gated {
            params.push(vector("up_bias"));
        }
    }
    params.push(Param::buffer("list", Element::U32, Access::Read, per_neuron));
    params.push(Param::read("counts", Element::U32, 1));
    params.push(Param::written("partial", Element::F32, blocks * s.hidden));
    if relu {
        params.push(Param::written("read_whole", Element::U32, blocks));
    }
    let (first_bias, up_bias) = match spec.bias.ffn {
        true => (" + first_bias[unit]", " + up_bias[unit]"),
        false => ("", ""),
    };
    let inner = match gated {
        true => format!(
            "        const float gate = lanes_sum<32>(acc[0]){first_bias}, up = lanes_sum<32>(acc[1]){up_bias};\n        const float z = activate(gate) * up;\n"
        ),
        false => format!("        const float z = activate(lanes_sum<32>(acc[0]){first_bias});\n"),
    };
    let body = BODY.replace("$INNER", &inner);
    let body = body.replace("$COMPACT", if relu { COMPACT } else { "    const u32 rest = length;\n" });
    // The normalised row is not needed any more when groups meet.
    let planes = s.hidden / 4 * (groups.groups - 1).max(1);
    let most = s.ffn.div_ceil(blocks) + 1;
    Draft {
        name: format!("ffn_d{}_f{}_{}", s.hidden, s.ffn, spec.dtype.name()),
        purpose: "FFN over kept neurons, one pass over their records, summed in pieces.",
        grid: [blocks, 1],
        threads: groups.threads(),
        resident: 1,
        shared: 16 * planes + norm::SLOTS + 8 * most + 4,
        params,
        body: fill(
            &body,
            &[
                ("W", &class(spec.dtype)),
                ("D", &s.hidden),
                ("NV", &spec.vectors()),
                ("FIRSTS", &firsts),
                ("RECORD", &((firsts + 1) * spec.vectors())),
                ("BLOCKS", &blocks),
                ("MOST", &most),
                ("PLANES", &planes),
                ("GROUP", &groups.group),
                ("GROUPS", &groups.groups),
                ("PASSES", &groups.passes),
                ("WARPS", &(groups.threads() / 32)),
                ("NORM", &norm::call(spec, groups.threads())),
            ],
        ),
    }
    .finish()
}
