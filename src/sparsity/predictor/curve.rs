//! What dropping units costs, as far as it was measured.
//!
//! A validation is a single budget. Between and around those that were tried a user still wants to know what to expect, so they
//! become curves: one for heads, one for neurons, and what happens when both are dropped at once. Costs are logarithms of
//! perplexity ratios, which is what adds up over independent losses. Curves never fall where fewer units are kept (a lucky
//! measurement is no licence), lie straight between measured points, and end at the last of them: nothing is known beyond.

use std::fmt;

use super::{Predictor, PredictorInfo};
use crate::sparsity::{Budget, Scope, Units};

/// Costs of one kind of unit, the other kept whole.
#[derive(Clone, Debug, PartialEq)]
struct Curve {
    /// Units that a layer keeps, from all of them down, and the cost, which never falls.
    points: Vec<(usize, f64)>,
}

impl Curve {
    /// Of measured points in any order; `None` if there are none.
    fn of(mut points: Vec<(usize, f64)>, all: usize) -> Option<Curve> {
        points.retain(|&(kept, _)| kept < all);
        if points.is_empty() {
            return None;
        }
        points.push((all, 0.0));
        // Of several measurements of one count the worst, which comes last, is what the count costs.
        points.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.total_cmp(&b.1)));
        let mut worst = 0.0_f64;
        for (_, cost) in &mut points {
            worst = worst.max(*cost);
            *cost = worst;
        }
        points.reverse();
        points.dedup_by_key(|point| point.0);
        points.reverse();
        Some(Curve { points })
    }

    /// The fewest units that were tried.
    fn least(&self) -> usize {
        self.points.last().map_or(0, |point| point.0)
    }

    /// What keeping `kept` units costs; `None` below the least that was tried.
    fn cost(&self, kept: usize) -> Option<f64> {
        let below = self.points.iter().position(|&(k, _)| k <= kept)?;
        let (low, cost) = self.points[below];
        let Some(&(high, less)) = below.checked_sub(1).and_then(|above| self.points.get(above)) else {
            return Some(cost);
        };
        Some(cost + (less - cost) * (kept - low) as f64 / (high - low) as f64)
    }
}

/// What a predictor costs at budgets of scope local, from the validations in its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Curves {
    units: Units,
    heads: Option<Curve>,
    neurons: Option<Curve>,
    /// Of budgets that drop both: the sum of the costs of either, ascending, and the cost of both, which never falls.
    both: Vec<(f64, f64)>,
    data: String,
    tokens: u64,
}

impl Curves {
    /// The curves of a file; `None` if it was never validated. Only what was measured on the text of the first validation
    /// counts: costs on different texts do not compare.
    pub fn of(info: &PredictorInfo, units: Units) -> Option<Curves> {
        let usable = |v: &&super::Validation| v.budget.scope == Scope::Local;
        let first = info.validated.iter().find(usable)?;
        let of_text = info.validated.iter().filter(usable).filter(|v| v.data == first.data);
        let points: Vec<([usize; 2], f64)> = of_text.map(|v| (v.budget.counts(units), v.ratio().ln())).collect();
        let only = |kind: usize, all: [usize; 2]| {
            let other = 1 - kind;
            let points = points.iter().filter(|(kept, _)| kept[other] == all[other]);
            Curve::of(points.map(|(kept, cost)| (kept[kind], *cost)).collect(), all[kind])
        };
        let all = [units.heads, units.neurons];
        let (heads, neurons) = (only(0, all), only(1, all));
        if heads.is_none() && neurons.is_none() {
            return None;
        }
        let mut curves =
            Curves { units, heads, neurons, both: Vec::new(), data: first.data.clone(), tokens: first.tokens };
        let dropping = points.iter().filter(|(kept, _)| kept[0] < all[0] && kept[1] < all[1]);
        let mut both: Vec<(f64, f64)> = dropping.filter_map(|&(kept, cost)| Some((curves.sum(kept)?, cost))).collect();
        both.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut worst = 0.0_f64;
        for (sum, cost) in &mut both {
            worst = worst.max(*cost).max(*sum);
            *cost = worst;
        }
        curves.both = both;
        Some(curves)
    }

    /// The text that it was measured on, in words.
    pub fn data(&self) -> &str {
        &self.data
    }

    /// Tokens of it that were scored; 0 if that is not known.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Units of a layer.
    pub(super) fn units(&self) -> Units {
        self.units
    }

    /// The fewest heads and neurons of a layer that were tried; all where nothing was.
    pub(super) fn least(&self) -> [usize; 2] {
        let least = |curve: &Option<Curve>, all: usize| curve.as_ref().map_or(all, Curve::least);
        [least(&self.heads, self.units.heads), least(&self.neurons, self.units.neurons)]
    }

    /// By how much perplexity is expected to grow with this budget, as a fraction of the dense model's; `None` beyond what was
    /// tried.
    pub fn increase(&self, budget: &Budget) -> Option<f64> {
        if budget.scope != Scope::Local {
            return None;
        }
        self.increase_of(budget.counts(self.units))
    }

    /// As [`Curves::increase`], for numbers of heads and neurons of a layer.
    pub(super) fn increase_of(&self, kept: [usize; 2]) -> Option<f64> {
        let sum = self.sum(kept)?;
        let drops_both = kept[0] < self.units.heads && kept[1] < self.units.neurons;
        let cost = if drops_both { self.interacting(sum)? } else { sum };
        Some(cost.exp_m1())
    }

    /// Costs of either kind, added.
    fn sum(&self, [heads, neurons]: [usize; 2]) -> Option<f64> {
        let cost = |curve: &Option<Curve>, kept: usize, all: usize| match curve {
            Some(curve) => curve.cost(kept),
            None => (kept >= all).then_some(0.0),
        };
        Some(cost(&self.heads, heads, self.units.heads)? + cost(&self.neurons, neurons, self.units.neurons)?)
    }

    /// The cost of dropping both kinds where that of either adds up to `sum`: what it was where both were dropped and added up to
    /// as much, and never less than the sum. `None` if both were never dropped.
    fn interacting(&self, sum: f64) -> Option<f64> {
        let &(last_sum, last_cost) = self.both.last()?;
        let above = self.both.partition_point(|point| point.0 <= sum);
        let (low, cost) = above.checked_sub(1).map_or((0.0, 0.0), |below| self.both[below]);
        Some(match self.both.get(above) {
            Some(&(high, more)) => cost + (more - cost) * (sum - low) / (high - low),
            // As many times the sum as at the last point.
            None if last_sum > 0.0 => last_cost * (sum / last_sum),
            None => last_cost + sum,
        })
    }
}

/// Why nothing is known of the quality of a predictor at a budget.
#[derive(Clone, Debug, PartialEq)]
pub enum Unvalidated {
    /// It was never measured.
    Never,
    /// Budgets of scope global were not measured.
    Scope,
    /// Fewer units are kept than was measured.
    Below {
        /// "heads" or "neurons".
        units: &'static str,
        /// Share that the budget keeps.
        kept: f64,
        /// The least share that was measured.
        least: f64,
    },
    /// Heads and neurons were measured apart only.
    Together,
}

impl fmt::Display for Unvalidated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unvalidated::Never => f.write_str("this predictor was never validated, so what it costs is not known"),
            Unvalidated::Scope => {
                f.write_str("this predictor was validated with local budgets, so what a global one costs is not known")
            }
            Unvalidated::Below { units, kept, least } => {
                let (kept, least) = (100.0 * kept, 100.0 * least);
                write!(f, "{kept:.1} % of the {units} are kept, but this predictor was validated down to {least:.1} %")
            }
            Unvalidated::Together => {
                f.write_str("this predictor was validated with heads or neurons dropped, but not both as here")
            }
        }
    }
}

impl Predictor {
    /// What it costs, as far as it was measured; `None` if it was not.
    pub fn curves(&self) -> Option<Curves> {
        Curves::of(self.info(), self.units())
    }

    /// Why the quality at a budget is not known; `None` if it is.
    pub fn unvalidated(&self, budget: &Budget) -> Option<Unvalidated> {
        if budget.is_dense() {
            return None;
        }
        let Some(curves) = self.curves() else { return Some(Unvalidated::Never) };
        if budget.scope != Scope::Local {
            return Some(Unvalidated::Scope);
        }
        let (units, kept, least) = (self.units(), budget.counts(self.units()), curves.least());
        let all = [units.heads, units.neurons];
        let below = (0..2).find(|&kind| kept[kind] < least[kind]).map(|kind| Unvalidated::Below {
            units: ["heads", "neurons"][kind],
            kept: kept[kind] as f64 / all[kind] as f64,
            least: least[kind] as f64 / all[kind] as f64,
        });
        below.or_else(|| curves.increase_of(kept).is_none().then_some(Unvalidated::Together))
    }
}
