//! Hidden widths for a file of a given size, so that predictors of all kinds compare at the same bytes.

use std::str::FromStr;

use super::options::{TrainOptions, Width};
use crate::learn::LearnError;
use crate::learn::samples::SampleInfo;
use crate::sparsity::predictor::{Normalization, WeightFormat};
use crate::{Error, Result};

/// How large a predictor file may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FileSize {
    /// Bytes.
    Bytes(u64),
    /// A share of the bytes of the model's blocks, 0 to 1.
    Share(f64),
}

impl FileSize {
    /// The bytes that it is of a model whose blocks have `blocks`.
    pub fn bytes(self, blocks: u64) -> u64 {
        match self {
            FileSize::Bytes(bytes) => bytes,
            FileSize::Share(share) => (share * blocks as f64) as u64,
        }
    }
}

impl FromStr for FileSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let size = match text.strip_suffix('%') {
            Some(number) => number.trim().parse().ok().map(|percent: f64| FileSize::Share(percent / 100.0)),
            None => text.parse().ok().map(FileSize::Bytes),
        };
        let is_sound = |size: &FileSize| match *size {
            FileSize::Bytes(bytes) => bytes > 0,
            FileSize::Share(share) => share > 0.0 && share <= 1.0,
        };
        size.filter(is_sound).ok_or_else(|| LearnError::UnknownSize { found: text.to_owned() }.into())
    }
}

/// Far more hidden units than are of use.
const MOST: usize = 1 << 16;

impl Width {
    /// Widths in the proportion of `self`, as large as a file of `limit` bytes allows. A kind that is left out stays so.
    ///
    /// # Errors
    /// [`LearnError::PredictorSize`] if not even the smallest ones fit.
    pub fn fitting(self, info: &SampleInfo, options: &TrainOptions, format: WeightFormat, limit: u64) -> Result<Width> {
        let most = match self {
            Width::Shared(width) => width,
            Width::Separate { heads, neurons } => heads.max(neurons),
        };
        // The larger width becomes `n`.
        let scaled = |n: usize| {
            let scale = |width: usize| ((width * n + most / 2) / most.max(1)).max(usize::from(width > 0));
            match self {
                Width::Shared(_) => Width::Shared(n),
                Width::Separate { heads, neurons } => Width::Separate { heads: scale(heads), neurons: scale(neurons) },
            }
        };
        let fits = |n: usize| file_bytes(info, options, scaled(n), format) <= limit;
        if !fits(1) {
            return Err(LearnError::PredictorSize { limit, least: file_bytes(info, options, scaled(1), format) }.into());
        }
        // Between a width that fits and one that does not.
        let (mut low, mut high) = (1, MOST);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if fits(middle) { low = middle } else { high = middle }
        }
        Ok(scaled(low))
    }
}

/// Bytes of a file, never fewer than it will have: those of its tensors, and room for its header.
fn file_bytes(info: &SampleInfo, options: &TrainOptions, width: Width, format: WeightFormat) -> u64 {
    /// Of one tensor in the header.
    const ENTRY: usize = 128;
    /// Of the metadata, measured budgets included, without what grows with the text's description and the stations.
    const METADATA: usize = 8 << 10;
    let weight = match format {
        WeightFormat::F32 => 4,
        WeightFormat::F16 => 2,
        WeightFormat::Int8 => 1,
    };
    // Rows have a bias, and a scale if weights are integers.
    let row = if format == WeightFormat::Int8 { 8 } else { 4 };
    let layer = |rows: usize, cols: usize| rows * (cols * weight + row) + 3 * ENTRY;
    let ends = info.stations.iter().skip(1).map(|&next| next + 1).chain([info.layers]);
    let stations = info.stations.iter().zip(ends).map(|(&after, end)| {
        let layers = end - after - 1;
        let standard = if options.normalization == Normalization::Standardize { 8 * info.inputs } else { 0 };
        let networks = match width {
            Width::Shared(width) => layer(width, info.inputs) + layer(layers * (info.heads + info.neurons), width),
            Width::Separate { heads, neurons } => {
                let network = |width: usize, units: usize| match width {
                    0 => 0,
                    _ => layer(width, info.inputs) + layer(layers * units, width),
                };
                network(heads, info.heads) + network(neurons, info.neurons)
            }
        };
        standard + networks + 3 * ENTRY
    });
    // Quotes in the metadata are escaped twice.
    (stations.sum::<usize>() + METADATA + 4 * info.data.len() + 8 * info.stations.len()) as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::learn::samples::tests::info;

    #[test]
    fn sizes_are_bytes_or_shares() {
        assert_eq!("1000".parse::<FileSize>().unwrap().bytes(1), 1000);
        assert_eq!("3%".parse::<FileSize>().unwrap().bytes(10_000), 300);
        for text in ["", "%", "0", "-1", "0%", "101%", "NaN%", "3 MB"] {
            assert_eq!(
                text.parse::<FileSize>().unwrap_err().to_string(),
                format!(
                    "unknown size {text:?}; expected bytes, such as 1000000, or a share of the bytes of the model's blocks, such \
                     as 3%"
                )
            );
        }
    }

    #[test]
    fn widths_are_the_largest_that_fit_in_their_proportion() {
        let (info, options) = (info(), TrainOptions::default());
        let fit = |width: Width, limit| width.fitting(&info, &options, WeightFormat::Int8, limit);
        let of = |width| file_bytes(&info, &options, width, WeightFormat::Int8);
        for limit in [15_000, 20_000, 100_000] {
            let Width::Separate { heads, neurons } = fit(Width::Separate { heads: 20, neurons: 10 }, limit).unwrap()
            else {
                unreachable!("two networks stay two")
            };
            assert!(heads.div_ceil(2) == neurons && of(Width::Separate { heads, neurons }) <= limit);
            assert!(of(Width::Separate { heads: heads + 1, neurons: (heads + 2) / 2 }) > limit, "{heads} {neurons}");
            let Width::Shared(width) = fit(Width::Shared(7), limit).unwrap() else { unreachable!("one stays one") };
            assert!(of(Width::Shared(width)) <= limit && of(Width::Shared(width + 1)) > limit);
        }
        assert!(matches!(
            fit(Width::Separate { heads: 0, neurons: 128 }, 50_000).unwrap(),
            Width::Separate { heads: 0, neurons: 1.. }
        ));
        let least = of(Width::Shared(1));
        assert_eq!(
            fit(Width::Shared(1), 100).unwrap_err().to_string(),
            format!(
                "a predictor with one hidden unit takes about {least} bytes, but the file may have at most 100; allow more bytes, \
                 or use fewer stations or a smaller number format"
            )
        );
    }
}
