//! Golden snapshots: the text of every named shape, and the launches of a token.

#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Write;

use shadowllm_codegen::{Arg, DType, Program};

use support::{SHAPES, program};

/// The kernels of a program without the prelude.
fn kernels(program: &Program) -> String {
    let mut text = format!("// {}\n", program.spec.name());
    for kernel in &program.kernels {
        let (grid, threads, shared) = (kernel.grid, kernel.threads, kernel.shared);
        let launch = format!("// <<<({}, {}), {threads}, {shared}>>>", grid[0], grid[1]);
        write!(text, "\n{launch}\n{}", kernel.source).unwrap();
    }
    text
}

/// Launches of layer 0 and outside of layers, one per line.
fn launches(program: &Program) -> String {
    let mut text = String::new();
    for launch in program.token.iter().filter(|launch| launch.layer.is_none_or(|layer| layer == 0)) {
        let kernel = &program.kernels[launch.kernel];
        writeln!(text, "{} <<<{:?}, {}>>>", kernel.name, launch.grid, kernel.threads).unwrap();
        for (param, arg) in kernel.params.iter().zip(&launch.args) {
            let value = match arg {
                Arg::Buffer { buffer, offset } => format!("{:?} + {offset}", program.buffers[*buffer].role),
                Arg::U32(value) => value.to_string(),
            };
            writeln!(text, "    {} = {value}", param.name).unwrap();
        }
    }
    text
}

#[test]
fn text_of_every_shape() {
    for shape in SHAPES {
        insta::assert_snapshot!(shape.name, kernels(&program(&shape.spec(DType::BF16, 80))));
    }
}

#[test]
fn prelude_of_both_families() {
    for shape in SHAPES.iter().filter(|shape| ["opt-125m", "smollm2-135m"].contains(&shape.name)) {
        let program = program(&shape.spec(DType::F16, 90));
        insta::assert_snapshot!(format!("prelude-{}", shape.name), program.prelude);
    }
}

#[test]
fn launches_of_a_token() {
    for shape in SHAPES.iter().filter(|shape| ["opt-125m", "smollm2-135m"].contains(&shape.name)) {
        insta::assert_snapshot!(format!("launches-{}", shape.name), launches(&program(&shape.spec(DType::BF16, 80))));
    }
}

#[test]
fn the_same_spec_gives_the_same_text_without_holes() {
    for shape in SHAPES {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let text = program(&shape.spec(dtype, 90)).source();
            assert_eq!(text, program(&shape.spec(dtype, 90)).source());
            assert!(!text.contains('$') && !text.contains("#include"), "{}", shape.name);
        }
    }
}
