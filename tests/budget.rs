//! From a predictor to a budget: what it costs is measured, kept in its file, and what a limit chooses by.

#![allow(clippy::unwrap_used)]

#[path = "support/program.rs"]
mod program;

use std::fs;
use std::path::Path;

use program::{fixture, json, run};
use serde_json::Value;
use shadowllm::sparsity::predictor::{
    HiddenActivation, Normalization, PredictorInput, Training, WeightFormat, random_predictor, write_predictor,
};
use shadowllm::sparsity::{ModelIdentity, Predictor, PredictorInfo};
use shadowllm::{Engine, EngineOptions};

/// A text of about so many bytes, no two paragraphs alike.
fn story(directory: &Path, bytes: usize) -> String {
    let who = ["The captain", "My old aunt", "A tall stranger", "The boy", "Her father", "The king"];
    let did = ["walked down to", "looked across", "had not forgotten", "came back from", "wrote a letter about"];
    let what = ["the river", "the house on the hill", "that long winter", "the war", "the sea", "his brother's ship"];
    let (mut text, mut state) = (String::new(), 1_u32);
    let mut pick = |of: &[&'static str]| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        of[(state >> 16) as usize % of.len()]
    };
    while text.len() < bytes {
        for _ in 0..6 {
            text += &format!("{} {} {}. ", pick(&who), pick(&did), pick(&what));
        }
        text += "\n\n";
    }
    let path = directory.join("story.txt");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn engine() -> Engine {
    Engine::open("embedded", EngineOptions::default()).unwrap()
}

/// A predictor that knows nothing, never validated.
fn untrained(directory: &Path, heads: bool) -> String {
    let engine = engine();
    let info = PredictorInfo {
        model: ModelIdentity::of(engine.model()),
        stations: vec![0],
        input: PredictorInput::Residual,
        normalization: Normalization::None,
        activation: HiddenActivation::Relu,
        criterion: "test".to_owned(),
        training: Training { data: "none".to_owned(), seed: 1, ..Training::default() },
        validated: Vec::new(),
    };
    let mut weights = random_predictor(&info, engine.config(), 4, 4, 1);
    weights[0].heads = weights[0].heads.take().filter(|_| heads);
    let path = directory.join("untrained");
    write_predictor(&path, &info, &weights, WeightFormat::Int8).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The header of a safetensors file without its metadata, and its data.
fn tensors(file: &str) -> (Value, Vec<u8>) {
    let bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header.as_object_mut().unwrap().remove("__metadata__");
    (header, bytes[8 + length..].to_vec())
}

const GENERATE: [&str; 6] = ["generate", "It was", "-n", "4", "--policy", "shadow"];

#[test]
fn train_measures_its_predictor_and_a_limit_chooses_by_it() {
    let temp = tempfile::tempdir().unwrap();
    let story = story(temp.path(), 150_000);
    let out = temp.path().join("p");
    let out = out.to_str().unwrap();
    let train: Vec<&str> = ["train", "--text", &story, "--tokens", "4500", "--window", "64", "--width", "8"]
        .into_iter()
        .chain([
            "--gradient-tokens",
            "0",
            "--passes",
            "2",
            "--rate",
            "5e-3",
            "--held-out",
            "0.3",
            "--out",
            out,
            "--json",
        ])
        .collect();
    let report = json(&train);
    let validated = report["validated"].as_array().unwrap();
    // 0.9 to 0.2 of 8 heads are 7, 6, 6, 5, 4, 3, 2 and 2.
    let kinds = |heads: bool, neurons: bool| {
        let below_one = |v: &Value, field: &str| v["budget"][field].as_f64().unwrap() < 1.0;
        validated.iter().filter(|v| below_one(v, "heads") == heads && below_one(v, "neurons") == neurons).count()
    };
    assert_eq!((kinds(true, false), kinds(false, true), kinds(true, true), validated.len()), (6, 8, 8, 22));
    for one in validated {
        assert!(one["data"].as_str().unwrap().starts_with("what was held out of story.txt ("), "{one}");
        let tokens = one["tokens"].as_u64().unwrap();
        assert!((500..=4096).contains(&tokens) && one["perplexity_dense"].as_f64().unwrap() > 1.0, "{one}");
    }
    assert_eq!(report["bytes"].as_u64().unwrap(), fs::metadata(out).unwrap().len());
    let engine = engine();
    let read = Predictor::open(out.as_ref(), engine.config(), &ModelIdentity::of(engine.model())).unwrap();
    assert_eq!(read.info().validated.len(), validated.len());
    for (read, reported) in read.info().validated.iter().zip(validated) {
        let reported = reported["perplexity_sparse"].as_f64().unwrap();
        assert!((read.perplexity_sparse / reported - 1.0).abs() < 1e-12);
    }

    let chosen = run(&[&GENERATE[..], &["--predictor", out, "--max-ppl-increase", "10%", "--json"]].concat());
    assert_eq!(chosen.code, Some(0), "{}", chosen.err);
    assert!(
        chosen.err.starts_with("chosen: ") && chosen.err.contains("for at most 10 % more perplexity"),
        "{}",
        chosen.err
    );
    let report: Value = serde_json::from_str(&chosen.out).unwrap();
    let (budget, limit) = (&report["budget"], &report["budget"]["chosen"]);
    assert_eq!((limit["max_increase"].as_f64(), budget["warning"].is_null()), (Some(0.1), true), "{budget}");
    assert!((0.0..=0.1).contains(&limit["expected_increase"].as_f64().unwrap()), "{budget}");
    // A larger limit reads no more, and what was chosen is what is kept: layer 0 whole, and the fraction of seven others.
    let more = json(&[&GENERATE[..], &["--predictor", out, "--max-ppl-increase", "900%", "--json"]].concat());
    let bytes = |report: &Value| report["bytes_per_token"].as_f64().unwrap();
    assert!(bytes(&more) <= bytes(&report));
    for kind in ["heads", "neurons"] {
        let (kept, of) = (more["kept"][kind].as_f64().unwrap(), more["budget"][kind].as_f64().unwrap());
        assert!((kept - (1.0 + 7.0 * of) / 8.0).abs() < 1e-6, "{kind}: {kept} kept of {of}");
    }
    let evaluated = json(&[
        "eval",
        "perplexity",
        "--text",
        &story,
        "--window",
        "64",
        "--windows",
        "1",
        "--policy",
        "shadow",
        "--predictor",
        out,
        "--max-ppl-increase",
        "0.1",
        "--json",
    ]);
    assert_eq!(evaluated["budget"]["chosen"], *limit);
}

#[test]
fn validate_writes_the_curve_and_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    let story = story(temp.path(), 20_000);
    let file = untrained(temp.path(), true);
    let before = fs::read(&file).unwrap();
    let generate = |more: &[&str]| {
        let found = run(&[&GENERATE[..], &["--predictor", &file], more].concat());
        assert_eq!(found.code, Some(0), "{}", found.err);
        found
    };
    let never = "warning: this predictor was never validated, so what it costs is not known; `shadowllm validate` measures it\n";
    let unknown = generate(&[]);
    assert!(unknown.err.starts_with(never), "{}", unknown.err);
    assert!(!generate(&["--keep", "1"]).err.contains("warning"), "nothing is dropped");

    let validate = ["validate", "--text", &story, "--window", "64", "--windows", "2", "--keep", "0.5,0.75", "--json"];
    let out = temp.path().join("out");
    let other = json(&[&validate[..], &["--predictor", &file, "--out", out.to_str().unwrap()]].concat());
    assert!(fs::read(&file).unwrap() == before, "--out leaves the predictor's file as it is");
    assert_eq!((other["tokens"].as_u64(), other["data"].as_str()), (Some(126), Some("story.txt, 2 windows of 64")));
    let report = json(&[&validate[..], &["--predictor", &file]].concat());
    assert_eq!(report["validated"], other["validated"]);
    let points: Vec<(f64, f64)> = report["validated"]
        .as_array()
        .unwrap()
        .iter()
        .map(|point| {
            let ratio = point["perplexity"].as_f64().unwrap() / report["dense_perplexity"].as_f64().unwrap();
            assert!((ratio - point["ratio"].as_f64().unwrap()).abs() < 1e-9);
            (point["heads"].as_f64().unwrap(), point["neurons"].as_f64().unwrap())
        })
        .collect();
    assert_eq!(points, [(0.75, 1.0), (0.5, 1.0), (1.0, 0.75), (1.0, 0.5), (0.75, 0.75), (0.5, 0.5)]);
    assert!(fs::read(&file).unwrap() == fs::read(&out).unwrap());
    let copy = temp.path().join("copy");
    fs::write(&copy, &before).unwrap();
    assert!(tensors(&file) == tensors(copy.to_str().unwrap()));

    // Perplexity is what `eval` measures on the same windows.
    let evaluated = json(&[
        "eval",
        "perplexity",
        "--text",
        &story,
        "--window",
        "64",
        "--windows",
        "2",
        "--policy",
        "shadow",
        "--predictor",
        &file,
        "--head-keep",
        "1",
        "--neuron-keep",
        "0.5",
        "--json",
    ]);
    let (found, expected) =
        (evaluated["perplexity"].as_f64().unwrap(), report["validated"][3]["perplexity"].as_f64().unwrap());
    assert!((found / expected - 1.0).abs() < 1e-6, "{found} and {expected}");

    let known = generate(&[]);
    assert!(!known.err.contains("warning"), "{}", known.err);
    assert_eq!(known.out, unknown.out, "a warning changes nothing");
    let below = "warning: 25.0 % of the heads are kept, but this predictor was validated down to 50.0 %";
    assert!(generate(&["--keep", "0.25"]).err.starts_with(below));
    let below = "warning: 40.0 % of the neurons are kept, but this predictor was validated down to 50.0 %";
    assert!(generate(&["--neuron-keep", "0.4"]).err.starts_with(below));
    let global = "warning: this predictor was validated with local budgets, so what a global one costs is not known";
    assert!(generate(&["--budget", "global"]).err.starts_with(global));
    let report: Value = serde_json::from_str(&generate(&["--keep", "0.25", "--json"]).out).unwrap();
    assert!(report["budget"]["warning"].as_str().unwrap().starts_with("25.0 % of the heads"), "{report}");
}

#[test]
fn a_predictor_of_neurons_has_their_curve_only() {
    let temp = tempfile::tempdir().unwrap();
    let story = story(temp.path(), 5_000);
    let file = untrained(temp.path(), false);
    let shown =
        run(&["validate", "--text", &story, "--window", "32", "--windows", "1", "--keep", "0.5", "--predictor", &file]);
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    let lines: Vec<&str> = shown.out.lines().collect();
    assert_eq!(lines[0], format!("{file}: measured on 31 tokens of story.txt, 1 window of 32"));
    assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["heads", "neurons", "perplexity", "ratio"]);
    let first = |line: &str| line.split_whitespace().take(3).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(first(lines[2])[..2], ["all", "all"]);
    assert_eq!(first(lines[3]), ["all", "50", "%"]);
    assert_eq!(lines.len(), 4, "{}", shown.out);
    let report = json(&[&GENERATE[..], &["--predictor", &file, "--max-ppl-increase", "100000%", "--json"]].concat());
    assert_eq!((report["budget"]["heads"].as_f64(), report["budget"]["neurons"].as_f64()), (Some(1.0), Some(0.5)));
}

/// The embedded model has a predictor, which is found by itself and by name, and knows what it costs.
#[test]
fn the_embedded_predictor() {
    let engine = engine();
    let predictor = Predictor::embedded(engine.config(), &ModelIdentity::of(engine.model())).unwrap();
    assert!(predictor.info().training.run.is_some() && predictor.curves().is_some());
    let by_itself = json(&[&GENERATE[..], &["--max-ppl-increase", "5%", "--json"]].concat());
    let by_name = json(&[&GENERATE[..], &["--max-ppl-increase", "5%", "--predictor", "embedded", "--json"]].concat());
    assert_eq!((&by_itself["tokens"], &by_itself["budget"]), (&by_name["tokens"], &by_name["budget"]));
    assert!(by_itself["budget"]["neurons"].as_f64().unwrap() < 0.7, "{}", by_itself["budget"]);
}

#[test]
fn mistakes_have_their_messages() {
    let temp = tempfile::tempdir().unwrap();
    let story = story(temp.path(), 5_000);
    let file = untrained(temp.path(), true);
    let error = |args: &[&str]| {
        let found = run(args);
        assert_ne!(found.code, Some(0), "{args:?}");
        assert_eq!(found.out, "", "{args:?}");
        found.err
    };
    let generate = |more: &[&str]| error(&[&["generate", "It was", "-n", "4"], more].concat());
    let shadow = ["--policy", "shadow", "--predictor", &file];
    assert_eq!(
        generate(&[&shadow[..], &["--max-ppl-increase", "5%"]].concat()),
        format!(
            "error: {file}: this predictor was never validated, so no budget can be chosen by what it costs; run `shadowllm \
             validate` on it with text of the kind that will be generated, or choose a budget with --keep\n"
        )
    );
    for (policy, more) in [("random", &[][..]), ("dense", &[]), ("static", &["--scores", "none"])] {
        assert_eq!(
            generate(&[&["--policy", policy, "--max-ppl-increase", "0.05"], more].concat()),
            format!(
                "error: --max-ppl-increase chooses a budget by what a predictor was measured to cost, and the policy {policy} has no \
                 predictor; use --policy shadow or dejavu, or choose a budget with --keep\n"
            )
        );
    }
    let oracle =
        ["eval", "perplexity", "--ids", "1,2,3", "--window", "3", "--policy", "oracle", "--max-ppl-increase", "5%"];
    assert!(error(&oracle).contains("the policy oracle has no predictor"));
    for limit in ["5", "-1%", "many"] {
        let expected = format!(
            "the largest increase in perplexity is {limit:?}; expected a percentage such as 5% or a fraction from 0 to 1 such as 0.05"
        );
        let found = generate(&[&shadow[..], &["--max-ppl-increase", limit]].concat());
        assert!(found.contains(&expected), "{found}");
    }
    for other in [["--keep", "0.5"], ["--head-keep", "1"], ["--neuron-keep", "1"], ["--budget", "global"]] {
        let found = generate(&[&shadow[..], &["--max-ppl-increase", "5%"], &other].concat());
        let expected = "the argument '--max-ppl-increase <X>' cannot be used with";
        assert!(found.contains(expected) && found.contains(other[0]), "{found}");
    }
    assert!(generate(&["--max-ppl-increase", "5%"]).contains("--policy <POLICY>"));
    // The embedded predictor is for the embedded model.
    let other_model = |more: &[&str]| {
        let model = fixture("opt-pre");
        error(&[&["generate", "--model", &model, "--prompt-ids", "5", "--policy", "shadow"], more].concat())
    };
    assert_eq!(other_model(&[]), "error: the policy shadow needs --predictor FILE\n");
    let found = other_model(&["--predictor", "embedded"]);
    assert!(
        found.starts_with("error: embedded: made for the model ") && found.contains("use a file that was made"),
        "{found}"
    );

    let validate = |more: &[&str]| error(&[&["validate", "--text", &story], more].concat());
    assert_eq!(
        validate(&["--predictor", "embedded"]),
        "error: the embedded predictor is a part of the program and cannot be rewritten; name another file with --out FILE\n"
    );
    let nothing = "error: the kept fractions that were given drop nothing; a predictor is measured where it drops heads or neurons: \
                   give fractions under 1\n";
    assert_eq!(validate(&["--predictor", &file, "--window", "16", "--keep", "1"]), nothing);
    assert_eq!(
        validate(&["--predictor", &file, "--window", "16", "--keep", "0.5,0"]),
        "error: the fraction of heads to keep is 0; expected a number over 0 and at most 1, where 1 keeps all\n"
    );
    assert!(
        validate(&["--predictor", &file, "--windows", "100000"])
            .contains("use a longer text, a smaller window or fewer windows")
    );
    assert!(validate(&["--predictor", "README.md"]).contains("this is not a safetensors file"));
    assert!(validate(&[]).contains("--predictor <FILE>"));
    assert!(error(&["validate", "--predictor", &file]).contains("--text <FILE>"));
}
