//! Training on a real model: from text to a file that chooses units better than the mean does.

#![allow(clippy::unwrap_used)]

#[path = "support/program.rs"]
mod program;
mod support;

use std::path::Path;

use program::{command, finish, json, run};
use support::shared;

/// A part of a book, so that a test takes seconds.
fn book(directory: &Path, bytes: usize) -> Option<String> {
    let text = std::fs::read(shared("data/calibration/books.txt")?).unwrap();
    let path = directory.join("book.txt");
    std::fs::write(&path, String::from_utf8_lossy(&text[..bytes]).as_bytes()).unwrap();
    Some(path.to_str().unwrap().to_owned())
}

#[test]
fn a_predictor_of_the_embedded_model_beats_the_mean() {
    let temp = tempfile::tempdir().unwrap();
    let Some(book) = book(temp.path(), 600_000) else { return };
    let out = temp.path().join("p.safetensors");
    let out = out.to_str().unwrap();
    let report = json(&[
        "train",
        "--text",
        &book,
        "--tokens",
        "24000",
        "--window",
        "256",
        "--width",
        "32",
        "--passes",
        "4",
        "--rate",
        "5e-3",
        "--held-out",
        "0.15",
        "--gradient-tokens",
        "2000",
        "--no-validate",
        "--out",
        out,
        "--json",
    ]);
    for kind in ["heads", "neurons"] {
        let of = |field: &str| report[kind]["ranking"][field].as_f64().unwrap();
        assert!(of("recall") > of("recall_of_mean") + 0.01, "{kind}: {}", report[kind]["ranking"]);
        assert!(of("spearman") > of("spearman_of_mean") + 0.02, "{kind}: {}", report[kind]["ranking"]);
        assert!(report[kind]["loss"].as_f64().unwrap() < 0.9 * report[kind]["loss_of_mean"].as_f64().unwrap());
        assert_eq!(report[kind]["layers"].as_array().unwrap().len(), 7);
    }
    let bytes = report["bytes"].as_u64().unwrap();
    assert!(bytes < 400_000, "{bytes}");
    assert_eq!(std::fs::metadata(out).unwrap().len(), bytes);
    assert!(!temp.path().join("p.safetensors.state").exists());
    let generated =
        run(&["generate", "--prompt", "It was", "--max-tokens", "5", "--policy", "shadow", "--predictor", out]);
    assert_eq!(generated.code, Some(0), "{}", generated.err);
}

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_file() {
    let temp = tempfile::tempdir().unwrap();
    let Some(book) = book(temp.path(), 300_000) else { return };
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    let args = |out: &str, more: &[&str]| {
        let base = [
            "train",
            "--text",
            &book,
            "--tokens",
            "8000",
            "--window",
            "128",
            "--width",
            "8",
            "--passes",
            "1",
            "--epochs",
            "4",
            "--held-out",
            "0.2",
            "--threads",
            "1",
            "--gradient-tokens",
            "500",
            "--no-validate",
            "--out",
            out,
        ];
        base.iter().chain(more).map(|&s| s.to_owned()).collect::<Vec<_>>()
    };
    let start = |out: &str, more: &[&str]| {
        let args = args(out, more);
        command(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let whole = finish(start(&path("whole"), &[]), "");
    assert_eq!(whole.code, Some(0), "{}", whole.err);
    // Killed as soon as there is a state, and again.
    for more in [&[][..], &["--resume"][..]] {
        let mut child = start(&path("killed"), more).stderr(std::process::Stdio::null()).spawn().unwrap();
        let state = path("killed.state");
        let before = std::fs::metadata(&state).and_then(|m| m.modified()).ok();
        while std::fs::metadata(&state).and_then(|m| m.modified()).ok() == before && child.try_wait().unwrap().is_none()
        {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let _ = child.kill();
        child.wait().unwrap();
    }
    if Path::new(&path("killed.state")).exists() {
        let refused = finish(start(&path("killed"), &[]), "");
        let message =
            "holds the state of a run that was stopped; go on with --resume, or remove the file to begin anew";
        assert!(refused.code == Some(1) && refused.err.contains(message), "{}", refused.err);
        let resumed = finish(start(&path("killed"), &["--resume"]), "");
        assert_eq!(resumed.code, Some(0), "{}", resumed.err);
    }
    assert!(std::fs::read(path("killed")).unwrap() == std::fs::read(path("whole")).unwrap());
}

#[test]
fn a_trace_in_shards_trains_the_same_predictor() {
    let temp = tempfile::tempdir().unwrap();
    let Some(book) = book(temp.path(), 300_000) else { return };
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    let text = ["--text", &book, "--tokens", "8000", "--window", "128"];
    // A trace has no text to validate on.
    let training = ["--width", "8", "--held-out", "0.3", "--no-validate", "--json"];
    let with = |first: &[&str], rest: &[&str]| json(&[first, rest].concat());
    for shard in ["1/2", "2/2"] {
        let report = with(&["trace", "--out", &path("trace"), "--shard", shard, "--json"], &text);
        assert_eq!(report["found"], 0);
    }
    let again = with(&["trace", "--out", &path("trace"), "--scores", &path("scores"), "--json"], &text);
    assert_eq!((again["written"].as_u64(), again["found"].as_u64()), (Some(0), again["files"].as_u64()));
    // A trace has no gradients of its criterion, which training on text measures first.
    with(&[&["train", "--out", &path("a"), "--gradient-tokens", "0"], &text[..]].concat(), &training);
    with(&["train", "--out", &path("b"), "--trace", &path("trace")], &training);
    assert!(std::fs::read(path("a")).unwrap() == std::fs::read(path("b")).unwrap());
    let fixed = run(&[
        "generate",
        "--prompt",
        "It was",
        "--max-tokens",
        "3",
        "--policy",
        "static",
        "--scores",
        &path("scores"),
    ]);
    assert_eq!(fixed.code, Some(0), "{}", fixed.err);
}

#[test]
fn task_records_are_texts() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("records.jsonl");
    let record = |i: usize| {
        format!(
            r#"{{"goal": "How to count to {i}", "sol1": "Begin at one, and go on.", "sol2": "Begin at {i}.", "label": {}}}"#,
            i % 2
        )
    };
    std::fs::write(&file, (0..200).map(|i| record(i) + "\n").collect::<String>()).unwrap();
    let out = temp.path().join("p");
    let tasks = format!("piqa={}", file.display());
    let out = out.to_str().unwrap();
    let report = json(&[
        "train",
        "--tasks",
        &tasks,
        "--shots",
        "2",
        "--tokens",
        "3000",
        "--width",
        "4",
        "--held-out",
        "0.2",
        "--no-validate",
        "--out",
        out,
        "--json",
    ]);
    assert!(report["data"].as_str().unwrap().starts_with("records.jsonl ("), "{}", report["data"]);
    assert!(report["tokens"].as_u64().unwrap() > 2000);

    let message = |tasks: &str| run(&["train", "--tasks", tasks, "--out", out]).err;
    assert_eq!(
        message("piqa"),
        "error: --tasks \"piqa\" names no file; expected NAME=FILE, such as piqa=piqa_train.jsonl\n"
    );
    assert!(message(&format!("copa={}", file.display())).contains("premise"), "the column that is missing is named");
}

#[test]
fn what_cannot_be_trained_on_is_said_in_a_sentence() {
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("short.txt"), "A few words only.").unwrap();
    let error = |args: &[&str]| {
        let found = run(&[&["train", "--out", &path("p")], args].concat());
        assert_eq!(found.code, Some(1), "{}", found.err);
        found.err
    };
    assert_eq!(
        error(&[]),
        "error: there is nothing to learn from; give texts with --text FILE or records with --tasks NAME=FILE\n"
    );
    assert!(
        error(&["--text", &path("short.txt")]).contains("documents are divided whole"),
        "{}",
        error(&["--text", &path("short.txt")])
    );
    assert!(error(&["--text", &path("none.txt")]).starts_with("error: cannot read "));
    assert_eq!(
        error(&["--rate", "0", "--text", &path("short.txt")]),
        "error: learning rate is 0; expected a number over 0\n"
    );
    assert_eq!(
        error(&["--criterion", "luck", "--text", &path("short.txt")]),
        "error: unknown criterion \"luck\"; known are magnitude, plainact, fisher, l2norm, gradnorm, saliency\n"
    );
    assert!(error(&["--trace", &path("")]).contains("has no trace files"));
    assert!(!Path::new(&path("p")).exists());
}
