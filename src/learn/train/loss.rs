//! What training minimises.
//!
//! Every loss looks at one layer of one sample: what was predicted for its units and how important they were. A loss says what
//! it wants the outputs to be ([`Loss::prepare`]), what a predictor that always says the same would say
//! ([`Loss::constant`]: its outputs, and where the output bias begins), and its value and gradient.
//!
//! | loss | target | outputs | value |
//! | --- | --- | --- | --- |
//! | `mse` | importance over the layer's largest, or between its least and largest | importances | mean over the units of the squared error |
//! | `bce` | 1 for the best share of the units, else 0 | log odds | mean over the units of the cross-entropy |
//! | `pairwise` | importance over the layer's largest | importances, up to a constant | mean over pairs of units of the squared amount by which the more important one falls short of its lead |
//! | `listwise` | importances over their sum | log shares, up to a constant | cross-entropy of the softmax |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::learn::LearnError;
use crate::learn::compact::decode;
use crate::{Error, Result};

/// A loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// Squared error of the importances.
    #[default]
    Mse,
    /// Cross-entropy of belonging to the best.
    Bce,
    /// Cross-entropy of the softmax of a layer with its importances.
    Listwise,
    /// Leads of more important units over others.
    Pairwise,
}

/// How the importances of a layer are brought to 0..1 for [`Loss::Mse`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetScale {
    /// Over the largest of the layer.
    #[default]
    Max,
    /// From the least to the largest of the layer; the paper's.
    MinMax,
}

impl Loss {
    const ALL: [Loss; 4] = [Loss::Mse, Loss::Bce, Loss::Listwise, Loss::Pairwise];

    /// Name on the command line and in files.
    pub const fn name(self) -> &'static str {
        match self {
            Loss::Mse => "mse",
            Loss::Bce => "bce",
            Loss::Listwise => "listwise",
            Loss::Pairwise => "pairwise",
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Loss {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Loss::ALL.into_iter().find(|loss| loss.name() == name);
        known.ok_or_else(|| LearnError::UnknownLoss { found: name.to_owned() }.into())
    }
}

/// A loss with its settings for one kind of unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LayerLoss {
    pub(super) loss: Loss,
    pub(super) scale: TargetScale,
    /// Units of a layer that count as best, for [`Loss::Bce`].
    pub(super) best: usize,
}

/// Probabilities of a constant predictor stay this far from 0 and 1.
const MARGIN: f32 = 1e-4;

impl LayerLoss {
    /// The targets of a layer from its codes.
    pub(super) fn prepare(&self, codes: &[u8], targets: &mut [f32]) {
        match self.loss {
            Loss::Mse | Loss::Pairwise => {
                targets.iter_mut().zip(codes).for_each(|(t, &code)| *t = decode(code));
                if self.loss == Loss::Mse && self.scale == TargetScale::MinMax {
                    let least = targets.iter().fold(f32::INFINITY, |min, &t| min.min(t));
                    // The largest is 1, unless all are 0.
                    let factor = if least < 1.0 { 1.0 / (1.0 - least) } else { 0.0 };
                    targets.iter_mut().for_each(|t| *t = (*t - least) * factor);
                }
            }
            Loss::Bce => {
                // Codes are few, so the limit is found by counting. Of those at the limit the first ones are taken.
                let mut counts = [0_usize; 256];
                codes.iter().for_each(|&code| counts[usize::from(code)] += 1);
                let (mut limit, mut above) = (255, 0);
                while limit > 0 && above + counts[limit] < self.best {
                    above += counts[limit];
                    limit -= 1;
                }
                let mut left = self.best - above;
                for (t, &code) in targets.iter_mut().zip(codes) {
                    let at_limit = usize::from(code) == limit && left > 0;
                    left -= usize::from(at_limit);
                    *t = f32::from(u8::from(at_limit || usize::from(code) > limit));
                }
            }
            Loss::Listwise => {
                targets.iter_mut().zip(codes).for_each(|(t, &code)| *t = decode(code));
                let sum: f32 = targets.iter().sum();
                let even = 1.0 / targets.len() as f32;
                targets.iter_mut().for_each(|t| *t = if sum > 0.0 { *t / sum } else { even });
            }
        }
    }

    /// Turns mean targets into the outputs of the best constant predictor; for [`Loss::Pairwise`], which has no formula for it, of a
    /// good one.
    pub(super) fn constant(&self, means: &mut [f32]) {
        match self.loss {
            Loss::Mse | Loss::Pairwise => {}
            Loss::Bce => means.iter_mut().for_each(|m| {
                let p = m.clamp(MARGIN, 1.0 - MARGIN);
                *m = (p / (1.0 - p)).ln();
            }),
            Loss::Listwise => means.iter_mut().for_each(|m| *m = m.max(MARGIN / 100.0).ln()),
        }
    }

    /// The loss of a layer; its outputs `y` become the gradient of `weight` times the *sum* over the units (of the mean's
    /// numerator), so that the gradient of a unit does not depend on how many there are.
    pub(super) fn gradient(&self, y: &mut [f32], targets: &[f32], weight: f32) -> f32 {
        let width = y.len() as f32;
        match self.loss {
            Loss::Mse => {
                let mut sum = 0.0;
                for (y, t) in y.iter_mut().zip(targets) {
                    let error = *y - t;
                    sum += error * error;
                    *y = 2.0 * weight * error;
                }
                sum / width
            }
            Loss::Bce => {
                let mut sum = 0.0;
                for (y, t) in y.iter_mut().zip(targets) {
                    // ln(1 + e^y) - t y, without overflow.
                    sum += y.max(0.0) - *y * t + (-y.abs()).exp().ln_1p();
                    *y = weight * (1.0 / (1.0 + (-*y).exp()) - t);
                }
                sum / width
            }
            Loss::Listwise => {
                let largest = y.iter().fold(f32::NEG_INFINITY, |max, &v| max.max(v));
                let total: f32 = y.iter().map(|v| (v - largest).exp()).sum();
                let log_total = total.ln() + largest;
                let mut sum = 0.0;
                for (y, t) in y.iter_mut().zip(targets) {
                    let log_share = *y - log_total;
                    sum -= t * log_share;
                    // Times the width, so that a unit's gradient is of the size of the other losses'.
                    *y = weight * width * (log_share.exp() - t);
                }
                sum
            }
            Loss::Pairwise => {
                let mut room = [0.0; UNITS_ON_STACK];
                with_room(&mut room, y.len(), |gradient| {
                    let loss = shortfalls(y, targets, gradient);
                    y.iter_mut().zip(&*gradient).for_each(|(y, g)| *y = weight * width * g);
                    loss
                })
            }
        }
    }
}

/// Pairs of a layer of up to this many units are all there are; of more, a sample.
const ALL_PAIRS: usize = 64;

/// Mean over pairs of units of `max(0, lead wanted - lead)^2`, where the lead wanted of the more important unit of a pair is the
/// difference of their targets; `gradient` (zeros) becomes its gradient with respect to `y`.
///
/// Pairs of a large layer are units at distances of 1, 2, 4 and so on around the circle of the layer, so all units are in equally
/// many, `2 log2(n)`, and any two are connected by few: `n log2(n)` pairs, the same ones in every sample.
fn shortfalls(y: &[f32], targets: &[f32], gradient: &mut [f32]) -> f32 {
    let n = y.len();
    let (mut sum, mut pairs) = (0.0, 0);
    let mut distance = 1;
    while 2 * distance <= n {
        // Half around the circle pairs are met from both ends.
        let firsts = if 2 * distance == n { distance } else { n };
        for i in 0..firsts {
            let j = if i + distance < n { i + distance } else { i + distance - n };
            let wanted = targets[i] - targets[j];
            let missing = wanted - (y[i] - y[j]);
            // Short of a lead over `j`, or of one over `i`.
            let is_short = (wanted > 0.0 && missing > 0.0) || (wanted < 0.0 && missing < 0.0);
            let missing = if is_short { missing } else { 0.0 };
            sum += missing * missing;
            gradient[i] -= 2.0 * missing;
            gradient[j] += 2.0 * missing;
        }
        pairs += firsts;
        distance = if n <= ALL_PAIRS { distance + 1 } else { 2 * distance };
    }
    let share = 1.0 / pairs.max(1) as f32;
    gradient.iter_mut().for_each(|g| *g *= share);
    sum * share
}

/// Units of a layer that have room on the stack.
pub(super) const UNITS_ON_STACK: usize = 4096;

/// Calls `f` with room for `len` values: on the stack if they fit, else zeros.
pub(super) fn with_room<R>(stack: &mut [f32], len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    match stack.get_mut(..len) {
        Some(room) => f(room),
        None => f(&mut vec![0.0; len]),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sparsity::testing::rng;

    fn layer(loss: Loss, scale: TargetScale) -> LayerLoss {
        LayerLoss { loss, scale, best: 6 }
    }

    fn all() -> impl Iterator<Item = LayerLoss> {
        let kinds = Loss::ALL.into_iter().map(|loss| layer(loss, TargetScale::Max));
        kinds.chain([layer(Loss::Mse, TargetScale::MinMax)])
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for loss in Loss::ALL {
            assert_eq!(loss.to_string().parse::<Loss>().unwrap(), loss);
        }
        assert_eq!(
            "rank".parse::<Loss>().unwrap_err().to_string(),
            "unknown loss \"rank\"; expected mse, bce, listwise or pairwise"
        );
    }

    #[test]
    fn targets_are_what_the_table_says() {
        let codes = [0, 255, 51, 51, 102, 0];
        let prepared = |layer: LayerLoss, best| {
            let mut targets = [f32::NAN; 6];
            LayerLoss { best, ..layer }.prepare(&codes, &mut targets);
            targets.map(|t| (t * 1e4).round() / 1e4)
        };
        let mse = layer(Loss::Mse, TargetScale::Max);
        assert_eq!(prepared(mse, 0), [0.0, 1.0, 0.04, 0.04, 0.16, 0.0]);
        let bce = layer(Loss::Bce, TargetScale::Max);
        for (best, expected) in [
            (1, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
            (3, [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]),
            (5, [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]),
            (6, [1.0; 6]),
        ] {
            assert_eq!(prepared(bce, best), expected);
        }
        let sum: f32 = prepared(layer(Loss::Listwise, TargetScale::Max), 0).iter().sum();
        assert!((sum - 1.0).abs() < 1e-3);
        let mut targets = [f32::NAN; 3];
        layer(Loss::Mse, TargetScale::MinMax).prepare(&[51, 255, 153], &mut targets);
        assert!((targets[0], targets[1]) == (0.0, 1.0) && (targets[2] - (0.36 - 0.04) / 0.96).abs() < 1e-6);
        // A layer without any importance says nothing, in every form.
        for layer in all() {
            layer.prepare(&[0; 3], &mut targets);
            assert!(targets.iter().all(|t| t.is_finite()));
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let mut next = rng(3);
        for layer in all() {
            let codes: Vec<u8> = (0..12).map(|_| (next() * 255.0) as u8).collect();
            let y: Vec<f32> = (0..12).map(|_| next() * 3.0 - 1.5).collect();
            let mut targets = [0.0; 12];
            layer.prepare(&codes, &mut targets);
            let mut gradient = y.clone();
            layer.gradient(&mut gradient, &targets, 0.5);
            for i in 0..12 {
                let at = |step: f32| {
                    let mut y = y.clone();
                    y[i] += step;
                    12.0 * 0.5 * layer.gradient(&mut y, &targets, 1.0)
                };
                let expected = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!((gradient[i] - expected).abs() < 2e-3, "{layer:?}: {} instead of {expected}", gradient[i]);
            }
        }
    }

    #[test]
    fn pairs_are_all_of_a_small_layer_and_evenly_spread_over_a_large_one() {
        let mut next = rng(7);
        for n in [1, 2, 5, 12, 64] {
            let [y, targets] = [(); 2].map(|()| (0..n).map(|_| next()).collect::<Vec<f32>>());
            let (mut sum, mut pairs) = (0.0, 0);
            for i in 0..n {
                for j in 0..i {
                    let (more, less) = if targets[i] > targets[j] { (i, j) } else { (j, i) };
                    sum += ((targets[more] - targets[less]) - (y[more] - y[less])).max(0.0).powi(2);
                    pairs += 1;
                }
            }
            let found = shortfalls(&y, &targets, &mut vec![0.0; n]);
            assert!((found - sum / pairs.max(1) as f32).abs() < 1e-5, "{n}");
        }
        // One unit that is too low is in the pairs of each distance, twice.
        for n in [65, 1536] {
            let mut gradient = vec![0.0; n];
            let targets: Vec<f32> = (0..n).map(|i| f32::from(u8::from(i == 7))).collect();
            shortfalls(&vec![0.0; n], &targets, &mut gradient);
            let others = gradient.iter().filter(|&&g| g > 0.0).count();
            assert_eq!(others, 2 * (n / 2).ilog2() as usize + 2);
            assert!(gradient[7] < 0.0 && shortfalls(&targets, &targets, &mut vec![0.0; n]) == 0.0);
        }
    }

    #[test]
    fn the_constant_is_the_best_constant() {
        let mut next = rng(5);
        for layer in all().filter(|layer| layer.loss != Loss::Pairwise) {
            let rows: Vec<Vec<f32>> = (0..50)
                .map(|_| {
                    let codes: Vec<u8> = (0..12).map(|i| (next() * 20.0 * (i + 1) as f32) as u8).collect();
                    let mut targets = vec![0.0; 12];
                    layer.prepare(&codes, &mut targets);
                    targets
                })
                .collect();
            let mut constant: Vec<f32> = (0..12).map(|i| rows.iter().map(|row| row[i]).sum::<f32>() / 50.0).collect();
            layer.constant(&mut constant);
            let total =
                |y: &[f32]| rows.iter().map(|targets| layer.gradient(&mut y.to_vec(), targets, 1.0)).sum::<f32>();
            let best = total(&constant);
            for i in 0..12 {
                for step in [-0.1, 0.1] {
                    let mut other = constant.clone();
                    other[i] += step;
                    assert!(total(&other) > best - 1e-4, "{layer:?}, {i}");
                }
            }
        }
    }
}
