//! Emitted text compiles for every supported GPU generation, without a warning or a spill.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use shadowllm_codegen::{
    Activation, DType, KernelSpec, Normalization, PredictorInput, PredictorSpec, Program, Scope, Sizes, Sm,
    WeightFormat,
};
use shadowllm_nvrtc::{Compiled, KernelFacts, Nvrtc, Options};

use support::{SHAPES, nvrtc, predictor, program};

fn compile(nvrtc: &Nvrtc, what: &str, program: &Program) -> Compiled {
    let sm = program.spec.sm;
    let compiled = nvrtc.compile(&program.source(), &Options::new(sm.version()));
    let compiled = compiled.unwrap_or_else(|error| panic!("{what}, {sm}: {error}"));
    assert_eq!(compiled.kernels.len(), program.kernels.len());
    for facts in &compiled.kernels {
        assert!(!facts.spills() && facts.stack == 0, "{what}, {sm}: {facts:?}");
        let kernel = program.kernels.iter().find(|kernel| kernel.name == facts.name).unwrap();
        // What a multiprocessor of every generation has for one block.
        assert!(facts.registers * kernel.threads <= 65_536, "{what}, {sm}: {facts:?}");
        assert!(facts.shared + kernel.shared <= 99 * 1024, "{what}, {sm}: {} bytes", kernel.shared);
    }
    compiled
}

fn every_generation(names: &[&str]) {
    let Some(nvrtc) = nvrtc() else { return };
    for shape in SHAPES.iter().filter(|shape| names.contains(&shape.name)) {
        for sm in Sm::SUPPORTED {
            compile(&nvrtc, shape.name, &program(&shape.spec(DType::BF16, sm.version())));
        }
    }
}

#[test]
fn small_models_compile_for_every_generation() {
    every_generation(&["opt-125m", "opt-1.3b", "smollm2-135m"]);
}

#[test]
fn opt_compiles_for_every_generation() {
    every_generation(&["opt-6.7b", "opt-30b"]);
}

#[test]
fn llama_compiles_for_every_generation() {
    every_generation(&["llama-2-7b", "llama-3-8b"]);
}

/// What the runtime compiles is what was compiled whole above: the same registers, shared memory and spills, kernel by kernel.
#[test]
fn parts_are_the_same_kernels() {
    let Some(nvrtc) = nvrtc() else { return };
    for (name, sm) in [("opt-6.7b", 80), ("llama-3-8b", 90)] {
        let shape = SHAPES.iter().find(|shape| shape.name == name).unwrap();
        let program = program(&shape.spec(DType::BF16, sm));
        let mut whole = compile(&nvrtc, name, &program).kernels;
        let parts = nvrtc.compile_all(&program.parts(), &Options::new(sm)).unwrap();
        for (index, kernel) in program.kernels.iter().enumerate() {
            let facts = &parts[index % parts.len()].kernels;
            assert!(facts.iter().any(|facts| facts.name == kernel.name), "{}", kernel.name);
        }
        let mut facts: Vec<_> = parts.into_iter().flat_map(|part| part.kernels).collect();
        let by_name = |a: &KernelFacts, b: &KernelFacts| a.name.cmp(&b.name);
        whole.sort_by(by_name);
        facts.sort_by(by_name);
        assert_eq!(whole, facts, "{name}");
    }
}

#[test]
fn every_variant_compiles() {
    let Some(nvrtc) = nvrtc() else { return };
    let sm = |version| Sm::new(version).unwrap();
    let opt_66b = Sizes {
        layers: 64,
        hidden: 9216,
        heads: 72,
        kv_heads: 72,
        head_dim: 128,
        ffn: 36864,
        vocab: 50272,
        context: 2048,
    };
    let opt_2_7b = Sizes { layers: 32, hidden: 2560, heads: 32, kv_heads: 32, head_dim: 80, ffn: 10240, ..opt_66b };
    let llama_70b = Sizes { layers: 80, hidden: 8192, heads: 64, kv_heads: 8, ffn: 28672, vocab: 128_256, ..opt_66b };
    let wide_heads = Sizes { hidden: 2304, heads: 8, kv_heads: 4, head_dim: 256, ffn: 9216, ..opt_66b };
    let float = |dtype| PredictorSpec { format: WeightFormat::Float(dtype), ..predictor() };
    let global = |spec: KernelSpec| KernelSpec { scope: Scope::Global, ..spec };
    let wide = PredictorSpec {
        heads: Some(2048),
        neurons: Some(1024),
        input: PredictorInput::Contexts,
        normalization: Normalization::MinMax,
        ..float(DType::F16)
    };
    let standard = PredictorSpec { normalization: Normalization::Standardize, trunk: true, ..float(DType::F32) };
    let cases = [
        ("opt-66b", global(KernelSpec::opt(opt_66b, DType::F16, sm(80))), wide),
        ("opt-2.7b", KernelSpec::opt(opt_2_7b, DType::F32, sm(90)), standard),
        ("llama-70b", global(KernelSpec::llama(llama_70b, DType::F16, sm(90))), float(DType::BF16)),
        (
            "wide heads",
            KernelSpec {
                cache: DType::BF16,
                activation: Activation::GeluTanh,
                ..KernelSpec::llama(wide_heads, DType::BF16, sm(120))
            },
            predictor(),
        ),
        (
            "half cache",
            KernelSpec {
                cache: DType::F16,
                activation: Activation::Gelu,
                ..KernelSpec::opt(opt_2_7b, DType::F16, sm(100))
            },
            predictor(),
        ),
    ];
    for (name, spec, predictor) in cases {
        compile(&nvrtc, name, &Program::emit(&spec, Some(&predictor), &[]).unwrap());
    }
}

/// In the PTX, kernels load their weights by 16 bytes, through the read-only path or straight to shared memory, and never by less.
#[test]
fn weights_are_loaded_by_16_bytes() {
    let Some(nvrtc) = nvrtc() else { return };
    let shape = SHAPES.iter().find(|shape| shape.name == "opt-6.7b").unwrap();
    for sm in [80, 90] {
        let program = program(&shape.spec(DType::F16, sm));
        let ptx = compile(&nvrtc, shape.name, &program).ptx;
        for kernel in program.kernels.iter().filter(|kernel| kernel.params.iter().any(|param| param.weights)) {
            let entry = ptx.split(&format!(".entry {}(", kernel.name)).nth(1).unwrap();
            let body = entry.split(".entry ").next().unwrap();
            let loads = ["ld.global.nc.v4.u32", "cp.async.cg.shared.global"].map(|load| body.matches(load).count());
            assert!(loads.iter().sum::<usize>() >= 1, "{}", kernel.name);
            assert!(!body.contains("ld.global.nc.u16") && !body.contains("ld.global.nc.v2"), "{}", kernel.name);
        }
    }
}
