//! Kills, full disks and damage while the program learns: nothing is lost, and the result is that of an undisturbed run.

#![allow(clippy::unwrap_used)]

#[path = "support/program.rs"]
mod program;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use program::{command, finish, json, run};

/// A text of some thousand tokens of the embedded model.
fn book(directory: &Path, lines: usize) -> String {
    let path = directory.join("book.txt");
    let line =
        |i: usize| format!("It was the {i}th day of the journey, and the {} men went on over the hills.\n", i * i % 97);
    std::fs::write(&path, (0..lines).map(line).collect::<String>()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Records of PIQA.
fn records(directory: &Path, count: usize) -> String {
    let path = directory.join("piqa.jsonl");
    let record = |i: usize| {
        format!(
            r#"{{"goal": "Count to {i}", "sol1": "Begin at one.", "sol2": "Begin at {i} and stop.", "label": {}}}"#,
            i % 2
        )
    };
    std::fs::write(&path, (0..count).map(|i| record(i) + "\n").collect::<String>()).unwrap();
    format!("piqa={}", path.display())
}

/// Starts a command and kills it (signal 9) as soon as `ready`; false if it ended by itself before.
fn kill_when(args: &[&str], ready: impl Fn() -> bool) -> bool {
    let mut child = command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !ready() && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(600), "it does not come that far");
        std::thread::sleep(Duration::from_millis(2));
    }
    let killed = child.try_wait().unwrap().is_none();
    let _ = child.kill();
    child.wait().unwrap();
    killed
}

/// Names and contents of the files of a folder that are finished.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = names
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .map(|path| (PathBuf::from(path.file_name().unwrap()), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_trace_that_is_killed_goes_on_to_the_same_files() {
    let temp = tempfile::tempdir().unwrap();
    let book = book(temp.path(), 2000);
    let [whole, killed] = ["whole", "killed"].map(|name| temp.path().join(name));
    let with = |out: &Path| -> Vec<String> {
        let rest = ["--text", &book, "--tokens", "16000", "--window", "256", "--out", out.to_str().unwrap()];
        ["trace"].into_iter().chain(rest).map(str::to_owned).collect()
    };
    let start = |out: &Path| finish(command(&with(out).iter().map(String::as_str).collect::<Vec<_>>()), "");
    assert_eq!(start(&whole).code, Some(0));
    let arguments = with(&killed);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // At once, and when the first file is there.
    kill_when(&arguments, || killed.exists());
    kill_when(&arguments, || killed.exists() && !files(&killed).is_empty());
    let resumed = start(&killed);
    assert_eq!(resumed.code, Some(0), "{}", resumed.err);
    assert!(files(&whole).len() > 1 && files(&killed) == files(&whole));
}

#[test]
fn criteria_that_are_killed_go_on_to_the_same_scores() {
    let temp = tempfile::tempdir().unwrap();
    let (book, tasks) = (book(temp.path(), 60), records(temp.path(), 40));
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    let args = |out: &str, more: &[&str]| -> Vec<String> {
        let base =
            ["criteria", "--text", &book, "--tasks", &tasks, "--tokens", "1600", "--window", "128", "--scores", out];
        base.iter().chain(more).map(|&s| s.to_owned()).collect()
    };
    let started = |args: &[String]| finish(command(&args.iter().map(String::as_str).collect::<Vec<_>>()), "");
    let whole = started(&args(&path("whole"), &["--json", "--statistics", &path("statistics.json")]));
    assert_eq!(whole.code, Some(0), "{}", whole.err);
    let killed = args(&path("killed"), &[]);
    let state = temp.path().join("killed/criteria.state");
    let modified = || std::fs::metadata(&state).and_then(|m| m.modified()).ok();
    for _ in 0..2 {
        let before = modified();
        kill_when(&killed.iter().map(String::as_str).collect::<Vec<_>>(), || modified() != before);
    }
    assert_eq!(started(&killed).code, Some(0));
    let [whole_files, killed_files] = ["whole", "killed"].map(|name| files(&temp.path().join(name)));
    assert!(whole_files.len() == 12 && killed_files == whole_files);
    assert!(!state.exists(), "it is of no use any more");

    // What is printed and written.
    let report: serde_json::Value = serde_json::from_str(&whole.out).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(path("statistics.json")).unwrap()).unwrap();
    assert_eq!(report["statistics"], written["statistics"]);
    assert_eq!(report["texts"][1]["name"], "piqa.jsonl");
    let scored = |text: usize| report["texts"][text]["scored"].as_u64().unwrap();
    let tokens = |text: usize| report["texts"][text]["tokens"].as_u64().unwrap();
    assert!(tokens(0) - scored(0) == report["texts"][0]["pieces"].as_u64().unwrap() && 2 * scored(1) < tokens(1));
    let criteria = report["statistics"]["criteria"].as_array().unwrap();
    assert_eq!(criteria.len(), 12);
    let of = |name: &str| criteria.iter().find(|c| c["criterion"] == name).unwrap();
    assert!(of("jacov")["neurons"].is_null() && of("jacov")["heads"]["std"].as_f64().unwrap() > 0.0);
    let correlations = &report["statistics"]["head_correlations"];
    assert_eq!(correlations["within_layers"].as_array().unwrap().len(), 12);
    assert_eq!(correlations["all"][3][3], 1.0);

    // Scores of a criterion that says nothing about neurons.
    let generate = |rest: &[&str]| {
        let scores = path("whole/jacov.safetensors");
        let base = ["generate", "It was", "-n", "3", "--policy", "static", "--scores", &scores];
        run(&[&base[..], rest].concat())
    };
    assert_eq!(generate(&["--head-keep", "0.5", "--neuron-keep", "1"]).code, Some(0));
    assert_eq!(
        generate(&["--keep", "0.5"]).err,
        "error: the scores rank no neurons, but the budget keeps only 0.5 of them; keep all neurons, or use scores of a \
         criterion that ranks them\n"
    );
}

#[test]
fn what_has_no_scores_says_why() {
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("scores");
    let message = |args: &[&str]| {
        let found = run(&[&["criteria", "--scores", out.to_str().unwrap()], args].concat());
        assert_eq!(found.code, Some(1), "{}", found.err);
        found.err
    };
    let book = book(temp.path(), 20);
    assert!(message(&[]).starts_with("error: there is nothing to learn from; "));
    assert!(
        message(&["--text", &book, "--criteria", "luck"])
            .starts_with("error: unknown criterion \"luck\"; known are magnitude, ")
    );
    assert!(message(&["--text", &book, "--window", "1"]).contains("use at least 2"));
    let tasks = records(temp.path(), 3);
    let other = tasks.replace("piqa=", "copa=");
    assert!(message(&["--tasks", &other]).contains("there is no column \"premise\""));
    std::fs::write(temp.path().join("short"), "I").unwrap();
    let short = temp.path().join("short");
    assert!(message(&["--text", short.to_str().unwrap()]).contains("use a longer text"));
}

/// The operating system refuses to write more than a little: the message says what was needed, nothing is left half-written, and
/// with room again the work goes on.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_loses_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let book = book(temp.path(), 2000);
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    let limited = |args: &[&str]| {
        let mut shell = std::process::Command::new("sh");
        // Without the trap the signal ends the program, which the real full disk never sends.
        shell.args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_shadowllm")]).args(args);
        program::isolated(&mut shell);
        finish(shell, "")
    };
    let [trace, scores, predictor] = ["trace", "scores", "p.safetensors"].map(path);
    let text = ["--text", &book, "--window", "128"];
    let few = [&text[..], &["--tokens", "600"]].concat();
    // Two documents: one to learn from, one that is held out.
    let some = [&text[..], &["--tokens", "6000", "--criterion", "l2norm"]].concat();
    let training =
        [&["train", "--width", "8", "--held-out", "0.4", "--no-validate", "--out", &predictor], &some[..]].concat();
    let cases = [
        [&["trace", "--out", &trace], &few[..]].concat(),
        [&["criteria", "--criteria", "magnitude,fisher", "--scores", &scores], &few[..]].concat(),
        training.clone(),
    ];
    for args in &cases {
        let full = limited(args);
        assert_eq!(full.code, Some(1), "{args:?}: {}", full.err);
        let error = full.err.lines().last().unwrap();
        assert!(
            error.starts_with("error: cannot write ")
                && error.contains("the whole file takes ")
                && error.contains("nothing was replaced"),
            "{}",
            full.err
        );
    }
    let left = |directory: &str| std::fs::read_dir(path(directory)).unwrap().count();
    assert_eq!((left("trace"), left("scores"), Path::new(&predictor).exists()), (0, 0, false));
    for args in &cases {
        assert_eq!(run(args).code, Some(0), "{args:?}");
    }
    assert_eq!(left("scores"), 2);
    assert!(Path::new(&predictor).exists());
}

#[test]
fn predictors_of_all_presets_obey_their_size() {
    let temp = tempfile::tempdir().unwrap();
    let book = book(temp.path(), 1200);
    let mut sizes = Vec::new();
    for preset in ["shadow", "paper", "dejavu"] {
        let out = temp.path().join(preset);
        let report = json(&[
            "train",
            "--text",
            &book,
            "--tokens",
            "6000",
            "--window",
            "128",
            "--held-out",
            "0.4",
            "--passes",
            "1",
            "--preset",
            preset,
            "--criterion",
            "l2norm",
            "--size",
            "3%",
            "--no-validate",
            "--out",
            out.to_str().unwrap(),
            "--json",
        ]);
        sizes.push(report["bytes"].as_u64().unwrap());
        assert_eq!(std::fs::metadata(out).unwrap().len(), sizes[sizes.len() - 1]);
    }
    let blocks = json(&["inspect", "--json"])["bytes_per_token"]["first"]["blocks"].as_u64().unwrap();
    for bytes in sizes {
        assert!(bytes <= 3 * blocks / 100 && bytes > blocks / 100, "{bytes} of {blocks}");
    }
    let error = run(&["train", "--text", &book, "--criterion", "l2norm", "--size", "10", "--out", "unused"]).err;
    assert!(error.contains("but the file may have at most 10; allow more bytes"), "{error}");
    assert_eq!(run(&["train", "--text", &book, "--size", "3 MB", "--out", "unused"]).code, Some(2));
}
