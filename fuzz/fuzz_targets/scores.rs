//! Any bytes as a scores file: an error, or scores that every budget can select by.
#![no_main]

#[path = "../model.rs"]
mod model;

use libfuzzer_sys::fuzz_target;
use shadowllm::sparsity::{Budget, Plan, Scope, ScoresFile, Units, select};

fuzz_target!(|bytes: &[u8]| {
    let Some(config) = model::config() else { return };
    let units = Units::from(&config);
    let Ok(file) = ScoresFile::from_bytes(bytes, units, &model::identity()) else { return };
    for scope in [Scope::Local, Scope::Global] {
        let mut plan = Plan::dense(units);
        // What nothing is known of cannot be pruned.
        let kept = |scores: &[f32], fraction| if scores.is_empty() { 1.0 } else { fraction };
        let budget = Budget { heads: kept(&file.scores.heads, 0.5), neurons: kept(&file.scores.neurons, 0.4), scope };
        let selected = select(&file.scores, &budget, units, &mut plan);
        assert!(selected.is_ok() && plan.validate(units).is_ok(), "{file:?}");
    }
});
