//! Emitted text compiles for every supported GPU generation, without a warning or a spill.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use shadowllm_codegen::DType;
use shadowllm_codegen::Sm;
use shadowllm_nvrtc::Options;

use support::{SHAPES, nvrtc, program};

#[test]
fn every_shape_compiles_for_every_generation() {
    let Some(nvrtc) = nvrtc() else { return };
    let only = std::env::var("ONLY").ok();
    for shape in SHAPES {
        if only.as_ref().is_some_and(|only| only != shape.name) {
            continue;
        }
        for sm in Sm::SUPPORTED {
            let program = program(&shape.spec(DType::BF16, sm.version()));
            let start = std::time::Instant::now();
            let compiled = nvrtc
                .compile(&program.source(), &Options::new(sm.version()))
                .unwrap_or_else(|e| panic!("{} {sm}: {e}", shape.name));
            eprintln!("{} {sm} {:?}", shape.name, start.elapsed());
            for facts in &compiled.kernels {
                if only.is_some() {
                    eprintln!("  {} regs {} stack {}", facts.name, facts.registers, facts.stack);
                }
                assert!(!facts.spills(), "{} {sm}: {facts:?}", shape.name);
            }
        }
    }
}
