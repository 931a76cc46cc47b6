//! Shapes of published models, and what else the tests of this crate share.

#![allow(dead_code, unused_imports, unused_macros, clippy::unwrap_used, clippy::print_stderr)]

use shadowllm_codegen::{
    DType, KernelSpec, Normalization, PredictorInput, PredictorSpec, Program, Sizes, Sm, WeightFormat,
};
use shadowllm_nvrtc::Nvrtc;

/// Family, name and sizes of a published model.
pub struct Shape {
    pub name: &'static str,
    pub llama: bool,
    pub sizes: Sizes,
}

const fn opt(name: &'static str, layers: usize, hidden: usize, heads: usize) -> Shape {
    let sizes = Sizes {
        layers,
        hidden,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        ffn: 4 * hidden,
        vocab: 50272,
        context: 2048,
    };
    Shape { name, llama: false, sizes }
}

const fn llama(name: &'static str, [layers, hidden, heads, kv_heads, ffn, vocab, context]: [usize; 7]) -> Shape {
    let sizes = Sizes { layers, hidden, heads, kv_heads, head_dim: hidden / heads, ffn, vocab, context };
    Shape { name, llama: true, sizes }
}

pub const SHAPES: [Shape; 7] = [
    opt("opt-125m", 12, 768, 12),
    opt("opt-1.3b", 24, 2048, 32),
    opt("opt-6.7b", 32, 4096, 32),
    opt("opt-30b", 48, 7168, 56),
    llama("llama-2-7b", [32, 4096, 32, 32, 11008, 32000, 4096]),
    llama("llama-3-8b", [32, 4096, 32, 8, 14336, 128_256, 8192]),
    llama("smollm2-135m", [30, 576, 9, 3, 1536, 49152, 8192]),
];

impl Shape {
    pub fn spec(&self, dtype: DType, sm: u32) -> KernelSpec {
        let sm = Sm::new(sm).unwrap();
        if self.llama { KernelSpec::llama(self.sizes, dtype, sm) } else { KernelSpec::opt(self.sizes, dtype, sm) }
    }
}

/// The predictor that the engine trains by default.
pub fn predictor() -> PredictorSpec {
    PredictorSpec {
        stations: vec![0],
        input: PredictorInput::Residual,
        normalization: Normalization::None,
        relu: true,
        format: WeightFormat::Int8,
        bias: true,
        heads: Some(128),
        neurons: Some(128),
        trunk: false,
    }
}

/// The compiler, or the word that the test is skipped.
pub fn nvrtc() -> Option<Nvrtc> {
    match Nvrtc::open() {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// The program of a spec with a predictor.
pub fn program(spec: &KernelSpec) -> Program {
    Program::emit(spec, Some(&predictor()), &[]).unwrap()
}

pub mod device;
pub mod host;
pub mod oracle;
