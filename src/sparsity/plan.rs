//! The result of one decision: which units of which layer are read.
//!
//! Lists of indices rather than masks: the kernels walk over what is kept and never look at what is not. Ascending order
//! makes the reads of one list run forward through memory and the sums over it reproducible.

use super::Units;
use crate::{Error, Result};

/// Units of one layer that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerPlan {
    /// Kept heads, ascending, each below `H`.
    pub heads: Vec<u32>,
    /// Kept neurons, ascending, each below `F`.
    pub neurons: Vec<u32>,
}

/// Units of every layer that are kept. Layer 0 keeps all of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// One per layer, `L`.
    pub layers: Vec<LayerPlan>,
}

/// Units kept / units, over all layers, layer 0 included.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Kept {
    /// Of the heads.
    pub heads: f64,
    /// Of the neurons.
    pub neurons: f64,
}

impl LayerPlan {
    /// Keeps everything; allocates nothing if it was made for a model of this shape.
    pub fn set_dense(&mut self, units: impl Into<Units>) {
        let units = units.into();
        for (list, n) in [(&mut self.heads, units.heads), (&mut self.neurons, units.neurons)] {
            if list.len() != n {
                list.clear();
                list.extend(0..n as u32);
            }
        }
    }
}

impl Plan {
    /// The plan that keeps everything. Its lists have room for every later plan of the same model.
    pub fn dense(units: impl Into<Units>) -> Plan {
        let units = units.into();
        let all = |n: usize| (0..n as u32).collect();
        let layer = || LayerPlan { heads: all(units.heads), neurons: all(units.neurons) };
        Plan { layers: (0..units.layers).map(|_| layer()).collect() }
    }

    /// Makes it the plan that keeps everything; allocates nothing if it was made for a model of this shape.
    pub fn set_dense(&mut self, units: impl Into<Units>) {
        let units = units.into();
        self.layers.resize_with(units.layers, LayerPlan::default);
        self.layers.iter_mut().for_each(|layer| layer.set_dense(units));
    }

    /// Copies `other`; allocates nothing if both are for a model of the same shape.
    pub fn copy_from(&mut self, other: &Plan) {
        self.layers.resize_with(other.layers.len(), LayerPlan::default);
        for (layer, other) in self.layers.iter_mut().zip(&other.layers) {
            layer.heads.clone_from(&other.heads);
            layer.neurons.clone_from(&other.neurons);
        }
    }

    /// Whether it keeps everything.
    pub fn is_dense(&self, units: impl Into<Units>) -> bool {
        let units = units.into();
        self.layers.iter().all(|layer| layer.heads.len() == units.heads && layer.neurons.len() == units.neurons)
    }

    /// The fraction of all units that is kept.
    pub fn kept_fraction(&self, units: impl Into<Units>) -> Kept {
        let units = units.into();
        let fraction = |kept: usize, width: usize| match width * units.layers {
            0 => 1.0,
            all => kept as f64 / all as f64,
        };
        Kept {
            heads: fraction(self.layers.iter().map(|l| l.heads.len()).sum(), units.heads),
            neurons: fraction(self.layers.iter().map(|l| l.neurons.len()).sum(), units.neurons),
        }
    }

    /// Checks a plan that was not made here: one entry per layer, lists ascending without repetition and within the model,
    /// layer 0 whole. Lists may be empty.
    ///
    /// # Errors
    /// [`Error::PlanLayers`], [`Error::PlanList`].
    pub fn validate(&self, units: impl Into<Units>) -> Result<()> {
        let units = units.into();
        if self.layers.len() != units.layers {
            return Err(Error::PlanLayers { found: self.layers.len(), expected: units.layers });
        }
        (0..units.layers).try_for_each(|layer| self.validate_layer(layer, units))
    }

    /// The part of [`Plan::validate`] that is about one layer.
    ///
    /// # Errors
    /// As there.
    pub fn validate_layer(&self, at: usize, units: impl Into<Units>) -> Result<()> {
        let units = units.into();
        let Some(layer) = self.layers.get(at).filter(|_| self.layers.len() == units.layers) else {
            return Err(Error::PlanLayers { found: self.layers.len(), expected: units.layers });
        };
        for (what, list, width) in [("heads", &layer.heads, units.heads), ("neurons", &layer.neurons, units.neurons)] {
            let fail = |reason: String| Err(Error::PlanList { layer: at, units: what, reason });
            if let Some(pair) = list.windows(2).find(|pair| pair[0] >= pair[1]) {
                return fail(format!("{} stands before {}; a list is ascending without repetition", pair[0], pair[1]));
            }
            if let Some(&last) = list.last()
                && last as usize >= width
            {
                return fail(format!("{last} is kept, but the layer has {width}"));
            }
            if at == 0 && list.len() != width {
                return fail(format!("{} of {width} are kept; layer 0 keeps all", list.len()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const UNITS: Units = Units { layers: 2, heads: 2, neurons: 4 };

    fn plan(heads: &[u32], neurons: &[u32]) -> Plan {
        let mut plan = Plan::dense(UNITS);
        plan.layers[1] = LayerPlan { heads: heads.to_vec(), neurons: neurons.to_vec() };
        plan
    }

    #[test]
    fn kept_fractions_count_layer_0() {
        assert_eq!(Plan::dense(UNITS).kept_fraction(UNITS), Kept { heads: 1.0, neurons: 1.0 });
        assert_eq!(plan(&[1], &[0, 2]).kept_fraction(UNITS), Kept { heads: 0.75, neurons: 0.75 });
        assert!(Plan::dense(UNITS).is_dense(UNITS));
        assert!(!plan(&[0, 1], &[0, 1, 3]).is_dense(UNITS));
    }

    #[test]
    fn set_dense_and_copy_reuse_memory() {
        let mut p = Plan::dense(UNITS);
        let place = |p: &Plan| (p.layers[1].neurons.as_ptr(), p.layers[1].neurons.capacity());
        let before = place(&p);
        p.copy_from(&plan(&[1], &[0, 2]));
        assert_eq!(p, plan(&[1], &[0, 2]));
        p.set_dense(UNITS);
        assert_eq!(p, Plan::dense(UNITS));
        assert_eq!(place(&p), before);
    }

    #[test]
    fn wrong_plans_are_named() {
        assert!(plan(&[], &[3]).validate(UNITS).is_ok());
        for (plan, expected) in [
            (
                Plan::dense(Units { layers: 3, ..UNITS }),
                "the plan has 3 layers, but the model has 2; make it for this model",
            ),
            (plan(&[1, 0], &[]), "plan of layer 1, heads: 1 stands before 0; a list is ascending without repetition"),
            (
                plan(&[0], &[2, 2]),
                "plan of layer 1, neurons: 2 stands before 2; a list is ascending without repetition",
            ),
            (plan(&[0], &[1, 4]), "plan of layer 1, neurons: 4 is kept, but the layer has 4"),
            (
                Plan { layers: vec![LayerPlan::default(); 2] },
                "plan of layer 0, heads: 0 of 2 are kept; layer 0 keeps all",
            ),
        ] {
            assert_eq!(plan.validate(UNITS).unwrap_err().to_string(), expected);
        }
    }
}
