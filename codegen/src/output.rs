//! The attention's output projection over the kept heads.
//!
//! A kept head is `d_h` rows of `d` weights (columns of Wo), each times one component of the head's context. All such rows are cut
//! into as many pieces as there are blocks; a block first puts its contexts together from the pieces of the context, then adds
//! its rows up. A reduction adds the pieces.

use crate::kernel::{Access, Draft, Element, Kernel, Param, Traffic};
use crate::prelude::class;
use crate::template::fill;
use crate::{KernelSpec, embed};

const BODY: &str = r#"    // This block's rows are first .. first + rows; row r is component r % $DH of the kept head at place r / $DH.
    const u32 all = counts[0] * $DH;
    const u32 first = all * blockIdx.x / $BLOCKS, rows = all * (blockIdx.x + 1) / $BLOCKS - first;
    float* factors = (float*)(shared_memory + $MEET);
    u32* starts = (u32*)(factors + $ROWS);
    const u32 position = state[1];
    const Visible seen = visible<$SPLITS>(position, window);
    const u32 pieces = (seen.end - seen.first + seen.length - 1) / seen.length;
    for (u32 i = threadIdx.x; i < rows; i += $THREADS) {
        const u32 at = (first + i) / $DH, c = (first + i) % $DH, head = list[at];
        const float* stats = piece_stats + (u64)at * ($SPLITS * 2);
        const float* sums = piece_sums + (u64)at * ($SPLITS * $DH) + c;
        float most = stats[0];
        for (u32 s = 1; s < pieces; s++) most = fmaxf(most, stats[2 * s]);
        float total = 0.0f, weight = 0.0f;
        for (u32 s = 0; s < pieces; s++) {
            const float factor = exponential(stats[2 * s] - most);
            weight = fmaf(stats[2 * s + 1], factor, weight);
            total = fmaf(sums[s * $DH], factor, total);
        }
        factors[i] = total * (1.0f / weight);
        starts[i] = head * (2 * $DH) + $DH + c;
$CONTEXT    }
    __syncthreads();
    const u32 group = threadIdx.x / $GROUP, t = threadIdx.x % $GROUP;
    float acc[$PASSES][$W::SIZE] = {};
    add_rows<$W, $NV, $GROUP, $PASSES>(
        t, group, $GROUPS, rows, [&](u32 i) { return heads + (u64)starts[i] * $NV; }, [&](u32 i) { return factors[i]; }, acc);
    write_sums<$W, $NV, $GROUP, $GROUPS, $PASSES>(group, t, acc, shared_memory, partial + (u64)blockIdx.x * $D);
"#;

/// `partial` `[output pieces, d]`; with `contexts`, those of the kept heads in `[H, d_h]`.
pub(crate) fn kernel(spec: &KernelSpec, contexts: bool) -> Kernel {
    let s = &spec.sizes;
    let (dh, splits, blocks) = (s.head_dim, spec.splits(), spec.output_pieces());
    let groups = spec.groups();
    let per_head = |bytes: usize| Traffic { head: bytes as u64, ..Traffic::NONE };
    let mut params = vec![
        Param::weights("heads", per_head(dh * spec.row_bytes() as usize)),
        Param::buffer("piece_sums", Element::F32, Access::Read, per_head(4 * splits * dh)),
        Param::buffer("piece_stats", Element::F32, Access::Read, per_head(8 * splits)),
        Param::buffer("list", Element::U32, Access::Read, per_head(4)),
        Param::read("counts", Element::U32, 1),
        embed::state(),
        Param::written("partial", Element::F32, blocks * s.hidden),
    ];
    let mut context = "";
    if contexts {
        params.push(Param::buffer("contexts", Element::F32, Access::Write, per_head(4 * dh)));
        context = "        contexts[head * $DH + c] = factors[i];\n";
    }
    params.push(Param::number("window"));
    let meet = (groups.groups - 1) * s.hidden / 4;
    let rows = (s.heads * dh).div_ceil(blocks) + 1;
    let body = BODY.replace("$CONTEXT", context);
    Draft {
        name: format!("attention_output_d{}_h{}x{}_{}", s.hidden, s.heads, dh, spec.dtype.name()),
        purpose: "Output projection of kept heads, summed in pieces.",
        grid: [blocks, 1],
        threads: groups.threads(),
        resident: 1,
        shared: 16 * meet + 8 * rows,
        params,
        body: fill(
            &body,
            &[
                ("W", &class(spec.dtype)),
                ("D", &s.hidden),
                ("NV", &spec.vectors()),
                ("DH", &dh),
                ("SPLITS", &splits),
                ("BLOCKS", &blocks),
                ("ROWS", &rows),
                ("MEET", &meet),
                ("GROUP", &groups.group),
                ("GROUPS", &groups.groups),
                ("PASSES", &groups.passes),
                ("THREADS", &groups.threads()),
            ],
        ),
    }
    .finish()
}
