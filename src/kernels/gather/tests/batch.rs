//! Batches give every sequence the bits that it has alone, and read what any of them lists, once.

use super::*;
use crate::kernels::gather::{MOST_SEQUENCES, ffn_gather_batch, heads_output_batch, heads_project_batch};

/// Lists of several sequences, from empty to full, some of them alike.
fn lists(seed: u64, n: usize, kept: &[f32]) -> Vec<Vec<u32>> {
    kept.iter().enumerate().map(|(i, &kept)| random_list(seed ^ (i as u64 / 2), n, kept)).collect()
}

fn kept() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(prop_oneof![Just(0f32), Just(1f32), 0f32..1.0], 1..MOST_SEQUENCES + 1)
}

fn union(lists: &[&[u32]]) -> usize {
    lists.iter().copied().flatten().collect::<std::collections::BTreeSet<_>>().len()
}

fn specs<'a>(ffn: &'a Ffn, thresholds: &'a [Option<Vec<f32>>]) -> Vec<FfnGather<'a>> {
    let bias = |i: usize| ffn.biases.as_ref().map(|biases| biases[i].as_slice());
    let spec = |(i, thresholds): (usize, &'a Option<Vec<f32>>)| FfnGather {
        records: &ffn.records,
        bias: bias(0),
        up_bias: bias(1),
        out_bias: bias(2),
        activation: ffn.activation,
        gate_thresholds: thresholds.as_deref(),
        skip: i % 2 == 0,
    };
    thresholds.iter().enumerate().map(spec).collect()
}

fn ffns_of_a_batch_are_those_alone(isa: IsaName, sizes: [std::ops::Range<usize>; 2], cases: u32) {
    if cpu(isa, 1, Compute::F32).is_none() {
        return;
    }
    let cpus = [1, 2, 3].map(|threads| cpu(isa, threads, Compute::F32).unwrap());
    let activation = prop::sample::select(vec![Activation::Relu, Activation::GeluTanh, Activation::Silu]);
    let [units, width] = sizes;
    let shape = (units, width, 2usize..4, prop::sample::select(DType::ALL.to_vec()), activation);
    let how = (kept(), any::<bool>(), any::<bool>(), 0usize..3, any::<u64>());
    proptest!(ProptestConfig::with_cases(cases), |((f, d, rows, dtype, activation) in shape, how in how)| {
        let (kept, biased, gated, threads, seed) = how;
        let mut ffn = Ffn::new(seed, [f, d, rows], dtype, activation);
        ffn.biases = ffn.biases.filter(|_| biased);
        let lists = lists(seed ^ 5, f, &kept);
        let lists: Vec<&[u32]> = lists.iter().map(Vec::as_slice).collect();
        let n = lists.len();
        let own = |i: u64| values(seed ^ 6 ^ i, f).iter().map(|v| 0.4 * v.abs()).collect();
        let thresholds: Vec<_> = (0..n as u64).map(|i| (gated && i % 3 != 1).then(|| own(i))).collect();
        let specs = specs(&ffn, &thresholds);
        let x = values(seed ^ 7, n * d);
        let (mut out, mut counts) = (vec![f32::NAN; n * d], vec![GatherCount::default(); n]);
        let read = ffn_gather_batch(&cpus[threads], &specs, &lists, &x, &mut out, &mut counts);
        let mut whole = std::collections::BTreeSet::new();
        for i in 0..n {
            let mut alone = vec![f32::NAN; d];
            let count = ffn_gather(&cpus[0], &specs[i], lists[i], &x[i * d..][..d], &mut alone);
            prop_assert_eq!(bits(&out[i * d..][..d]), bits(&alone), "sequence {} of {}", i, n);
            prop_assert_eq!(counts[i], count);
            // What a neuron alone reads to the end, one of the batch does.
            for &neuron in lists[i] {
                if ffn_gather(&cpus[0], &specs[i], &[neuron], &x[i * d..][..d], &mut alone).second == 1 {
                    whole.insert(neuron);
                }
            }
        }
        prop_assert_eq!(read, GatherCount { first: union(&lists), second: whole.len() });
    });
}

fn small_ffns_of_a_batch_are_those_alone(isa: IsaName) {
    ffns_of_a_batch_are_those_alone(isa, [1..300, 1..90], 60);
}

/// More than one group of units, more than one piece.
fn large_ffns_of_a_batch_are_those_alone(isa: IsaName) {
    ffns_of_a_batch_are_those_alone(isa, [2000..5000, 1..90], 4);
}

/// Rows whose columns are taken in several parts.
fn wide_ffns_of_a_batch_are_those_alone(isa: IsaName) {
    ffns_of_a_batch_are_those_alone(isa, [1..120, 500..1300], 12);
}

fn heads_of_a_batch_are_those_alone(isa: IsaName) {
    if cpu(isa, 1, Compute::F32).is_none() {
        return;
    }
    let cpus = [1, 2, 3].map(|threads| cpu(isa, threads, Compute::F32).unwrap());
    let dtype = prop::sample::select(DType::ALL.to_vec());
    let cases = (
        1usize..30,
        head_widths(),
        prop_oneof![9 => 1usize..90, 1 => 500usize..1100],
        dtype,
        any::<bool>(),
        kept(),
        0usize..3,
        any::<u64>(),
    );
    proptest!(ProptestConfig::with_cases(60), |((h, d_h, d, dtype, biased, kept, threads, seed) in cases)| {
        let heads = records(seed, h, 2 * d_h, d, dtype);
        let lists = lists(seed ^ 5, h, &kept);
        let lists: Vec<&[u32]> = lists.iter().map(Vec::as_slice).collect();
        let (n, listed) = (lists.len(), lists.iter().map(|list| list.len()).sum::<usize>());
        let biases = [(3, h * d_h), (4, d)].map(|(salt, n)| biased.then(|| values(seed ^ salt, n)));
        let [query_bias, out_bias] = biases.each_ref().map(|bias| bias.as_deref());
        let x = values(seed ^ 7, n * d);
        let mut queries = vec![f32::NAN; listed * d_h];
        heads_project_batch(&cpus[threads], &heads, d_h, &lists, query_bias, &x, &mut queries);
        let mut out = vec![f32::NAN; n * d];
        heads_output_batch(&cpus[threads], &heads, d_h, &lists, &queries, out_bias, &mut out);
        let mut at = 0;
        for (i, list) in lists.iter().enumerate() {
            let mut alone = vec![f32::NAN; list.len() * d_h];
            heads_project(&cpus[0], &heads, d_h, list, query_bias, &x[i * d..][..d], &mut alone);
            prop_assert_eq!(bits(&queries[at..][..alone.len()]), bits(&alone));
            at += alone.len();
            let mut output = vec![f32::NAN; d];
            heads_output(&cpus[0], &heads, d_h, list, &alone, out_bias, &mut output);
            prop_assert_eq!(bits(&out[i * d..][..d]), bits(&output));
        }
    });
}

on_every_isa!(
    small_ffns_of_a_batch_are_those_alone,
    large_ffns_of_a_batch_are_those_alone,
    wide_ffns_of_a_batch_are_those_alone,
    heads_of_a_batch_are_those_alone,
);

#[test]
#[should_panic(expected = "the list names neuron 7 of 7")]
fn a_neuron_that_does_not_exist_is_named() {
    let cpu = cpu(IsaName::Portable, 1, Compute::F32).unwrap();
    let ffn = Ffn::new(1, [7, 4, 2], DType::F32, Activation::Relu);
    let (specs, lists) = (specs(&ffn, &[None, None]), [&[0][..], &[7]]);
    let mut counts = [GatherCount::default(); 2];
    ffn_gather_batch(&cpu, &specs, &lists, &[0.0; 8], &mut [0.0; 8], &mut counts);
}
