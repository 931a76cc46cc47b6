//! The time model at the shapes that matter.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use shadowllm_codegen::report::{Gpu, Load, Prediction};
use shadowllm_codegen::{DType, Program};

use support::{SHAPES, program};

#[test]
fn half_of_opt_6_7b_takes_at_most_0_56_of_the_time() {
    let shape = SHAPES.iter().find(|shape| shape.name == "opt-6.7b").unwrap();
    for gpu in Gpu::ALL {
        let program = program(&shape.spec(DType::F16, gpu.sm));
        let at = |fraction| Prediction::of(&program, &gpu, &Load::kept(fraction, 128));
        // The dense token has no predictor.
        let plain = Program::emit(&program.spec, None, &[]).unwrap();
        let (dense, half) = (Prediction::of(&plain, &gpu, &Load::dense(128)), at(0.5));
        // 6.65e9 parameters of two bytes; the embedding is read twice, a row and as the head.
        assert!((13.0e9..13.6e9).contains(&(dense.bytes() as f64)), "{}", dense.bytes());
        let ratio = half.seconds() / dense.seconds();
        println!("{}: {ratio:.4}", gpu.name);
        assert!(ratio <= 0.56, "{}: {} s of {} s", gpu.name, half.seconds(), dense.seconds());
        assert!(half.seconds() > half.bytes() as f64 / gpu.bandwidth);
        let fractions = [0.1, 0.3, 0.5, 0.7, 0.9, 1.0];
        assert!(fractions.windows(2).all(|pair| at(pair[0]).seconds() < at(pair[1]).seconds()));
    }
}

#[test]
fn idle_neurons_and_short_contexts_cost_less() {
    let shape = SHAPES.iter().find(|shape| shape.name == "opt-1.3b").unwrap();
    let program = program(&shape.spec(DType::BF16, 90));
    let time = |load| Prediction::of(&program, &Gpu::ALL[1], &load).seconds();
    let half = Load::kept(0.5, 1000);
    assert!(time(Load { active: 0.1, ..half }) < time(half));
    assert!(time(Load { position: 10, ..half }) < time(half));
}
