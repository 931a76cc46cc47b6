//! Surveys of small random models.

use std::ops::ControlFlow;

use shadowllm_weights::{DType, ModelConfig};

use super::*;
use crate::kernels::{Cpu, CpuOptions};
use crate::learn::LearnError;
use crate::learn::criteria::ALL;
use crate::learn::trace::Document;
use crate::learn::{BackwardWorkspace, Form, Loss, Reduction, UnitKind, sequence_scores};
use crate::model::Model;
use crate::model::random::random_checkpoint;
use crate::sparsity::testing::cpu;
use crate::{Error, Result};

fn model(seed: u64) -> Model {
    let json = r#"{"model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "hidden_act": "silu"}"#;
    let config = ModelConfig::from_json(json.as_bytes()).unwrap();
    Model::load(&random_checkpoint(config, DType::F32, seed).unwrap()).unwrap()
}

fn tokens(seed: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * i + 3 * seed * i + seed) % 61) as u32).collect()
}

/// A plain text of two documents and two records of a task.
fn documents() -> Vec<Document> {
    let of = |text: usize, document: Document| Document { text, ..document };
    vec![
        of(0, tokens(1, 45).into()),
        of(1, Document::with_answer(tokens(2, 12), 9)),
        of(0, tokens(3, 7).into()),
        of(1, Document::with_answer(tokens(4, 30), 26)),
    ]
}

fn options() -> SurveyOptions {
    SurveyOptions { criteria: ALL.to_vec(), window: 20, texts: vec!["book".to_owned(), "task".to_owned()] }
}

fn run(cpu: &Cpu, model: &Model) -> Survey {
    survey(cpu, model, &documents(), &options(), None, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

#[test]
fn scores_are_means_over_pieces_and_then_over_texts() {
    let (cpu, model) = (cpu(), model(1));
    let survey = run(&cpu, &model);
    let score = |tokens: &[u32], scored: Option<std::ops::Range<usize>>| {
        let loss = Loss { tokens: scored, reduction: Reduction::Sum };
        sequence_scores(&cpu, &model, tokens, &loss, &ALL, &mut BackwardWorkspace::new()).unwrap()
    };
    let [book, other, short, long] = [0, 1, 2, 3].map(|i| documents()[i].tokens.clone());
    // The last five tokens of the first document are less than half a window; the long record loses its beginning.
    let pieces = [
        vec![score(&book[..20], None), score(&book[20..40], None), score(&short, None)],
        vec![score(&other, Some(9..12)), score(&long[10..], Some(16..20))],
    ];
    for (text, pieces) in survey.texts.iter().zip(&pieces) {
        assert_eq!(text.pieces as usize, pieces.len());
        let (sum, scored) = pieces.iter().fold((0.0, 0), |(sum, n), (loss, _)| (sum + loss.sum, n + loss.tokens));
        assert_eq!((text.scored, text.loss), (scored as u64, sum / scored as f64));
    }
    assert_eq!((survey.texts[0].tokens, survey.texts[1].tokens), (47, 32));
    for (index, criterion) in ALL.iter().enumerate() {
        assert_eq!(survey.scores[index].0, criterion.name());
        for (kind, width) in [(UnitKind::Heads, 4), (UnitKind::Neurons, 40)] {
            let of = |scores: &crate::sparsity::Scores| match kind {
                UnitKind::Heads => scores.heads.clone(),
                UnitKind::Neurons => scores.neurons.clone(),
            };
            let found = of(&survey.scores[index].1);
            if !criterion.has(kind, Form::Sequence) {
                assert!(found.is_empty(), "{criterion:?}");
                continue;
            }
            let means = pieces.each_ref().map(|pieces| {
                let mut mean = vec![0.0; 3 * width];
                for (_, scores) in pieces {
                    let scores = of(&scores[index]);
                    mean.iter_mut().zip(&scores).for_each(|(m, &s)| *m += f64::from(s) / pieces.len() as f64);
                }
                mean
            });
            let sizes = means.each_ref().map(|m| m[width..].iter().map(|v| v.abs()).sum::<f64>());
            for (unit, &found) in found.iter().enumerate() {
                let weight =
                    |text: usize| if sizes[text] > 0.0 { sizes[0].midpoint(sizes[1]) / sizes[text] } else { 1.0 };
                let expected = (0..2).map(|text| means[text][unit] * weight(text) / 2.0).sum::<f64>();
                let largest = means.iter().flatten().fold(0.0_f64, |a, v| a.max(v.abs()));
                assert!((f64::from(found) - expected).abs() <= 1e-6 * largest, "{criterion:?}: {found} {expected}");
            }
        }
    }
}

#[test]
fn threads_and_interruptions_change_nothing() {
    let model = model(2);
    let with = |threads| Cpu::new(&CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap();
    let whole = run(&with(1), &model);
    assert_eq!(run(&with(3), &model), whole);

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let cpu = with(2);
    let resume = |stop: usize| {
        let mut calls = 0;
        survey(&cpu, &model, &documents(), &options(), Some(&path), &mut |_, _| {
            calls += 1;
            if calls > stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    };
    for stop in [0, 2, 0, 1] {
        assert!(matches!(resume(stop), Err(Error::Interrupted)));
    }
    assert_eq!(resume(usize::MAX).unwrap(), whole);
    // What is complete is read again and not computed.
    assert_eq!(resume(1).unwrap(), whole);
}

#[test]
fn states_of_other_surveys_are_refused() {
    let (cpu, model) = (cpu(), model(3));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let run = |model: &Model, documents: &[Document], options: &SurveyOptions| -> Result<Survey> {
        survey(&cpu, model, documents, options, Some(&path), &mut |_, _| ControlFlow::Continue(()))
    };
    let few = SurveyOptions { criteria: vec![ALL[0], ALL[4]], ..options() };
    run(&model, &documents(), &few).unwrap();
    let message = |model: &Model, documents: &[Document], options: &SurveyOptions| {
        let message = run(model, documents, options).unwrap_err().to_string();
        message.strip_prefix(&format!("{}: ", path.display())).unwrap().to_owned()
    };
    assert_eq!(
        message(&model, &documents(), &SurveyOptions { criteria: vec![ALL[1]], ..few.clone() }),
        "this is the state of another survey: its list of criteria was magnitude, l2norm, and here it is plainact; go on with \
         the criteria and texts that it was begun with, or remove the file to begin anew"
    );
    assert!(
        message(&model, &documents(), &SurveyOptions { window: 19, ..few.clone() })
            .contains("its window was 20, and here it is 19;")
    );
    let renamed = SurveyOptions { texts: vec!["book".to_owned(), "other".to_owned()], ..few.clone() };
    assert!(message(&model, &documents(), &renamed).contains("its text was book, task, and here it is book, other;"));
    let mut changed = documents();
    changed[0].tokens[3] = 1;
    assert!(message(&model, &changed, &few).contains("its text, of the same name, had other tokens;"));
    assert!(message(&self::model(4), &documents(), &few).starts_with("made for the model "));
    std::fs::write(&path, b"{}").unwrap();
    assert!(message(&model, &documents(), &few).contains("too few for a safetensors file"));
}

#[test]
fn what_cannot_be_surveyed_is_an_error() {
    let (cpu, mut model) = (cpu(), model(5));
    let message = |model: &Model, documents: &[Document], window: usize| {
        let options = SurveyOptions { window, ..options() };
        let result = survey(&cpu, model, documents, &options, None, &mut |_, _| ControlFlow::Continue(()));
        result.unwrap_err().to_string()
    };
    let documents = documents();
    assert_eq!(message(&model, &documents, 1), "a window of 1 tokens has nothing to learn from; use at least 2");
    assert_eq!(message(&model, &documents, 65), "a window of 65 tokens does not fit into the model's 64 positions");
    assert_eq!(
        message(&model, &[vec![1].into()], 20),
        "the text has no document of at least 2 tokens; use a longer text"
    );
    assert!(message(&model, &[vec![1, 99].into()], 20).starts_with("token id 99 at index 1 is out of range"));
    if let crate::model::Ffn::Gated { up, .. } = &mut model.layers[1].ffn {
        up.bias = Some(vec![f32::NAN; 40]);
    }
    assert!(message(&model, &documents, 20).contains("is not finite"), "NaN weights are found before they are summed");
    let broken = LearnError::BadCriterion {
        criterion: "nwot",
        source: Box::new(Error::BadScore { unit: "head", layer: 1, index: 0, value: f32::NAN }),
    };
    assert_eq!(
        broken.to_string(),
        "criterion nwot broke down on this text: the score of head 0 of layer 1 is NaN; scores must be finite numbers; leave \
         it out with --criteria"
    );
}
