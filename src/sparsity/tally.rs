//! How often each unit was kept over several tokens, and how much plans change from token to token.

use super::{LayerPlan, Plan, Units};

/// Units of one kind of one layer, over the tokens counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnitTally {
    /// For each unit, the tokens that kept it.
    pub times: Vec<u32>,
    /// Sum over neighbouring tokens of units kept by both / units kept by either.
    overlap: f64,
}

/// One layer, over the tokens counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerTally {
    /// Its heads, `H`.
    pub heads: UnitTally,
    /// Its neurons, `F`.
    pub neurons: UnitTally,
}

/// The plans of several tokens in a row, counted.
///
/// ```
/// use shadowllm::sparsity::{Plan, PlanTally, Units};
///
/// let units = Units { layers: 2, heads: 2, neurons: 4 };
/// let mut tally = PlanTally::new(units);
/// let mut plan = Plan::dense(units);
/// tally.add(&plan);
/// plan.layers[1].neurons = vec![0, 2];
/// tally.add(&plan);
/// let neurons = &tally.layers()[1].neurons;
/// assert_eq!(neurons.times, [2, 1, 2, 1]);
/// assert_eq!((neurons.mean_kept(2), neurons.always(2), neurons.never()), (3.0, 2, 0));
/// assert_eq!(neurons.overlap(2), Some(0.5));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct PlanTally {
    layers: Vec<LayerTally>,
    tokens: usize,
    last: Plan,
}

impl PlanTally {
    /// No token yet.
    pub fn new(units: impl Into<Units>) -> Self {
        let units = units.into();
        let zeros = |n| UnitTally { times: vec![0; n], overlap: 0.0 };
        let layer = LayerTally { heads: zeros(units.heads), neurons: zeros(units.neurons) };
        PlanTally { layers: vec![layer; units.layers], tokens: 0, last: Plan::default() }
    }

    /// Counts the plan of the next token. It has to be valid for the units that the tally was made for.
    ///
    /// # Panics
    /// If it names a unit that does not exist.
    pub fn add(&mut self, plan: &Plan) {
        let nothing = LayerPlan::default();
        for (index, (tally, plan)) in self.layers.iter_mut().zip(&plan.layers).enumerate() {
            let last = (self.tokens > 0).then(|| self.last.layers.get(index).unwrap_or(&nothing));
            tally.heads.add(last.map(|last| &last.heads[..]), &plan.heads);
            tally.neurons.add(last.map(|last| &last.neurons[..]), &plan.neurons);
        }
        self.last.copy_from(plan);
        self.tokens += 1;
    }

    /// Tokens counted.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// One per layer.
    pub fn layers(&self) -> &[LayerTally] {
        &self.layers
    }
}

impl UnitTally {
    fn add(&mut self, last: Option<&[u32]>, kept: &[u32]) {
        for &unit in kept {
            self.times[unit as usize] += 1;
        }
        if let Some(last) = last {
            self.overlap += jaccard(last, kept);
        }
    }

    /// Units that a token kept, on average over `tokens`.
    pub fn mean_kept(&self, tokens: usize) -> f64 {
        self.times.iter().map(|&times| f64::from(times)).sum::<f64>() / tokens.max(1) as f64
    }

    /// Units that each of `tokens` kept.
    pub fn always(&self, tokens: usize) -> usize {
        self.times.iter().filter(|&&times| times as usize == tokens).count()
    }

    /// Units that no token kept.
    pub fn never(&self) -> usize {
        self.times.iter().filter(|&&times| times == 0).count()
    }

    /// Units kept by both of two neighbouring tokens / units kept by either (Jaccard's index), on average; `None` if there
    /// were fewer than two tokens.
    pub fn overlap(&self, tokens: usize) -> Option<f64> {
        (tokens > 1).then(|| self.overlap / (tokens - 1) as f64)
    }
}

/// Size of the intersection / size of the union of two ascending lists; 1 if both are empty.
fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut rest_a, mut rest_b, mut both) = (a, b, 0);
    while let ([x, tail_a @ ..], [y, tail_b @ ..]) = (rest_a, rest_b) {
        both += usize::from(x == y);
        if x <= y {
            rest_a = tail_a;
        }
        if y <= x {
            rest_b = tail_b;
        }
    }
    match a.len() + b.len() - both {
        0 => 1.0,
        either => both as f64 / either as f64,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_counted_is_no_number() {
        let tally = PlanTally::new(Units { layers: 1, heads: 2, neurons: 3 });
        let heads = &tally.layers()[0].heads;
        assert_eq!((tally.tokens(), heads.mean_kept(0), heads.never(), heads.overlap(0)), (0, 0.0, 2, None));
    }

    proptest! {
        /// Against sets: counts, means, units that are always or never kept, overlap.
        #[test]
        fn a_tally_is_what_sets_say(lists in prop::collection::vec(prop::collection::btree_set(0u32..12, 0..12), 1..6)) {
            let units = Units { layers: 2, heads: 1, neurons: 12 };
            let mut tally = PlanTally::new(units);
            let mut plan = Plan::dense(units);
            for list in &lists {
                plan.layers[1].neurons = list.iter().copied().collect();
                tally.add(&plan);
            }
            let (got, n) = (&tally.layers()[1].neurons, lists.len());
            let kept_by = |unit: u32| lists.iter().filter(|list| list.contains(&unit)).count();
            let times: Vec<u32> = (0..12).map(|unit| kept_by(unit) as u32).collect();
            prop_assert_eq!(&got.times, &times);
            prop_assert_eq!(got.always(n), (0..12).filter(|&unit| kept_by(unit) == n).count());
            prop_assert_eq!(got.never(), (0..12).filter(|&unit| kept_by(unit) == 0).count());
            prop_assert!((got.mean_kept(n) - lists.iter().map(BTreeSet::len).sum::<usize>() as f64 / n as f64).abs() < 1e-9);
            let shares: Vec<f64> = lists.windows(2).map(|pair| match pair[0].union(&pair[1]).count() {
                0 => 1.0,
                either => pair[0].intersection(&pair[1]).count() as f64 / either as f64,
            }).collect();
            let want = (n > 1).then(|| shares.iter().sum::<f64>() / shares.len() as f64);
            prop_assert_eq!(got.overlap(n).is_some(), want.is_some());
            prop_assert!((got.overlap(n).unwrap_or(0.0) - want.unwrap_or(0.0)).abs() < 1e-9);
            prop_assert_eq!(tally.layers()[0].neurons.always(n), 12);
        }
    }
}
