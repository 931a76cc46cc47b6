//! The attention's output projection over the kept heads, and the end of its block.
//!
//! A kept head is `d_h` rows of `d` weights (columns of Wo), each times one component of the head's context. A block takes a few
//! columns of all these rows, not a few rows of all columns: then its sums are whole, so it adds bias and residual stream itself, and
//! no second launch has to. What it reads of a row are two sectors or more, and the blocks walk the rows at the same time, so
//! memory sees whole rows.

use crate::KernelSpec;
use crate::kernel::{Access, Draft, Element, Kernel, Param, Traffic};
use crate::prelude::class;
use crate::template::fill;

const THREADS: usize = 512;
/// Parts that the sums of a column's threads are added in.
const PARTS: usize = 16;

const BODY: &str = r#"    // Row r is component r % $DH of the kept head at place r / $DH.
    const u32 kept = counts[0], rows = kept * $DH;
    float4* meet = shared_memory;
    float* factors = (float*)(meet + $MEET);
    u32* starts = (u32*)(factors + $ROWS);
    for (u32 i = threadIdx.x; i < kept; i += $THREADS) starts[i] = list[i] * (2 * $DH) + $DH;
    for (u32 i = threadIdx.x; i < rows; i += $THREADS) factors[i] = contexts[list[i / $DH] * $DH + i % $DH];
    __syncthreads();
    // A group of $COLUMNS threads has this block's vectors of rows group, group + $GROUPS, ...
    const u32 group = threadIdx.x / $COLUMNS, column = threadIdx.x % $COLUMNS;
    float acc[1][$W::SIZE] = {};
    add_rows<$W, $NV, $COLUMNS, 1>(
        blockIdx.x * $COLUMNS + column, group, $GROUPS, group < $GROUPS ? rows : 0u,
        [&](u32 i) { return heads + (u64)(starts[i / $DH] + i % $DH) * $NV; }, [&](u32 i) { return factors[i]; }, acc);
    const int FOURS = $W::SIZE / 4;
    if (group < $GROUPS) {
#pragma unroll
        for (int k = 0; k < FOURS; k++) {
            meet[k * ($GROUPS * $COLUMNS) + threadIdx.x] =
                make_float4(acc[0][4 * k], acc[0][4 * k + 1], acc[0][4 * k + 2], acc[0][4 * k + 3]);
        }
    }
    __syncthreads();
    // The sums of all groups: part p adds groups p, p + $PARTS, ..., and the parts are added in order.
    float4* parts = meet + FOURS * ($GROUPS * $COLUMNS);
    for (u32 i = threadIdx.x; i < $PARTS * FOURS * $COLUMNS; i += $THREADS) {
        const u32 own = i % (FOURS * $COLUMNS);
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (u32 g = i / (FOURS * $COLUMNS); g < $GROUPS; g += $PARTS) {
            add(sum, meet[own % FOURS * ($GROUPS * $COLUMNS) + g * $COLUMNS + own / FOURS]);
        }
        parts[i] = sum;
    }
    __syncthreads();
    const u32 at = blockIdx.x * (FOURS * $COLUMNS) + threadIdx.x;
    if (threadIdx.x < FOURS * $COLUMNS && at < $D / 4) {
        float4 sum = parts[threadIdx.x];
        for (u32 p = 1; p < $PARTS; p++) add(sum, parts[p * (FOURS * $COLUMNS) + threadIdx.x]);
$BIAS        add(sum, ((const float4*)residual)[at]);
        ((float4*)residual)[at] = sum;
    }
"#;

/// `residual += Wo contexts (+ bias)`.
pub(crate) fn kernel(spec: &KernelSpec) -> Kernel {
    let s = &spec.sizes;
    let (dh, rows, columns) = (s.head_dim, s.heads * s.head_dim, spec.columns());
    let groups = THREADS / columns;
    let per_head = |bytes: usize| Traffic { head: bytes as u64, ..Traffic::NONE };
    let mut params = vec![
        Param::weights("heads", per_head(dh * spec.row_bytes() as usize)),
        Param::buffer("contexts", Element::F32, Access::Read, per_head(4 * dh)),
        Param::buffer("list", Element::U32, Access::Read, per_head(4)),
        Param::read("counts", Element::U32, 1),
    ];
    let mut bias = "";
    if spec.bias.out {
        params.push(Param::read("bias", Element::F32, s.hidden));
        bias = "        add(sum, ((const float4*)bias)[at]);\n";
    }
    params.push(Param::buffer("residual", Element::F32, Access::ReadWrite, Traffic::fixed(8 * s.hidden)));
    let fours = spec.dtype.vector() / 4;
    let meet = fours * columns * (groups + PARTS);
    Draft {
        name: format!("attention_output_d{}_h{}x{}_{}", s.hidden, s.heads, dh, spec.dtype.name()),
        purpose: "Output projection of kept heads, added to the residual stream.",
        grid: [spec.vectors().div_ceil(columns), 1],
        threads: THREADS,
        // There may be a few more blocks than multiprocessors: all run at once.
        resident: 2,
        shared: 16 * meet + 4 * rows + 4 * s.heads,
        params,
        body: fill(
            &BODY.replace("$BIAS", bias),
            &[
                ("W", &class(spec.dtype)),
                ("D", &s.hidden),
                ("NV", &spec.vectors()),
                ("DH", &dh),
                ("ROWS", &rows),
                ("MEET", &meet),
                ("COLUMNS", &columns),
                ("GROUPS", &groups),
                ("PARTS", &PARTS),
                ("THREADS", &THREADS),
            ],
        ),
    }
    .finish()
}
