//! How well outputs rank units.
//!
//! Two measures per layer and sample: the share of the truly best units that a budget would keep, and the rank correlation.
//! Both are given beside those of a constant predictor, since every layer has units that are always important.

/// Reusable memory for the units of a layer.
#[derive(Clone, Debug, Default)]
pub(super) struct RankScratch {
    order: Vec<u32>,
    ranks: Vec<f32>,
    kept: Vec<bool>,
}

/// Ranks of `values`, 0 the least; equal values share the mean of their ranks.
fn ranks(values: &[f32], order: &mut Vec<u32>, ranks: &mut Vec<f32>) {
    order.clear();
    order.extend(0..values.len() as u32);
    order.sort_unstable_by(|&a, &b| values[a as usize].total_cmp(&values[b as usize]));
    ranks.resize(values.len(), 0.0);
    let mut start = 0;
    while start < order.len() {
        let value = values[order[start] as usize];
        let count = order[start..].iter().take_while(|&&i| values[i as usize] == value).count().max(1);
        let rank = start as f32 + (count - 1) as f32 / 2.0;
        for &i in &order[start..start + count] {
            ranks[i as usize] = rank;
        }
        start += count;
    }
}

/// A layer's true importances, ranked once for several predictions.
#[derive(Clone, Debug, Default)]
pub(super) struct Truth {
    ranks: Vec<f32>,
    /// Indices of the best units, without those of no importance at all.
    best: Vec<u32>,
    keep: usize,
}

impl Truth {
    /// Ranks `values`, of which a budget keeps `keep`.
    pub(super) fn set(&mut self, values: &[f32], keep: usize, scratch: &mut RankScratch) {
        ranks(values, &mut scratch.order, &mut self.ranks);
        self.keep = keep;
        self.best.clear();
        let best = scratch.order.iter().rev().take(keep);
        self.best.extend(best.copied().filter(|&i| values[i as usize] > 0.0));
    }

    /// Recall and rank correlation of predicted values.
    pub(super) fn judge(&self, predicted: &[f32], scratch: &mut RankScratch) -> [f64; 2] {
        let RankScratch { order, ranks: found, kept } = scratch;
        ranks(predicted, order, found);
        kept.clear();
        kept.resize(predicted.len(), false);
        order.iter().rev().take(self.keep).for_each(|&i| kept[i as usize] = true);
        let hits = self.best.iter().filter(|&&i| kept[i as usize]).count();
        let recall = if self.best.is_empty() { 1.0 } else { hits as f64 / self.best.len() as f64 };
        [recall, correlation(&self.ranks, found)]
    }
}

/// Rank correlation of two lists of the same length; 0 if one of them is constant.
pub(in crate::learn) fn spearman(a: &[f32], b: &[f32]) -> f64 {
    let (mut order, mut of_a, mut of_b) = (Vec::new(), Vec::new(), Vec::new());
    ranks(a, &mut order, &mut of_a);
    ranks(b, &mut order, &mut of_b);
    correlation(&of_a, &of_b)
}

/// Pearson's correlation; 0 if one of them is constant.
fn correlation(a: &[f32], b: &[f32]) -> f64 {
    // Ranks have a known mean.
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let mut sums = [0.0; 3];
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (f64::from(*a) - mean, f64::from(*b) - mean);
        sums[0] += a * b;
        sums[1] += a * a;
        sums[2] += b * b;
    }
    let size = (sums[1] * sums[2]).sqrt();
    if size > 0.0 { sums[0] / size } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(truth: &[f32], predicted: &[f32], keep: usize) -> [f64; 2] {
        let mut scratch = RankScratch::default();
        let mut ranked = Truth::default();
        ranked.set(truth, keep, &mut scratch);
        ranked.judge(predicted, &mut scratch)
    }

    #[test]
    fn measures_are_as_defined() {
        let truth = [0.1, 0.4, 0.3, 0.2];
        assert_eq!(judge(&truth, &truth, 2), [1.0, 1.0]);
        assert_eq!(judge(&truth, &truth.map(|v| -v), 2), [0.0, -1.0]);
        // Ranks 0 3 2 1 against 1 3 0 2: 1 - 6 * 6 / (4 * 15).
        let [recall, spearman] = judge(&truth, &[2.0, 9.0, 1.0, 3.0], 2);
        assert!(recall == 0.5 && (spearman - 0.4).abs() < 1e-12, "{recall} {spearman}");
        assert_eq!(judge(&truth, &[1.0; 4], 2)[1], 0.0, "a constant has no order");
    }

    #[test]
    fn ties_share_their_rank_and_units_without_importance_are_no_loss() {
        // Ranks 0.5 0.5 2 3 against 0 1 2 3.
        let [recall, spearman] = judge(&[0.0, 0.0, 1.0, 2.0], &[1.0, 2.0, 3.0, 4.0], 3);
        let expected = 4.5 / (4.5_f64 * 5.0).sqrt();
        assert_eq!(recall, 1.0);
        assert!((spearman - expected).abs() < 1e-12, "{spearman} {expected}");
        assert_eq!(judge(&[0.0; 3], &[1.0, 2.0, 3.0], 2)[0], 1.0);
    }
}
