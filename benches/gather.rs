//! Time against kept fraction: the gather kernels over random lists, from more memory than any cache holds, beside the ideal
//! (the same share of the time that everything takes) and beside the machine's bandwidth of the same run.
//!
//! `cargo bench --bench gather [-- --threads N] [-- --isa NAME] [-- --dtype TYPE] [-- --only TEXT]`

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use shadowllm::kernels::{
    Compute, Cpu, CpuOptions, FfnGather, ffn_gather, heads_bytes, heads_output, heads_project, linear, linear_bytes,
    read_bandwidth,
};
use shadowllm::tensor::Matrix;
use shadowllm_weights::{Activation, DType, TensorData};

/// Passes over all matrices; the fastest counts, because everything else that runs can only slow a pass down.
const PASSES: usize = 7;

const KEPT: [f64; 5] = [1.0, 0.75, 0.5, 0.25, 0.1];

fn values(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Records of `rows` rows of `cols` weights, of the type that is asked for.
fn matrix(count: usize, rows: usize, cols: usize) -> Matrix {
    let dtype = argument("--dtype").map_or(DType::BF16, |name| name.parse().unwrap());
    let values = values(count * rows * cols);
    Matrix::of_records(TensorData::from_f32_as(&[count, rows, cols], dtype, &values).unwrap()).unwrap()
}

/// Enough copies that a pass over the kept tenth of all still comes from memory.
fn copies(count: usize, rows: usize, cols: usize) -> Vec<Matrix> {
    let first = matrix(count, rows, cols);
    let more = (800usize << 20).div_ceil(first.bytes()) - 1;
    (0..more).map(|_| matrix(count, rows, cols)).chain([first]).collect()
}

/// A list of `kept * n` random units for each of `lists`, ascending.
fn lists(lists: usize, n: usize, kept: f64) -> Vec<Vec<u32>> {
    let mut state = 7u64;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    (0..lists)
        .map(|_| {
            let mut units: Vec<u32> = (0..n as u32).collect();
            let count = (kept * n as f64).round() as usize;
            for i in 0..count {
                units.swap(i, i + draw(n - i));
            }
            units.truncate(count);
            units.sort_unstable();
            units
        })
        .collect()
}

fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|a| a != name).nth(1)
}

fn seconds(pass: impl FnOnce()) -> f64 {
    let start = Instant::now();
    pass();
    start.elapsed().as_secs_f64()
}

/// Prints one line for every kept fraction; `pass` reads the units of the lists and returns the bytes. The fractions take turns,
/// so that a machine that is slower for a while is so for all of them, and so does the bandwidth.
fn table(cpu: &Cpu, label: &str, [matrices, units]: [usize; 2], pass: impl Fn(&[Vec<u32>]) -> u64 + Sync) {
    let lists = KEPT.map(|kept| lists(matrices, units, kept));
    let mut best = [(0, f64::INFINITY); KEPT.len()];
    let mut bandwidth: f64 = 0.0;
    for _ in 0..PASSES {
        for (lists, (bytes, best)) in lists.iter().zip(&mut best) {
            *best = best.min(cpu.install(|| seconds(|| *bytes = pass(black_box(lists)))));
        }
        bandwidth = bandwidth.max(read_bandwidth(cpu, 256 << 20));
    }
    println!("{label}, beside {bandwidth:.1} GB/s read by {} with {} threads", cpu.isa(), cpu.threads());
    let (all_bytes, all_seconds) = best[0];
    for (kept, (bytes, seconds)) in KEPT.into_iter().zip(best) {
        let ideal = all_seconds * bytes as f64 / all_bytes as f64;
        let rate = bytes as f64 / seconds / 1e9;
        println!(
            "  kept {kept:4}: {:.3} ms a layer, {rate:.1} GB/s, {:.0} % of the bandwidth, {:.2} x the ideal time",
            1e3 * seconds / matrices as f64,
            100.0 * rate / bandwidth,
            seconds / ideal
        );
    }
}

fn main() {
    let options = CpuOptions {
        isa: argument("--isa").map(|name| name.parse().unwrap()),
        threads: argument("--threads").map(|n| n.parse().unwrap()),
        compute: Compute::F32,
    };
    let cpu = Cpu::new(&options).unwrap();
    for (name, d, f, rows, activation) in [
        ("OPT-6.7B", 4096, 16384, 2, Activation::Relu),
        ("OPT-1.3B", 2048, 8192, 2, Activation::Relu),
        ("Llama-3.2-1B", 2048, 8192, 3, Activation::Silu),
        ("SmolLM2-135M", 576, 1536, 3, Activation::Silu),
    ] {
        ffn(&cpu, name, [d, f, rows], activation);
    }
    for (name, d, h, d_h) in [("OPT-6.7B", 4096, 32, 128), ("OPT-1.3B", 2048, 32, 64)] {
        heads(&cpu, name, [d, h, d_h]);
    }
    dense(&cpu);
}

fn ffn(cpu: &Cpu, name: &str, [d, f, rows]: [usize; 3], activation: Activation) {
    if argument("--only").is_some_and(|text| !format!("ffn {name}").contains(&text)) {
        return;
    }
    let layers = copies(f, rows, d);
    let x = values(d);
    let thresholds = vec![half_skipped(cpu, &layers[0], &x, activation); f];
    for skip in [false, true] {
        let how = match (skip, activation) {
            (false, _) => "",
            (true, Activation::Relu) => " with ReLU skip",
            (true, _) => " with gate skip of half",
        };
        let gate_thresholds = (skip && rows == 3).then_some(&thresholds[..]);
        table(cpu, &format!("ffn {name} [{f}, {rows} x {d}]{how}"), [layers.len(), f], |lists| {
            let mut out = vec![0.0; d];
            let mut bytes = 0;
            for (records, list) in layers.iter().zip(lists) {
                let spec = FfnGather { skip, gate_thresholds, ..plain(records, activation) };
                let count = ffn_gather(cpu, &spec, list, black_box(&x), &mut out);
                bytes += spec.bytes(d, count);
            }
            bytes
        });
    }
}

/// Without biases and skips.
fn plain(records: &Matrix, activation: Activation) -> FfnGather<'_> {
    let (bias, up_bias, out_bias, gate_thresholds) = (None, None, None, None);
    FfnGather { records, bias, up_bias, out_bias, activation, gate_thresholds, skip: false }
}

/// The threshold under which half of the gates are.
fn half_skipped(cpu: &Cpu, records: &Matrix, x: &[f32], activation: Activation) -> f32 {
    let (list, mut out): (Vec<u32>, _) = ((0..records.rows() as u32).collect(), vec![0.0; x.len()]);
    let (mut low, mut high) = (0.0, 1e3);
    for _ in 0..40 {
        let middle = (low + high) / 2.0;
        let thresholds = vec![middle; records.rows()];
        let spec = FfnGather { gate_thresholds: Some(&thresholds), ..plain(records, activation) };
        match 2 * ffn_gather(cpu, &spec, &list, x, &mut out).second < list.len() {
            true => high = middle,
            false => low = middle,
        }
    }
    high
}

fn heads(cpu: &Cpu, name: &str, [d, h, d_h]: [usize; 3]) {
    if argument("--only").is_some_and(|text| !format!("heads {name}").contains(&text)) {
        return;
    }
    let layers = copies(h, 2 * d_h, d);
    let x = values(d);
    let label = format!("heads {name} [{h}, 2 x {d_h}, {d}]");
    table(cpu, &label, [layers.len(), h], |lists| {
        let (mut q, mut out) = (vec![0.0; h * d_h], vec![0.0; d]);
        let mut bytes = 0;
        for (heads, list) in layers.iter().zip(lists) {
            let q = &mut q[..list.len() * d_h];
            heads_project(cpu, heads, d_h, list, None, black_box(&x), q);
            heads_output(cpu, heads, d_h, list, q, None, &mut out);
            bytes += 2 * heads_bytes(heads, list.len());
        }
        bytes
    });
}

/// The dense kernel on the same bytes, to compare with a full list.
fn dense(cpu: &Cpu) {
    for (n, k) in [(16384, 4096), (4096, 16384), (8192, 2048)] {
        let label = format!("dense linear [{n}, {k}]");
        if argument("--only").is_some_and(|text| !label.contains(&text)) {
            continue;
        }
        let matrices = copies(n, 1, k);
        let (x, mut out) = (values(k), vec![0.0; n]);
        let bytes: u64 = matrices.iter().map(|w| linear_bytes(w, 0)).sum();
        let mut pass = || matrices.iter().for_each(|w| linear(cpu, w, None, black_box(&x), &mut out));
        let (mut best, mut bandwidth) = (f64::INFINITY, 0f64);
        for _ in 0..PASSES {
            best = best.min(cpu.install(|| seconds(&mut pass)));
            bandwidth = bandwidth.max(read_bandwidth(cpu, 256 << 20));
        }
        let rate = bytes as f64 / best / 1e9;
        println!("{label}: {rate:.1} GB/s, {:.0} % of the bandwidth", 100.0 * rate / bandwidth);
    }
}
