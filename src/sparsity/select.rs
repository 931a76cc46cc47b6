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
mod tests;
