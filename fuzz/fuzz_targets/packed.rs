//! Any bytes as a packed file: an error, or records of the shapes that its configuration asks for, inside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shadowllm_weights::packed::parse_packed_header;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = parse_packed_header(bytes) else { return };
    let config = &header.config;
    let size = header.dtype.size();
    for i in 0..config.layers {
        let records = config.ffn * if config.gated { 3 } else { 2 };
        for (kind, rows) in [
            ("heads", config.heads * 2 * config.head_dim),
            ("kv_heads", config.kv_heads * 2 * config.head_dim),
            ("neurons", records),
        ] {
            let name = format!("layers.{i}.{kind}");
            let tensor = header.tensors.iter().find(|t| t.name == name);
            let range = tensor.map(|t| t.range.clone()).unwrap_or_default();
            assert_eq!(range.len(), rows * config.hidden * size, "{name}");
            assert_eq!(range.start % size, 0, "{name}");
            assert!(bytes.get(range).is_some(), "{name}");
        }
    }
});
