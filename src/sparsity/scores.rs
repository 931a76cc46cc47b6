//! The importance of every unit, in the form that selection reads.

use super::{Budget, Units};
use crate::{Error, Result};

/// One importance per unit; more is more important. Only the order matters, and only within what a budget compares: a layer
/// for a local budget, all layers for a global one. The rows of layer 0, which is never pruned, are ignored. A kind of units without any scores is one
/// that nothing is known about; it cannot be pruned by them.
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

    /// Checks sizes and values. Scores of one kind of units may be missing.
    ///
    /// # Errors
    /// [`Error::ScoresLength`] if they are for another shape, [`Error::BadScore`] if one outside layer 0 is NaN or infinite.
    pub fn validate(&self, units: impl Into<Units>) -> Result<()> {
        let units = units.into();
        self.check(units, |present| present)?;
        if self.heads.is_empty() && self.neurons.is_empty() {
            self.check_lengths(units)?;
        }
        check_finite("head", &self.heads, units.heads, 1)?;
        check_finite("neuron", &self.neurons, units.neurons, 1)
    }

    /// Checks that there is a score for every unit, without looking at it.
    pub(super) fn check_lengths(&self, units: Units) -> Result<()> {
        self.check(units, |_| true)
    }

    /// Checks that there is a score for every unit of a kind that `budget` prunes.
    pub(super) fn check_for(&self, budget: &Budget, units: Units) -> Result<()> {
        self.check(units, |present| present)?;
        let kinds = [
            ("heads", &self.heads, units.heads, budget.heads),
            ("neurons", &self.neurons, units.neurons, budget.neurons),
        ];
        match kinds
            .into_iter()
            .find(|(_, scores, width, kept)| scores.is_empty() && units.layers * width > 0 && *kept < 1.0)
        {
            Some((units, _, _, kept)) => Err(Error::ScoresLack { units, kept }),
            None => Ok(()),
        }
    }

    /// Checks the sizes of kinds that are wanted, by whether there are any scores.
    fn check(&self, units: Units, wanted: impl Fn(bool) -> bool) -> Result<()> {
        for (what, found, width) in
            [("heads", self.heads.len(), units.heads), ("neurons", self.neurons.len(), units.neurons)]
        {
            if wanted(found > 0) && found != units.layers * width {
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
