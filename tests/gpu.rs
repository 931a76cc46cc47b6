//! Decoding on the emulated device against the CPU engine: the embedded model, and small models of every kind.
//!
//! The embedded model runs from PTX that NVRTC made once (`fixtures/gpu`), so that this needs no compiler; with one (`SHADOWLLM_NVRTC`, or
//! that of the system) fresh PTX is compared with it, and models are run of which there is none.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::sync::Arc;
use std::time::Instant;

use shadowllm::generate::Sparsity;
use shadowllm::gpu::{Compiler, Device, DeviceModel, Emulator, Gpu};
use shadowllm::kernels::argmax;
use shadowllm::model::{PackedModel, SparseOptions};
use shadowllm::sparsity::{Budget, ModelIdentity, Policy, Predictor, Refresh, Scope, Shadow};
use shadowllm::weights::{Checkpoint, PackedCheckpoint};
use shadowllm::{Engine, EngineOptions, Session, SessionOptions};
use shadowllm_nvrtc::{Nvrtc, Options};

use support::largest_difference;

/// "Once upon a time"
const PROMPT: [u32; 6] = [2, 50, 1266, 584, 262, 580];
/// Largest difference of a logit of the embedded model, whose logits are between -20 and 30: both sum in f32, in other orders.
const BOUND: f32 = 1e-3;
const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gpu/embedded.sm_80.ptx");

/// The embedded model over packed weights.
struct Embedded {
    engine: Engine,
    packed: Arc<PackedModel>,
    _folder: tempfile::TempDir,
}

fn embedded() -> Embedded {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("embedded.shadow.safetensors");
    let packed = PackedCheckpoint::open_or_pack_at(&file, &Checkpoint::embedded().unwrap(), &()).unwrap();
    let engine = Engine::load_packed(&packed, EngineOptions::default()).unwrap();
    Embedded { engine, packed: Arc::new(PackedModel::load(&packed).unwrap()), _folder: folder }
}

impl Embedded {
    fn sparsity(&self, budget: Budget) -> Sparsity {
        let predictor = Predictor::embedded(self.engine.config(), &ModelIdentity::of(self.engine.model())).unwrap();
        let policy: Box<dyn Policy> = Box::new(Shadow::new(Arc::new(predictor), budget).unwrap());
        let (packed, config) = (Arc::clone(&self.packed), self.engine.config());
        Sparsity::new(packed, policy, Refresh::EveryToken, config, SparseOptions::default())
    }

    /// A session with the prompt's tokens in its context, dense or with half of the units.
    fn session(&self, sparse: bool) -> Session {
        let mut session = self.engine.session(SessionOptions::default()).unwrap();
        let half = Budget::new(0.5, 0.5, Scope::Local).unwrap();
        session.set_sparsity(sparse.then(|| self.sparsity(half))).unwrap();
        session
    }
}

/// The emulator with the PTX of the fixture.
fn fixture() -> Gpu {
    let ptx = std::fs::read(FIXTURE).unwrap();
    Gpu::new(Box::new(Emulator::new()), Compiler::Compiled(ptx.into())).unwrap()
}

/// Decodes `count` greedy tokens on both and compares everything.
fn compare(embedded: &Embedded, model: &Arc<DeviceModel>, sparse: bool, count: usize) {
    let (mut cpu, mut device) = (embedded.session(sparse), embedded.session(sparse));
    device.set_device(Some(model)).unwrap();
    let mut token = argmax(cpu.prefill(&PROMPT).unwrap()) as u32;
    assert_eq!(argmax(device.prefill(&PROMPT).unwrap()) as u32, token);
    let (mut worst, start) = (0.0_f32, Instant::now());
    let mut tokens = Vec::new();
    for _ in 0..count {
        tokens.push(token);
        cpu.step(token).unwrap();
        device.step(token).unwrap();
        worst = worst.max(largest_difference(device.logits(), cpu.logits()));
        let next = argmax(cpu.logits()) as u32;
        assert_eq!(argmax(device.logits()) as u32, next, "after {tokens:?}");
        token = next;
        if let (Some(expected), Some(found)) = (cpu.sparsity(), device.sparsity()) {
            let plan = device.device().unwrap().plan().unwrap();
            assert_eq!(&plan, expected.plan());
            let (expected, found) = (expected.count(), found.count());
            assert_eq!((found.heads, found.neurons), (expected.heads, expected.neurons));
            // A first product next to 0 may have the other sign.
            assert!(found.neurons_active.abs_diff(expected.neurons_active) <= 2, "{found:?} {expected:?}");
            assert_eq!(found.cache, expected.cache);
        }
        // What is declared is weights, keys and values, and a little that the CPU engine does not count.
        let (found, expected) = (device.step_bytes() as f64, cpu.step_bytes() as f64);
        assert!((0.99..1.06).contains(&(found / expected)), "{found} bytes for {expected}");
    }
    println!("{count} tokens, sparse: {sparse}: {:?}, logits differ by {worst:e}", start.elapsed());
    assert!(worst <= BOUND, "{worst:e}");
}

#[test]
fn greedy_tokens_of_the_embedded_model() {
    let embedded = embedded();
    let model = Arc::new(DeviceModel::load(&fixture(), &embedded.engine, &()).unwrap());
    for sparse in [false, true] {
        compare(&embedded, &model, sparse, 16);
    }
}

/// The fixture is what NVRTC makes of what is emitted now. `GPU_FIXTURE=write` makes it again.
#[test]
fn fresh_ptx_is_that_of_the_fixture() {
    let embedded = embedded();
    let write = std::env::var_os("GPU_FIXTURE").is_some_and(|value| value == "write");
    let gpu = match Nvrtc::open() {
        Ok(_) => Device::Emulator.open().unwrap().unwrap(),
        Err(error) => return println!("skipped: {error}"),
    };
    let model = Arc::new(DeviceModel::load(&gpu, &embedded.engine, &()).unwrap());
    let mut session = embedded.session(true);
    session.set_device(Some(&model)).unwrap();
    let source = session.device().unwrap().source();
    let nvrtc = Nvrtc::open().unwrap();
    let fresh = nvrtc.compile(&source, &Options::new(80)).unwrap().ptx;
    if write {
        std::fs::write(FIXTURE, &fresh).unwrap();
    }
    let same_version = nvrtc.version() == "12.9";
    assert!(!same_version || fresh == std::fs::read_to_string(FIXTURE).unwrap(), "run again with GPU_FIXTURE=write");
}
