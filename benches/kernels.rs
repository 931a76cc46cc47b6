//! Every kernel on every instruction set of this processor, with the bytes that it reads and writes per iteration; products of many rows
//! with their operations, by which they are bound.
//!
//! `cargo bench --bench kernels [-- --quick] [-- FILTER]`. Small operands stay in the caches: this finds regressions of a
//! kernel; `roofline` and `gather` measure against memory.

#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shadowllm::kernels::{
    AdamW, AttentionPass, AttentionShape, Compute, Cpu, CpuOptions, FfnGather, GatherCount, IsaName, RopeTable,
    activate, activate_backward, add_assign, argmax, attention, attention_backward, attention_bytes, attention_gather,
    attention_gather_bytes, attention_recorded, bias_gradient, cross_entropy_backward, embed_row, ffn_gather,
    ffn_gather_batch, gated, gated_backward, heads_bytes, heads_output, heads_output_batch, heads_project,
    heads_project_batch, kv_project, kv_project_bytes, layer_norm, layer_norm_backward, linear, linear_bytes,
    linear_transposed, log_sum_exp, rms_norm, rms_norm_backward, rope, rope_backward, softmax, weight_gradient,
};
use shadowllm::model::random::Shape;
use shadowllm::sparsity::predictor::{
    HiddenActivation, Normalization, PredictorInput, PredictorScratch, Training, Wanted, WeightFormat,
};
use shadowllm::sparsity::{ModelIdentity, Predictor, PredictorInfo, Scores, Units};
use shadowllm::tensor::Matrix;
use shadowllm_weights::{Activation, DType, ModelConfig, Rope, RopeScaling, TensorData};

fn values(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Records of `rows` rows of `cols` weights.
fn records(count: usize, rows: usize, cols: usize, dtype: DType) -> Matrix {
    let values = values(count * rows * cols);
    Matrix::of_records(TensorData::from_f32_as(&[count, rows, cols], dtype, &values).unwrap()).unwrap()
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

fn matrix(rows: usize, cols: usize, dtype: DType) -> Matrix {
    Matrix::new(TensorData::from_f32_as(&[rows, cols], dtype, &values(rows * cols)).unwrap()).unwrap()
}

/// Every second unit.
fn half(n: usize) -> Vec<u32> {
    (0..n as u32).step_by(2).collect()
}

/// Sequences of the batched kernels.
const SEQUENCES: usize = 4;

/// The FFN of SmolLM2 over half of its neurons, and all four ways to read less.
fn ffn_gathers(c: &mut Criterion) {
    let (d, f) = (576, 1536);
    let (x, list) = (values(SEQUENCES * d), half(f));
    let thresholds = vec![0.02; f];
    let mut group = c.benchmark_group("ffn_gather");
    for dtype in DType::ALL {
        let [plain, three] = [2, 3].map(|rows| records(f, rows, d, dtype));
        for (name, records, activation, skip, gate_thresholds) in [
            ("plain", &plain, Activation::Relu, false, None),
            ("plain, ReLU skip", &plain, Activation::Relu, true, None),
            ("gated", &three, Activation::Silu, false, None),
            ("gated, gate skip", &three, Activation::Silu, false, Some(&thresholds[..])),
        ] {
            let (bias, up_bias, out_bias) = (None, None, None);
            let spec = FfnGather { records, bias, up_bias, out_bias, activation, gate_thresholds, skip };
            for cpu in contexts(Compute::F32) {
                let mut out = vec![0.0; SEQUENCES * d];
                let count = ffn_gather(&cpu, &spec, &list, &x[..d], &mut out[..d]);
                group.throughput(Throughput::Bytes(spec.bytes(d, count)));
                group.bench_function(format!("{}-{dtype}/{name}", cpu.isa()), |b| {
                    b.iter(|| ffn_gather(&cpu, &spec, &list, black_box(&x[..d]), &mut out[..d]));
                });
                let (specs, lists) = ([spec; SEQUENCES], [&list[..]; SEQUENCES]);
                let mut counts = [GatherCount::default(); SEQUENCES];
                let read = ffn_gather_batch(&cpu, &specs, &lists, &x, &mut out, &mut counts);
                group.throughput(Throughput::Bytes(spec.bytes(d, read)));
                group.bench_function(format!("{}-{dtype}/{name}, {SEQUENCES} sequences", cpu.isa()), |b| {
                    b.iter(|| ffn_gather_batch(&cpu, &specs, &lists, black_box(&x), &mut out, &mut counts));
                });
            }
        }
    }
}

/// Half of 32 heads of 64 over a model width of 2048: queries, outputs, and keys and values of one head.
fn head_gathers(c: &mut Criterion) {
    let (d, heads, width) = (2048, 32, 64);
    let (x, list) = (values(16 * d), half(heads));
    let lists = [&list[..]; SEQUENCES];
    let contexts_of = values(SEQUENCES * list.len() * width);
    let mut group = c.benchmark_group("head_gather");
    for dtype in DType::ALL {
        let records = records(heads, 2 * width, d, dtype);
        for cpu in contexts(Compute::F32) {
            let name = |what: &str| format!("{}-{dtype}/{what}", cpu.isa());
            let mut q = vec![0.0; SEQUENCES * list.len() * width];
            let (one, mut out) = (list.len() * width, vec![0.0; SEQUENCES * d]);
            group.throughput(Throughput::Bytes(heads_bytes(&records, list.len())));
            group.bench_function(name("project"), |b| {
                b.iter(|| heads_project(&cpu, &records, width, &list, None, black_box(&x[..d]), &mut q[..one]));
            });
            group.bench_function(name("project, 4 sequences"), |b| {
                b.iter(|| heads_project_batch(&cpu, &records, width, &lists, None, black_box(&x[..4 * d]), &mut q));
            });
            group.bench_function(name("output"), |b| {
                let own = &contexts_of[..one];
                b.iter(|| heads_output(&cpu, &records, width, &list, black_box(own), None, &mut out[..d]));
            });
            group.bench_function(name("output, 4 sequences"), |b| {
                b.iter(|| heads_output_batch(&cpu, &records, width, &lists, black_box(&contexts_of), None, &mut out));
            });
            for t in [1, 16] {
                let (mut keys, mut values) = (vec![0.0; t * width], vec![0.0; t * width]);
                group.throughput(Throughput::Bytes(kv_project_bytes(&records, t)));
                group.bench_function(name(&format!("keys and values of {t} positions")), |b| {
                    let x = &x[..t * d];
                    b.iter(|| {
                        kv_project(&cpu, &records, width, 3, None, None, black_box(x), &mut keys, &mut values);
                    });
                });
            }
        }
    }
}

/// Attention over kept heads, with the logarithms of its sums, and back.
fn attention_variants(c: &mut Criterion) {
    let shape = AttentionShape { heads: 9, kv_heads: 3, head_dim: 64, window: None, scale: 0.125 };
    let (capacity, row, kv_row) = (256, 9 * 64, 3 * 64);
    let (k, v, q) = (values(3 * capacity * 64), values(3 * capacity * 64), values(capacity * row));
    let (list, all) = (half(9), capacity * row);
    let mut group = c.benchmark_group("attention_variants");
    for cpu in contexts(Compute::F32) {
        let isa = cpu.isa();
        let (mut out, mut log_sums) = (vec![0.0; all], vec![0.0; capacity * 9]);
        group.throughput(Throughput::Bytes(attention_gather_bytes(&shape, &list, capacity - 1)));
        group.bench_function(format!("{isa}/gather"), |b| {
            let width = list.len() * 64;
            b.iter(|| {
                let (q, out) = (&q[..width], &mut out[..width]);
                attention_gather(&cpu, &shape, &list, black_box(q), &k, &v, capacity, capacity - 1, out);
            });
        });
        group.throughput(Throughput::Bytes(attention_bytes(&shape, 0, capacity)));
        group.bench_function(format!("{isa}/recorded"), |b| {
            b.iter(|| {
                attention_recorded(&cpu, &shape, black_box(&q), &k, &v, capacity, &mut out, &mut log_sums);
            });
        });
        let (mut dq, mut dk, mut dv) = (vec![0.0; all], vec![0.0; capacity * kv_row], vec![0.0; capacity * kv_row]);
        let (out, log_sums) = (out.clone(), log_sums.clone());
        let pass = AttentionPass { shape, q: &q, k: &k, v: &v, capacity, out: &out, log_sums: &log_sums };
        group.bench_function(format!("{isa}/backward"), |b| {
            b.iter(|| attention_backward(&cpu, &pass, black_box(&q), &mut dq, &mut dk, &mut dv));
        });
    }
}

/// Products with the transposed matrix, and what training makes of gradients.
fn gradients(c: &mut Criterion) {
    let (t, n, k) = (32, 1536, 576);
    let (x, dy) = (values(t * k), values(t * n));
    let mut group = c.benchmark_group("gradient");
    for cpu in contexts(Compute::F32) {
        let isa = cpu.isa();
        for dtype in DType::ALL {
            let w = matrix(n, k, dtype);
            for t in [1, t] {
                let mut dx = vec![0.0; t * k];
                group.throughput(match t {
                    1 => Throughput::Bytes(linear_bytes(&w, t)),
                    _ => Throughput::Elements((2 * n * k * t) as u64),
                });
                group.bench_function(format!("{isa}/linear_transposed {dtype}, {t} rows"), |b| {
                    b.iter(|| linear_transposed(&cpu, &w, None, black_box(&dy[..t * n]), &mut dx));
                });
            }
        }
        let (w, mut dw, mut db) = (values(n * k), vec![0.0; n * k], vec![0.0; n]);
        group.throughput(Throughput::Elements((2 * n * k * t) as u64));
        group.bench_function(format!("{isa}/weight_gradient"), |b| {
            b.iter(|| weight_gradient(&cpu, [t, n, k], black_box(&dy), &x, &mut dw));
        });
        group.throughput(Throughput::Bytes(4 * (t * n) as u64));
        group.bench_function(format!("{isa}/bias_gradient"), |b| {
            b.iter(|| bias_gradient(&cpu, black_box(&dy), &mut db));
        });
        let settings = AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };
        let (mut w, mut first, mut second) = (w, vec![0.0; n * k], vec![1.0; n * k]);
        // Four arrays read, three written.
        group.throughput(Throughput::Bytes(28 * (n * k) as u64));
        group.bench_function(format!("{isa}/adamw"), |b| {
            b.iter(|| settings.step(&cpu, 1, 1.0, black_box(&dw), &mut w, &mut first, &mut second));
        });
    }
}

/// The way back through what works row by row; bytes are of the arrays read and written.
fn row_gradients(c: &mut Criterion) {
    let (d, vocab) = (2048, 49152);
    let (x, dy, weight) = (values(d), values(d), values(d));
    let table = RopeTable::new(&Rope { theta: 10_000.0, scaling: RopeScaling::None }, 64);
    let logits = values(vocab);
    let mut group = c.benchmark_group("row_gradient");
    for cpu in contexts(Compute::F32) {
        let isa = cpu.isa();
        let (mut dx, mut up) = (values(d), values(d));
        group.throughput(Throughput::Bytes(20 * d as u64));
        group.bench_function(format!("{isa}/layer_norm"), |b| {
            b.iter(|| layer_norm_backward(&cpu, black_box(&x), d, Some(&weight), 1e-5, &dy, &mut dx));
        });
        group.bench_function(format!("{isa}/rms_norm"), |b| {
            b.iter(|| rms_norm_backward(&cpu, black_box(&x), &weight, 1e-5, &dy, &mut dx));
        });
        group.throughput(Throughput::Bytes(8 * d as u64));
        group.bench_function(format!("{isa}/rope"), |b| {
            b.iter(|| rope_backward(&cpu, black_box(&mut dx), d / 64, 64, &table, 100));
        });
        group.throughput(Throughput::Bytes(12 * d as u64));
        for activation in [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
            group.bench_function(format!("{isa}/{activation:?}"), |b| {
                b.iter(|| {
                    dx.copy_from_slice(&dy);
                    activate_backward(&cpu, activation, black_box(&x), &mut dx);
                });
            });
        }
        group.throughput(Throughput::Bytes(20 * d as u64));
        group.bench_function(format!("{isa}/gated Silu"), |b| {
            b.iter(|| {
                dx.copy_from_slice(&x);
                up.copy_from_slice(&weight);
                gated_backward(&cpu, Activation::Silu, black_box(&dy), &mut dx, &mut up);
            });
        });
        let (mut row, mut losses) = (logits.clone(), [0.0]);
        group.throughput(Throughput::Bytes(8 * vocab as u64));
        group.bench_function(format!("{isa}/cross_entropy"), |b| {
            b.iter(|| {
                row.copy_from_slice(&logits);
                cross_entropy_backward(&cpu, black_box(&mut row), &[7], 1.0, &mut losses);
            });
        });
    }
    // The same on every instruction set.
    group.throughput(Throughput::Bytes(4 * vocab as u64));
    group.bench_function("argmax", |b| b.iter(|| argmax(black_box(&logits))));
}

/// Scores of all units of the OPT-125M shape by 64 hidden units.
fn predictors(c: &mut Criterion) {
    let shape: Shape = "opt-125m".parse().unwrap();
    let config = ModelConfig::from_json(&serde_json::to_vec(&shape.config_json(DType::BF16)).unwrap()).unwrap();
    let info = PredictorInfo {
        model: ModelIdentity::from("bench".to_owned()),
        stations: vec![0],
        input: PredictorInput::Residual,
        normalization: Normalization::None,
        activation: HiddenActivation::Relu,
        criterion: "none: random weights".into(),
        training: Training::default(),
        validated: Vec::new(),
    };
    let (x, wanted) = (values(config.hidden), Wanted { heads: true, neurons: true });
    let mut group = c.benchmark_group("predict");
    for format in WeightFormat::ALL {
        let predictor = Predictor::random(info.clone(), &config, [64, 64], format, 1, 1).unwrap();
        group.throughput(Throughput::Bytes(predictor.bytes(wanted)));
        for cpu in contexts(Compute::F32) {
            let (mut scratch, mut scores) = (PredictorScratch::default(), Scores::zeros(Units::from(&config)));
            group.bench_function(format!("{}-{}", cpu.isa(), format.name()), |b| {
                b.iter(|| predictor.predict(&cpu, 0, black_box(&x), wanted, &mut scratch, &mut scores).unwrap());
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

criterion_group!(
    benches,
    linears,
    attentions,
    rows,
    ffn_gathers,
    head_gathers,
    attention_variants,
    gradients,
    row_gradients,
    predictors
);
criterion_main!(benches);
