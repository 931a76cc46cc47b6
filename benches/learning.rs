//! What gradients cost: a text scored forward, and the same text forward and back, in turn.
//!
//! ```text
//! cargo bench --bench learning -- --model DIR [--threads N] [--repeats N]
//! ```

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::time::Instant;

use shadowllm::kernels::{Compute, CpuOptions};
use shadowllm::learn::{BackwardWorkspace, LayerRecord, LayerVisitor, Loss, backward};
use shadowllm::weights::ModelSource;
use shadowllm::{Engine, EngineOptions, SessionOptions};

fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|a| a != name).nth(1)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Looks at nothing.
struct Ignore;

impl LayerVisitor for Ignore {
    fn layer(&mut self, _: &LayerRecord<'_>) -> shadowllm::Result<()> {
        Ok(())
    }
}

fn main() {
    let Some(model) = argument("--model") else {
        println!("learning: no --model DIR given, nothing to measure");
        return;
    };
    let number = |name: &str| argument(name).map(|n| n.parse::<usize>().unwrap());
    let repeats = number("--repeats").unwrap_or(7);
    let checkpoint = ModelSource::parse(&model).unwrap().open(&()).unwrap();
    println!("{model}, median of {repeats} texts each");
    println!(
        "| tokens, products | forward, ms | forward and backward, ms | backward / forward | memory of backward, MiB |"
    );
    println!("| --- | --- | --- | --- | --- |");
    for compute in [Compute::Bf16, Compute::F32] {
        let cpu = CpuOptions { compute, threads: number("--threads"), ..CpuOptions::default() };
        let engine = Engine::load(&checkpoint, EngineOptions { cpu }).unwrap();
        let mut session = engine.session(SessionOptions::default()).unwrap();
        let vocab = engine.config().vocab as u32;
        for n in [128, 512, 1024] {
            let text: Vec<u32> = (0..n).map(|i| (i * 7919 + 11) % vocab).collect();
            let mut work = BackwardWorkspace::new();
            let mut seconds: [Vec<f64>; 2] = Default::default();
            // The first round brings everything into memory.
            for round in 0..=repeats {
                let start = Instant::now();
                session.truncate(0);
                session.score(&text, 0, &mut |_, _| ControlFlow::Continue(())).unwrap();
                let forward = start.elapsed().as_secs_f64();
                let start = Instant::now();
                backward(engine.cpu(), engine.model(), &text, &Loss::sum(), &mut work, &mut Ignore).unwrap();
                let both = start.elapsed().as_secs_f64();
                if round > 0 {
                    seconds[0].push(forward);
                    seconds[1].push(both);
                }
            }
            let ratio = median(seconds[1].iter().zip(&seconds[0]).map(|(both, f)| (both - f) / f).collect());
            let [forward, both] = seconds.map(|seconds| 1e3 * median(seconds));
            let memory = work.bytes() >> 20;
            println!("| {n}, {} | {forward:.1} | {both:.1} | {ratio:.2} | {memory} |", compute.name());
        }
    }
}
