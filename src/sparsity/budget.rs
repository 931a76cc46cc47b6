//! How many units may be kept.
//!
//! Heads and neurons have fractions of their own, because they cost differently: at equal fraction a model loses far more
//! quality by its heads, and a layer's neurons are most of its bytes.

use std::fmt;
use std::str::FromStr;

use shadowllm_weights::ModelConfig;

use crate::{Error, Result};

/// The number of units of a model: what a plan is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    /// `L`.
    pub layers: usize,
    /// `H`, heads of one layer.
    pub heads: usize,
    /// `F`, neurons of one layer.
    pub neurons: usize,
}

impl From<&ModelConfig> for Units {
    fn from(config: &ModelConfig) -> Self {
        Units { layers: config.layers, heads: config.heads, neurons: config.ffn }
    }
}

/// Over which units a budget is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The same count in every layer.
    #[default]
    Local,
    /// One count for all layers after layer 0 together: important layers keep more. Every layer keeps at least 1 head and a
    /// sixteenth of its neurons, paid for by the weakest units elsewhere.
    Global,
}

impl Scope {
    /// Name on the command line and in files.
    pub const fn name(self) -> &'static str {
        match self {
            Scope::Local => "local",
            Scope::Global => "global",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Scope::Local, Scope::Global]
            .into_iter()
            .find(|scope| scope.name() == name)
            .ok_or_else(|| Error::UnknownScope { found: name.to_owned() })
    }
}

/// How many units a plan may keep. Counts are of layers 1 to L-1; layer 0 keeps everything.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Budget {
    /// Fraction of the heads that is kept, over 0 and at most 1.
    pub heads: f32,
    /// Fraction of the neurons that is kept, over 0 and at most 1.
    pub neurons: f32,
    /// What the fractions are counted over.
    pub scope: Scope,
}

/// A layer of a global budget keeps at least one of this many neurons.
const NEURON_FLOOR: usize = 16;

impl Budget {
    /// The budget that keeps everything.
    pub const DENSE: Budget = Budget { heads: 1.0, neurons: 1.0, scope: Scope::Local };

    /// A checked budget.
    ///
    /// # Errors
    /// [`Error::BudgetFraction`] unless both fractions are over 0 and at most 1.
    ///
    /// ```
    /// use shadowllm::sparsity::{Budget, Scope};
    /// assert!(Budget::new(0.5, 0.25, Scope::Local).is_ok());
    /// let error = Budget::new(0.0, 0.25, Scope::Local).unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "the fraction of heads to keep is 0; expected a number over 0 and at most 1, where 1 keeps all"
    /// );
    /// ```
    pub fn new(heads: f32, neurons: f32, scope: Scope) -> Result<Self> {
        let budget = Budget { heads, neurons, scope };
        budget.validate()?;
        Ok(budget)
    }

    /// Checks the fractions, which are public.
    ///
    /// # Errors
    /// As [`Budget::new`].
    pub fn validate(&self) -> Result<()> {
        for (units, value) in [("heads", self.heads), ("neurons", self.neurons)] {
            // False for NaN too.
            if !(value > 0.0 && value <= 1.0) {
                return Err(Error::BudgetFraction { units, value });
            }
        }
        Ok(())
    }

    /// Whether it keeps everything.
    pub fn is_dense(&self) -> bool {
        self.heads == 1.0 && self.neurons == 1.0
    }

    /// Heads and neurons that a layer keeps of a budget of scope local.
    pub(crate) fn counts(&self, units: Units) -> [usize; 2] {
        let local = Budget { scope: Scope::Local, ..*self };
        [local.heads_of(units, 1).each, local.neurons_of(units, 1).each]
    }

    /// What it allows for heads and for neurons in `layers` layers.
    pub(crate) fn allowances(&self, units: Units, layers: usize) -> [Allowance; 2] {
        [self.heads_of(units, layers), self.neurons_of(units, layers)]
    }

    /// What it allows for heads in `layers` layers.
    pub(super) fn heads_of(&self, units: Units, layers: usize) -> Allowance {
        self.allowance(self.heads, units.heads, layers, 1)
    }

    /// What it allows for neurons in `layers` layers.
    pub(super) fn neurons_of(&self, units: Units, layers: usize) -> Allowance {
        self.allowance(self.neurons, units.neurons, layers, units.neurons.div_ceil(NEURON_FLOOR))
    }

    fn allowance(&self, fraction: f32, width: usize, layers: usize, floor: usize) -> Allowance {
        match self.scope {
            Scope::Local => Allowance { each: count(fraction, width), shared: 0 },
            Scope::Global => {
                let each = floor.clamp(1, width.max(1));
                let total = count(fraction, width * layers);
                Allowance { each, shared: total.saturating_sub(each * layers) }
            }
        }
    }
}

/// A budget as counts of one kind of unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Units that every layer keeps: its best.
    pub(crate) each: usize,
    /// Units kept beyond those, wherever the best of the rest are.
    pub(crate) shared: usize,
}

/// Parts of one that a fraction is read in: as many decimals as an `f32` holds.
const PARTS: u128 = 10_000_000;

/// `fraction * n` rounded half up, at least 1 and at most `n`.
///
/// Computed on the decimal that the fraction was written as: 0.35 as `f32` is a little less than 0.35, and of ten units it must
/// still be a half that is rounded up.
fn count(fraction: f32, n: usize) -> usize {
    let parts = (f64::from(fraction) * PARTS as f64).round() as u128;
    let rounded = (2 * parts * n as u128 + PARTS) / (2 * PARTS);
    (rounded as usize).clamp(1, n.max(1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fractions_outside_the_range_are_errors() {
        for (heads, neurons, found) in [
            (0.0, 1.0, "heads to keep is 0;"),
            (1.0, 1.5, "neurons to keep is 1.5;"),
            (-0.5, 1.0, "heads to keep is -0.5;"),
            (f32::NAN, 1.0, "heads to keep is NaN;"),
            (1.0, f32::INFINITY, "neurons to keep is inf;"),
        ] {
            let text = Budget::new(heads, neurons, Scope::Global).unwrap_err().to_string();
            let expected = format!("the fraction of {found} expected a number over 0 and at most 1, where 1 keeps all");
            assert_eq!(text, expected);
        }
        assert!(Budget::new(f32::MIN_POSITIVE, 1.0, Scope::Local).is_ok());
    }

    #[test]
    fn scopes_have_names() {
        for scope in [Scope::Local, Scope::Global] {
            assert_eq!(scope.to_string().parse::<Scope>().unwrap(), scope);
        }
        let text = "Global".parse::<Scope>().unwrap_err().to_string();
        assert_eq!(text, "unknown budget \"Global\"; expected local (the same count in every layer) or global");
    }

    #[test]
    fn counts_round_half_up() {
        for (fraction, n, expected) in [
            (0.5, 9, 5),
            (0.25, 2, 1),
            (0.35, 10, 4),
            (0.349, 10, 3),
            (0.15, 10, 2),
            (0.1, 16384, 1638),
            (1.0, 16384, 16384),
            (1.0, 31 * 16384, 31 * 16384),
            (0.01, 32, 1),
        ] {
            assert_eq!(count(fraction, n), expected, "{fraction} of {n}");
        }
    }

    #[test]
    fn global_budgets_have_floors() {
        let units = Units { layers: 5, heads: 8, neurons: 40 };
        let budget = Budget::new(0.5, 0.5, Scope::Global).unwrap();
        assert_eq!(budget.heads_of(units, 4), Allowance { each: 1, shared: 12 });
        assert_eq!(budget.neurons_of(units, 4), Allowance { each: 3, shared: 68 });
        let budget = Budget::new(0.01, 0.01, Scope::Global).unwrap();
        assert_eq!(budget.heads_of(units, 4), Allowance { each: 1, shared: 0 });
        assert_eq!(budget.neurons_of(units, 4), Allowance { each: 3, shared: 0 });
    }

    proptest! {
        #[test]
        fn counts_of_decimals_are_exact(thousandths in 1_u32..=1000, n in 1_usize..200_000) {
            let fraction = thousandths as f32 / 1000.0;
            let exact = (thousandths as usize * n * 2 + 1000) / 2000;
            prop_assert_eq!(count(fraction, n), exact.clamp(1, n));
        }
    }
}
