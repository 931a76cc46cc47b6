//! The policies, one file each.

mod dejavu;
mod dense;
mod fixed;
mod oracle;
mod predicted;
mod random;
mod rows;
mod shadow;

pub use dejavu::DejaVu;
pub use dense::Dense;
pub use fixed::Fixed;
pub use oracle::{Oracle, ScoreSource};
pub use random::Random;
pub use shadow::Shadow;
