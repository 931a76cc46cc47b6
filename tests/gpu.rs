//! Decoding on a device against the CPU engine: the embedded model, and small models of every kind.
//!
//! The device is the emulator; where `SHADOWLLM_CUDA_DEVICE` is the number of a GPU, the same is done there, too.
//!
//! The embedded model runs from PTX that NVRTC made once (`fixtures/gpu`), so that this needs no compiler; with one (`SHADOWLLM_NVRTC`, or
//! that of the system) fresh PTX is compared with it, and models are run of which there is none.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "support/models.rs"]
mod models;
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use shadowllm::generate::Sparsity;
use shadowllm::gpu::{Compiler, Device, DeviceModel, Emulator, Gpu};
use shadowllm::kernels::{IsaName, argmax};
use shadowllm::model::{PackedModel, SparseOptions};
use shadowllm::sparsity::{Budget, ModelIdentity, Plan, Policy, Predictor, Refresh, Scope, Shadow};
use shadowllm::weights::{Checkpoint, DType, PackedCheckpoint};
use shadowllm::{Engine, EngineOptions, Session, SessionOptions};
use shadowllm_nvrtc::{Nvrtc, Options};

use models::{Kind, load, sparsity};
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

/// Units that only one of two plans keeps, over two.
fn differences(a: &Plan, b: &Plan) -> usize {
    let missing = |a: &[u32], b: &[u32]| a.iter().filter(|unit| !b.contains(unit)).count();
    let layers = a.layers.iter().zip(&b.layers);
    layers.map(|(a, b)| missing(&a.heads, &b.heads) + missing(&a.neurons, &b.neurons)).sum()
}

/// Decodes `count` greedy tokens on both and compares everything.
fn compare(embedded: &Embedded, model: &Arc<DeviceModel>, sparse: bool, count: usize) {
    let (mut cpu, mut device) = (embedded.session(sparse), embedded.session(sparse));
    device.set_device(Some(model)).unwrap();
    let mut token = argmax(cpu.prefill(&PROMPT).unwrap()) as u32;
    assert_eq!(argmax(device.prefill(&PROMPT).unwrap()) as u32, token);
    let prompt = largest_difference(device.logits(), cpu.logits());
    assert!(prompt <= BOUND, "after the prompt: {prompt:e}");
    let (mut worst, mut same, mut compared, start) = (0.0_f32, true, 0, Instant::now());
    let mut tokens = Vec::new();
    for _ in 0..count {
        tokens.push(token);
        cpu.step(token).unwrap();
        device.step(token).unwrap();
        let next = argmax(cpu.logits()) as u32;
        assert_eq!(argmax(device.logits()) as u32, next, "after {tokens:?}");
        token = next;
        if let (Some(expected), Some(found)) = (cpu.sparsity(), device.sparsity()) {
            // What the predictor reads agrees to rounding, so two units whose scores are nearly the same may change places. From there on the
            // two models are not the same, and their tokens still are.
            let swapped = differences(&device.device().unwrap().plan().unwrap(), expected.plan());
            assert!(swapped <= 2, "{swapped} units differ after {tokens:?}");
            same &= swapped == 0;
            let (expected, found) = (expected.count(), found.count());
            assert_eq!((found.heads, found.neurons, found.cache), (expected.heads, expected.neurons, expected.cache));
        }
        if same {
            worst = worst.max(largest_difference(device.logits(), cpu.logits()));
            compared += 1;
        }
        // What is declared is weights, keys and values, and a little that the CPU engine does not count. Less than there: the dense CPU
        // engine does not skip with ReLU, and for many missing rows of keys it reads the weights again.
        let (found, expected) = (device.step_bytes() as f64, cpu.step_bytes() as f64);
        let least = if sparse { 0.9 } else { 0.5 };
        assert!((least..1.06).contains(&(found / expected)), "{found} bytes for {expected}");
    }
    println!(
        "{count} tokens, sparse: {sparse}: {:?}, logits of {compared} differ by {worst:e}, after the prompt by {prompt:e}",
        start.elapsed()
    );
    assert!(compared >= 4 && worst <= BOUND, "{worst:e}");
}

/// The GPU that the environment names; without one the test is skipped.
fn gpu() -> Option<Gpu> {
    let Ok(number) = std::env::var("SHADOWLLM_CUDA_DEVICE") else {
        println!("skipped: SHADOWLLM_CUDA_DEVICE is not set to the number of a GPU");
        return None;
    };
    let device: Device = format!("cuda:{number}").parse().unwrap();
    Some(device.open().unwrap_or_else(|error| panic!("{error}")).unwrap().with_cache(None))
}

/// The emulator with a compiler; without one the test is skipped.
fn emulator() -> Option<Gpu> {
    if let Err(error) = Nvrtc::open() {
        println!("skipped: {error}");
        return None;
    }
    Some(Device::Emulator.open().unwrap().unwrap().with_cache(None))
}

fn greedy_tokens(gpu: &Gpu, count: usize) {
    let embedded = embedded();
    let model = Arc::new(DeviceModel::load(gpu, &embedded.engine, &()).unwrap());
    for sparse in [false, true] {
        compare(&embedded, &model, sparse, count);
    }
}

#[test]
fn first_greedy_tokens_of_the_embedded_model() {
    greedy_tokens(&fixture(), 4);
}

#[test]
fn greedy_tokens_of_the_embedded_model_on_a_gpu() {
    if let Some(gpu) = gpu() {
        greedy_tokens(&gpu, 16);
    }
}

/// A second or two for each.
#[test]
#[ignore = "takes about a minute; the gate runs it once"]
fn sixteen_greedy_tokens_of_the_embedded_model() {
    greedy_tokens(&fixture(), 16);
}

/// The fixture is what NVRTC makes of what is emitted now. `GPU_FIXTURE=write` makes it again.
#[test]
fn fresh_ptx_is_that_of_the_fixture() {
    let embedded = embedded();
    let write = std::env::var_os("GPU_FIXTURE").is_some_and(|value| value == "write");
    let Some(gpu) = emulator() else { return };
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

/// Small models of every kind: prompts, steps, going back, copies and changes of the device, on both.
#[test]
fn sessions_go_between_the_cpu_and_the_emulator() {
    if let Some(gpu) = emulator() {
        sessions_go_between_the_cpu_and(&gpu);
    }
}

#[test]
fn sessions_go_between_the_cpu_and_a_gpu() {
    if let Some(gpu) = gpu() {
        sessions_go_between_the_cpu_and(&gpu);
    }
}

fn sessions_go_between_the_cpu_and(gpu: &Gpu) {
    let kind = Kind {
        opt: true,
        kv_heads: 3,
        group: 1,
        head_dim: 8,
        hidden: 24,
        ffn: 40,
        layers: 3,
        relu: true,
        post_norm: false,
        window: false,
        dtype: DType::F32,
    };
    let gated = Kind { opt: false, kv_heads: 2, group: 3, hidden: 40, relu: false, ..kind.clone() };
    let kinds = [
        kind.clone(),
        Kind { dtype: DType::F16, relu: false, ..kind },
        gated.clone(),
        Kind { window: true, dtype: DType::BF16, ..gated },
    ];
    for kind in kinds {
        let loaded = load(&kind.config(), kind.dtype, IsaName::Portable, 1);
        let model = Arc::new(DeviceModel::load(gpu, &loaded.engine, &()).unwrap());
        let options = SparseOptions { kv_flush: 5, ..SparseOptions::default() };
        let budget = Budget::new(0.4, 0.5, Scope::Global).unwrap();
        let mut sessions = [(); 2].map(|()| {
            let mut session = loaded.engine.session(SessionOptions { context: Some(64) }).unwrap();
            session.set_sparsity(Some(sparsity(&loaded, 7, budget, Refresh::EveryToken, options))).unwrap();
            session
        });
        sessions[1].set_device(Some(&model)).unwrap();
        let same = |sessions: &[Session; 2], what: &str| {
            let [cpu, device] = sessions;
            assert_eq!(cpu.tokens(), device.tokens());
            let found = largest_difference(device.logits(), cpu.logits());
            assert!(found < 2e-4, "{kind:?}, {what}: {found:e}");
        };
        let step = |sessions: &mut [Session; 2], tokens: std::ops::Range<u32>| {
            for token in tokens {
                sessions.iter_mut().for_each(|session| session.step(token % 61).map(|_| ()).unwrap());
                same(sessions, "step");
            }
        };
        sessions.iter_mut().for_each(|session| session.prefill(&[2, 50, 7, 9, 11]).map(|_| ()).unwrap());
        step(&mut sessions, 0..7);
        // The prompt needs what the steps have left out, and the steps what the prompt has made.
        sessions.iter_mut().for_each(|session| session.prefill(&[1, 2, 3]).map(|_| ()).unwrap());
        same(&sessions, "second prompt");
        step(&mut sessions, 20..24);
        sessions.iter_mut().for_each(|session| session.truncate(17));
        step(&mut sessions, 30..33);
        sessions.iter_mut().for_each(|session| session.truncate(9));
        step(&mut sessions, 40..42);
        let mut copies = [(); 2].map(|()| None);
        for (copy, session) in copies.iter_mut().zip(&mut sessions) {
            let mut fork = session.fork();
            fork.step(5).unwrap();
            *copy = Some(fork);
        }
        same(&copies.map(Option::unwrap), "copy");
        step(&mut sessions, 50..52);
        // Dense on the device, then sparse on the CPU.
        sessions.iter_mut().for_each(|session| session.set_sparsity(None).unwrap());
        step(&mut sessions, 3..5);
        let half = || Some(sparsity(&loaded, 9, budget, Refresh::EveryToken, options));
        sessions.iter_mut().for_each(|session| session.set_sparsity(half()).unwrap());
        step(&mut sessions, 13..15);
        sessions[1].set_device(None).unwrap();
        step(&mut sessions, 23..25);
    }
}

#[test]
fn what_cannot_run_is_said() {
    let embedded = embedded();
    let plain = Engine::open("embedded", EngineOptions::default()).unwrap();
    let error = |result: shadowllm::Result<DeviceModel>| result.unwrap_err().to_string();
    assert_eq!(
        error(DeviceModel::load(&fixture(), &plain, &())),
        "a GPU takes packed weights, and this engine was loaded from plain ones; load it with Engine::load_packed or Engine::over"
    );
    let ptx = std::fs::read(FIXTURE).unwrap();
    let small = Gpu::new(Box::new(Emulator::with_memory(70 << 20)), Compiler::Compiled(ptx.into())).unwrap();
    let message = error(DeviceModel::load(&small, &embedded.engine, &()));
    let (start, end) = message.split_once(" GB of GPU memory, but ").unwrap();
    assert!(start.starts_with("the model takes 0.0"), "{message}");
    assert_eq!(
        end,
        "the emulator has 0.07 GB free of 0.07 GB; end what else runs there, use a smaller --context or model, or use --device cpu"
    );
    let post_norm = Kind {
        opt: true,
        kv_heads: 2,
        group: 1,
        head_dim: 8,
        hidden: 16,
        ffn: 16,
        layers: 2,
        relu: true,
        post_norm: true,
        window: false,
        dtype: DType::F32,
    };
    let message_of = |kind: &Kind| {
        let loaded = load(&kind.config(), kind.dtype, IsaName::Portable, 1);
        error(DeviceModel::load(&fixture(), &loaded.engine, &()))
    };
    assert_eq!(
        message_of(&post_norm),
        "this model cannot run on a GPU: there are no kernels for norms behind the blocks (as in opt-350m); use --device cpu"
    );
    assert_eq!(
        message_of(&Kind { head_dim: 6, kv_heads: 4, hidden: 24, post_norm: false, ..post_norm }),
        "this model cannot run on a GPU: head_dim is 6, but rows are read 16 bytes at a time: it must be a multiple of 4"
    );

    let model = Arc::new(DeviceModel::load(&fixture(), &embedded.engine, &()).unwrap());
    let mut session = embedded.session(true);
    session.set_device(Some(&model)).unwrap();
    let other = self::embedded();
    let message = other.session(false).set_device(Some(&model)).unwrap_err().to_string();
    assert_eq!(
        message,
        "the model on the device is that of another engine; load this session's engine there with DeviceModel::load"
    );
    let predictor = Predictor::embedded(embedded.engine.config(), &ModelIdentity::of(embedded.engine.model())).unwrap();
    let policy = Box::new(Shadow::new(Arc::new(predictor), Budget::new(0.5, 0.5, Scope::Local).unwrap()).unwrap());
    let (packed, config) = (Arc::clone(&embedded.packed), embedded.engine.config());
    let held = Sparsity::new(packed, policy, Refresh::Every(4), config, SparseOptions::default());
    assert_eq!(
        session.set_sparsity(Some(held)).unwrap_err().to_string(),
        "a plan held for several tokens (refresh 4) is not possible on a GPU; use --refresh 1, or use --device cpu"
    );
    session.prefill(&PROMPT).unwrap();
    assert_eq!(
        embedded.engine.step_batch(&mut [&mut session], &[15]).unwrap_err().to_string(),
        "session 0 of the batch runs on a device; sessions that are stepped together share one engine and one packed model"
    );
    session.step(15).unwrap();
}

#[test]
fn compiled_code_is_kept_for_the_emulator() {
    if let Some(gpu) = emulator() {
        compiled_code_is_kept(gpu);
    }
}

#[test]
fn compiled_code_is_kept_for_a_gpu() {
    if let Some(gpu) = gpu() {
        compiled_code_is_kept(gpu);
    }
}

/// The second session finds the code of the first.
fn compiled_code_is_kept(gpu: Gpu) {
    let (embedded, folder) = (embedded(), tempfile::tempdir().unwrap());
    let gpu = gpu.with_cache(Some(folder.path().to_owned()));
    let model = Arc::new(DeviceModel::load(&gpu, &embedded.engine, &()).unwrap());
    let files = || -> BTreeMap<_, _> {
        let paths = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        paths.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    };
    let mut session = embedded.session(true);
    session.set_device(Some(&model)).unwrap();
    let whole = files();
    assert_eq!(whole.len(), 4, "a file for each part of the kernels");
    // What is damaged is made again, and the same.
    let (damaged, content) = whole.iter().nth(1).unwrap();
    std::fs::write(damaged, &content[..content.len() / 2]).unwrap();
    for _ in 0..2 {
        let start = Instant::now();
        embedded.session(true).set_device(Some(&model)).unwrap();
        println!("ready after {:?}", start.elapsed());
        assert!(files() == whole);
    }
}
