//! Measuring quality: how well a model predicts text that it is given.

mod likelihood;
mod perplexity;
mod plan_picture;

pub use likelihood::{Likelihood, log_likelihood};
pub use perplexity::{Perplexity, WindowNll, Windows, perplexity, perplexity_with};
pub use plan_picture::plan_picture;
