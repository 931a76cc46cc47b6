//! What a policy chooses by, before it is known how much it may keep: read once, used at any number of budgets.

use std::sync::Arc;

use shadowllm_weights::ModelConfig;

use super::{Chooser, Importance, PolicyMaker};
use crate::Result;
use crate::eval::EvalError;
use crate::sparsity::{Budget, DejaVu, Dense, Fixed, Policy, Predictor, Random, Scores, Shadow};

/// Who chooses, and by what.
#[derive(Clone, Debug)]
pub enum PolicySource {
    /// All units.
    Dense,
    /// At random.
    Random {
        /// Texts of other numbers add theirs to it.
        seed: u64,
    },
    /// The same units for every token.
    Static(Arc<Scores>),
    /// A predictor, read after layer 0.
    Shadow(Arc<Predictor>),
    /// A predictor per layer.
    Dejavu(Arc<Predictor>),
    /// What the dense model computes for the token.
    Oracle(Importance),
}

impl PolicySource {
    /// The policy's name on the command line and in reports.
    pub fn name(&self) -> &'static str {
        match self {
            PolicySource::Dense => "dense",
            PolicySource::Random { .. } => "random",
            PolicySource::Static(_) => "static",
            PolicySource::Shadow(_) => "shadow",
            PolicySource::Dejavu(_) => "dejavu",
            PolicySource::Oracle(_) => "oracle",
        }
    }

    /// Whether a decoder can have this policy.
    pub fn decodes(&self) -> bool {
        !matches!(self, PolicySource::Oracle(_))
    }

    /// The predictor, if it is one that chooses.
    pub fn predictor(&self) -> Option<&Predictor> {
        match self {
            PolicySource::Shadow(predictor) | PolicySource::Dejavu(predictor) => Some(predictor),
            _ => None,
        }
    }

    /// What makes policies with this budget, for decoding too.
    ///
    /// # Errors
    /// [`crate::Error::BudgetFraction`]; [`EvalError::OracleDecodes`]; those of [`Fixed::new`]. What a policy has against the budget it says
    /// when it is made.
    pub fn maker(&self, budget: Budget, config: &ModelConfig) -> Result<PolicyMaker> {
        budget.validate()?;
        Ok(match self {
            PolicySource::Dense => Box::new(|_| Ok(Box::new(Dense))),
            &PolicySource::Random { seed } => {
                let config = config.clone();
                Box::new(move |number| Ok(Box::new(Random::new(seed.wrapping_add(number), budget, &config)?)))
            }
            PolicySource::Static(scores) => {
                let fixed = Fixed::new(scores, &budget, config)?;
                Box::new(move |_| Ok(fixed.fork()))
            }
            PolicySource::Shadow(predictor) => {
                let predictor = Arc::clone(predictor);
                Box::new(move |_| Ok(Box::new(Shadow::new(Arc::clone(&predictor), budget)?)))
            }
            PolicySource::Dejavu(predictor) => {
                let predictor = Arc::clone(predictor);
                Box::new(move |_| Ok(Box::new(DejaVu::new(Arc::clone(&predictor), budget)?)))
            }
            PolicySource::Oracle(_) => return Err(EvalError::OracleDecodes.into()),
        })
    }

    /// What chooses with this budget in an evaluation.
    ///
    /// # Errors
    /// As [`PolicySource::maker`], but the oracle is none.
    pub fn chooser(&self, budget: Budget, config: &ModelConfig) -> Result<Chooser> {
        match *self {
            PolicySource::Oracle(importance) => Ok(Chooser::Oracle { importance, budget }),
            _ => Ok(Chooser::Policy(self.maker(budget, config)?)),
        }
    }
}
