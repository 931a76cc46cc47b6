//! Activations and their gradients against PyTorch's autograd, on every fixture that has them.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;
use shadowllm::kernels::CpuOptions;
use shadowllm::learn::{BackwardWorkspace, LayerRecord, LayerVisitor, Loss, backward};
use shadowllm::weights::Checkpoint;
use shadowllm::{Engine, EngineOptions};

use support::{isas, largest_difference, shared};

/// Largest difference of a gradient, relative to the largest of its tensor, as the project promises.
const TOLERANCE: f32 = 1e-4;

/// The fixtures of a folder that have activations.
fn with_activations(root: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.join("acts.safetensors").exists());
    all.sort();
    all
}

/// All that is shown, under the fixtures' names.
#[derive(Default)]
struct Recorder {
    seen: BTreeMap<String, Vec<f32>>,
}

impl LayerVisitor for Recorder {
    fn layer(&mut self, record: &LayerRecord<'_>) -> shadowllm::Result<()> {
        let name = |what: &str| format!("layers.{}.{what}", record.layer);
        self.seen.insert(name("attn_heads"), record.contexts.to_vec());
        self.seen.insert(name("attn_heads.grad"), record.context_grads.to_vec());
        self.seen.insert(name("ffn_inner"), record.inners.to_vec());
        self.seen.insert(name("ffn_inner.grad"), record.inner_grads.to_vec());
        if record.ups.is_empty() {
            // The output of a plain activation is the inner itself.
            self.seen.insert(name("ffn_act.grad"), record.inner_grads.to_vec());
        } else {
            let grads = record.inner_grads.iter().zip(record.ups).map(|(grad, up)| grad * up);
            self.seen.insert(name("ffn_act.grad"), grads.collect());
        }
        Ok(())
    }
}

fn compare(dir: &Path) {
    let reference: Value = serde_json::from_slice(&std::fs::read(dir.join("ref.json")).unwrap()).unwrap();
    let ids = reference["loss"]["input_ids"].as_array().unwrap();
    let ids: Vec<u32> = ids.iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let bytes = std::fs::read(dir.join("acts.safetensors")).unwrap();
    let want = SafeTensors::deserialize(&bytes).unwrap();
    for isa in isas() {
        let cpu = CpuOptions { isa: Some(isa), ..CpuOptions::default() };
        let engine = Engine::load(&Checkpoint::open(dir).unwrap(), EngineOptions { cpu }).unwrap();
        let mut recorder = Recorder::default();
        let mut work = BackwardWorkspace::new();
        let loss = backward(engine.cpu(), engine.model(), &ids, &Loss::sum(), &mut work, &mut recorder).unwrap();
        let expected = reference["loss"]["value"].as_f64().unwrap();
        assert!((loss.sum - expected).abs() < 1e-3, "{}: loss {} instead of {expected}", dir.display(), loss.sum);
        assert_eq!(recorder.seen.len(), 5 * engine.config().layers);
        for (name, got) in &recorder.seen {
            let want = want.tensor(name).unwrap();
            let want: Vec<f32> =
                want.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let scale = want.iter().fold(0.0f32, |a, w| a.max(w.abs()));
            let worst = largest_difference(got, &want) / scale;
            assert!(worst <= TOLERANCE, "{}, {isa}: {name} is off by {worst} of its largest value", dir.display());
        }
    }
}

#[test]
fn gradients_of_the_fixtures() {
    let all = with_activations(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity"));
    assert!(all.len() >= 4, "fixtures are missing: only {all:?}");
    all.iter().for_each(|dir| compare(dir));
}

#[test]
fn gradients_of_the_shared_fixtures() {
    let Some(root) = shared("fixtures/parity") else { return };
    let all = with_activations(&root);
    assert!(all.len() >= 10, "fixtures are missing: only {all:?}");
    all.iter().for_each(|dir| compare(dir));
}
