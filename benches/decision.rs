//! What a decision costs: predicting scores and selecting units, at the shape of OPT-6.7B, beside the machine's bandwidth of the
//! same run. Between two measurements everything is evicted from the caches, as the layers of a token do.
//!
//! `cargo bench --bench decision [-- --threads N] [-- --isa NAME]`

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use shadowllm::kernels::{Compute, Cpu, CpuOptions, read_bandwidth};
use shadowllm::model::random::Shape;
use shadowllm::sparsity::predictor::{
    HiddenActivation, Normalization, PredictorInput, PredictorScratch, Training, Wanted, WeightFormat,
    random_predictor, write_predictor,
};
use shadowllm::sparsity::{
    Budget, ModelIdentity, Plan, Policy, PolicyInput, Predictor, PredictorInfo, Random, Scope, Scores, Selector,
    Station, Units,
};

use shadowllm::weights::{DType, ModelConfig};

const PASSES: usize = 9;

fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|a| a != name).nth(1)
}

/// Median milliseconds of `pass`, from memory.
fn milliseconds(cpu: &Cpu, mut pass: impl FnMut() + Send) -> f64 {
    let mut times: Vec<f64> = (0..PASSES)
        .map(|_| {
            read_bandwidth(cpu, 256 << 20);
            cpu.install(|| {
                let start = Instant::now();
                pass();
                1e3 * start.elapsed().as_secs_f64()
            })
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[PASSES / 2]
}

fn main() {
    let options = CpuOptions {
        isa: argument("--isa").map(|name| name.parse().unwrap()),
        threads: argument("--threads").map(|n| n.parse().unwrap()),
        compute: Compute::F32,
    };
    let cpu = Cpu::new(&options).unwrap();
    let shape: Shape = "opt-6.7b".parse().unwrap();
    let config = ModelConfig::from_json(&serde_json::to_vec(&shape.config_json(DType::BF16)).unwrap()).unwrap();
    let units = Units::from(&config);
    println!("OPT-6.7B shape, {} with {} threads", cpu.isa(), cpu.threads());

    let info = PredictorInfo {
        model: ModelIdentity::from_rows(&config, std::iter::empty()),
        stations: vec![0],
        input: PredictorInput::Residual,
        normalization: Normalization::None,
        activation: HiddenActivation::Relu,
        criterion: "none: random weights".into(),
        training: Training::default(),
        validated: Vec::new(),
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("predictor.safetensors");
    let weights = random_predictor(&info, &config, 256, 256, 1);
    let x: Vec<f32> = (0..config.hidden).map(|i| ((i * 7919) % 1009) as f32 / 504.0 - 1.0).collect();
    let wanted = Wanted { heads: true, neurons: true };
    let mut scores = Scores::zeros(units);
    for (name, format) in [("int8", WeightFormat::Int8), ("f16", WeightFormat::F16)] {
        write_predictor(&path, &info, &weights, format).unwrap();
        let predictor = Predictor::open(&path, &config, &info.model).unwrap();
        let mut scratch = PredictorScratch::default();
        let time = milliseconds(&cpu, || {
            predictor.predict(&cpu, 0, black_box(&x), wanted, &mut scratch, &mut scores).unwrap();
        });
        let rate = predictor.bytes(wanted) as f64 / time / 1e6;
        let share = 100.0 * rate / read_bandwidth(&cpu, 256 << 20);
        println!("  predict, width 256 {name}: {time:.2} ms, {rate:.1} GB/s, {share:.0} % of the bandwidth");
    }
    let mut plan = Plan::dense(units);
    for scope in [Scope::Local, Scope::Global] {
        let budget = Budget::new(0.5, 0.5, scope).unwrap();
        let mut selector = Selector::new();
        let time = milliseconds(&cpu, || {
            selector.select_layers(Some(&cpu), &scores, &budget, units, 1..units.layers, &mut plan).unwrap();
        });
        println!("  select half of {}, {scope}: {time:.2} ms", units.neurons * (units.layers - 1));
        let mut random = Random::new(1, budget, units).unwrap();
        let time = milliseconds(&cpu, || {
            let input = PolicyInput { station: Station::Start, position: 0, residual: &[], contexts: &[], cpu: &cpu };
            random.decide(input, &mut plan).unwrap();
        });
        println!("  draw half at random, {scope}: {time:.2} ms");
    }
}
