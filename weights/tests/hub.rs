//! Models by name against a hub on the loopback interface: cache, download, broken connections, refusals.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used)]

mod hub_server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use hub_server::{COMMIT, Hub, Revision, Server};
use shadowllm_weights::{Checkpoint, HubOptions, Progress, fetch};

const CONFIG: &[u8] =
    br#"{"model_type":"llama","hidden_size":8,"num_attention_heads":2,"num_hidden_layers":1,"vocab_size":10}"#;

/// A safetensors file of one f32 tensor with `n` different values.
fn weights(name: &str, n: usize) -> Vec<u8> {
    let values: Vec<u8> = (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![n], &values).unwrap();
    safetensors::serialize([(name, view)], None).unwrap()
}

fn revision(commit: &str, files: &[(&str, Vec<u8>)]) -> Revision {
    let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
    Revision { commit: commit.to_owned(), files }
}

/// A hub with one small model on `main`.
fn hub() -> Hub {
    let files = [
        ("config.json", CONFIG.to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("model.safetensors", weights("w", 200_000)),
        ("README.md", b"not needed".to_vec()),
        ("pytorch_model.bin", b"never".to_vec()),
    ];
    Hub { revisions: BTreeMap::from([("main".to_owned(), revision(COMMIT, &files))]), ..Hub::default() }
}

fn options(server: &Server, cache: &Path) -> HubOptions {
    HubOptions { cache: Some(cache.to_owned()), endpoint: Some(server.address.clone()), token: None, offline: false }
}

fn get(server: &Server, cache: &Path) -> shadowllm_weights::Result<PathBuf> {
    fetch("org/tiny", "main", &options(server, cache), &())
}

/// The error's message, with the parts that differ from run to run replaced.
fn message(result: shadowllm_weights::Result<PathBuf>, server: &Server, cache: &Path) -> String {
    let text = result.unwrap_err().to_string();
    text.replace(&server.address, "HUB").replace(cache.to_str().unwrap(), "CACHE")
}

#[test]
fn downloads_then_uses_the_cache() {
    let server = Server::start(hub());
    let cache = tempfile::tempdir().unwrap();
    let dir = get(&server, cache.path()).unwrap();
    assert_eq!(dir, cache.path().join("models--org--tiny/snapshots").join(COMMIT));
    let mut names: Vec<String> =
        dir.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights("w", 200_000));
    assert_eq!(std::fs::read_to_string(cache.path().join("models--org--tiny/refs/main")).unwrap(), COMMIT);
    assert_eq!(Checkpoint::open(&dir).unwrap().tensor("w").unwrap().to_f32()[199_999], 199_999.0);
    assert!(!server.requests().is_empty());

    assert_eq!(get(&server, cache.path()).unwrap(), dir);
    let offline = HubOptions { offline: true, ..options(&server, cache.path()) };
    assert_eq!(fetch("org/tiny", "main", &offline, &()).unwrap(), dir);
    assert_eq!(fetch("org/tiny", COMMIT, &offline, &()).unwrap(), dir);
    assert_eq!(server.requests(), [], "a complete model needs no network");

    // What was lost is fetched again, and nothing else.
    let weights_blob = std::fs::canonicalize(dir.join("model.safetensors")).unwrap();
    std::fs::remove_file(weights_blob).unwrap();
    assert_eq!(get(&server, cache.path()).unwrap(), dir);
    assert_eq!(server.downloads("model.safetensors"), [None]);
    assert_eq!(server.downloads("config.json"), []);
    assert!(Checkpoint::open(&dir).is_ok());
}

#[test]
fn goes_on_after_a_cut() {
    let server = Server::start(Hub { cuts: 1, cut_at: 300_001, ..hub() });
    let cache = tempfile::tempdir().unwrap();
    let dir = get(&server, cache.path()).unwrap();
    assert_eq!(server.downloads("model.safetensors"), [None, Some("bytes=300001-".to_owned())]);
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights("w", 200_000));
}

#[test]
fn goes_on_in_the_next_run() {
    let server = Server::start(Hub { cuts: 4, cut_at: 300_001, ..hub() });
    let cache = tempfile::tempdir().unwrap();
    let size = weights("w", 200_000).len();
    let text = message(get(&server, cache.path()), &server, cache.path());
    let start = format!("download of model.safetensors broke off after 300001 of {size} bytes: ");
    assert!(text.starts_with(&start), "{text}");
    assert!(text.ends_with("; run the same command again to go on from there"), "{text}");
    let offline = HubOptions { offline: true, ..options(&server, cache.path()) };
    assert_eq!(
        message(fetch("org/tiny", "main", &offline, &()), &server, cache.path()),
        "org/tiny at main is not complete in the cache CACHE: the model is missing, and offline mode forbids to download it; \
         run once without HF_HUB_OFFLINE"
    );

    server.requests();
    let dir = get(&server, cache.path()).unwrap();
    assert_eq!(server.downloads("model.safetensors"), [Some("bytes=300001-".to_owned())]);
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights("w", 200_000));
}

#[test]
fn starts_again_if_the_server_ignores_ranges() {
    let server = Server::start(Hub { cuts: 1, cut_at: 300_001, ignore_ranges: true, ..hub() });
    let cache = tempfile::tempdir().unwrap();
    let dir = get(&server, cache.path()).unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights("w", 200_000));
}

#[test]
fn refuses_the_wrong_range() {
    let server = Server::start(Hub { cuts: 1, cut_at: 1000, content_range: Some("bytes 5-9/10".to_owned()), ..hub() });
    let cache = tempfile::tempdir().unwrap();
    let size = weights("w", 200_000).len();
    assert_eq!(
        message(get(&server, cache.path()), &server, cache.path()),
        format!(
            "cannot use the answer of HUB/org/tiny/resolve/{COMMIT}/model.safetensors: \
             asked for bytes 1000-, got \"bytes 5-9/10\" of {size}"
        )
    );
}

#[test]
fn refusals() {
    let cache = tempfile::tempdir().unwrap();
    for (status, token, expected) in [
        (
            401,
            None,
            "org/tiny is private, gated or does not exist (HTTP 401); check the name, or set HF_TOKEN to a token that may read it",
        ),
        (
            403,
            Some("hf_x"),
            "org/tiny is private, gated or does not exist (HTTP 403); the token given may not read it; ask for access at HUB/org/tiny",
        ),
        (404, None, "HUB has no model org/tiny at revision main; check the name"),
        (500, None, "HUB/api/models/org/tiny/revision/main answered with HTTP 500; try again later"),
    ] {
        let server = Server::start(Hub { status: Some(status), ..hub() });
        let options = HubOptions { token: token.map(str::to_owned), ..options(&server, cache.path()) };
        assert_eq!(message(fetch("org/tiny", "main", &options, &()), &server, cache.path()), expected);
        let authorization = server.requests()[0].authorization.clone();
        assert_eq!(authorization, token.map(|t| format!("Bearer {t}")));
    }
}

/// A cache as other programs leave it, which says nothing about a tokenizer.
#[test]
fn without_the_network_the_cache_is_enough() {
    let cache = tempfile::tempdir().unwrap();
    let repo = cache.path().join("models--org--tiny");
    let snapshot = repo.join("snapshots/abc");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), "abc").unwrap();
    let server = Server::start(hub());
    let gone = HubOptions { endpoint: Some("http://127.0.0.1:1".to_owned()), ..options(&server, cache.path()) };
    std::fs::write(snapshot.join("config.json"), "{}").unwrap();
    assert!(fetch("org/tiny", "main", &gone, &()).unwrap_err().to_string().starts_with("cannot reach "));
    std::fs::write(snapshot.join("model.safetensors"), "").unwrap();
    assert_eq!(fetch("org/tiny", "main", &gone, &()).unwrap(), snapshot);
}

#[test]
fn unreachable_offline_and_badly_named() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(hub());
    let gone = HubOptions { endpoint: Some("http://127.0.0.1:1".to_owned()), ..options(&server, cache.path()) };
    let text = fetch("org/tiny", "main", &gone, &()).unwrap_err().to_string();
    assert!(text.starts_with("cannot reach http://127.0.0.1:1/api/models/org/tiny/revision/main: "), "{text}");
    assert!(text.ends_with("; check the network, or give a directory instead of a name"), "{text}");

    let offline = HubOptions { offline: true, ..options(&server, cache.path()) };
    let text = message(fetch("org/tiny", "main", &offline, &()), &server, cache.path());
    assert!(text.starts_with("org/tiny at main is not complete in the cache CACHE: the model is missing"), "{text}");

    for (repo, revision) in [("../x", "main"), ("org/tiny", "../../main"), ("org/..", "main"), ("a/b/c", "main")] {
        let error = fetch(repo, revision, &options(&server, cache.path()), &()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("no model \"{repo}@{revision}\": ")), "{error}");
    }
    assert_eq!(server.requests(), []);
    assert_eq!(cache.path().read_dir().unwrap().count(), 0, "nothing was written");
}

#[test]
fn hostile_answers_write_nothing_outside() {
    let root = tempfile::tempdir().unwrap();
    let cache = root.path().join("deep/cache");
    let bad_commit = Server::start(hub());
    bad_commit.hub.lock().unwrap().revisions.get_mut("main").unwrap().commit = "../../../x".to_owned();
    let text = message(get(&bad_commit, &cache), &bad_commit, &cache);
    assert_eq!(
        text,
        "cannot use the answer of HUB/api/models/org/tiny/revision/main: commit \"../../../x\" is no commit"
    );
    let bad_etag = Server::start(Hub { etag: Some("../../../../x".to_owned()), ..hub() });
    let text = message(get(&bad_etag, &cache), &bad_etag, &cache);
    assert_eq!(
        text,
        format!(
            "cannot use the answer of HUB/org/tiny/resolve/{COMMIT}/config.json: ETag \"../../../../x\" cannot be a file name"
        )
    );
    let index = br#"{"weight_map":{"w":"../../../../x.safetensors"}}"#.to_vec();
    let bad_shard = Server::start(Hub {
        revisions: BTreeMap::from([(
            "main".to_owned(),
            revision(COMMIT, &[("config.json", CONFIG.to_vec()), ("model.safetensors.index.json", index)]),
        )]),
        ..Hub::default()
    });
    let text = message(get(&bad_shard, &cache), &bad_shard, &cache);
    assert!(text.ends_with("a shard must be a plain file name in the same directory"), "{text}");
    let outside: Vec<_> = root.path().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(outside, ["deep"]);
}

#[test]
fn shards() {
    let index = br#"{"metadata":{},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#.to_vec();
    let files = [
        ("config.json", CONFIG.to_vec()),
        ("model.safetensors.index.json", index),
        ("m-1.safetensors", weights("a", 10)),
        ("m-2.safetensors", weights("b", 20)),
    ];
    let server = Server::start(Hub {
        revisions: BTreeMap::from([("main".to_owned(), revision(COMMIT, &files))]),
        ..Hub::default()
    });
    let cache = tempfile::tempdir().unwrap();
    let dir = get(&server, cache.path()).unwrap();
    assert_eq!(Checkpoint::open(&dir).unwrap().names().collect::<Vec<_>>(), ["a", "b"]);
    server.requests();
    assert_eq!(get(&server, cache.path()).unwrap(), dir);
    assert_eq!(server.requests(), [], "a model without a tokenizer is complete once that is known");
    std::fs::remove_file(dir.join("m-2.safetensors")).unwrap();
    assert_eq!(get(&server, cache.path()).unwrap(), dir);
    assert_eq!(server.downloads("m-2.safetensors"), [], "the blob was still there");
    assert!(Checkpoint::open(&dir).is_ok());
}

#[test]
fn large_files_come_from_another_host_without_the_token() {
    let storage = Server::start(hub());
    let server = Server::start(Hub { storage: Some(storage.address.clone()), ..hub() });
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions { token: Some("hf_secret".to_owned()), ..options(&server, cache.path()) };
    let dir = fetch("org/tiny", "main", &options, &()).unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights("w", 200_000));
    assert!(server.requests().iter().all(|r| r.authorization.as_deref() == Some("Bearer hf_secret")));
    let seen = storage.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].method.as_str(), seen[0].authorization.as_deref()), ("GET", None));
}

#[test]
fn follows_a_renamed_repository() {
    let server = Server::start(Hub { renamed_from: Some("old/name".to_owned()), ..hub() });
    let cache = tempfile::tempdir().unwrap();
    let dir = fetch("old/name", "main", &options(&server, cache.path()), &()).unwrap();
    assert!(Checkpoint::open(&dir).is_ok());
}

#[test]
fn pytorch_only_repositories_use_the_conversion_request() {
    const REQUEST_COMMIT: &str = "ffff456789abcdef0123456789abcdef01234567";
    let main = [("config.json", CONFIG.to_vec()), ("pytorch_model.bin", b"never".to_vec())];
    let request =
        [("config.json", CONFIG.to_vec()), ("model.safetensors", weights("w", 10)), ("vocab.json", b"{}".to_vec())];
    let discussion = |num: u32, author: &str, status: &str| {
        serde_json::json!({"num": num, "title": "Adding `safetensors` variant of this model", "status": status,
            "isPullRequest": true, "author": {"name": author}})
    };
    let server = Server::start(Hub {
        revisions: BTreeMap::from([
            ("main".to_owned(), revision(COMMIT, &main)),
            ("refs/pr/7".to_owned(), revision(REQUEST_COMMIT, &request)),
        ]),
        ..Hub::default()
    });
    let cache = tempfile::tempdir().unwrap();
    let set = |list: &[serde_json::Value]| {
        let json = serde_json::json!({"discussions": list, "count": list.len(), "start": 0}).to_string();
        server.hub.lock().unwrap().discussions = Some(json);
    };
    set(&[discussion(3, "somebody", "open"), discussion(5, "SFconvertbot", "closed")]);
    assert_eq!(
        message(get(&server, cache.path()), &server, cache.path()),
        "org/tiny at revision main cannot be used: it has no safetensors, only pytorch_model.bin, \
         and no pull request of the conversion bot is open"
    );
    set(&[discussion(3, "somebody", "open"), discussion(7, "SFconvertbot", "open")]);
    let dir = get(&server, cache.path()).unwrap();
    assert!(dir.ends_with(REQUEST_COMMIT));
    assert!(Checkpoint::open(&dir).is_ok());
    server.requests();
    assert_eq!(get(&server, cache.path()).unwrap(), dir);
    assert_eq!(server.requests(), []);
}

#[test]
fn repositories_that_are_no_model() {
    for (files, reason) in [
        (&[("README.md", Vec::new())][..], "it has no config.json"),
        (&[("config.json", CONFIG.to_vec())], "it has no safetensors"),
        (&[("config.json", CONFIG.to_vec()), ("m.gguf", Vec::new())], "it has no safetensors, only m.gguf"),
    ] {
        let server = Server::start(Hub {
            revisions: BTreeMap::from([("main".to_owned(), revision(COMMIT, files))]),
            ..Hub::default()
        });
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(
            message(get(&server, cache.path()), &server, cache.path()),
            format!("org/tiny at revision main cannot be used: {reason}")
        );
    }
}

/// One reported phase.
#[derive(Debug, PartialEq)]
struct Phase {
    what: String,
    total: Option<u64>,
    advanced: u64,
    finished: bool,
}

/// Adds up what is reported.
#[derive(Default)]
struct Sums(Mutex<Vec<Phase>>);

impl Progress for Sums {
    fn start(&self, what: &str, total: Option<u64>) {
        self.0.lock().unwrap().push(Phase { what: what.to_owned(), total, advanced: 0, finished: false });
    }
    fn advance(&self, bytes: u64) {
        self.0.lock().unwrap().last_mut().unwrap().advanced += bytes;
    }
    fn finish(&self) {
        self.0.lock().unwrap().last_mut().unwrap().finished = true;
    }
}

#[test]
fn progress_adds_up() {
    let server = Server::start(Hub { cuts: 1, cut_at: 300_001, ..hub() });
    let cache = tempfile::tempdir().unwrap();
    let sums = Sums::default();
    fetch("org/tiny", "main", &options(&server, cache.path()), &sums).unwrap();
    let expected =
        [("config.json", CONFIG.len()), ("tokenizer.json", 2), ("model.safetensors", weights("w", 200_000).len())].map(
            |(name, size)| Phase {
                what: name.to_owned(),
                total: Some(size as u64),
                advanced: size as u64,
                finished: true,
            },
        );
    assert_eq!(*sums.0.lock().unwrap(), expected);
}

#[test]
fn several_at_once_download_once() {
    let server = Server::start(hub());
    for _ in 0..10 {
        let cache = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(Checkpoint::open(&get(&server, cache.path()).unwrap()).is_ok()));
            }
        });
        assert_eq!(server.downloads("model.safetensors"), [None]);
        server.requests();
    }
}
