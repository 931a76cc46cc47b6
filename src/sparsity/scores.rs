//! The importance of every unit, in the form that selection reads.

use super::Units;
use crate::{Error, Result};

/// One importance per unit; more is more important. Only the order matters, and only within what a budget compares: a layer
/// for a local budget, all layers for a global one. The rows of layer 0, which is never pruned, are ignored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// `[L, H]`
    pub heads: Vec<f32>,
    /// `[L, F]`
    pub neurons: Vec<f32>,
}

impl Scores {
    /// All units equally important.
    pub fn zeros(units: impl Into<Units>) -> Scores {
        let units = units.into();
        Scores { heads: vec![0.0; units.layers * units.heads], neurons: vec![0.0; units.layers * units.neurons] }
    }

    /// Checks sizes and values.
    ///
    /// # Errors
    /// [`Error::ScoresLength`] if they are for another shape, [`Error::BadScore`] if one outside layer 0 is NaN or infinite.
    pub fn validate(&self, units: impl Into<Units>) -> Result<()> {
        let units = units.into();
        self.check_lengths(units)?;
        check_finite("head", &self.heads, units.heads, 1)?;
        check_finite("neuron", &self.neurons, units.neurons, 1)
    }

    /// The part of [`Scores::validate`] that does not look at values.
    pub(super) fn check_lengths(&self, units: Units) -> Result<()> {
        for (what, found, width) in
            [("heads", self.heads.len(), units.heads), ("neurons", self.neurons.len(), units.neurons)]
        {
            if found != units.layers * width {
                return Err(Error::ScoresLength { units: what, found, layers: units.layers, width });
            }
        }
        Ok(())
    }
}

/// Checks the rows of `width` scores from layer `first` on.
///
/// # Errors
/// [`Error::BadScore`] names the first that is NaN or infinite.
pub(super) fn check_finite(unit: &'static str, scores: &[f32], width: usize, first: usize) -> Result<()> {
    let rows = scores.get(first * width..).unwrap_or_default();
    // No early exit, so that the loop runs at the speed of memory.
    let bad = rows.iter().fold(false, |bad, v| bad | !v.is_finite());
    if bad && let Some(at) = rows.iter().position(|v| !v.is_finite()) {
        return Err(Error::BadScore { unit, layer: first + at / width, index: at % width, value: rows[at] });
    }
    Ok(())
}
