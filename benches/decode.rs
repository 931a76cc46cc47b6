//! Time of a decoded token against the kept fraction, beside the ideal line (bytes), for whole models: everything that a step
//! does is included, decisions too.
//!
//! ```text
//! shadowllm random-model DIR --shape opt-6.7b
//! cargo bench --bench decode -- --model DIR [--cases random,batch,shadow,dejavu,dejavu2048] [--kept 0.5,0.1] [--predictors DIR] [--threads N]
//!     [--no-plain]
//! ```
//!
//! With `batch` several sequences, each with random plans of its own, are decoded together; times and bytes are per token, so that a
//! row compares with any other.
//!
//! Predictors have random weights, which cost what trained ones of the same form cost; they are made in `--predictors` if they
//! are not there yet. The exact ReLU skip is off, so that bytes depend on the budget alone. Where plain and packed weights do not
//! fit into memory together, `--no-plain` leaves the plain ones out: everything, the prompt too, then runs over the packed ones.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shadowllm::generate::Sparsity;
use shadowllm::kernels::{Compute, CpuOptions, read_passes};
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
/// Tokens before them that bring everything into memory.
const WARM_UP: usize = 2;
/// Kept fractions of the policy `random`.
const KEPT: [f32; 10] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1];
/// Sequences that are decoded together in the case `batch`, and what each keeps.
const BATCHES: [usize; 3] = [2, 4, 8];
const BATCH_KEPT: [f32; 3] = [1.0, 0.5, 0.25];
/// Bytes read in one pass that measures the bandwidth.
const READ: usize = 512 << 20;

fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|a| a != name).nth(1)
}

/// One row of the table.
struct Case {
    name: String,
    /// Sequences that are decoded together. Keys and values that a case left out are its own debt, so each has sessions.
    sessions: Vec<Session>,
    /// Seconds of every step by its sequences, decisions included.
    seconds: Vec<f64>,
    /// Bytes of every step by its sequences, decisions included.
    bytes: Vec<f64>,
    /// Of these, of decisions.
    decisions: Vec<f64>,
    /// Seconds of these.
    deciding: Vec<f64>,
}

impl Case {
    fn step(&mut self, engine: &Engine, token: u32) {
        let n = self.sessions.len();
        let tokens: Vec<u32> = (0..n as u32).map(|i| token + 100 * i).collect();
        let start = Instant::now();
        let step = engine.step_batch(&mut self.sessions.iter_mut().collect::<Vec<_>>(), &tokens).unwrap();
        self.seconds.push(start.elapsed().as_secs_f64() / n as f64);
        self.bytes.push(step.bytes as f64 / n as f64);
        let decisions = self.sessions.iter().filter_map(Session::sparsity).map(Sparsity::decision_bytes);
        self.decisions.push(decisions.sum::<u64>() as f64 / n as f64);
        let deciding = self.sessions.iter().filter_map(Session::sparsity).map(Sparsity::decision_time);
        self.deciding.push(deciding.sum::<Duration>().as_secs_f64() / n as f64);
    }

    fn forget(&mut self) {
        self.sessions.iter_mut().for_each(|session| session.truncate(PROMPT));
        self.seconds.clear();
        self.bytes.clear();
        self.decisions.clear();
        self.deciding.clear();
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// What is compared: a model, its packed weights, and a session that holds the prompt.
struct Bench {
    engine: Engine,
    packed: Arc<PackedModel>,
    prompt: Session,
    predictors: PathBuf,
    cases: Vec<Case>,
}

impl Bench {
    fn session(&mut self, policy: Option<Box<dyn Policy>>) -> Session {
        let options = SparseOptions { relu_skip: false, ..SparseOptions::default() };
        let mut session = self.prompt.fork();
        session.reserve(PROMPT + TOKENS);
        let sparsity = policy.map(|policy| {
            Sparsity::new(Arc::clone(&self.packed), policy, Refresh::EveryToken, self.engine.config(), options)
        });
        session.set_sparsity(sparsity).unwrap();
        session
    }

    fn add(&mut self, name: String, policy: Option<Box<dyn Policy>>) {
        let session = self.session(policy);
        self.add_batch(name, vec![session]);
    }

    fn add_batch(&mut self, name: String, sessions: Vec<Session>) {
        let [seconds, bytes, decisions, deciding] = [const { Vec::new() }; 4];
        self.cases.push(Case { name, sessions, seconds, bytes, decisions, deciding });
    }

    fn random(&self, seed: u64, kept: f32) -> Option<Box<dyn Policy>> {
        let budget = Budget::new(kept, kept, Scope::Local).unwrap();
        Some(Box::new(Random::new(seed, budget, self.engine.config()).unwrap()))
    }

    /// Adds the rows of one word of `--cases`.
    fn add_named(&mut self, name: &str) {
        let budget = |kept, scope| Budget::new(kept, kept, scope).unwrap();
        match name {
            "random" => {
                let given = argument("--kept");
                let kept = given.map(|list| list.split(',').map(|kept| kept.parse().unwrap()).collect());
                for kept in kept.unwrap_or_else(|| KEPT.to_vec()) {
                    self.add(format!("random, kept {kept}"), self.random(1, kept));
                }
            }
            "batch" => {
                for kept in BATCH_KEPT {
                    for n in BATCHES {
                        let sessions = (0..n as u64).map(|seed| self.session(self.random(seed, kept))).collect();
                        self.add_batch(format!("{n} sequences, each random, kept {kept}"), sessions);
                    }
                }
            }
            "shadow" | "shadow-global" => {
                let predictor = self.predictor("shadow-256-int8", vec![0], [256, 256], WeightFormat::Int8);
                let scope = if name == "shadow" { Scope::Local } else { Scope::Global };
                let policy = Shadow::new(predictor, budget(0.5, scope)).unwrap();
                self.add(format!("{name}, width 256 int8, kept 0.5"), Some(Box::new(policy)));
            }
            "dejavu" | "dejavu2048" => {
                let ranks = if name == "dejavu" { [DejaVu::RANKS.0, DejaVu::RANKS.1] } else { [2048, 2048] };
                let stations = (0..self.engine.config().layers - 1).collect();
                let predictor = self.predictor(&format!("{name}-f16"), stations, ranks, WeightFormat::F16);
                let policy = DejaVu::new(predictor, budget(0.5, Scope::Local)).unwrap();
                self.add(format!("dejavu, ranks {}/{} f16, kept 0.5", ranks[0], ranks[1]), Some(Box::new(policy)));
            }
            _ => panic!("unknown case {name:?}; expected random, batch, shadow, shadow-global, dejavu or dejavu2048"),
        }
    }

    /// A predictor of random weights, from its file.
    fn predictor(&self, name: &str, stations: Vec<usize>, ranks: [usize; 2], format: WeightFormat) -> Arc<Predictor> {
        let (config, identity) = (self.engine.config(), ModelIdentity::of(self.engine.model()));
        let path = self.predictors.join(format!("{name}-{}.safetensors", identity.as_str()));
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
            let weights = random_predictor(&info, config, ranks[0], ranks[1], 1);
            write_predictor(&path, &info, &weights, format).unwrap();
        }
        Arc::new(Predictor::open(&path, config, &identity).unwrap())
    }

    /// Decodes all cases at the same time, token by token in turn, so that a machine that is slower for a while is so for all.
    fn run(&mut self) {
        for steps in [WARM_UP, TOKENS] {
            self.cases.iter_mut().for_each(Case::forget);
            for token in 7..7 + steps as u32 {
                self.cases.iter_mut().for_each(|case| case.step(&self.engine, token));
            }
        }
    }

    fn print(&self) {
        println!(
            "| case | ms per token | deciding | MB per token | of decisions | GB/s | speed-up | ideal | time / ideal |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
        let dense = &self.cases[0];
        for case in &self.cases {
            let slower = median(case.seconds.iter().zip(&dense.seconds).map(|(t, dense)| t / dense));
            let (bytes, ideal) = (mean(&case.bytes), mean(&dense.bytes) / mean(&case.bytes));
            let seconds = median(case.seconds.iter().copied());
            println!(
                "| {} | {:.2} | {:.2} | {:.1} | {:.1} | {:.1} | {:.2} | {ideal:.2} | {:.3} |",
                case.name,
                1e3 * seconds,
                1e3 * median(case.deciding.iter().copied()),
                bytes / 1e6,
                mean(&case.decisions) / 1e6,
                bytes / seconds / 1e9,
                slower.recip(),
                slower * ideal,
            );
        }
    }
}

fn main() {
    let Some(model) = argument("--model") else {
        println!("decode: no --model DIR given, nothing to measure");
        return;
    };
    let checkpoint = ModelSource::parse(&model).unwrap().open(&()).unwrap();
    let threads = argument("--threads").map(|n| n.parse().unwrap());
    let options = EngineOptions { cpu: CpuOptions { compute: Compute::Bf16, threads, ..CpuOptions::default() } };
    let packed = PackedCheckpoint::open_or_pack(&checkpoint, &()).unwrap();
    let with_plain = !std::env::args().any(|a| a == "--no-plain");
    let engine = match with_plain {
        true => Engine::load(&checkpoint, options).unwrap(),
        false => Engine::load_packed(&packed, options).unwrap(),
    };
    drop(checkpoint);
    let packed = Arc::new(PackedModel::load(&packed).unwrap());
    let mut prompt = engine.session(SessionOptions::default()).unwrap();
    let vocab = engine.config().vocab as u32;
    prompt.prefill(&(0..PROMPT as u32).map(|i| (i * 7919 + 11) % vocab).collect::<Vec<_>>()).unwrap();
    let mut bench = Bench {
        packed,
        prompt,
        predictors: argument("--predictors").map_or_else(std::env::temp_dir, PathBuf::from),
        cases: Vec::new(),
        engine: engine.clone(),
    };
    if with_plain {
        bench.add("plain engine, dense".into(), None);
    }
    bench.add("packed, dense".into(), Some(Box::new(Dense)));
    for name in argument("--cases").as_deref().unwrap_or("random").split(',') {
        bench.add_named(name);
    }
    let mut bandwidth = read_passes(engine.cpu(), READ, 9);
    bench.run();
    bandwidth.extend(read_passes(engine.cpu(), READ, 9));
    println!(
        "{}: {TOKENS} tokens after {PROMPT}, {} threads, {}, {:.1} GB/s read in the same run",
        Path::new(&model).file_name().map_or(model.clone(), |name| name.to_string_lossy().into_owned()),
        engine.cpu().threads(),
        engine.cpu().isa(),
        median(bandwidth),
    );
    println!("Speed-up: median over the tokens of the first row's time for the same token / this row's.");
    bench.print();
}
