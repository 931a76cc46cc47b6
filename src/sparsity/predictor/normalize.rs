//! A predictor's input, normalised.

/// Mean and factor of every input.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Standard {
    /// `[n]`
    pub(crate) mean: Vec<f32>,
    /// `[n]`, the inverse of the standard deviation.
    pub(crate) scale: Vec<f32>,
}

impl Standard {
    /// Appends `(x - mean) * scale`.
    pub(crate) fn apply(&self, x: &[f32], out: &mut Vec<f32>) {
        out.extend(x.iter().zip(&self.mean).zip(&self.scale).map(|((x, mean), scale)| (x - mean) * scale));
    }
}

/// Appends `(x - min) / (max - min)`; zeros if all are equal. NaN stays NaN.
pub(crate) fn min_max(x: &[f32], out: &mut Vec<f32>) {
    let (min, max) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &v| (v.min(lo), v.max(hi)));
    let factor = if max > min { 1.0 / (max - min) } else { 0.0 };
    out.extend(x.iter().map(|v| (v - min) * factor));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas() {
        let mut out = Vec::new();
        min_max(&[1.0, 3.0, 2.0], &mut out);
        assert_eq!(out, [0.0, 1.0, 0.5]);
        min_max(&[4.0, 4.0], &mut out);
        assert_eq!(out[3..], [0.0, 0.0]);
        min_max(&[0.0, f32::NAN, 1.0], &mut out);
        assert!(out[6].is_nan());
        Standard { mean: vec![1.0, 2.0], scale: vec![2.0, 0.5] }.apply(&[3.0, 0.0], &mut out);
        assert_eq!(out[8..], [4.0, -1.0]);
    }
}
