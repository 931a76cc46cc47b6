//! The policies, one file each.

mod dense;
mod fixed;
mod oracle;
mod random;

pub use dense::Dense;
pub use fixed::Fixed;
pub use oracle::{Oracle, ScoreSource};
pub use random::Random;
