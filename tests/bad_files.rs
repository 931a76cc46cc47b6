//! Files that do not fit, budgets that mean nothing, a full disk, another process at work: what the program says, and that nothing
//! is lost.

#![allow(clippy::unwrap_used)]

#[path = "support/program.rs"]
mod program;

use std::fs;
use std::path::Path;

use program::{ROOT, command, copy, finish, json, run};
use shadowllm::sparsity::predictor::{
    HiddenActivation, Normalization, PredictorInput, Training, WeightFormat, random_predictor, write_predictor,
};
use shadowllm::sparsity::{
    GateStatistic, GateThresholds, ModelIdentity, PredictorInfo, Scores, ScoresFile, Units, calibrate_gate,
};
use shadowllm::{Engine, EngineOptions};

fn engine(model: &str) -> Engine {
    Engine::open(model, EngineOptions::default()).unwrap()
}

/// A file that ends in the middle.
fn cut(path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    let to = format!("{}.cut", path.display());
    fs::write(&to, &bytes[..bytes.len() * 2 / 3]).unwrap();
    to
}

/// A safetensors file with one more entry of metadata or other bytes.
fn edited(path: &Path, name: &str, from: &str, to: &str) -> String {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
    assert!(header.contains(from), "{header}");
    let mut header = header.replacen(from, to, 1).trim_end().to_owned();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let out = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + length..]].concat();
    let path = path.with_file_name(name);
    fs::write(&path, out).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The message of every command, all of which must fail.
fn report(cases: &[Vec<&str>], base: &Path) -> String {
    let mut report = String::new();
    for args in cases {
        let run = run(args);
        assert_ne!(run.code, Some(0), "{args:?} did not fail");
        assert_eq!(run.out, "", "{args:?}");
        report += &format!("$ shadowllm {}\n{}[{}]\n\n", args.join(" "), run.err, run.code.unwrap());
    }
    report.replace(base.to_str().unwrap(), "[TEMP]").replace(ROOT, "[ROOT]")
}

fn path(base: &Path, name: &str) -> String {
    base.join(name).to_str().unwrap().to_owned()
}

/// Scores and predictors for the embedded model that are not what they should be.
#[test]
fn scores_and_predictors() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path();
    let engine = engine("embedded");
    let config = engine.config();
    let identity = ModelIdentity::of(engine.model());
    let other = ModelIdentity::from("0123456789abcdef0123456789abcdef".to_owned());

    let scores = |name: &str, units: Units, model: &ModelIdentity| {
        let file =
            ScoresFile { scores: Scores::zeros(units), criterion: "test".to_owned(), model: Some(model.clone()) };
        file.write(&base.join(name), units).unwrap();
        path(base, name)
    };
    let units = Units::from(config);
    let good = scores("scores", units, &identity);
    let narrow = scores("narrow", Units { neurons: units.neurons - 1, ..units }, &identity);
    let shallow = scores("shallow", Units { layers: units.layers - 1, ..units }, &identity);
    let foreign = scores("foreign", units, &other);
    let ending_in = |name: &str, score: f32| {
        let mut bytes = fs::read(&good).unwrap();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&score.to_le_bytes());
        fs::write(base.join(name), bytes).unwrap();
        path(base, name)
    };
    let (broken, infinite) = (ending_in("broken", f32::NAN), ending_in("infinite", f32::NEG_INFINITY));
    let cut_scores = cut(Path::new(&good));

    let predictor = |name: &str, model: &ModelIdentity, neuron_bias: f32| {
        let info = PredictorInfo {
            model: model.clone(),
            stations: vec![0],
            input: PredictorInput::Residual,
            normalization: Normalization::None,
            activation: HiddenActivation::Relu,
            criterion: "test".to_owned(),
            training: Training { data: "none".to_owned(), seed: 1, ..Training::default() },
            validated: Vec::new(),
        };
        let mut weights = random_predictor(&info, config, 4, 4, 1);
        let output = &mut weights[0].neurons.as_mut().unwrap().output;
        let outputs = output.weight.len() / output.cols;
        output.bias.get_or_insert_with(|| vec![0.0; outputs])[5] = neuron_bias;
        write_predictor(&base.join(name), &info, &weights, WeightFormat::Int8).unwrap();
        path(base, name)
    };
    let mine = predictor("predictor", &identity, 0.0);
    let foreign_predictor = predictor("foreign-predictor", &other, 0.0);
    let broken_predictor = predictor("broken-predictor", &identity, f32::NAN);
    let cut_predictor = cut(Path::new(&mine));
    let newer = edited(Path::new(&mine), "newer", r#"\"version\":1"#, r#"\"version\":2"#);

    let generate = |policy: &[&'static str], file: &str| -> Vec<String> {
        let args = ["generate", "hello", "-n", "2"].iter().chain(policy).map(|arg| (*arg).to_owned());
        args.chain([file.to_owned()]).filter(|arg| !arg.is_empty()).collect()
    };
    let fixed = ["--policy", "static", "--scores"].as_slice();
    let shadow = ["--policy", "shadow", "--predictor"].as_slice();
    let mut cases: Vec<Vec<String>> = [&narrow, &shallow, &foreign, &broken, &infinite, &cut_scores, &mine]
        .map(|file| generate(fixed, file))
        .to_vec();
    cases.extend([&foreign_predictor, &cut_predictor, &newer, &good].map(|file| generate(shadow, file)));
    // What it predicts shows when it predicts; without --json the first token, from the prompt, is out by then.
    cases.push(generate(&["--json", "--policy", "shadow", "--predictor"], &broken_predictor));
    cases.push(generate(&["--policy", "dejavu", "--predictor"], &mine));
    for keep in ["0", "-0.5", "1.01", "inf", "nan", "half"] {
        cases.push(generate(&["--policy", "random", "--keep"], keep));
    }
    cases.push(generate(&["--policy", "random", "--head-keep"], "0"));
    cases.push(generate(&["--policy", "shadow", "--predictor", "none", "--neuron-keep"], "1.5"));
    let cases: Vec<Vec<&str>> = cases.iter().map(|args| args.iter().map(String::as_str).collect()).collect();
    insta::assert_snapshot!("scores_and_predictors", report(&cases, base));
    for (option, file) in [(fixed, &good), (shadow, &mine)] {
        let works = generate(option, file);
        let works: Vec<&str> = works.iter().map(String::as_str).collect();
        assert_eq!(run(&works).code, Some(0), "{works:?}");
    }
}

/// Thresholds of the gated model `engine` on made-up text.
fn thresholds(engine: &Engine, statistic: GateStatistic) -> GateThresholds {
    let tokens: Vec<u32> = (0..600u32).map(|i| (i * i + i / 7) % 131).collect();
    let options = shadowllm::sparsity::GateCalibration { statistic, window: 64, data: "made-up numbers".to_owned() };
    calibrate_gate(engine.cpu(), engine.model(), &tokens, &options, &mut |_, _| std::ops::ControlFlow::Continue(()))
        .unwrap()
}

#[test]
fn gate_thresholds() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path();
    let model = copy("llama-gqa", base).to_str().unwrap().to_owned();
    let engine = engine(&model);
    let config = engine.config();
    let good = thresholds(&engine, GateStatistic::Weighted);
    let write = |name: &str, edit: &dyn Fn(&mut GateThresholds), units: Units| {
        let mut edited = good.clone();
        edit(&mut edited);
        edited.write(&base.join(name), units).unwrap();
        path(base, name)
    };
    let units = Units::from(config);
    let file = write("gates", &|_| {}, units);
    let foreign =
        write("foreign", &|t| t.model = ModelIdentity::from("0123456789abcdef0123456789abcdef".to_owned()), units);
    let fewer = Units { layers: 2, ..units };
    let shallow = write(
        "shallow",
        &|t| {
            t.limits.truncate(2 * t.fractions.len());
            t.scales.as_mut().unwrap().truncate(2 * units.neurons);
        },
        fewer,
    );
    let broken = path(base, "broken");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&broken, bytes).unwrap();
    let cut_file = cut(Path::new(&file));
    let newer = edited(Path::new(&file), "newer", r#"\"version\":1"#, r#"\"version\":2"#);
    let unscaled = edited(Path::new(&file), "unscaled", r#"\"weighted\""#, r#"\"plain\""#);
    let odd = edited(Path::new(&file), "odd", r#"\"weighted\""#, r#"\"heavy\""#);
    let renamed = edited(Path::new(&file), "renamed", r#""limits""#, r#""limit""#);

    let generate = |fraction: &'static str, file: &str| -> Vec<String> {
        let args = ["generate", "--model", &model, "--prompt-ids", "5,6,7", "-n", "3", "--gate-skip", fraction];
        args.iter().map(|arg| (*arg).to_owned()).chain(["--gate-thresholds".to_owned(), file.to_owned()]).collect()
    };
    let mut cases: Vec<Vec<String>> =
        [&foreign, &shallow, &broken, &cut_file, &newer, &unscaled, &odd, &renamed, &model]
            .map(|file| generate("0.5", file))
            .to_vec();
    cases.extend(["-0.1", "1", "0.995", "nan", "half"].map(|fraction| generate(fraction, &file)));
    let owned = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
    cases.push(owned(&["generate", "hello", "--gate-skip", "0.5"]));
    cases.push(owned(&["generate", "hello", "--gate-thresholds", &file]));
    cases.push(owned(&["generate", "hello", "--gate-skip", "0.5", "--gate-thresholds", &file]));
    cases.push(owned(&["eval", "perplexity", "--ids", "1,2,3", "--gate-skip", "2", "--gate-thresholds", &file]));
    let out = path(base, "out");
    let text = path(base, "short.txt");
    fs::write(&text, "Too short.").unwrap();
    let ids = vec!["7"; 300].join(",");
    cases.push(owned(&["calibrate-gate", "--out", &out, "--text", &text]));
    cases.push(owned(&["calibrate-gate", "--model", &model, "--out", &out, "--text", &text]));
    cases.push(owned(&["calibrate-gate", "--model", &model, "--out", &out, "--ids", "1,2,3"]));
    cases.push(owned(&["calibrate-gate", "--model", &model, "--out", &out, "--ids", "1,2,131", "--tokens", "2"]));
    cases.push(owned(&["calibrate-gate", "--model", &model, "--out", &out, "--ids", "7", "--window", "1"]));
    cases.push(owned(&["calibrate-gate", "--model", &model, "--out", &out, "--ids", "7", "--window", "1000"]));
    cases.push(owned(&["calibrate-gate", "--model", &model, "--out", &out, "--ids", "7", "--statistic", "loud"]));
    cases.push(owned(&["calibrate-gate", "--model", &model, "--ids", "7"]));
    cases.push(owned(&["calibrate-gate", "--model", &model, "--ids", &ids, "--out", &path(base, "none/out")]));
    let cases: Vec<Vec<&str>> = cases.iter().map(|args| args.iter().map(String::as_str).collect()).collect();
    let shown = report(&cases, base).replace(&ids, "7,7,..");
    insta::assert_snapshot!("gate_thresholds", shown);
    assert!(!Path::new(&out).exists());
    let works = generate("0.5", &file);
    assert_eq!(run(&works.iter().map(String::as_str).collect::<Vec<_>>()).code, Some(0));
}

#[test]
fn a_model_whose_gates_are_broken_is_not_calibrated() {
    let temp = tempfile::tempdir().unwrap();
    let model = copy("llama-gqa", temp.path());
    let weights = model.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0xff); // NaN in every type
    fs::write(&weights, bytes).unwrap();
    let ids = vec!["7"; 300].join(",");
    let out = temp.path().join("out");
    let (model, out) = (model.to_str().unwrap(), out.to_str().unwrap());
    let run = run(&["calibrate-gate", "--model", model, "--ids", &ids, "--out", out]);
    assert_eq!(run.code, Some(1));
    assert!(run.err.contains("are not finite: the forward pass broke down"), "{}", run.err);
    assert!(!Path::new(out).exists());
}

/// The program calibrates, and what it makes does what it says.
#[test]
fn gate_skip_from_calibration_to_text() {
    let temp = tempfile::tempdir().unwrap();
    let model = copy("llama-gqa", temp.path()).to_str().unwrap().to_owned();
    let ids: Vec<String> = (0..600u32).map(|i| ((i * i + i / 7) % 131).to_string()).collect();
    let ids = ids.join(",");
    for statistic in ["weighted", "plain"] {
        let file = path(temp.path(), statistic);
        let args = ["calibrate-gate", "--model", &model, "--ids", &ids, "--out", &file, "--statistic", statistic];
        let made = json(&[&args[..], &["--json"]].concat());
        assert_eq!((&made["statistic"], &made["tokens"]), (&statistic.into(), &595.into()), "{made}");
        let bytes = fs::read(&file).unwrap();
        for threads in ["1", "2", "3"] {
            json(&[&args[..], &["--json", "--threads", threads]].concat());
            assert_eq!(fs::read(&file).unwrap(), bytes, "{threads} threads");
        }
        let generate = |options: &[&str]| {
            let args = ["generate", "--model", &model, "--prompt-ids", "5,6,7", "-n", "40", "--json"];
            json(&[&args[..], options].concat())
        };
        let dense = generate(&["--policy", "dense"]);
        assert_eq!(dense["gate_skip"], serde_json::Value::Null);
        let skip = |fraction| ["--gate-skip", fraction, "--gate-thresholds", &file];
        let none = generate(&skip("0"));
        assert_eq!(none["tokens"], dense["tokens"]);
        assert_eq!(none["gate_skip"], serde_json::json!({"fraction": 0.0, "skipped": 0.0, "lossy": true}));
        let half = generate(&skip("0.5"));
        assert_eq!((&half["policy"], &half["gate_skip"]["lossy"]), (&"dense".into(), &true.into()));
        let skipped = half["gate_skip"]["skipped"].as_f64().unwrap();
        // Two of three layers skip; 39 steps of a random model are few.
        assert!((skipped - 1.0 / 3.0).abs() < 0.1, "{skipped}");
        // Two of three rows of a skipped neuron stay unread, and each neuron costs a threshold.
        let read = |report: &serde_json::Value| report["bytes_per_token"].as_f64().unwrap();
        let (neurons, row) = (3.0 * 112.0, 48.0 * 4.0);
        let expected = read(&dense) - skipped * neurons * 2.0 * row + 4.0 * neurons;
        assert!((read(&half) / expected - 1.0).abs() < 1e-6, "{} instead of {expected}", read(&half));
        // What the plan drops the gate need not look at.
        let both = generate(&[&skip("0.5")[..], &["--policy", "random", "--keep", "0.5"]].concat());
        assert!(read(&both) < read(&half) && both["gate_skip"]["skipped"].as_f64().unwrap() > 0.1);
        let score = |options: &[&str]| {
            let args = ["eval", "perplexity", "--model", &model, "--ids", &ids, "--window", "50", "--json"];
            json(&[&args[..], options].concat())
        };
        let (exact, none, half) = (score(&[]), score(&skip("0")), score(&skip("0.5")));
        assert_eq!(exact["gate_skip"], serde_json::Value::Null);
        assert_eq!(exact["nll"], none["nll"]);
        assert_ne!(exact["nll"], half["nll"]);
        let skipped = half["gate_skip"]["skipped"].as_f64().unwrap();
        assert!((skipped - 1.0 / 3.0).abs() < 0.02, "{skipped}");
        let text = run(&[&["generate", "--model", &model, "--prompt-ids", "5", "-n", "4"], &skip("0.5")[..]].concat());
        assert!(text.err.contains("gate skip 0.5: ") && text.err.contains("lossy"), "{}", text.err);
    }
}

/// A packed file that is stale, cut off or of another kind: replaced where it is ours, left alone where it is not. The model stays
/// as it is.
#[test]
fn packed_files() {
    let temp = tempfile::tempdir().unwrap();
    let model = copy("opt-pre", temp.path());
    let weights = model.join("model.safetensors");
    let packed = model.join("model.shadow.safetensors");
    let shown = model.to_str().unwrap();
    let generate = || run(&["generate", "--model", shown, "--prompt-ids", "5,6", "-n", "8", "--policy", "dense"]);
    let first = generate();
    assert_eq!(first.code, Some(0), "{}", first.err);
    let (source, good) = (fs::read(&weights).unwrap(), fs::read(&packed).unwrap());

    // Cut off, or no file of ours at all under our name: made again.
    for damaged in [&good[..good.len() / 2], &good[..100], b"not packed weights"] {
        fs::write(&packed, damaged).unwrap();
        let again = generate();
        assert_eq!((again.code, &again.out), (Some(0), &first.out), "{}", again.err);
        assert!(fs::read(&packed).unwrap() == good);
    }

    // Stale: other weights give another text, from a packed file of their own.
    let mut other = source.clone();
    let half = other.len() / 2;
    other[half..].chunks_exact_mut(4).for_each(|v| v[3] ^= 0x80);
    fs::write(&weights, &other).unwrap();
    let changed = generate();
    assert_eq!(changed.code, Some(0), "{}", changed.err);
    assert_ne!(changed.out, first.out);
    assert!(fs::read(&packed).unwrap() != good && fs::read(&weights).unwrap() == other);

    // Under a name that was given, what is no packed file is not replaced.
    let text = temp.path().join("notes.txt");
    fs::write(&text, "Not to be lost.").unwrap();
    let refused = run(&["pack", "--model", shown, "--out", text.to_str().unwrap()]);
    assert_eq!(refused.code, Some(1));
    let expected = "there is another kind of file of this name; choose another name; nothing was changed\n";
    assert!(refused.err.ends_with(expected), "{}", refused.err);
    assert_eq!(fs::read_to_string(&text).unwrap(), "Not to be lost.");
}

/// One process at a time packs: `pack` says who does, `generate` waits.
#[test]
fn while_another_process_packs() {
    let temp = tempfile::tempdir().unwrap();
    let model = copy("opt-pre", temp.path());
    let shown = model.to_str().unwrap();
    let lock_path = model.join(".model.shadow.safetensors.lock");
    fs::write(&lock_path, "12345").unwrap();
    let lock = fs::File::open(&lock_path).unwrap();
    lock.lock().unwrap();
    let refused = run(&["pack", "--model", shown]);
    assert_eq!(refused.code, Some(1));
    assert_eq!(
        refused.err.replace(shown, "[MODEL]"),
        "error: [MODEL]/model.shadow.safetensors: it is being written by process 12345; try again when that has finished\n"
    );
    let mut waiting = command(&["generate", "--model", shown, "--prompt-ids", "5", "-n", "2", "--policy", "dense"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    assert!(waiting.try_wait().unwrap().is_none(), "it did not wait");
    drop(lock);
    assert!(waiting.wait().unwrap().success());
    assert!(model.join("model.shadow.safetensors").exists());
}

/// The operating system refuses to write more than a little: an error that says what was needed; an earlier packed file and the
/// model stay, and nothing is left behind.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let temp = tempfile::tempdir().unwrap();
    let model = copy("opt-pre", temp.path());
    let packed = model.join("model.shadow.safetensors");
    let shown = model.to_str().unwrap();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(&model).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let limited = |args: &[&str]| {
        let mut shell = std::process::Command::new("sh");
        // Without the trap the signal ends the program, which the real full disk never sends.
        shell.args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_shadowllm")]).args(args);
        program::isolated(&mut shell);
        finish(shell, "")
    };
    let source = fs::read(model.join("model.safetensors")).unwrap();
    for earlier in [false, true] {
        if earlier {
            assert_eq!(run(&["pack", "--model", shown]).code, Some(0));
        }
        let before = earlier.then(|| fs::read(&packed).unwrap());
        let pack = ["pack", "--model", shown];
        let generate = ["generate", "--model", shown, "--prompt-ids", "5", "-n", "2", "--policy", "dense"];
        // With a packed file there is nothing to pack and all goes well.
        for args in [&pack[..], &generate].into_iter().take(if earlier { 1 } else { 2 }) {
            let full = limited(args);
            assert_eq!(full.code, Some(1), "{args:?}: {}", full.err);
            let err = full.err.replace(shown, "[MODEL]");
            assert!(
                err.starts_with("error: cannot write [MODEL]/model.shadow.safetensors: ")
                    && err.contains("the whole file takes ")
                    && err.ends_with("nothing was replaced\n")
                    && err.lines().count() == 1,
                "{err}"
            );
        }
        assert!(earlier == packed.exists() && before == packed.exists().then(|| fs::read(&packed).unwrap()));
        assert!(names().iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{:?}", names());
        assert!(fs::read(model.join("model.safetensors")).unwrap() == source);
    }
    let out = temp.path().join("gates");
    let gated = copy("llama-gqa", temp.path());
    let ids = vec!["7"; 300].join(",");
    let args = ["calibrate-gate", "--model", gated.to_str().unwrap(), "--ids", &ids, "--out", out.to_str().unwrap()];
    // Its file is small; so is the room here.
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_shadowllm")]).args(args);
    program::isolated(&mut shell);
    let full = finish(shell, "");
    assert_eq!(full.code, Some(1), "{}", full.err);
    assert!(full.err.contains("nothing was replaced") && !out.exists(), "{}", full.err);
}
