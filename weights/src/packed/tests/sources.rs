//! When a packed file is used, when it is made again, and where it is kept.

use std::fs::{File, FileTimes};
use std::time::{Duration, SystemTime};

use super::*;
use crate::packed::location::{cache_folder, locate};
use crate::packed::lock::PackLock;

fn touch(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds);
    File::options().write(true).open(path).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
}

/// What happens when the model in `dir` is opened packed.
fn phases(dir: &Path) -> Vec<String> {
    let watch = Watch::default();
    PackedCheckpoint::open_or_pack_at(&packed_path(dir), &Checkpoint::open(dir).unwrap(), &watch).unwrap();
    watch.phases()
}

const NOTHING: [&str; 0] = [];
const PACKING: [&str; 2] = ["hashing model.safetensors", "packing"];

#[test]
fn content_is_hashed_only_when_the_time_differs_and_then_once() {
    let dir = opt_directory();
    assert_eq!(phases(dir.path()), PACKING);
    assert_eq!(phases(dir.path()), NOTHING);
    touch(&dir.path().join("model.safetensors"), 1);
    assert_eq!(phases(dir.path()), ["hashing model.safetensors"]);
    assert_eq!(phases(dir.path()), NOTHING);
    touch(&dir.path().join("model.safetensors"), 2);
    assert_eq!(phases(dir.path()), ["hashing model.safetensors"]);
    assert_eq!(phases(dir.path()), NOTHING);
    // A list of seen files that makes no sense is as good as none.
    std::fs::write(dir.path().join(".model.shadow.safetensors.seen"), "{").unwrap();
    assert_eq!(phases(dir.path()), ["hashing model.safetensors"]);
    assert_eq!(phases(dir.path()), NOTHING);
}

#[test]
fn other_weights_of_the_same_size_are_packed_again() {
    let dir = opt_directory();
    assert_eq!(phases(dir.path()), PACKING);
    let model = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&model).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&model, &bytes).unwrap();
    touch(&model, 5);
    // Hashed once to see that it is stale, and not again to pack it.
    assert_eq!(phases(dir.path()), PACKING);
    assert_eq!(phases(dir.path()), NOTHING);
    let packed = PackedCheckpoint::open(&packed_path(dir.path())).unwrap();
    let source = Checkpoint::open(dir.path()).unwrap();
    let changed = "model.decoder.final_layer_norm.bias";
    assert_eq!(packed.checkpoint().tensor(changed).unwrap().bytes(), source.tensor(changed).unwrap().bytes());
}

#[test]
fn tokens_of_the_configuration_may_change() {
    let dir = opt_directory();
    assert_eq!(phases(dir.path()), PACKING);
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id":[7,8]}"#).unwrap();
    assert_eq!(phases(dir.path()), NOTHING);
    let packed = PackedCheckpoint::open(&packed_path(dir.path())).unwrap();
    assert_eq!(packed.config().eos, Checkpoint::open(dir.path()).unwrap().config().eos);
    assert!(packed.config().eos.contains(&8));
}

#[test]
fn it_needs_no_model_and_moves_along_with_one() {
    let dir = opt_directory();
    phases(dir.path());
    let before = PackedCheckpoint::open(&packed_path(dir.path())).unwrap().unpack().unwrap();
    let parent = tempfile::tempdir().unwrap();
    let moved = parent.path().join("moved");
    std::fs::rename(dir.path(), &moved).unwrap();
    assert_eq!(phases(&moved), NOTHING);
    std::fs::remove_file(moved.join("config.json")).unwrap();
    std::fs::remove_file(moved.join("model.safetensors")).unwrap();
    let after = PackedCheckpoint::open(&packed_path(&moved)).unwrap();
    assert_eq!(after.config(), &config(OPT));
    let after = after.unpack().unwrap();
    assert!(before.iter().zip(&after).all(|((a, x), (b, y))| a == b && x.bytes() == y.bytes()));
}

#[test]
fn models_in_memory_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = packed_path(dir.path());
    let model = |dtype| Checkpoint::from_tensors(config(OPT), tensors(&config(OPT), |_| false, |_| dtype));
    let watch = Watch::default();
    PackedCheckpoint::open_or_pack_at(&path, &model(DType::F16), &watch).unwrap();
    assert_eq!(watch.phases(), ["hashing tensors", "packing"]);
    let watch = Watch::default();
    PackedCheckpoint::open_or_pack_at(&path, &model(DType::F16), &watch).unwrap();
    assert_eq!(watch.phases(), ["hashing tensors"]);
    // The same bytes as another type.
    assert!(PackedCheckpoint::open_for(&path, &model(DType::BF16), &()).is_err());
}

#[test]
fn two_that_want_the_same_file_make_it_once() {
    let dir = opt_directory();
    let lock = PackLock::acquire(&packed_path(dir.path())).unwrap();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..2).map(|_| scope.spawn(|| phases(dir.path()))).collect();
        std::thread::sleep(Duration::from_millis(150));
        drop(lock);
        let wait = format!("waiting for process {}, which packs this model", std::process::id());
        let mut seen: Vec<Vec<String>> = waiting.into_iter().map(|t| t.join().unwrap()).collect();
        seen.sort_by_key(Vec::len);
        assert_eq!(seen, [vec![wait.as_str()], vec![wait.as_str(), PACKING[0], PACKING[1]]]);
    });
}

#[test]
fn what_a_killed_process_left_is_removed() {
    let dir = opt_directory();
    std::fs::write(dir.path().join(".model.shadow.safetensors.123-4.tmp"), "half").unwrap();
    std::fs::write(dir.path().join(".model.shadow.safetensors.notes.tmp"), "not ours").unwrap();
    assert_eq!(phases(dir.path()), PACKING);
    let expected =
        [".model.shadow.safetensors.notes.tmp", "config.json", "model.safetensors", "model.shadow.safetensors"];
    assert_eq!(entries(dir.path()), expected);
}

#[test]
fn places() {
    let dir = opt_directory();
    let source = Checkpoint::open(dir.path()).unwrap();
    let cache = Some(PathBuf::from("/cache"));
    let key = source.fingerprint().unwrap();
    let cached = PathBuf::from(format!("/cache/packed/{}.shadow.safetensors", &key[..32]));
    assert_eq!(locate(&source, |_| true, cache.clone()).unwrap(), packed_path(dir.path()));
    assert_eq!(locate(&source, |_| false, cache.clone()).unwrap(), cached);
    assert_eq!(packed_location(&source).unwrap(), packed_path(dir.path()));
    // One that an administrator packed in a directory that its users cannot write.
    pack(&source, &packed_path(dir.path()), &()).unwrap();
    assert_eq!(locate(&source, |_| false, cache.clone()).unwrap(), packed_path(dir.path()));
    // The same model in memory has the same name in the cache.
    let tensors: Vec<_> = source.names().map(|n| (n.to_owned(), source.get(n).unwrap().clone())).collect();
    let memory = Checkpoint::from_tensors(config(OPT), tensors);
    assert_eq!(locate(&memory, |_| true, cache).unwrap(), cached);
    assert_eq!(
        locate(&memory, |_| true, None).unwrap_err().to_string(),
        "no home directory to keep packed weights in; set SHADOWLLM_CACHE"
    );

    let home = Some(PathBuf::from("/home"));
    for (variables, expected) in [
        (&[("SHADOWLLM_CACHE", "/a"), ("XDG_CACHE_HOME", "/b")][..], "/a"),
        (&[("XDG_CACHE_HOME", "/b")], "/b/shadowllm"),
        (&[], "/home/.cache/shadowllm"),
    ] {
        let var = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| PathBuf::from(value));
        assert_eq!(cache_folder(var, home.clone()), Some(PathBuf::from(expected)));
    }
    assert_eq!(cache_folder(|_| None, None), None);
}

#[test]
fn a_fingerprint_is_of_the_weights_not_of_their_place() {
    let prefixed = tensors(&config(OPT), |_| false, |_| DType::F16);
    let plain = prefixed.iter().map(|(name, t)| (name.replace("model.decoder.", "decoder."), t.clone()));
    let prefixed_model = Checkpoint::from_tensors(config(OPT), prefixed.clone());
    let fingerprint = prefixed_model.fingerprint().unwrap();
    assert_eq!(fingerprint.len(), 64);
    assert_eq!(Checkpoint::from_tensors(config(OPT), plain).fingerprint().unwrap(), fingerprint);
    let mut tokens = config(OPT);
    tokens.eos = vec![3];
    assert_eq!(Checkpoint::from_tensors(tokens, prefixed.clone()).fingerprint().unwrap(), fingerprint);
    let mut activation = config(OPT);
    activation.activation = crate::Activation::Gelu;
    assert_ne!(Checkpoint::from_tensors(activation, prefixed.clone()).fingerprint().unwrap(), fingerprint);
    let mut other = prefixed;
    let shape = other[3].1.shape().to_vec();
    other[3].1 = TensorData::from_f32_as(&shape, DType::F16, &vec![0.0; shape.iter().product()]).unwrap();
    assert_ne!(Checkpoint::from_tensors(config(OPT), other).fingerprint().unwrap(), fingerprint);
}
