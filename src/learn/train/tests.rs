//! Training as a whole, on samples that a known network made.

use std::ops::ControlFlow;
use std::path::Path;

use super::*;
use crate::kernels::{Cpu, CpuOptions};
use crate::learn::LearnError;
use crate::learn::samples::tests::info;
use crate::learn::{SampleBatch, SampleInfo, SampleSource};
use crate::sparsity::predictor::{HiddenActivation, Normalization, WeightFormat};
use crate::sparsity::testing::{config, rng};
use crate::{Error, Result};

/// Samples of a teacher: importances are a network of the inputs, positive and different from layer to layer.
struct Teacher {
    info: SampleInfo,
    documents: usize,
    next: usize,
    /// Rows of one document.
    rows: usize,
    weights: Vec<f32>,
    /// Document after which the source fails.
    fails_after: usize,
}

impl Teacher {
    fn new(documents: usize) -> Self {
        let info = info();
        let mut next = rng(77);
        let weights = (0..(info.head_targets() + info.neuron_targets()) * info.inputs).map(|_| next() - 0.5).collect();
        Teacher { info, documents, next: 0, rows: 40, weights, fails_after: usize::MAX }
    }
}

impl SampleSource for Teacher {
    fn info(&self) -> &SampleInfo {
        &self.info
    }

    fn rows(&self, wanted: &dyn Fn(u32) -> bool) -> u64 {
        ((0..self.documents as u32).filter(|&d| wanted(d)).count() * self.rows) as u64
    }

    fn next(&mut self, wanted: &dyn Fn(u32) -> bool, batch: &mut SampleBatch) -> Result<bool> {
        while self.next < self.documents && !wanted(self.next as u32) {
            self.next += 1;
        }
        let (n, document) = (self.info.inputs, self.next as u32);
        batch.resize(&self.info, if self.next < self.documents { self.rows } else { 0 });
        if batch.rows == 0 {
            return Ok(false);
        }
        if self.next >= self.fails_after {
            return Err(LearnError::BadSample { what: "a test".to_owned(), value: f32::NAN }.into());
        }
        self.next += 1;
        batch.documents.fill(document);
        let mut random = rng(u64::from(document));
        for row in 0..self.rows {
            let x: Vec<f32> = (0..n).map(|_| 4.0 * random() + 1.0).collect();
            batch.inputs.iter_mut().for_each(|inputs| inputs[row * n..(row + 1) * n].copy_from_slice(&x));
            let mut rows = self.weights.chunks_exact(n);
            let mut value = || {
                let w = rows.next().unwrap();
                w.iter().zip(&x).map(|(w, x)| w * (x - 3.0)).sum::<f32>().max(0.0)
            };
            let (heads, neurons) = (self.info.head_targets(), self.info.neuron_targets());
            batch.heads[row * heads..(row + 1) * heads].iter_mut().for_each(|v| *v = value());
            batch.neurons[row * neurons..(row + 1) * neurons].iter_mut().for_each(|v| *v = value());
        }
        Ok(true)
    }

    fn position(&self) -> u64 {
        self.next as u64
    }

    fn seek(&mut self, position: u64) {
        self.next = position as usize;
    }
}

fn options() -> TrainOptions {
    TrainOptions {
        portion: Some(600),
        batch: 64,
        held_out: 0.15,
        judged: 200,
        width: Width::Separate { heads: 32, neurons: 48 },
        kept: [0.5, 0.25],
        ..TrainOptions::default()
    }
}

fn threads(threads: usize) -> Cpu {
    Cpu::new(&CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap()
}

fn go_on(_: TrainEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn run(cpu: &Cpu, source: &mut Teacher, options: &TrainOptions) -> Trained {
    train(cpu, source, options, None, None, false, &mut go_on).unwrap()
}

fn file(cpu: &Cpu, trained: &Trained, format: WeightFormat) -> (Vec<u8>, Exported) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("p.safetensors");
    let exported = trained.write(cpu, &path, &config(), format).unwrap();
    (std::fs::read(path).unwrap(), exported)
}

#[test]
fn a_teacher_is_recovered_in_every_form() {
    let cpu = threads(2);
    let long = TrainOptions { epochs: 4, passes: 6, learning_rate: 2e-2, ..options() };
    let cases = [
        long.clone(),
        TrainOptions { width: Width::Shared(64), ..long.clone() },
        TrainOptions { loss: Loss::Bce, ..long.clone() },
        TrainOptions { loss: Loss::Listwise, ..long.clone() },
        TrainOptions { loss: Loss::Pairwise, ..long.clone() },
        TrainOptions { normalization: Normalization::None, ..long.clone() },
        TrainOptions { target_scale: TargetScale::MinMax, ..long.clone() },
    ];
    for options in cases {
        let trained = run(&cpu, &mut Teacher::new(120), &options);
        let (_, exported) = file(&cpu, &trained, WeightFormat::F32);
        for judgement in [&exported.heads, &exported.neurons] {
            let judgement = judgement.as_ref().unwrap();
            let ranking = judgement.ranking;
            assert!(
                ranking.recall > 0.88 && ranking.recall > ranking.recall_of_mean + 0.25,
                "{options:?}: {ranking:?}"
            );
            assert!(ranking.spearman > 0.8 && ranking.spearman > ranking.spearman_of_mean + 0.4, "{ranking:?}");
            assert!(judgement.loss < 0.8 * judgement.loss_of_mean || options.loss == Loss::Listwise, "{judgement:?}");
            assert_eq!(judgement.layers.len(), 2);
        }
    }
}

#[test]
fn a_linear_teacher_needs_no_hidden_activation() {
    let cpu = threads(1);
    let options = TrainOptions { activation: HiddenActivation::None, epochs: 3, learning_rate: 1e-2, ..options() };
    let trained = run(&cpu, &mut Teacher::new(100), &options);
    let ranking = trained.history().last().unwrap().neurons.as_ref().unwrap().ranking;
    assert!(ranking.recall > 0.85, "{ranking:?}");
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    let files: Vec<Vec<u8>> = [1, 2, 3]
        .map(threads)
        .iter()
        .map(|cpu| file(cpu, &run(cpu, &mut Teacher::new(40), &options()), WeightFormat::F32).0)
        .collect();
    assert!(files[0] == files[1] && files[1] == files[2]);
    let other = TrainOptions { seed: 1, ..options() };
    let cpu = threads(1);
    assert_ne!(file(&cpu, &run(&cpu, &mut Teacher::new(40), &other), WeightFormat::F32).0, files[0]);
}

#[test]
fn a_run_that_is_stopped_anywhere_and_resumed_gives_the_same_bits() {
    let cpu = threads(2);
    let options = TrainOptions { epochs: 2, passes: 2, ..options() };
    let (whole, _) = file(&cpu, &run(&cpu, &mut Teacher::new(40), &options), WeightFormat::F16);
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("p.state");
    let resume = |fails_after: usize, stop_after: usize, resume: bool| {
        let mut source = Teacher { fails_after, ..Teacher::new(40) };
        let mut events = 0;
        train(&cpu, &mut source, &options, None, Some(&state), resume, &mut |_| {
            events += 1;
            if events > stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    };
    // A source that fails at once, a stop after the first portion, then stops at ever later events until the run gets through.
    assert!(matches!(resume(0, usize::MAX, false), Err(Error::Learn(LearnError::BadSample { .. }))));
    assert!(!state.exists());
    assert!(matches!(resume(usize::MAX, 60, false), Err(Error::Interrupted)));
    assert!(state.exists());
    let mut stops = 0;
    let trained = loop {
        match resume(usize::MAX, 25 + 7 * stops, true) {
            Ok(trained) => break trained,
            Err(error) => assert!(matches!(error, Error::Interrupted), "{error}"),
        }
        stops += 1;
    };
    assert!(stops > 2, "{stops}");
    assert_eq!(file(&cpu, &trained, WeightFormat::F16).0, whole);
    // The state of a finished run gives its result at once.
    let again = resume(0, usize::MAX, true);
    assert!(matches!(again, Err(Error::Learn(LearnError::BadSample { .. }))), "the held-out samples are read again");
    assert_eq!(file(&cpu, &resume(usize::MAX, usize::MAX, true).unwrap(), WeightFormat::F16).0, whole);
}

#[test]
fn states_that_do_not_fit_say_why() {
    let cpu = threads(1);
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("p.state");
    let run = |source: &mut Teacher, options: &TrainOptions, state: &Path, resume: bool| {
        train(&cpu, source, options, None, Some(state), resume, &mut go_on)
    };
    run(&mut Teacher::new(30), &options(), &state, false).unwrap();
    let message =
        |source: &mut Teacher, options: &TrainOptions| run(source, options, &state, true).unwrap_err().to_string();
    let shown = state.display();
    let other = TrainOptions { learning_rate: 0.5, ..options() };
    assert_eq!(
        message(&mut Teacher::new(30), &other),
        format!(
            "{shown}: this is the state of another training: learning_rate was 0.002 and is 0.5; resume with the settings \
             and text that it was begun with, or remove the file to begin anew"
        )
    );
    assert!(message(&mut Teacher::new(31), &options()).contains("rows was ["));
    let mut source = Teacher::new(30);
    source.info.criterion = "l2norm".to_owned();
    assert!(message(&mut source, &options()).contains("criterion was \"magnitude\" and is \"l2norm\""));
    source.info.model = crate::sparsity::ModelIdentity::from("def".to_owned());
    assert!(message(&mut source, &options()).contains("made for the model abc, but this model is def"));
    let missing = directory.path().join("none");
    let error = run(&mut Teacher::new(30), &options(), &missing, true).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot read {}", missing.display())), "{error}");
    std::fs::write(&state, b"no state").unwrap();
    assert!(message(&mut Teacher::new(30), &options()).contains("safetensors"));
    let nowhere = directory.path().join("no/such/place");
    assert!(matches!(run(&mut Teacher::new(30), &options(), &nowhere, false), Err(Error::Weights(_))));
}

#[test]
fn text_that_cannot_be_divided_says_so() {
    let cpu = threads(1);
    let mut one = Teacher::new(1);
    let error = train(&cpu, &mut one, &options(), None, None, false, &mut go_on).unwrap_err();
    assert_eq!(
        error.to_string(),
        "of 40 tokens none are left to train on: documents are divided whole, and 0.15 of them are held out; \
         use more text or another seed"
    );
    let wild = TrainOptions { learning_rate: 1e30, clip: 0.0, ..options() };
    let error = train(&cpu, &mut Teacher::new(40), &wild, None, None, false, &mut go_on).unwrap_err();
    assert!(
        error.to_string().starts_with("the training broke down at step ")
            && error.to_string().ends_with("its loss is no finite number; use a smaller learning rate (--rate)"),
        "{error}"
    );
}

#[test]
fn formats_cost_little_and_say_how_little() {
    let cpu = threads(1);
    let trained = run(&cpu, &mut Teacher::new(60), &TrainOptions { epochs: 3, learning_rate: 1e-2, ..options() });
    let sizes = [WeightFormat::F32, WeightFormat::F16, WeightFormat::Int8].map(|format| {
        let (bytes, exported) = file(&cpu, &trained, format);
        assert_eq!(bytes.len() as u64, exported.bytes);
        let run = exported.info.training.run.unwrap();
        let (in_file, best) = (run.neurons.unwrap(), trained.history().last().unwrap().neurons.as_ref().unwrap());
        assert!((in_file.recall - best.ranking.recall).abs() < 0.01, "{format:?}: {in_file:?}, {best:?}");
        assert_eq!((run.neuron_width, run.kept_neurons, run.judged), (48, 0.25, 200));
        assert_eq!(exported.info.training.tokens, trained.tokens());
        bytes.len()
    });
    assert!(sizes[0] > sizes[1] && sizes[1] > sizes[2]);
}

#[test]
fn factors_end_up_in_the_ranking() {
    let cpu = threads(1);
    let info = info();
    let mut next = rng(9);
    let factors = Factors {
        criterion: "saliency".to_owned(),
        heads: (0..info.head_targets()).map(|_| 0.1 + next()).collect(),
        neurons: (0..info.neuron_targets()).map(|_| 0.1 + next()).collect(),
    };
    let options = TrainOptions { epochs: 4, passes: 6, learning_rate: 1e-2, ..options() };
    let run = |factors| train(&cpu, &mut Teacher::new(80), &options, factors, None, false, &mut go_on).unwrap();
    let (plain, with) = (run(None), run(Some(&factors)));
    let (_, exported) = file(&cpu, &with, WeightFormat::F32);
    assert_eq!(exported.info.criterion, "saliency (magnitude)");
    assert!(exported.neurons.unwrap().ranking.recall > 0.88);
    // The weights are those of the training without factors, but for the factors.
    assert_eq!(plain.history().last().unwrap().steps, with.history().last().unwrap().steps);
    assert_ne!(file(&cpu, &plain, WeightFormat::F32).0, file(&cpu, &with, WeightFormat::F32).0);
}

#[test]
fn files_obey_their_size() {
    let cpu = threads(2);
    let info = info();
    for (limit, width) in [
        (20_000, Width::Separate { heads: 2048, neurons: 1024 }),
        (60_000, Width::Separate { heads: 128, neurons: 128 }),
        (60_000, Width::Shared(128)),
        (30_000, Width::Separate { heads: 0, neurons: 16 }),
    ] {
        for format in [WeightFormat::F32, WeightFormat::F16, WeightFormat::Int8] {
            let base = TrainOptions { passes: 1, ..options() };
            let width = width.fitting(&info, &base, format, limit).unwrap();
            let trained = run(&cpu, &mut Teacher::new(20), &TrainOptions { width, ..base });
            let (bytes, _) = file(&cpu, &trained, format);
            // What is left is room for the header.
            let range = limit.saturating_sub(10_000).max(limit / 4)..=limit;
            assert!(range.contains(&(bytes.len() as u64)), "{} bytes of {limit} with {width:?}", bytes.len());
        }
    }
}
