//! Every kernel on every instruction set of this processor, with bytes or operations per iteration.
//!
//! `cargo bench --bench kernels [-- --quick] [-- FILTER]`. Small operands stay in the caches: this finds regressions of a
//! kernel; `roofline` measures against memory.

#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shadowllm::kernels::{
    AttentionShape, Compute, Cpu, CpuOptions, IsaName, RopeTable, activate, add_assign, attention, attention_bytes,
    embed_row, gated, layer_norm, linear, linear_bytes, log_sum_exp, rms_norm, rope, softmax,
};
use shadowllm::tensor::Matrix;
use shadowllm_weights::{Activation, DType, Rope, RopeScaling, TensorData};

fn values(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// One context per instruction set, on one thread.
fn contexts(compute: Compute) -> Vec<Cpu> {
    let context = |isa| Cpu::new(&CpuOptions { isa: Some(isa), threads: Some(1), compute }).unwrap();
    IsaName::available().map(context).collect()
}

fn linears(c: &mut Criterion) {
    let (n, k) = (1536, 576);
    let mut group = c.benchmark_group("linear");
    for dtype in DType::ALL {
        let w = Matrix::new(TensorData::from_f32_as(&[n, k], dtype, &values(n * k)).unwrap()).unwrap();
        for (products, compute, rows) in [("f32", Compute::F32, &[1, 4, 16, 128][..]), ("bf16", Compute::Bf16, &[128])]
        {
            for cpu in contexts(compute) {
                for &t in rows {
                    let (x, mut out) = (values(t * k), vec![0.0; t * n]);
                    group.throughput(match t {
                        1 => Throughput::Bytes(linear_bytes(&w, t)),
                        _ => Throughput::Elements((2 * n * k * t) as u64),
                    });
                    let id = BenchmarkId::new(format!("{}-{dtype}-{products}", cpu.isa()), t);
                    group.bench_function(id, |b| b.iter(|| linear(&cpu, &w, None, black_box(&x), &mut out)));
                }
            }
        }
    }
}

fn attentions(c: &mut Criterion) {
    let shape = AttentionShape { heads: 9, kv_heads: 3, head_dim: 64, window: None, scale: 0.125 };
    let (capacity, row) = (1024, 9 * 64);
    let (k, v) = (values(3 * capacity * 64), values(3 * capacity * 64));
    let mut group = c.benchmark_group("attention");
    for cpu in contexts(Compute::F32) {
        for t in [1, 64] {
            let (q, mut out) = (values(t * row), vec![0.0; t * row]);
            let start = capacity - t;
            group.throughput(Throughput::Bytes(attention_bytes(&shape, start, t)));
            group.bench_function(BenchmarkId::new(cpu.isa().name(), t), |b| {
                b.iter(|| attention(&cpu, &shape, black_box(&q), &k, &v, capacity, start, &mut out));
            });
        }
    }
}

fn rows(c: &mut Criterion) {
    let d = 2048;
    let (x, y) = (values(d), values(d));
    let table = RopeTable::new(&Rope { theta: 10_000.0, scaling: RopeScaling::None }, 64);
    let embeddings = Matrix::new(TensorData::from_f32_as(&[4, d], DType::BF16, &values(4 * d)).unwrap()).unwrap();
    let mut group = c.benchmark_group("row");
    group.throughput(Throughput::Bytes(4 * d as u64));
    for cpu in contexts(Compute::F32) {
        let isa = cpu.isa();
        let mut out = values(d);
        group.bench_function(format!("{isa}/layer_norm"), |b| {
            b.iter(|| layer_norm(&cpu, black_box(&x), Some(&y), Some(&y), 1e-5, &mut out));
        });
        group.bench_function(format!("{isa}/rms_norm"), |b| {
            b.iter(|| rms_norm(&cpu, black_box(&x), &y, 1e-5, &mut out))
        });
        group.bench_function(format!("{isa}/rope"), |b| {
            b.iter(|| rope(&cpu, black_box(&mut out), d / 64, 64, &table, 100))
        });
        group.bench_function(format!("{isa}/softmax"), |b| b.iter(|| softmax(&cpu, black_box(&mut out))));
        group.bench_function(format!("{isa}/log_sum_exp"), |b| b.iter(|| log_sum_exp(&cpu, black_box(&x))));
        group.bench_function(format!("{isa}/embed_row"), |b| {
            b.iter(|| embed_row(&cpu, &embeddings, 3, black_box(&mut out)))
        });
        group.bench_function(format!("{isa}/add_assign"), |b| {
            b.iter(|| {
                out.fill(0.0);
                add_assign(&cpu, black_box(&mut out), &y);
            });
        });
        for activation in [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
            group.bench_function(format!("{isa}/{activation:?}"), |b| {
                b.iter(|| {
                    out.copy_from_slice(&x);
                    activate(&cpu, activation, black_box(&mut out));
                });
            });
        }
        group.bench_function(format!("{isa}/gated Silu"), |b| {
            b.iter(|| {
                out.copy_from_slice(&x);
                gated(&cpu, Activation::Silu, black_box(&mut out), &y);
            });
        });
    }
}

criterion_group!(benches, linears, attentions, rows);
criterion_main!(benches);
