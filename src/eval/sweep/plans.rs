//! What the plans of a text's tokens have in common: which heads they keep, how many of the best units, what they read.

use std::ops::Range;

use super::bytes::{RecordBytes, each_unit};
use super::results::{HeadUse, Recall, rounded};
use super::truth::{Truth, words};
use crate::sparsity::{PlanMasks, Units};

/// Adds up plans, token by token.
#[derive(Debug)]
pub(super) struct PlanStats<'a> {
    units: Units,
    records: &'a RecordBytes,
    truth: Option<&'a Truth>,
    /// Tokens of a window that are not decided.
    prefix: usize,
    decided: u64,
    tokens: u64,
    bytes: u64,
    /// `[L, H]`: decided tokens that kept it.
    times: Vec<u64>,
    /// For heads and neurons `[L]`: best units that were kept, over the tokens that are compared.
    hits: [Vec<u64>; 2],
}

impl<'a> PlanStats<'a> {
    pub(super) fn new(units: Units, records: &'a RecordBytes, truth: Option<&'a Truth>, prefix: usize) -> Self {
        let zeros = |n: usize| vec![0; n];
        PlanStats {
            units,
            records,
            truth,
            prefix,
            decided: 0,
            tokens: 0,
            bytes: 0,
            times: zeros(units.layers * units.heads),
            hits: [zeros(units.layers), zeros(units.layers)],
        }
    }

    /// Adds the tokens `range` of a window, whose plans are the rows of `masks`.
    pub(super) fn add(&mut self, window: usize, range: Range<usize>, masks: &PlanMasks) {
        for (row, position) in range.enumerate() {
            self.tokens += 1;
            self.bytes += self.records.token(masks, row, position);
            if position < self.prefix {
                continue;
            }
            self.decided += 1;
            for (layer, times) in self.times.chunks_exact_mut(self.units.heads).enumerate() {
                each_unit(masks.heads(row, layer), |head| times[head] += 1);
            }
            let Some((best, best_row)) = self.truth.and_then(|truth| truth.plan(window, position)) else { continue };
            for (kind, hits) in self.hits.iter_mut().enumerate() {
                for (layer, hits) in hits.iter_mut().enumerate() {
                    let kept = words(masks, kind, row, layer).iter().zip(words(best, kind, best_row, layer));
                    *hits += kept.map(|(kept, best)| u64::from((kept & best).count_ones())).sum::<u64>();
                }
            }
        }
    }

    /// Bytes that a token reads by these plans, on average.
    pub(super) fn bytes_per_token(&self) -> f64 {
        self.bytes as f64 / self.tokens.max(1) as f64
    }

    /// How often heads were kept.
    pub(super) fn head_use(&self) -> HeadUse {
        let times = self.times.chunks_exact(self.units.heads).map(<[u64]>::to_vec).collect();
        HeadUse { tokens: self.decided, times }
    }

    /// Of heads (0) or neurons (1); `None` if nothing was compared or there is no layer that decides.
    pub(super) fn recall(&self, kind: usize) -> Option<Recall> {
        let truth = self.truth.filter(|truth| truth.tokens() > 0 && self.units.layers > 1)?;
        let shares = |counts: &[u64]| -> Vec<f64> {
            let of = counts.iter().zip(truth.wanted(kind)).skip(1);
            of.map(|(&count, &wanted)| rounded(count as f64 / wanted.max(1) as f64)).collect()
        };
        let mean = |shares: &[f64]| rounded(shares.iter().sum::<f64>() / shares.len() as f64);
        let (layers, layers_of_constant) = (shares(&self.hits[kind]), shares(truth.constant(kind)));
        Some(Recall {
            mean: mean(&layers),
            mean_of_constant: mean(&layers_of_constant),
            layers,
            layers_of_constant,
            tokens: truth.tokens(),
        })
    }
}
