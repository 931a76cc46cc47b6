//! Many policies at many budgets, measured alike: the curves that one decides by.
//!
//! One figure at one budget says little of a policy. A sweep measures every combination of policy, kept fraction and kind of unit on
//! the same windows of the same text, each beside the dense model; what the policy kept beside what an oracle would have kept; and,
//! where a decoder can follow, the time of a decoded token over the packed weights of the same model. It may take hours, so every
//! measurement is on disk as soon as it is made.
//!
//! ```text
//! Sweep (engine, text, policies, grid) --run--> Store --> SweepResults --report::write--> CSV, HTML
//!                                                 ^  |
//!                                       sweep.json '--' after every measurement
//! ```
//!
//! A sweep that is begun again measures what is missing. Policies, fractions, kinds, tasks and time may be added to one that is there;
//! what makes figures comparable ([`Conditions`]) may not change.

mod bytes;
mod conditions;
mod grid;
mod plans;
mod results;
mod run;
mod speed;
mod store;
mod truth;

pub use conditions::{Conditions, FileRecord, TaskRecord};
pub use grid::{Kinds, SweepPolicy};
pub use results::{
    DenseResult, HeadUse, Point, PolicyRecord, PredictorRecord, Quality, Recall, Speed, SweepResults, TaskAccuracy,
};
pub use run::{Sweep, SweepEvent};
pub use store::Store;
