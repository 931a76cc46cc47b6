//! From scores to a plan: the best units that a budget allows.
//!
//! At OPT-6.7B's shape half a million scores are ranked for every token, so nothing is sorted. The score of the last unit that
//! is kept (the threshold) is found in linear time: a histogram of the leading bits tells in which bucket it lies, and partial
//! selection finds it there. One walk over the scores in order of index then collects what lies above it, and ties until the
//! count is reached. The walk yields ascending lists, and lower indices win ties, whatever the selection did inside. Layers are
//! independent of each other, so threads share them.

use std::ops::Range;

use rayon::prelude::*;

use super::budget::Allowance;
use super::scores::check_finite;
use super::{Budget, LayerPlan, Plan, Scores, Units};
use crate::Result;
use crate::kernels::Cpu;

/// Chooses units by score. Keeps its buffers, so that after the first plan nothing is allocated.
///
/// ```
/// use shadowllm::sparsity::{Budget, Plan, Scope, Scores, Selector, Units};
/// let units = Units { layers: 2, heads: 2, neurons: 4 };
/// let scores = Scores { heads: vec![0.0, 0.0, 0.5, 0.9], neurons: vec![0.0, 0.0, 0.0, 0.0, 0.3, 0.1, 0.3, 0.2] };
/// let mut plan = Plan::dense(units);
/// Selector::new().select(&scores, &Budget::new(0.5, 0.5, Scope::Local)?, units, &mut plan)?;
/// assert_eq!(plan.layers[0].heads, [0, 1]); // layer 0 keeps everything
/// assert_eq!((&plan.layers[1].heads[..], &plan.layers[1].neurons[..]), (&[1][..], &[0, 2][..]));
/// # Ok::<(), shadowllm::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// One per layer of a global budget.
    layers: Vec<Share>,
    /// What they compete with, as far as it may be the threshold, as [`key`]s.
    keys: Vec<u32>,
}

/// A layer's part in a global budget.
#[derive(Clone, Debug)]
struct Share {
    /// What it keeps whatever the others have.
    own: Cut,
    /// What it keeps in competition.
    rest: Cut,
    /// How many keys of each bucket compete.
    counts: Counts,
}

/// As [`Selector::select`], for one plan.
///
/// # Errors
/// As there.
pub fn select(scores: &Scores, budget: &Budget, units: impl Into<Units>, into: &mut Plan) -> Result<()> {
    Selector::new().select(scores, budget, units, into)
}

impl Selector {
    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `into` the plan of the best units. Of equal scores the lower index wins, in a global budget the lower layer first.
    ///
    /// # Errors
    /// [`crate::Error::BudgetFraction`], [`crate::Error::ScoresLength`]; [`crate::Error::BadScore`] for NaN or an infinity
    /// outside layer 0; [`crate::Error::ScoresLack`] if there are none for units that the budget prunes. `into` is unchanged then.
    pub fn select(&mut self, scores: &Scores, budget: &Budget, units: impl Into<Units>, into: &mut Plan) -> Result<()> {
        let units = units.into();
        self.select_layers(None, scores, budget, units, 1..units.layers, into)?;
        if let Some(layer) = into.layers.first_mut() {
            layer.set_dense(units);
        }
        Ok(())
    }

    /// As [`Selector::select`], but decides only for `layers`: a global budget is counted over these. Other layers of the plan
    /// stay as they are, and their scores are not looked at. With `cpu` its threads share the work; the plan is the same.
    ///
    /// # Errors
    /// As there.
    pub fn select_layers(
        &mut self,
        cpu: Option<&Cpu>,
        scores: &Scores,
        budget: &Budget,
        units: impl Into<Units>,
        layers: Range<usize>,
        into: &mut Plan,
    ) -> Result<()> {
        let units = units.into();
        budget.validate()?;
        scores.check_for(budget, units)?;
        let layers = layers.start.min(units.layers)..layers.end.min(units.layers);
        let count = layers.len();
        // Of a kind without scores everything is kept.
        let heads = scores.heads.get(..layers.end * units.heads).unwrap_or_default();
        let neurons = scores.neurons.get(..layers.end * units.neurons).unwrap_or_default();
        check_finite("head", heads, units.heads, layers.start)?;
        check_finite("neuron", neurons, units.neurons, layers.start)?;
        into.layers.resize_with(units.layers, LayerPlan::default);
        let plans = &mut into.layers[layers.clone()];
        let heads = heads.get(layers.start * units.heads..).unwrap_or_default();
        let neurons = neurons.get(layers.start * units.neurons..).unwrap_or_default();
        let heads = Rows { scores: heads, width: units.heads, list: |p| &mut p.heads };
        let neurons = Rows { scores: neurons, width: units.neurons, list: |p| &mut p.neurons };
        let threads = cpu.filter(|cpu| cpu.threads() > 1);
        self.choose(threads, heads, budget.heads_of(units, count), plans);
        self.choose(threads, neurons, budget.neurons_of(units, count), plans);
        Ok(())
    }

    /// One list per row: the `each` best of the row, then the `shared` best of what remains in all rows together.
    fn choose(&mut self, cpu: Option<&Cpu>, rows: Rows<'_>, allowance: Allowance, plans: &mut [LayerPlan]) {
        if rows.width == 0 {
            return;
        }
        if rows.scores.is_empty() {
            let lists = plans.iter_mut().map(rows.list).filter(|list| list.len() != rows.width);
            return lists.for_each(|list| {
                list.clear();
                list.extend(0..rows.width as u32);
            });
        }
        if allowance.shared == 0 {
            return rows.each(cpu, plans, |row, list| {
                let mut own = best_of(row, list, allowance.each);
                collect(row, list, |key| own.takes(key));
            });
        }
        // Until the common threshold is known the lists hold keys that compete for the rest.
        self.layers.resize(plans.len(), Share { own: Cut::NOTHING, rest: Cut::NOTHING, counts: [0; BUCKETS] });
        rows.each_with(cpu, plans, &mut self.layers, |row, list, share| {
            share.own = best_of(row, list, allowance.each);
            let mut own = share.own;
            list.clear();
            list.extend(row.iter().map(key));
            retain(list, |key| !own.takes(key));
            share.counts = histogram(list);
        });
        let mut counts = [0; BUCKETS];
        for share in &self.layers {
            counts.iter_mut().zip(&share.counts).for_each(|(sum, n)| *sum += n);
        }
        let mut rest = Cut::ALL;
        if allowance.shared < counts.iter().map(|&n| n as usize).sum() {
            let (bucket, over) = bucket_of(&counts, allowance.shared);
            rows.each(cpu, plans, |_, list| retain(list, |key| bucket_of_key(key) == bucket));
            self.keys.clear();
            self.keys.reserve(rows.scores.len());
            plans.iter_mut().for_each(|plan| self.keys.extend_from_slice((rows.list)(plan)));
            rest = Cut::nth(&mut self.keys, allowance.shared - over);
        }
        // Ties go to the lower layers, so each has to know what those before it leave.
        for (share, plan) in self.layers.iter_mut().zip(plans.iter_mut()) {
            share.rest = rest;
            let ties = (rows.list)(plan).iter().filter(|&&key| key == rest.threshold).count();
            rest.ties = rest.ties.saturating_sub(ties);
        }
        rows.each_with(cpu, plans, &mut self.layers, |row, list, share| {
            collect(row, list, |key| share.own.takes(key) || share.rest.takes(key));
        });
    }
}

/// Scores of several layers, and where their units are in a plan.
#[derive(Clone, Copy)]
struct Rows<'a> {
    /// `[rows, width]`
    scores: &'a [f32],
    width: usize,
    list: fn(&mut LayerPlan) -> &mut Vec<u32>,
}

impl Rows<'_> {
    /// Calls `f` with every row and its list. Without `cpu` on this thread: rayon would start threads of its own.
    fn each(self, cpu: Option<&Cpu>, plans: &mut [LayerPlan], f: impl Fn(&[f32], &mut Vec<u32>) + Sync) {
        let one = |(row, plan): (&[f32], &mut LayerPlan)| f(row, (self.list)(plan));
        match cpu {
            Some(cpu) if plans.len() > 1 => {
                cpu.install(|| self.scores.par_chunks_exact(self.width).zip(plans).for_each(one));
            }
            _ => self.scores.chunks_exact(self.width).zip(plans).for_each(one),
        }
    }

    /// As [`Rows::each`], with the row's share of a global budget.
    fn each_with(
        self,
        cpu: Option<&Cpu>,
        plans: &mut [LayerPlan],
        shares: &mut [Share],
        f: impl Fn(&[f32], &mut Vec<u32>, &mut Share) + Sync,
    ) {
        let one = |((row, plan), share): ((&[f32], &mut LayerPlan), &mut Share)| f(row, (self.list)(plan), share);
        match cpu {
            Some(cpu) if plans.len() > 1 => {
                cpu.install(|| self.scores.par_chunks_exact(self.width).zip(plans).zip(shares).for_each(one));
            }
            _ => self.scores.chunks_exact(self.width).zip(plans).zip(shares).for_each(one),
        }
    }
}

/// The cut that takes the best `count` of a row. Leaves anything in `list`.
fn best_of(row: &[f32], list: &mut Vec<u32>, count: usize) -> Cut {
    list.clear();
    list.extend(row.iter().map(key));
    Cut::best(list, count)
}

/// What is taken in a walk: every key over the threshold, and the first few that equal it.
#[derive(Clone, Copy, Debug)]
struct Cut {
    threshold: u32,
    ties: usize,
}

/// Leading bits of a key that choose its bucket: sign, exponent and two bits of the fraction.
const BUCKET_BITS: u32 = 11;
const BUCKETS: usize = 1 << BUCKET_BITS;
/// Counters beside each other, because scores are of similar size and the processor waits between two steps of one counter.
const COUNTERS: usize = 4;
/// Keys from which a histogram is worth its zeros.
const HISTOGRAM: usize = 2048;

impl Cut {
    /// No finite score has the largest key.
    const NOTHING: Cut = Cut { threshold: u32::MAX, ties: 0 };
    /// No finite score has the smallest key.
    const ALL: Cut = Cut { threshold: 0, ties: 0 };

    /// The cut that takes exactly `count` of `keys`, or all if there are fewer. Uses them up.
    fn best(keys: &mut Vec<u32>, mut count: usize) -> Cut {
        if count == 0 {
            return Cut::NOTHING;
        }
        if count >= keys.len() {
            return Cut::ALL;
        }
        if keys.len() >= HISTOGRAM {
            let (bucket, over) = bucket_of(&histogram(keys), count);
            count -= over;
            retain(keys, |key| bucket_of_key(key) == bucket);
        }
        Cut::nth(keys, count)
    }

    /// The cut that takes `count` of `keys`, which are at least as many and at least one. Reorders them.
    fn nth(keys: &mut [u32], count: usize) -> Cut {
        let (above, threshold, _) = keys.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
        let over = above.iter().filter(|&key| *key > *threshold).count();
        Cut { threshold: *threshold, ties: count - over }
    }

    #[inline(always)]
    fn takes(&mut self, key: u32) -> bool {
        let tie = (key == self.threshold) & (self.ties > 0);
        self.ties -= usize::from(tie);
        tie | (key > self.threshold)
    }
}

/// Keys in every bucket.
type Counts = [u32; BUCKETS];

fn bucket_of_key(key: u32) -> usize {
    (key >> (u32::BITS - BUCKET_BITS)) as usize
}

fn histogram(keys: &[u32]) -> Counts {
    let mut counters = [[0; BUCKETS]; COUNTERS];
    let (groups, rest) = keys.as_chunks::<COUNTERS>();
    for group in groups {
        for (counts, &key) in counters.iter_mut().zip(group) {
            counts[bucket_of_key(key)] += 1;
        }
    }
    let [mut counts, others @ ..] = counters;
    for &key in rest {
        counts[bucket_of_key(key)] += 1;
    }
    for other in &others {
        counts.iter_mut().zip(other).for_each(|(sum, n)| *sum += n);
    }
    counts
}

/// The bucket of the `count`-th largest key, and how many keys lie in higher ones.
fn bucket_of(counts: &Counts, count: usize) -> (usize, usize) {
    let mut over = 0;
    for (bucket, &here) in counts.iter().enumerate().rev() {
        if over + here as usize >= count {
            return (bucket, over);
        }
        over += here as usize;
    }
    (0, over)
}

/// Leaves the keys that `keep` wants, in order. Without branches.
#[inline(always)]
fn retain(keys: &mut Vec<u32>, mut keep: impl FnMut(u32) -> bool) {
    let mut len = 0;
    for i in 0..keys.len() {
        let key = keys[i];
        keys[len] = key;
        len += usize::from(keep(key));
    }
    keys.truncate(len);
}

/// A number that orders like the finite score: both zeros are one, and an unsigned comparison is all it takes.
#[inline(always)]
fn key(score: &f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    // Negative numbers order backwards: flip all bits. Positive ones go above them: flip the sign.
    bits ^ (((bits as i32 >> 31) as u32) | 0x8000_0000)
}

/// The indices of `row` that `takes` wants, ascending. Without branches: which units are kept cannot be predicted.
#[inline(always)]
fn collect(row: &[f32], list: &mut Vec<u32>, mut takes: impl FnMut(u32) -> bool) {
    list.resize(row.len(), 0);
    let mut len = 0;
    for (index, score) in row.iter().enumerate() {
        list[len] = index as u32;
        len += usize::from(takes(key(score)));
    }
    list.truncate(len);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernels::CpuOptions;
    use crate::sparsity::Scope;
    use proptest::prelude::*;

    /// Kept indices of every row by full sorts, straight from the definition.
    fn sorted(scores: &[f32], width: usize, allowance: Allowance) -> Vec<Vec<u32>> {
        let rank = |units: &mut Vec<(usize, usize)>| {
            units.sort_by(|&(l, i), &(m, j)| {
                let (a, b) = (scores[l * width + i], scores[m * width + j]);
                b.partial_cmp(&a).unwrap().then((l, i).cmp(&(m, j)))
            });
        };
        let mut kept = Vec::new();
        let mut rest = Vec::new();
        for layer in 0..scores.len() / width {
            let mut units: Vec<(usize, usize)> = (0..width).map(|i| (layer, i)).collect();
            rank(&mut units);
            rest.extend(units.split_off(allowance.each.min(width)));
            kept.extend(units);
        }
        rank(&mut rest);
        rest.truncate(allowance.shared);
        kept.extend(rest);
        kept.sort_unstable();
        let list = |layer| kept.iter().filter(|u| u.0 == layer).map(|u| u.1 as u32).collect();
        (0..scores.len() / width).map(list).collect()
    }

    /// Few distinct values, so that ties are common, zeros of both signs among them.
    fn any_scores(n: usize) -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![
            (-3_i8..4).prop_map(f32::from),
            Just(-0.0_f32),
            -1e30_f32..1e30,
            Just(f32::MAX),
            Just(f32::MIN),
            Just(f32::MIN_POSITIVE / 2.0),
        ];
        proptest::collection::vec(value, n)
    }

    fn any_case() -> impl Strategy<Value = (Units, Scores, Budget)> {
        (1_usize..6, 1_usize..9, 1_usize..70, any::<bool>()).prop_flat_map(|(layers, heads, neurons, global)| {
            let scope = if global { Scope::Global } else { Scope::Local };
            let budget = (1_u32..=100, 1_u32..=100).prop_map(move |(h, n)| Budget {
                heads: h as f32 / 100.0,
                neurons: n as f32 / 100.0,
                scope,
            });
            let scores = (any_scores(layers * heads), any_scores(layers * neurons))
                .prop_map(|(heads, neurons)| Scores { heads, neurons });
            (Just(Units { layers, heads, neurons }), scores, budget)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn selection_equals_sorting((units, scores, budget) in any_case()) {
            let mut plan = Plan::dense(units);
            Selector::new().select(&scores, &budget, units, &mut plan).unwrap();
            plan.validate(units).unwrap();
            let heads = sorted(&scores.heads[units.heads..], units.heads, budget.heads_of(units, units.layers - 1));
            let neurons =
                sorted(&scores.neurons[units.neurons..], units.neurons, budget.neurons_of(units, units.layers - 1));
            for (layer, plan) in plan.layers[1..].iter().enumerate() {
                prop_assert_eq!(&plan.heads, &heads[layer]);
                prop_assert_eq!(&plan.neurons, &neurons[layer]);
            }
        }

        #[test]
        fn keys_order_like_scores(a in any_scores(1), b in any_scores(1)) {
            prop_assert_eq!(key(&a[0]).cmp(&key(&b[0])), a[0].partial_cmp(&b[0]).unwrap());
        }
    }

    const UNITS: Units = Units { layers: 3, heads: 4, neurons: 32 };

    fn varied(seed: u32) -> Scores {
        let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) % 997) as f32;
        Scores { heads: (0..12).map(value).collect(), neurons: (0..96).map(value).collect() }
    }

    #[test]
    fn a_full_budget_keeps_all() {
        for scope in [Scope::Local, Scope::Global] {
            let mut plan = Plan::default();
            select(&varied(1), &Budget { scope, ..Budget::DENSE }, UNITS, &mut plan).unwrap();
            assert_eq!(plan, Plan::dense(UNITS));
        }
    }

    #[test]
    fn a_global_budget_prefers_the_better_layer_but_starves_none() {
        let mut scores = Scores::zeros(UNITS);
        scores.heads[8..].fill(1.0);
        scores.neurons[64..].fill(1.0);
        let mut plan = Plan::dense(UNITS);
        select(&scores, &Budget::new(0.5, 0.5, Scope::Global).unwrap(), UNITS, &mut plan).unwrap();
        assert_eq!((&plan.layers[1].heads[..], &plan.layers[2].heads[..]), (&[0][..], &[0, 1, 2][..]));
        assert_eq!((&plan.layers[1].neurons[..], plan.layers[2].neurons.len()), (&[0, 1][..], 30));
    }

    #[test]
    fn many_scores_are_cut_as_few_are() {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        let units = Units { layers: 4, heads: 3, neurons: 5000 };
        for levels in [3.0, 100.0, 1e7] {
            // Few levels: ties cross buckets, layers and the threshold.
            let mut value = || ((next() + next() - 1.0) * levels).round() / levels;
            let heads = (0..12).map(|_| value()).collect();
            let scores = Scores { heads, neurons: (0..20_000).map(|_| value()).collect() };
            for scope in [Scope::Local, Scope::Global] {
                for percent in [1, 7, 50, 93, 100] {
                    let fraction = percent as f32 / 100.0;
                    let budget = Budget::new(fraction, fraction, scope).unwrap();
                    let expected = sorted(&scores.neurons[5000..], 5000, budget.neurons_of(units, 3));
                    for threads in [1, 2, 3] {
                        let options = CpuOptions { threads: Some(threads), ..CpuOptions::default() };
                        let cpu = Cpu::new(&options).unwrap();
                        let mut plan = Plan::dense(units);
                        Selector::new().select_layers(Some(&cpu), &scores, &budget, units, 1..4, &mut plan).unwrap();
                        for (plan, expected) in plan.layers[1..].iter().zip(&expected) {
                            assert_eq!(&plan.neurons, expected, "{levels} {scope} {percent} {threads}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn layers_that_are_not_asked_for_stay() {
        let mut plan = Plan::dense(UNITS);
        let budget = Budget::new(0.25, 0.25, Scope::Global).unwrap();
        let mut scores = varied(3);
        scores.neurons[..64].fill(f32::NAN);
        Selector::new().select_layers(None, &scores, &budget, UNITS, 2..3, &mut plan).unwrap();
        assert_eq!(plan.layers[..2], Plan::dense(UNITS).layers[..2]);
        assert_eq!((plan.layers[2].heads.len(), plan.layers[2].neurons.len()), (1, 8));
    }

    #[test]
    fn after_the_first_plan_nothing_is_allocated() {
        for scope in [Scope::Local, Scope::Global] {
            let mut selector = Selector::new();
            let mut plan = Plan::dense(UNITS);
            let state = |selector: &Selector, plan: &Plan| {
                let lists = plan.layers.iter().map(|l| (l.heads.as_ptr(), l.neurons.as_ptr())).collect::<Vec<_>>();
                (selector.keys.capacity(), selector.layers.capacity(), lists)
            };
            let fraction = |percent: u32| percent as f32 / 100.0;
            selector.select(&varied(0), &Budget::new(0.1, 0.1, scope).unwrap(), UNITS, &mut plan).unwrap();
            let first = state(&selector, &plan);
            for percent in (1..=100).rev() {
                let budget = Budget::new(fraction(percent), fraction(percent), scope).unwrap();
                selector.select(&varied(percent), &budget, UNITS, &mut plan).unwrap();
                assert_eq!(state(&selector, &plan), first);
            }
        }
    }

    #[test]
    fn broken_scores_are_named_and_change_nothing() {
        let budget = Budget::new(0.5, 0.5, Scope::Local).unwrap();
        let with = |change: fn(&mut Scores)| {
            let mut scores = varied(7);
            change(&mut scores);
            scores
        };
        for (scores, expected) in [
            (with(|s| s.heads[7] = f32::NAN), "the score of head 3 of layer 1 is NaN; scores must be finite numbers"),
            (
                with(|s| s.neurons[64] = f32::NEG_INFINITY),
                "the score of neuron 0 of layer 2 is -inf; scores must be finite numbers",
            ),
            (
                with(|s| s.neurons.truncate(64)),
                "64 scores for neurons were given; a model of 3 layers of 32 neurons needs 96",
            ),
        ] {
            let mut plan = Plan::dense(UNITS);
            let error = select(&scores, &budget, UNITS, &mut plan).unwrap_err();
            assert_eq!(error.to_string(), expected);
            assert_eq!(scores.validate(UNITS).unwrap_err().to_string(), expected);
            assert_eq!(plan, Plan::dense(UNITS));
        }
        let layer_0 = with(|s| s.heads[0] = f32::NAN);
        assert!(select(&layer_0, &budget, UNITS, &mut Plan::dense(UNITS)).is_ok());
        let zero = Budget { heads: 0.0, ..budget };
        assert!(select(&varied(7), &zero, UNITS, &mut Plan::dense(UNITS)).is_err());
    }
}
