//! Logits, greedy tokens and activations against Hugging Face transformers, on every fixture.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;
use shadowllm::kernels::{CpuOptions, argmax};
use shadowllm::model::{Probe, Rows};
use shadowllm::weights::{Checkpoint, PackedCheckpoint, pack};
use shadowllm::{Engine, EngineOptions, SessionOptions};

use support::{isas, largest_difference};

/// Largest difference of a logit, as the project promises.
const LOGIT_TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Reference {
    sequences: Vec<Sequence>,
    greedy: Vec<Greedy>,
    loss: Loss,
}

#[derive(Deserialize)]
struct Sequence {
    input_ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Greedy {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    min_margin: f32,
}

#[derive(Deserialize)]
struct Loss {
    input_ids: Vec<u32>,
    value: f64,
}

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity");
    let mut all: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    all.sort();
    assert!(all.len() >= 22, "fixtures are missing: only {all:?}");
    all
}

fn reference(dir: &Path) -> Reference {
    serde_json::from_slice(&std::fs::read(dir.join("ref.json")).unwrap()).unwrap()
}

fn engine(dir: &Path, cpu: CpuOptions) -> Engine {
    Engine::load(&Checkpoint::open(dir).unwrap(), EngineOptions { cpu }).unwrap()
}

/// The engine over packed weights: another arrangement, other kernels, the same references.
fn packed_engine(dir: &Path, cpu: CpuOptions) -> Engine {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("packed.shadow.safetensors");
    let checkpoint = Checkpoint::open(dir).unwrap();
    pack(&checkpoint, &file, &()).unwrap();
    let packed = PackedCheckpoint::open_for(&file, &checkpoint, &()).unwrap();
    Engine::load_packed(&packed, EngineOptions { cpu }).unwrap()
}

#[test]
fn logits_at_every_position() {
    for dir in fixtures() {
        let reference = reference(&dir);
        for isa in isas() {
            let cpu = CpuOptions { isa: Some(isa), ..CpuOptions::default() };
            for (weights, engine) in [("plain", engine(&dir, cpu)), ("packed", packed_engine(&dir, cpu))] {
                for sequence in &reference.sequences {
                    let mut session = engine.session(SessionOptions::default()).unwrap();
                    let each = &mut |at: usize, logits: &[f32]| {
                        let worst = largest_difference(logits, &sequence.logits[at]);
                        let name = dir.display();
                        assert!(worst <= LOGIT_TOLERANCE, "{name}, {isa}, {weights}, position {at}: off by {worst}");
                        ControlFlow::Continue(())
                    };
                    session.score(&sequence.input_ids, 0, each).unwrap();
                }
            }
        }
    }
}

#[test]
fn decoding_token_by_token_gives_the_same_logits() {
    for dir in fixtures() {
        for engine in [engine(&dir, CpuOptions::default()), packed_engine(&dir, CpuOptions::default())] {
            for sequence in &reference(&dir).sequences {
                let mut session = engine.session(SessionOptions::default()).unwrap();
                for (id, want) in sequence.input_ids.iter().zip(&sequence.logits) {
                    let worst = largest_difference(session.step(*id).unwrap(), want);
                    assert!(worst <= LOGIT_TOLERANCE, "{}: off by {worst}", dir.display());
                }
            }
        }
    }
}

#[test]
fn greedy_continuations() {
    for dir in fixtures() {
        for engine in [engine(&dir, CpuOptions::default()), packed_engine(&dir, CpuOptions::default())] {
            for greedy in &reference(&dir).greedy {
                assert!(greedy.min_margin > 2.0 * LOGIT_TOLERANCE, "{}: too close to call", dir.display());
                let mut session = engine.session(SessionOptions::default()).unwrap();
                let mut next = argmax(session.prefill(&greedy.prompt).unwrap()) as u32;
                for (at, &want) in greedy.tokens.iter().enumerate() {
                    assert_eq!(next, want, "{}, token {at}", dir.display());
                    next = argmax(session.step(next).unwrap()) as u32;
                }
            }
        }
    }
}

#[test]
fn loss_of_a_sequence() {
    for dir in fixtures() {
        let reference = reference(&dir);
        let engine = engine(&dir, CpuOptions::default());
        let ids = &reference.loss.input_ids;
        let windows = shadowllm::eval::Windows { size: ids.len(), count: Some(1) };
        let result = shadowllm::eval::perplexity(&engine, ids, windows, &mut |_| ControlFlow::Continue(())).unwrap();
        let error = (result.nll - reference.loss.value).abs();
        assert!(error < 1e-3, "{}: loss {} instead of {}", dir.display(), result.nll, reference.loss.value);
    }
}

/// Copies everything that the forward pass shows.
#[derive(Default)]
struct Recorder {
    seen: BTreeMap<String, Vec<f32>>,
}

impl Probe for Recorder {
    fn residual(&mut self, rows: Rows, values: &mut [f32]) {
        self.seen.insert(format!("hidden.{}", rows.layer), values.to_vec());
    }

    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        self.seen.insert(format!("layers.{}.attn_heads", rows.layer), values.to_vec());
    }

    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        self.seen.insert(format!("layers.{}.ffn_inner", rows.layer), values.to_vec());
    }
}

#[test]
fn a_probe_sees_contexts_inners_and_residual_stream() {
    let mut compared = 0;
    for dir in fixtures() {
        let Ok(bytes) = std::fs::read(dir.join("acts.safetensors")) else { continue };
        let want = SafeTensors::deserialize(&bytes).unwrap();
        for engine in [engine(&dir, CpuOptions::default()), packed_engine(&dir, CpuOptions::default())] {
            let mut session = engine.session(SessionOptions::default()).unwrap();
            let mut recorder = Recorder::default();
            let ids = reference(&dir).loss.input_ids;
            session.prefill_with(&ids, &mut recorder, &mut |_| ControlFlow::Continue(())).unwrap();
            let layers = engine.config().layers;
            assert_eq!(recorder.seen.len(), 3 * layers + 1);
            for (name, got) in &recorder.seen {
                if *name == format!("hidden.{layers}") && engine.model().project_out.is_some() {
                    continue; // transformers shows this one after the projection
                }
                let want = want.tensor(name).unwrap();
                let want: Vec<f32> =
                    want.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
                let scale = want.iter().fold(1.0f32, |a, w| a.max(w.abs()));
                let worst = largest_difference(got, &want) / scale;
                assert!(worst < 1e-5, "{}: {name} is off by {worst} of its largest value", dir.display());
                compared += 1;
            }
        }
    }
    assert!(compared > 60, "only {compared} tensors were compared");
}

/// Sets one head's context and one neuron's inner to zero in one layer.
struct Mask {
    layer: usize,
    head: usize,
    neuron: usize,
    heads: usize,
    neurons: usize,
}

impl Probe for Mask {
    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        if rows.layer == self.layer {
            let width = values.len() / rows.count / self.heads;
            values.chunks_exact_mut(width).skip(self.head).step_by(self.heads).for_each(|a| a.fill(0.0));
        }
    }

    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        if rows.layer == self.layer {
            values.iter_mut().skip(self.neuron).step_by(self.neurons).for_each(|z| *z = 0.0);
        }
    }
}

#[test]
fn a_probe_changes_what_follows() {
    for name in ["opt-pre", "llama-gqa", "opt-350m-post"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity").join(name);
        let engine = engine(&dir, CpuOptions::default());
        let config = engine.config().clone();
        let ids = reference(&dir).loss.input_ids;
        let run = |probe: &mut (dyn Probe + Send)| {
            let mut session = engine.session(SessionOptions::default()).unwrap();
            session.prefill_with(&ids, probe, &mut |_| ControlFlow::Continue(())).unwrap().to_vec()
        };
        let dense = run(&mut shadowllm::model::NoProbe);
        let mut mask = Mask { layer: 1, head: 2, neuron: 5, heads: config.heads, neurons: config.ffn };
        let masked = run(&mut mask);
        assert!(largest_difference(&dense, &masked) > 1e-3, "{name}: masking a head and a neuron changed nothing");
        mask.layer = config.layers;
        assert_eq!(dense, run(&mut mask), "{name}: a mask on no layer changed the logits");
    }
}
