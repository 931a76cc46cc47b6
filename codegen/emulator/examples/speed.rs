//! How fast the emulator is on this machine: a gather GEMV of bf16 and a softmax, with all checks on.
//! `cargo run -p shadowllm-emulator --example speed`
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::time::Instant;

use shadowllm_emulator::{Arg, Counters, Device, Error};

const ROWS: usize = 512;
const COLUMNS: usize = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut device = Device::new();
    let module = device.load(&std::fs::read_to_string(folder.join("row_dot.sm_90.ptx"))?)?;
    let weights = device.alloc_from("weights", &vec![0x3f80u16; ROWS * COLUMNS]);
    let x = device.alloc_from("x", &vec![0.5f32; COLUMNS]);
    device.set_read_only(weights, true)?;
    device.set_read_only(x, true)?;
    let list = device.alloc_from("list", &(0..ROWS as i32).rev().collect::<Vec<_>>());
    let count = device.alloc_from("count", &[ROWS as i32]);
    let out = device.alloc("out", ROWS * 4);
    let mut args = [weights, x, list, count, out].map(Arg::Buffer).to_vec();
    args.push(Arg::I32(COLUMNS as i32));
    let grid = [ROWS as u32 / 4, 1, 1];
    let seconds = measure("gather GEMV, bf16", || device.launch(&module, "row_dot_bf16", grid, [128, 1, 1], 0, &args))?;
    println!("{:>30.1} M weights/s", (ROWS * COLUMNS) as f64 / seconds / 1e6);

    let module = device.load(&std::fs::read_to_string(folder.join("softmax.sm_90.ptx"))?)?;
    let scores = device.alloc_from("scores", &vec![0.25f32; 64 * 2048]);
    let out = device.alloc("out", 64 * 2048 * 4);
    let args = [Arg::Buffer(scores), Arg::Buffer(out), Arg::I32(2048)];
    measure("softmax, races watched", || device.launch(&module, "softmax", [64, 1, 1], [256, 1, 1], 0, &args))?;
    Ok(())
}

/// Seconds of the fastest of five runs.
fn measure(name: &str, mut run: impl FnMut() -> Result<Counters, Error>) -> Result<f64, Error> {
    let (mut best, mut instructions) = (f64::INFINITY, 0);
    for _ in 0..5 {
        let start = Instant::now();
        instructions = run()?.lane_instructions;
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("{name:<25} {:>8.1} M lane instructions/s", instructions as f64 / best / 1e6);
    Ok(best)
}
