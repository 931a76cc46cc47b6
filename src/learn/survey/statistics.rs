//! How scores are spread, and how far criteria agree. Layer 0, which is never pruned, does not count.

use serde::Serialize;

use super::Survey;
use crate::learn::UnitKind;
use crate::learn::train::spearman;
use crate::sparsity::Scores;

/// How the scores of the units of one kind are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub std: f64,
    /// The least.
    pub min: f64,
    /// A quarter is below.
    pub lower_quartile: f64,
    /// Half is below.
    pub median: f64,
    /// A quarter is above.
    pub upper_quartile: f64,
    /// The largest.
    pub max: f64,
    /// Share of the units whose score is exactly 0.
    pub zeros: f64,
}

/// One criterion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CriterionStatistics {
    /// Its name.
    pub criterion: &'static str,
    /// Of the heads; `None` if it says nothing about them.
    pub heads: Option<Spread>,
    /// Of the neurons.
    pub neurons: Option<Spread>,
}

/// How far criteria agree on the order of units: Spearman's rank correlations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Correlations {
    /// The criteria, in the order of rows and columns.
    pub criteria: Vec<&'static str>,
    /// Of all units together, as a global budget compares them.
    pub all: Vec<Vec<f64>>,
    /// Of the units of a layer, as a local budget compares them; the mean over the layers.
    pub within_layers: Vec<Vec<f64>>,
}

/// All criteria.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SurveyStatistics {
    /// Each by itself.
    pub criteria: Vec<CriterionStatistics>,
    /// On heads.
    pub head_correlations: Correlations,
    /// On neurons.
    pub neuron_correlations: Correlations,
}

impl Survey {
    /// How scores are spread, and how far criteria agree.
    pub fn statistics(&self) -> SurveyStatistics {
        let criteria = self.scores.iter().map(|(criterion, scores)| CriterionStatistics {
            criterion,
            heads: Spread::of(self.units_of(scores, UnitKind::Heads)),
            neurons: Spread::of(self.units_of(scores, UnitKind::Neurons)),
        });
        SurveyStatistics {
            criteria: criteria.collect(),
            head_correlations: self.correlations(UnitKind::Heads),
            neuron_correlations: self.correlations(UnitKind::Neurons),
        }
    }

    /// Scores of the units of layers 1 to L-1; empty if the criterion has none.
    fn units_of<'a>(&self, scores: &'a Scores, kind: UnitKind) -> &'a [f32] {
        let values = if kind == UnitKind::Heads { &scores.heads } else { &scores.neurons };
        values.get(self.width(kind)..).unwrap_or_default()
    }

    fn width(&self, kind: UnitKind) -> usize {
        if kind == UnitKind::Heads { self.units.heads } else { self.units.neurons }
    }

    fn correlations(&self, kind: UnitKind) -> Correlations {
        let scores = self.scores.iter().map(|(criterion, scores)| (*criterion, self.units_of(scores, kind)));
        let scores: Vec<(&'static str, &[f32])> = scores.filter(|(_, scores)| !scores.is_empty()).collect();
        let matrix = |of: &dyn Fn(&[f32], &[f32]) -> f64| -> Vec<Vec<f64>> {
            scores.iter().map(|(_, a)| scores.iter().map(|(_, b)| of(a, b)).collect()).collect()
        };
        let width = self.width(kind).max(1);
        let within = |a: &[f32], b: &[f32]| {
            let layers = a.chunks_exact(width).zip(b.chunks_exact(width));
            let count = layers.len() as f64;
            layers.map(|(a, b)| spearman(a, b)).sum::<f64>() / count
        };
        Correlations {
            criteria: scores.iter().map(|(criterion, _)| *criterion).collect(),
            all: matrix(&spearman),
            within_layers: matrix(&within),
        }
    }
}

impl Spread {
    /// Of these values; `None` if there are none.
    fn of(values: &[f32]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let count = sorted.len() as f64;
        let mean = sorted.iter().sum::<f64>() / count;
        let variance = sorted.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        // Between two values in proportion.
        let quantile = |share: f64| {
            let at = share * (count - 1.0);
            let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
            below + (above - below) * at.fract()
        };
        Some(Spread {
            mean,
            std: variance.sqrt(),
            min,
            lower_quartile: quantile(0.25),
            median: quantile(0.5),
            upper_quartile: quantile(0.75),
            max,
            zeros: sorted.iter().filter(|&&v| v == 0.0).count() as f64 / count,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sparsity::{ModelIdentity, Units};

    #[test]
    fn spread_is_as_defined() {
        let spread = Spread::of(&[4.0, 0.0, 1.0, 3.0, 2.0, 0.0]).unwrap();
        assert!((spread.mean - 10.0 / 6.0).abs() < 1e-12);
        assert!((spread.std - (30.0 / 6.0 - 100.0 / 36.0_f64).sqrt()).abs() < 1e-12);
        assert_eq!((spread.min, spread.max, spread.zeros), (0.0, 4.0, 1.0 / 3.0));
        assert_eq!((spread.lower_quartile, spread.median, spread.upper_quartile), (0.25, 1.5, 2.75));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn agreement_is_of_all_units_and_of_those_of_a_layer() {
        let scores = |heads: &[f32], neurons: &[f32]| Scores { heads: heads.to_vec(), neurons: neurons.to_vec() };
        // Layer 0, then two layers of three heads: the same order in each, but not over both.
        let survey = Survey {
            units: Units { layers: 3, heads: 3, neurons: 1 },
            model: ModelIdentity::from("abc".to_owned()),
            scores: vec![
                ("a", scores(&[9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[0.0, 1.0, 2.0])),
                ("b", scores(&[0.0, 0.0, 0.0, 4.0, 5.0, 6.0, 1.0, 2.0, 3.0], &[])),
            ],
            texts: Vec::new(),
        };
        let found = survey.statistics();
        let heads = &found.head_correlations;
        assert_eq!(heads.criteria, ["a", "b"]);
        assert!((heads.within_layers[0][1] - 1.0).abs() < 1e-12 && (heads.all[0][0] - 1.0).abs() < 1e-12);
        // Ranks differ by three everywhere: 1 - 6 * 54 / (6 * 35).
        assert!((heads.all[1][0] - (1.0 - 54.0 / 35.0)).abs() < 1e-12, "{}", heads.all[1][0]);
        assert_eq!(found.neuron_correlations.criteria, ["a"]);
        assert_eq!((found.criteria[0].heads.unwrap().mean, found.criteria[1].neurons), (3.5, None));
    }
}
