//! Kernels that multiply a block of tokens with weights.
//!
//! Where two rows of weights belong together, a thread has the sums of both: components `c` and `c + d_h/2` of a head, which a rotation
//! mixes, and the gate and `up` row of a neuron. So what follows the product is done before it is written, by the same thread.

use super::tiles::{OUTPUTS, THREADS, shared};
use super::{TOKENS, block, parts, split};
use crate::KernelSpec;
use crate::kernel::{Access, Draft, Element, Kernel, Param, Traffic};
use crate::prelude::class;
use crate::qkv::cache_element;
use crate::template::{fill, round_up};

const QKV: &str = r#"    const u32 start = block[0], count = block[1], base = blockIdx.x * 64;
    float acc[2][8][4] = {};
    // Pair p of queries is components p % $HALF and $HALF more of head p / $HALF; then keys, and values, of every key/value head.
    block_product<$D, false>(input, count, 0, $STEPS, 0, [&](u32 n) -> const uint4* {
        const u32 p = base + n / 64 * 32 + n % 32, second = n / 32 % 2 * $HALF;
        if (p >= $PAIRS) return 0;
        if (p < $QUERIES) return heads + (u64)(p / $HALF * (2 * $DH) + p % $HALF + second) * $NV;
        const u32 q = p - $QUERIES, r = q % $DH;
        return kv_heads + (u64)(q / $DH * (2 * $DH) + (r < $HALF ? r : r - $HALF + $DH) + second) * $NV;
    }, acc);
    each_pair(count, acc, [&](u32 t, u32 pair, float a, float b) {
        const u32 p = base + pair, position = start + t;
        if (p >= $PAIRS) return;
        const bool query = p < $QUERIES;
        const u32 q = query ? p : p - $QUERIES, r = query ? q % $HALF : q % $DH, head = query ? q / $HALF : q / $DH;
        const bool value = !query && r >= $HALF;
        const u32 c = value ? r - $HALF : r;
$BIAS$ROPE        if (query) {
            float* row = queries + ((u64)t * $H + head) * $DH + c;
            row[0] = a;
            row[$HALF] = b;
        } else {
            $C::value* row = (value ? values : keys) + ((u64)head * $CONTEXT + position) * $DH + c;
            row[0] = $C::narrow(a);
            row[$HALF] = $C::narrow(b);
        }
    });
"#;

const BIAS: &str = r#"        const float* bias = query ? query_bias : (value ? value_bias : key_bias);
        a += bias[head * $DH + c];
        b += bias[head * $DH + c + $HALF];
"#;

const ROPE: &str = r#"        if (!value) {
            const float cos = rope[(u64)position * $DH + c], sin = rope[(u64)position * $DH + $HALF + c], low = a;
            a = low * cos - b * sin;
            b = fmaf(b, cos, low * sin);
        }
"#;

const STEP: usize = super::tiles::DEPTH;

/// What the kernels of this file have in common.
fn blank(spec: &KernelSpec) -> Draft<'static> {
    Draft {
        name: String::new(),
        purpose: "",
        grid: [0, 0],
        threads: THREADS,
        resident: 1,
        shared: shared(spec),
        params: Vec::new(),
        body: String::new(),
    }
}

/// Queries `[tokens, H, d_h]`, and rows of `keys` and `values` `[H_kv, context, d_h]`, of all heads.
pub(crate) fn qkv(spec: &KernelSpec) -> Kernel {
    let s = &spec.sizes;
    let (dh, half, cache) = (s.head_dim, s.head_dim / 2, cache_element(spec.cache));
    let (queries, pairs) = (s.heads * half, s.heads * half + s.kv_heads * dh);
    let row = spec.row_bytes() as usize;
    let mut params = vec![
        Param::weights("heads", Traffic::fixed(s.heads * dh * row)),
        Param::weights("kv_heads", Traffic::fixed(s.kv_heads * 2 * dh * row)),
        split(spec, "input", Access::Read, s.hidden),
        block(),
    ];
    let mut bias = "";
    if spec.bias.qkv {
        bias = BIAS;
        params.push(Param::read("query_bias", Element::F32, s.heads * dh));
        params.push(Param::read("key_bias", Element::F32, s.kv_heads * dh));
        params.push(Param::read("value_bias", Element::F32, s.kv_heads * dh));
    }
    let mut rope = "";
    if spec.family.is_llama() {
        rope = ROPE;
        params.push(Param::read("rope", Element::F32, TOKENS * dh));
    }
    let made = Traffic::fixed(TOKENS * s.kv_heads * spec.cached_row() as usize);
    params.extend([
        Param::buffer("keys", cache, Access::Write, made),
        Param::buffer("values", cache, Access::Write, made),
        Param::written("queries", Element::F32, TOKENS * s.heads * dh),
    ]);
    let body = QKV.replace("$BIAS", bias).replace("$ROPE", rope);
    Draft {
        name: format!(
            "prompt_qkv_d{}_h{}x{dh}_kv{}_{}_{}",
            s.hidden,
            s.heads,
            s.kv_heads,
            spec.dtype.name(),
            spec.cache.name()
        ),
        purpose: "Queries, keys and values of all heads for a block of a prompt.",
        params,
        grid: [pairs.div_ceil(OUTPUTS / 2), 1],
        body: fill(
            &body,
            &[
                ("C", &class(spec.cache)),
                ("D", &s.hidden),
                ("NV", &spec.vectors()),
                ("H", &s.heads),
                ("DH", &dh),
                ("HALF", &half),
                ("QUERIES", &queries),
                ("PAIRS", &pairs),
                ("CONTEXT", &s.context),
                ("STEPS", &s.hidden.div_ceil(STEP)),
            ],
        ),
        ..blank(spec)
    }
    .finish()
}

const FIRST: &str = r#"    const u32 count = block[1], base = blockIdx.x * 64;
    float acc[2][8][4] = {};
    block_product<$D, false>(input, count, 0, $STEPS, 0, [&](u32 n) -> const uint4* {
        const u32 p = base + n / 64 * 32 + n % 32;
        const bool second = n / 32 % 2 > 0;
$ROW    }, acc);
    each_pair(count, acc, [&](u32 t, u32 pair, float a, float b) {
        const u32 p = base + pair;
$INNER    });
"#;

/// Inner values `[tokens, F]`, split: of a gated FFN a neuron's two rows are a pair, of a plain one two neurons are.
pub(crate) fn ffn_first(spec: &KernelSpec) -> Kernel {
    let s = &spec.sizes;
    let gated = spec.family.is_llama();
    let rows = if gated { 2 } else { 1 };
    // Of a plain FFN neuron p and neuron p + pairs.
    let pairs = if gated { s.ffn } else { s.ffn.div_ceil(2) };
    let mut params = vec![
        Param::weights("records", Traffic::fixed(s.ffn * rows * spec.row_bytes() as usize)),
        split(spec, "input", Access::Read, s.hidden),
        block(),
    ];
    let (mut first_bias, mut second_bias, mut up_bias) = ("", "", "");
    if spec.bias.ffn {
        params.push(Param::read("first_bias", Element::F32, s.ffn));
        (first_bias, second_bias) = (" + first_bias[p]", " + first_bias[p + $PAIRS]");
        if gated {
            params.push(Param::read("up_bias", Element::F32, s.ffn));
            up_bias = " + up_bias[p]";
        }
    }
    params.push(split(spec, "inner", Access::Write, s.ffn));
    let (row, inner) = match gated {
        true => (
            "        return p < $PAIRS ? records + (u64)p * $RECORD + (second ? $NV : 0) : 0;\n".to_owned(),
            format!(
                "        if (p < $F) store_split(inner, $PLANE, (u64)t * $WIDTH + p, activate(a{first_bias}) * (b{up_bias}));\n"
            ),
        ),
        false => (
            "        const u32 unit = p + (second ? $PAIRS : 0);\n        return p < $PAIRS && unit < $F ? records + (u64)unit * $RECORD : 0;\n"
                .to_owned(),
            format!(
                "        if (p >= $PAIRS) return;\n        store_split(inner, $PLANE, (u64)t * $WIDTH + p, activate(a{first_bias}));\n        if (p + $PAIRS < $F) store_split(inner, $PLANE, (u64)t * $WIDTH + p + $PAIRS, activate(b{second_bias}));\n"
            ),
        ),
    };
    let width = round_up(s.ffn, spec.dtype.vector());
    let body = FIRST.replace("$ROW", &row).replace("$INNER", &inner);
    Draft {
        name: format!("prompt_ffn_d{}_f{}_{}", s.hidden, s.ffn, spec.dtype.name()),
        purpose: "Inner values of the FFN for a block of a prompt.",
        params,
        grid: [pairs.div_ceil(OUTPUTS / 2), 1],
        body: fill(
            &body,
            &[
                ("D", &s.hidden),
                ("NV", &spec.vectors()),
                ("F", &s.ffn),
                ("PAIRS", &pairs),
                ("PLANE", &(TOKENS * width)),
                ("WIDTH", &width),
                ("RECORD", &((rows + 1) * spec.vectors())),
                ("STEPS", &s.hidden.div_ceil(STEP)),
            ],
        ),
        ..blank(spec)
    }
    .finish()
}

const COLUMNS: &str = r#"    const u32 count = block[1], base = blockIdx.x * $OUTPUTS;
    float acc[2][8][4] = {};
    // This block's part of the depth.
    const u32 first = $STEPS * blockIdx.y / $PARTS, end = $STEPS * (blockIdx.y + 1) / $PARTS;
    block_product<$K, true>(
        input, count, first, end, base, [&](u32 k) { return $ROW; }, acc);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 t = warp % 4 * 32 + i * 16 + lane / 4 + half * 8;
                const u32 n = base + warp / 4 * 64 + j * 8 + lane % 4 * 2;
                if (t < count && n < $D) {
                    *(float2*)(sums + ((u64)blockIdx.y * $TOKENS + t) * $D + n) =
                        make_float2(acc[i][j][2 * half], acc[i][j][2 * half + 1]);
                }
            }
        }
    }
"#;

/// A product with columns, in parts of the depth: `sums` `[parts, tokens, d]`.
fn columns(spec: &KernelSpec, name: String, purpose: &str, weights: &'static str, depth: usize, row: &str) -> Kernel {
    let (d, parts) = (spec.sizes.hidden, parts(spec));
    let params = vec![
        Param::weights(weights, Traffic::fixed(depth * spec.row_bytes() as usize)),
        split(spec, "input", Access::Read, depth),
        block(),
        Param::written("sums", Element::F32, parts * TOKENS * d),
    ];
    Draft {
        name,
        purpose,
        params,
        grid: [d.div_ceil(OUTPUTS), parts],
        body: fill(
            &COLUMNS.replace("$ROW", row),
            &[
                ("D", &d),
                ("NV", &spec.vectors()),
                ("DH", &spec.sizes.head_dim),
                ("K", &depth),
                ("STEPS", &depth.div_ceil(STEP)),
                ("PARTS", &parts),
                ("OUTPUTS", &OUTPUTS),
                ("TOKENS", &TOKENS),
            ],
        ),
        ..blank(spec)
    }
    .finish()
}

/// The output projection of all heads.
pub(crate) fn output(spec: &KernelSpec) -> Kernel {
    let s = &spec.sizes;
    let name = format!("prompt_output_d{}_h{}x{}_{}", s.hidden, s.heads, s.head_dim, spec.dtype.name());
    let row = "heads + (u64)(k / $DH * (2 * $DH) + $DH + k % $DH) * $NV";
    let purpose = "Output projection of all heads for a block of a prompt, in parts.";
    columns(spec, name, purpose, "heads", s.heads * s.head_dim, row)
}

/// Second rows of all neurons.
pub(crate) fn ffn_second(spec: &KernelSpec) -> Kernel {
    let s = &spec.sizes;
    let name = format!("prompt_ffn_output_d{}_f{}_{}", s.hidden, s.ffn, spec.dtype.name());
    let firsts = if spec.family.is_llama() { 2 } else { 1 };
    let row = format!("records + (u64)k * ({} * $NV) + {firsts} * $NV", firsts + 1);
    let purpose = "Second rows of all neurons times inner values for a block of a prompt, in parts.";
    columns(spec, name, purpose, "records", s.ffn, &row)
}
