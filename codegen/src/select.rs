//! From scores to lists: the best units that the budget allows, ascending, of equal scores the lower index.
//!
//! A block ranks a layer. Its keys (scores as unsigned numbers of the same order) stay in registers, each thread with neighbouring
//! units, and the threshold is found bit by bit from the top: 32 times all threads count the keys at or over a candidate. No
//! histogram, no atomics, so the time does not depend on the scores. One scan then gives every thread its place in the list.
//!
//! With a `global` budget every layer first keeps its own best few; what is left of all layers competes for the rest. That
//! threshold is found by three histograms of 11, 11 and 10 bits over all layers (sums of integers, whatever their order), ties are
//! counted layer by layer, and the walk is the same. The two cuts of a layer, its own and the common one, are one cut: the
//! one with the lower threshold.
//!
//! Semantics are those of the engine's `sparsity::select`: both zeros are one, ties go to the lower layer, then to the lower index.
//! The counts of the budget are read from device memory.

use crate::kernel::{Access, Draft, Element, Kernel, Param, Traffic};
use crate::predictor::{Kind, units};
use crate::template::{fill, round_up};
use crate::{KernelSpec, head};

/// Bins of a histogram.
pub(crate) const BINS: usize = 2048;
/// Histograms of a kind.
pub(crate) const DIGITS: usize = 3;

/// Device functions.
pub(crate) const FUNCTIONS: &str = r#"
// A number that orders like the score: both zeros are one, and an unsigned comparison is all it takes. Never 0 for a finite score.
DEVICE u32 order_key(float score) {
    const u32 bits = __float_as_uint(score + 0.0f);
    return bits ^ ((u32)((int)bits >> 31) | 0x80000000u);
}

// Key of this thread's unit i of ITEMS, of those at threadIdx.x * ITEMS and following; 0 behind the last.
template <int WIDTH, int ITEMS> DEVICE u32 key_of(const float* __restrict__ scores, u32 i) {
    const u32 at = threadIdx.x * ITEMS + i;
    return at < WIDTH ? order_key(scores[at]) : 0u;
}

// All keys of this thread. Reports scores that are not finite.
template <int WIDTH, int ITEMS> DEVICE void load_keys(const float* __restrict__ scores, u32 (&keys)[ITEMS], u32* status) {
    bool sound = true;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const u32 at = threadIdx.x * ITEMS + i;
        const float score = at < WIDTH ? scores[at] : 0.0f;
        sound = sound && (__float_as_uint(score) & 0x7f800000u) != 0x7f800000u;
        keys[i] = at < WIDTH ? order_key(score) : 0u;
    }
    if (!sound) atomicOr(status, $BAD);
}

// Sum over the block; `slots` [WARPS] are free again after the next barrier.
template <int WARPS> DEVICE u32 block_count(int n, u32* slots) {
    n = lanes_sum<32>(n);
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = n;
    // They are read four at a time.
    if (WARPS % 4 > 0 && threadIdx.x >= WARPS && threadIdx.x < (WARPS + 3) / 4 * 4) slots[threadIdx.x] = 0u;
    __syncthreads();
    u32 total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) total += slots[w];
    return total;
}

// The count-th largest key, for 1 <= count <= WIDTH. `slots` [64] is scratch, used in turn so that one barrier a bit is enough.
template <int WARPS, int ITEMS> DEVICE u32 nth_key(const u32 (&keys)[ITEMS], u32 count, u32* slots) {
    u32 threshold = 0;
#pragma unroll 1
    for (int bit = 31; bit >= 0; bit--) {
        const u32 candidate = threshold | (1u << bit);
        int n = 0;
#pragma unroll
        for (int i = 0; i < ITEMS; i++) n += keys[i] >= candidate ? 1 : 0;
        if (block_count<WARPS>(n, slots + bit % 2 * 32) >= count) threshold = candidate;
    }
    return threshold;
}

// What is taken in a walk: every key over the threshold, and the first `ties` that equal it.
struct Cut {
    u32 threshold;
    u32 ties;
    u32 surplus; // that equal the threshold, too, but are not taken
};

// The cut that takes the `count` best of WIDTH.
template <int WIDTH, int WARPS, int ITEMS> DEVICE Cut best(const u32 (&keys)[ITEMS], u32 count, u32* slots) {
    Cut cut = {0u, 0u, 0u};
    if (count >= WIDTH) return cut; // no finite score has the smallest key
    cut.threshold = nth_key<WARPS>(keys, count, slots);
    int over = 0, equal = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        over += keys[i] > cut.threshold ? 1 : 0;
        equal += keys[i] == cut.threshold ? 1 : 0;
    }
    __syncthreads();
    const u32 taken = block_count<WARPS>(over, slots), same = block_count<WARPS>(equal, slots + 32);
    cut.ties = count - taken;
    cut.surplus = same - cut.ties;
    return cut;
}

// Writes the indices that the cut takes, ascending, and how many they are. Scores are read again, from the first-level cache: together
// with what a walk needs the keys would be too many for the registers.
template <int WIDTH, int WARPS, int ITEMS>
DEVICE void collect(const float* __restrict__ scores, Cut cut, u32* slots, u32* list, u32* count) {
    // Keys over and at the threshold, in the upper and the lower half of a number: one scan for both.
    u32 own = 0;
#pragma unroll 4
    for (int i = 0; i < ITEMS; i++) {
        const u32 key = key_of<WIDTH, ITEMS>(scores, i);
        own += key > cut.threshold ? 0x10000u : (key == cut.threshold ? 1u : 0u);
    }
    u32 before = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const u32 other = __shfl_up_sync(ALL_LANES, before, step);
        if (threadIdx.x % 32 >= step) before += other;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 31) slots[threadIdx.x / 32] = before;
    if (WARPS % 4 > 0 && threadIdx.x >= WARPS && threadIdx.x < (WARPS + 3) / 4 * 4) slots[threadIdx.x] = 0u;
    before -= own;
    __syncthreads();
    u32 all = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        if (w == threadIdx.x / 32) before += all;
        all += slots[w];
    }
    u32 over = before >> 16, equal = before & 0xffffu;
#pragma unroll 4
    for (int i = 0; i < ITEMS; i++) {
        const u32 at = threadIdx.x * ITEMS + i, key = key_of<WIDTH, ITEMS>(scores, i);
        const bool tie = key == cut.threshold;
        if (at < WIDTH && (key > cut.threshold || (tie && equal < cut.ties))) {
            list[over + (equal < cut.ties ? equal : cut.ties)] = at;
        }
        over += key > cut.threshold ? 1u : 0u;
        equal += tie ? 1u : 0u;
    }
    if (threadIdx.x == 0) {
        const u32 same = all & 0xffffu;
        *count = (all >> 16) + (same < cut.ties ? same : cut.ties);
    }
}
"#;

/// Device functions of global budgets.
pub(crate) const GLOBAL_FUNCTIONS: &str = r#"
// The bin of the wanted-th largest of what a histogram counts, and which of those in the bin it is. Bin 0xffffffff if there are not
// more than wanted, in the first histogram. `found` [2] is shared memory; all threads take part.
struct Found {
    u32 bin;
    u32 rank;
};
DEVICE Found pick(const u32* bins, u32 wanted, u32* found) {
    __syncthreads();
    if (threadIdx.x < 32) {
        // Lane l has 64 bins, the highest ones first.
        const u32 lane = threadIdx.x, top = $BINS - 64 * lane;
        u32 own = 0;
        for (u32 i = 1; i <= 64; i++) own += bins[top - i];
        u32 upto = own;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const u32 other = __shfl_up_sync(ALL_LANES, upto, step);
            if (lane >= step) upto += other;
        }
        const u32 reached = __ballot_sync(ALL_LANES, upto >= wanted);
        if (reached == 0u) {
            if (lane == 0) found[0] = 0xffffffffu, found[1] = 0u;
        } else if (lane == __ffs(reached) - 1) {
            u32 over = upto - own, i = 1;
            while (over + bins[top - i] < wanted) {
                over += bins[top - i];
                i++;
            }
            found[0] = top - i;
            found[1] = wanted - over;
        }
    }
    __syncthreads();
    const Found result = {found[0], found[1]};
    return result;
}
"#;

/// Shared memory of all selections: counts of warps, and what `pick` found.
const SLOTS: usize = 64 + 4;

const SELECT: &str = r#"    u32* slots = (u32*)shared_memory;
    const float* row = scores + (u64)blockIdx.x * $WIDTH;
    u32 keys[$ITEMS];
    load_keys<$WIDTH>(row, keys, status);
    const Cut cut = best<$WIDTH, $WARPS>(keys, budget[0], slots);
    collect<$WIDTH, $WARPS, $ITEMS>(row, cut, slots, lists + (u64)blockIdx.x * $WIDTH, counts + 2 * blockIdx.x);
"#;

const CUT: &str = r#"    u32* slots = (u32*)shared_memory;
    u32 keys[$ITEMS];
    load_keys<$WIDTH>(scores + (u64)blockIdx.x * $WIDTH, keys, status);
    const Cut cut = best<$WIDTH, $WARPS>(keys, budget[0], slots);
    if (threadIdx.x == 0) {
        cuts[4 * blockIdx.x] = cut.threshold;
        cuts[4 * blockIdx.x + 1] = cut.ties;
        cuts[4 * blockIdx.x + 2] = cut.surplus;
    }
    if (blockIdx.x == 0) {
        for (u32 i = threadIdx.x; i < $DIGITS * $BINS; i += $THREADS) bins[i] = 0u;
    }
"#;

const HISTOGRAM: &str = r#"    const u32 wanted = budget[1];
    if (wanted == 0u) return;
    u32* slots = (u32*)shared_memory;
    u32* own = slots + $SLOTS;
    // What the digits before this one have to be.
    u32 prefix = 0u;
    Found found = {0u, wanted};
    for (u32 d = 0; d < digit; d++) {
        found = pick(bins + d * $BINS, found.rank, slots + 64);
        if (found.bin == 0xffffffffu) return;
        prefix = prefix << 11 | found.bin;
    }
    for (u32 i = threadIdx.x; i < $BINS; i += $THREADS) own[i] = 0u;
    __syncthreads();
    const float* row = scores + (u64)blockIdx.x * $WIDTH;
    const u32 threshold = cuts[4 * blockIdx.x];
    const u32 shift = digit == 0u ? 21u : (digit == 1u ? 10u : 0u), width = digit == 2u ? 10u : 11u;
#pragma unroll 4
    for (int i = 0; i <= $ITEMS; i++) {
        // Keys under the layer's own threshold compete, and those that equal it but are too many.
        u32 key = threshold, n = 0u;
        if (i < $ITEMS) {
            key = key_of<$WIDTH, $ITEMS>(row, i);
            n = threadIdx.x * $ITEMS + i < $WIDTH && key < threshold ? 1u : 0u;
        } else if (threadIdx.x == 0) {
            n = cuts[4 * blockIdx.x + 2];
        }
        if (n > 0u && (digit == 0u || key >> (shift + width) == prefix)) {
            atomicAdd(own + (key >> shift & ((1u << width) - 1u)), n);
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < $BINS; i += $THREADS) {
        if (own[i] > 0u) atomicAdd(bins + digit * $BINS + i, own[i]);
    }
"#;

const TIES: &str = r#"    const u32 wanted = budget[1];
    if (wanted == 0u) return;
    u32* slots = (u32*)shared_memory;
    u32 common = 0u;
    Found found = {0u, wanted};
    for (u32 d = 0; d < $DIGITS; d++) {
        found = pick(bins + d * $BINS, found.rank, slots + 64);
        if (found.bin == 0xffffffffu) break;
        common = common << (d == 2u ? 10u : 11u) | found.bin;
    }
    if (found.bin == 0xffffffffu) common = 0u, found.rank = 0u; // all are taken
    const float* row = scores + (u64)blockIdx.x * $WIDTH;
    const u32 threshold = cuts[4 * blockIdx.x];
    int n = 0;
#pragma unroll 4
    for (int i = 0; i < $ITEMS; i++) n += key_of<$WIDTH, $ITEMS>(row, i) == common && threadIdx.x * $ITEMS + i < $WIDTH ? 1 : 0;
    const u32 same = block_count<$WARPS>(n, slots);
    if (threadIdx.x == 0) {
        cuts[4 * blockIdx.x + 3] = common == threshold ? cuts[4 * blockIdx.x + 2] : (common < threshold ? same : 0u);
        if (blockIdx.x == 0) {
            rest[0] = common;
            rest[1] = found.rank;
        }
    }
"#;

const COLLECT: &str = r#"    u32* slots = (u32*)shared_memory;
    Cut cut = {cuts[4 * blockIdx.x], cuts[4 * blockIdx.x + 1], 0u};
    // A layer whose own threshold is lower has nothing over the common one but what it keeps anyway.
    if (budget[1] > 0u && rest[0] <= cut.threshold) {
        // Ties go to the lower layers: what those before this one leave.
        u32 left = rest[1];
        for (u32 layer = 0; layer < blockIdx.x; layer++) {
            const u32 ties = cuts[4 * layer + 3];
            left = left > ties ? left - ties : 0u;
        }
        cut.ties = rest[0] == cut.threshold ? cut.ties + left : left;
        cut.threshold = rest[0];
    }
    collect<$WIDTH, $WARPS, $ITEMS>(scores + (u64)blockIdx.x * $WIDTH, cut, slots, lists + (u64)blockIdx.x * $WIDTH, counts + 2 * blockIdx.x);
"#;

/// Threads of a block that ranks a layer's units of any of these kinds.
fn threads(spec: &KernelSpec, kinds: &[Kind]) -> usize {
    let of = |kind: &Kind| {
        let width = units(spec, *kind);
        let items = width.div_ceil(round_up(width, 32).min(1024));
        round_up(width.div_ceil(items), 32)
    };
    kinds.iter().map(of).max().unwrap_or(32)
}

/// One kernel of the selection for these kinds beside each other. `layers` is for the declared bytes: the launch says how many.
fn kernel(
    spec: &KernelSpec,
    kinds: &[Kind],
    layers: usize,
    [name, purpose, body]: [&str; 3],
    extra: impl Fn(Kind) -> Vec<Param>,
    bins: bool,
) -> Kernel {
    let threads = threads(spec, kinds);
    let drafts = kinds.iter().map(|&kind| {
        let width = units(spec, kind);
        let mut params =
            vec![Param::read("scores", Element::F32, layers * width), Param::read("budget", Element::U32, 2)];
        params.extend(extra(kind));
        Draft {
            name: format!("{}_n{width}", kind.name()),
            purpose,
            grid: [layers, 1],
            threads,
            resident: 1,
            shared: 4 * (SLOTS + if bins { BINS } else { 0 }),
            params,
            body: fill(
                body,
                &[
                    ("WIDTH", &width),
                    ("ITEMS", &width.div_ceil(threads)),
                    ("THREADS", &threads),
                    ("WARPS", &(threads / 32)),
                    ("BINS", &BINS),
                    ("DIGITS", &DIGITS),
                    ("SLOTS", &SLOTS),
                ],
            ),
        }
    });
    let draft = Draft::beside(drafts.collect());
    Draft { name: format!("{name}_{}", draft.name), ..draft }.finish()
}

/// The device functions, filled.
pub(crate) fn functions(global: bool) -> String {
    let text = fill(FUNCTIONS, &[("BAD", &head::STATUS_BAD_SCORE)]);
    if global { text + &fill(GLOBAL_FUNCTIONS, &[("BINS", &BINS)]) } else { text }
}

/// Lists and their lengths, of as many units as the counts say, over all layers together.
fn lists(kind: Kind, layers: usize) -> [Param; 2] {
    let units = match kind {
        Kind::Heads => Traffic { head: 4, ..Traffic::NONE },
        Kind::Neurons => Traffic { neuron: 4, ..Traffic::NONE },
    };
    [
        Param::buffer("lists", Element::U32, Access::Write, units),
        Param::buffer("counts", Element::U32, Access::Write, Traffic::fixed(4 * layers)),
    ]
}

const STATUS: Param = Param::buffer("status", Element::U32, Access::ReadWrite, Traffic::NONE);

/// Lists of a local budget.
pub(crate) fn local(spec: &KernelSpec, kinds: &[Kind], layers: usize) -> Kernel {
    let text = ["select", "The best units of every layer, as many as the budget says.", SELECT];
    let extra = |kind| {
        let [list, count] = lists(kind, layers);
        vec![STATUS, list, count]
    };
    kernel(spec, kinds, layers, text, extra, false)
}

/// The kernels of a global budget in the order of their launches; the second is launched for each of three digits.
pub(crate) fn global(spec: &KernelSpec, kinds: &[Kind], layers: usize) -> [Kernel; 4] {
    let cuts = |access, n: usize| Param::buffer("cuts", Element::U32, access, Traffic::fixed(4 * n * layers));
    let bins = |access, digits: usize| Param::buffer("bins", Element::U32, access, Traffic::fixed(4 * digits * BINS));
    let rest = |access| Param::buffer("rest", Element::U32, access, Traffic::fixed(8));
    let of = |text, with_bins, extra: &dyn Fn(Kind) -> Vec<Param>| kernel(spec, kinds, layers, text, extra, with_bins);
    [
        of(["cut", "The units that every layer keeps whatever the others have.", CUT], false, &|_| {
            vec![STATUS, cuts(Access::Write, 3), bins(Access::Write, DIGITS)]
        }),
        of(["histogram", "Counts one digit of the keys that compete for the rest.", HISTOGRAM], true, &|_| {
            vec![cuts(Access::Read, 2), bins(Access::ReadWrite, 2), Param::number("digit")]
        }),
        of(["ties", "The common threshold, and how many keys of every layer equal it.", TIES], false, &|_| {
            vec![cuts(Access::ReadWrite, 3), bins(Access::Read, DIGITS), rest(Access::Write)]
        }),
        of(
            ["collect", "The units over the common threshold, and ties in order of layer and index.", COLLECT],
            false,
            &|kind| {
                let [list, count] = lists(kind, layers);
                vec![cuts(Access::Read, 3), rest(Access::Read), list, count]
            },
        ),
    ]
}
