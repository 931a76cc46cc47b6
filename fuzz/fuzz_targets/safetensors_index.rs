//! Any bytes as an index of shards: an error, or file names that stay in their directory.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use shadowllm_weights::parse_safetensors_index;

fuzz_target!(|bytes: &[u8]| {
    let Ok(shard_of) = parse_safetensors_index(bytes) else { return };
    assert!(!shard_of.is_empty());
    let dir = Path::new("/models/one");
    for shard in shard_of.values() {
        let path = dir.join(shard);
        assert_eq!(path.parent(), Some(dir));
        assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(shard.as_str()));
    }
});
