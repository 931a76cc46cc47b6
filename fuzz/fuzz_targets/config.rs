//! Any bytes as `config.json`: an error, or a configuration whose sizes fit each other and that survives being written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shadowllm_weights::ModelConfig;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = ModelConfig::from_json(bytes) else { return };
    assert_eq!(config.windows.len(), config.layers);
    assert_eq!(config.heads % config.kv_heads, 0);
    assert!(config.norm_eps > 0.0);
    let table = config.vocab.checked_mul(config.hidden.max(config.embed_dim));
    assert!(table.is_some_and(|n| n <= isize::MAX as usize / 4));
    let read_back = ModelConfig::from_json(&config.to_json());
    assert!(read_back.is_ok_and(|again| again == config), "{config:?}");
});
