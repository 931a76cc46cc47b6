//! The seeds of the fuzz targets for scores, predictors, gate thresholds and traces are what their parsers take today: a target whose seeds
//! have gone stale finds nothing.
//!
//! `FUZZ_SEEDS=write cargo test --test fuzz_seeds` makes them again after a change of format.

#![allow(clippy::unwrap_used)]

#[path = "../fuzz/model.rs"]
mod model;

use std::ops::ControlFlow;
use std::path::PathBuf;

use shadowllm::kernels::{Cpu, CpuOptions};
use shadowllm::learn::trace::{Importance, SampleOptions, Shard, TextSource, check_trace_file, write_trace};
use shadowllm::model::Model;
use shadowllm::model::random::random_checkpoint;
use shadowllm::sparsity::predictor::{
    HiddenActivation, LayerWeights, Normalization, PredictorInput, Training, WeightFormat, random_predictor,
    write_predictor,
};
use shadowllm::sparsity::{GateStatistic, GateThresholds, Predictor, PredictorInfo, Scores, ScoresFile, Units};
use shadowllm::weights::DType;

fn seed(target: &str, name: &str, write: impl FnOnce(&std::path::Path)) -> Vec<u8> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds")).join(target);
    let path = folder.join(name);
    if std::env::var_os("FUZZ_SEEDS").is_some_and(|value| value == "write") {
        std::fs::create_dir_all(&folder).unwrap();
        write(&path);
    }
    std::fs::read(path).unwrap()
}

#[test]
fn scores() {
    let units = Units::from(&model::config().unwrap());
    for (name, model) in [("named", Some(model::identity())), ("any-model", None)] {
        let scores = Scores { heads: (0..6).map(|i| i as f32).collect(), neurons: vec![0.5; 18] };
        let file = ScoresFile { scores, criterion: "test".to_owned(), model };
        let bytes = seed("scores", name, |path| file.write(path, units).unwrap());
        assert_eq!(ScoresFile::from_bytes(&bytes, units, &model::identity()).unwrap(), file);
    }
}

#[test]
fn predictors() {
    let config = model::config().unwrap();
    for (name, stations, normalization, format) in [
        ("one-station-int8", vec![0], Normalization::None, WeightFormat::Int8),
        ("two-stations-f16", vec![0, 1], Normalization::MinMax, WeightFormat::F16),
        ("trunk-f32", vec![0], Normalization::Standardize, WeightFormat::F32),
    ] {
        let info = PredictorInfo {
            model: model::identity(),
            stations,
            input: PredictorInput::Residual,
            normalization,
            activation: HiddenActivation::Relu,
            criterion: "test".to_owned(),
            training: Training { data: "none".to_owned(), seed: 1, ..Training::default() },
            validated: Vec::new(),
        };
        let mut weights = random_predictor(&info, &config, 2, 2, 1);
        if normalization == Normalization::Standardize {
            for station in &mut weights {
                station.standard = Some((vec![0.5; 8], vec![2.0; 8]));
                station.trunk = Some(LayerWeights { weight: vec![0.25; 16], cols: 8, bias: Some(vec![0.0; 2]) });
                for network in [&mut station.heads, &mut station.neurons] {
                    network.as_mut().unwrap().hidden = None;
                }
            }
        }
        let bytes = seed("predictor", name, |path| write_predictor(path, &info, &weights, format).unwrap());
        let read = Predictor::from_bytes(&bytes, &config, &model::identity()).unwrap();
        assert_eq!(*read.info(), info);
        assert!(read.ranks().heads && read.ranks().neurons);
    }
}

#[test]
fn gate_thresholds() {
    let config = model::config().unwrap();
    for (name, statistic) in [("weighted", GateStatistic::Weighted), ("plain", GateStatistic::Plain)] {
        let thresholds = GateThresholds {
            model: model::identity(),
            statistic,
            data: "none".to_owned(),
            tokens: 1,
            fractions: vec![0.25, 0.5, 0.75],
            limits: vec![0.0, 0.5, 1.0, 0.5, 0.5, 2.0, 0.25, 1.0, 4.0],
            scales: (statistic == GateStatistic::Weighted).then(|| (0..18).map(|i| i as f32 / 4.0).collect()),
        };
        let bytes = seed("gate_thresholds", name, |path| thresholds.write(path, &config).unwrap());
        assert_eq!(GateThresholds::from_bytes(&bytes, &config, &model::identity()).unwrap(), thresholds);
    }
}

#[test]
fn traces() {
    let cpu = Cpu::new(&CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
    let model = Model::load(&random_checkpoint(model::config().unwrap(), DType::F32, 1).unwrap()).unwrap();
    for (name, input, stations) in
        [("residual", PredictorInput::Residual, vec![0]), ("contexts", PredictorInput::Contexts, vec![0, 1])]
    {
        let bytes = seed("trace", name, |path| {
            let options =
                SampleOptions { input, stations: stations.clone(), window: 4, seed: 1, data: "numbers".to_owned() };
            let importance = Importance::of("magnitude", &cpu, &model).unwrap();
            let documents = vec![vec![1, 2, 3, 4, 5, 6], vec![7, 8]];
            let mut source = TextSource::new(&cpu, &model, importance, documents, &options).unwrap();
            let folder = tempfile::tempdir().unwrap();
            write_trace(&mut source, folder.path(), Shard::default(), &mut |_, _| ControlFlow::Continue(())).unwrap();
            std::fs::copy(folder.path().join("trace-00000.safetensors"), path).unwrap();
        });
        check_trace_file(&bytes).unwrap();
    }
}
