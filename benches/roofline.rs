//! Kernels against the machine, in one run: first what the machine can do (read bandwidth, peak multiply-add rate), then every
//! phase's kernel as a share of that. Shares hold on a noisy machine where absolute times do not.
//!
//! `cargo bench --bench roofline [-- --threads N] [-- --isa NAME]`

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use shadowllm::kernels::{
    AttentionShape, Compute, Cpu, CpuOptions, attention, attention_bytes, linear, linear_bytes, peak_flops,
    read_bandwidth,
};
use shadowllm::tensor::{Buffer, Matrix};
use shadowllm_weights::{DType, TensorData};

/// Fastest of `repeats` runs, in seconds.
fn best(repeats: usize, mut f: impl FnMut()) -> f64 {
    let time = |f: &mut dyn FnMut()| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..repeats).map(|_| time(&mut f)).fold(f64::INFINITY, f64::min)
}

fn values(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Values in memory such as a key/value cache has.
fn aligned(n: usize) -> Buffer {
    let mut buffer = Buffer::zeros(n);
    buffer.copy_from_slice(&values(n));
    buffer
}

fn matrix(rows: usize, cols: usize, dtype: DType) -> Matrix {
    Matrix::new(TensorData::from_f32_as(&[rows, cols], dtype, &values(rows * cols)).unwrap()).unwrap()
}

/// Enough copies of a matrix that a pass over all comes from memory, not from a cache.
fn copies(rows: usize, cols: usize, dtype: DType) -> Vec<Matrix> {
    let bytes = rows * dtype.row_bytes(cols);
    (0..(400usize << 20).div_ceil(bytes)).map(|_| matrix(rows, cols, dtype)).collect()
}

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|a| a != name);
    arguments.nth(1)
}

/// Whether a line is wanted: `--only TEXT` keeps those that contain the text.
fn wanted(label: &str) -> bool {
    argument("--only").is_none_or(|text| label.contains(&text))
}

/// What the machine can do.
struct Machine {
    /// GB/s
    bandwidth: f64,
    /// GFLOP/s
    peak: f64,
}

impl Machine {
    fn bytes(&self, label: &str, bytes: u64, seconds: f64) {
        let rate = bytes as f64 / seconds / 1e9;
        println!("{label}: {rate:.1} GB/s, {:.0} % of the bandwidth", 100.0 * rate / self.bandwidth);
    }

    fn operations(&self, label: &str, operations: usize, seconds: f64) {
        let rate = operations as f64 / seconds / 1e9;
        println!("{label}: {rate:.0} GFLOP/s, {:.0} % of the f32 peak", 100.0 * rate / self.peak);
    }
}

fn main() {
    let options = CpuOptions {
        isa: argument("--isa").map(|name| name.parse().unwrap()),
        threads: argument("--threads").map(|n| n.parse().unwrap()),
        compute: Compute::F32,
    };
    let cpu = Cpu::new(&options).unwrap();
    let rounded = Cpu::new(&CpuOptions { compute: Compute::Bf16, ..options }).unwrap();
    let machine = Machine { bandwidth: read_bandwidth(&cpu, 512 << 20), peak: peak_flops(&cpu) };
    let Machine { bandwidth, peak } = machine;
    println!("{} with {} threads: reads {bandwidth:.1} GB/s, peak {peak:.0} GFLOP/s f32", cpu.isa(), cpu.threads());
    few_rows(&cpu, &machine);
    many_rows(&cpu, "f32", &machine);
    many_rows(&rounded, "bf16", &machine);
    attention_rows(&cpu, &machine);
}

fn few_rows(cpu: &Cpu, machine: &Machine) {
    for dtype in [DType::BF16, DType::F16, DType::F32, DType::I8] {
        for (n, k) in [(8192, 2048), (2048, 8192), (2048, 2048), (50272, 2048), (576, 576), (1536, 576)] {
            let label = |t| format!("linear {dtype} [{n}, {k}], {t} rows from memory");
            let rows = [1, 2, 4, 8].into_iter().filter(|&t| wanted(&label(t))).collect::<Vec<_>>();
            if rows.is_empty() {
                continue;
            }
            let matrices = copies(n, k, dtype);
            let bytes = matrices.iter().map(|w| linear_bytes(w, 0)).sum();
            for t in rows {
                let (x, mut out) = (values(t * k), vec![0.0; t * n]);
                let pass = || matrices.iter().for_each(|w| linear(cpu, w, None, black_box(&x), &mut out));
                machine.bytes(&label(t), bytes, cpu.install(|| best(5, pass)));
            }
        }
    }
}

fn many_rows(cpu: &Cpu, products: &str, machine: &Machine) {
    for dtype in [DType::BF16, DType::F16, DType::F32, DType::I8] {
        for (n, k) in [(8192, 2048), (2048, 8192), (576, 576)] {
            let w = matrix(n, k, dtype);
            for t in [8, 16, 32, 48, 64, 80, 128, 512] {
                let label = format!("linear {dtype} [{n}, {k}], {t} rows, {products} products");
                if wanted(&label) {
                    let (x, mut out) = (values(t * k), vec![0.0; t * n]);
                    let pass = || linear(cpu, &w, None, black_box(&x), &mut out);
                    machine.operations(&label, 2 * n * k * t, cpu.install(|| best(9, pass)));
                }
            }
        }
    }
}

fn attention_rows(cpu: &Cpu, machine: &Machine) {
    for (heads, kv_heads, head_dim) in [(32, 32, 64), (32, 8, 128), (9, 3, 64)] {
        let shape = AttentionShape { heads, kv_heads, head_dim, window: None, scale: 0.1 };
        let capacity = 1024;
        let size = kv_heads * capacity * head_dim;
        let row = heads * head_dim;
        let q = values(capacity * row);
        let mut out = vec![0.0; capacity * row];
        let label = |t| format!("attention {heads}/{kv_heads} x {head_dim}, context 1024, {t} rows");
        if wanted(&label(1)) {
            let caches: Vec<_> =
                (0..(200usize << 20).div_ceil(8 * size)).map(|_| (aligned(size), aligned(size))).collect();
            let pass = || {
                for (k, v) in &caches {
                    attention(cpu, &shape, black_box(&q[..row]), k, v, capacity, capacity - 1, &mut out[..row]);
                }
            };
            let bytes = caches.len() as u64 * attention_bytes(&shape, capacity - 1, 1);
            machine.bytes(&label(1), bytes, cpu.install(|| best(7, pass)));
        }
        for t in [128, 1024] {
            if wanted(&label(t)) {
                let (k, v) = (aligned(size), aligned(size));
                let start = capacity - t;
                let (q, out) = (&q[..t * row], &mut out[..t * row]);
                let pass = || attention(cpu, &shape, black_box(q), &k, &v, capacity, start, out);
                let pairs: usize = (0..t).map(|i| start + i + 1).sum();
                machine.operations(&label(t), 4 * pairs * heads * head_dim, cpu.install(|| best(9, pass)));
            }
        }
    }
}
