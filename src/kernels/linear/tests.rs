use proptest::prelude::*;
use shadowllm_weights::{DType, TensorData};

use super::oracle::Rounding;
use super::{SAME_BITS, linear, linear_transposed, oracle};
use crate::kernels::testing::{close, cpu, matrices_in_records, matrix, on_every_isa, values};
use crate::kernels::{Compute, Cpu, IsaName};

fn dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(DType::ALL.to_vec())
}

fn run(cpu: &Cpu, w: &crate::tensor::Matrix, bias: Option<&[f32]>, x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / w.cols() * w.rows()];
    linear(cpu, w, bias, x, &mut out);
    out
}

fn agrees_with_the_oracle(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    let rows = prop_oneof![Just(1usize), 1usize..12, 12usize..140];
    let cases = (1usize..70, 1usize..300, rows, dtype(), any::<bool>(), any::<u64>());
    proptest!(ProptestConfig::with_cases(150), |((n, k, t, dtype, bias, seed) in cases)| {
        let w = matrix(seed, n, k, dtype);
        let bias = bias.then(|| values(seed ^ 1, n));
        let x = values(seed ^ 2, t * k);
        let out = run(&cpu, &w, bias.as_deref(), &x);
        close(&out, &oracle::linear(&w, bias.as_deref(), &x, Rounding::None))?;
    });
}

/// Rows that lie in records give bit for bit what they give lying together, in every regime, both ways.
fn records_change_nothing(isa: IsaName) {
    let cpus: Vec<Cpu> = [Compute::F32, Compute::Bf16].into_iter().filter_map(|compute| cpu(isa, 2, compute)).collect();
    let rows = prop_oneof![Just(1usize), 1usize..12, 12usize..140];
    let shape = (1usize..14, 1usize..14, 0usize..14, 0usize..4, 1usize..200);
    let cases = (shape, rows, dtype(), any::<bool>(), any::<u64>());
    proptest!(ProptestConfig::with_cases(120), |(((count, group, before, behind, k), t, dtype, bias, seed) in cases)| {
        let lines = before..before + group;
        let whole = matrices_in_records(seed, count, before + group + behind, lines, k, dtype);
        // From the middle of a record to the middle of another.
        let part = count * group / 4..count * group - count * group / 4;
        let part = whole.each_ref().map(|m| m.rows_range(part.clone()).unwrap());
        for [spread, own] in [whole, part] {
            let n = own.rows();
            let (x, y) = (values(seed ^ 2, t * k), values(seed ^ 3, t * n));
            let biases = [bias.then(|| values(seed ^ 1, n)), bias.then(|| values(seed ^ 4, k))];
            let [bias, transposed_bias] = biases.each_ref().map(Option::as_deref);
            for cpu in &cpus {
                prop_assert_eq!(run(cpu, &spread, bias, &x), run(cpu, &own, bias, &x));
                let [found, expected] = [&spread, &own].map(|w| run_transposed(cpu, w, transposed_bias, &y));
                prop_assert_eq!(found, expected);
            }
        }
    });
}

fn large_shapes_agree(isa: IsaName) {
    // More than one block along every dimension.
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    for (n, k, t, dtype) in [
        (205, 600, 270, DType::BF16),
        (97, 513, 300, DType::F16),
        (300, 256, 65, DType::F32),
        (97, 1413, 270, DType::I8),
    ] {
        let (w, x) = (matrix(1, n, k, dtype), values(2, t * k));
        close(&run(&cpu, &w, None, &x), &oracle::linear(&w, None, &x, Rounding::None)).unwrap();
    }
}

fn rounded_products_agree_with_the_oracle(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::Bf16) else { return };
    let cases = (1usize..30, 1usize..700, SAME_BITS - 2..90, dtype(), any::<u64>());
    proptest!(ProptestConfig::with_cases(60), |((n, k, t, dtype, seed) in cases)| {
        let (w, x) = (matrix(seed, n, k, dtype), values_of_many_sizes(seed ^ 2, t * k));
        let expected = oracle::linear(&w, None, &x, Rounding::of(&cpu, dtype, t));
        close(&run(&cpu, &w, None, &x), &expected)?;
    });
}

/// Values whose sizes differ from one stretch to the next, so that rounding with the scale of another group would be seen.
fn values_of_many_sizes(seed: u64, n: usize) -> Vec<f32> {
    values(seed, n).into_iter().enumerate().map(|(i, v)| v * 2f32.powi((i / 50 % 9) as i32 - 4)).collect()
}

fn large_rounded_shapes_agree(isa: IsaName) {
    // More than one block along every dimension, and a last one that is shorter; a bias.
    let Some(cpu) = cpu(isa, 2, Compute::Bf16) else { return };
    for (n, k, t) in [(205, 1413, 270), (97, 1024, 300), (7, 2050, 65)] {
        let (w, bias, x) = (matrix(1, n, k, DType::I8), values(3, n), values_of_many_sizes(2, t * k));
        let rounding = Rounding::of(&cpu, DType::I8, t);
        close(&run(&cpu, &w, Some(&bias), &x), &oracle::linear(&w, Some(&bias), &x, rounding)).unwrap();
        let (w, bias) = (matrix(1, k, n, DType::I8), values(3, n));
        let expected = oracle::transposed(&w, Some(&bias), &x, rounding);
        close(&run_transposed(&cpu, &w, Some(&bias), &x), &expected).unwrap();
    }
}

/// Inputs too small for a scale, weights that are all zero, and a group of zeros among others.
fn tiny_values_count_as_zero(isa: IsaName) {
    let Some(cpu) = cpu(isa, 1, Compute::Bf16) else { return };
    let (n, k, t) = (130, 200, 40);
    let zeros = TensorData::from_f32_as(&[n, k], DType::I8, &vec![0.0; n * k]).unwrap();
    let zeros = crate::tensor::Matrix::new(zeros).unwrap();
    for (w, factor) in [(zeros, 1.0), (matrix(1, n, k, DType::I8), 1e-38), (matrix(1, n, k, DType::I8), 0.0)] {
        let x: Vec<f32> = values(2, t * k).into_iter().map(|v| v * factor).collect();
        let y: Vec<f32> = values(3, t * n).into_iter().map(|v| v * factor).collect();
        assert!(run(&cpu, &w, None, &x).iter().all(|v| v.abs() < 1e-29));
        assert!(run_transposed(&cpu, &w, None, &y).iter().all(|v| v.abs() < 1e-29));
    }
    let mut x = values(2, t * k);
    x.chunks_exact_mut(k).for_each(|x| x[64..128].fill(0.0));
    let w = matrix(1, n, k, DType::I8);
    close(&run(&cpu, &w, None, &x), &oracle::linear(&w, None, &x, Rounding::of(&cpu, DType::I8, t))).unwrap();
}

fn threads_change_nothing(isa: IsaName) {
    let shapes = [(700, 300, 1), (700, 300, 3), (700, 300, 7), (500, 300, 40), (500, 300, 100)];
    for dtype in DType::ALL {
        for (n, k, t) in shapes {
            for compute in [Compute::F32, Compute::Bf16] {
                let (w, bias, x) = (matrix(3, n, k, dtype), values(4, n), values(5, t * k));
                let results = [1, 2, 3].map(|threads| {
                    cpu(isa, threads, compute)
                        .map(|cpu| run(&cpu, &w, Some(&bias), &x).into_iter().map(f32::to_bits).collect())
                });
                let [one, two, three]: [Option<Vec<u32>>; 3] = results;
                assert!(one == two && two == three, "{n} x {k}, {t} rows of {dtype}");
            }
        }
    }
}

fn few_rows_are_the_rows_one_by_one(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    for dtype in DType::ALL {
        let blocked = super::gemm_rows(&cpu, dtype);
        for t in [2, 3, 4, 5, 7, 8, 13, blocked - 1] {
            let (n, k) = (37, 203);
            let (w, x) = (matrix(6, n, k, dtype), values(7, t * k));
            let one_by_one: Vec<f32> = x.chunks_exact(k).flat_map(|x| run(&cpu, &w, None, x)).collect();
            assert_eq!(run(&cpu, &w, None, &x), one_by_one, "{t} rows");
        }
    }
}

/// A matrix without scales and one with.
fn both(seed: u64, n: usize, k: usize) -> [crate::tensor::Matrix; 2] {
    [DType::BF16, DType::I8].map(|dtype| matrix(seed, n, k, dtype))
}

fn broken_values_stay_visible(isa: IsaName) {
    for (t, compute) in [(1, Compute::F32), (5, Compute::F32), (120, Compute::F32), (120, Compute::Bf16)] {
        let Some(cpu) = cpu(isa, 1, compute) else { return };
        let (n, k) = (9, 50);
        for (w, broken) in both(8, n, k).into_iter().flat_map(|w| [(w.clone(), f32::NAN), (w, f32::INFINITY)]) {
            let mut x = values(9, t * k);
            x[(t - 1) * k + 49] = broken;
            let out = run(&cpu, &w, None, &x);
            assert!(out[(t - 1) * n..].iter().all(|v| !v.is_finite()), "{broken} was lost");
            assert!(out[..(t - 1) * n].iter().all(|v| v.is_finite()), "{broken} spread to other rows");
        }
    }
}

fn empty_operands_are_fine(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    let w = matrix(1, 5, 7, DType::F16);
    linear(&cpu, &w, None, &[], &mut []);
    let none = matrix(1, 0, 7, DType::F16);
    linear(&cpu, &none, None, &[], &mut []);
    // No inputs at all: only the bias is left.
    for t in [1, 120] {
        let mut out = vec![1.0; t * 5];
        linear(&cpu, &matrix(1, 5, 0, DType::F32), Some(&[3.0; 5]), &[], &mut out);
        assert!(out.iter().all(|&v| v == 3.0));
    }
}

fn run_transposed(cpu: &Cpu, w: &crate::tensor::Matrix, bias: Option<&[f32]>, x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / w.rows() * w.cols()];
    linear_transposed(cpu, w, bias, x, &mut out);
    out
}

fn transposed_agrees_with_the_oracle(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    let rows = prop_oneof![Just(1usize), 1usize..12, 12usize..90];
    let cases = (1usize..300, 1usize..130, rows, dtype(), any::<bool>(), any::<u64>());
    proptest!(ProptestConfig::with_cases(150), |((n, k, t, dtype, bias, seed) in cases)| {
        let w = matrix(seed, n, k, dtype);
        let bias = bias.then(|| values(seed ^ 1, k));
        let x = values(seed ^ 2, t * n);
        let out = run_transposed(&cpu, &w, bias.as_deref(), &x);
        close(&out, &oracle::transposed(&w, bias.as_deref(), &x, Rounding::None))?;
    });
}

fn large_transposed_shapes_agree(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    for (n, k, t, dtype) in [
        (600, 205, 270, DType::BF16),
        (513, 97, 300, DType::F16),
        (1025, 300, 65, DType::F32),
        (1413, 215, 270, DType::I8),
    ] {
        let (w, x) = (matrix(1, n, k, dtype), values(2, t * n));
        close(&run_transposed(&cpu, &w, None, &x), &oracle::transposed(&w, None, &x, Rounding::None)).unwrap();
    }
}

fn rounded_transposed_products_agree_with_the_oracle(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::Bf16) else { return };
    let cases = (1usize..700, 1usize..210, SAME_BITS - 2..90, dtype(), any::<u64>());
    proptest!(ProptestConfig::with_cases(60), |((n, k, t, dtype, seed) in cases)| {
        let (w, x) = (matrix(seed, n, k, dtype), values_of_many_sizes(seed ^ 2, t * n));
        let expected = oracle::transposed(&w, None, &x, Rounding::of(&cpu, dtype, t));
        close(&run_transposed(&cpu, &w, None, &x), &expected)?;
    });
}

fn threads_change_nothing_in_the_transposed(isa: IsaName) {
    for dtype in DType::ALL {
        for (n, k, t) in [(700, 300, 1), (700, 300, 3), (300, 1000, 7), (500, 300, 40), (300, 500, 100)] {
            for compute in [Compute::F32, Compute::Bf16] {
                let (w, bias, x) = (matrix(3, n, k, dtype), values(4, k), values(5, t * n));
                let results = [1, 2, 3].map(|threads| {
                    cpu(isa, threads, compute)
                        .map(|cpu| run_transposed(&cpu, &w, Some(&bias), &x).into_iter().map(f32::to_bits).collect())
                });
                let [one, two, three]: [Option<Vec<u32>>; 3] = results;
                assert!(one == two && two == three, "{n} x {k}, {t} rows of {dtype}");
            }
        }
    }
}

fn few_transposed_rows_are_the_rows_one_by_one(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    for dtype in DType::ALL {
        for t in 2..12 {
            let (n, k) = (203, 37);
            let (w, bias, x) = (matrix(6, n, k, dtype), values(8, k), values(7, t * n));
            let one_by_one: Vec<f32> =
                x.chunks_exact(n).flat_map(|x| run_transposed(&cpu, &w, Some(&bias), x)).collect();
            assert_eq!(run_transposed(&cpu, &w, Some(&bias), &x), one_by_one, "{t} rows");
        }
    }
}

fn broken_values_stay_visible_in_the_transposed(isa: IsaName) {
    for (t, compute) in [(1, Compute::F32), (5, Compute::F32), (120, Compute::F32), (120, Compute::Bf16)] {
        let Some(cpu) = cpu(isa, 1, compute) else { return };
        let (n, k) = (50, 9);
        for (w, broken) in both(8, n, k).into_iter().flat_map(|w| [(w.clone(), f32::NAN), (w, f32::INFINITY)]) {
            let mut x = values(9, t * n);
            x[(t - 1) * n + 49] = broken;
            let out = run_transposed(&cpu, &w, None, &x);
            assert!(out[(t - 1) * k..].iter().all(|v| !v.is_finite()), "{broken} was lost");
            assert!(out[..(t - 1) * k].iter().all(|v| v.is_finite()), "{broken} spread to other rows");
        }
    }
}

/// The blocked product is the same sums in the same order, whichever way a matrix is stored.
fn many_rows_are_the_same_bits_either_way(isa: IsaName) {
    for (dtype, compute) in [(DType::F16, Compute::F32), (DType::BF16, Compute::F32), (DType::BF16, Compute::Bf16)] {
        let Some(cpu) = cpu(isa, 2, compute) else { return };
        for (n, k, t) in [(205, 600, 130), (97, 513, 300), (31, 1030, 96)] {
            let (bias, x, all) = (values(1, n), values(2, t * k), values(3, n * k));
            let columns: Vec<f32> = (0..n * k).map(|i| all[i % n * k + i / n]).collect();
            let matrix = |rows, cols, values: &[f32]| {
                crate::tensor::Matrix::new(TensorData::from_f32_as(&[rows, cols], dtype, values).unwrap()).unwrap()
            };
            let straight = run(&cpu, &matrix(n, k, &all), Some(&bias), &x);
            assert!(straight == run_transposed(&cpu, &matrix(k, n, &columns), Some(&bias), &x), "{n} x {k}, {dtype}");
        }
    }
}

fn empty_transposed_operands_are_fine(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    linear_transposed(&cpu, &matrix(1, 7, 5, DType::F16), None, &[], &mut []);
    linear_transposed(&cpu, &matrix(1, 7, 0, DType::F16), None, &[], &mut []);
    // No inputs at all: only the bias is left.
    for t in [1, 5, 120] {
        let mut out = vec![1.0; t * 5];
        linear_transposed(&cpu, &matrix(1, 0, 5, DType::F32), Some(&[3.0; 5]), &[], &mut out);
        assert!(out.iter().all(|&v| v == 3.0));
    }
}

on_every_isa!(
    agrees_with_the_oracle,
    records_change_nothing,
    large_shapes_agree,
    rounded_products_agree_with_the_oracle,
    large_rounded_shapes_agree,
    tiny_values_count_as_zero,
    threads_change_nothing,
    few_rows_are_the_rows_one_by_one,
    broken_values_stay_visible,
    empty_operands_are_fine,
    transposed_agrees_with_the_oracle,
    large_transposed_shapes_agree,
    rounded_transposed_products_agree_with_the_oracle,
    threads_change_nothing_in_the_transposed,
    few_transposed_rows_are_the_rows_one_by_one,
    broken_values_stay_visible_in_the_transposed,
    empty_transposed_operands_are_fine,
    many_rows_are_the_same_bits_either_way,
);
