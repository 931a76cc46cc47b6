//! Contextual sparsity: which heads and neurons a token needs, and who decides that.
//!
//! Decoding is bound by the bytes of weights that are read, and a token needs only some of them. This module turns an opinion
//! about importance ([`Scores`]) and an allowance ([`Budget`]) into a [`Plan`]: for every layer, the heads and neurons that are
//! read and computed. A [`Policy`] makes plans while a text is decoded; the forward pass executes them and asks no questions.
//!
//! ```text
//! scores file ---------------.
//! predictor(x after layer s) -+-> Scores --select(Budget)--> Plan --> forward pass
//! oracle --------------------'
//! random draw -----------------------------------------------^
//! ```
//!
//! Nothing here knows how a plan is executed, and no kernel lives here. Executing a plan is *exactly* the dense model with the
//! contexts of dropped heads and the inners of dropped neurons set to zero, so a bad plan costs quality, never correctness.
//! Layer 0 is never pruned: its output is what the first predictor looks at.
//!
//! In gated FFNs [`GateSkip`] goes further: what a plan has kept is left half read where the gate says that it does not count.
//!
//! A new policy is one file in `policies/` that implements [`Policy`].

mod budget;
pub(crate) mod file;
mod gate;
mod identity;
mod masks;
mod plan;
mod policies;
mod policy;
pub mod predictor;
mod scores;
mod scores_file;
mod select;
mod tally;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod testing;

pub use budget::{Budget, Scope, Units};
pub use gate::{GateCalibration, GateMask, GateSkip, GateStatistic, GateThresholds, calibrate_gate};
pub use identity::ModelIdentity;
pub(crate) use identity::digest;
pub use masks::{KeptCount, MaskRow, MaskRows, PlanMasks};
pub use plan::{Kept, LayerPlan, Plan};
pub use policies::{DejaVu, Dense, Fixed, Oracle, Random, ScoreSource, Shadow};
pub use policy::{Policy, PolicyInput, Refresh, RowsInput, Station};
pub use predictor::{Predictor, PredictorInfo};
pub use scores::Scores;
pub use scores_file::ScoresFile;
pub use select::{Selector, select};
pub use tally::{LayerTally, PlanTally, UnitTally};
