//! Prompts on a device against the dense model, token by token.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use shadowllm_codegen::{Activation, Biases, DType, KernelSpec, PROMPT_TOKENS, Role, Sizes};
use shadowllm_emulator::Schedule;

use support::device::{on_devices, sm};
use support::host::{Host, Random, rounded};
use support::nvrtc;
use support::oracle::{Kept, Oracle, difference};

/// How prompts are checked: their lengths, one behind the other on one sequence, and tokens of a block.
struct Case {
    lengths: &'static [usize],
    most: usize,
    window: usize,
    /// Largest relative difference of a logit.
    bound: f64,
}

fn check(name: &str, spec: &KernelSpec, case: &Case) {
    let Some(nvrtc) = nvrtc() else { return };
    let s = spec.sizes;
    let compiled = Host::compile_with_windows(&nvrtc, spec, None, &vec![case.window as u32; s.layers]);
    let mut host = Host::new(&compiled, 1);
    let (mut oracle, mut random, mut held) = (Oracle::new(spec), Random(3), 0);
    let all: Kept = ((0..s.heads as u32).collect(), (0..s.ffn as u32).collect());
    let plan = vec![all; s.layers];
    let schedules = [Schedule::Random(5), Schedule::InOrder, Schedule::Reversed];
    for (&length, schedule) in case.lengths.iter().zip(schedules.into_iter().cycle()) {
        host.device.set_schedule(schedule);
        let tokens: Vec<u32> = (0..length).map(|_| random.below(s.vocab) as u32).collect();
        host.try_prompt(&tokens, held, case.most).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut expected = Vec::new();
        for (position, &token) in (held..).zip(&tokens) {
            expected = oracle.token(&host, token, position, &plan, case.window);
        }
        held += length;
        let logits = host.values::<f32>(Role::Logits);
        let found = difference(&logits, &expected);
        assert!(found <= case.bound, "{name}, {length} tokens up to {held}, {schedule:?}: {found:e}");
        let best = logits.iter().enumerate().fold(0, |best, (i, v)| if *v > logits[best] { i } else { best });
        assert_eq!(host.values::<u32>(Role::State), [best as u32, held as u32, 0, 0]);
        assert!(host.values::<u32>(Role::Watermarks).iter().all(|&mark| mark as usize == held));
    }
    // A decoded token behind it finds all keys and values.
    let token = host.values::<u32>(Role::State)[0];
    host.token();
    let expected = oracle.token(&host, token, held, &plan, case.window);
    let found = difference(&host.values::<f32>(Role::Logits), &expected);
    assert!(found <= case.bound, "{name}, the token behind {held}: {found:e}");
}

fn sizes([layers, hidden, heads, kv_heads, head_dim, ffn, vocab, context]: [usize; 8]) -> Sizes {
    Sizes { layers, hidden, heads, kv_heads, head_dim, ffn, vocab, context }
}

/// Nearly as exact as `f32`: 16 bits of an activation that is multiplied.
const BRAIN: f64 = 1e-4;
const EXACT: f64 = 1e-5;

on_devices! {
    fn opt_in_every_type() {
        for (dtype, bound) in [(DType::F32, EXACT), (DType::F16, EXACT), (DType::BF16, BRAIN)] {
            let spec = KernelSpec::opt(sizes([2, 72, 3, 3, 24, 101, 77, 80]), dtype, sm());
            check("opt", &spec, &Case { lengths: &[1, 7, 16, 33], most: PROMPT_TOKENS, window: 0, bound });
        }
    }

    fn llama_with_shared_key_value_heads() {
        let spec = KernelSpec::llama(sizes([2, 136, 6, 2, 40, 90, 120, 80]), DType::BF16, sm());
        check("llama", &spec, &Case { lengths: &[5, 17, 50], most: PROMPT_TOKENS, window: 0, bound: BRAIN });
        let spec = KernelSpec { dtype: DType::F32, ..spec };
        check("llama", &spec, &Case { lengths: &[35], most: 16, window: 0, bound: EXACT });
    }

    fn several_blocks() {
        let spec = KernelSpec::llama(sizes([2, 64, 4, 2, 16, 70, 60, 200]), DType::F16, sm());
        check("blocks", &spec, &Case { lengths: &[150], most: PROMPT_TOKENS, window: 0, bound: EXACT });
        check("windows", &spec, &Case { lengths: &[3, 70], most: 29, window: 20, bound: EXACT });
    }

    fn wide_rows_and_other_variants() {
        let bias = Biases { qkv: true, out: true, ffn: true };
        let wide = KernelSpec::opt(sizes([2, 320, 2, 2, 160, 270, 40, 40]), DType::F16, sm());
        check("wide", &wide, &Case { lengths: &[9], most: PROMPT_TOKENS, window: 0, bound: EXACT });
        let spec = KernelSpec { bias, ..KernelSpec::llama(sizes([1, 64, 2, 1, 32, 50, 40, 40]), DType::BF16, sm()) };
        let spec = KernelSpec { activation: Activation::GeluTanh, ..spec };
        check("biases", &spec, &Case { lengths: &[20], most: PROMPT_TOKENS, window: 0, bound: BRAIN });
        for cache in [DType::F16, DType::BF16] {
            // A value next to a boundary may be rounded the other way.
            let spec = KernelSpec { cache, ..spec.clone() };
            check("half cache", &spec, &Case { lengths: &[20], most: PROMPT_TOKENS, window: 0, bound: 4e-3 });
        }
    }

    fn scores_beyond_the_range_of_the_exponential() {
        let Some(nvrtc) = nvrtc() else { return };
        let spec = KernelSpec::opt(sizes([1, 48, 2, 2, 64, 40, 50, 120]), DType::F16, sm());
        let compiled = Host::compile(&nvrtc, &spec, None);
        let (mut host, mut oracle, mut random) = (Host::new(&compiled, 8), Oracle::new(&spec), Random(9));
        let mut rows = |size: f32| -> Vec<Vec<f32>> {
            (0..60).map(|_| (0..128).map(|_| rounded(size * random.unit(), spec.cache)).collect()).collect()
        };
        let (keys, values) = (rows(2000.0), rows(1.0));
        host.preset(Role::Keys, 0, &keys);
        host.preset(Role::Values, 0, &values);
        oracle.preset(0, &keys, &values);
        host.try_prompt(&[7; 40], 60, PROMPT_TOKENS).unwrap();
        let plan: Vec<Kept> = vec![((0..2).collect(), (0..40).collect())];
        let mut expected = Vec::new();
        (60..100).for_each(|position| expected = oracle.token(&host, 7, position, &plan, 0));
        let found = difference(&host.values::<f32>(Role::Logits), &expected);
        assert!(found <= 1e-2, "{found:e}");
    }
}
