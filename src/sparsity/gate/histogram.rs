//! Counts of sizes on a logarithmic scale: quantiles of any number of values in little memory.
//!
//! Thirty-two bins an octave, read off the bits of a float, so that counting is a shift and an addition. Counts are integers:
//! the result does not depend on the order of the values.

/// Bins of an octave, as a power of two.
const FINE: u32 = 5;
/// Lowest bits of a float that do not decide its bin.
const SHIFT: u32 = 23 - FINE;
/// Bits of `2^-40`; what is smaller counts as 0.
const LOWEST: u32 = (127 - 40) << 23;
/// From `2^-40` to `2^24`; what is larger counts with the last.
const BINS: usize = 64 << FINE;

/// How many values there were of each size.
#[derive(Clone, Debug)]
pub(super) struct SizeHistogram {
    /// First those that count as 0, then [`BINS`].
    counts: Vec<u64>,
    total: u64,
}

impl SizeHistogram {
    pub(super) fn new() -> Self {
        SizeHistogram { counts: vec![0; 1 + BINS], total: 0 }
    }

    /// Counts a size that is not negative; whether it was a finite number.
    #[inline]
    pub(super) fn add(&mut self, size: f32) -> bool {
        let bits = size.to_bits();
        let bin = match bits.checked_sub(LOWEST) {
            None => 0,
            Some(above) => 1 + ((above >> SHIFT) as usize).min(BINS - 1),
        };
        self.counts[bin] += 1;
        self.total += 1;
        size.is_finite()
    }

    /// The size under which this fraction of the values lies; exact to a bin, in which values are taken to be spread evenly. 0 if
    /// it lies among those that count as 0.
    pub(super) fn quantile(&self, fraction: f64) -> f32 {
        let wanted = fraction * self.total as f64;
        let mut below = 0.0;
        for (bin, &count) in self.counts.iter().enumerate() {
            let count = count as f64;
            if count > 0.0 && below + count >= wanted {
                if bin == 0 {
                    return 0.0;
                }
                let (low, high) = (edge(bin), edge(bin + 1));
                return low + ((wanted - below) / count) as f32 * (high - low);
            }
            below += count;
        }
        edge(BINS + 1)
    }
}

/// The smallest size in a bin but the first.
fn edge(bin: usize) -> f32 {
    f32::from_bits(LOWEST + (((bin - 1) as u32) << SHIFT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_where_their_edges_say() {
        for bin in [1, 2, 33, 1000, BINS] {
            for (size, expected) in [(edge(bin), bin), (edge(bin + 1).next_down(), bin)] {
                let mut histogram = SizeHistogram::new();
                assert!(histogram.add(size));
                assert_eq!(histogram.counts[expected], 1, "{size}");
            }
        }
        assert_eq!((edge(1), edge(BINS + 1)), (2f32.powi(-40), 2f32.powi(24)));
        let mut histogram = SizeHistogram::new();
        assert!(histogram.add(0.0) && histogram.add(1e-20) && histogram.add(1e20));
        assert!(!histogram.add(f32::INFINITY) && !histogram.add(f32::NAN));
        assert_eq!((histogram.counts[0], histogram.counts[BINS], histogram.total), (2, 3, 5));
    }

    #[test]
    fn quantiles_are_those_of_a_sorted_list() {
        // Sizes over ten octaves.
        let mut sizes: Vec<f32> = (0..40_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32)
            .map(|u| (-10.0 * u).exp2())
            .collect();
        let mut histogram = SizeHistogram::new();
        assert!(sizes.iter().all(|&size| histogram.add(size)));
        sizes.sort_by(f32::total_cmp);
        for percent in 1..100 {
            let expected = sizes[percent * sizes.len() / 100];
            let found = histogram.quantile(percent as f64 / 100.0);
            assert!((found / expected - 1.0).abs() < 0.005, "{percent} %: {found} instead of {expected}");
        }
    }

    #[test]
    fn zeros_count() {
        let mut histogram = SizeHistogram::new();
        for i in 0..100 {
            histogram.add(if i < 60 { 0.0 } else { 1.0 });
        }
        assert_eq!(histogram.quantile(0.5), 0.0);
        assert!((1.0..1.04).contains(&histogram.quantile(0.7)));
        assert_eq!(SizeHistogram::new().quantile(0.5), 2f32.powi(24), "nothing is known of nothing");
    }
}
