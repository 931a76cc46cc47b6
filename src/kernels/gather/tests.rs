mod batch;

use proptest::prelude::*;
use shadowllm_weights::{Activation, DType, TensorData};

use super::pieces::{LEAST, MOST};
use super::streams::STREAMS;
use super::{
    FfnGather, GatherCount, ffn_gather, heads_bytes, heads_output, heads_project, kv_project, kv_project_bytes,
};
use crate::kernels::linear::oracle;
use crate::kernels::testing::{close, cpu, matrix, on_every_isa, records, values, widened};
use crate::kernels::{
    AttentionShape, Compute, Cpu, IsaName, activate, attention, attention_gather, attention_gather_bytes, gated, linear,
};
use crate::tensor::Matrix;

fn made(rows: usize, cols: usize, dtype: DType, values: &[f32]) -> Matrix {
    Matrix::new(TensorData::from_f32_as(&[rows, cols], dtype, values).unwrap()).unwrap()
}

/// Rows `part` of every record, records being `parts` times `width` rows of `d`: the dense matrix they came from.
fn unpacked(records: &Matrix, d: usize, [part, parts, width]: [usize; 3]) -> Matrix {
    let lines = records.view_bytes().chunks_exact(width * records.dtype().row_bytes(d));
    let part: Vec<u8> = lines.skip(part).step_by(parts).flatten().copied().collect();
    Matrix::new(TensorData::from_bytes(&[records.rows() * width, d], records.dtype(), &part).unwrap()).unwrap()
}

/// The same values the other way, in the type that holds all of them.
fn transposed(w: &Matrix) -> Matrix {
    let (rows, cols, from) = (w.rows(), w.cols(), widened(w));
    let to: Vec<f32> = (0..rows * cols).map(|i| from[i % rows * cols + i / rows]).collect();
    made(cols, rows, DType::F32, &to)
}

/// Every unit of `0..n` with probability `kept`.
fn random_list(seed: u64, n: usize, kept: f32) -> Vec<u32> {
    values(seed, n).iter().zip(0..).filter(|&(v, _)| (v + 1.0) / 2.0 <= kept).map(|(_, i)| i).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// The sum over `n` listed rows in `f64` and its bound: a chain of additions in a piece, then the pieces and the bias.
fn bound(n: usize, w: &Matrix, bias: Option<&[f32]>, x: &[f32]) -> Vec<(f64, f64)> {
    let exact = oracle::linear(w, bias, x, oracle::Rounding::None);
    let sizes = oracle::linear(
        &made(w.rows(), w.cols(), DType::F32, &widened(w).iter().map(|v| v.abs()).collect::<Vec<_>>()),
        bias.map(|b| b.iter().map(|v| v.abs()).collect::<Vec<_>>()).as_deref(),
        &x.iter().map(|v| v.abs()).collect::<Vec<_>>(),
        oracle::Rounding::None,
    );
    let factor = ((2 * LEAST).max(n / MOST + STREAMS) + MOST + 2) as f64 * f64::from(f32::EPSILON);
    exact.into_iter().zip(sizes).map(|((value, _), (size, _))| (value, factor * size)).collect()
}

/// One random FFN and an input.
#[derive(Debug)]
struct Ffn {
    records: Matrix,
    biases: Option<[Vec<f32>; 3]>,
    activation: Activation,
    /// `[F]`
    gate_thresholds: Option<Vec<f32>>,
    skip: bool,
    x: Vec<f32>,
}

impl Ffn {
    fn new(seed: u64, [f, d, rows]: [usize; 3], dtype: DType, activation: Activation) -> Self {
        let biases = Some([values(seed ^ 1, f), values(seed ^ 2, f), values(seed ^ 3, d)]);
        let records = records(seed, f, rows, d, dtype);
        Ffn { records, biases, activation, gate_thresholds: None, skip: false, x: values(seed ^ 4, d) }
    }

    fn rows(&self) -> usize {
        self.records.cols() / self.x.len()
    }

    fn run(&self, cpu: &Cpu, list: &[u32]) -> (Vec<f32>, GatherCount) {
        let mut out = vec![f32::NAN; self.x.len()];
        let [bias, up_bias, out_bias] = match &self.biases {
            Some(biases) => biases.each_ref().map(|bias| Some(bias.as_slice())),
            None => [None; 3],
        };
        let Ffn { ref records, ref gate_thresholds, activation, skip, .. } = *self;
        let gate_thresholds = gate_thresholds.as_deref();
        let spec = FfnGather { records, bias, up_bias, out_bias, activation, gate_thresholds, skip };
        let count = ffn_gather(cpu, &spec, list, &self.x, &mut out);
        (out, count)
    }

    /// Inner values by the dense kernels, `[F]`, 0 where not listed or below the threshold; and how many of the listed are
    /// neither idle under ReLU nor below the threshold.
    fn masked(&self, cpu: &Cpu, list: &[u32]) -> (Vec<f32>, usize) {
        let (d, f, rows) = (self.x.len(), self.records.rows(), self.rows());
        let bias = |i: usize| self.biases.as_ref().map(|biases| biases[i].as_slice());
        let product = |part: usize| {
            let mut out = vec![0.0; f];
            linear(cpu, &unpacked(&self.records, d, [part, rows, 1]), bias(part), &self.x, &mut out);
            out
        };
        let (mut inner, mut first) = (product(0), product(0));
        activate(cpu, self.activation, &mut first);
        match rows {
            2 => activate(cpu, self.activation, &mut inner),
            _ => gated(cpu, self.activation, &mut inner, &product(1)),
        }
        let mut counted = 0;
        for i in 0..f {
            let listed = list.contains(&(i as u32));
            let below = rows == 3 && self.gate_thresholds.as_ref().is_some_and(|t| first[i].abs() < t[i]);
            let idle = self.skip && self.activation == Activation::Relu && first[i] == 0.0;
            if !listed || below {
                inner[i] = 0.0;
            }
            counted += usize::from(listed && !below && !idle);
        }
        (inner, counted)
    }

    /// The masked dense result in `f64`, with the bound stated at `ffn_gather`.
    fn expected(&self, inner: &[f32], n: usize) -> Vec<(f64, f64)> {
        let (d, rows) = (self.x.len(), self.rows());
        let down = transposed(&unpacked(&self.records, d, [rows - 1, rows, 1]));
        let out_bias = self.biases.as_ref().map(|biases| biases[2].as_slice());
        bound(n, &down, out_bias, inner)
    }
}

fn ffn() -> impl Strategy<Value = (Ffn, Vec<u32>)> {
    let activation =
        prop::sample::select(vec![Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu]);
    let shape = (1usize..300, 1usize..90, 2usize..4);
    let how = (prop::option::of(0f32..1.2), any::<bool>(), any::<bool>());
    let kept = prop_oneof![Just(0f32), Just(1f32), 0f32..1.0];
    (shape, prop::sample::select(DType::ALL.to_vec()), activation, how, kept, any::<u64>()).prop_map(
        |((f, d, rows), dtype, activation, (largest, skip, biased), kept, seed)| {
            let mut ffn = Ffn::new(seed, [f, d, rows], dtype, activation);
            ffn.biases = ffn.biases.filter(|_| biased);
            ffn.skip = skip;
            ffn.gate_thresholds = largest.map(|t| values(seed ^ 6, f).iter().map(|v| t * v.abs()).collect());
            (ffn, random_list(seed ^ 5, f, kept))
        },
    )
}

fn ffn_is_the_masked_dense_ffn(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    proptest!(ProptestConfig::with_cases(150), |((ffn, list) in ffn())| {
        let (out, count) = ffn.run(&cpu, &list);
        let (inner, counted) = ffn.masked(&cpu, &list);
        close(&out, &ffn.expected(&inner, list.len()))?;
        prop_assert_eq!(count, GatherCount { first: list.len(), second: counted });
    });
}

fn long_lists_agree(isa: IsaName) {
    // More than one block a piece, and records of more than one vector.
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    for (f, d, rows) in [(5000, 37, 2), (4500, 20, 3)] {
        let ffn = Ffn::new(7, [f, d, rows], DType::BF16, Activation::Silu);
        let list = random_list(8, f, 0.95);
        let (inner, _) = ffn.masked(&cpu, &list);
        close(&ffn.run(&cpu, &list).0, &ffn.expected(&inner, list.len())).unwrap();
    }
}

fn skipping_idle_neurons_changes_nothing(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    proptest!(ProptestConfig::with_cases(100), |((mut ffn, list) in ffn())| {
        (ffn.activation, ffn.gate_thresholds, ffn.skip) = (Activation::Relu, None, false);
        let (all, count) = ffn.run(&cpu, &list);
        prop_assert_eq!(count.second, list.len());
        ffn.skip = true;
        let (some, count) = ffn.run(&cpu, &list);
        prop_assert!(all == some, "not the same values");
        prop_assert_eq!(count.second, ffn.masked(&cpu, &list).1);
    });
}

/// What is not to be read is NaN, and nothing changes.
fn nothing_else_is_read(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    for dtype in DType::ALL {
        for rows in [2, 3] {
            let (f, d) = (200, 70);
            let mut ffn = Ffn::new(11, [f, d, rows], dtype, Activation::Relu);
            ffn.skip = true;
            ffn.gate_thresholds = (rows == 3).then(|| values(13, f));
            let list = random_list(12, f, 0.5);
            let expected = bits(&ffn.run(&cpu, &list).0);
            let (inner, counted) = ffn.masked(&cpu, &list);
            assert!(counted > 0 && counted < list.len());
            let mut records = ffn.records.view_bytes().to_vec();
            let line = dtype.row_bytes(d);
            for (i, record) in records.chunks_exact_mut(rows * line).enumerate() {
                // All bits: NaN of every type, and of the scales.
                match list.contains(&(i as u32)) {
                    false => record.fill(0xff),
                    true if inner[i] == 0.0 => record[line..].fill(0xff),
                    true => {}
                }
            }
            ffn.records = Matrix::of_records(TensorData::from_bytes(&[f, rows, d], dtype, &records).unwrap()).unwrap();
            assert_eq!(bits(&ffn.run(&cpu, &list).0), expected);
        }
    }
}

/// With a second half of ones and one neuron, the output is the inner value itself.
fn inner_values_are_those_of_the_dense_kernels(isa: IsaName) {
    let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
    for activation in [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
        for rows in [2, 3] {
            let (f, d) = (40, 101);
            let mut ffn = Ffn::new(13, [f, d, rows], DType::F16, activation);
            let mut records = widened(&ffn.records);
            records.chunks_exact_mut(rows * d).for_each(|record| record[(rows - 1) * d..].fill(1.0));
            ffn.records = made(f, rows * d, DType::F16, &records);
            ffn.biases.as_mut().unwrap()[2].fill(0.0);
            let all: Vec<u32> = (0..f as u32).collect();
            let inner = ffn.masked(&cpu, &all).0;
            for i in all {
                assert!(ffn.run(&cpu, &[i]).0.iter().all(|v| *v == inner[i as usize]), "{activation:?} {rows} {i}");
            }
        }
    }
}

fn threads_and_earlier_calls_change_nothing(isa: IsaName) {
    [DType::BF16, DType::I8].into_iter().for_each(|dtype| threads_change_nothing(isa, dtype));
}

fn threads_change_nothing(isa: IsaName, dtype: DType) {
    let mut seen: Option<Vec<Vec<u32>>> = None;
    for threads in [1, 2, 3] {
        let Some(cpu) = cpu(isa, threads, Compute::F32) else { return };
        let mut results = Vec::new();
        for (rows, kept, skip) in [(2, 1.0, false), (2, 0.4, true), (3, 0.6, false)] {
            let mut ffn = Ffn::new(17, [3000, 200, rows], dtype, Activation::Relu);
            ffn.skip = skip;
            let list = random_list(18, 3000, kept);
            let first = bits(&ffn.run(&cpu, &list).0);
            ffn.run(&cpu, &[1, 5]);
            assert_eq!(bits(&ffn.run(&cpu, &list).0), first);
            results.push(first);
        }
        let heads = records(19, 12, 2 * 64, 200, dtype);
        let list = random_list(20, 12, 0.7);
        let mut contexts = vec![f32::NAN; list.len() * 64];
        heads_project(&cpu, &heads, 64, &list, None, &values(21, 200), &mut contexts);
        let mut out = vec![f32::NAN; 200];
        heads_output(&cpu, &heads, 64, &list, &contexts, None, &mut out);
        let (mut keys, mut values_) = (vec![f32::NAN; 5 * 64], vec![f32::NAN; 5 * 64]);
        kv_project(&cpu, &heads, 64, 3, None, None, &values(22, 5 * 200), &mut keys, &mut values_);
        results.extend([bits(&contexts), bits(&out), bits(&keys), bits(&values_)]);
        assert!(seen.as_ref().is_none_or(|seen| *seen == results), "{threads} threads");
        seen = Some(results);
    }
}

fn broken_values_stay_visible(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    for rows in [2, 3] {
        for activation in [Activation::Relu, Activation::Silu] {
            for dtype in [DType::BF16, DType::I8] {
                let mut ffn = Ffn::new(23, [100, 50, rows], dtype, activation);
                (ffn.skip, ffn.gate_thresholds) = (true, Some(vec![0.1; 100]));
                ffn.x[49] = f32::NAN;
                let (out, count) = ffn.run(&cpu, &[3, 70]);
                assert!(out.iter().all(|v| v.is_nan()) && count.second == 2);
            }
        }
    }
    let heads = matrix(24, 2, 2 * 16 * 50, DType::BF16);
    let mut contexts = values(25, 32);
    contexts[31] = f32::NAN;
    let mut out = vec![0.0; 50];
    heads_output(&cpu, &heads, 16, &[0, 1], &contexts, None, &mut out);
    assert!(out.iter().all(|v| v.is_nan()));
}

fn an_empty_list_gives_the_bias(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    let mut ffn = Ffn::new(27, [10, 33, 2], DType::F32, Activation::Gelu);
    let (out, count) = ffn.run(&cpu, &[]);
    assert_eq!((out, count), (ffn.biases.as_ref().unwrap()[2].clone(), GatherCount::default()));
    ffn.biases = None;
    assert_eq!(ffn.run(&cpu, &[]).0, [0.0; 33]);
    let (heads, bias, mut out) = (matrix(28, 3, 2 * 4 * 33, DType::F16), values(29, 33), vec![f32::NAN; 33]);
    heads_project(&cpu, &heads, 4, &[], None, &bias, &mut []);
    heads_output(&cpu, &heads, 4, &[], &[], Some(&bias), &mut out);
    assert_eq!(out, bias);
    kv_project(&cpu, &heads, 4, 2, None, None, &[], &mut [], &mut []);
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8, window: None, scale: 1.0 };
    attention_gather(&cpu, &shape, &[], &[], &[0.0; 64], &[0.0; 64], 4, 3, &mut []);
}

fn head_widths() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![12usize, 16, 20, 64, 80, 128])
}

fn heads_are_the_masked_dense_projections(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    let dtype = prop::sample::select(DType::ALL.to_vec());
    let cases = (1usize..10, head_widths(), 1usize..90, dtype, any::<bool>(), 0f32..1.3, any::<u64>());
    proptest!(ProptestConfig::with_cases(80), |((h, d_h, d, dtype, biased, kept, seed) in cases)| {
        let heads = records(seed, h, 2 * d_h, d, dtype);
        let list = random_list(seed ^ 1, h, kept);
        let places = |x: &[f32]| -> Vec<f32> {
            list.iter().flat_map(|&h| x[h as usize * d_h..][..d_h].to_vec()).collect()
        };
        // Queries: the same bits.
        let (x, bias) = (values(seed ^ 2, d), biased.then(|| values(seed ^ 3, h * d_h)));
        let mut out = vec![f32::NAN; list.len() * d_h];
        heads_project(&cpu, &heads, d_h, &list, bias.as_deref(), &x, &mut out);
        let mut dense = vec![f32::NAN; h * d_h];
        linear(&cpu, &unpacked(&heads, d, [0, 2, d_h]), bias.as_deref(), &x, &mut dense);
        prop_assert_eq!(bits(&out), bits(&places(&dense)));
        // Output: contexts of the others are 0.
        let mut contexts = values(seed ^ 4, h * d_h);
        for (i, context) in contexts.chunks_exact_mut(d_h).enumerate() {
            if !list.contains(&(i as u32)) {
                context.fill(0.0);
            }
        }
        let (listed, bias) = (places(&contexts), biased.then(|| values(seed ^ 5, d)));
        let mut out = vec![f32::NAN; d];
        heads_output(&cpu, &heads, d_h, &list, &listed, bias.as_deref(), &mut out);
        let wo = transposed(&unpacked(&heads, d, [1, 2, d_h]));
        close(&out, &bound(list.len() * d_h, &wo, bias.as_deref(), &contexts))?;
    });
}

fn keys_and_values_are_the_dense_rows(isa: IsaName) {
    for compute in [Compute::F32, Compute::Bf16] {
        let (Some(cpu), Some(exact)) = (cpu(isa, 2, compute), cpu(isa, 1, Compute::F32)) else { return };
        let dtype = prop::sample::select(DType::ALL.to_vec());
        let rows = prop_oneof![1usize..9, 40usize..140];
        let cases = (1usize..4, head_widths(), 1usize..90, rows, dtype, any::<bool>(), any::<u64>());
        proptest!(ProptestConfig::with_cases(30), |((h, d_h, d, n, dtype, biased, seed) in cases)| {
            let weights = records(seed, h, 2 * d_h, d, dtype);
            let x = values(seed ^ 1, n * d);
            let biases = [2, 3].map(|i| biased.then(|| values(seed ^ i, h * d_h)));
            let head = seed as usize % h;
            let mut outs = [vec![f32::NAN; n * d_h], vec![f32::NAN; n * d_h]];
            let [keys, others] = &mut outs;
            let [key_bias, value_bias] = biases.each_ref().map(|bias| bias.as_deref());
            kv_project(&cpu, &weights, d_h, head, key_bias, value_bias, &x, keys, others);
            for (i, out) in outs.iter().enumerate() {
                let w = unpacked(&weights, d, [i, 2, d_h]);
                for (x, out) in x.chunks_exact(d).zip(out.chunks_exact(d_h)) {
                    let mut dense = vec![f32::NAN; h * d_h];
                    linear(&exact, &w, biases[i].as_deref(), x, &mut dense);
                    prop_assert_eq!(bits(out), bits(&dense[head * d_h..][..d_h]));
                }
            }
        });
    }
}

fn listed_heads_attend_as_all_do(isa: IsaName) {
    let window = prop::option::of(1usize..400);
    let cases = (1usize..4, 1usize..7, head_widths(), window, 0usize..700, 0f32..1.3, 1usize..4, any::<u64>());
    if cpu(isa, 1, Compute::F32).is_none() {
        return;
    }
    let cpus = [1, 2, 3].map(|threads| cpu(isa, threads, Compute::F32).unwrap());
    proptest!(ProptestConfig::with_cases(60), |((kv_heads, group, d, window, position, kept, threads, seed) in cases)| {
        let (heads, capacity) = (kv_heads * group, position + 2);
        let shape = AttentionShape { heads, kv_heads, head_dim: d, window, scale: 0.3 };
        let list = random_list(seed, heads, kept);
        let q = values(seed ^ 1, heads * d);
        let cache = |seed| values(seed, kv_heads * capacity * d);
        let (mut k, mut v) = (cache(seed ^ 2), cache(seed ^ 3));
        let mut all = vec![f32::NAN; heads * d];
        attention(&cpus[0], &shape, &q, &k, &v, capacity, position, &mut all);
        // Keys and values that no listed head uses are not read.
        for (i, (k, v)) in k.chunks_exact_mut(capacity * d).zip(v.chunks_exact_mut(capacity * d)).enumerate() {
            if !list.iter().any(|&h| h as usize / group == i) {
                k.fill(f32::NAN);
                v.fill(f32::NAN);
            }
        }
        let places = |x: &[f32]| -> Vec<f32> { list.iter().flat_map(|&h| x[h as usize * d..][..d].to_vec()).collect() };
        let mut out = vec![f32::NAN; list.len() * d];
        attention_gather(&cpus[threads - 1], &shape, &list, &places(&q), &k, &v, capacity, position, &mut out);
        prop_assert_eq!(bits(&out), bits(&places(&all)));
    });
}

on_every_isa!(
    ffn_is_the_masked_dense_ffn,
    long_lists_agree,
    skipping_idle_neurons_changes_nothing,
    nothing_else_is_read,
    inner_values_are_those_of_the_dense_kernels,
    threads_and_earlier_calls_change_nothing,
    broken_values_stay_visible,
    an_empty_list_gives_the_bias,
    heads_are_the_masked_dense_projections,
    keys_and_values_are_the_dense_rows,
    listed_heads_attend_as_all_do,
);

#[test]
fn bytes_count_what_was_read() {
    let ffn = |rows: usize| Ffn::new(1, [9, 8, rows], DType::BF16, Activation::Relu);
    let count = GatherCount { first: 7, second: 3 };
    let bytes = |ffn: &Ffn| {
        let spec = FfnGather {
            records: &ffn.records,
            bias: None,
            up_bias: None,
            out_bias: None,
            activation: ffn.activation,
            gate_thresholds: ffn.gate_thresholds.as_deref(),
            skip: true,
        };
        spec.bytes(8, count)
    };
    assert_eq!(bytes(&ffn(2)), (7 + 3) * 8 * 2);
    assert_eq!(bytes(&ffn(3)), (7 + 2 * 3) * 8 * 2);
    let gated = Ffn { gate_thresholds: Some(vec![0.5; 9]), ..ffn(3) };
    assert_eq!(bytes(&gated), (7 + 2 * 3) * 8 * 2 + 7 * 4);
    let heads = matrix(1, 5, 2 * 4 * 8, DType::F32);
    assert_eq!((heads_bytes(&heads, 3), kv_project_bytes(&heads, 64)), (3 * 4 * 8 * 4, 2 * 4 * 8 * 4));
    assert_eq!([0, 65].map(|tokens| kv_project_bytes(&heads, tokens)), [0, 2 * 2 * 4 * 8 * 4]);
    // With scales: 8 values and a scale are 16 bytes.
    let int8 = records(1, 5, 2 * 4, 8, DType::I8);
    assert_eq!((heads_bytes(&int8, 3), kv_project_bytes(&int8, 64)), (3 * 4 * 16, 2 * 4 * 16));
    let int8 = Ffn::new(1, [9, 8, 3], DType::I8, Activation::Relu);
    assert_eq!(bytes(&int8), (7 + 2 * 3) * 16);
    let shape = AttentionShape { heads: 6, kv_heads: 3, head_dim: 8, window: None, scale: 1.0 };
    assert_eq!(attention_gather_bytes(&shape, &[2, 3, 5], 9), 2 * 2 * 10 * 8 * 4);
}

#[test]
#[should_panic(expected = "the scales of these records belong to rows of 12, not of 6")]
fn records_with_the_scales_of_others_are_refused() {
    let cpu = cpu(IsaName::Portable, 1, Compute::F32).unwrap();
    let mut ffn = Ffn::new(1, [3, 6, 2], DType::I8, Activation::Relu);
    ffn.records = matrix(1, 3, 12, DType::I8);
    ffn.run(&cpu, &[0]);
}

#[test]
#[should_panic(expected = "the list names head 6 of 6")]
fn a_head_that_does_not_exist_is_named() {
    let cpu = cpu(IsaName::Portable, 1, Compute::F32).unwrap();
    let shape = AttentionShape { heads: 6, kv_heads: 3, head_dim: 2, window: None, scale: 1.0 };
    attention_gather(&cpu, &shape, &[6], &[0.0; 2], &[0.0; 6], &[0.0; 6], 1, 0, &mut [0.0; 2]);
}

#[test]
#[should_panic(expected = "records of 12 are neither 2 nor 3 rows of 5")]
fn records_of_another_width_are_refused() {
    let cpu = cpu(IsaName::Portable, 1, Compute::F32).unwrap();
    let mut ffn = Ffn::new(1, [3, 6, 2], DType::F32, Activation::Relu);
    ffn.biases = None;
    ffn.x.truncate(5);
    ffn.run(&cpu, &[0]);
}
