//! Round trips, an oracle in `f64`, and every way that a file can be wrong.

use std::path::PathBuf;

use half::f16;
use proptest::prelude::*;
use shadowllm_weights::ModelConfig;

use super::*;
use crate::kernels::{CpuOptions, IsaName};
use crate::sparsity::ModelIdentity;
use crate::sparsity::testing::{UNITS, config, cpu, info, scores};

const ALL: Wanted = Wanted { heads: true, neurons: true };

/// Writes, keeping the directory alive.
fn written(info: &PredictorInfo, stations: &[StationWeights], format: WeightFormat) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("p.safetensors");
    write_predictor(&path, info, stations, format).unwrap();
    (directory, path)
}

fn open(path: &std::path::Path, info: &PredictorInfo) -> Result<Predictor> {
    Predictor::open(path, &config(), &info.model)
}

fn predict(predictor: &Predictor, cpu: &Cpu, x: &[f32]) -> Scores {
    let mut out = Scores::zeros(UNITS);
    let mut scratch = PredictorScratch::default();
    for station in 0..predictor.info().stations.len() {
        predictor.predict(cpu, station, x, ALL, &mut scratch, &mut out).unwrap();
    }
    out
}

/// Deterministic values in -1..1.
fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = crate::sparsity::testing::rng(seed);
    (0..n).map(|_| rng() * 2.0 - 1.0).collect()
}

#[test]
fn a_constant_predictor_gives_its_scores() {
    for format in [WeightFormat::F32, WeightFormat::F16, WeightFormat::Int8] {
        for stations in [vec![0], vec![0, 1]] {
            let info = PredictorInfo { stations, ..info() };
            let mut expected = scores(3);
            let (_directory, path) = written(&info, &constant_predictor(&info, &config(), &expected), format);
            let predictor = open(&path, &info).unwrap();
            assert_eq!(predictor.info(), &info);
            expected.heads[..UNITS.heads].fill(0.0);
            expected.neurons[..UNITS.neurons].fill(0.0);
            assert_eq!(predict(&predictor, &cpu(), &values(1, 8)), expected);
        }
    }
}

/// Many tokens at once get, bit for bit, the scores that each gets alone.
#[test]
fn rows_are_predicted_as_one_by_one() {
    let trunk = |mut stations: Vec<StationWeights>| {
        for station in &mut stations {
            station.trunk = station.heads.as_mut().and_then(|network| network.hidden.take());
            station.neurons.as_mut().unwrap().hidden = None;
        }
        stations
    };
    for format in [WeightFormat::F32, WeightFormat::F16, WeightFormat::Int8] {
        for normalization in [Normalization::None, Normalization::MinMax, Normalization::Standardize] {
            let info = PredictorInfo { stations: vec![0, 1], normalization, ..info() };
            let mut stations = random_predictor(&info, &config(), 600, 600, 7);
            if normalization == Normalization::Standardize {
                stations = trunk(stations);
                for station in &mut stations {
                    station.standard = Some((values(5, 8), values(6, 8)));
                }
            }
            let (_directory, path) = written(&info, &stations, format);
            let predictor = open(&path, &info).unwrap();
            for threads in [1, 3] {
                let cpu = Cpu::new(&CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap();
                for rows in [1, 2, 5, 16, 31] {
                    let mut x = values(rows as u64, 8 * rows);
                    x[0] = f32::NAN;
                    let mut together = vec![Scores::zeros(UNITS); rows];
                    let mut into: Vec<&mut Scores> = together.iter_mut().collect();
                    let mut scratch = PredictorScratch::default();
                    for station in 0..2 {
                        predictor.predict_rows(&cpu, station, &x, ALL, &mut scratch, &mut into).unwrap();
                    }
                    let bits = |scores: &Scores| {
                        scores.heads.iter().chain(&scores.neurons).map(|v| v.to_bits()).collect::<Vec<_>>()
                    };
                    for (x, together) in x.chunks_exact(8).zip(&together) {
                        assert!(bits(together) == bits(&predict(&predictor, &cpu, x)), "{format:?}, {rows} rows");
                    }
                }
            }
        }
    }
}

#[test]
fn the_same_input_gives_the_same_file() {
    let weights = random_predictor(&info(), &config(), 3, 5, 7);
    assert_eq!(weights, random_predictor(&info(), &config(), 3, 5, 7));
    assert_ne!(weights, random_predictor(&info(), &config(), 3, 5, 8));
    let (a, b) = (written(&info(), &weights, WeightFormat::Int8), written(&info(), &weights, WeightFormat::Int8));
    let read = |path: PathBuf| std::fs::read(path).unwrap();
    assert_eq!(read(a.1), read(b.1));
}

/// A weight as the format keeps it.
fn rounded(layer: &LayerWeights, format: WeightFormat) -> Vec<f64> {
    let rows = layer.weight.chunks_exact(layer.cols);
    rows.flat_map(|row| {
        let scale = row.iter().fold(0.0_f32, |m, v| m.max(v.abs())) / 127.0;
        row.iter().map(move |&v| match format {
            WeightFormat::F32 => f64::from(v),
            WeightFormat::F16 => f16::from_f32(v).to_f64(),
            WeightFormat::Int8 => f64::from((v / scale).round()) * f64::from(scale),
        })
    })
    .collect()
}

fn oracle_layer(layer: &LayerWeights, format: WeightFormat, x: &[f64]) -> Vec<f64> {
    let weight = rounded(layer, format);
    // Beside integers inputs are integers, too.
    let unit = x.iter().fold(0.0_f64, |m, v| m.max(v.abs())) / 32767.0;
    let x: Vec<f64> = match format {
        WeightFormat::Int8 if unit > 0.0 => x.iter().map(|v| (v / unit).round() * unit).collect(),
        _ => x.to_vec(),
    };
    let rows = weight.chunks_exact(layer.cols).enumerate();
    rows.map(|(r, row)| {
        row.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>() + layer.bias.as_ref().map_or(0.0, |b| f64::from(b[r]))
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn predictions_equal_the_formula(
        seed in any::<u64>(),
        format in prop_oneof![Just(WeightFormat::F32), Just(WeightFormat::F16), Just(WeightFormat::Int8)],
        normalization in prop_oneof![Just(Normalization::None), Just(Normalization::MinMax), Just(Normalization::Standardize)],
        activation in prop_oneof![Just(HiddenActivation::Relu), Just(HiddenActivation::None)],
        input in prop_oneof![Just(PredictorInput::Residual), Just(PredictorInput::Contexts)],
        widths in (1_usize..40, 1_usize..40),
        trunk in any::<bool>(),
        biases in any::<bool>(),
        stations in prop_oneof![Just(vec![0]), Just(vec![0, 1])],
    ) {
        let info = PredictorInfo { normalization, activation, input, stations, ..info() };
        let widths = if trunk { (widths.0, widths.0) } else { widths };
        let mut weights = random_predictor(&info, &config(), widths.0, widths.1, seed);
        for station in &mut weights {
            let (heads, neurons) = (station.heads.as_mut().unwrap(), station.neurons.as_mut().unwrap());
            if !biases {
                heads.output.bias = None;
                neurons.hidden.as_mut().unwrap().bias = None;
            }
            if trunk {
                station.trunk = heads.hidden.take();
                neurons.hidden = None;
            }
            if normalization == Normalization::Standardize {
                station.standard = Some((values(seed ^ 1, 8), values(seed ^ 2, 8)));
            }
        }
        let (_directory, path) = written(&info, &weights, format);
        let predictor = open(&path, &info).unwrap();
        let x = values(seed ^ 3, 8);
        let found = predict(&predictor, &cpu(), &x);

        let mut expected = (vec![0.0; UNITS.heads], vec![0.0; UNITS.neurons]);
        for station in &weights {
            let x: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
            let (min, max) = x.iter().fold((f64::MAX, f64::MIN), |(lo, hi), &v| (v.min(lo), v.max(hi)));
            let x: Vec<f64> = x.iter().enumerate().map(|(i, &v)| match normalization {
                Normalization::None => v,
                Normalization::MinMax => (v - min) / (max - min),
                Normalization::Standardize => {
                    let (mean, scale) = station.standard.as_ref().unwrap();
                    (v - f64::from(mean[i])) * f64::from(scale[i])
                }
            }).collect();
            for (network, out) in [(&station.heads, &mut expected.0), (&station.neurons, &mut expected.1)] {
                let network = network.as_ref().unwrap();
                let hidden = network.hidden.as_ref().or(station.trunk.as_ref()).unwrap();
                let mut between = oracle_layer(hidden, format, &x);
                if activation == HiddenActivation::Relu {
                    between.iter_mut().for_each(|v| *v = v.max(0.0));
                }
                out.extend(oracle_layer(&network.output, format, &between));
            }
        }
        for (found, expected) in [(&found.heads, &expected.0), (&found.neurons, &expected.1)] {
            prop_assert_eq!(found.len(), expected.len());
            for (f, e) in found.iter().zip(expected) {
                prop_assert!((f64::from(*f) - e).abs() < 1e-4, "{} instead of {}", f, e);
            }
        }
        // Bytes declared are the bytes of the file's tensors.
        let file = crate::sparsity::file::File::read(&path).unwrap();
        let tensors: u64 = file.names().map(|name| file.bytes_of(name)).sum();
        prop_assert_eq!(predictor.bytes(ALL), tensors);
    }
}

#[test]
fn threads_do_not_change_a_bit_nor_do_instruction_sets_of_integers() {
    let json =
        br#"{"model_type": "opt", "num_hidden_layers": 5, "hidden_size": 40, "num_attention_heads": 4, "ffn_dim": 900,
        "vocab_size": 10, "max_position_embeddings": 16, "word_embed_proj_dim": 40, "do_layer_norm_before": true}"#;
    let json = String::from_utf8_lossy(json)
        .replace("\"max_position", "\"bos_token_id\": 2, \"eos_token_id\": 2, \"max_position");
    let config = ModelConfig::from_json(json.as_bytes()).unwrap();
    let weights = random_predictor(&info(), &config, 33, 70, 1);
    for format in [WeightFormat::F16, WeightFormat::Int8] {
        let (_directory, path) = written(&info(), &weights, format);
        let predictor = Predictor::open(&path, &config, &info().model).unwrap();
        let run_on = |isa, threads| {
            let cpu = Cpu::new(&CpuOptions { isa, threads: Some(threads), ..CpuOptions::default() }).unwrap();
            let mut out = Scores::zeros(&config);
            predictor.predict(&cpu, 0, &values(4, 40), ALL, &mut PredictorScratch::default(), &mut out).unwrap();
            out.neurons.iter().chain(&out.heads).map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let one = run_on(None, 1);
        assert_eq!(one, run_on(None, 2));
        assert_eq!(one, run_on(None, 3));
        if format == WeightFormat::Int8 {
            for isa in IsaName::available() {
                assert_eq!(one, run_on(Some(isa), 2), "{isa}");
            }
        }
    }
}

#[test]
fn wide_layers_of_integers_are_exact_and_broken_inputs_stay_visible() {
    // More columns than 32 bits can sum, all of the largest product.
    let json = r#"{"model_type": "opt", "num_hidden_layers": 2, "hidden_size": 1400, "num_attention_heads": 4, "ffn_dim": 9,
        "vocab_size": 10, "max_position_embeddings": 16, "word_embed_proj_dim": 1400, "do_layer_norm_before": true,
        "bos_token_id": 2, "eos_token_id": 2}"#;
    let config = ModelConfig::from_json(json.as_bytes()).unwrap();
    let layer = |rows: usize, cols: usize| LayerWeights { weight: vec![1.0; rows * cols], cols, bias: None };
    let network = |rows| Some(NetworkWeights { hidden: Some(layer(1300, 1400)), output: layer(rows, 1300) });
    let stations = [StationWeights { heads: network(4), neurons: network(9), ..StationWeights::default() }];
    let (_directory, path) = written(&info(), &stations, WeightFormat::Int8);
    let predictor = Predictor::open(&path, &config, &info().model).unwrap();
    let mut out = Scores::zeros(&config);
    let mut predict = |x: &[f32]| {
        predictor.predict(&cpu(), 0, x, ALL, &mut PredictorScratch::default(), &mut out).unwrap();
        out.neurons[9..].to_vec()
    };
    let expected = 1400.0 * 1300.0;
    assert!(predict(&[1.0; 1400]).iter().all(|v| (v - expected).abs() < 1e-6 * expected));
    assert!(predict(&[0.0; 1400]).iter().all(|&v| v == 0.0));
    for broken in [f32::NAN, f32::INFINITY] {
        let mut x = [1.0; 1400];
        x[700] = broken;
        assert!(predict(&x).iter().all(|v| v.is_nan()));
    }
}

#[test]
fn what_is_not_wanted_is_neither_read_nor_written() {
    let (_directory, path) = written(&info(), &random_predictor(&info(), &config(), 3, 5, 1), WeightFormat::F32);
    let predictor = open(&path, &info()).unwrap();
    let heads = Wanted { heads: true, neurons: false };
    let mut out = Scores::zeros(UNITS);
    predictor.predict(&cpu(), 0, &values(1, 8), heads, &mut PredictorScratch::default(), &mut out).unwrap();
    assert!(out.neurons.iter().all(|&v| v == 0.0) && out.heads[4..].iter().all(|&v| v != 0.0));
    assert_eq!(predictor.bytes(heads), 4 * (3 * 8 + 3 + 8 * 3 + 8));
    assert_eq!(
        predictor
            .predict(&cpu(), 0, &[0.0; 7], heads, &mut PredictorScratch::default(), &mut out)
            .unwrap_err()
            .to_string(),
        "the predictor reads 8 values, but was given 7"
    );
}

#[test]
fn a_broken_input_is_reported_by_selection() {
    let (_directory, path) = written(&info(), &random_predictor(&info(), &config(), 3, 5, 1), WeightFormat::Int8);
    let found = predict(&open(&path, &info()).unwrap(), &cpu(), &[f32::NAN; 8]);
    assert_eq!(
        found.validate(UNITS).unwrap_err().to_string(),
        "the score of head 0 of layer 1 is NaN; scores must be finite numbers"
    );
}

#[test]
fn wrong_files_say_what_is_wrong() {
    struct Case {
        change: fn(&mut PredictorInfo, &mut Vec<StationWeights>),
        message: &'static str,
    }
    fn heads(stations: &mut [StationWeights]) -> &mut NetworkWeights {
        stations[0].heads.as_mut().unwrap()
    }
    let cases = [
        Case {
            change: |info, _| info.model = ModelIdentity::from("def".to_owned()),
            message: "made for the model def, but this model is abc; use a file that was made for this model",
        },
        Case {
            change: |info, _| info.stations = vec![1],
            message: "metadata predictor: stations are [1]; expected ascending layers that begin with 0 and end before the last layer, 2",
        },
        Case {
            change: |info, _| info.stations = vec![0, 2],
            message: "metadata predictor: stations are [0, 2]; expected ascending layers that begin with 0 and end before the last layer, 2",
        },
        Case {
            change: |info, _| info.stations = vec![0, 1],
            message: "tensor 0.heads.output.weight has shape [8, 3], but this model needs [4, 3]; the file is for another model",
        },
        Case {
            change: |_, stations| heads(stations).output.weight.truncate(21),
            message: "tensor 0.heads.output.weight has shape [7, 3], but this model needs [8, 3]; the file is for another model",
        },
        Case {
            change: |_, stations| heads(stations).output.bias = Some(vec![0.0; 9]),
            message: "tensor 0.heads.output.bias has shape [9], but this model needs [8]; the file is for another model",
        },
        Case {
            change: |_, stations| heads(stations).hidden = None,
            message: "there is no tensor 0.heads.hidden.weight; the file has 0.heads.output.bias, 0.heads.output.weight, \
                      0.neurons.hidden.bias, 0.neurons.hidden.weight, 0.neurons.output.bias, 0.neurons.output.weight",
        },
        Case {
            change: |_, stations| stations.clear(),
            message: "there is no tensor 0.heads.output.weight or 0.neurons.output.weight; the file has no tensors",
        },
        Case {
            change: |info, _| info.normalization = Normalization::Standardize,
            message: "there is no tensor 0.mean; the file has 0.heads.hidden.bias, 0.heads.hidden.weight, 0.heads.output.bias, \
                      0.heads.output.weight, 0.neurons.hidden.bias, 0.neurons.hidden.weight, 0.neurons.output.bias, \
                      0.neurons.output.weight",
        },
        Case {
            change: |_, stations| stations[0].standard = Some((vec![0.0; 8], vec![0.0; 8])),
            message: "tensor 0.mean has no meaning in a predictor file with these stations and this normalization; \
                      remove or rename it",
        },
        Case {
            change: |info, stations| {
                info.stations = vec![0, 1];
                *stations = random_predictor(info, &config(), 3, 5, 1);
                stations[1].heads = None;
            },
            message: "metadata predictor: some stations have networks for heads or neurons that others lack; all must have the same",
        },
    ];
    for case in cases {
        let mut wrong = info();
        let mut stations = random_predictor(&wrong, &config(), 3, 5, 1);
        (case.change)(&mut wrong, &mut stations);
        let (_directory, path) = written(&wrong, &stations, WeightFormat::F32);
        let error = open(&path, &info()).unwrap_err().to_string();
        assert_eq!(error, format!("{}: {}", path.display(), case.message));
    }
}

#[test]
fn wrong_descriptions_say_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("p.safetensors");
    let good = info().to_json().unwrap();
    for (key, json, message) in [
        (
            "other",
            good.clone(),
            "metadata predictor: it is not there; this is another kind of file, or it was written without metadata",
        ),
        (
            "predictor",
            good.replace("\"version\":1", "\"version\":2"),
            "predictor format version 2; this program reads version 1: train the predictor again or use the program it was made with",
        ),
        ("predictor", "{}".to_owned(), "metadata predictor: missing field `version` at line 1 column 2"),
        (
            "predictor",
            r#"{"version": 1, "model": "abc"}"#.to_owned(),
            "metadata predictor: missing field `stations` at line 1 column 30",
        ),
    ] {
        let metadata = std::collections::BTreeMap::from([(key.to_owned(), json)]);
        shadowllm_weights::SafetensorsWriter::create(&path, &[], &metadata).unwrap().finish().unwrap();
        assert_eq!(open(&path, &info()).unwrap_err().to_string(), format!("{}: {message}", path.display()));
    }
}

#[test]
fn weights_without_whole_rows_are_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("p.safetensors");
    let mut stations = random_predictor(&info(), &config(), 3, 5, 1);
    stations[0].heads.as_mut().unwrap().output.weight.pop();
    assert_eq!(
        write_predictor(&path, &info(), &stations, WeightFormat::Int8).unwrap_err().to_string(),
        "the predictor cannot be written: 0.heads.output has 23 weights, which are no whole rows of 3"
    );
    assert!(!path.exists());
}

#[test]
fn random_predictors_in_memory() {
    let info = PredictorInfo { stations: vec![0, 1], ..info() };
    for format in WeightFormat::ALL {
        let (_directory, path) = written(&info, &random_predictor(&info, &config(), 3, 5, 1), format);
        let read = open(&path, &info).unwrap();
        let make = |copies, seed| Predictor::random(info.clone(), &config(), [3, 5], format, copies, seed).unwrap();
        assert_eq!((make(2, 7).bytes(ALL), make(2, 7).widths()), (read.bytes(ALL), read.widths()));
        let scores = |copies, seed| predict(&make(copies, seed), &cpu(), &values(1, 8));
        assert_eq!(scores(2, 7), scores(2, 7));
        assert_ne!(scores(2, 7), scores(2, 8));
        // With one copy both stations have the same weights.
        let layers = |scores: Scores| [1, 2].map(|layer| scores.neurons[layer * 32..][..32].to_vec());
        let ([first, second], [own, other]) = (layers(scores(1, 7)), layers(scores(2, 7)));
        assert!(first == second && first == own && own != other);
    }
    let normalized = PredictorInfo { normalization: Normalization::Standardize, ..info };
    let error = Predictor::random(normalized, &config(), [3, 5], WeightFormat::F16, 1, 7).unwrap_err();
    assert_eq!(error.to_string(), "metadata predictor: random predictors have no means to standardise by");
}
