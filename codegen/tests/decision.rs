//! Decisions on a device: scores as the engine's predictor gives them, lists as its selection does.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use shadowllm_codegen::{
    DType, KernelSpec, Kind, Normalization, Part, PredictorInput, PredictorSpec, Program, Role, STATUS_BAD_SCORE,
    Scope, Sizes, Tensor, WeightFormat,
};
use shadowllm_emulator::Schedule;

use support::device::{on_devices, sm};
use support::host::{Host, Random};
use support::{nvrtc, predictor};

const SIZES: Sizes =
    Sizes { layers: 5, hidden: 72, heads: 6, kv_heads: 3, head_dim: 16, ffn: 1100, vocab: 40, context: 32 };

fn spec(scope: Scope) -> KernelSpec {
    KernelSpec { scope, ..KernelSpec::llama(SIZES, DType::F16, sm()) }
}

/// Indices of the launches whose kernels' names begin with one of `names`.
fn launches(program: &Program, names: &[&str]) -> Vec<usize> {
    let name = |i: &usize| &program.kernels[program.token[*i].kernel].name;
    (0..program.token.len()).filter(|i| names.iter().any(|start| name(i).starts_with(start))).collect()
}

/// What the engine's predictor computes in one layer, with 8-bit weights bit for bit.
fn layer(host: &Host, tensor: impl Fn(Part) -> Tensor, x: &[f32], rows: usize) -> Vec<f32> {
    let bias = host.tensors.get(&tensor(Part::Bias));
    let bias = |row: usize| bias.map_or(0.0, |bias| bias[row]);
    let weight = tensor(Part::Weight);
    if let Some(weight) = host.integers.get(&weight) {
        let largest = x.iter().fold(0.0_f32, |largest, v| largest.max(v.abs()));
        let unit = if x.iter().all(|v| v.is_finite()) { largest / 32767.0 } else { f32::NAN };
        let per_unit = if unit > 0.0 { unit.recip() } else { 0.0 };
        let x: Vec<i16> = x.iter().map(|v| (v * per_unit).round_ties_even() as i16).collect();
        let stride = weight.len() / rows;
        let scale = host.tensor(tensor(Part::RowScale));
        return (0..rows)
            .map(|row| {
                let mut sum = 0.0_f32;
                for (w, x) in weight[row * stride..].chunks(512).zip(x.chunks(512)) {
                    let exact: i32 = w.iter().zip(x).map(|(w, x)| i32::from(*w) * i32::from(*x)).sum();
                    sum += exact as f32;
                }
                scale[row] * (sum * unit) + bias(row)
            })
            .collect();
    }
    let weight = host.tensor(weight);
    let stride = weight.len() / rows;
    let dot = |row: usize| {
        x.iter().zip(&weight[row * stride..]).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32
    };
    (0..rows).map(|row| dot(row) + bias(row)).collect()
}

fn normalised(host: &Host, predictor: &PredictorSpec, x: &[f32]) -> Vec<f32> {
    match predictor.normalization {
        Normalization::None => x.to_vec(),
        Normalization::Standardize => {
            let (mean, scale) = (host.tensor(Tensor::Mean(0)), host.tensor(Tensor::Scale(0)));
            x.iter().zip(mean).zip(scale).map(|((x, mean), scale)| (x - mean) * scale).collect()
        }
        Normalization::MinMax => {
            let low = x.iter().fold(f32::INFINITY, |a, b| a.min(*b));
            let high = x.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let factor = if high > low { 1.0 / (high - low) } else { 0.0 };
            x.iter().map(|v| (v - low) * factor).collect()
        }
    }
}

on_devices! {
    fn scores_are_those_of_the_engine() {
        let Some(nvrtc) = nvrtc() else { return };
        let base = PredictorSpec { heads: Some(20), neurons: Some(70), ..predictor() };
        let float = |dtype| WeightFormat::Float(dtype);
        let cases = [
            base.clone(),
            PredictorSpec { normalization: Normalization::Standardize, neurons: Some(600), ..base.clone() },
            PredictorSpec { input: PredictorInput::Contexts, normalization: Normalization::MinMax, ..base.clone() },
            PredictorSpec { format: float(DType::F16), bias: false, relu: false, ..base.clone() },
            PredictorSpec { format: float(DType::F32), trunk: true, heads: Some(33), neurons: Some(33), ..base.clone() },
            PredictorSpec { format: float(DType::BF16), normalization: Normalization::MinMax, ..base },
        ];
        for predictor in cases {
            let compiled = Host::compile(&nvrtc, &spec(Scope::Local), Some(&predictor));
            let mut host = Host::new(&compiled, 3);
            host.device.set_schedule(Schedule::Random(9));
            let budget = host.buffer(Role::Budget);
            host.device.upload(budget, 0, &[3_u32, 0, 100, 0]).unwrap();
            host.start(7, 0);
            let first = launches(&host.program, &["predict_"])[0];
            (0..first).for_each(|i| drop(host.launch(i)));
            let x = host.values::<f32>(match predictor.input {
                PredictorInput::Residual => Role::Residual,
                PredictorInput::Contexts => Role::Contexts,
            });
            assert!(x.iter().all(|v| v.is_finite() && *v != 0.0), "all contexts of layer 0 are there");
            let decision = launches(&host.program, &["predict_", "select_"]);
            decision.into_iter().for_each(|i| drop(host.launch(i)));
            let x = normalised(&host, &predictor, &x);
            for (kind, units) in [(Kind::Heads, SIZES.heads), (Kind::Neurons, SIZES.ffn)] {
                let width = predictor.width(kind).unwrap();
                let own = if predictor.trunk { None } else { Some(kind) };
                let mut hidden = layer(&host, |part| Tensor::Hidden(0, own, part), &x, width);
                if predictor.relu {
                    hidden.iter_mut().for_each(|v| *v = v.max(0.0));
                }
                let expected = layer(&host, |part| Tensor::Output(0, kind, part), &hidden, 4 * units);
                let scores = &host.values::<f32>(Role::Scores(kind))[units..];
                if predictor.format == WeightFormat::Int8 {
                    assert_eq!(scores, expected, "{predictor:?}");
                } else {
                    let size = expected.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
                    assert!(scores.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5 * size), "{predictor:?}");
                }
            }
            assert_eq!(host.values::<u32>(Role::State)[2], 0);
            // The rest of the token runs over the lists that were made.
            let last = host.program.token.len();
            let after = *launches(&host.program, &["select_"]).last().unwrap() + 1;
            (after..last).for_each(|i| drop(host.launch(i)));
            for layer in 1..SIZES.layers {
                assert_eq!((host.kept(layer, Kind::Heads).len(), host.kept(layer, Kind::Neurons).len()), (3, 100));
            }
        }
    }
}

/// The engine's selection, by sorting: the best of every row, then the best of what is left of all rows.
fn select(rows: &[Vec<f32>], each: usize, shared: usize) -> Vec<Vec<u32>> {
    let mut all: Vec<(usize, usize)> = Vec::new();
    let mut lists: Vec<Vec<u32>> = Vec::new();
    for (layer, row) in rows.iter().enumerate() {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].partial_cmp(&row[*a]).unwrap().then(a.cmp(b)));
        let (own, rest) = order.split_at(each.min(row.len()));
        lists.push(own.iter().map(|i| *i as u32).collect());
        all.extend(rest.iter().map(|i| (layer, *i)));
    }
    all.sort_by(|a, b| rows[b.0][b.1].partial_cmp(&rows[a.0][a.1]).unwrap().then(a.cmp(b)));
    all.into_iter().take(shared).for_each(|(layer, i)| lists[layer].push(i as u32));
    lists.iter_mut().for_each(|list| list.sort_unstable());
    lists
}

/// Scores with ties, both zeros, huge and tiny values, rows that are all equal.
fn scores(random: &mut Random, width: usize, form: usize) -> Vec<Vec<f32>> {
    (1..SIZES.layers)
        .map(|layer| {
            (0..width)
                .map(|_| match form {
                    0 => random.unit() * layer as f32,
                    1 => (random.below(5) as f32 - 2.0) * if layer == 2 { 1.0 } else { 0.5 },
                    2 => [0.0, -0.0, 1e-42, -1e-42][random.below(4)],
                    3 => 0.25,
                    4 => random.unit() * 10_f32.powi(random.below(70) as i32 - 35),
                    _ => -1.0 - random.unit().abs() * 1e-6,
                })
                .collect()
        })
        .collect()
}

fn lists_are_those_of_a_sort(scope: Scope) {
    let Some(nvrtc) = nvrtc() else { return };
    let spec = spec(scope);
    let compiled = Host::compile(&nvrtc, &spec, Some(&predictor()));
    let mut host = Host::new(&compiled, 4);
    let names = ["select_", "cut_", "histogram_", "ties_", "collect_"];
    let selections = launches(&host.program, &names);
    let mut random = Random(6);
    for (round, schedule) in
        [Schedule::InOrder, Schedule::Reversed, Schedule::Random(1)].into_iter().cycle().take(24).enumerate()
    {
        host.device.set_schedule(schedule);
        let [heads, neurons] = [SIZES.heads, SIZES.ffn].map(|width| scores(&mut random, width, round % 6));
        for (kind, rows) in [(Kind::Heads, &heads), (Kind::Neurons, &neurons)] {
            let buffer = host.buffer(Role::Scores(kind));
            host.device.upload(buffer, 4 * rows[0].len(), &rows.concat()).unwrap();
        }
        // Few, many, all, more than there are.
        let budget = match (scope, round % 4) {
            (Scope::Local, 0) => [1, 0, 1, 0],
            (Scope::Local, 1) => [6, 0, 1100, 0],
            (Scope::Local, _) => [1 + random.below(6), 0, 1 + random.below(1100), 0],
            (Scope::Global, 0) => [1, 0, 69, 0],
            (Scope::Global, 1) => [1, 20, 69, 4 * 1100 - 4 * 69],
            (Scope::Global, 2) => [1, 1, 69, 1],
            (Scope::Global, _) => [1, random.below(21), 69, random.below(4 * 1100 - 4 * 69)],
        };
        let buffer = host.buffer(Role::Budget);
        host.device.upload(buffer, 0, &budget.map(|n| n as u32)).unwrap();
        selections.iter().for_each(|&i| drop(host.launch(i)));
        for (kind, rows, each, shared) in
            [(Kind::Heads, &heads, budget[0], budget[1]), (Kind::Neurons, &neurons, budget[2], budget[3])]
        {
            let expected = select(rows, each, shared);
            for (layer, list) in expected.iter().enumerate() {
                assert_eq!(host.kept(layer + 1, kind), *list, "round {round}, {kind:?}, {budget:?}, layer {layer}");
            }
        }
        assert_eq!(host.values::<u32>(Role::State)[2], 0);
    }
    // A score that is no number is reported, and nothing is written out of bounds.
    let buffer = host.buffer(Role::Scores(Kind::Neurons));
    host.device.upload(buffer, 4 * 1200, &[f32::NAN]).unwrap();
    selections.iter().for_each(|&i| drop(host.launch(i)));
    assert_eq!(host.values::<u32>(Role::State)[2], STATUS_BAD_SCORE);
}

on_devices! {
    fn local_lists_are_those_of_a_sort() {
        lists_are_those_of_a_sort(Scope::Local);
    }
}

on_devices! {
    fn global_lists_are_those_of_a_sort() {
        lists_are_those_of_a_sort(Scope::Global);
    }
}
