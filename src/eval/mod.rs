//! Measuring quality: how well a model predicts text that it is given.

mod likelihood;
mod perplexity;

pub use likelihood::{Likelihood, log_likelihood};
pub use perplexity::{Perplexity, WindowNll, Windows, perplexity};
