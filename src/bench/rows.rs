//! The results: one row for each policy, kept fraction, context and batch of a shape.

use serde::Serialize;

use super::protocol::{Case, Sample};

/// The middle of some values; of none it is NaN.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// The value below which the share `q` of all values lies.
fn quantile(values: impl IntoIterator<Item = f64>, q: f64) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let at = (q * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// The first and the third quartile.
fn quartiles(values: impl IntoIterator<Item = f64> + Clone) -> [f64; 2] {
    [quantile(values.clone(), 0.25), quantile(values, 0.75)]
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len();
    values.sum::<f64>() / n as f64
}

/// The machine, as measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    /// GB/s (10^9 bytes) read from memory with these threads: the median of passes before, during and after everything else.
    pub(super) read_gb_per_second: f64,
    pub(super) threads: usize,
    pub(super) isa: &'static str,
}

/// One line of the table. Times are medians over the decoded tokens of all repetitions; everything is per token and sequence.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) shape: String,
    /// Who chose the units, as it was asked for.
    pub(super) policy: String,
    /// Fraction of the heads and of the neurons that is kept in every layer but the first, which keeps all.
    pub(super) keep: f32,
    /// Tokens in front of the first one that was decoded.
    pub(super) context: usize,
    /// Sequences that were decoded together.
    pub(super) batch: usize,
    /// Milliseconds of a step / sequences: decisions, LM head and everything else included.
    pub(super) ms_per_token: f64,
    /// Of all sequences together.
    pub(super) tokens_per_second: f64,
    /// Of the prompt, which is processed over all units.
    pub(super) prefill_tokens_per_second: f64,
    /// Bytes that a step reads / sequences: weights, keys and values, predictor.
    pub(super) bytes_per_token: f64,
    /// `bytes_per_token` over the time.
    pub(super) gb_per_second: f64,
    /// `gb_per_second` over what the machine reads, in the same run, from a buffer as large as what the shape reads.
    pub(super) bandwidth_share: f64,
    /// Median over the tokens of the time of the dense model for the same token in the same turn / the time of this row.
    pub(super) speedup_over_dense: f64,
    /// Bytes of the dense model / bytes of this row: the speed-up if time were bytes.
    pub(super) ideal_speedup: f64,
    /// Share of the time that decisions take: predicting, and selecting.
    pub(super) predictor_share: f64,
    /// What decoding with this policy alone holds: all weights (as if no layers shared any), predictor, caches and buffers.
    pub(super) peak_memory_bytes: u64,
}

/// How much the figures of a row vary.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Spread {
    /// First and third quartile.
    pub(super) ms_per_token: [f64; 2],
    /// First and third quartile over the repetitions.
    pub(super) prefill_tokens_per_second: [f64; 2],
    /// Tokens that were measured.
    pub(super) tokens: usize,
}

/// What a row is made from besides the samples.
pub(super) struct Setting<'a> {
    pub(super) shape: &'a str,
    pub(super) context: usize,
    pub(super) batch: usize,
    /// GB/s that shares are of.
    pub(super) gb_per_second: f64,
    /// Seconds per token of the prompt, one for each repetition.
    pub(super) prefill: &'a [f64],
}

/// A row of what was measured of a case beside the dense steps of the same turns; `None` if there is not a single token of both.
pub(super) fn row(setting: &Setting<'_>, case: &Case, dense: &[Sample]) -> Option<(Row, Spread)> {
    let samples = &case.samples;
    if samples.is_empty() || dense.is_empty() {
        return None;
    }
    let seconds = median(samples.iter().map(|sample| sample.seconds));
    let bytes = mean(samples.iter().map(|sample| sample.bytes));
    let ratios = samples.iter().zip(dense).map(|(own, dense)| dense.seconds / own.seconds);
    let rates = setting.prefill.iter().map(|seconds| seconds.recip());
    let row = Row {
        shape: setting.shape.to_owned(),
        policy: case.policy.clone(),
        keep: case.keep,
        context: setting.context,
        batch: setting.batch,
        ms_per_token: 1e3 * seconds,
        tokens_per_second: seconds.recip(),
        prefill_tokens_per_second: median(rates.clone()),
        bytes_per_token: bytes,
        gb_per_second: bytes / seconds / 1e9,
        bandwidth_share: bytes / seconds / 1e9 / setting.gb_per_second,
        speedup_over_dense: median(ratios),
        ideal_speedup: mean(dense.iter().map(|sample| sample.bytes)) / bytes,
        predictor_share: median(samples.iter().map(|sample| sample.deciding / sample.seconds)),
        peak_memory_bytes: case.weights + case.held,
    };
    let spread = Spread {
        ms_per_token: quartiles(samples.iter().map(|sample| 1e3 * sample.seconds)),
        prefill_tokens_per_second: quartiles(rates),
        tokens: samples.len(),
    };
    Some((row, spread))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quartiles() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert!(median([]).is_nan());
        assert_eq!(quartiles([5.0, 1.0, 4.0, 2.0, 3.0]), [2.0, 4.0]);
    }

    #[test]
    fn a_row_is_its_samples_beside_the_dense_ones() {
        let samples = |seconds: &[f64], bytes, share: f64| -> Vec<Sample> {
            seconds.iter().map(|&seconds| Sample { seconds, bytes, deciding: share * seconds }).collect()
        };
        // The machine is twice as slow for the second token.
        let dense = samples(&[0.4, 0.8, 0.4], 8e9, 0.0);
        let (policy, keep, sessions) = ("shadow".to_owned(), 0.5, Vec::new());
        let samples = samples(&[0.2, 0.4, 0.25], 2e9, 0.125);
        let case = Case { policy, keep, sessions, samples, weights: 4, held: 3 };
        let setting = Setting { shape: "s", context: 9, batch: 2, gb_per_second: 16.0, prefill: &[0.01, 0.02, 0.04] };
        let (row, spread) = row(&setting, &case, &dense).unwrap();
        assert_eq!((row.ms_per_token, row.tokens_per_second, row.bytes_per_token), (250.0, 4.0, 2e9));
        assert_eq!((row.gb_per_second, row.bandwidth_share, row.ideal_speedup), (8.0, 0.5, 4.0));
        assert_eq!((row.speedup_over_dense, row.predictor_share, row.peak_memory_bytes), (2.0, 0.125, 7));
        assert_eq!((row.prefill_tokens_per_second, spread.prefill_tokens_per_second), (50.0, [50.0, 100.0]));
        assert_eq!((spread.tokens, spread.ms_per_token), (3, [250.0, 400.0]));
        assert!(super::row(&setting, &Case { samples: Vec::new(), ..case }, &dense).is_none());
    }
}
