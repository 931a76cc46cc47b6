//! Any bytes as a trace file: an error, or samples that can all be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shadowllm::learn::trace::check_trace_file;

fuzz_target!(|bytes: &[u8]| {
    let _ = check_trace_file(bytes);
});
