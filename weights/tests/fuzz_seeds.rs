//! The inputs that fuzzing starts from are valid: from an invalid one it would only ever explore the first check.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use shadowllm_weights::packed::parse_packed_header;
use shadowllm_weights::{ModelConfig, parse_safetensors_header, parse_safetensors_index};

#[test]
fn seeds_are_valid() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    type Parse = fn(&[u8]) -> Result<(), String>;
    let parsers: [(&str, Parse); 4] = [
        ("config", |bytes| ModelConfig::from_json(bytes).map(drop).map_err(|e| e.to_string())),
        ("packed", |bytes| parse_packed_header(bytes).map(drop).map_err(|e| e.to_string())),
        ("safetensors_header", |bytes| parse_safetensors_header(bytes).map(drop).map_err(|e| e.to_string())),
        ("safetensors_index", |bytes| parse_safetensors_index(bytes).map(drop).map_err(|e| e.to_string())),
    ];
    for (target, parse) in parsers {
        let files: Vec<_> = std::fs::read_dir(seeds.join(target)).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(!files.is_empty(), "{target} has no seeds");
        for file in files {
            let result = parse(&std::fs::read(&file).unwrap());
            assert!(result.is_ok(), "{}: {}", file.display(), result.unwrap_err());
        }
    }
}
