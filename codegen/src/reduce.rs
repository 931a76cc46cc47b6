//! The end of the FFN: pieces are added in order, then the bias, then the residual stream.

use crate::KernelSpec;
use crate::kernel::{Access, Draft, Element, Kernel, Param, Traffic};
use crate::template::fill;

/// Columns of a block: sixteen lanes of four values.
const COLUMNS: usize = 64;
const THREADS: usize = 256;

const BODY: &str = r#"    // Sixteen threads hold 64 columns; row r of the sixteen rows of threads adds pieces r, r + 16, ...
    float4* rows = shared_memory;
    const u32 column = threadIdx.x % 16, row = threadIdx.x / 16, at = blockIdx.x * 16 + column;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (at < $FOURS) {
#pragma unroll 4
        for (u32 piece = row; piece < $PIECES; piece += 16) {
            add(sum, ((const float4*)partial)[piece * $FOURS + at]);
        }
    }
    rows[row * 16 + column] = sum;
    __syncthreads();
    if (row == 0 && at < $FOURS) {
        for (u32 r = 1; r < 16; r++) add(sum, rows[r * 16 + column]);
$BIAS        add(sum, ((const float4*)residual)[at]);
        ((float4*)residual)[at] = sum;
    }
"#;

const BIAS: &str = "        add(sum, ((const float4*)bias)[at]);\n";

/// `residual += sum of partial [pieces, d] (+ bias)`.
pub(crate) fn kernel(spec: &KernelSpec) -> Kernel {
    let (d, pieces, bias) = (spec.sizes.hidden, spec.ffn_pieces(), spec.bias.ffn);
    let mut params = vec![Param::read("partial", Element::F32, pieces * d)];
    if bias {
        params.push(Param::read("bias", Element::F32, d));
    }
    params.push(Param::buffer("residual", Element::F32, Access::ReadWrite, Traffic::fixed(8 * d)));
    let body = BODY.replace("$BIAS", if bias { BIAS } else { "" });
    Draft {
        name: format!("reduce_d{d}_p{pieces}{}", if bias { "_bias" } else { "" }),
        purpose: "Adds the pieces of a block to the residual stream.",
        grid: [d.div_ceil(COLUMNS), 1],
        threads: THREADS,
        resident: 1,
        shared: 16 * THREADS,
        params,
        body: fill(&body, &[("FOURS", &(d / 4)), ("PIECES", &pieces)]),
    }
    .finish()
}
