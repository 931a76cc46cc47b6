//! A budget from the quality that it may cost.
//!
//! Nobody knows how many heads and neurons a model can spare; a user knows how much worse it may become. With the costs that were
//! measured ([`Curves`]) the rest is a search: of all pairs of counts whose estimated increase in perplexity is within the limit,
//! the one that reads the fewest bytes. Heads and neurons trade against each other there, because a byte of either buys another
//! amount of quality.

use super::{Curves, Predictor, Wanted};
use crate::model::{Ffn, Model};
use crate::sparsity::{Budget, Scope, Units};
use crate::{Error, Result};

/// A budget that was chosen by its cost.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Choice {
    /// The budget, of scope local.
    pub budget: Budget,
    /// The most by which perplexity was allowed to grow, as a fraction of the dense model's.
    pub max_increase: f64,
    /// By how much it is expected to grow.
    pub expected_increase: f64,
    /// The text that this was measured on, in words.
    pub data: String,
    /// Tokens of it that were scored; 0 if that is not known.
    pub tokens: u64,
}

/// Bytes that one token reads of a model's units after layer 0, and of the predictor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnitCosts {
    /// Of one head in all these layers, with its share of the key/value head that it uses.
    pub head: u64,
    /// Of one neuron in all these layers.
    pub neuron: u64,
    /// Of the decisions, if heads are dropped, neurons are, or both.
    pub decisions: [u64; 3],
}

impl UnitCosts {
    /// Those of a model and a predictor for it.
    pub fn of(model: &Model, predictor: &Predictor) -> Self {
        let mut costs = UnitCosts::default();
        for layer in model.layers.iter().skip(1) {
            let a = &layer.attention;
            let attention: u64 = [&a.q, &a.k, &a.v, &a.out].into_iter().map(|linear| linear.weight.bytes()).sum();
            let ffn = match &layer.ffn {
                Ffn::Plain { fc1, fc2 } => fc1.weight.bytes() + fc2.weight.bytes(),
                Ffn::Gated { gate, up, down } => gate.weight.bytes() + up.weight.bytes() + down.weight.bytes(),
            };
            costs.head += attention / model.config.heads.max(1) as u64;
            costs.neuron += ffn / model.config.ffn.max(1) as u64;
        }
        let decisions = [(true, false), (false, true), (true, true)];
        costs.decisions = decisions.map(|(heads, neurons)| predictor.bytes(Wanted { heads, neurons }));
        costs
    }

    /// Bytes if every layer keeps these numbers of heads and neurons.
    fn bytes(&self, [heads, neurons]: [usize; 2], units: Units) -> u64 {
        let decision = match (heads < units.heads, neurons < units.neurons) {
            (false, false) => 0,
            (true, false) => self.decisions[0],
            (false, true) => self.decisions[1],
            (true, true) => self.decisions[2],
        };
        self.head * heads as u64 + self.neuron * neurons as u64 + decision
    }
}

impl Curves {
    /// The budget that reads the fewest bytes of those whose estimated increase in perplexity is at most `max_increase` (0.05: 5 %
    /// more than the dense model). Never below the counts that were tried; everything is kept if nothing can be spared.
    pub fn choose(&self, costs: &UnitCosts, max_increase: f64) -> Choice {
        let units = self.units();
        let [least_heads, least_neurons] = self.least();
        let mut best = ([units.heads, units.neurons], 0.0);
        let mut bytes = costs.bytes(best.0, units);
        for heads in (least_heads..=units.heads).rev() {
            let allowed = |neurons: usize| self.increase_of([heads, neurons]).filter(|&more| more <= max_increase);
            // The estimate never falls with fewer neurons: of the counts that are allowed the least is wanted, or all of them,
            // which may spare the prediction.
            let (mut low, mut high) = (least_neurons, units.neurons);
            while low < high {
                let middle = (low + high) / 2;
                if allowed(middle).is_some() { high = middle } else { low = middle + 1 }
            }
            for neurons in [low, units.neurons] {
                let Some(increase) = allowed(neurons) else { continue };
                let read = costs.bytes([heads, neurons], units);
                if read < bytes {
                    (best, bytes) = (([heads, neurons], increase), read);
                }
            }
        }
        let fraction = |kept: usize, all: usize| kept as f32 / all.max(1) as f32;
        let ([heads, neurons], expected_increase) = best;
        let (heads, neurons) = (fraction(heads, units.heads), fraction(neurons, units.neurons));
        Choice {
            budget: Budget { heads, neurons, scope: Scope::Local },
            max_increase,
            expected_increase,
            data: self.data().to_owned(),
            tokens: self.tokens(),
        }
    }
}

impl Predictor {
    /// The budget that reads the fewest bytes of `model` and costs at most `max_increase` in perplexity, by what was measured of
    /// this predictor; see [`Curves::choose`].
    ///
    /// # Errors
    /// [`Error::NeverValidated`] if nothing was; [`Error::MaxIncrease`] if the limit is no number from 0 on.
    pub fn choose_budget(&self, model: &Model, max_increase: f64) -> Result<Choice> {
        if !(max_increase >= 0.0 && max_increase.is_finite()) {
            return Err(Error::MaxIncrease { found: max_increase.to_string() });
        }
        let curves = self.curves().ok_or(Error::NeverValidated)?;
        Ok(curves.choose(&UnitCosts::of(model, self), max_increase))
    }
}

/// Reads a limit as users write it: `5%` or `0.05`.
///
/// # Errors
/// [`Error::MaxIncrease`] unless it is a percentage from 0 on, or a fraction from 0 to 1. A whole number such as 5 could mean 5 %
/// or five times, so it is refused.
///
/// ```
/// use shadowllm::sparsity::predictor::parse_max_increase;
/// assert_eq!(parse_max_increase("5%").unwrap(), 0.05);
/// assert_eq!(
///     parse_max_increase("5").unwrap_err().to_string(),
///     "the largest increase in perplexity is \"5\"; expected a percentage such as 5% or a fraction from 0 to 1 such as 0.05"
/// );
/// ```
pub fn parse_max_increase(text: &str) -> Result<f64> {
    let (number, unit, most) = match text.trim().strip_suffix('%') {
        Some(number) => (number.trim_end(), 100.0, f64::MAX),
        None => (text.trim(), 1.0, 1.0),
    };
    let value = number.parse().ok().filter(|value| (0.0..=most).contains(value));
    value.map(|value: f64| value / unit).ok_or_else(|| Error::MaxIncrease { found: text.to_owned() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sparsity::predictor::{PredictorInfo, Validation};
    use crate::sparsity::testing::info;

    const UNITS: Units = Units { layers: 5, heads: 10, neurons: 100 };
    const COSTS: UnitCosts = UnitCosts { head: 300, neuron: 100, decisions: [50, 80, 100] };

    /// Points by share of heads and neurons kept, and ratio of perplexities.
    fn described(points: &[(f32, f32, f64)]) -> PredictorInfo {
        let validation = |&(heads, neurons, ratio): &(f32, f32, f64)| Validation {
            budget: Budget { heads, neurons, scope: Scope::Local },
            data: "a text".to_owned(),
            tokens: 100,
            perplexity_dense: 20.0,
            perplexity_sparse: 20.0 * ratio,
            heads: None,
            neurons: None,
        };
        PredictorInfo { validated: points.iter().map(validation).collect(), ..info() }
    }

    fn curves(points: &[(f32, f32, f64)]) -> Curves {
        Curves::of(&described(points), UNITS).unwrap()
    }

    fn budget(heads: f32, neurons: f32) -> Budget {
        Budget { heads, neurons, scope: Scope::Local }
    }

    fn close(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < 1e-9)
    }

    const POINTS: [(f32, f32, f64); 6] =
        [(0.8, 1.0, 1.10), (0.5, 1.0, 1.50), (1.0, 0.8, 0.99), (1.0, 0.5, 1.04), (0.8, 0.8, 1.21), (0.5, 0.5, 2.00)];

    #[test]
    fn measured_budgets_cost_what_was_measured() {
        let curves = curves(&POINTS);
        for (heads, neurons, ratio) in POINTS {
            // 0.99 is luck.
            assert!(close(curves.increase(&budget(heads, neurons)), ratio.max(1.0) - 1.0), "{heads} {neurons}");
        }
        assert!(close(curves.increase(&Budget::DENSE), 0.0));
        assert!(close(curves.increase(&budget(1.0, 0.65)), (0.5 * 1.04_f64.ln()).exp_m1()), "half the way");
        assert_eq!(curves.increase(&budget(0.4, 1.0)), None);
        assert_eq!(curves.increase(&budget(1.0, 0.49)), None);
        assert_eq!(curves.increase(&Budget { scope: Scope::Global, ..budget(1.0, 0.5) }), None);
    }

    #[test]
    fn dropping_both_costs_at_least_the_sum() {
        let sum = |curves: &Curves| {
            let cost = |b| curves.increase(&b).unwrap().ln_1p();
            cost(budget(0.8, 1.0)) + cost(budget(1.0, 0.5))
        };
        let more = curves(&POINTS);
        assert!(more.increase(&budget(0.8, 0.5)).unwrap().ln_1p() > 1.2 * sum(&more));
        let less = curves(&[(0.5, 1.0, 1.5), (1.0, 0.5, 1.5), (0.5, 0.5, 1.6)]);
        assert!(close(less.increase(&budget(0.5, 0.5)), 1.25), "measured less, but the sum is what is expected");
        let apart = curves(&[(0.5, 1.0, 1.5), (1.0, 0.5, 1.5)]);
        assert_eq!(apart.increase(&budget(0.5, 0.5)), None);
        assert_eq!(apart.choose(&COSTS, 9.0).budget, budget(1.0, 0.5), "one kind at a time, the one with more bytes");
    }

    #[test]
    fn the_choice_reads_the_fewest_bytes_within_the_limit() {
        let curves = curves(&POINTS);
        for (limit, heads, neurons) in [(0.0, 1.0, 0.8), (0.04, 1.0, 0.5), (1.0, 0.5, 0.5), (50.0, 0.5, 0.5)] {
            let choice = curves.choose(&COSTS, limit + 1e-12);
            assert_eq!(choice.budget, budget(heads, neurons), "{limit}");
            assert!(choice.expected_increase <= limit + 1e-9);
            assert_eq!((choice.data.as_str(), choice.tokens), ("a text", 100));
        }
        // Where predicting takes more than it spares, nothing is dropped.
        let dear = UnitCosts { decisions: [10_000; 3], ..COSTS };
        assert_eq!(curves.choose(&dear, 1.0).budget, Budget::DENSE);
    }

    #[test]
    fn limits_are_percentages_or_fractions() {
        for (text, value) in [("5%", 0.05), ("5 %", 0.05), ("0.05", 0.05), ("0", 0.0), ("250%", 2.5), ("1", 1.0)] {
            assert_eq!(parse_max_increase(text).unwrap(), value, "{text}");
        }
        for text in ["", "%", "5", "-1%", "-0.1", "nan", "inf%", "five", "1e400%"] {
            let expected = format!(
                "the largest increase in perplexity is {text:?}; expected a percentage such as 5% or a fraction from 0 to 1 \
                 such as 0.05"
            );
            assert_eq!(parse_max_increase(text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn without_points_there_are_no_curves() {
        assert_eq!(Curves::of(&described(&[]), UNITS), None);
        assert_eq!(Curves::of(&described(&[(1.0, 1.0, 1.0)]), UNITS), None);
        assert_eq!(Curves::of(&info(), UNITS), None, "its only budget is global");
    }

    fn any_points() -> impl Strategy<Value = Vec<(f32, f32, f64)>> {
        let kept = || prop::sample::select(vec![0.1_f32, 0.25, 0.3, 0.5, 0.75, 0.9, 1.0]);
        let single = (kept(), any::<bool>(), 0.5_f64..6.0)
            .prop_map(|(kept, heads, ratio)| if heads { (kept, 1.0, ratio) } else { (1.0, kept, ratio) });
        let both = (kept(), 0.5_f64..20.0).prop_map(|(kept, ratio)| (kept, kept, ratio));
        (prop::collection::vec(single, 1..8), prop::collection::vec(both, 0..5)).prop_map(|(a, b)| [a, b].concat())
    }

    proptest! {
        #[test]
        fn choices_keep_their_limit_and_grow_with_it(
            points in any_points(),
            head in 0_u64..1000,
            neuron in 0_u64..1000,
            limit in 0.0_f64..5.0,
            more in 0.0_f64..5.0,
        ) {
            if let Some(curves) = Curves::of(&described(&points), UNITS) {
                let costs = UnitCosts { head, neuron, decisions: [40, 70, 110] };
                let read = |b: &Budget| {
                    let count = |fraction: f32, all: usize| (f64::from(fraction) * all as f64).round() as usize;
                    costs.bytes([count(b.heads, UNITS.heads), count(b.neurons, UNITS.neurons)], UNITS)
                };
                let (tight, loose) = (curves.choose(&costs, limit), curves.choose(&costs, limit + more));
                prop_assert!(read(&loose.budget) <= read(&tight.budget));
                for (choice, limit) in [(&tight, limit), (&loose, limit + more)] {
                    prop_assert!(choice.budget.validate().is_ok());
                    prop_assert_eq!(curves.increase(&choice.budget), Some(choice.expected_increase));
                    prop_assert!((0.0..=limit).contains(&choice.expected_increase));
                }
                // The oracle: all pairs of counts.
                let pairs = (0..=UNITS.heads).flat_map(|h| (0..=UNITS.neurons).map(move |n| [h, n]));
                let allowed = pairs.filter(|&kept| curves.increase_of(kept).is_some_and(|more| more <= limit));
                prop_assert_eq!(Some(read(&tight.budget)), allowed.map(|kept| costs.bytes(kept, UNITS)).min());
            }
        }

        #[test]
        fn keeping_fewer_never_costs_less(points in any_points(), heads in 0_usize..=10, neurons in 0_usize..=100) {
            if let Some(curves) = Curves::of(&described(&points), UNITS) {
                let cost = curves.increase_of([heads, neurons]);
                for fewer in [[heads.saturating_sub(1), neurons], [heads, neurons.saturating_sub(1)]] {
                    match (curves.increase_of(fewer), cost) {
                        (Some(less), Some(cost)) => prop_assert!(less >= cost - 1e-12),
                        (less, None) if fewer != [heads, neurons] => prop_assert!(less.is_none()),
                        _ => {}
                    }
                }
            }
        }
    }
}
