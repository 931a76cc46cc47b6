//! `shadowllm activations`: what it writes, and what it says to bad input.

#![allow(clippy::unwrap_used)]

#[path = "support/program.rs"]
mod program;

use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;

use program::{copy, fixture, json, run};

fn reference(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(format!("{}/ref.json", fixture(name))).unwrap()).unwrap()
}

/// The ids of a fixture's loss sequence, as the command line takes them.
fn ids(reference: &Value) -> String {
    let ids = reference["loss"]["input_ids"].as_array().unwrap();
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn values(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensor = file.tensor(name).unwrap();
    let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    (tensor.shape().to_vec(), values)
}

#[test]
fn the_file_has_the_tensors_of_the_reference() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["opt-pre", "opt-350m-post", "llama-gqa", "qwen2-tied"] {
        let reference = reference(name);
        let out = directory.path().join(format!("{name}.safetensors"));
        let report = json(&[
            "activations",
            "--model",
            &fixture(name),
            "--ids",
            &ids(&reference),
            "--out",
            out.to_str().unwrap(),
            "--json",
        ]);
        let loss = reference["loss"]["value"].as_f64().unwrap();
        assert!((report["loss"].as_f64().unwrap() - loss).abs() < 1e-3);
        assert_eq!((&report["reduction"], report["scored"].as_u64()), (&Value::from("sum"), Some(19)));

        let bytes = std::fs::read(&out).unwrap();
        assert_eq!(report["bytes"].as_u64(), Some(bytes.len() as u64));
        let got = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(report["tensors"].as_u64(), Some(got.len() as u64));
        let reference = std::fs::read(format!("{}/acts.safetensors", fixture(name))).unwrap();
        let want = SafeTensors::deserialize(&reference).unwrap();
        assert!(got.len() >= 8 && got.len().is_multiple_of(4));
        for tensor in got.names() {
            let ((shape, got), (expected, want)) = (values(&got, tensor), values(&want, tensor));
            assert_eq!(shape, expected, "{name}: {tensor}");
            let scale = want.iter().fold(0.0f32, |a, w| a.max(w.abs()));
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 1e-4 * scale), "{name}: {tensor}");
        }
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = metadata.metadata().as_ref().unwrap();
        assert_eq!(metadata["ids"].split(',').count(), 20);
        assert!((metadata["loss"].parse::<f64>().unwrap() - loss).abs() < 1e-3);
        assert_eq!((metadata["reduction"].as_str(), metadata["scored_tokens"].as_str()), ("sum", "19"));
        assert!(!metadata["model"].is_empty());
    }
}

#[test]
fn an_answer_is_scored_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("a.safetensors");
    let arguments =
        ["--ids", "5,6,7,8,9,10", "--tokens", "5", "--answer", "2", "--mean", "--out", out.to_str().unwrap()];
    let report = json(&[&["activations", "--model", &fixture("llama-gqa"), "--json"][..], &arguments].concat());
    assert_eq!((report["tokens"].as_u64(), report["scored"].as_u64()), (Some(5), Some(2)));
    assert_eq!(report["reduction"], "mean");
    let bytes = std::fs::read(&out).unwrap();
    let last = report["tensors"].as_u64().unwrap() / 4 - 1;
    let name = format!("layers.{last}.ffn_inner.grad");
    let (shape, grads) = values(&SafeTensors::deserialize(&bytes).unwrap(), &name);
    assert_eq!(shape[0], 5);
    // Only tokens 3 and 4 are predicted, by rows 2 and 3; the last layer's FFN of other rows has no part in it.
    let rows: Vec<bool> = grads.chunks_exact(shape[1]).map(|row| row.iter().any(|&v| v != 0.0)).collect();
    assert_eq!(rows, [false, false, true, true, false]);
}

#[test]
fn text_is_tokenised() {
    let directory = tempfile::tempdir().unwrap();
    let (text, out) = (directory.path().join("text"), directory.path().join("a.safetensors"));
    std::fs::write(&text, "She opened the door and looked out into the garden.").unwrap();
    let run = run(&["activations", "--text", text.to_str().unwrap(), "--tokens", "6", "--out", out.to_str().unwrap()]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.out.contains("6 tokens, sum loss of 5 of them"), "{}", run.out);
}

/// The error of the command on a fixture, which must leave nothing behind.
fn error(model: &str, arguments: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("a.safetensors");
    let all = [&["activations", "--model", model, "--out", out.to_str().unwrap()][..], arguments].concat();
    let run = run(&all);
    assert_eq!(run.code, Some(1), "{}", run.err);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "something was left behind");
    run.err.trim_end().strip_prefix("error: ").unwrap().to_owned()
}

#[test]
fn bad_input_is_a_sentence_each_and_leaves_nothing_behind() {
    let model = fixture("llama-gqa");
    assert_eq!(
        error(&model, &["--ids", "5"]),
        "the text has 1 token(s), and a loss needs at least 2: one to predict and one before it; use a longer text"
    );
    assert!(error(&model, &["--ids", "5,6,4000000"]).starts_with("token id 4000000 at index 2 is out of range"));
    assert_eq!(
        error(&model, &["--ids", "5,6,7", "--answer", "3"]),
        "the loss is of tokens 0..3 of a text of 3; expected a range that is not empty, starts at 1 or later, \
         because nothing predicts token 0, and ends at 3 at the latest"
    );
    let long = vec!["5"; 200].join(",");
    assert!(error(&model, &["--ids", &long]).starts_with("the context is full: it holds"));
    let text = error(&model, &["--text", "no-such-file"]);
    assert!(text.contains("tokenizer.json") || text.contains("no-such-file"), "{text}");
}

#[test]
fn a_broken_model_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let broken = copy("llama-gqa", directory.path());
    spoil(&broken.join("model.safetensors"));
    assert_eq!(
        error(broken.to_str().unwrap(), &["--ids", "5,6,7"]),
        "the loss of the text is not finite: the forward pass broke down; \
         check the checkpoint for NaN, infinite or wrongly converted weights"
    );
}

/// Makes the final norm's first weight NaN.
fn spoil(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let name = file.names().into_iter().find(|name| name.ends_with("model.norm.weight")).unwrap().to_owned();
    let at = file.tensor(&name).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_path_that_cannot_be_written_is_named() {
    let run = run(&[
        "activations",
        "--model",
        &fixture("llama-gqa"),
        "--ids",
        "5,6,7",
        "--out",
        "no/such/folder/a.safetensors",
    ]);
    assert_eq!(run.code, Some(1));
    assert!(run.err.contains("no/such/folder/a.safetensors"), "{}", run.err);
}
