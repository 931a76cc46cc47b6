//! Import of the small GGUF files in `tests/fixtures/gguf`: every tensor type, both architectures, bit for bit.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;
use shadowllm_weights::{DType, gguf};
use tokenizers::Tokenizer;

const MODELS: [&str; 2] = ["tiny-llama", "tiny-qwen2"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn fnv1a(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

#[test]
fn tensors_are_equal_bit_for_bit() {
    for model in MODELS {
        let expected = &json(&fixture(&format!("{model}.json")))["tensors"];
        for dtype in DType::FLOATS {
            let directory = tempfile::tempdir().unwrap();
            let out = directory.path().join("out");
            let report = gguf::import(&fixture(&format!("{model}.gguf")), &out, dtype, &()).unwrap();
            let bytes = fs::read(out.join("model.safetensors")).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(report.bytes, bytes.len() as u64);
            assert_eq!(tensors.len(), expected.as_object().unwrap().len(), "{model}");
            assert_eq!(report.tensors, tensors.len());
            for (name, want) in expected.as_object().unwrap() {
                let tensor = tensors.tensor(name).unwrap();
                assert_eq!(serde_json::json!(tensor.shape()), want["shape"], "{model} {name}");
                assert_eq!(fnv1a(tensor.data()), want[dtype.name()], "{model} {name} {dtype}");
            }
        }
    }
}

#[test]
fn json_files_are_equal() {
    for model in MODELS {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        gguf::import(&fixture(&format!("{model}.gguf")), &out, DType::F32, &()).unwrap();
        for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
            assert_eq!(json(&out.join(file)), json(&fixture(model).join(file)), "{model} {file}");
        }
        let mut files: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
        files.sort();
        let all =
            ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
        assert_eq!(files, all, "{model}");
    }
}

#[test]
fn texts_are_tokenised_alike() {
    for model in MODELS {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        gguf::import(&fixture(&format!("{model}.gguf")), &out, DType::BF16, &()).unwrap();
        let tokenizer = Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
        for encoding in json(&fixture(&format!("{model}.json")))["encodings"].as_array().unwrap() {
            let text = encoding["text"].as_str().unwrap();
            let ids = tokenizer.encode(text, false).unwrap().get_ids().to_vec();
            assert_eq!(serde_json::json!(ids), encoding["ids"], "{model} {text:?}");
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), encoding["decoded"].as_str().unwrap(), "{model}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), encoding["decoded_plain"].as_str().unwrap(), "{model}");
        }
    }
}

/// Fuzzing starts from these, so they must reach every part of the import.
#[test]
fn the_seeds_of_the_fuzzer_are_good_files() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/gguf");
    let mut count = 0;
    for seed in fs::read_dir(seeds).unwrap() {
        let seed = seed.unwrap().path();
        assert_eq!(gguf::check(&fs::read(&seed).unwrap()), Ok(()), "{}", seed.display());
        count += 1;
    }
    assert_eq!(count, 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Changed bytes in a real head, which has every type of value and of tensor: an error or an import, never a panic.
    #[test]
    fn damage_never_panics(
        model in 0..MODELS.len(),
        changes in proptest::collection::vec((0..12_000usize, any::<u8>()), 1..8),
    ) {
        let mut bytes = fs::read(fixture(&format!("{}.gguf", MODELS[model]))).unwrap();
        for (at, value) in changes {
            bytes[at] = value;
        }
        let _ = gguf::check(&bytes);
    }
}
