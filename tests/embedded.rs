//! The embedded model against references made with transformers.

#![allow(clippy::unwrap_used)]

mod support;

use std::ops::ControlFlow;
use std::sync::Arc;

use serde::Deserialize;
use shadowllm::eval::{Chooser, Masked, Masking, Windows, perplexity, perplexity_masked};
use shadowllm::generate::{Completion, CompletionOptions};
use shadowllm::kernels::CpuOptions;
use shadowllm::sparsity::{Budget, ModelIdentity, Predictor, Scope, Shadow};
use shadowllm::{Engine, EngineOptions, SessionOptions};

use support::{isas, shared};

#[derive(Deserialize)]
struct Reference {
    perplexity: PerplexityReference,
    greedy: Vec<Greedy>,
}

#[derive(Deserialize)]
struct PerplexityReference {
    value: f64,
}

#[derive(Deserialize)]
struct Greedy {
    prompt: String,
    ids: Vec<u32>,
    tokens: Vec<u32>,
    text: String,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("fixtures/embedded-ref.json")).unwrap()
}

#[test]
fn greedy_continuations_on_every_instruction_set() {
    for isa in isas() {
        let cpu = CpuOptions { isa: Some(isa), ..CpuOptions::default() };
        let engine = Engine::open("embedded", EngineOptions { cpu }).unwrap();
        for greedy in reference().greedy {
            let ids = engine.tokenizer().unwrap().encode(&greedy.prompt, true).unwrap();
            assert_eq!(ids, greedy.ids);
            let mut session = engine.session(SessionOptions::default()).unwrap();
            let max_tokens = Some(greedy.tokens.len());
            let options = CompletionOptions { max_tokens, ignore_eos: true, ..CompletionOptions::default() };
            let mut completion = Completion::start(&mut session, &ids, &options).unwrap();
            let mut text = String::new();
            while let Some(piece) = completion.next_token().unwrap() {
                text.push_str(piece.text);
            }
            text.push_str(completion.finish_text());
            assert_eq!(completion.tokens(), greedy.tokens, "{isa}: {:?}", greedy.prompt);
            assert_eq!(text, greedy.text);
        }
    }
}

/// All forty windows of the reference.
#[test]
fn perplexity_on_unseen_books() {
    let Some(text) = shared("data/eval/books_valid.txt") else { return };
    let engine = Engine::open("embedded", EngineOptions::default()).unwrap();
    let ids = engine.tokenizer().unwrap().encode(&std::fs::read_to_string(text).unwrap(), false).unwrap();
    let windows = Windows { size: 512, count: Some(40) };
    let result = perplexity(&engine, &ids, windows, &mut |_| ControlFlow::Continue(())).unwrap();
    let want = reference().perplexity.value;
    assert!((result.perplexity - want).abs() < 0.01, "{} instead of {want}", result.perplexity);
    assert_eq!(result.tokens, 40 * 511);
}

/// Half of the neurons are enough, on books that neither the model nor its predictor has seen.
#[test]
fn the_predictor_on_unseen_books() {
    let Some(text) = shared("data/eval/books_valid.txt") else { return };
    let engine = Engine::open("embedded", EngineOptions::default()).unwrap();
    let predictor = Predictor::embedded(engine.config(), &ModelIdentity::of(engine.model())).unwrap();
    let (predictor, budget) = (Arc::new(predictor), Budget::new(1.0, 0.5, Scope::Local).unwrap());
    let chooser = Chooser::Policy(Box::new(move |_| Ok(Box::new(Shadow::new(Arc::clone(&predictor), budget)?))));
    let mut masked = Masked::new(&engine, chooser, Masking::default()).unwrap();
    let ids = engine.tokenizer().unwrap().encode(&std::fs::read_to_string(text).unwrap(), false).unwrap();
    let (windows, go_on) = (Windows { size: 512, count: Some(4) }, &mut |_: &_| ControlFlow::Continue(()));
    let dense = perplexity(&engine, &ids, windows, go_on).unwrap();
    let sparse = perplexity_masked(&mut masked, &ids, windows, go_on).unwrap();
    let ratio = sparse.perplexity / dense.perplexity;
    assert!(ratio < 1.1 && masked.kept().neurons < 0.6, "{ratio}");
}
