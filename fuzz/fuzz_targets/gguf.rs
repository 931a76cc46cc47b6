//! GGUF files from anywhere: an error or an import, never a panic or an absurd allocation.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let _ = shadowllm_weights::gguf::check(file);
});
