//! Whole tokens on the emulated device against the masked dense model.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use shadowllm_codegen::{Activation, Biases, DType, KernelSpec, Role, Sizes, Sm};
use shadowllm_emulator::Schedule;

use support::host::{Host, Random};
use support::nvrtc;
use support::oracle::{Kept, Oracle, difference};

fn sm80() -> Sm {
    Sm::new(80).unwrap()
}

/// Decodes tokens over random plans and compares the logits of each.
fn decode(name: &str, spec: &KernelSpec, tokens: usize, bound: f64) {
    let Some(nvrtc) = nvrtc() else { return };
    let compiled = Host::compile(&nvrtc, spec, None);
    for schedule in [Schedule::InOrder, Schedule::Reversed, Schedule::Random(5)] {
        let mut host = Host::new(&compiled, 1);
        host.device.set_schedule(schedule);
        let mut oracle = Oracle::new(spec);
        let mut random = Random(2);
        let s = spec.sizes;
        let mut greedy = None;
        for position in 0..tokens {
            let plan: Vec<Kept> = (0..s.layers)
                .map(|layer| {
                    // Layer 0 keeps everything; the others anything from nothing to everything.
                    let (heads, neurons) = match (layer, position % 4) {
                        (0, _) | (_, 3) => (s.heads, s.ffn),
                        (1, 1) => (0, 0),
                        (_, 2) => (1, 1),
                        _ => (random.below(s.heads + 1), random.below(s.ffn + 1)),
                    };
                    (random.some(s.heads, heads), random.some(s.ffn, neurons))
                })
                .collect();
            for (layer, (heads, neurons)) in plan.iter().enumerate() {
                host.keep(layer, heads, neurons);
            }
            let token = match greedy {
                Some(token) if position % 3 == 1 => token,
                _ => {
                    let token = random.below(s.vocab) as u32;
                    host.start(token, position as u32);
                    token
                }
            };
            host.token();
            let expected = oracle.token(&host, token, position, &plan, 0);
            let logits = host.values::<f32>(Role::Logits);
            let found = difference(&logits, &expected);
            assert!(found <= bound, "{name}, position {position}, {schedule:?}: {found:e} over {bound:e}");
            let best =
                logits.iter().enumerate().fold(0, |best, (i, v)| if *v > logits[best] { i } else { best }) as u32;
            assert_eq!(host.values::<u32>(Role::State), [best, position as u32 + 1, 0, 0]);
            assert_eq!(host.values::<u32>(Role::Tokens)[position + 1], best);
            greedy = Some(best);
        }
    }
}

fn sizes([layers, hidden, heads, kv_heads, head_dim, ffn, vocab, context]: [usize; 8]) -> Sizes {
    Sizes { layers, hidden, heads, kv_heads, head_dim, ffn, vocab, context }
}

#[test]
fn opt_in_every_type() {
    for (dtype, bound) in [(DType::F32, 1e-5), (DType::F16, 1e-5), (DType::BF16, 1e-5)] {
        let spec = KernelSpec { kv_flush: 5, ..KernelSpec::opt(sizes([3, 72, 3, 3, 24, 100, 77, 40]), dtype, sm80()) };
        decode("opt", &spec, 16, bound);
    }
}

#[test]
fn llama_with_shared_key_value_heads() {
    let sizes = sizes([3, 64, 8, 2, 16, 90, 120, 40]);
    let spec = KernelSpec { kv_flush: 4, ..KernelSpec::llama(sizes, DType::BF16, sm80()) };
    decode("llama", &spec, 16, 1e-5);
}

#[test]
fn half_precision_caches() {
    let sizes = sizes([2, 64, 6, 2, 32, 50, 60, 40]);
    for cache in [DType::F16, DType::BF16] {
        let spec = KernelSpec { cache, kv_flush: 3, ..KernelSpec::llama(sizes, DType::F16, sm80()) };
        // A value next to a boundary may be rounded the other way.
        decode("llama with a 16-bit cache", &spec, 9, 4e-3);
    }
}

#[test]
fn other_activations_and_biases() {
    for (activation, bound) in [(Activation::Gelu, 1e-5), (Activation::GeluTanh, 1e-5), (Activation::Silu, 1e-5)] {
        let sizes = sizes([2, 40, 2, 1, 8, 30, 33, 40]);
        let bias = Biases { qkv: true, out: true, ffn: true };
        let spec = KernelSpec { activation, bias, ..KernelSpec::llama(sizes, DType::F32, sm80()) };
        decode("gated", &spec, 4, bound);
        let spec = KernelSpec { activation, ..KernelSpec::opt(sizes, DType::F16, sm80()) };
        decode("plain", &spec, 4, bound);
    }
}

#[test]
fn rows_of_many_vectors() {
    let sizes = sizes([2, 2400, 2, 2, 128, 70, 40, 40]);
    decode("wide", &KernelSpec::opt(sizes, DType::BF16, sm80()), 3, 1e-5);
    decode("wide, gated", &KernelSpec::llama(sizes, DType::F32, sm80()), 2, 1e-5);
}
