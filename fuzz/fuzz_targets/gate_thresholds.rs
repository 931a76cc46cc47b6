//! Any bytes as a file of gate thresholds: an error, or thresholds for every fraction, none of them NaN, larger for larger ones.
#![no_main]

#[path = "../model.rs"]
mod model;

use libfuzzer_sys::fuzz_target;
use shadowllm::sparsity::GateThresholds;

fuzz_target!(|bytes: &[u8]| {
    let Some(config) = model::config() else { return };
    let Ok(thresholds) = GateThresholds::from_bytes(bytes, &config, &model::identity()) else { return };
    let mut before = vec![0.0; config.ffn];
    let fractions = [0.0].into_iter().chain(thresholds.fractions.iter().flat_map(|&f| [f * 0.999, f]));
    let mut last = 0.0;
    for fraction in fractions.take(200) {
        if fraction < last {
            continue;
        }
        last = fraction;
        let skip = thresholds.at(fraction, &config);
        assert!(skip.is_ok(), "{fraction}: {skip:?}");
        let Ok(skip) = skip else { return };
        assert!(skip.check(&config).is_ok());
        assert_eq!(skip.layer(0), vec![0.0; config.ffn]);
        let now = skip.layer(config.layers - 1);
        // Interpolation rounds.
        assert!(now.iter().zip(&before).all(|(now, before)| *now >= *before * 0.999_99), "{before:?}, then {now:?}");
        before.copy_from_slice(now);
    }
    assert!(thresholds.at(1.0, &config).is_err());
});
