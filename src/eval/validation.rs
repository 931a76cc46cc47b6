//! What a predictor costs, budget by budget: the validations that its file carries.
//!
//! Its rankings say how often a predictor is right; what a user wants to know is how much worse the text becomes. So perplexity is
//! measured on text that it was not trained on, each token deciding for itself as in decoding, with local budgets: heads dropped
//! alone, neurons dropped alone, and both together at the same fraction, because two losses need not add up. These are the curves
//! by which a budget is chosen from a limit ([`crate::sparsity::predictor::Curves`]).

use std::ops::ControlFlow;
use std::sync::Arc;

use super::{Chooser, Masked, Masking, Perplexity, perplexity_of_texts};
use crate::eval::EvalError;
use crate::generate::Engine;
use crate::sparsity::predictor::{Validation, Wanted};
use crate::sparsity::{Budget, Dense, Predictor, Scope, Shadow};
use crate::{Error, Result};

/// Fractions that are measured unless others are asked for.
pub const KEPT: [f32; 8] = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2];

/// How far a validation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValidationProgress {
    /// Texts scored, over all budgets.
    pub done: usize,
    /// Texts to score, over all budgets.
    pub of: usize,
    /// The budget at work; [`Budget::DENSE`] for the dense model.
    pub budget: Budget,
}

/// Measures a predictor on `texts`, each at least 2 tokens and run from position 0 on its own, at these kept fractions, and at
/// those only where it can rank the units. Fractions that come to the same number of units count once. `data` says in words what
/// the texts are. `progress` may stop the work.
///
/// # Errors
/// [`EvalError::NothingDropped`] without a fraction under 1, [`Error::BudgetFraction`] for one that is none; [`Error::NoTokens`]
/// without texts; those of [`perplexity_of_texts`].
pub fn validate_predictor(
    engine: &Engine,
    predictor: &Arc<Predictor>,
    texts: &[&[u32]],
    kept: &[f32],
    data: &str,
    progress: &mut dyn FnMut(ValidationProgress) -> ControlFlow<()>,
) -> Result<Vec<Validation>> {
    let budgets = budgets(predictor, kept)?;
    if texts.is_empty() {
        return Err(Error::NoTokens);
    }
    let of = texts.len() * (budgets.len() + 1);
    let mut done = 0;
    let mut measure = |budget: Budget| -> Result<Perplexity> {
        let chooser = match budget.is_dense() {
            true => Chooser::Policy(Box::new(|_| Ok(Box::new(Dense)))),
            false => {
                let predictor = Arc::clone(predictor);
                Chooser::Policy(Box::new(move |_| Ok(Box::new(Shadow::new(Arc::clone(&predictor), budget)?))))
            }
        };
        let mut masked = Masked::new(engine, chooser, Masking::default())?;
        perplexity_of_texts(&mut masked, texts, &mut |_| {
            done += 1;
            progress(ValidationProgress { done, of, budget })
        })
    };
    let dense = measure(Budget::DENSE)?;
    let validation = |budget| {
        Ok(Validation {
            budget,
            data: data.to_owned(),
            tokens: dense.tokens as u64,
            perplexity_dense: dense.perplexity,
            perplexity_sparse: measure(budget)?.perplexity,
            heads: None,
            neurons: None,
        })
    };
    budgets.into_iter().map(validation).collect()
}

/// The budgets to measure: heads, neurons, both, each from most kept to least.
fn budgets(predictor: &Predictor, kept: &[f32]) -> Result<Vec<Budget>> {
    let mut kept = kept.to_vec();
    for &fraction in &kept {
        Budget::new(fraction, fraction, Scope::Local)?;
    }
    kept.retain(|&fraction| fraction < 1.0);
    kept.sort_by(|a, b| b.total_cmp(a));
    let Wanted { heads, neurons } = predictor.ranks();
    let local = |heads, neurons| Budget { heads, neurons, scope: Scope::Local };
    let only_heads = kept.iter().filter(|_| heads).map(|&f| local(f, 1.0));
    let only_neurons = kept.iter().filter(|_| neurons).map(|&f| local(1.0, f));
    let both = kept.iter().filter(|_| heads && neurons).map(|&f| local(f, f));
    let mut budgets: Vec<Budget> = Vec::new();
    let counts = |budget: &Budget| budget.counts(predictor.units());
    for budget in only_heads.chain(only_neurons).chain(both) {
        // 0.99 of 8 heads are all of them: nothing is dropped, or only what another budget drops.
        let known = budgets.iter().chain([&Budget::DENSE]).any(|other| counts(other) == counts(&budget));
        if !known {
            budgets.push(budget);
        }
    }
    if budgets.is_empty() { Err(EvalError::NothingDropped.into()) } else { Ok(budgets) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sparsity::predictor::{Predictor, WeightFormat, predictor_bytes, random_predictor};
    use crate::sparsity::testing::{config, info};

    fn predictor(heads: bool, neurons: bool) -> Predictor {
        let mut weights = random_predictor(&info(), &config(), 4, 4, 1);
        weights.iter_mut().for_each(|station| {
            station.heads = station.heads.take().filter(|_| heads);
            station.neurons = station.neurons.take().filter(|_| neurons);
        });
        let bytes = predictor_bytes(&info(), &weights, WeightFormat::F32).unwrap();
        Predictor::from_bytes(&bytes, &config(), &info().model).unwrap()
    }

    fn fractions(heads: bool, neurons: bool, kept: &[f32]) -> Vec<(f32, f32)> {
        budgets(&predictor(heads, neurons), kept).unwrap().iter().map(|b| (b.heads, b.neurons)).collect()
    }

    #[test]
    fn every_kind_that_is_ranked_is_measured_once_per_count() {
        let both = fractions(true, true, &[0.5, 0.75, 0.45, 1.0]);
        // 0.45 of 4 heads are the 2 that 0.5 keeps, but of 32 neurons 14 and not 16.
        let (heads, neurons) = ([(0.75, 1.0), (0.5, 1.0)], [(1.0, 0.75), (1.0, 0.5), (1.0, 0.45)]);
        assert_eq!(both, [&heads[..], &neurons, &[(0.75, 0.75), (0.5, 0.5), (0.45, 0.45)]].concat());
        assert_eq!(fractions(true, false, &[0.5, 0.75]), heads);
        assert_eq!(fractions(false, true, &[0.5, 0.75, 0.45]), neurons);
    }

    #[test]
    fn fractions_must_mean_something() {
        let error = |kept: &[f32]| budgets(&predictor(true, true), kept).unwrap_err().to_string();
        let nothing = "the kept fractions that were given drop nothing; a predictor is measured where it drops heads or neurons: \
                       give fractions under 1";
        assert_eq!(error(&[]), nothing);
        assert_eq!(error(&[1.0]), nothing);
        let heads_only = budgets(&predictor(true, false), &[0.9]).unwrap_err().to_string();
        assert_eq!(heads_only, nothing, "0.9 of 4 heads are 4");
        assert!(error(&[0.5, 0.0]).contains("to keep is 0; expected a number over 0 and at most 1"));
    }
}
