//! The embedding row of the present token, and its position's.

use crate::kernel::{Draft, Element, Kernel, Param, Traffic};
use crate::prelude::class;
use crate::template::fill;
use crate::{Family, KernelSpec};

const THREADS: usize = 128;

const BODY: &str = r#"    const u32 v = blockIdx.x * $THREADS + threadIdx.x;
    if (v >= $NV) return;
    float x[$W::SIZE];
    $W::widen(__ldg(table + (u64)state[0] * $NV + v), x);
$POSITION#pragma unroll
    for (int k = 0; k < $W::SIZE / 4; k++) {
        ((float4*)residual)[v * ($W::SIZE / 4) + k] = make_float4(x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3]);
    }
"#;

const POSITION: &str = r#"    float learned[$W::SIZE];
    $W::widen(__ldg(positions + (u64)(state[1] + $OFFSET) * $NV + v), learned);
#pragma unroll
    for (int k = 0; k < $W::SIZE; k++) x[k] += learned[k];
"#;

/// `residual = embedding[token] (+ positions[position + offset])`, `[d]`.
pub(crate) fn kernel(spec: &KernelSpec) -> Kernel {
    let learned = spec.family == Family::Opt;
    let row = Traffic::fixed(spec.row_bytes() as usize);
    let mut params = vec![Param::weights("table", row)];
    if learned {
        params.push(Param::weights("positions", row));
    }
    params.push(state());
    params.push(Param::written("residual", Element::F32, spec.sizes.hidden));
    let (w, vectors) = (class(spec.dtype), spec.vectors());
    let position = if learned { POSITION } else { "" };
    let body = BODY.replace("$POSITION", position);
    Draft {
        name: format!("embed_d{}_{}", spec.sizes.hidden, spec.dtype.name()),
        purpose: "The token's embedding row, widened; with learned positions the position's row is added.",
        grid: [vectors.div_ceil(THREADS), 1],
        threads: THREADS,
        resident: 1,
        shared: 0,
        params,
        body: fill(&body, &[("THREADS", &THREADS), ("NV", &vectors), ("W", &w), ("OFFSET", &spec.position_offset)]),
    }
    .finish()
}

/// The state of the sequence, read: token, position.
pub(crate) const fn state() -> Param {
    Param::read("state", Element::U32, 2)
}
