//! What is done to the rows of a block's tokens, a block of threads for each.

use super::{TOKENS, block, parts, split};
use crate::kernel::{Access, Draft, Element, Kernel, Param, Traffic};
use crate::prelude::class;
use crate::template::fill;
use crate::{Family, KernelSpec, attention, norm as norms};

const THREADS: usize = 256;

const EMBED: &str = r#"    const u32 t = blockIdx.x;
    if (t >= block[1]) return;
    const u32 token = block[4 + t];
    for (u32 v = threadIdx.x; v < $NV; v += $THREADS) {
        float x[$W::SIZE];
        $W::widen(__ldg(table + (u64)token * $NV + v), x);
$POSITION#pragma unroll
        for (int k = 0; k < $W::SIZE / 4; k++) {
            ((float4*)stream)[((u64)t * $NV + v) * ($W::SIZE / 4) + k] =
                make_float4(x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3]);
        }
    }
"#;

const POSITION: &str = r#"        float learned[$W::SIZE];
        $W::widen(__ldg(positions + (u64)(block[0] + t + $OFFSET) * $NV + v), learned);
#pragma unroll
        for (int k = 0; k < $W::SIZE; k++) x[k] += learned[k];
"#;

/// `stream` `[tokens, d]`: embeddings of the block's tokens (+ positions).
pub(crate) fn embed(spec: &KernelSpec) -> Kernel {
    let rows = Traffic::fixed(TOKENS * spec.row_bytes() as usize);
    let mut params = vec![Param::weights("table", rows)];
    let mut position = "";
    if spec.family == Family::Opt {
        params.push(Param::weights("positions", rows));
        position = POSITION;
    }
    params.extend([block(), Param::written("stream", Element::F32, TOKENS * spec.sizes.hidden)]);
    Draft {
        name: format!("prompt_embed_d{}_{}", spec.sizes.hidden, spec.dtype.name()),
        purpose: "Embedding rows of a block of a prompt, widened; with learned positions their rows are added.",
        grid: [TOKENS, 1],
        threads: THREADS,
        resident: 1,
        shared: 0,
        params,
        body: fill(
            &EMBED.replace("$POSITION", position),
            &[
                ("W", &class(spec.dtype)),
                ("NV", &spec.vectors()),
                ("OFFSET", &spec.position_offset),
                ("THREADS", &THREADS),
            ],
        ),
    }
    .finish()
}

const NORM: &str = r#"    const u32 t = blockIdx.x;
    if (t >= block[1]) return;
    float* residual = stream + (u64)t * $D;
$SUMS    float4* x = shared_memory;
    float* slots = (float*)(x + $D / 4);
    $NORM
    // Every thread finds its own values, as it has put them there.
    for (u32 i = threadIdx.x; i < $D / 4; i += $THREADS) {
        store_split(output, $PLANE, (u64)t * $D + 4 * i, x[place<$W, $NV>(i)]);
    }
"#;

/// Adds what a product left in parts, in order, then the bias.
const SUMS: &str = r#"    for (u32 i = threadIdx.x; i < $D / 4; i += $THREADS) {
        float4 sum = ((const float4*)sums)[t * ($D / 4) + i];
        for (u32 p = 1; p < $PARTS; p++) add(sum, ((const float4*)sums)[(p * $TOKENS + t) * ($D / 4) + i]);
$BIAS        add(sum, ((const float4*)residual)[i]);
        ((float4*)residual)[i] = sum;
    }
"#;

const BIAS: &str = "        add(sum, ((const float4*)bias)[i]);\n";

/// What a row takes from the product in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing: the row is an embedding.
    Nothing,
    /// The sums of its parts, and a bias if the product has one.
    Product {
        /// Whether it has one.
        bias: bool,
    },
}

impl Before {
    fn params(self, spec: &KernelSpec, rows: usize) -> Vec<Param> {
        let d = spec.sizes.hidden;
        match self {
            Before::Nothing => Vec::new(),
            Before::Product { bias } => {
                let mut params = vec![Param::read("sums", Element::F32, parts(spec) * rows * d)];
                params.extend(bias.then(|| Param::read("bias", Element::F32, d)));
                params
            }
        }
    }

    fn text(self) -> String {
        match self {
            Before::Nothing => String::new(),
            Before::Product { bias } => SUMS.replace("$BIAS", if bias { BIAS } else { "" }),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Before::Nothing => "",
            Before::Product { bias: false } => "_sums",
            Before::Product { bias: true } => "_sums_bias",
        }
    }
}

/// Adds the product in front to the residual streams, and normalises them: `output` `[tokens, d]`, split.
pub(crate) fn norm(spec: &KernelSpec, before: Before) -> Kernel {
    let d = spec.sizes.hidden;
    let mut params = vec![Param::buffer("stream", Element::F32, Access::ReadWrite, Traffic::fixed(2 * 4 * TOKENS * d))];
    params.extend(norms::params(spec).into_iter().skip(1));
    params.push(block());
    params.extend(before.params(spec, TOKENS));
    params.push(split(spec, "output", Access::Write, d));
    let body = NORM.replace("$SUMS", &before.text());
    Draft {
        name: format!("prompt_norm{}_d{d}_{}", before.name(), spec.dtype.name()),
        purpose: "Adds what the product in front has summed to the residual streams of a block, and normalises them.",
        grid: [TOKENS, 1],
        threads: THREADS,
        resident: 1,
        shared: 4 * d + norms::SLOTS,
        params,
        body: fill(
            &body,
            &[
                ("W", &class(spec.dtype)),
                ("D", &d),
                ("NV", &spec.vectors()),
                ("PARTS", &parts(spec)),
                ("TOKENS", &TOKENS),
                ("PLANE", &(TOKENS * d)),
                ("THREADS", &THREADS),
                ("NORM", &norms::call(spec, THREADS)),
            ],
        ),
    }
    .finish()
}

const END: &str = r#"    const u32 t = block[1] - 1, position = block[0] + t;
    const float* row = stream + (u64)t * $D;
    for (u32 i = threadIdx.x; i < $D / 4; i += $THREADS) ((float4*)residual)[i] = ((const float4*)row)[i];
$SUMS    for (u32 i = threadIdx.x; i < $ARRIVALS; i += $THREADS) arrivals[i] = 0u;
    for (u32 i = threadIdx.x; i < $MARKS; i += $THREADS) watermarks[i] = position + 1;
    if (threadIdx.x == 0) {
        state[0] = block[4 + t];
        state[1] = position;
        state[2] = state[3] = 0u;
    }
"#;

/// Leaves the last token of a prompt as a decoded token leaves it in front of the LM head, with nothing left to fill.
pub(crate) fn end(spec: &KernelSpec, bias: bool) -> Kernel {
    let (s, before) = (&spec.sizes, Before::Product { bias });
    let (arrivals, marks) = (attention::arrivals(spec) + 1, s.layers * (s.kv_heads + 1));
    let mut params = vec![Param::read("stream", Element::F32, s.hidden), block()];
    params.extend(before.params(spec, 1));
    params.extend([
        Param::buffer("residual", Element::F32, Access::ReadWrite, Traffic::fixed(2 * 4 * s.hidden)),
        Param::written("arrivals", Element::U32, arrivals),
        Param::written("watermarks", Element::U32, marks),
        Param::written("state", Element::U32, 4),
    ]);
    Draft {
        name: format!("prompt_end_d{}", s.hidden),
        purpose: "The last token of a prompt, for the LM head.",
        grid: [1, 1],
        threads: THREADS,
        resident: 1,
        shared: 0,
        params,
        body: fill(
            &END.replace("$SUMS", &before.text()),
            &[
                ("D", &s.hidden),
                ("PARTS", &parts(spec)),
                ("TOKENS", &TOKENS),
                ("ARRIVALS", &arrivals),
                ("MARKS", &marks),
                ("THREADS", &THREADS),
            ],
        ),
    }
    .finish()
}
