//! Whole tokens on a device against the masked dense model.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use shadowllm_codegen::{Activation, Biases, DType, KernelSpec, Role, Sizes};
use shadowllm_emulator::Schedule;

use support::device::{on_devices, sm};
use support::host::{Host, Random, rounded};
use support::nvrtc;
use support::oracle::{Kept, Oracle, difference};

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

on_devices! {
    fn opt_in_every_type() {
        for (dtype, bound) in [(DType::F32, 1e-5), (DType::F16, 1e-5), (DType::BF16, 1e-5)] {
            let spec = KernelSpec { kv_flush: 5, ..KernelSpec::opt(sizes([3, 72, 3, 3, 24, 100, 77, 40]), dtype, sm()) };
            decode("opt", &spec, 16, bound);
        }
    }
}

on_devices! {
    fn llama_with_shared_key_value_heads() {
        let sizes = sizes([3, 64, 8, 2, 16, 90, 120, 40]);
        let spec = KernelSpec { kv_flush: 4, ..KernelSpec::llama(sizes, DType::BF16, sm()) };
        decode("llama", &spec, 16, 1e-5);
    }
}

on_devices! {
    fn half_precision_caches() {
        let sizes = sizes([2, 64, 6, 2, 32, 50, 60, 40]);
        for cache in [DType::F16, DType::BF16] {
            let spec = KernelSpec { cache, kv_flush: 3, ..KernelSpec::llama(sizes, DType::F16, sm()) };
            // A value next to a boundary may be rounded the other way.
            decode("llama with a 16-bit cache", &spec, 9, 4e-3);
        }
    }
}

on_devices! {
    fn other_activations_and_biases() {
        for (activation, bound) in [(Activation::Gelu, 1e-5), (Activation::GeluTanh, 1e-5), (Activation::Silu, 1e-5)] {
            let sizes = sizes([2, 40, 2, 1, 8, 30, 33, 40]);
            let bias = Biases { qkv: true, out: true, ffn: true };
            let spec = KernelSpec { activation, bias, ..KernelSpec::llama(sizes, DType::F32, sm()) };
            decode("gated", &spec, 4, bound);
            let spec = KernelSpec { activation, ..KernelSpec::opt(sizes, DType::F16, sm()) };
            decode("plain", &spec, 4, bound);
        }
    }
}

on_devices! {
    fn rows_of_many_vectors() {
        let sizes = sizes([2, 2400, 2, 2, 128, 70, 40, 40]);
        decode("wide", &KernelSpec::opt(sizes, DType::BF16, sm()), 3, 1e-5);
        decode("wide, gated", &KernelSpec::llama(sizes, DType::F32, sm()), 2, 1e-5);
    }
}

/// Tokens behind a prompt of `held` positions whose keys are scaled by `size`.
fn behind_a_prompt(spec: &KernelSpec, held: usize, window: usize, size: f32, bound: f64) {
    let Some(nvrtc) = nvrtc() else { return };
    let s = spec.sizes;
    let compiled = Host::compile_with_windows(&nvrtc, spec, None, &vec![window as u32; s.layers]);
    for schedule in [Schedule::InOrder, Schedule::Reversed, Schedule::Random(3)] {
        let mut host = Host::new(&compiled, 8);
        host.device.set_schedule(schedule);
        let mut oracle = Oracle::new(spec);
        let mut random = Random(9);
        for layer in 0..s.layers {
            let mut rows = |size: f32| -> Vec<Vec<f32>> {
                let row = |random: &mut Random| {
                    (0..s.kv_heads * s.head_dim).map(|_| rounded(size * random.unit(), spec.cache)).collect()
                };
                (0..held).map(|_| row(&mut random)).collect()
            };
            let (keys, values) = (rows(size), rows(1.0));
            host.preset(Role::Keys, layer, &keys);
            host.preset(Role::Values, layer, &values);
            oracle.preset(layer, &keys, &values);
        }
        for position in held..held + 2 {
            let plan: Vec<Kept> = (0..s.layers)
                .map(|layer| {
                    let kept = if layer == 0 { s.heads } else { s.heads.div_ceil(2) };
                    (random.some(s.heads, kept), random.some(s.ffn, s.ffn / 2))
                })
                .collect();
            for (layer, (heads, neurons)) in plan.iter().enumerate() {
                host.keep(layer, heads, neurons);
            }
            host.start(5, position as u32);
            host.token();
            let expected = oracle.token(&host, 5, position, &plan, window);
            let found = difference(&host.values::<f32>(Role::Logits), &expected);
            assert!(found <= bound, "position {position}, window {window}, {schedule:?}: {found:e} over {bound:e}");
        }
    }
}

on_devices! {
    fn long_contexts_with_and_without_a_window() {
        let sizes = sizes([2, 48, 4, 2, 24, 40, 50, 1100]);
        let spec = KernelSpec::llama(sizes, DType::F16, sm());
        for (held, window) in [(1000, 0), (1000, 100), (1000, 37), (31, 32), (32, 0), (33, 1)] {
            behind_a_prompt(&spec, held, window, 1.0, 1e-5);
        }
        behind_a_prompt(&KernelSpec { cache: DType::BF16, ..spec }, 1000, 700, 1.0, 4e-3);
    }
}

on_devices! {
    fn scores_beyond_the_range_of_the_exponential() {
        let spec = KernelSpec::opt(sizes([2, 48, 3, 3, 128, 40, 50, 320]), DType::BF16, sm());
        behind_a_prompt(&spec, 300, 0, 2000.0, 1e-2);
    }
}
