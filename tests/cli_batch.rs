//! `generate --prompts`: several texts at once are those of one at a time.

#![allow(clippy::unwrap_used)]

#[path = "support/program.rs"]
mod program;

use std::fs;

use program::{json, run};

const PROMPTS: [&str; 3] = ["Once upon a time", "The captain looked at the sea", "It was"];

#[test]
fn lines_are_continued_as_texts_are() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("prompts.txt");
    fs::write(&file, format!("{}\n\n{}\n{}\n", PROMPTS[0], PROMPTS[1], PROMPTS[2])).unwrap();
    let file = file.to_str().unwrap();
    for policy in [&[][..], &["--policy", "dense", "--no-relu-skip"]] {
        let base = ["generate", "-n", "12", "--json"];
        let several = |batch: &str| json(&[&base[..], policy, &["--prompts", file, "--batch", batch]].concat());
        let together = several("2");
        let sequences = together["sequences"].as_array().unwrap();
        assert_eq!(sequences.len(), 3);
        for (sequence, prompt) in sequences.iter().zip(PROMPTS) {
            let alone = json(&[&base[..], policy, &["--prompt", prompt]].concat());
            for field in ["text", "tokens", "stop_reason", "prompt_ids", "policy", "kept", "dense_bytes_per_token"] {
                assert_eq!(sequence[field], alone[field], "{field} of {prompt}");
            }
        }
        assert_eq!((&together["batch"], &together["kept_by_any"]["heads"]), (&2.into(), &1.0.into()));
        let bytes = |report: &serde_json::Value, field: &str| report[field].as_f64().unwrap();
        assert!(bytes(&together, "bytes_per_token") < 0.7 * bytes(&together, "bytes_per_token_alone"));
        let one_by_one = several("1");
        assert_eq!(one_by_one["bytes_per_token"], one_by_one["bytes_per_token_alone"]);
        assert_eq!(one_by_one["bytes_per_token_alone"], together["bytes_per_token_alone"]);
    }
    let printed = run(&["generate", "-n", "12", "--prompts", file, "--ignore-eos"]);
    assert_eq!(printed.code, Some(0));
    assert!(printed.out.starts_with("--- 1\n, and the whole of"), "{}", printed.out);
    assert!(printed.out.contains("\n--- 3\n"));
    assert!(printed.err.contains("decoding up to 8 together, "), "{}", printed.err);
}

#[test]
fn mistakes_are_named() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("prompts.txt");
    fs::write(&file, "\n  \n").unwrap();
    let empty = run(&["generate", "--prompts", file.to_str().unwrap()]);
    assert_eq!(empty.code, Some(1));
    assert_eq!(empty.err, format!("error: {} has no prompts; write one on each line\n", file.display()));
    let zero = run(&["generate", "--prompts", file.to_str().unwrap(), "--batch", "0"]);
    assert_eq!(zero.code, Some(2));
    assert!(zero.err.contains("invalid value '0' for '--batch <N>'"), "{}", zero.err);
    let lonely = run(&["generate", "hello", "--batch", "2"]);
    assert_eq!(lonely.code, Some(2));
}
