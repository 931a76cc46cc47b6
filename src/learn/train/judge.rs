//! How good networks are on held-out samples, beside a predictor that always says the same.

use serde::{Deserialize, Serialize};

use super::loss::LayerLoss;
use super::ranking::{RankScratch, Truth};
use crate::kernels::Cpu;
use crate::learn::compact::{CompactRows, decode};
use crate::sparsity::predictor::Ranking;

/// Held-out samples that rankings are over: ranking costs far more than a loss, and settles sooner.
pub(super) const RANKED: usize = 256;

/// One kind of unit, on the held-out samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// Mean loss over samples and layers.
    pub loss: f64,
    /// The same for the best constant predictor.
    pub loss_of_mean: f64,
    /// Mean over samples and layers.
    pub ranking: Ranking,
    /// Mean over samples, for layers 1 to L-1.
    pub layers: Vec<Ranking>,
}

/// Judges the outputs of one kind of unit, layer by layer.
pub(super) struct Judge<'a> {
    pub(super) cpu: &'a Cpu,
    pub(super) samples: &'a CompactRows,
    /// 0 for heads, 1 for neurons.
    pub(super) kind: usize,
    pub(super) loss: LayerLoss,
    /// Units of a layer that a budget keeps.
    pub(super) keep: usize,
    /// Outputs of the constant predictor, `[(L-1) * width]`.
    pub(super) constant: &'a [f32],
    /// `[(L-1) * width]`: what outputs and importances are multiplied with before they are ranked.
    pub(super) factors: Option<&'a [f32]>,
    /// Losses of the prediction and of the constant, summed over samples and layers.
    losses: [f64; 2],
    layers: Vec<Ranking>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(
        cpu: &'a Cpu,
        samples: &'a CompactRows,
        kind: usize,
        loss: LayerLoss,
        keep: usize,
        constant: &'a [f32],
        factors: Option<&'a [f32]>,
    ) -> Self {
        Judge { cpu, samples, kind, loss, keep, constant, factors, losses: [0.0; 2], layers: Vec::new() }
    }

    /// Outputs `[rows, layers, width]` for all samples and the next layers.
    pub(super) fn add(&mut self, y: &mut [f32], layers: usize) {
        let codes = if self.kind == 0 { &self.samples.heads } else { &self.samples.neurons };
        let (rows, width, first) = (self.samples.rows, codes.width, self.layers.len());
        let (loss, keep, constant, factors) = (self.loss, self.keep, self.constant, self.factors);
        let stride = rows.div_ceil(RANKED).max(1);
        // Two losses and four measures of ranks for each sample and layer.
        let mut found = vec![0.0; rows * layers * 6];
        self.cpu.each_row(rows, [y, &mut found], 1 << 16, &|row, y, found| {
            let (mut targets, mut values, mut other) = (vec![0.0; width], vec![0.0; width], vec![0.0; width]);
            let (mut truth, mut scratch) = (Truth::default(), RankScratch::default());
            for (i, (y, found)) in y.chunks_exact_mut(width).zip(found.chunks_exact_mut(6)).enumerate() {
                let units = (first + i) * width..(first + i + 1) * width;
                let (codes, constant) = (codes.layer(row, first + i), &constant[units.clone()]);
                loss.prepare(codes, &mut targets);
                other.copy_from_slice(constant);
                found[1] = loss.gradient(&mut other, &targets, 1.0);
                if row % stride == 0 {
                    let scaled = |from: &mut dyn Iterator<Item = f32>, to: &mut [f32]| match factors {
                        Some(factors) => {
                            let factors = &factors[units.clone()];
                            to.iter_mut().zip(from).zip(factors).for_each(|((to, v), f)| *to = v * f);
                        }
                        None => to.iter_mut().zip(from).for_each(|(to, v)| *to = v),
                    };
                    scaled(&mut codes.iter().map(|&code| decode(code)), &mut values);
                    truth.set(&values, keep, &mut scratch);
                    scaled(&mut y.iter().copied(), &mut values);
                    let measures = truth.judge(&values, &mut scratch);
                    scaled(&mut constant.iter().copied(), &mut values);
                    let of_mean = truth.judge(&values, &mut scratch);
                    let all = [measures[0], of_mean[0], measures[1], of_mean[1]];
                    found[2..].iter_mut().zip(all).for_each(|(to, v)| *to = v as f32);
                }
                found[0] = loss.gradient(y, &targets, 1.0);
            }
        });
        let ranked = rows.div_ceil(stride).max(1) as f64;
        for layer in 0..layers {
            let mut sums = [0.0; 6];
            for row in found.chunks_exact(6).skip(layer).step_by(layers) {
                sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
            }
            self.losses[0] += sums[0];
            self.losses[1] += sums[1];
            let [recall, recall_of_mean, spearman, spearman_of_mean] = [2, 3, 4, 5].map(|i| sums[i] / ranked);
            self.layers.push(Ranking { recall, recall_of_mean, spearman, spearman_of_mean });
        }
    }

    /// What was found.
    pub(super) fn finish(self) -> Judgement {
        let count = self.layers.len().max(1) as f64;
        let mean = |of: fn(&Ranking) -> f64| self.layers.iter().map(of).sum::<f64>() / count;
        let samples = self.samples.rows.max(1) as f64 * count;
        Judgement {
            loss: self.losses[0] / samples,
            loss_of_mean: self.losses[1] / samples,
            ranking: Ranking {
                recall: mean(|r| r.recall),
                recall_of_mean: mean(|r| r.recall_of_mean),
                spearman: mean(|r| r.spearman),
                spearman_of_mean: mean(|r| r.spearman_of_mean),
            },
            layers: self.layers,
        }
    }
}
