//! `shadow-bench` as its users run it: table, JSON, CSV, SVG, records, and the message for every mistake.

#![allow(clippy::unwrap_used)]

#[path = "support/program.rs"]
mod program;

use std::path::Path;
use std::process::Command;

use program::{ROOT, Run, finish, isolated};
use serde_json::Value;

/// A model of four small layers, described by its configuration alone.
fn tiny(dir: &Path, family: &str) -> String {
    let config = serde_json::json!({
        "model_type": family, "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "ffn_dim": 256, "intermediate_size": 256, "vocab_size": 300, "max_position_embeddings": 64, "word_embed_proj_dim": 64,
    });
    let dir = dir.join(format!("tiny-{family}"));
    std::fs::create_dir(&dir).unwrap();
    let path = dir.join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn bench(args: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shadow-bench"));
    command.args(args);
    isolated(&mut command);
    finish(command, "")
}

/// The protocol in a second.
const SHORT: [&str; 8] = ["--prompt", "8", "--gen", "6", "--repetitions", "2", "--threads", "1"];

fn short<'a>(args: &[&'a str]) -> Run {
    bench(&SHORT.iter().chain(args).copied().collect::<Vec<&'a str>>())
}

const FIELDS: [&str; 15] = [
    "shape",
    "policy",
    "keep",
    "context",
    "batch",
    "ms_per_token",
    "tokens_per_second",
    "prefill_tokens_per_second",
    "bytes_per_token",
    "gb_per_second",
    "bandwidth_share",
    "speedup_over_dense",
    "ideal_speedup",
    "predictor_share",
    "peak_memory_bytes",
];

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn json_verify_plot_and_record() {
    let temp = tempfile::tempdir().unwrap();
    let (opt, llama) = (tiny(temp.path(), "opt"), tiny(temp.path(), "llama"));
    let (plot, records) = (temp.path().join("plot.svg"), temp.path().join("records"));
    let shapes = format!("{opt},{llama}");
    let args = [
        "--shape",
        &shapes,
        "--keep",
        "1,0.5",
        "--policy",
        "dense,static,random,shadow:8,dejavu:8/16:f32",
        "--batch",
        "1,2",
    ];
    let files = ["--json", "--verify", "--plot", plot.to_str().unwrap(), "--record", records.to_str().unwrap()];
    let run = short(&[&args[..], &files[..]].concat());
    assert_eq!(run.code, Some(0), "{}", run.err);
    let report: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(keys(&report["machine"]), ["read_gb_per_second", "threads", "isa"]);
    assert_eq!(report["machine"]["threads"], 1);
    assert!(report["machine"]["read_gb_per_second"].as_f64().unwrap() > 0.0);
    let rows = report["rows"].as_array().unwrap();
    // Per shape and batch the dense model and four policies at two fractions.
    assert_eq!(rows.len(), 2 * 2 * 9);
    assert_eq!(report["spread"].as_array().unwrap().len(), rows.len());
    for row in rows {
        assert_eq!(keys(row), FIELDS);
        let number = |field: &str| row[field].as_f64().unwrap();
        for field in &FIELDS[2..] {
            assert!(number(field) >= 0.0, "{field}: {row}");
        }
        let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} and {b}: {row}");
        close(number("tokens_per_second"), 1e3 / number("ms_per_token"));
        close(number("gb_per_second"), number("bytes_per_token") / number("ms_per_token") / 1e6);
        assert_eq!(row["context"], 8);
        let dense = rows.iter().find(|dense| {
            dense["policy"] == "dense" && dense["shape"] == row["shape"] && dense["batch"] == row["batch"]
        });
        close(number("ideal_speedup"), dense.unwrap()["bytes_per_token"].as_f64().unwrap() / number("bytes_per_token"));
        let predicts = row["policy"].as_str().unwrap().contains(':') && row["keep"] == 0.5;
        assert!(!predicts || number("predictor_share") > 0.002, "{row}");
        match row["policy"].as_str().unwrap() {
            "dense" => {
                close(number("speedup_over_dense"), 1.0);
                assert_eq!(row["predictor_share"], 0.0);
            }
            "static" if row["keep"] == 0.5 => assert!(number("ideal_speedup") > 1.2, "{row}"),
            _ => {}
        }
    }
    assert_eq!((&rows[0]["shape"], &rows[35]["shape"]), (&"tiny-opt".into(), &"tiny-llama".into()));
    let verified = report["verified"].as_array().unwrap();
    assert_eq!(verified.len(), 2 * 8);
    assert!(verified.iter().all(|row| row["tokens"] == 4 && row["largest_difference"].as_f64().unwrap() < 2e-4));
    assert!(run.err.contains("verified: 64 sparse tokens are those of the masked dense model"), "{}", run.err);
    let run_facts = &report["run"];
    assert_eq!((&run_facts["interrupted"], &run_facts["generate"]), (&false.into(), &6.into()));
    assert_eq!(run_facts["shapes"][0]["layers_in_memory"], 4);
    assert!(run_facts["peak_gflop_per_second"].as_f64().unwrap() > 0.0);

    let svg = std::fs::read_to_string(plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    for text in ["tiny-opt, batch 1", "tiny-llama, batch 2", "0.5 of the heads and neurons kept", "dejavu:8/16:f32"] {
        assert!(svg.contains(text), "{text}: {svg}");
    }

    let machine = std::fs::read_dir(&records).unwrap().next().unwrap().unwrap().path();
    let record = std::fs::read_dir(&machine).unwrap().next().unwrap().unwrap().path();
    let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    assert_eq!(record["rows"], report["rows"]);
    assert!(record["command"].as_array().unwrap().iter().any(|arg| arg == "--verify"));
    assert!(record["host"]["system"].is_string());
}

#[test]
fn table_and_csv_of_a_model_that_is_there() {
    let model = format!("{ROOT}/weights/embedded/tiny-opt");
    let common = ["--shape", &model, "--policy", "shadow:16", "--context", "8,16"];
    let table = short(&common);
    assert_eq!(table.code, Some(0), "{}", table.err);
    assert!(table.out.contains("\ntiny-opt: ") && table.out.contains(" M parameters, "), "{}", table.out);
    assert!(table.out.contains("shadow:16: one predictor after layer 0, 16 hidden units"), "{}", table.out);
    assert!(table.out.contains("may stay in the caches in part"), "{}", table.out);
    let lines: Vec<&str> = table.out.lines().filter(|line| line.starts_with('|')).collect();
    // The dense model is always there.
    let starts: Vec<&str> = lines.iter().map(|line| line.split('|').nth(1).unwrap().trim()).collect();
    assert_eq!(starts, ["policy", "---------", "dense", "shadow:16", "dense", "shadow:16"]);

    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("rows.csv");
    let written = short(&[&common[..], &["--csv", file.to_str().unwrap()]].concat());
    assert_eq!(written.code, Some(0), "{}", written.err);
    let printed = short(&[&common[..], &["--csv"]].concat());
    for csv in [std::fs::read_to_string(file).unwrap(), printed.out] {
        let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
        assert_eq!(lines[0], FIELDS);
        assert_eq!(lines.len(), 5);
        assert!(lines.iter().all(|line| line.len() == FIELDS.len()), "{csv}");
        assert_eq!(lines[4][..5], ["tiny-opt", "shadow:16", "0.5", "16", "1"]);
    }
}

#[test]
fn mistakes_are_one_clear_sentence() {
    let temp = tempfile::tempdir().unwrap();
    let opt = tiny(temp.path(), "opt");
    for (args, code, expected) in [
        (&["--shape", "opt-9b"][..], 2, "unknown shape \"opt-9b\"; expected opt-125m, opt-1.3b,"),
        (&["--policy", "oracle"], 2, "unknown policy \"oracle\"; expected dense, static, random, shadow or dejavu,"),
        (&["--keep", "1.5"], 2, "\"1.5\" is no kept fraction; expected numbers over 0 and at most 1"),
        (&["--batch", "0"], 2, "\"0\" is no number that can be used here; expected 1 or more"),
        (&["--dtype", "int4"], 2, "int4"),
        (&["--json", "--csv"], 2, "cannot be used with"),
        (
            &["--shape", &opt, "--context", "4"],
            1,
            "error: a context of 4 tokens does not hold the prompt of 8; use --context 8 or more, or a shorter --prompt\n",
        ),
        (
            &["--shape", &opt, "--context", "60"],
            1,
            "error: tiny-opt has 64 positions, but 60 tokens of context and 6 decoded ones were asked for; use a smaller --context, \
             --prompt or --gen\n",
        ),
        (
            &["--shape", "opt-66b", "--batch", "4096", "--context", "2000"],
            1,
            "GB are available; use fewer policies, a smaller --context, --gen or --batch, or a smaller shape\n",
        ),
        (&["--shape", &opt, "--isa", "neon"], 2, "neon"),
    ] {
        let run = short(args);
        assert_eq!(run.code, Some(code), "{args:?}: {}", run.err);
        assert!(run.err.contains(expected), "{args:?}: {}", run.err);
        assert_eq!(run.out, "", "{args:?}");
    }
}

#[test]
fn help() {
    let run = bench(&["--help"]);
    assert_eq!(run.code, Some(0));
    insta::assert_snapshot!("bench_help", run.out);
}

/// Ctrl-C while tokens are decoded: what was measured is reported.
#[cfg(unix)]
#[test]
fn an_interrupted_measurement_reports_what_there_is() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    use std::time::Duration;

    let temp = tempfile::tempdir().unwrap();
    let opt = tiny(temp.path(), "opt");
    // On a busy machine it may take longer until there is a first token.
    for seconds in [1, 4, 16, 64] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shadow-bench"));
        command.args(["--shape", &opt, "--prompt", "8", "--gen", "40", "--repetitions", "1000000", "--json"]);
        isolated(&mut command);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        // Said just before predictors are made and tokens decoded.
        lines.find(|line| line.contains("measuring 4 rows")).unwrap();
        std::thread::sleep(Duration::from_secs(seconds));
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        assert!(lines.any(|line| line == "interrupted"));
        if let Ok(report) = serde_json::from_slice::<Value>(&output.stdout) {
            assert_eq!(report["run"]["interrupted"], true);
            assert!(!report["rows"].as_array().unwrap().is_empty());
            return;
        }
    }
    panic!("there was not a single token in a minute");
}
