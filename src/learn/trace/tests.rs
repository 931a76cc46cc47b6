//! Samples of small random models, from text and from files.

use std::ops::ControlFlow;
use std::path::Path;

use shadowllm_weights::{DType, ModelConfig};

use super::*;
use crate::kernels::Cpu;
use crate::learn::criteria::LayerInput;
use crate::learn::samples::{SampleBatch, SampleSource};
use crate::learn::train::{Factors, TrainOptions, Width, train};
use crate::learn::{BackwardWorkspace, Criterion, Form, LayerRecord, LayerVisitor, Loss, UnitKind, backward};
use crate::model::random::random_checkpoint;
use crate::model::{KvCache, Model, Probe, Rows, Segment, Workspace};
use crate::sparsity::ModelIdentity;
use crate::sparsity::predictor::{PredictorInput, WeightFormat};
use crate::sparsity::testing::cpu;
use crate::{Error, Result};

fn model(seed: u64) -> Model {
    let json = r#"{"model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "hidden_act": "silu"}"#;
    let config = ModelConfig::from_json(json.as_bytes()).unwrap();
    Model::load(&random_checkpoint(config, DType::F32, seed).unwrap()).unwrap()
}

fn documents(n: usize) -> Vec<Vec<u32>> {
    (0..n).map(|d| (0..30 + 7 * (d % 5)).map(|i| ((i * i + 3 * d * i + d) % 61) as u32).collect()).collect()
}

fn options(input: PredictorInput) -> SampleOptions {
    SampleOptions { input, stations: vec![0, 2], window: 20, seed: 5, data: "numbers".to_owned() }
}

fn source<'a>(cpu: &'a Cpu, model: &'a Model, name: &str, input: PredictorInput, n: usize) -> TextSource<'a> {
    TextSource::new(cpu, model, Importance::of(name, cpu, model).unwrap(), documents(n), &options(input)).unwrap()
}

/// Everything that the model did in one window.
#[derive(Default)]
struct Record {
    residual: Vec<Vec<f32>>,
    contexts: Vec<Vec<f32>>,
    inners: Vec<Vec<f32>>,
}

impl Probe for Record {
    fn residual(&mut self, _: Rows, values: &mut [f32]) {
        self.residual.push(values.to_vec());
    }

    fn contexts(&mut self, _: Rows, values: &mut [f32]) {
        self.contexts.push(values.to_vec());
    }

    fn inners(&mut self, _: Rows, values: &mut [f32]) {
        self.inners.push(values.to_vec());
    }
}

#[test]
fn samples_are_what_the_model_did() {
    let (cpu, model) = (cpu(), model(1));
    for input in [PredictorInput::Residual, PredictorInput::Contexts] {
        let mut source = source(&cpu, &model, "l2norm", input, 3);
        let mut batch = SampleBatch::default();
        let mut rows = 0;
        while source.next(&|_| true, &mut batch).unwrap() {
            let window = source.windows()[source.position() as usize - 1];
            let tokens = &documents(3)[window.document as usize][window.start..window.start + window.len];
            assert_eq!((batch.rows, &batch.documents), (tokens.len(), &vec![window.document; tokens.len()]));
            let mut record = Record::default();
            let mut cache = KvCache::new(&model.config, 20);
            let segment = Segment { tokens, cache: &mut cache };
            model.forward(&cpu, &mut [segment], &mut Workspace::default(), &mut record).unwrap();
            for (station, after) in [0, 2].into_iter().enumerate() {
                let expected = match input {
                    PredictorInput::Residual => &record.residual[after + 1],
                    PredictorInput::Contexts => &record.contexts[after],
                };
                assert_eq!(&batch.inputs[station], expected);
            }
            for row in 0..batch.rows {
                for layer in 1..4 {
                    let inners = &record.inners[layer][row * 40..(row + 1) * 40];
                    let found = &batch.neurons[(row * 3 + layer - 1) * 40..][..40];
                    assert!(found.iter().zip(inners).all(|(found, z)| *found == z.abs()));
                    let head = &record.contexts[layer][row * 24 + 6..row * 24 + 12];
                    let norm = head.iter().map(|v| v * v).sum::<f32>().sqrt();
                    assert_eq!(batch.heads[(row * 3 + layer - 1) * 4 + 1], norm);
                }
            }
            rows += batch.rows as u64;
        }
        assert_eq!(rows, source.rows(&|_| true));
        assert_eq!(rows, documents(3).iter().map(|d| d.len() as u64).sum::<u64>());
    }
}

/// Inputs and importances of all layers of one window, straight from the backward pass.
struct Direct<'a> {
    cpu: &'a Cpu,
    model: &'a Model,
    tokens: &'a [u32],
    criterion: &'static dyn Criterion,
    /// For each layer, `[T, d]`, `[T, H]` and `[T, F]`.
    layers: Vec<[Vec<f32>; 3]>,
}

impl LayerVisitor for Direct<'_> {
    fn layer(&mut self, record: &LayerRecord<'_>) -> crate::Result<()> {
        let input = LayerInput { cpu: self.cpu, model: self.model, tokens: self.tokens, record, curvature: None };
        let (mut heads, mut neurons) = (vec![0.0; record.tokens * 4], vec![0.0; record.tokens * 40]);
        self.criterion.score(&input, UnitKind::Heads, Form::Token, &mut heads)?;
        self.criterion.score(&input, UnitKind::Neurons, Form::Token, &mut neurons)?;
        self.layers[record.layer] = [record.residual.to_vec(), heads, neurons];
        Ok(())
    }
}

#[test]
fn samples_of_gradients_are_those_of_the_backward_pass_without_the_last_token() {
    let (cpu, model) = (cpu(), model(1));
    for name in ["saliency", "plainact", "fisher", "gradnorm"] {
        let mut source = source(&cpu, &model, name, PredictorInput::Residual, 3);
        let mut batch = SampleBatch::default();
        let mut rows = 0;
        while source.next(&|_| true, &mut batch).unwrap() {
            let window = source.windows()[source.position() as usize - 1];
            assert_eq!(batch.rows, window.len);
            let tokens = &documents(3)[window.document as usize][window.start..=window.start + window.len];
            let criterion = name.parse::<&'static dyn Criterion>().unwrap();
            let mut direct =
                Direct { cpu: &cpu, model: &model, tokens, criterion, layers: vec![Default::default(); 4] };
            backward(&cpu, &model, tokens, &Loss::sum(), &mut BackwardWorkspace::new(), &mut direct).unwrap();
            assert_eq!(batch.inputs[1], direct.layers[2][0][..batch.rows * 24]);
            for row in 0..batch.rows {
                for layer in 1..4 {
                    let [_, heads, neurons] = &direct.layers[layer];
                    assert_eq!(batch.heads[(row * 3 + layer - 1) * 4..][..4], heads[row * 4..][..4]);
                    assert_eq!(batch.neurons[(row * 3 + layer - 1) * 40..][..40], neurons[row * 40..][..40]);
                }
            }
            assert!(batch.neurons.iter().any(|&v| v > 0.0));
            rows += batch.rows as u64;
        }
        assert_eq!((rows, source.info().criterion.as_str()), (source.rows(&|_| true), name));
    }
}

#[test]
fn records_are_scored_on_their_answer_alone() {
    let (cpu, model) = (cpu(), model(1));
    // Shorter than the window, and longer: this one loses its beginning, and its answer stays.
    let records =
        || [(15, 11), (33, 28)].map(|(len, answer)| Document::with_answer(documents(4)[3][..len].to_vec(), answer));
    let make = |name: &str| {
        let importance = Importance::of(name, &cpu, &model).unwrap();
        TextSource::new(&cpu, &model, importance, records().to_vec(), &options(PredictorInput::Residual)).unwrap()
    };
    let mut source = make("plainact");
    let (mut batch, mut seen) = (SampleBatch::default(), 0);
    while source.next(&|_| true, &mut batch).unwrap() {
        let index = batch.documents[0] as usize;
        let (start, answer) = [(0, 11), (13, 15)][index];
        let tokens = &records()[index].tokens[start..];
        assert_eq!((tokens.len() <= 20, batch.rows), (true, tokens.len() - 1), "the last token predicts nothing");
        let criterion = "plainact".parse::<&'static dyn Criterion>().unwrap();
        let mut direct = Direct { cpu: &cpu, model: &model, tokens, criterion, layers: vec![Default::default(); 4] };
        let loss = Loss { tokens: Some(answer..tokens.len()), ..Loss::sum() };
        backward(&cpu, &model, tokens, &loss, &mut BackwardWorkspace::new(), &mut direct).unwrap();
        for row in 0..batch.rows {
            for layer in 1..4 {
                let [_, heads, neurons] = &direct.layers[layer];
                assert_eq!(batch.heads[(row * 3 + layer - 1) * 4..][..4], heads[row * 4..][..4]);
                assert_eq!(batch.neurons[(row * 3 + layer - 1) * 40..][..40], neurons[row * 40..][..40]);
            }
            // Tokens of the question count in so far as the answer attends to them: not in the last layer.
            let neurons = |layer: usize| batch.neurons[(row * 3 + layer - 1) * 40..][..40].iter().any(|&v| v > 0.0);
            assert_eq!([neurons(1), neurons(2), neurons(3)], [true, true, row + 1 >= answer], "token {row}");
        }
        seen += 1;
    }
    assert_eq!(seen, 2);
    // Where only activations count a record is a text as others are.
    let plain = |documents: Vec<Document>| {
        let importance = Importance::of("magnitude", &cpu, &model).unwrap();
        let options = options(PredictorInput::Residual);
        let mut source = TextSource::new(&cpu, &model, importance, documents, &options).unwrap();
        let (mut batch, mut all) = (SampleBatch::default(), Vec::new());
        while source.next(&|_| true, &mut batch).unwrap() {
            all.push(batch.clone());
        }
        all
    };
    let texts = records().map(|record| Document { answer: None, ..record }).to_vec();
    assert!(plain(records().to_vec()) == plain(texts.clone()) && plain(texts.clone()).len() == 3);
    // Another answer is another trace.
    let importance = || Importance::of("plainact", &cpu, &model).unwrap();
    let other = TextSource::new(&cpu, &model, importance(), texts, &options(PredictorInput::Residual)).unwrap();
    assert_ne!(other.text_hash(), source.text_hash());
}

#[test]
fn texts_that_cannot_be_read_say_why() {
    let (cpu, model) = (cpu(), model(1));
    let make = |documents: Vec<Vec<u32>>, options: SampleOptions| {
        let importance = Importance::of("magnitude", &cpu, &model).unwrap();
        TextSource::new(&cpu, &model, importance, documents, &options).map(|_| ()).unwrap_err().to_string()
    };
    let base = options(PredictorInput::Residual);
    for (options, message) in [
        (SampleOptions { window: 1, ..base.clone() }, "a window of 1 tokens has nothing to learn from; use at least 2"),
        (
            SampleOptions { window: 65, ..base.clone() },
            "a window of 65 tokens does not fit into the model's 64 positions",
        ),
        (
            SampleOptions { stations: vec![0, 3], ..base.clone() },
            "list of stations is [0, 3]; expected ascending layers that begin with 0 and end before the last layer",
        ),
    ] {
        assert_eq!(make(documents(2), options), message);
    }
    assert_eq!(
        make(vec![vec![], vec![1]], base.clone()),
        "the text has no document of at least 2 tokens; use a longer text"
    );
    assert!(make(vec![vec![1, 99]], base).starts_with("token id 99 at index 1 is out of range"));
    assert_eq!(
        Importance::of("luck", &cpu, &model).map(|_| ()).unwrap_err().to_string(),
        "unknown criterion \"luck\"; known are magnitude, plainact, fisher, l2norm, gradnorm, saliency"
    );
}

fn write(source: &mut TextSource<'_>, directory: &Path, shard: &str) -> TraceReport {
    write_trace(source, directory, shard.parse().unwrap(), &mut |_, _| ControlFlow::Continue(())).unwrap()
}

/// All files of a folder with their bytes, by name.
fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(p).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn training_from_a_trace_is_training_from_its_text() {
    let (cpu, model) = (cpu(), model(1));
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let report = write(&mut source(&cpu, &model, "magnitude", PredictorInput::Residual, 40), &trace, "1/1");
    assert_eq!((report.found, report.written, report.tokens), (0, report.files, 1760));
    let options = TrainOptions {
        portion: Some(300),
        batch: 64,
        held_out: 0.2,
        judged: 100,
        width: Width::Separate { heads: 8, neurons: 8 },
        ..TrainOptions::default()
    };
    let file = |source: &mut dyn SampleSource| {
        let trained = train(&cpu, source, &options, None, None, false, &mut |_| ControlFlow::Continue(())).unwrap();
        let path = directory.path().join("p.safetensors");
        trained.write(&cpu, &path, &model.config, WeightFormat::F32).unwrap();
        std::fs::read(path).unwrap()
    };
    let from_text = file(&mut source(&cpu, &model, "magnitude", PredictorInput::Residual, 40));
    let mut traced = TraceSource::open(&trace, &ModelIdentity::of(&model)).unwrap();
    assert_eq!(file(&mut traced), from_text);
    let scores = traced.scores().unwrap();
    assert!(scores.validate(&model.config).is_ok() && scores.neurons[40..].iter().all(|&v| v > 0.0));
    assert!(scores.neurons[..40].iter().all(|&v| v == 0.0));
}

#[test]
fn shards_and_interruptions_give_the_same_files() {
    let (cpu, model) = (cpu(), model(1));
    let make = || source(&cpu, &model, "l2norm", PredictorInput::Contexts, 30);
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    write_in_files_of(&mut make(), &path("whole"), "1/1", 200, usize::MAX).unwrap();
    let whole = files(&path("whole"));
    assert!(whole.len() > 5, "{}", whole.len());
    for shard in ["1/3", "2/3", "3/3"] {
        write_in_files_of(&mut make(), &path("shards"), shard, 200, usize::MAX).unwrap();
    }
    assert!(files(&path("shards")) == whole);
    // Stopped at ever later windows, with a file half written in between.
    let mut stops = 0;
    while write_in_files_of(&mut make(), &path("stopped"), "1/1", 200, 3 + stops).is_err() {
        stops += 1;
        std::fs::write(path("stopped").join(".trace-00009.safetensors.1-1.tmp"), b"half").unwrap();
    }
    assert!(stops > 3, "{stops}");
    std::fs::remove_file(path("stopped").join(".trace-00009.safetensors.1-1.tmp")).unwrap();
    assert!(files(&path("stopped")) == whole);
}

/// [`write_trace`] with smaller files, stopped after some windows.
fn write_in_files_of(
    source: &mut TextSource<'_>,
    directory: &Path,
    shard: &str,
    rows: usize,
    windows: usize,
) -> crate::Result<TraceReport> {
    let mut seen = 0;
    super::write::write_files(source, directory, shard.parse().unwrap(), rows, &mut |_, _| {
        seen += 1;
        if seen > windows { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

#[test]
fn traces_that_do_not_fit_say_why() {
    let (cpu, model) = (cpu(), model(1));
    let identity = ModelIdentity::of(&model);
    let make = |name: &str, n| source(&cpu, &model, name, PredictorInput::Residual, n);
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let open = |identity: &ModelIdentity| TraceSource::open(&trace, identity).map(|_| ()).unwrap_err().to_string();
    assert!(open(&identity).starts_with("cannot read "), "{}", open(&identity));
    std::fs::create_dir(&trace).unwrap();
    assert!(open(&identity).ends_with("make them with `shadowllm trace`"), "{}", open(&identity));
    write_in_files_of(&mut make("magnitude", 20), &trace, "1/2", 200, usize::MAX).unwrap();
    assert!(
        open(&identity).contains("is not complete: of 5 files, 2 are not there, the first of them file 1;"),
        "{}",
        open(&identity)
    );
    write_in_files_of(&mut make("magnitude", 20), &trace, "2/2", 200, usize::MAX).unwrap();
    TraceSource::open(&trace, &identity).unwrap();
    let other = ModelIdentity::from("def".to_owned());
    assert!(open(&other).contains("made for the model ") && open(&other).contains("but this model is def"));

    // Another criterion, or other text, into the same folder.
    let refused = |source: &mut TextSource<'_>| {
        write_in_files_of(source, &trace, "1/1", 200, usize::MAX).unwrap_err().to_string()
    };
    let message = refused(&mut make("l2norm", 20));
    assert!(
        message.ends_with(
            "trace-00000.safetensors belongs to another trace: its criterion is magnitude, and here it is l2norm; \
             use another folder, or remove the files that do not belong"
        ),
        "{message}"
    );
    assert!(refused(&mut make("magnitude", 19)).contains("it is of other text or windows (numbers, and here numbers)"));

    // A file of a trace with another criterion among the others.
    let l2norm = directory.path().join("l2norm");
    write_in_files_of(&mut make("l2norm", 20), &l2norm, "1/1", 200, usize::MAX).unwrap();
    let name = "trace-00002.safetensors";
    let kept = std::fs::read(trace.join(name)).unwrap();
    std::fs::copy(l2norm.join(name), trace.join(name)).unwrap();
    assert!(open(&identity).contains("trace-00002.safetensors belongs to another trace: its criterion is l2norm"));

    // Damaged files: cut off; a scale that is no number.
    std::fs::write(trace.join(name), &kept[..kept.len() - 10]).unwrap();
    assert!(open(&identity).contains("trace-00002.safetensors"), "{}", open(&identity));
    let header = 8 + u64::from_le_bytes(kept[..8].try_into().unwrap()) as usize;
    let mut bad = kept.clone();
    // Scales are the widest type, and come first.
    bad[header..header + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(trace.join(name), &bad).unwrap();
    let mut source = TraceSource::open(&trace, &identity).unwrap();
    let mut batch = SampleBatch::default();
    let error = loop {
        match source.next(&|_| true, &mut batch) {
            Ok(more) => assert!(more, "the damage was not seen"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("the largest importance of heads of layer 1 is NaN; "), "{error}");
    assert_eq!(check_trace_file(&bad).unwrap_err().to_string(), error.split_once(": ").unwrap().1);
    check_trace_file(&kept).unwrap();

    for shard in ["0/2", "3/2", "1", "a/b", "1/0"] {
        let expected = format!("unknown shard {shard:?}; expected K/N, machine K of N, such as 1/4");
        assert_eq!(shard.parse::<Shard>().unwrap_err().to_string(), expected);
    }
    assert_eq!("2/3".parse::<Shard>().unwrap().to_string(), "2/3");
}

/// Saliency factors are `rms(dZ) / norm(w)` over the wanted documents, brought to mean 1 in each layer.
#[test]
fn saliency_factors_are_the_usual_gradients_over_the_norms_of_columns() {
    #[derive(Default)]
    struct Sum(Vec<f64>, Vec<f64>);
    impl LayerVisitor for Sum {
        fn layer(&mut self, record: &LayerRecord<'_>) -> Result<()> {
            let width = record.inner_grads.len() / record.tokens;
            self.0.resize(4 * width, 0.0);
            for (i, &g) in record.inner_grads.iter().enumerate() {
                self.0[record.layer * width + i % width] += f64::from(g).powi(2);
            }
            self.1.resize(4 * 4, 0.0);
            for (i, &g) in record.context_grads.iter().enumerate() {
                self.1[record.layer * 4 + i % 24 / 6] += f64::from(g).powi(2);
            }
            Ok(())
        }
    }
    let (cpu, model) = (cpu(), model(3));
    let source = source(&cpu, &model, "magnitude", PredictorInput::Residual, 6);
    let found =
        Factors::saliency(&source, &|d| d != 2, usize::MAX, true, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let mut sums = Sum::default();
    for document in documents(6).iter().enumerate().filter(|&(d, _)| d != 2).map(|(_, document)| document) {
        for text in document.chunks(20).filter(|text| text.len() > 1) {
            backward(&cpu, &model, text, &Loss::sum(), &mut BackwardWorkspace::new(), &mut sums).unwrap();
        }
    }
    assert_eq!((found.criterion.as_str(), found.heads.len(), found.neurons.len()), ("saliency", 3 * 4, 3 * 40));
    for layer in 1..4 {
        let norms = model.layers[layer].ffn.output_squares(&cpu);
        let sizes: Vec<f64> =
            sums.0[layer * 40..][..40].iter().zip(norms).map(|(sum, norm)| (sum / norm).sqrt()).collect();
        let mean = sizes.iter().sum::<f64>() / 40.0;
        for (found, size) in found.neurons[(layer - 1) * 40..][..40].iter().zip(sizes) {
            assert!((f64::from(*found) - size / mean).abs() < 1e-5, "{found} instead of {}", size / mean);
        }
        let heads = &sums.1[layer * 4..][..4];
        let mean = heads.iter().sum::<f64>() / 4.0;
        for (found, size) in found.heads[(layer - 1) * 4..][..4].iter().zip(heads) {
            assert!((f64::from(*found) - size / mean).abs() < 1e-5, "{found} instead of {}", size / mean);
        }
    }
    let part = Factors::saliency(&source, &|_| true, 30, false, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_ne!(part.neurons, found.neurons);
    assert!(part.heads.iter().all(|&f| f == 1.0));
    let stopped = Factors::saliency(&source, &|_| true, 30, false, &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Interrupted)));
    let other = self::source(&cpu, &model, "l2norm", PredictorInput::Residual, 6);
    let error = Factors::saliency(&other, &|_| true, 30, false, &mut |_, _| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "number of tokens to measure gradients of is 30 for the criterion l2norm; expected 0, unless the criterion is magnitude"
    );
}
