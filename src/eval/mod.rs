//! Measuring quality: how well a model predicts text that it is given, with all of its units or those that a policy keeps.
//!
//! | to measure | use |
//! | --- | --- |
//! | the dense model on a text | [`perplexity`] |
//! | a policy on a text | [`Masked`] and [`perplexity_masked`] |
//! | what a predictor costs at several budgets, for its file | [`validate_predictor`] |
//! | multiple-choice tasks, dense or under a policy | [`tasks`] |
//! | many policies at many budgets | [`sweep`] |
//! | the same, to look at | [`report`] |
//! | one continuation | [`log_likelihood`] |

mod error;
mod likelihood;
mod markup;
mod masked;
mod perplexity;
mod plan_picture;
pub mod report;
pub mod sweep;
pub mod tasks;
mod validation;

pub use error::EvalError;
pub use likelihood::{Likelihood, log_likelihood};
pub use masked::{
    Chooser, Decision, EachLogits, EachPass, Importance, Job, Masked, MaskedText, Masking, PolicyMaker, PolicySource,
};
pub use perplexity::{
    Perplexity, WindowNll, Windows, perplexity, perplexity_masked, perplexity_observed, perplexity_of_texts,
    perplexity_with,
};
pub use plan_picture::plan_picture;
pub use validation::{KEPT, ValidationProgress, validate_predictor};
