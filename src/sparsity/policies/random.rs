//! `random`: units drawn anew for every decision, without replacement.
//!
//! Useless for quality and ideal for speed: it reads exactly as many distinct units as any policy with the same budget, has
//! none of a real policy's habits that a cache could profit from, and needs no trained predictor.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::Result;
use crate::sparsity::budget::Allowance;
use crate::sparsity::{Budget, LayerPlan, Plan, Policy, PolicyInput, Station, Units};

/// A uniformly random plan per decision. The stream of a seed is fixed by the specification of ChaCha8.
#[derive(Clone, Debug)]
pub struct Random {
    rng: ChaCha8Rng,
    budget: Budget,
    units: Units,
    /// A layer's own draw, while the shared one is added to it.
    own: Vec<u32>,
    /// Random words for a whole layer.
    words: Vec<u32>,
}

impl Random {
    /// The start of the stream of `seed`.
    ///
    /// # Errors
    /// [`crate::Error::BudgetFraction`].
    pub fn new(seed: u64, budget: Budget, units: impl Into<Units>) -> Result<Self> {
        budget.validate()?;
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let units = units.into();
        let room = || Vec::with_capacity(units.heads.max(units.neurons));
        Ok(Random { rng: ChaCha8Rng::from_seed(bytes), budget, units, own: room(), words: room() })
    }

    /// Each list: `each` of the layer's units, and `shared` more drawn from what remains in all layers together.
    fn draw<'a>(
        &mut self,
        width: usize,
        allowance: Allowance,
        layers: usize,
        lists: impl Iterator<Item = &'a mut Vec<u32>>,
    ) {
        let each = allowance.each.min(width);
        let mut rest = Draw { wanted: allowance.shared, left: (width - each) * layers };
        for list in lists {
            let mut own = Draw { wanted: each, left: width };
            if allowance.shared == 0 {
                own.all(&mut self.rng, &mut self.words, list);
                continue;
            }
            self.own.clear();
            self.own.extend((0..width as u32).filter(|_| own.next(self.rng.next_u32())));
            let mut taken = self.own.iter().copied().peekable();
            list.clear();
            list.extend(
                (0..width as u32).filter(|&unit| taken.next_if_eq(&unit).is_some() || rest.next(self.rng.next_u32())),
            );
        }
    }
}

/// Selection sampling: each unit in turn is taken with the chance that leaves all draws equally likely, which yields exactly
/// `wanted` of `left` units in ascending order (Knuth, The Art of Computer Programming, volume 2, algorithm 3.4.2 S).
struct Draw {
    /// Units still to take.
    wanted: usize,
    /// Units still to come.
    left: usize,
}

impl Draw {
    /// Whether the unit is taken for which `word` was drawn.
    fn next(&mut self, word: u32) -> bool {
        // A uniform number below `left`; its bias, at most left / 2^32, is far below what any use could notice.
        let at = (u64::from(word) * self.left as u64) >> 32;
        let take = at < self.wanted as u64;
        self.wanted -= usize::from(take);
        self.left -= 1;
        take
    }

    /// Takes units until none is left. The words are those of one draw after the other, but made at once, and what is taken is
    /// written without a branch that nothing could predict: that is a fifth of the time.
    fn all(&mut self, rng: &mut ChaCha8Rng, words: &mut Vec<u32>, list: &mut Vec<u32>) {
        words.resize(self.left, 0);
        rng.fill_bytes(bytemuck::cast_slice_mut(words));
        list.resize(self.left, 0);
        let mut taken = 0;
        for (unit, &word) in (0..).zip(&*words) {
            // Behind the last unit taken there is room as long as any is left.
            list[taken] = unit;
            taken += usize::from(self.next(u32::from_le(word)));
        }
        list.truncate(taken);
    }
}

impl Policy for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn stations(&self) -> &[Station] {
        &[Station::Start]
    }

    fn decide(&mut self, _: PolicyInput<'_>, plan: &mut Plan) -> Result<()> {
        let units = self.units;
        plan.layers.resize_with(units.layers, LayerPlan::default);
        let Some((first, rest)) = plan.layers.split_first_mut() else {
            return Ok(());
        };
        first.set_dense(units);
        let layers = rest.len();
        let (heads, neurons) = (self.budget.heads_of(units, layers), self.budget.neurons_of(units, layers));
        self.draw(units.heads, heads, layers, rest.iter_mut().map(|l| &mut l.heads));
        self.draw(units.neurons, neurons, layers, rest.iter_mut().map(|l| &mut l.neurons));
        Ok(())
    }

    fn fork(&self) -> Box<dyn Policy> {
        Box::new(self.clone())
    }

    fn bytes_per_decision(&self) -> u64 {
        0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sparsity::testing::{UNITS, decide};
    use crate::sparsity::{Scope, select};
    use proptest::prelude::*;

    fn random(seed: u64, heads: f32, neurons: f32, scope: Scope) -> Random {
        Random::new(seed, Budget::new(heads, neurons, scope).unwrap(), UNITS).unwrap()
    }

    proptest! {
        #[test]
        fn counts_are_those_of_a_selection(seed in any::<u64>(), percent in 1_u32..=100, global in any::<bool>()) {
            let scope = if global { Scope::Global } else { Scope::Local };
            let fraction = percent as f32 / 100.0;
            let mut policy = random(seed, fraction, fraction, scope);
            let plan = decide(&mut policy, 0);
            plan.validate(UNITS).unwrap();
            let mut selected = Plan::dense(UNITS);
            select(&crate::sparsity::testing::scores(1), &policy.budget, UNITS, &mut selected).unwrap();
            prop_assert_eq!(plan.kept_fraction(UNITS), selected.kept_fraction(UNITS));
            for layer in &plan.layers[1..] {
                let floor = policy.budget.neurons_of(UNITS, UNITS.layers - 1).each;
                prop_assert!(!layer.heads.is_empty() && layer.neurons.len() >= floor);
            }
        }
    }

    #[test]
    fn a_layer_drawn_at_once_is_one_drawn_unit_by_unit() {
        for (wanted, left) in [(0, 5), (5, 5), (3, 17), (100, 1000)] {
            let (mut rng, mut again) = (random(7, 0.5, 0.5, Scope::Local).rng, random(7, 0.5, 0.5, Scope::Local).rng);
            let (mut words, mut list) = (Vec::new(), vec![9; 3]);
            for _ in 0..3 {
                Draw { wanted, left }.all(&mut rng, &mut words, &mut list);
                let mut draw = Draw { wanted, left };
                let expected: Vec<u32> = (0..left as u32)
                    .filter(|_| draw.next(rand_chacha::rand_core::RngCore::next_u32(&mut again)))
                    .collect();
                assert_eq!((list.len(), &list), (wanted, &expected));
            }
        }
    }

    #[test]
    fn seeds_repeat_and_decisions_differ() {
        let draws = |seed| {
            let mut policy = random(seed, 0.5, 0.5, Scope::Local);
            [0, 1].map(|position| decide(&mut policy, position))
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1)[0], draws(1)[1]);
        assert_ne!(draws(1)[0], draws(2)[0]);
        assert_eq!(draws(1)[0].layers[1].heads, [1, 3], "the stream of a seed is fixed for ever");
    }

    #[test]
    fn every_unit_is_equally_likely() {
        for scope in [Scope::Local, Scope::Global] {
            let mut policy = random(3, 0.5, 0.25, scope);
            let mut seen = vec![0_u32; UNITS.neurons];
            let rounds = 4000;
            for position in 0..rounds {
                for &neuron in &decide(&mut policy, position).layers[2].neurons {
                    seen[neuron as usize] += 1;
                }
            }
            // Binomial: mean 1000, standard deviation 27.
            assert!(seen.iter().all(|n| (860..1140).contains(n)), "{seen:?}");
        }
    }
}
