//! Sweeps as a user runs them: the figures are those of `eval`, nothing that was measured is lost, mistakes are sentences.

#![allow(clippy::unwrap_used)]

#[path = "support/program.rs"]
mod program;

use std::path::Path;

use program::{ROOT, command, finish, fixture, json, run};
use serde_json::Value;
use shadowllm::sparsity::predictor::{
    HiddenActivation, Normalization, PredictorInput, Training, WeightFormat, random_predictor, write_predictor,
};
use shadowllm::sparsity::{ModelIdentity, PredictorInfo};
use shadowllm::{Engine, EngineOptions};

/// A predictor of random weights for the embedded model.
fn predictor(path: &str, width: usize) {
    let engine = Engine::open("embedded", EngineOptions::default()).unwrap();
    let info = PredictorInfo {
        model: ModelIdentity::of(engine.model()),
        stations: vec![0],
        input: PredictorInput::Residual,
        normalization: Normalization::None,
        activation: HiddenActivation::Relu,
        criterion: "none".to_owned(),
        training: Training::default(),
        validated: Vec::new(),
    };
    let weights = random_predictor(&info, engine.config(), width, 2 * width, 7);
    write_predictor(Path::new(path), &info, &weights, WeightFormat::Int8).unwrap();
}

const TEXT: [&str; 6] = ["--text", "README.md", "--window", "48", "--windows", "3"];

fn strings<'a>(parts: &[&[&'a str]]) -> Vec<&'a str> {
    parts.concat()
}

/// Whether every tag is closed by one of its name, as XML has it.
fn assert_well_formed(html: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = html.strip_prefix("<!DOCTYPE html>").unwrap();
    while let Some(at) = rest.find('<') {
        assert!(!rest[..at].contains('>'), "a stray > before {}", &rest[at..][..rest.len().min(at + 60) - at]);
        let end = at + rest[at..].find('>').expect("a tag without end");
        let tag = &rest[at + 1..end];
        assert!(!tag.contains('<') && tag.matches('"').count().is_multiple_of(2), "{tag}");
        let name = tag.split([' ', '\n']).next().unwrap();
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(name);
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn every_point_is_what_eval_says() {
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    let (file, out) = (path("p.safetensors"), path("out"));
    predictor(&file, 6);
    let policies = format!("random,mine:shadow={file},oracle");
    let args =
        ["sweep", "--policies", &policies, "--keep", "0.5,0.8,0.5", "--kinds", "both,heads", "--out", &out, "--json"];
    let report = json(&strings(&[&args, &TEXT]));
    let points = report["points"].as_array().unwrap();
    assert_eq!((points.len(), report["measured"].as_u64()), (12, Some(13)));
    let dense = report["dense"]["perplexity"].as_f64().unwrap();
    let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-14 * b.abs(), "{a} and {b}");
    for point in points {
        let (label, kinds, keep) =
            (point["label"].as_str().unwrap(), point["kinds"].as_str().unwrap(), point["keep"].to_string());
        let policy = if label == "mine" { "shadow" } else { label };
        let neurons = if kinds == "heads" { "1" } else { &keep };
        let mut args = strings(&[&["eval", "perplexity", "--json", "--policy", policy, "--head-keep", &keep], &TEXT]);
        args.extend(["--neuron-keep", neurons]);
        if label == "mine" {
            args.extend(["--predictor", &file]);
        }
        let alone = json(&args);
        let quality = &point["quality"];
        close(quality["perplexity"].as_f64().unwrap(), alone["perplexity"].as_f64().unwrap());
        close(dense, alone["dense_perplexity"].as_f64().unwrap());
        close(quality["ratio"].as_f64().unwrap(), alone["ratio"].as_f64().unwrap());
        close(quality["kept"]["heads"].as_f64().unwrap(), alone["kept"]["heads"].as_f64().unwrap());
        close(quality["kept"]["neurons"].as_f64().unwrap(), alone["kept"]["neurons"].as_f64().unwrap());
        // The oracle keeps the best units, chance as many of them as it keeps, and a constant plan no more than all.
        let recall = &quality["head_recall"];
        let (mean, constant) = (recall["mean"].as_f64().unwrap(), recall["mean_of_constant"].as_f64().unwrap());
        match label {
            "oracle" => assert_eq!(mean, 1.0),
            "random" => assert!((mean - keep.parse::<f64>().unwrap()).abs() < 0.15, "{mean} at {keep}"),
            _ => assert!((0.0..=1.0).contains(&mean)),
        }
        assert!(constant < 1.0 && constant > 0.5);
        assert_eq!(quality["neuron_recall"].is_null(), kinds == "heads");
        assert!(quality["bytes_per_token"].as_f64().unwrap() < report["dense"]["bytes_per_token"].as_f64().unwrap());
        let times: u64 = quality["head_use"]["times"][1].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).sum();
        let kept = (times as f64) / quality["head_use"]["tokens"].as_f64().unwrap();
        assert!((kept.round() - kept).abs() < 1e-9, "a local budget keeps as many heads for every token");
    }
    let read = |name: &str| std::fs::read_to_string(Path::new(&out).join(name)).unwrap();
    let (table, layers, page) = (read("sweep.csv"), read("layers.csv"), read("report.html"));
    assert_eq!(table.lines().count(), 2 + 12);
    assert_eq!(layers.lines().count(), 1 + 12 * (report["layers"].as_u64().unwrap() as usize - 1));
    assert_well_formed(&page);
    for point in points {
        let start = format!("{},", point["label"].as_str().unwrap());
        let perplexity = point["quality"]["perplexity"].to_string();
        assert!(table.lines().any(|line| line.starts_with(&start) && line.contains(&perplexity)), "{point}");
        let shown = format!("<td>{:.4}</td>", point["quality"]["perplexity"].as_f64().unwrap());
        assert!(page.contains(&shown), "{shown}");
    }
    for heading in
        ["Perplexity against kept fraction", "bytes read per token", "Recall per layer", "contextual", "width against"]
    {
        assert!(page.contains(heading), "{heading}");
    }
    assert!(!page.contains("<script") && !page.contains("src="), "the page needs nothing but itself");

    // Again: nothing is left to do. More of it: only what is new is measured.
    let again = json(&strings(&[&args, &TEXT]));
    assert_eq!(again["measured"], 0);
    assert_eq!(read("sweep.csv"), table);
    let more = ["sweep", "--policies", "random", "--keep", "0.3", "--kinds", "heads", "--out", &out, "--json"];
    let more = json(&strings(&[&more, &TEXT]));
    assert_eq!((more["measured"].as_u64(), more["points"].as_array().unwrap().len()), (Some(1), 13));
    assert_eq!(more["points"][2]["keep"].to_string(), "0.3");
}

#[test]
fn a_sweep_that_is_stopped_goes_on_to_the_same_table() {
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    let base = ["sweep", "--policies", "random,oracle", "--keep", "0.8,0.4", "--threads", "1"];
    let start = |out: &str| command(&strings(&[&base, &TEXT, &["--out", out]]));
    let (whole, stopped) = (path("whole"), path("stopped"));
    assert_eq!(finish(start(&whole), "").code, Some(0));
    let measured = || {
        let text = std::fs::read_to_string(Path::new(&stopped).join("sweep.json")).ok()?;
        Some(serde_json::from_str::<Value>(&text).unwrap()["points"].as_array().unwrap().len())
    };
    // Killed as soon as there is more than before; whatever is there can be read.
    for signal in ["-KILL", "-INT"] {
        let mut child =
            start(&stopped).stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn().unwrap();
        let before = measured().unwrap_or(0);
        while measured().unwrap_or(0) < before + 2 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let _ = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status();
        let status = child.wait().unwrap();
        if signal == "-INT" && status.code() == Some(130) {
            // What there is can be looked at.
            assert_well_formed(&std::fs::read_to_string(Path::new(&stopped).join("report.html")).unwrap());
        }
    }
    let resumed = finish(start(&stopped), "");
    assert_eq!(resumed.code, Some(0), "{}", resumed.err);
    for name in ["sweep.csv", "layers.csv", "report.html", "sweep.json"] {
        let read = |out: &str| std::fs::read(Path::new(out).join(name)).unwrap();
        assert!(read(&whole) == read(&stopped), "{name} differs");
    }
    let left: Vec<_> = std::fs::read_dir(&stopped).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().filter(|name| !name.to_string_lossy().ends_with(".tmp")).count() == 4, "{left:?}");
}

#[test]
fn tasks_and_time_are_measured_beside_the_text() {
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    let (tasks, out) = (path("piqa.jsonl"), path("out"));
    let record = |i: usize| {
        format!(r#"{{"goal": "Count to {i}", "sol1": "Begin at one.", "sol2": "Go home.", "label": {}}}"#, i % 2)
    };
    std::fs::write(&tasks, (0..8).map(|i| record(i) + "\n").collect::<String>()).unwrap();
    let tasks = format!("piqa={tasks}");
    let args =
        ["sweep", "--policies", "random,oracle", "--keep", "0.5", "--kinds", "both", "--tasks", &tasks, "--limit", "6"];
    let report = json(&strings(&[&args, &TEXT, &["--speed", "--out", &out, "--json"]]));
    assert_eq!(report["dense"]["tasks"][0]["records"], 6);
    let random = &report["points"][0];
    let alone =
        json(&["eval", "tasks", "--task", &tasks, "--limit", "6", "--policy", "random", "--keep", "0.5", "--json"]);
    assert!((random["tasks"][0]["acc"].as_f64().unwrap() - alone["tasks"][0]["acc"].as_f64().unwrap()).abs() < 1e-14);
    let speed = |field: &str| random["speed"][field].as_f64().unwrap();
    assert!(speed("ms_per_token") > 0.0 && speed("dense_ms_per_token") > 0.0);
    assert!(speed("bytes_per_token") < speed("dense_bytes_per_token"));
    assert!(report["points"][1]["speed"].is_null(), "nobody can decode like the oracle");
    let page = std::fs::read_to_string(Path::new(&out).join("report.html")).unwrap();
    assert_well_formed(&page);
    assert!(page.contains("Quality against measured time per token") && page.contains("piqa, 6 questions"));
}

#[test]
fn mistakes_are_sentences() {
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    let (out, file, scores) = (path("out"), path("p.safetensors"), path("s.safetensors"));
    predictor(&file, 4);
    let engine = Engine::open("embedded", EngineOptions::default()).unwrap();
    let zeros = shadowllm::sparsity::Scores::zeros(engine.config());
    let zeros = shadowllm::sparsity::ScoresFile { scores: zeros, criterion: "none".to_owned(), model: None };
    zeros.write(Path::new(&scores), engine.config()).unwrap();
    std::fs::write(path("a file"), "").unwrap();
    std::fs::create_dir(path("broken")).unwrap();
    std::fs::write(path("broken/sweep.json"), "{\"version\": 9}").unwrap();
    let small = ["--text", "README.md", "--window", "16", "--windows", "1", "--keep", "0.5", "--kinds", "heads"];
    assert_eq!(run(&strings(&[&["sweep", "--policies", "random", "--out", &out], &small])).code, Some(0));

    let [shadow, twice, fixed] =
        [format!("shadow={file}"), format!("shadow={file},shadow={file}"), format!("static={scores}")];
    let other = format!("random:shadow={file}");
    let model = fixture("opt-pre");
    let mut report = String::new();
    let mut case = |args: &[&str]| {
        let run = run(&strings(&[&["sweep"], args]));
        assert_eq!(run.out, "");
        let shown: Vec<&str> = args.iter().take_while(|arg| **arg != "--text").copied().collect();
        report += &format!("$ shadowllm sweep {}\n{}[{}]\n\n", shown.join(" "), run.err, run.code.unwrap());
    };
    let new = path("new");
    for policies in ["luck", "shadow", "shadow=none.safetensors", "oracle=x", "dense", &twice, "dense:random"] {
        case(&strings(&[&["--policies", policies, "--out", &new], &small]));
    }
    case(&strings(&[&["--policies", &shadow, "--model", &model, "--ids", "5,6,7,8", "--window", "4", "--out", &new]]));
    case(&["--keep", "0.5,1.5", "--out", &new, "--text", "README.md"]);
    case(&["--kinds", "layers", "--out", &new, "--text", "README.md"]);
    case(&["--ids", "5,6,7", "--window", "8", "--out", &new]);
    case(&["--policies", &fixed, "--decision", "sequence", "--out", &new, "--text", "README.md"]);
    case(&["--policies", "random", "--speed", "--decision", "sequence", "--out", &new, "--text", "README.md"]);
    assert!(!Path::new(&new).exists(), "nothing is written before all is known to be well");
    case(&strings(&[&["--policies", "random", "--policy-seed", "3", "--out", &out], &small]));
    case(&strings(&[&["--policies", &other, "--out", &out], &small]));
    case(&[
        "--policies",
        "random",
        "--keep",
        "0.5",
        "--window",
        "17",
        "--windows",
        "1",
        "--out",
        &out,
        "--text",
        "README.md",
    ]);
    case(&strings(&[&["--policies", "random", "--out", &path("a file")], &small]));
    case(&strings(&[&["--policies", "random", "--out", &path("broken")], &small]));
    case(&["--policies", "random", "--out", &new]);
    let report = report.replace(temp.path().to_str().unwrap(), "[TEMP]").replace(ROOT, "[ROOT]");
    insta::assert_snapshot!("mistakes", report);
}

/// A limit on the size of files stands for a disk that is full.
#[cfg(unix)]
#[test]
fn a_full_disk_keeps_what_was_measured() {
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("out");
    let out = out.to_str().unwrap();
    let args = ["sweep", "--policies", "random", "--keep", "0.9,0.8,0.7,0.6,0.5,0.4", "--out", out];
    let inner = command(&strings(&[&args, &TEXT]));
    let mut limited = std::process::Command::new("sh");
    // In blocks of 512 bytes; the signal is ignored, so that writing fails with an error as on a full disk.
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""])
        .arg(inner.get_program())
        .args(inner.get_args());
    program::isolated(&mut limited);
    let stopped = finish(limited, "");
    assert_eq!(stopped.code, Some(1), "{}", stopped.err);
    assert!(stopped.err.starts_with(&format!("error: cannot write {out}/sweep.json")), "{}", stopped.err);
    let kept: Value = serde_json::from_slice(&std::fs::read(Path::new(out).join("sweep.json")).unwrap()).unwrap();
    let kept = kept["points"].as_array().unwrap().len();
    assert!(kept > 0 && kept < 18, "{kept}");
    let whole = finish(inner, "");
    assert_eq!(whole.code, Some(0), "{}", whole.err);
}
