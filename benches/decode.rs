//! Time of a decoded token against the kept fraction, beside the ideal line (bytes), for whole models: everything that a step
//! does is included, decisions too. The plain dense engine is measured first in the same run.
//!
//! ```text
//! shadowllm random-model DIR --shape opt-6.7b
//! cargo bench --bench decode -- --model DIR [--cases random,shadow,dejavu,dejavu2048] [--rounds N] [--predictors DIR] [--threads N]
//! ```
//!
//! Predictors have random weights, which cost what trained ones of the same form cost; they are made in `--predictors` if they
//! are not there yet. The exact ReLU skip is off, so that bytes depend on the budget alone. Where plain and packed weights do not
//! fit into memory together, `--no-plain` leaves the plain engine out.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use shadowllm::generate::Sparsity;
use shadowllm::kernels::{Compute, CpuOptions, argmax, read_passes};
use shadowllm::model::{PackedModel, SparseOptions};
use shadowllm::sparsity::predictor::{
    HiddenActivation, Normalization, PredictorInput, Training, WeightFormat, random_predictor, write_predictor,
};
use shadowllm::sparsity::{
    Budget, DejaVu, Dense, ModelIdentity, Policy, Predictor, PredictorInfo, Random, Refresh, Scope, Shadow,
};
use shadowllm::weights::{ModelSource, PackedCheckpoint};
use shadowllm::{Engine, EngineOptions, Session, SessionOptions};

/// The protocol: tokens decoded after a prompt.
const PROMPT: usize = 128;
const TOKENS: usize = 32;
/// Kept fractions of the policy `random`.
const KEPT: [f32; 10] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1];
/// Bytes read in one pass that measures the bandwidth.
const READ: usize = 512 << 20;

fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|a| a != name).nth(1)
}

/// One row of the table.
struct Case {
    name: String,
    /// Whether it has a predictor.
    predicts: bool,
    /// `None`: the plain engine.
    sparsity: Option<Box<dyn Fn() -> Sparsity>>,
    /// Seconds of every step.
    steps: Vec<f64>,
    /// Bytes of one step, decisions included.
    bytes: f64,
    /// Of these, of decisions.
    decisions: f64,
}

impl Case {
    fn new(name: String, sparsity: Option<Box<dyn Fn() -> Sparsity>>) -> Self {
        let predicts = name.starts_with("shadow") || name.starts_with("dejavu");
        Case { name, predicts, sparsity, steps: Vec::new(), bytes: 0.0, decisions: 0.0 }
    }

    /// Decodes after the prompt that the session holds.
    fn run(&mut self, session: &mut Session, record: bool) {
        session.set_sparsity(self.sparsity.as_ref().map(|make| make())).unwrap();
        session.truncate(PROMPT);
        let (mut bytes, mut decisions, mut token) = (0, 0, 7);
        for _ in 0..TOKENS {
            let start = Instant::now();
            token = argmax(session.step(token).unwrap()) as u32;
            let seconds = start.elapsed().as_secs_f64();
            if record {
                self.steps.push(seconds);
            }
            bytes += session.step_bytes();
            decisions += session.sparsity().map_or(0, Sparsity::decision_bytes);
        }
        (self.bytes, self.decisions) = (bytes as f64 / TOKENS as f64, decisions as f64 / TOKENS as f64);
    }

    fn median(&self) -> f64 {
        median(&self.steps)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// A predictor of random weights, from its file.
fn predictor(
    engine: &Engine,
    path: &Path,
    stations: Vec<usize>,
    ranks: [usize; 2],
    format: WeightFormat,
) -> Arc<Predictor> {
    let identity = ModelIdentity::of(engine.model());
    if !path.exists() {
        let info = PredictorInfo {
            model: identity.clone(),
            activation: if stations.len() > 1 { HiddenActivation::None } else { HiddenActivation::Relu },
            stations,
            input: PredictorInput::Residual,
            normalization: Normalization::None,
            criterion: "none: random weights".into(),
            training: Training::default(),
            validated: Vec::new(),
        };
        let weights = random_predictor(&info, engine.config(), ranks[0], ranks[1], 1);
        write_predictor(path, &info, &weights, format).unwrap();
    }
    Arc::new(Predictor::open(path, engine.config(), &identity).unwrap())
}

fn cases(engine: &Engine, packed: &Arc<PackedModel>, names: &str, predictors: &Path) -> Vec<Case> {
    let options = SparseOptions { relu_skip: false, ..SparseOptions::default() };
    let layers = engine.config().layers;
    let config = engine.config().clone();
    let mut cases = Vec::new();
    let mut add = |name: String, policy: Box<dyn Fn() -> Box<dyn Policy>>| {
        let (packed, config) = (Arc::clone(packed), config.clone());
        let make = move || Sparsity::new(Arc::clone(&packed), policy(), Refresh::EveryToken, &config, options);
        cases.push(Case::new(name, Some(Box::new(make))));
    };
    let budget = |kept| Budget::new(kept, kept, Scope::Local).unwrap();
    add("packed, dense".into(), Box::new(|| Box::new(Dense)));
    for name in names.split(',') {
        match name {
            "random" => {
                for kept in KEPT {
                    let config = engine.config().clone();
                    add(
                        format!("random, kept {kept}"),
                        Box::new(move || Box::new(Random::new(1, budget(kept), &config).unwrap())),
                    );
                }
            }
            "shadow" | "shadow-global" => {
                let path = predictors.join("shadow-256-int8.safetensors");
                let predictor = predictor(engine, &path, vec![0], [256, 256], WeightFormat::Int8);
                let scope = if name == "shadow" { Scope::Local } else { Scope::Global };
                let budget = Budget::new(0.5, 0.5, scope).unwrap();
                let make = move || Box::new(Shadow::new(Arc::clone(&predictor), budget).unwrap()) as Box<dyn Policy>;
                add(format!("{name}, width 256 int8, kept 0.5"), Box::new(make));
            }
            "dejavu" | "dejavu2048" => {
                let ranks = if name == "dejavu" { [DejaVu::RANKS.0, DejaVu::RANKS.1] } else { [2048, 2048] };
                let path = predictors.join(format!("{name}-f16.safetensors"));
                let stations = (0..layers - 1).collect();
                let predictor = predictor(engine, &path, stations, ranks, WeightFormat::F16);
                let make =
                    move || Box::new(DejaVu::new(Arc::clone(&predictor), budget(0.5)).unwrap()) as Box<dyn Policy>;
                add(format!("dejavu, ranks {}/{} f16, kept 0.5", ranks[0], ranks[1]), Box::new(make));
            }
            _ => panic!("unknown case {name:?}; expected random, shadow, shadow-global, dejavu or dejavu2048"),
        }
    }
    cases
}

fn main() {
    let Some(model) = argument("--model") else {
        println!("decode: no --model DIR given, nothing to measure");
        return;
    };
    let rounds = argument("--rounds").map_or(3, |n| n.parse().unwrap());
    let names = argument("--cases").unwrap_or_else(|| "random".into());
    let predictors = argument("--predictors").map_or_else(std::env::temp_dir, PathBuf::from);
    let threads = argument("--threads").map(|n| n.parse().unwrap());
    let checkpoint = ModelSource::parse(&model).unwrap().open(&()).unwrap();
    let cpu = CpuOptions { compute: Compute::Bf16, threads, ..CpuOptions::default() };
    let engine = Engine::load(&checkpoint, EngineOptions { cpu }).unwrap();
    let packed = PackedCheckpoint::open_or_pack(&checkpoint, &()).unwrap();
    let packed = Arc::new(PackedModel::load(&packed).unwrap());
    let mut session = engine.session(SessionOptions::default()).unwrap();
    session.reserve(PROMPT + TOKENS);
    let vocab = engine.config().vocab as u32;
    let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| (i * 7919 + 11) % vocab).collect();
    session.prefill(&prompt).unwrap();
    let mut bandwidth = Vec::new();

    let mut plain = Case::new("plain engine, dense".into(), None);
    let with_plain = !std::env::args().any(|a| a == "--no-plain");
    if with_plain {
        plain.run(&mut session, false);
        for _ in 0..rounds {
            plain.run(&mut session, true);
            bandwidth.extend(read_passes(engine.cpu(), READ, 3));
        }
    }
    let mut cases = cases(&engine, &packed, &names, &predictors);
    // Everything once, so that all that will be read is in memory.
    cases[0].run(&mut session, false);
    cases.iter_mut().filter(|case| case.predicts).for_each(|case| case.run(&mut session, false));
    for _ in 0..rounds {
        for case in &mut cases {
            case.run(&mut session, true);
            bandwidth.extend(read_passes(engine.cpu(), READ, 1));
        }
    }
    let read = median(&bandwidth);
    println!(
        "{model}: {TOKENS} tokens after {PROMPT}, {} threads, {}, {read:.1} GB/s read in the same run",
        engine.cpu().threads(),
        engine.cpu().isa()
    );
    println!(
        "| case | ms per token | MB per token | of decisions | GB/s | speed-up over dense | ideal | time / ideal time |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let full = (cases[0].median(), cases[0].bytes);
    let dense = if with_plain { (plain.median(), plain.bytes) } else { full };
    for case in with_plain.then_some(&plain).into_iter().chain(&cases) {
        let (seconds, bytes) = (case.median(), case.bytes);
        println!(
            "| {} | {:.2} | {:.1} | {:.1} | {:.1} | {:.2} | {:.2} | {:.3} |",
            case.name,
            1e3 * seconds,
            bytes / 1e6,
            case.decisions / 1e6,
            bytes / seconds / 1e9,
            dense.0 / seconds,
            dense.1 / bytes,
            seconds / (full.0 * bytes / full.1),
        );
    }
}
