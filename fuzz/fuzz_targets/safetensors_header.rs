//! Any bytes as a safetensors file: an error, or tensors that tile the data exactly.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shadowllm_weights::parse_safetensors_header;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tensors) = parse_safetensors_header(bytes) else { return };
    let Some(first) = tensors.first() else { return };
    let mut next = first.range.start;
    for tensor in &tensors {
        assert_eq!(tensor.range.start, next, "a hole or an overlap");
        let bits: usize = tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize();
        assert_eq!(tensor.range.len() * 8, bits, "not as long as its shape");
        next = tensor.range.end;
    }
    assert_eq!(next, bytes.len(), "bytes behind the last tensor");
});
