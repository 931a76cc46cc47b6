//! `shadow-bench`: how fast this machine decodes, dense and sparse, without a model.
//!
//! Users choose an engine by its speed, and published figures often cannot be compared: no dense row, lists with the same unit
//! twice, times divided once too often, a predictor that is not run. What is measured here is what a user gets: whole steps of the
//! engine that `shadowllm generate` runs, decisions and LM head included, with lists of distinct units, beside the dense model,
//! the machine and the bytes.
//!
//! ```text
//! options --> shape --random weights--> checkpoint --> engine (plain) ----+
//!                                           |                             +--> protocol --> rows --> report, plot, record
//!                                           +-- packed in memory --> engine (records) --+
//!             policy --random predictors-----------------------------------------------+
//! ```
//!
//! | file | idea |
//! | --- | --- |
//! | `options` | what may be asked for |
//! | `shape` | shapes by name or file; layers that share weights where memory ends |
//! | `policy` | policies by name, predictors of a stated size |
//! | `machine` | facts about the machine, and its bandwidth |
//! | `protocol` | all policies in turn, token by token |
//! | `rows` | from samples to medians |
//! | `verify` | sparse tokens against the masked dense model, on the same weights |
//! | `report`, `plot`, `record` | table, JSON, CSV; SVG; results that are kept |

mod error;
mod machine;
mod options;
mod plot;
mod policy;
mod protocol;
mod record;
mod report;
mod rows;
mod shape;
mod verify;
mod watch;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use shadowllm_weights::{PackedCheckpoint, write_atomic};

pub use error::BenchError;

use crate::cli::console::Console;
use crate::generate::{Engine, EngineOptions};
use crate::kernels::{Compute, Cpu, peak_flops};
use crate::model::SparseOptions;
use crate::{Error, Result};
use machine::{Bandwidth, Host, available_memory, beyond_caches, peak_resident};
use options::Options;
use policy::Kind;
use protocol::{Bench, Plan, predictors, sequence_bytes};
use report::{Report, Run, ShapeRun};
use rows::Machine;
use shape::{ShapeName, Source};
use watch::Watch;

/// Runs the program on command-line arguments, the program's name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let command: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    crate::cli::run(args, |options: Options, console: &mut Console| measure(&options, &command, console))
}

/// Bytes that are read to measure memory, at least.
const READ: u64 = 512 << 20;

fn measure(options: &Options, command: &[String], console: &mut Console) -> Result<()> {
    let contexts = contexts(options)?;
    let sources = options.shape.iter().map(|shape| opened(shape, options, &contexts)).collect::<Result<Vec<_>>>()?;
    let cpu = Cpu::new(&options.cpu.options(Compute::Bf16))?;
    let mut memory = Bandwidth::of(beyond_caches().max(READ));
    memory.measure(&cpu);
    let mut report = Report {
        machine: Machine { read_gb_per_second: memory.gb_per_second(), threads: cpu.threads(), isa: cpu.isa().name() },
        rows: Vec::new(),
        spread: Vec::new(),
        run: run(options, &cpu),
        verified: options.verify.then(Vec::new),
    };
    console.note(&format!(
        "this machine reads {:.1} GB/s and does {:.0} GFLOP/s with {} threads, {}",
        report.machine.read_gb_per_second,
        report.run.peak_gflop_per_second,
        cpu.threads(),
        cpu.isa()
    ));
    for source in sources {
        match measure_shape(options, &contexts, source, &mut memory, &mut report, console) {
            Ok(true) => {}
            Ok(false) | Err(Error::Interrupted | Error::Weights(shadowllm_weights::Error::Interrupted)) => {
                report.run.interrupted = true;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    report.machine.read_gb_per_second = memory.gb_per_second();
    report.run.peak_resident_bytes = peak_resident();
    if !report.rows.is_empty() {
        hand_out(options, command, &report, console)?;
    }
    if report.run.interrupted { Err(Error::Interrupted) } else { Ok(()) }
}

/// Contexts that are asked for, ascending.
fn contexts(options: &Options) -> Result<Vec<usize>> {
    let mut contexts = if options.context.is_empty() { vec![options.prompt] } else { options.context.clone() };
    contexts.sort_unstable();
    contexts.dedup();
    match contexts.first() {
        Some(&context) if context < options.prompt => {
            Err(BenchError::ContextShort { context, prompt: options.prompt }.into())
        }
        _ => Ok(contexts),
    }
}

/// A shape whose configuration allows what is asked for.
fn opened(shape: &ShapeName, options: &Options, contexts: &[usize]) -> Result<Source> {
    let source = shape.open(options.dtype)?;
    let (max, generated) = (source.config.max_positions, options.generate.max(options.warm_up));
    let context = contexts.last().copied().unwrap_or(options.prompt);
    if context + generated > max {
        return Err(BenchError::Positions { shape: source.name, max, context, generated }.into());
    }
    Ok(source)
}

fn run(options: &Options, cpu: &Cpu) -> Run {
    let mut predictors: Vec<String> = options.policy.iter().filter_map(policy::PolicySpec::describe).collect();
    predictors.dedup();
    Run {
        version: env!("CARGO_PKG_VERSION"),
        compute: cpu.compute().name(),
        prompt: options.prompt,
        generate: options.generate,
        repetitions: options.repetitions,
        warm_up: options.warm_up,
        relu_skip: options.relu_skip,
        seed: options.seed,
        interrupted: false,
        peak_gflop_per_second: peak_flops(cpu),
        peak_resident_bytes: None,
        shapes: Vec::new(),
        predictors,
    }
}

/// Measures one shape and adds its rows to the report; false if Ctrl-C ended it before the end.
fn measure_shape(
    options: &Options,
    contexts: &[usize],
    source: Source,
    memory: &mut Bandwidth,
    report: &mut Report,
    console: &Console,
) -> Result<bool> {
    let sparse = options.policy.iter().filter(|spec| spec.kind != Kind::Dense);
    let plan = Plan {
        prompt: options.prompt,
        generate: options.generate,
        contexts: contexts.to_vec(),
        batches: &options.batch,
        rows: sparse.flat_map(|spec| options.keep.0.iter().map(move |&keep| (spec, keep))).collect(),
        repetitions: options.repetitions,
        warm_up: options.warm_up,
        sparse: SparseOptions { relu_skip: options.relu_skip, ..SparseOptions::default() },
        seed: options.seed,
    };
    let is_sparse = !plan.rows.is_empty();
    let name = source.name.clone();
    let copies = layers_in_memory(&source, &plan)?;
    let notes = notes(&source, &plan, copies);
    notes.iter().for_each(|note| console.note(&format!("{name}: {note}")));

    let checkpoint = source.checkpoint(copies, options.seed, &console.bytes_progress())?;
    let cpu = options.cpu.options(Compute::Bf16);
    let plain = Engine::load(&checkpoint, EngineOptions { cpu })?;
    let packed = match is_sparse {
        true => Some(plain.over(&PackedCheckpoint::in_memory(&checkpoint, &console.bytes_progress())?)?),
        false => None,
    };
    drop(checkpoint);
    console.note(&format!("{name}: measuring {} rows, {} tokens in all", plan.count(), plan.steps()));
    let watch = Watch::new(console, plan.steps());
    let predictors = predictors(&plan, &plain, beyond_caches(), &watch)?;
    if let (Some(all), Some(packed)) = (&mut report.verified, &packed) {
        all.extend(verify::verify(&name, &plain, packed, &plan, &predictors, &watch)?);
    }
    let mut shape = ShapeRun {
        shape: name.clone(),
        dtype: plain.model().layers.first().map_or("", |layer| layer.attention.q.weight.stored().dtype().name()),
        parameters: plain.model().parameters(),
        weight_bytes: plain.model().weight_bytes(),
        layers: plain.config().layers,
        layers_in_memory: copies,
        read_gb_per_second: None,
        notes,
    };
    let room = available_memory().map(|free| free.saturating_sub(free / 10 + buffers(plain.config(), &plan)));
    let cpu = plain.cpu().clone();
    let mut bench = Bench::new(&name, &plan, plain, packed, predictors, beyond_caches(), room)?;
    let mut bandwidth = vec![memory.clone()];
    let dense = bench.dense_bytes(contexts.first().copied().unwrap_or(0));
    if dense < beyond_caches() {
        let mut own = Bandwidth::of(dense);
        own.measure(&cpu);
        bandwidth.push(own);
    }
    let result = bench.run(&mut bandwidth, &watch);
    watch.finish();
    *memory = bandwidth.swap_remove(0);
    if let Some(own) = bandwidth.pop() {
        shape.read_gb_per_second = Some(own.gb_per_second());
        shape.notes.push(format!(
            "a token's {:.1} MB may stay in the caches in part: shares are of the {:.1} GB/s that a buffer of that size is read at",
            dense as f64 / 1e6,
            own.gb_per_second()
        ));
    }
    let (rows, spread): (Vec<_>, Vec<_>) = result?.into_iter().unzip();
    report.rows.extend(rows);
    report.spread.extend(spread);
    report.run.shapes.push(shape);
    Ok(watch.go_on())
}

/// Tokens of a prompt that run at once; their buffers are the largest.
const CHUNK: usize = 512;

/// Bytes that are needed whatever is measured: what bandwidth is measured with, and of each layout of the weights a sequence that holds
/// the context and one that runs the prompt.
fn buffers(config: &shadowllm_weights::ModelConfig, plan: &Plan<'_>) -> u64 {
    let sequence = |positions| sequence_bytes(config, positions, &plan.sparse);
    let longest = plan.contexts.last().copied().unwrap_or(plan.prompt);
    let rows = CHUNK.min(longest) * (4 * config.hidden + 4 * config.heads * config.head_dim + 2 * config.ffn);
    let side = sequence(plan.positions(longest)) + sequence(plan.prompt) + 2 * 4 * rows as u64;
    beyond_caches().max(READ) + 2 * side
}

/// Layers that have weights of their own, as many as memory holds.
///
/// # Errors
/// [`BenchError::Memory`].
fn layers_in_memory(source: &Source, plan: &Plan<'_>) -> Result<usize, BenchError> {
    let mut specs: Vec<&policy::PolicySpec> = plan.rows.iter().map(|&(spec, _)| spec).collect();
    specs.dedup();
    let predictors: u64 = specs.iter().map(|spec| spec.memory(&source.config, beyond_caches())).sum();
    let longest = plan.contexts.last().copied().unwrap_or(plan.prompt);
    let sequence = sequence_bytes(&source.config, plan.positions(longest), &plan.sparse);
    let batch = plan.batches.iter().max().copied().unwrap_or(1) as u64;
    let layouts = if plan.rows.is_empty() { 1 } else { 2 };
    let copies = |rows: usize| {
        let sequences = rows as u64 * batch * sequence;
        let other = predictors + buffers(&source.config, plan) + sequences;
        source.copies(layouts, other, available_memory(), beyond_caches())
    };
    // Sequences for all rows at once if that can be, else at least for the dense model and one other.
    copies(plan.rows.len() + 1).or_else(|_| copies(plan.rows.len().min(1) + 1))
}

/// What a reader of the rows has to know.
fn notes(source: &Source, plan: &Plan<'_>, copies: usize) -> Vec<String> {
    let (layers, (layer, all)) = (source.config.layers, source.layer_bytes());
    let mut notes = Vec::new();
    if copies < layers {
        let held = layer * copies as u64;
        notes.push(format!(
            "larger than memory: the {layers} layers take their weights in turn from {copies} that are there, {:.1} GB of {:.1} GB",
            held as f64 / 1e9,
            all as f64 / 1e9,
        ));
        let least = plan.rows.iter().map(|&(_, keep)| f64::from(keep)).fold(1.0, f64::min);
        if least * held as f64 * 2.0 < beyond_caches() as f64 {
            notes.push(format!(
                "of these the rows that keep {least} read {:.0} MB, which the caches may hold in part: their times may be too good",
                least * held as f64 / 1e6
            ));
        }
    }
    notes
}

/// Prints, writes and draws what was measured.
fn hand_out(options: &Options, command: &[String], report: &Report, console: &mut Console) -> Result<()> {
    if options.json {
        console.json(report)?;
    } else if options.csv.as_deref() == Some(Path::new("-")) {
        console.text(&report.csv())?;
    } else {
        console.text(&report.text())?;
    }
    if let Some(verified) = report.verified.as_ref().filter(|verified| !verified.is_empty()) {
        let most = verified.iter().map(|row| row.largest_difference).fold(0.0, f32::max);
        let tokens: usize = verified.iter().map(|row| row.tokens).sum();
        console.note(&format!(
            "verified: {tokens} sparse tokens are those of the masked dense model, logits within {most:.1e} of the largest"
        ));
    }
    if let Some(path) = options.csv.as_deref().filter(|path| *path != Path::new("-")) {
        write_atomic(path, report.csv().as_bytes())?;
        console.note(&format!("wrote {}", path.display()));
    }
    if let Some(path) = &options.plot {
        write_atomic(path, plot::draw(report)?.as_bytes())?;
        console.note(&format!("wrote {}", path.display()));
    }
    if let Some(dir) = &options.record {
        let path = record::write(dir, &Host::look(), command, report)?;
        console.note(&format!("wrote {}", path.display()));
    }
    Ok(())
}
