//! The program as its users run it: output, JSON fields, help, and the message for every mistake.

#![allow(clippy::unwrap_used)]

#[path = "support/program.rs"]
mod program;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use program::{ROOT, command, copy, fixture, json, run, run_with_input};
use serde_json::Value;

#[test]
fn without_arguments_it_shows_the_main_job() {
    let run = run(&[]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.out.contains("> Once upon a time\n"), "{}", run.out);
    // Dense and sparse, beside each other.
    assert!(
        run.out.lines().any(|line| line.starts_with(", and the whole of the world") && line.len() > 60),
        "{}",
        run.out
    );
    for row in ["perplexity", "heads kept", "neurons kept", "MB per token", "tokens/s"] {
        let line = run.out.lines().find(|line| line.starts_with(row)).unwrap_or_else(|| panic!("{row}: {}", run.out));
        let mut numbers = line[row.len()..].split_whitespace().filter_map(|word| word.parse::<f64>().ok());
        let (dense, sparse) = (numbers.next().unwrap(), numbers.next().unwrap());
        assert!(dense > 0.0 && sparse > 0.0, "{line}");
        if ["neurons kept", "MB per token"].contains(&row) {
            assert!(sparse < 0.9 * dense, "{line}");
        }
        if row == "perplexity" {
            assert!(sparse < 1.2 * dense, "{line}");
        }
    }
    assert!(run.out.contains("GB/s"), "{}", run.out);
}

#[test]
fn help_of_every_command() {
    let mut text = String::new();
    for args in [
        &["--help"][..],
        &["generate", "--help"],
        &["chat", "--help"],
        &["inspect", "--help"],
        &["import", "--help"],
        &["pack", "--help"],
        &["calibrate-gate", "--help"],
        &["train", "--help"],
        &["validate", "--help"],
        &["trace", "--help"],
        &["criteria", "--help"],
        &["eval", "--help"],
        &["eval", "perplexity", "--help"],
        &["eval", "tasks", "--help"],
        &["sweep", "--help"],
        &["logits", "--help"],
        &["activations", "--help"],
        &["random-model", "--help"],
        &["emit-cuda", "--help"],
    ] {
        let run = run(args);
        assert_eq!(run.code, Some(0));
        text += &format!("$ shadowllm {}\n{}\n", args.join(" "), run.out);
    }
    insta::assert_snapshot!("help", text);
}

#[test]
fn greedy_text_of_the_embedded_model() {
    let run = run(&["generate", "Once upon a time", "-n", "32", "--ignore-eos"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    insta::assert_snapshot!("generate_embedded", run.out);
    assert!(run.err.contains("decoding") && run.err.contains("MB per token"), "{}", run.err);
}

#[test]
fn sampled_text_repeats_with_its_seed() {
    let sample = |seed: &str| {
        let args = ["generate", "The sea", "-n", "24", "--temperature", "0.9", "--top-p", "0.95", "--seed", seed];
        run(&args).out
    };
    assert_eq!(sample("7"), sample("7"));
    assert_ne!(sample("7"), sample("8"));
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let with = |threads: &str| {
        json(&["generate", "The captain", "-n", "24", "--threads", threads, "--json"])["tokens"].clone()
    };
    assert_eq!(with("1"), with("2"));
    assert_eq!(with("1"), with("3"));
}

#[test]
fn generate_json_has_the_documented_fields() {
    let report = json(&["generate", "Once upon a time", "-n", "8", "--json"]);
    assert_eq!(report["text"], ", and the whole of the world,");
    assert_eq!(report["tokens"], serde_json::json!([15, 283, 264, 1095, 282, 264, 924, 15]));
    assert_eq!(report["prompt_tokens"], 6);
    assert_eq!(report["stop_reason"], "max_tokens");
    for field in ["decode_tokens_per_second", "bytes_per_token", "effective_gb_per_second", "prefill_tokens_per_second"]
    {
        assert!(report[field].as_f64().unwrap() > 0.0, "{field}: {report}");
    }
    // All weights but the position table and the unused rows of the embedding, which is the LM head too.
    let bytes = report["bytes_per_token"].as_f64().unwrap();
    assert!((14.0e6..16.0e6).contains(&bytes), "{bytes}");
    let ratio = report["effective_gb_per_second"].as_f64().unwrap() * 1e9
        / (bytes * report["decode_tokens_per_second"].as_f64().unwrap());
    assert!((ratio - 1.0).abs() < 1e-6, "{ratio}");
}

#[test]
fn sparse_text_and_what_it_read() {
    let prompt = ["generate", "Once upon a time", "-n", "24", "--ignore-eos"];
    let with = |options: &[&str]| {
        let args: Vec<&str> = prompt.iter().chain(options).chain(&["--json"]).copied().collect();
        json(&args)
    };
    let plain = with(&[]);
    assert_eq!(plain["policy"], "dense");
    assert_eq!(plain["kept"], serde_json::json!({"heads": 1.0, "neurons": 1.0}));
    let mut golden = Vec::new();
    for options in [
        &["--policy", "dense"][..],
        &["--policy", "random", "--keep", "0.9", "--policy-seed", "1"],
        &["--policy", "random", "--keep", "0.5", "--policy-seed", "1"],
        &["--policy", "random", "--head-keep", "1", "--neuron-keep", "0.25", "--budget", "global", "--refresh", "4"],
        &["--policy", "random", "--head-keep", "0.5", "--neuron-keep", "1", "--refresh", "prompt"],
    ] {
        let report = with(options);
        golden.push(serde_json::json!({"options": options, "text": report["text"], "kept": report["kept"]}));
        let dense = report["dense_bytes_per_token"].as_f64().unwrap();
        let read = report["bytes_per_token"].as_f64().unwrap();
        let ideal = report["ideal_speedup"].as_f64().unwrap();
        assert!((ideal - dense / read).abs() < 1e-9 && ideal > 1.0, "{report}");
        // With ReLU even the dense policy leaves second halves unread; without the skip it reads what dense decoding reads.
        let unskipped = with(&[options, &["--no-relu-skip"]].concat());
        assert_eq!(unskipped["text"], report["text"]);
        let all = unskipped["bytes_per_token"].as_f64().unwrap();
        assert!(all > read, "{options:?}");
        if options == ["--policy", "dense"] {
            assert!((all / dense - 1.0).abs() < 0.01, "{all} instead of {dense}");
            assert_eq!(report["text"], plain["text"]);
        }
        assert_eq!(report["predictor_bytes_per_token"], 0.0);
    }
    insta::assert_json_snapshot!("sparse_text", golden);
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let report = json(&["generate", "Once upon a time", "-n", "30", "--stop", "world,", "--json"]);
    assert_eq!(report["text"], ", and the whole of the ");
    assert_eq!(report["stop_reason"], "stop_string");
}

#[test]
fn a_full_context_ends_the_text_and_says_so() {
    let run = run(&["generate", "Once upon a time", "-n", "30", "--context", "10"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.err.contains("stopped: the context of 10 tokens is full"), "{}", run.err);
    let report = json(&["generate", "Once upon a time", "-n", "30", "--context", "10", "--json"]);
    assert_eq!(report["stop_reason"], "context_full");
    // Six prompt tokens, four that were run, and the one that follows the last.
    assert_eq!(report["tokens"].as_array().unwrap().len(), 5);
}

#[test]
fn a_directory_without_tokenizer_works_by_ids() {
    let report = json(&["generate", "--model", &fixture("llama-gqa"), "--prompt-ids", "20,30,40", "-n", "4", "--json"]);
    assert_eq!(report["text"], Value::Null);
    assert_eq!(report["tokens"].as_array().unwrap().len(), 4);
    let run = run(&["generate", "--model", &fixture("llama-gqa"), "--prompt-ids", "20,30,40", "-n", "4"]);
    assert_eq!(run.out.split_whitespace().count(), 4, "{}", run.out);
}

#[test]
fn logits_are_written_for_every_position() {
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("logits.safetensors");
    let report = json(&[
        "logits",
        "--model",
        &fixture("opt-pre"),
        "--ids",
        "50,14,128",
        "--out",
        out.to_str().unwrap(),
        "--json",
    ]);
    assert_eq!(report["shape"], serde_json::json!([3, 131]));
    let bytes = std::fs::read(out).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor("logits").unwrap();
    assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::F32, &[3, 131][..]));
}

#[test]
fn perplexity_of_ids() {
    let ids: Vec<String> = (4..64).map(|i| i.to_string()).collect();
    let report = json(&[
        "eval",
        "perplexity",
        "--model",
        &fixture("opt-pre"),
        "--ids",
        &ids.join(","),
        "--window",
        "20",
        "--json",
    ]);
    assert_eq!(report["tokens"], 3 * 19);
    let (perplexity, nll) = (report["perplexity"].as_f64().unwrap(), report["nll"].as_f64().unwrap());
    assert!((perplexity.ln() * 57.0 - nll).abs() < 1e-6);
    assert_eq!(report["windows"].as_array().unwrap().len(), 3);
}

#[test]
fn inspect_of_the_embedded_model() {
    let run = run(&["inspect", "--isa", "portable", "--threads", "2", "--tensors"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    insta::assert_snapshot!("inspect_embedded", run.out);
    let report = json(&["inspect", "--isa", "portable", "--threads", "2", "--json"]);
    insta::assert_json_snapshot!("inspect_embedded_json", report);
}

#[test]
fn a_random_model_can_be_used() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("opt");
    let made = json(&["random-model", dir.to_str().unwrap(), "--shape", "opt-125m", "--seed", "3", "--json"]);
    assert_eq!(made["parameters"], 125_239_296);
    let inspected = json(&["inspect", "--model", dir.to_str().unwrap(), "--json"]);
    assert_eq!(inspected["parameters"], made["parameters"]);
    let report = json(&["generate", "--model", dir.to_str().unwrap(), "--prompt-ids", "2,100", "-n", "2", "--json"]);
    assert_eq!(report["tokens"].as_array().unwrap().len(), 2);
}

/// The embedded model as a directory with a chat template.
fn chat_model(into: &Path) -> String {
    let model = into.join("chat");
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(format!("{ROOT}/weights/embedded/tiny-opt/{file}"), model.join(file)).unwrap();
    }
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    std::fs::write(model.join("chat_template.jinja"), template).unwrap();
    model.to_str().unwrap().to_owned()
}

#[test]
fn chat_keeps_what_it_has_already_read() {
    let temp = tempfile::tempdir().unwrap();
    let model = chat_model(temp.path());
    let args = ["chat", "--model", &model, "--json", "-n", "6", "--context", "80"];
    let run = run_with_input(&args, "Good morning.\nWhere is the captain?\n\n/reset\nGood morning.\n/exit\nnot read\n");
    assert_eq!(run.code, Some(0), "{}", run.err);
    let turns: Vec<Value> = serde_json::Deserializer::from_str(&run.out).into_iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(turns.len(), 3);
    assert_eq!(turns[0]["prompt_tokens"], turns[0]["new_prompt_tokens"]);
    assert!(turns[1]["new_prompt_tokens"].as_u64() < turns[1]["prompt_tokens"].as_u64(), "{turns:?}");
    assert_eq!(turns[0]["text"], turns[2]["text"]);
    let long = "A long sentence about nothing at all. ".repeat(20);
    let full = run_with_input(&args, &long);
    assert_eq!(full.code, Some(1));
    assert_eq!(full.err.matches("the context is full").count(), 1, "{}", full.err);
    let person =
        run_with_input(&["chat", "--model", &model, "-n", "2", "--context", "80"], &format!("{long}\nHello.\n"));
    assert_eq!(person.code, Some(0), "{}", person.err);
    assert!(person.err.contains("the context is full") && person.err.contains("/reset"), "{}", person.err);
    assert_eq!(person.out.lines().count(), 1, "only the short message has an answer: {}", person.out);
}

#[test]
fn imports_gguf() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("llama");
    let gguf = format!("{ROOT}/tests/fixtures/gguf/tiny-llama.gguf");
    let report = json(&["import", &gguf, dir.to_str().unwrap(), "--dtype", "f32", "--json"]);
    assert_eq!(report["architecture"], "llama");
    let report = json(&["generate", "--model", dir.to_str().unwrap(), "hello", "-n", "3", "--json"]);
    assert_eq!(report["tokens"].as_array().unwrap().len(), 3);
    let again = run(&["import", &gguf, dir.to_str().unwrap()]);
    assert_eq!(again.code, Some(1));
    assert!(again.err.starts_with("error: "), "{}", again.err);
}

/// A model rounded to int8, from both kinds of source: every command takes it as any other.
#[test]
fn int8_models() {
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name).display().to_string();
    let gguf = format!("{ROOT}/tests/fixtures/gguf/tiny-llama.gguf");
    for (source, dir, architecture) in [("embedded", path("opt"), "opt"), (gguf.as_str(), path("llama"), "llama")] {
        let report = json(&["import", source, &dir, "--dtype", "int8", "--json"]);
        assert_eq!((&report["architecture"], &report["dtype"]), (&architecture.into(), &"int8".into()));
        let inspected = json(&["inspect", "--model", &dir, "--json"]);
        let bytes = |dtype: &str| inspected["tensor_bytes"][dtype].as_u64().unwrap();
        assert!(bytes("int8") > bytes("f32"), "{}", inspected["tensor_bytes"]);
        assert_eq!(inspected["parameters"], report["parameters"]);
        let generate = ["generate", "--model", &dir, "Once upon a time", "-n", "4", "--json"];
        let dense = json(&generate);
        assert_eq!(dense["tokens"].as_array().unwrap().len(), 4);
        // Over packed records, of which a policy keeps some.
        let sparse = json(&[&generate[..], &["--policy", "random", "--keep", "0.5"]].concat());
        assert_eq!(sparse["tokens"].as_array().unwrap().len(), 4);
        let whole = json(&[&generate[..], &["--policy", "dense"]].concat());
        assert_eq!(whole["tokens"], dense["tokens"]);
    }
    let per_token = |model: &str| {
        let report = json(&["inspect", "--model", model, "--json"]);
        report["bytes_per_token"]["first"]["blocks"].as_f64().unwrap()
    };
    let ratio = per_token(&path("opt")) / per_token("embedded");
    assert!(ratio < 0.56, "{ratio}");
}

#[test]
fn every_mistake_has_its_message() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path();
    let text = base.join("short.txt");
    std::fs::write(&text, "Too short.").unwrap();
    let empty = base.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let cut = copy("opt-pre", base);
    let weights = cut.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let unreadable = copy("llama-gqa", base);
    std::fs::remove_file(unreadable.join("model.safetensors")).unwrap();
    std::fs::create_dir(unreadable.join("model.safetensors")).unwrap();
    let wrong_tokenizer = copy("llama-mha", base);
    std::fs::copy(format!("{ROOT}/weights/embedded/tiny-opt/tokenizer.json"), wrong_tokenizer.join("tokenizer.json"))
        .unwrap();
    let long = "word ".repeat(600);
    let path = |p: &Path| p.to_str().unwrap().to_owned();
    let (opt, text) = (fixture("opt-pre"), path(&text));
    let trap = fixture("opt-pre/model.safetensors");
    let dangling = path(&base.join("dangling"));
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
    let cases: &[&[&str]] = &[
        &["generate", "--model", &opt, "--prompt-ids", "5,131"],
        &["generate", "--model", &opt, "no tokenizer here"],
        &["generate", "--model", &opt, "--prompt-ids", "5", "--context", "97"],
        &["generate", &long],
        &["generate", "hello", "--temperature", "-1"],
        &["generate", "hello", "--top-p", "0"],
        &["generate", "hello", "--keep", "0.5"],
        &["generate", "hello", "--policy", "greedy"],
        &["generate", "hello", "--policy", "random", "--keep", "0"],
        &["generate", "hello", "--policy", "random", "--head-keep", "1.5"],
        &["generate", "hello", "--policy", "random", "--neuron-keep", "nan"],
        &["generate", "hello", "--policy", "random", "--budget", "some"],
        &["generate", "hello", "--policy", "random", "--refresh", "often"],
        &["generate", "hello", "--policy", "static"],
        &["generate", "hello", "--policy", "static", "--scores", "no-such-file"],
        &["generate", "hello", "--policy", "static", "--scores", "README.md"],
        &["generate", "hello", "--policy", "dejavu"],
        &["generate", "hello", "--policy", "shadow", "--predictor", &trap],
        &["generate", "hello", "--stop", ""],
        &["generate", "hello", "--threads", "100000"],
        &["generate", "--prompt-ids", "5,-1"],
        &["generate", "--model", &dangling, "--prompt-ids", "5"],
        &["generate", "hello", "--isa", "sse9"],
        &["generate", "--model", &path(&empty), "hello"],
        &["generate", "--model", "no/such-model", "hello"],
        &["generate", "--model", "./no/such/dir", "hello"],
        &["generate", "--model", &path(&cut), "--prompt-ids", "5"],
        &["generate", "--model", &path(&unreadable), "--prompt-ids", "5"],
        &["generate", "--model", &path(&wrong_tokenizer), "--prompt-ids", "5"],
        &["generate", "--prompt-file", "no-such-file.txt"],
        &["generate"],
        &["chat"],
        &["eval", "perplexity", "--text", &text],
        &["eval", "perplexity", "--text", &text, "--window", "1"],
        &["eval", "perplexity", "--text", "no-such-file.txt"],
        &["logits", "--model", &opt, "--ids", "1,2", "--out", "no-such-directory/logits.safetensors"],
        &["logits", "--model", &opt, "--ids", "1,two", "--out", "x"],
        &["logits", "--model", &opt, "--ids", "1,2", "--out", &path(base)],
        &["import", "no-such.gguf", &path(&base.join("new"))],
        &["import", "README.md", &path(&base.join("new"))],
        &["import", "README.md", &path(&base.join("new")), "--dtype", "int8"],
        &["import", "embedded", &path(&base.join("new"))],
        &["import", "embedded", &path(&base.join("new")), "--dtype", "int4"],
        &["emit-cuda", "--shape", "opt-125m", "--dtype", "int8", "--sm", "80", "--out", &path(&base.join("new"))],
        &["random-model", &path(&base.join("new")), "--shape", "gpt-5"],
        &["random-model", &path(&cut), "--shape", "opt-125m"],
    ];
    let mut report = String::new();
    for args in cases {
        let run = run(args);
        assert_ne!(run.code, Some(0), "{args:?} did not fail");
        assert_eq!(run.out, "", "{args:?}");
        let shown: Vec<&str> = args.iter().map(|a| if a.len() > 1000 { "(600 words)" } else { a }).collect();
        report += &format!("$ shadowllm {}\n{}[{}]\n\n", shown.join(" "), run.err, run.code.unwrap());
    }
    let report = report.replace(&path(base), "[TEMP]").replace(ROOT, "[ROOT]");
    insta::assert_snapshot!("mistakes", report);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = command(&["generate", "Once upon a time", "-n", "400", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Sends the signal of Ctrl-C.
#[cfg(unix)]
fn interrupt(child: &std::process::Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_text_and_keeps_what_is_there() {
    let args = ["generate", "Once upon a time", "-n", "500", "--ignore-eos", "--isa", "portable", "--threads", "1"];
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // More than the prompt and the first token, which is known before anything was decoded.
    let mut begun = [0; 64];
    child.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("decoding") && err.ends_with("interrupted\n"), "{err}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_chat_that_waits_for_input() {
    let temp = tempfile::tempdir().unwrap();
    let model = chat_model(temp.path());
    let mut child = command(&["chat", "--model", &model, "--json", "-n", "2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // After the first answer it waits for the second message; standard input stays open until the end.
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"Good morning.\n").unwrap();
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    drop(input);
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_broken_model_has_no_perplexity() {
    let temp = tempfile::tempdir().unwrap();
    let model = copy("opt-pre", temp.path());
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4000..].fill(0xff); // NaN in every type
    std::fs::write(&weights, bytes).unwrap();
    let run = run(&["eval", "perplexity", "--model", model.to_str().unwrap(), "--ids", "4,5,6,7", "--window", "4"]);
    assert_eq!(run.code, Some(1), "{}", run.out);
    assert_eq!(
        run.err,
        "error: the logits of window 0 are not finite: the forward pass broke down; \
         check the checkpoint for NaN, infinite or wrongly converted weights\n"
    );
}

#[test]
fn a_prompt_may_come_from_standard_input() {
    let piped = run_with_input(&["generate", "--prompt-file", "-", "-n", "4"], "Once upon a time");
    assert_eq!(piped.code, Some(0), "{}", piped.err);
    assert_eq!(piped.out, run(&["generate", "Once upon a time", "-n", "4"]).out);
}
