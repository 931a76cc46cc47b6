//! Import of small hand-made files, right to the last value, and what happens around it: existing directories, full disks.

mod bad_input;

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::testing::{Builder, Meta};
use super::*;
use crate::{DType, Error};

const TOKENS: [&str; 9] = ["<|bos|>", "<|eos|>", "a", "b", "ab", "Ġ", "Ġab", "1", "2"];

fn text(t: &str) -> Meta {
    Meta::String(t.to_owned())
}

fn texts(list: &[&str]) -> Meta {
    Meta::Strings(list.iter().map(|t| (*t).to_owned()).collect())
}

/// `0, 1, 2, ...` plus `base`.
fn ramp(base: f32, n: usize) -> Vec<f32> {
    (0..n).map(|i| base + i as f32).collect()
}

/// A model with V = 9, d = 8, H = 2, H_kv = 1, d_h = 4, F = 3, L = 1 and a byte-level tokenizer.
fn model() -> Builder {
    let mut b = Builder::new();
    b.meta("general.architecture", text("llama"))
        .meta("llama.block_count", Meta::U32(1))
        .meta("llama.context_length", Meta::U32(16))
        .meta("llama.embedding_length", Meta::U32(8))
        .meta("llama.feed_forward_length", Meta::U64(3))
        .meta("llama.attention.head_count", Meta::U32(2))
        .meta("llama.attention.head_count_kv", Meta::I32(1))
        .meta("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5))
        .meta("tokenizer.ggml.model", text("gpt2"))
        .meta("tokenizer.ggml.pre", text("gpt-2"))
        .meta("tokenizer.ggml.tokens", texts(&TOKENS))
        .meta("tokenizer.ggml.token_type", Meta::I32s(vec![3, 3, 1, 1, 1, 1, 1, 1, 1]))
        .meta("tokenizer.ggml.merges", texts(&["a b", "Ġ ab"]))
        .meta("tokenizer.ggml.bos_token_id", Meta::U32(0))
        .meta("tokenizer.ggml.eos_token_id", Meta::U32(1));
    for (name, shape) in [
        ("token_embd.weight", vec![9, 8]),
        ("blk.0.attn_norm.weight", vec![8]),
        ("blk.0.attn_q.weight", vec![8, 8]),
        ("blk.0.attn_k.weight", vec![4, 8]),
        ("blk.0.attn_v.weight", vec![4, 8]),
        ("blk.0.attn_output.weight", vec![8, 8]),
        ("blk.0.ffn_norm.weight", vec![8]),
        ("blk.0.ffn_gate.weight", vec![3, 8]),
        ("blk.0.ffn_up.weight", vec![3, 8]),
        ("blk.0.ffn_down.weight", vec![8, 3]),
        ("output_norm.weight", vec![8]),
    ] {
        b.f32_tensor(name, &shape, &ramp(0.0, shape.iter().product()));
    }
    b
}

/// The same with another tokenizer.
fn model_with_tokenizer(model_name: &str, tokens: &[&str], kinds: &[i32]) -> Builder {
    let mut b = model();
    b.meta("tokenizer.ggml.model", text(model_name))
        .meta("tokenizer.ggml.tokens", texts(tokens))
        .meta("tokenizer.ggml.token_type", Meta::I32s(kinds.to_vec()))
        .remove_tensor("token_embd.weight")
        .f32_tensor("token_embd.weight", &[tokens.len(), 8], &ramp(0.0, 8 * tokens.len()));
    b
}

/// A place for one import.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new(bytes: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("m.gguf"), bytes).unwrap();
        Place { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn import(&self, dtype: DType) -> crate::Result<ImportReport> {
        import(&self.path("m.gguf"), &self.path("out"), dtype, &())
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path("out").join(file)).unwrap()).unwrap()
    }

    fn tokenizer(&self) -> Tokenizer {
        Tokenizer::from_file(self.path("out").join("tokenizer.json")).unwrap()
    }

    fn f32s(&self, name: &str) -> Vec<f32> {
        let bytes = fs::read(self.path("out/model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn entries(&self) -> Vec<String> {
        entries(self.directory.path())
    }
}

fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The message of a failed import, without the path in front, after checking that nothing was left behind.
fn problem(bytes: &[u8], dtype: DType) -> String {
    let place = Place::new(bytes);
    let message = place.import(dtype).unwrap_err().to_string();
    assert_eq!(place.entries(), ["m.gguf"]);
    let prefix = format!("cannot import {}: ", place.path("m.gguf").display());
    message.strip_prefix(&prefix).unwrap_or(&message).to_owned()
}

#[test]
fn a_good_file() {
    let place = Place::new(&model().build());
    let report = place.import(DType::F32).unwrap();
    assert_eq!((report.tensors, report.tied, report.tokens), (11, true, Some(9)));
    assert_eq!(report.source_types.get("F32"), Some(&11));
    assert_eq!(place.entries(), ["m.gguf", "out"]);

    // Rows of a head are stored 0 2 1 3: out row j*2 + i is in row 2*i + j.
    let rows = |order: &[usize]| order.iter().flat_map(|&r| ramp(8.0 * r as f32, 8)).collect::<Vec<_>>();
    assert_eq!(place.f32s("model.layers.0.self_attn.q_proj.weight"), rows(&[0, 2, 1, 3, 4, 6, 5, 7]));
    assert_eq!(place.f32s("model.layers.0.self_attn.k_proj.weight"), rows(&[0, 2, 1, 3]));
    assert_eq!(place.f32s("model.layers.0.self_attn.v_proj.weight"), rows(&[0, 1, 2, 3]));

    let config = place.json("config.json");
    assert_eq!(config["head_dim"], 4);
    assert_eq!(config["rope_theta"], 10_000.0);
    assert_eq!(config["rms_norm_eps"], 1e-5);
    assert_eq!(config["attention_bias"], false);
    assert_eq!(place.json("tokenizer.json")["post_processor"], Value::Null);
    let ids = place.tokenizer().encode("ab ab<|eos|>", true).unwrap().get_ids().to_vec();
    assert_eq!(ids, [4, 6, 1]);
}

#[test]
fn version_2_is_read_too() {
    let mut bytes = model().build();
    bytes[4] = 2;
    assert_eq!(check(&bytes), Ok(()));
}

#[test]
fn biases_of_llama_are_permuted_too() {
    let mut b = model();
    for (name, n) in [("attn_q", 8), ("attn_k", 4), ("attn_v", 4), ("attn_output", 8)] {
        b.f32_tensor(&format!("blk.0.{name}.bias"), &[n], &ramp(0.0, n));
    }
    let place = Place::new(&b.build());
    place.import(DType::F32).unwrap();
    assert_eq!(place.f32s("model.layers.0.self_attn.q_proj.bias"), [0., 2., 1., 3., 4., 6., 5., 7.]);
    assert_eq!(place.f32s("model.layers.0.self_attn.k_proj.bias"), [0., 2., 1., 3.]);
    assert_eq!(place.f32s("model.layers.0.self_attn.v_proj.bias"), ramp(0.0, 4));
    assert_eq!(place.json("config.json")["attention_bias"], true);

    b.remove_tensor("blk.0.attn_output.bias");
    assert_eq!(
        problem(&b.build(), DType::F32),
        "tensor \"blk.0.attn_output.bias\" is missing; the file is incomplete or part of a split model, which must be merged first"
    );
}

#[test]
fn llama_3_begins_texts_with_bos_and_takes_whole_words() {
    let mut tokens = TOKENS.to_vec();
    tokens.extend(["12", "121"]);
    let mut b = model_with_tokenizer("gpt2", &tokens, &[3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    b.meta("tokenizer.ggml.pre", text("llama-bpe"));
    let place = Place::new(&b.build());
    place.import(DType::BF16).unwrap();
    let ids = |t: &str, special| place.tokenizer().encode(t, special).unwrap().get_ids().to_vec();
    // No merge makes 121, yet it is taken whole; digits are cut in threes.
    assert_eq!(ids("ab1211", true), [0, 4, 10, 7]);
    assert_eq!(ids("ab", false), [4]);
    assert_eq!(place.json("tokenizer_config.json")["add_bos_token"], true);

    b.meta("tokenizer.ggml.add_bos_token", Meta::Bool(false)).meta("tokenizer.ggml.add_eos_token", Meta::Bool(true));
    let place = Place::new(&b.build());
    place.import(DType::BF16).unwrap();
    assert_eq!(place.tokenizer().encode("ab", true).unwrap().get_ids(), [4, 1]);
    assert_eq!(place.tokenizer().encode(("ab", "b"), true).unwrap().get_ids(), [4, 1, 3, 1]);
}

#[test]
fn sentencepiece_merges_by_score_and_falls_back_to_bytes() {
    let tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xC3>", "<0xA9>", "▁", "a", "b", "ab", "▁a", "bb", "<tool>"];
    let mut b = model_with_tokenizer("llama", &tokens, &[2, 3, 3, 6, 6, 6, 1, 1, 1, 1, 1, 1, 4]);
    let scores = vec![0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, 0.0];
    b.meta("tokenizer.ggml.scores", Meta::F32s(scores))
        .meta("tokenizer.ggml.bos_token_id", Meta::U32(1))
        .meta("tokenizer.ggml.eos_token_id", Meta::U32(2))
        .meta("tokenizer.ggml.unknown_token_id", Meta::U32(0));
    let place = Place::new(&b.build());
    place.import(DType::F16).unwrap();
    assert_eq!(place.json("tokenizer.json")["model"]["merges"], json!([["▁", "a"], ["a", "b"], ["b", "b"]]));
    let tokenizer = place.tokenizer();
    let ids = |t: &str| tokenizer.encode(t, true).unwrap().get_ids().to_vec();
    // "▁a" is better than "ab", so it is made first.
    assert_eq!(ids("abb"), [1, 10, 11]);
    assert_eq!(ids("é\n"), [1, 6, 4, 5, 3]);
    assert_eq!(ids("a<tool>b"), [1, 10, 12, 6, 8]);
    assert_eq!(tokenizer.decode(&ids("ab é a"), true).unwrap(), "ab é a");

    b.meta("tokenizer.ggml.scores", Meta::F32s(vec![0.0; 3]));
    assert_eq!(
        problem(&b.build(), DType::F32),
        "key \"tokenizer.ggml.scores\" has 3 entries for 13 tokens; expected one per token"
    );
    b.meta("tokenizer.ggml.scores", Meta::F32s(vec![f32::NAN; 13]));
    assert_eq!(
        problem(&b.build(), DType::F32),
        "key \"tokenizer.ggml.scores\" is not a number for token 0; expected a number"
    );
}

#[test]
fn a_file_without_tokenizer_is_imported_without() {
    let mut b = model();
    b.remove_meta("tokenizer.ggml.model");
    let place = Place::new(&b.build());
    assert_eq!(place.import(DType::F32).unwrap().tokens, None);
    assert_eq!(entries(&place.path("out")), ["config.json", "generation_config.json", "model.safetensors"]);
}

#[test]
fn an_existing_directory_is_left_alone() {
    let place = Place::new(&model().build());
    fs::create_dir(place.path("out")).unwrap();
    fs::write(place.path("out/keep"), "mine").unwrap();
    let message =
        place.import(DType::F32).unwrap_err().to_string().replace(&place.path("out").display().to_string(), "OUT");
    assert_eq!(
        message,
        "OUT exists and is not an empty directory; choose another name or remove it; nothing was changed"
    );
    assert_eq!(entries(&place.path("out")), ["keep"]);
    assert_eq!(place.entries(), ["m.gguf", "out"]);

    fs::remove_file(place.path("out/keep")).unwrap();
    place.import(DType::F32).unwrap();
    assert_eq!(entries(&place.path("out")).len(), 5);

    let place = Place::new(&model().build());
    fs::write(place.path("out"), "a file").unwrap();
    assert!(matches!(place.import(DType::F32), Err(Error::OutputExists { .. })));
}

#[cfg(unix)]
#[test]
fn a_missing_input_and_a_directory_as_input() {
    let place = Place::new(b"");
    let message = |input: &str| {
        let input = place.path(input);
        let error = import(&input, &place.path("out"), DType::F32, &()).unwrap_err();
        error.to_string().replace(&input.display().to_string(), "IN")
    };
    assert_eq!(message("absent.gguf"), "cannot open IN: No such file or directory (os error 2)");
    assert_eq!(message(""), "IN is not a regular file");
}

/// The environment variable that turns the next test into the process whose disk is full.
const CHILD: &str = "SHADOWLLM_TEST_FULL_DISK";

/// A disk that fills up while tensors are written, by a limit on the size of files: the system refuses the write just as it
/// does on a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing() {
    if let Some(directory) = std::env::var_os(CHILD) {
        let directory = PathBuf::from(directory);
        let error = import(&directory.join("m.gguf"), &directory.join("out"), DType::F32, &()).unwrap_err();
        fs::write(directory.join("message"), error.to_string()).unwrap();
        return;
    }
    let mut b = model();
    b.remove_tensor("token_embd.weight").f32_tensor("token_embd.weight", &[500, 8], &ramp(0.0, 4000));
    let place = Place::new(&b.build());
    let me = std::env::current_exe().unwrap();
    // One block is 512 or 1024 bytes, so the limit lies below the 18 kB of the whole file, and above the message.
    let status = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh"])
        .arg(me)
        .args(["--exact", "gguf::tests::a_full_disk_leaves_nothing"])
        .env(CHILD, place.directory.path())
        .output()
        .unwrap();
    assert!(status.status.success(), "{status:?}");
    let message = fs::read_to_string(place.path("message")).unwrap();
    assert_eq!(
        message.replace(&place.path("out").display().to_string(), "OUT"),
        "cannot write OUT/model.safetensors: File too large (os error 27); the whole file takes 18304 bytes; nothing was \
         replaced"
    );
    assert_eq!(place.entries(), ["m.gguf", "message"]);
}

/// A caller that unwinds in the middle of an import.
#[test]
fn an_interrupted_import_leaves_nothing() {
    struct Interrupt(PathBuf);
    impl crate::Progress for Interrupt {
        fn start(&self, _what: &str, _total_bytes: Option<u64>) {}
        fn advance(&self, _bytes: u64) {
            assert!(!self.0.exists(), "the directory has its name before it is whole");
            std::panic::panic_any("interrupted");
        }
        fn finish(&self) {}
    }
    let place = Place::new(&model().build());
    let progress = Interrupt(place.path("out"));
    let run = || import(&place.path("m.gguf"), &place.path("out"), DType::F32, &progress);
    let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"interrupted"));
    assert_eq!(place.entries(), ["m.gguf"]);
}

/// Progress reports add up to the announced total.
#[test]
fn progress_is_complete() {
    #[derive(Default)]
    struct Log(std::cell::RefCell<(Option<u64>, u64, u32)>);
    impl crate::Progress for Log {
        fn start(&self, _what: &str, total_bytes: Option<u64>) {
            self.0.borrow_mut().0 = total_bytes;
        }
        fn advance(&self, bytes: u64) {
            self.0.borrow_mut().1 += bytes;
        }
        fn finish(&self) {
            self.0.borrow_mut().2 += 1;
        }
    }
    let place = Place::new(&model().build());
    let log = Log::default();
    import(&place.path("m.gguf"), &place.path("out"), DType::BF16, &log).unwrap();
    let values = 9 * 8 + 3 * 8 + 2 * 64 + 2 * 32 + 3 * 24;
    assert_eq!(*log.0.borrow(), (Some(2 * values), 2 * values, 1));
}
