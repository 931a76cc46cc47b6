//! Mistakes that must not pass: each is put into the emitted text, and the tests' own means have to find it.
//!
//! These guard the guards. A barrier that can be left out without anybody noticing is a barrier that nothing tests.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;

use shadowllm_codegen::{DType, KernelSpec, Kind, Part, PredictorSpec, Program, Role, Scope, Sizes, Sm, Tensor};
use shadowllm_emulator::Schedule;
use shadowllm_nvrtc::{Nvrtc, Options};

use support::host::{Host, Random};
use support::oracle::{Kept, Oracle, difference};
use support::{nvrtc, predictor};

/// What is changed, and into what. The first must be there.
struct Mutant {
    name: &'static str,
    from: &'static str,
    to: &'static str,
}

const fn mutant(name: &'static str, from: &'static str, to: &'static str) -> Mutant {
    Mutant { name, from, to }
}

const SIZES: Sizes =
    Sizes { layers: 2, hidden: 72, heads: 6, kv_heads: 3, head_dim: 128, ffn: 70, vocab: 40, context: 64 };

fn sm() -> Sm {
    Sm::new(80).unwrap()
}

/// Compiles a program with one change.
fn changed(nvrtc: &Nvrtc, program: &Program, mutant: Option<&Mutant>) -> (Program, Vec<u8>) {
    let mut text = program.source();
    if let Some(Mutant { name, from, to }) = mutant {
        assert!(text.contains(from), "{name}: the text has no\n{from}");
        text = text.replace(from, to);
    }
    let options = Options { deny_warnings: false, ..Options::new(80) };
    let compiled = nvrtc.compile(&text, &options);
    (program.clone(), compiled.unwrap_or_else(|e| panic!("{}: {e}", mutant.map_or("", |m| m.name))).ptx.into_bytes())
}

/// A program without its prompts, and one without its tokens: a mutant is compiled with the kernels that its check runs.
fn tokens_of(program: Program) -> Program {
    used(Program { prompt: Vec::new(), end: Vec::new(), ..program })
}

fn prompts_of(program: Program) -> Program {
    used(Program { token: Vec::new(), ..program })
}

/// The program with those kernels only that a launch names.
fn used(mut program: Program) -> Program {
    let launches = || program.token.iter().chain(&program.prompt).chain(&program.end);
    let kept: Vec<usize> = launches().map(|launch| launch.kernel).collect::<BTreeSet<_>>().into_iter().collect();
    program.kernels = kept.iter().map(|&kernel| program.kernels[kernel].clone()).collect();
    for launch in program.token.iter_mut().chain(&mut program.prompt).chain(&mut program.end) {
        launch.kernel = kept.binary_search(&launch.kernel).unwrap();
    }
    program
}

/// Six tokens behind a prompt of 37, over changing plans, against the masked dense model.
fn decode(compiled: &(Program, Vec<u8>)) -> Result<(), String> {
    for schedule in [Schedule::InOrder, Schedule::Reversed, Schedule::Random(1)] {
        let mut host = Host::new(compiled, 1);
        host.device.set_schedule(schedule);
        let spec = host.program.spec.clone();
        let (s, mut oracle, mut random) = (spec.sizes, Oracle::new(&spec), Random(2));
        for layer in 0..s.layers {
            let mut rows = || -> Vec<Vec<f32>> {
                (0..37).map(|_| (0..s.kv_heads * s.head_dim).map(|_| 4.0 * random.unit()).collect()).collect()
            };
            let (keys, values) = (rows(), rows());
            host.preset(Role::Keys, layer, &keys);
            host.preset(Role::Values, layer, &values);
            oracle.preset(layer, &keys, &values);
        }
        for (step, heads) in [vec![0, 1, 2], vec![2, 3], vec![2], vec![0, 3], vec![1], vec![4]].into_iter().enumerate()
        {
            let position = 37 + step;
            let all: Vec<u32> = (0..s.heads as u32).collect();
            let plan: Vec<Kept> = vec![(all, random.some(s.ffn, 50)), (heads, random.some(s.ffn, 33))];
            for (layer, (heads, neurons)) in plan.iter().enumerate() {
                host.keep(layer, heads, neurons);
            }
            host.start(3 + step as u32, position as u32);
            for index in 0..host.program.token.len() {
                host.try_launch(index)?;
            }
            let expected = oracle.token(&host, 3 + step as u32, position, &plan, 0);
            let found = difference(&host.values::<f32>(Role::Logits), &expected);
            if found > 1e-5 {
                return Err(format!("step {step}: logits differ by {found:e}"));
            }
        }
    }
    Ok(())
}

/// Runs `check` on the text as it is, then on every mutant, which it has to catch.
fn all_are_caught(program: &Program, mutants: &[Mutant], check: impl Fn(&(Program, Vec<u8>)) -> Result<(), String>) {
    let Some(nvrtc) = nvrtc() else { return };
    check(&changed(&nvrtc, program, None)).unwrap();
    let survivors: Vec<&str> = mutants
        .iter()
        .filter(|mutant| check(&changed(&nvrtc, program, Some(mutant))).is_ok())
        .map(|mutant| mutant.name)
        .collect();
    assert!(survivors.is_empty(), "not caught: {survivors:?}");
}

#[test]
fn mistakes_in_opt_are_caught() {
    let spec = KernelSpec { kv_flush: 4, ..KernelSpec::opt(SIZES, DType::F16, sm()) };
    let mutants = [
        mutant(
            "sums of warps without a barrier",
            "__syncthreads();\n    float total = slots[0];",
            "float total = slots[0];",
        ),
        mutant(
            "groups meet without a barrier",
            "    }\n    __syncthreads();\n    if (group == 0) {",
            "    }\n    if (group == 0) {",
        ),
        mutant("products before the norm is there", "slots);\n    __syncthreads();", "slots);"),
        mutant(
            "compaction before inner values are there",
            "    }\n    __syncthreads();\n    // Neurons that",
            "    }\n    // Neurons that",
        ),
        mutant("compaction without warp barriers", "__syncwarp();", ""),
        mutant("rows of a pair too near", "c * 9, 64 * 9, x", "c * 9, 63 * 9, x"),
        mutant("a late row left out", "first = watermark[g]; first", "first = watermark[g] + 1; first"),
        mutant("the ring of inputs too short", "((position + t) % 4)", "((position + t) % 3)"),
        mutant("a flush too late", "watermark[3] >= 4", "watermark[3] > 4"),
        mutant("an inexact ln 2", "-0.693359375f", "-0.6933f"),
        mutant("sums not shrunk to the new maximum", "sum[h] *= shrink;", ""),
        mutant("a position too many", "const bool there = p < end && at", "const bool there = p <= end && at"),
        mutant("the token does not see itself", "v.end = position + 1;", "v.end = position;"),
        mutant("contexts not divided by their weight", "total * (1.0f / weight)", "total"),
        mutant("a piece left out", "u32 piece = row; piece", "u32 piece = row + 1; piece"),
        mutant("pieces added before they are there", "column] = sum;\n    __syncthreads();", "column] = sum;"),
        mutant(
            "another block's pieces without a fence",
            "    __threadfence();\n    __syncthreads();\n    if (threadIdx.x == 0) *flag",
            "    __syncthreads();\n    if (threadIdx.x == 0) *flag",
        ),
        mutant("the last block does not look again", "    if (last) __threadfence();\n", ""),
        mutant("the first block for the last", "atomicAdd(counter, 1u) + 1 == blocks", "atomicAdd(counter, 1u) == 0"),
        mutant("arrivals not set to zero", "arrivals[i] = 0u;", ";"),
        mutant(
            "parts added before they are there",
            "parts[i] = sum;\n    }\n    __syncthreads();",
            "parts[i] = sum;\n    }",
        ),
        mutant("rows added before contexts are there", "    __syncthreads();\n    // A group of", "    // A group of"),
        mutant("columns of a neighbour", "at = blockIdx.x * (FOURS * 2)", "at = blockIdx.x * (FOURS * 2 - 1)"),
        mutant("a row behind the last", "row < 40;", "row <= 40;"),
        mutant("rows behind the last", "const bool there = k < rows;", "const bool there = true;"),
        mutant(
            "a butterfly cut short",
            "step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);\n    return x;\n}\ntemplate <int WIDTH> DEVICE int",
            "step > 1; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);\n    return x;\n}\ntemplate <int WIDTH> DEVICE int",
        ),
        mutant(
            "a mask without half of the lanes",
            "__shfl_xor_sync(ALL_LANES, x, step)",
            "__shfl_xor_sync(0xffffu, x, step)",
        ),
        mutant("several heads speak for one", "if (i == 0 || list[i - 1] / 2 != g) flags", "flags"),
        mutant("a wrong record", "+ (u64)unit * 18, 9", "+ (u64)i * 18, 9"),
        mutant("the bias of another neuron", "first_bias[unit]", "first_bias[i]"),
    ];
    all_are_caught(&tokens_of(Program::emit(&spec, None, &[]).unwrap()), &mutants, decode);
}

#[test]
fn mistakes_in_llama_are_caught() {
    let spec = KernelSpec { kv_flush: 4, ..KernelSpec::llama(SIZES, DType::BF16, sm()) };
    let mutants = [
        mutant("a rotation the wrong way", "a = low * cos - b * sin", "a = low * cos + b * sin"),
        mutant("late keys rotated to the present", "p = first + t;", ""),
        mutant("values rotated", "if (key) {", "if (true) {"),
        mutant("the gate not multiplied", "activate(gate) * up", "activate(gate)"),
        mutant("the norm of another row", "own[s].x * factor * w.x", "own[s].x * w.x"),
    ];
    all_are_caught(&tokens_of(Program::emit(&spec, None, &[]).unwrap()), &mutants, decode);
}

/// Lists of random scores with many ties, by a global and by a local budget, against a sort; then scores against integers.
fn decide(compiled: &(Program, Vec<u8>)) -> Result<(), String> {
    for schedule in [Schedule::InOrder, Schedule::Reversed, Schedule::Random(1)] {
        let mut host = Host::new(compiled, 5);
        host.device.set_schedule(schedule);
        let (s, mut random) = (host.program.spec.sizes, Random(6));
        let selects = |program: &Program, i: usize| {
            let name = &program.kernels[program.token[i].kernel].name;
            ["cut_", "histogram_", "ties_", "collect_"].iter().any(|start| name.starts_with(start))
        };
        for round in 0..6 {
            let rows: Vec<Vec<f32>> = (1..s.layers)
                .map(|layer| {
                    let draw = |random: &mut Random| match round % 3 {
                        0 => (random.below(6) as f32 - 2.0) * layer as f32,
                        1 => [0.0, -0.0, 1.0][random.below(3)],
                        _ => random.unit(),
                    };
                    (0..s.ffn).map(|_| draw(&mut random)).collect()
                })
                .collect();
            // With zeros of both signs, far enough down that they are the ties.
            let (each, shared) = (5, [20, 250, 42, 300, 64, 0][round]);
            let (scores, heads) = (host.buffer(Role::Scores(Kind::Neurons)), host.buffer(Role::Scores(Kind::Heads)));
            host.device.upload(scores, 4 * s.ffn, &rows.concat()).unwrap();
            host.device.upload(heads, 0, &vec![0.5_f32; s.layers * s.heads]).unwrap();
            let budget = host.buffer(Role::Budget);
            host.device.upload(budget, 0, &[2, 0, each as u32, shared as u32]).unwrap();
            for index in 0..host.program.token.len() {
                if selects(&host.program, index) {
                    host.try_launch(index)?;
                }
            }
            let mut lists: Vec<Vec<u32>> = Vec::new();
            let mut rest: Vec<(usize, usize)> = Vec::new();
            for (layer, row) in rows.iter().enumerate() {
                let mut order: Vec<usize> = (0..row.len()).collect();
                order.sort_by(|a, b| row[*b].partial_cmp(&row[*a]).unwrap().then(a.cmp(b)));
                lists.push(order[..each].iter().map(|i| *i as u32).collect());
                rest.extend(order[each..].iter().map(|i| (layer, *i)));
            }
            rest.sort_by(|a, b| rows[b.0][b.1].partial_cmp(&rows[a.0][a.1]).unwrap().then(a.cmp(b)));
            rest.iter().take(shared).for_each(|(layer, i)| lists[*layer].push(*i as u32));
            for (layer, list) in lists.iter_mut().enumerate() {
                list.sort_unstable();
                if host.kept(layer + 1, Kind::Neurons) != *list {
                    return Err(format!("round {round}: another list of layer {layer}"));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn mistakes_in_selection_are_caught() {
    let sizes = Sizes { layers: 4, ffn: 150, ..SIZES };
    let spec = KernelSpec { scope: Scope::Global, ..KernelSpec::llama(sizes, DType::F16, sm()) };
    let predictor = PredictorSpec { heads: Some(8), neurons: Some(16), ..predictor() };
    let mutants = [
        mutant("one set of counts for all bits", "slots + bit % 2 * 32", "slots"),
        mutant("a threshold too low", "keys[i] >= candidate", "keys[i] > candidate"),
        mutant("ties in the place of others", "equal < cut.ties ? equal : cut.ties", "equal"),
        mutant("counts of warps without a barrier", "before -= own;\n    __syncthreads();", "before -= own;"),
        mutant("two zeros", "score + 0.0f", "score"),
        mutant("ties given twice", "left = left > ties ? left - ties : 0u;", ""),
        mutant("surplus ties do not compete", "n = cuts[4 * blockIdx.x + 2];", "n = 0u;"),
        mutant("the common cut everywhere", "&& rest[0] <= cut.threshold", ""),
        mutant("histograms not cleared", "bins[i] = 0u;", ";"),
    ];
    all_are_caught(&tokens_of(Program::emit(&spec, Some(&predictor), &[]).unwrap()), &mutants, decide);
}

/// Scores of 8-bit weights from a given input, against exact sums.
fn predict(compiled: &(Program, Vec<u8>)) -> Result<(), String> {
    let mut host = Host::new(compiled, 7);
    let (s, mut random) = (host.program.spec.sizes, Random(8));
    let x: Vec<f32> = (0..s.hidden).map(|_| random.unit()).collect();
    let residual = host.buffer(Role::Residual);
    host.device.upload(residual, 0, &x).unwrap();
    for index in 0..host.program.token.len() {
        if host.program.kernels[host.program.token[index].kernel].name.starts_with("predict_") {
            host.try_launch(index)?;
        }
    }
    let layer = |tensor: &dyn Fn(Part) -> Tensor, x: &[f32], rows: usize| -> Vec<f32> {
        let unit = x.iter().fold(0.0_f32, |largest, v| largest.max(v.abs())) / 32767.0;
        let x: Vec<i64> = x.iter().map(|v| (v * unit.recip()).round_ties_even() as i64).collect();
        let weight = &host.integers[&tensor(Part::Weight)];
        let stride = weight.len() / rows;
        let value = |row: usize| {
            let sum: i64 = x.iter().zip(&weight[row * stride..]).map(|(x, w)| x * i64::from(*w)).sum();
            host.tensor(tensor(Part::RowScale))[row] * (sum as f32 * unit) + host.tensor(tensor(Part::Bias))[row]
        };
        (0..rows).map(value).collect()
    };
    let mut hidden = layer(&|part| Tensor::Hidden(0, Some(Kind::Neurons), part), &x, 16);
    hidden.iter_mut().for_each(|v| *v = v.max(0.0));
    let expected = layer(&|part| Tensor::Output(0, Kind::Neurons, part), &hidden, s.ffn);
    match host.values::<f32>(Role::Scores(Kind::Neurons))[s.ffn..] == expected {
        true => Ok(()),
        false => Err("other scores".to_owned()),
    }
}

#[test]
fn mistakes_in_the_predictor_are_caught() {
    let spec = KernelSpec::llama(SIZES, DType::F16, sm());
    let predictor = PredictorSpec { heads: None, neurons: Some(16), ..predictor() };
    let mutants = [
        mutant("another largest integer", "largest / 32767.0f", "largest / 32766.0f"),
        mutant("halves exchanged", "w[f].x, a.x, a.y, 0", "w[f].x, a.y, a.x, 0"),
        mutant("no activation", "y = y < 0.0f ? 0.0f : y;", ""),
        mutant("no barrier behind the rounding", "    __syncthreads();\n    return unit;", "    return unit;"),
    ];
    all_are_caught(&tokens_of(Program::emit(&spec, Some(&predictor), &[]).unwrap()), &mutants, predict);
}

/// Two prompts, one behind the other, against the dense model.
fn prompts(compiled: &(Program, Vec<u8>)) -> Result<(), String> {
    let mut host = Host::new(compiled, 1);
    let spec = host.program.spec.clone();
    let (s, mut oracle, mut random) = (spec.sizes, Oracle::new(&spec), Random(2));
    let all: Kept = ((0..s.heads as u32).collect(), (0..s.ffn as u32).collect());
    let plan = vec![all; s.layers];
    for (held, length, schedule) in [(0, 20, Schedule::Reversed), (20, 35, Schedule::InOrder)] {
        host.device.set_schedule(schedule);
        let tokens: Vec<u32> = (0..length).map(|_| random.below(s.vocab) as u32).collect();
        host.try_prompt(&tokens, held, 128)?;
        let mut expected = Vec::new();
        for (position, &token) in (held..).zip(&tokens) {
            expected = oracle.token(&host, token, position, &plan, 0);
        }
        let found = difference(&host.values::<f32>(Role::Logits), &expected);
        if found > 1e-5 {
            return Err(format!("{length} tokens: logits differ by {found:e}"));
        }
        if host.values::<u32>(Role::Watermarks).iter().any(|&mark| mark as usize != held + length) {
            return Err("other watermarks".to_owned());
        }
    }
    Ok(())
}

#[test]
fn mistakes_in_prompts_of_opt_are_caught() {
    let spec = KernelSpec::opt(SIZES, DType::F16, sm());
    let mutants = [
        mutant(
            "a stage multiplied before all have copied",
            "which is filled again.\n        __syncthreads();",
            "which is filled again.",
        ),
        mutant("a stage filled again too early", "(turn + 3 - 1) % 3", "turn"),
        mutant("copies not waited for", "wait_group 1", "wait_group 2"),
        mutant(
            "high parts only",
            "p < 2; p++) {\n                multiply_add",
            "p < 1; p++) {\n                multiply_add",
        ),
        mutant("depths behind the last", "const bool there = t < count && at < K;", "const bool there = t < count;"),
        mutant("rows of other lanes", "lane / 16 * 8 + lane % 8)", "lane / 16 * 8 + lane % 4)"),
        mutant("depths of columns of other lanes", "(k + lane % 16) * 136", "(k + lane % 8) * 136"),
        mutant("depths of a fragment exchanged", "b[0], b[1]);", "b[1], b[0]);"),
        mutant("every other tile of tokens left out", "both = token + 16 < count", "both = token + 64 < count"),
        mutant("values in the place of keys", "(value ? values : keys)", "(value ? keys : values)"),
        mutant("a pair of other neurons", "p + (second ? 35 : 0)", "p + (second ? 34 : 0)"),
        mutant("a bias of another neuron", "first_bias[p + 35]", "first_bias[p]"),
        mutant("a part of the depth twice", "(blockIdx.y + 1) / 8", "(blockIdx.y + 2) / 8"),
        mutant("a part left out", "for (u32 p = 1; p < 8; p++)", "for (u32 p = 2; p < 8; p++)"),
        mutant("tokens that see the next", "p <= position && p < end", "p <= position + 1 && p < end"),
        mutant("contexts not shrunk to the new maximum", "acc[j].x *= shrink;", ""),
        mutant("weights read before they are there", "of one warp.\n        __syncwarp();", "of one warp."),
        mutant("positions overwritten while they are read", "tile += 32) {\n        __syncthreads();", "tile += 32) {"),
        mutant("the last token but one", "t = block[1] - 1, position", "t = block[1] - 2, position"),
        mutant("watermarks that stay", "watermarks[i] = position + 1;", ";"),
    ];
    all_are_caught(&prompts_of(Program::emit(&spec, None, &[]).unwrap()), &mutants, prompts);
}

#[test]
fn mistakes_in_prompts_of_llama_are_caught() {
    let spec = KernelSpec::llama(SIZES, DType::F16, sm());
    let mutants = [
        mutant("all tokens rotated alike", "position = start + t;", "position = start;"),
        mutant("gate and up exchanged", "activate(a) * (b)", "activate(b) * (a)"),
        mutant("the keys of another head", "(u64)(head / 2) * 64", "(u64)(head % 3) * 64"),
        mutant(
            "the norm of the row in front",
            "residual = stream + (u64)t * 72",
            "residual = stream + (u64)(t / 2) * 72",
        ),
    ];
    all_are_caught(&prompts_of(Program::emit(&spec, None, &[]).unwrap()), &mutants, prompts);
}
