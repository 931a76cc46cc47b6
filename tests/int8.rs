//! int8 weights are the model of their values: everything the engine does with them it does, within rounding, with the same values
//! as f32.

#![allow(clippy::unwrap_used)]

#[path = "support/models.rs"]
mod models;
mod support;

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use shadowllm::kernels::{Compute, CpuOptions, IsaName};
use shadowllm::learn::{BackwardWorkspace, LayerRecord, LayerVisitor, Loss, backward};
use shadowllm::model::random::{Shape, random_checkpoint, write_random};
use shadowllm::weights::{Checkpoint, DType, ModelNames, PackedCheckpoint, TensorData};
use shadowllm::{Engine, EngineOptions, SessionOptions};

use models::{Kind, kinds};
use support::{isas, largest_difference};

/// The same values as f32, the matrices by which blocks end the usual way.
fn widened(checkpoint: &Checkpoint) -> Checkpoint {
    let outputs: HashSet<String> = ModelNames::of(checkpoint.config(), |_| false).outputs().collect();
    let tensors = checkpoint.names().map(|name| {
        let tensor = checkpoint.tensor(name).unwrap();
        let (values, shape) = (tensor.to_f32(), tensor.shape());
        let widened = match outputs.contains(name) {
            false => TensorData::from_f32(shape, &values).unwrap(),
            true => {
                let [rows, cols] = [shape[0], shape[1]];
                let columns: Vec<f32> = (0..rows * cols).map(|i| values[i % rows * cols + i / rows]).collect();
                TensorData::from_f32(&[cols, rows], &columns).unwrap()
            }
        };
        (name.to_owned(), widened)
    });
    Checkpoint::from_tensors(checkpoint.config().clone(), tensors.collect::<Vec<_>>())
}

/// Contexts, inners and gradients of all layers.
#[derive(Default)]
struct Recorder(BTreeMap<String, Vec<f32>>);

impl LayerVisitor for Recorder {
    fn layer(&mut self, record: &LayerRecord<'_>) -> shadowllm::Result<()> {
        for (what, values) in [
            ("contexts", record.contexts),
            ("context_grads", record.context_grads),
            ("inners", record.inners),
            ("inner_grads", record.inner_grads),
        ] {
            self.0.insert(format!("{}.{what}", record.layer), values.to_vec());
        }
        Ok(())
    }
}

/// What the engine says to a prompt and a few tokens after it, and its gradients on all of them.
fn everything(engine: &Engine, prompt: usize) -> BTreeMap<String, Vec<f32>> {
    let tokens: Vec<u32> = (0..prompt + 3).map(|i| ((i * i + 31 * i) % 61) as u32).collect();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let mut logits = session.prefill(&tokens[..prompt]).unwrap().to_vec();
    for &token in &tokens[prompt..] {
        logits.extend_from_slice(session.step(token).unwrap());
    }
    let (mut recorder, mut work) = (Recorder::default(), BackwardWorkspace::new());
    let (cpu, model) = (engine.cpu(), engine.model());
    let loss = backward(cpu, model, &tokens, &Loss::sum(), &mut work, &mut recorder).unwrap();
    recorder.0.insert("logits".to_owned(), logits);
    recorder.0.insert("loss".to_owned(), vec![loss.sum as f32]);
    recorder.0
}

/// An engine over plain weights, one over packed ones, and one over the widened values.
fn engines(checkpoint: &Checkpoint, isa: IsaName, compute: Compute) -> [Engine; 3] {
    let options = || EngineOptions { cpu: CpuOptions { isa: Some(isa), threads: Some(2), compute } };
    let packed = PackedCheckpoint::in_memory(checkpoint, &()).unwrap();
    [
        Engine::load(checkpoint, options()).unwrap(),
        Engine::load_packed(&packed, options()).unwrap(),
        Engine::load(&widened(checkpoint), options()).unwrap(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn int8_weights_are_their_values(
        kind in kinds(),
        prompt in prop_oneof![3 => 1usize..20, 1 => 90usize..120],
        seed in any::<u64>(),
    ) {
        let config = Kind { dtype: DType::I8, ..kind }.config();
        let all = isas();
        let checkpoint = random_checkpoint(config, DType::I8, seed).unwrap();
        let [plain, packed, f32] = engines(&checkpoint, all[seed as usize % all.len()], Compute::F32);
        let want = everything(&f32, prompt);
        for engine in [plain, packed] {
            for (name, got) in everything(&engine, prompt) {
                let size = want[&name].iter().fold(f32::MIN_POSITIVE, |most, v| most.max(v.abs()));
                let worst = largest_difference(&got, &want[&name]) / size;
                // On the way back through a norm of a few values nearly everything cancels.
                let bound = if name.ends_with("grads") { 2e-3 } else { 2e-4 };
                prop_assert!(worst < bound, "{name} is off by {worst} of its largest value");
            }
        }
    }
}

/// Rounded products: with AMX weights and activations lose all but 8 bits, elsewhere only activations do, all but 15.
#[test]
fn rounded_products_stay_close() {
    let kind = Kind {
        opt: false,
        kv_heads: 2,
        group: 2,
        head_dim: 16,
        hidden: 192,
        ffn: 300,
        layers: 3,
        relu: false,
        post_norm: false,
        window: false,
        dtype: DType::I8,
    };
    for isa in isas() {
        let checkpoint = random_checkpoint(kind.config(), DType::I8, 7).unwrap();
        let [plain, packed, _] = engines(&checkpoint, isa, Compute::Bf16);
        let [_, _, f32] = engines(&checkpoint, isa, Compute::F32);
        let [plain, packed, want] =
            [plain, packed, f32].map(|engine| everything(&engine, 60).remove("logits").unwrap());
        let size = want.iter().fold(0f32, |most, v| most.max(v.abs()));
        assert!(plain == packed, "{isa}: the packed weights give other bits");
        let worst = largest_difference(&plain, &want) / size;
        let bound = if isa == IsaName::Amx { 0.03 } else { 5e-4 };
        assert!(worst > 1e-6 && worst < bound, "{isa}: {worst}");
    }
}

/// A token reads about half of what it reads of bf16 weights, at the shape of a real model.
#[test]
fn bytes_are_half() {
    let shape = "opt-125m".parse::<Shape>().unwrap();
    let bytes = |dtype: DType| {
        let json = shape.config_json(dtype).to_string();
        let mut config = shadowllm::weights::ModelConfig::from_json(json.as_bytes()).unwrap();
        config.layers = 1;
        config.windows.truncate(1);
        let engine = Engine::load(&random_checkpoint(config, dtype, 1).unwrap(), EngineOptions::default()).unwrap();
        let bytes = engine.model().active_bytes(0);
        (bytes.blocks as f64, bytes.head as f64, engine.model().parameters())
    };
    let (int8, bf16) = (bytes(DType::I8), bytes(DType::BF16));
    assert_eq!(int8.2, bf16.2);
    // 768 values are 792 bytes, rounded up to 800.
    let expected = 800.0 / 1536.0;
    assert!((int8.1 / bf16.1 - expected).abs() < 1e-3, "{}", int8.1 / bf16.1);
    assert!((int8.0 / bf16.0 - expected).abs() < 3e-3, "{}", int8.0 / bf16.0);
}

/// What is written to a directory is what is made in memory.
#[test]
fn random_models_in_a_directory() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("model");
    let shape = "smollm2-135m".parse::<Shape>().unwrap();
    let count = write_random(&dir, shape, DType::I8, 5, &()).unwrap();
    assert_eq!(count, 134_515_008);
    let written = Checkpoint::open(&dir).unwrap();
    let made = random_checkpoint(written.config().clone(), DType::I8, 5).unwrap();
    assert!(written.names().eq(made.names()));
    for name in written.names() {
        let (written, made) = (written.tensor(name).unwrap(), made.tensor(name).unwrap());
        assert_eq!((written.dtype(), written.shape()), (made.dtype(), made.shape()));
        assert!(written.bytes() == made.bytes(), "{name}");
    }
}
