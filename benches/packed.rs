//! Dense passes over packed weights beside the same over plain ones, in turn, so that a machine that is slower for a while is so
//! for both: prompts, scored texts and single tokens.
//!
//! ```text
//! cargo bench --bench packed -- --model DIR [--threads N] [--repeats N] [--only TEXT]
//! ```

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use shadowllm::kernels::{Compute, CpuOptions};
use shadowllm::weights::{ModelSource, PackedCheckpoint};
use shadowllm::{Engine, EngineOptions, Session, SessionOptions};

fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|a| a != name).nth(1)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Times `pass`, if its label contains what `--only` says, on both sessions in turn; prints the median times and the median of their ratios.
fn compare(label: &str, repeats: usize, sessions: &mut [Session; 2], mut pass: impl FnMut(&mut Session)) {
    if argument("--only").is_some_and(|text| !label.contains(&text)) {
        return;
    }
    let mut seconds: [Vec<f64>; 2] = Default::default();
    // The first round brings everything into memory.
    for round in 0..=repeats {
        for (session, seconds) in sessions.iter_mut().zip(&mut seconds) {
            let start = Instant::now();
            pass(session);
            if round > 0 {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
    }
    let ratio = median(seconds[1].iter().zip(&seconds[0]).map(|(packed, plain)| packed / plain).collect());
    let [plain, packed] = seconds.map(|seconds| 1e3 * median(seconds));
    println!("| {label} | {plain:.2} | {packed:.2} | {ratio:.3} |");
}

fn main() {
    let Some(model) = argument("--model") else {
        println!("packed: no --model DIR given, nothing to measure");
        return;
    };
    let number = |name: &str| argument(name).map(|n| n.parse::<usize>().unwrap());
    let repeats = number("--repeats").unwrap_or(9);
    let checkpoint = ModelSource::parse(&model).unwrap().open(&()).unwrap();
    let packed = PackedCheckpoint::open_or_pack(&checkpoint, &()).unwrap();
    println!("{model}, median of {repeats} passes each");
    println!("| pass | plain, ms | packed, ms | packed / plain |");
    println!("| --- | --- | --- | --- |");
    for compute in [Compute::Bf16, Compute::F32] {
        let cpu = CpuOptions { compute, threads: number("--threads"), ..CpuOptions::default() };
        let plain = Engine::load(&checkpoint, EngineOptions { cpu }).unwrap();
        let engines = [plain.clone(), plain.over(&packed).unwrap()];
        let mut sessions = engines.map(|engine| engine.session(SessionOptions::default()).unwrap());
        let vocab = plain.config().vocab as u32;
        for n in [8, 32, 128, 512] {
            let prompt: Vec<u32> = (0..n).map(|i| (i * 7919 + 11) % vocab).collect();
            compare(&format!("prompt of {n}, {} products", compute.name()), repeats, &mut sessions, |session| {
                session.truncate(0);
                session.prefill(&prompt).unwrap();
            });
        }
        for session in &mut sessions {
            session.truncate(0);
            session.prefill(&[11; 128]).unwrap();
        }
        compare(&format!("16 tokens after 128, {} products", compute.name()), repeats, &mut sessions, |session| {
            session.truncate(128);
            (0..16).for_each(|token| {
                session.step(token).unwrap();
            });
        });
    }
}
