//! `eval perplexity` and `eval tasks` as their users run them, under policies, and the message for every mistake.

#![allow(clippy::unwrap_used)]

#[path = "support/program.rs"]
mod program;

use std::fs;
use std::path::Path;

use program::{ROOT, fixture, json, run};
use serde_json::{Value, json as value};

/// A text long enough for the model that is compiled in.
fn text(base: &Path) -> String {
    let path = base.join("text.txt");
    fs::write(&path, "Once upon a time there was a king who had three sons, and each of them had a horse. ".repeat(40))
        .unwrap();
    path.to_str().unwrap().to_owned()
}

/// A jsonl file.
fn records(base: &Path, name: &str, records: &[Value]) -> String {
    let path = base.join(name);
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    fs::write(&path, lines.join("\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn piqa(base: &Path) -> String {
    let question = |goal, right, wrong| value!({"goal": goal, "sol1": right, "sol2": wrong, "label": 0});
    records(
        base,
        "piqa.jsonl",
        &[
            question("Cross a river", "Take a boat to the other side.", "Take a boat to the other zebra quartz."),
            question("Light a room", "Open the window.", "Window the open."),
            question("Sleep", "Go to bed and close the eyes.", "Go to bed and close the of of."),
        ],
    )
}

fn winogrande(base: &Path) -> String {
    let question =
        |sentence, one, two, answer| value!({"sentence": sentence, "option1": one, "option2": two, "answer": answer});
    records(
        base,
        "winogrande.jsonl",
        &[
            question("The king gave the boy a coin because _ was kind.", "the king", "the boy", "1"),
            question("The boy thanked the king because _ was kind.", "the king", "the boy", "1"),
        ],
    )
}

#[test]
fn perplexity_under_a_policy_stands_beside_the_dense_one() {
    let temp = tempfile::tempdir().unwrap();
    let text = text(temp.path());
    let base = ["eval", "perplexity", "--text", &text, "--window", "64", "--windows", "3", "--json"];
    let perplexity = |options: &[&str]| json(&[&base[..], options].concat());
    let plain = perplexity(&[]);
    assert_eq!((&plain["policy"], &plain["decision"], &plain["ratio"]), (&value!("dense"), &Value::Null, &value!(1.0)));
    assert_eq!(plain["kept"], value!({"heads": 1.0, "neurons": 1.0}));
    assert_eq!(plain["dense_perplexity"], plain["perplexity"]);
    let neurons = ["--head-keep", "1", "--neuron-keep", "0.5"];
    let oracle = perplexity(&[&["--policy", "oracle"], &neurons[..]].concat());
    let random = perplexity(&[&["--policy", "random"], &neurons[..]].concat());
    for report in [&oracle, &random] {
        let sparse = &report["perplexity"];
        assert_eq!(report["dense_perplexity"], plain["perplexity"]);
        let ratio = sparse.as_f64().unwrap() / plain["perplexity"].as_f64().unwrap();
        assert!((report["ratio"].as_f64().unwrap() / ratio - 1.0).abs() < 1e-12);
        assert_eq!((&report["decision"], &report["dense_prefix"]), (&value!("causal"), &value!(0)));
        let budget = value!({"heads": 1.0, "neurons": 0.5, "scope": "local", "chosen": null, "warning": null});
        assert_eq!(report["budget"], budget);
        let kept = report["kept"]["neurons"].as_f64().unwrap();
        assert!(report["kept"]["heads"] == 1.0 && kept > 0.5 && kept < 0.7, "{kept}");
        assert!(report["dense_tokens_per_second"].as_f64().unwrap() > 0.0);
    }
    assert_eq!((&oracle["oracle"], &oracle["causal"]), (&value!("magnitude"), &value!(false)));
    assert_eq!((&random["oracle"], &random["causal"]), (&Value::Null, &value!(true)));
    let ratio = |report: &Value| report["ratio"].as_f64().unwrap();
    assert!(ratio(&oracle) < 1.1 && ratio(&random) > ratio(&oracle), "{} and {}", ratio(&oracle), ratio(&random));
    // Kept whole, whoever chooses.
    let whole = perplexity(&["--policy", "random", "--keep", "1"]);
    assert_eq!((&whole["perplexity"], &whole["ratio"]), (&plain["perplexity"], &value!(1.0)));
    // The same windows, the dense model left out.
    let alone = perplexity(&[&["--policy", "random", "--no-dense"], &neurons[..]].concat());
    assert_eq!(
        (&alone["perplexity"], &alone["dense_perplexity"], &alone["ratio"]),
        (&random["perplexity"], &Value::Null, &Value::Null)
    );
    let prefixed = perplexity(&[&["--policy", "random", "--dense-prefix", "63"], &neurons[..]].concat());
    assert!(ratio(&prefixed) < ratio(&random));
    assert_eq!(prefixed["dense_prefix"], 63);
}

#[test]
fn decision_sequence_is_labelled() {
    let temp = tempfile::tempdir().unwrap();
    let text = text(temp.path());
    let args = ["eval", "perplexity", "--text", &text, "--window", "64", "--windows", "1", "--policy", "oracle"];
    let sequence = [&args[..], &["--decision", "sequence"]].concat();
    let report = json(&[&sequence[..], &["--json"]].concat());
    assert_eq!((&report["decision"], &report["causal"]), (&value!("sequence"), &value!(false)));
    let shown = run(&sequence);
    assert!(shown.out.contains("decision sequence (not causal)"), "{}", shown.out);
    assert!(
        shown.err.contains("the last token of a text chose the units of all; for comparison only"),
        "{}",
        shown.err
    );
    let causal = run(&args);
    assert!(causal.out.contains("budget local, decision causal\n"), "{}", causal.out);
    assert!(causal.out.contains("times that of the dense model"), "{}", causal.out);
}

#[test]
fn tasks_are_answered_dense_and_sparse() {
    let temp = tempfile::tempdir().unwrap();
    let (piqa, winogrande) = (piqa(temp.path()), winogrande(temp.path()));
    let tasks = [format!("piqa={piqa}"), format!("winogrande={winogrande}")];
    let base = ["eval", "tasks", "--task", &tasks[0], "--task", &tasks[1]];
    let report = |options: &[&str]| json(&[&base[..], &["--json"], options].concat());
    let dense = report(&[]);
    let task = &dense["tasks"][0];
    assert_eq!((&task["task"], &task["records"], &task["choices"]), (&value!("piqa"), &value!(3), &value!(6)));
    assert!(task["acc_norm"].is_number() && task["acc_stderr"].is_number());
    // The harness reports none.
    assert_eq!(dense["tasks"][1]["acc_norm"], Value::Null);
    let acc = |at: usize| dense["tasks"][at]["acc"].as_f64().unwrap();
    assert_eq!(acc(0), 1.0, "what is no language is not the answer");
    assert!((dense["mean_acc"].as_f64().unwrap() - (acc(0) + acc(1)) / 2.0).abs() < 1e-12);
    assert_eq!((&dense["policy"], &dense["decision"], &dense["shots"]), (&value!("dense"), &Value::Null, &value!(0)));

    let oracle = report(&["--policy", "oracle", "--keep", "0.9"]);
    assert_eq!((&oracle["policy"], &oracle["decision"]), (&value!("oracle"), &value!("causal")));
    let kept = oracle["kept"]["heads"].as_f64().unwrap();
    assert!(kept > 0.85 && kept < 1.0, "{kept}");
    assert_eq!(oracle["tasks"][0]["acc"], 1.0);
    assert_eq!(report(&["--policy", "oracle", "--decision", "sequence"])["decision"], "sequence");
    assert_eq!(report(&["--limit", "1"])["tasks"][0], {
        let mut one = task.clone();
        one["records"] = value!(1);
        one["choices"] = value!(2);
        for field in ["acc_stderr", "acc_norm_stderr"] {
            one[field] = Value::Null;
        }
        for field in ["acc", "acc_norm", "acc_bytes"] {
            one[field] = value!(1.0);
        }
        one
    });

    let shots = ["--shots", "2", "--shots-from", &tasks[0], "--shots-from", &tasks[1]];
    let few = report(&shots);
    assert_eq!(few["shots"], 2);
    assert_eq!(few["tasks"], report(&shots)["tasks"], "the same seed, the same examples");
    let single = ["eval", "tasks", "--task", &tasks[0], "--shots", "1", "--shots-from", &piqa, "--seed", "3"];
    let table = run(&single);
    assert_eq!(table.code, Some(0), "{}", table.err);
    assert!(
        table.out.starts_with("task          records               acc          acc_norm\npiqa                3  "),
        "{}",
        table.out
    );
    assert!(table.out.lines().last().unwrap().starts_with("mean"), "{}", table.out);
}

/// Every mistake a user can make, with what the program answers.
#[test]
fn mistakes_have_messages() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path();
    let text = text(base);
    let short = base.join("short.txt");
    fs::write(&short, "Too short.").unwrap();
    let short = short.to_str().unwrap();
    let empty = records(base, "empty.jsonl", &[]);
    let piqa = piqa(base);
    let odd = records(base, "odd.jsonl", &[value!({"goal": "g", "sol1": "a", "sol2": "b", "label": 2})]);
    let blank = records(
        base,
        "blank.jsonl",
        &[value!({"question_stem": "", "answerKey": "A",
        "choices": {"text": ["x".repeat(3000)], "label": ["A"]}})],
    );
    let plain = fixture("llama-gqa");
    let tokenless = ["--model", plain.as_str()];
    let task = |name: &str, file: &str| format!("{name}={file}");
    let (good, other, none, wrong) =
        (task("piqa", &piqa), task("rte", &piqa), task("piqa", &empty), task("piqa", &odd));
    let (missing, long) = (task("piqa", "no-such-file.jsonl"), task("openbookqa", &blank));
    let (unknown, readme) = (task("boolq", &piqa), task("piqa", "README.md"));
    let perplexity = ["eval", "perplexity", "--window", "32", "--text"];
    let cases: &[&[&str]] = &[
        &["eval", "tasks"],
        &["eval", "tasks", "--task", "piqa"],
        &["eval", "tasks", "--task", &unknown],
        &["eval", "tasks", "--task", &missing],
        &["eval", "tasks", "--task", &other],
        &["eval", "tasks", "--task", &none],
        &["eval", "tasks", "--task", &wrong],
        &["eval", "tasks", "--task", &readme],
        &["eval", "tasks", "--task", &long],
        &["eval", "tasks", "--task", &good, "--limit", "0"],
        &["eval", "tasks", "--task", &good, "--shots", "2"],
        &["eval", "tasks", "--task", &good, "--shots", "4", "--shots-from", &piqa],
        &["eval", "tasks", "--task", &good, "--shots", "1", "--shots-from", &other],
        &["eval", "tasks", "--task", &good, "--policy", "dense", "--decision", "sequence"],
        &["eval", "tasks", "--task", &good, tokenless[0], tokenless[1]],
        &[&perplexity[..], &[short, "--policy", "random"]].concat(),
        &[&perplexity[..], &[&text, "--policy", "random", "--decision", "first"]].concat(),
        &[&perplexity[..], &[&text, "--policy", "oracle", "--oracle", "size"]].concat(),
        &[&perplexity[..], &[&text, "--policy", "shadow", "--predictor", "README.md"]].concat(),
        &[&perplexity[..], &[&text, "--policy", "dense", "--decision", "sequence"]].concat(),
        &[&perplexity[..], &[&text, "--policy", "oracle", "--keep", "2"]].concat(),
        &[&perplexity[..], &[&text, "--policy", "static"]].concat(),
        &[&perplexity[..], &[&text, "--policy", "dejavu"]].concat(),
        &[&perplexity[..], &[&text, "--decision", "causal"]].concat(),
        &["generate", "hello", "--policy", "oracle"],
    ];
    let mut report = String::new();
    for args in cases {
        let run = run(args);
        assert_ne!(run.code, Some(0), "{args:?} did not fail");
        assert_eq!(run.out, "", "{args:?}");
        report += &format!("$ shadowllm {}\n{}[{}]\n\n", args.join(" "), run.err, run.code.unwrap());
    }
    let report = report.replace(base.to_str().unwrap(), "[TEMP]").replace(ROOT, "[ROOT]");
    insta::assert_snapshot!("mistakes", report);
}
