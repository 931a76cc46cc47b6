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
        let selected = select(&file.scores, &Budget { heads: 0.5, neurons: 0.4, scope }, units, &mut plan);
        assert!(selected.is_ok() && plan.validate(units).is_ok(), "{file:?}");
    }
});
