//! Every way in which a packed file can be wrong or cannot be made, and what its owner is told.

use serde_json::{Map, Value, json};

use super::*;
use crate::packed::lock::PackLock;
use crate::packed::pack::Contents;
use crate::{Error, Result};

/// The header of a safetensors file, and its data.
fn split(file: &[u8]) -> (Map<String, Value>, &[u8]) {
    let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&file[8..8 + len]).unwrap(), &file[8 + len..])
}

fn join(header: &Map<String, Value>, data: &[u8]) -> Vec<u8> {
    let mut text = Value::Object(header.clone()).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    [&(text.len() as u64).to_le_bytes(), text.as_bytes(), data].concat()
}

/// An error's message without what differs between runs.
fn message<T>(result: Result<T>, dir: &Path) -> String {
    let error = result.map(drop).unwrap_err().to_string();
    let canonical = std::fs::canonicalize(dir).unwrap();
    let text = error.replace(canonical.to_str().unwrap(), "DIR").replace(dir.to_str().unwrap(), "DIR");
    text.replace(&format!("process {}", std::process::id()), "process PID")
}

#[test]
fn headers() {
    struct Case {
        what: &'static str,
        damage: fn(&mut Map<String, Value>),
        message: &'static str,
    }
    let cases = [
        Case {
            what: "an ordinary safetensors file",
            damage: |h| drop(h.remove("__metadata__")),
            message: "it is no file of packed weights; `shadowllm pack` makes one from a model",
        },
        Case {
            what: "another format",
            damage: |h| h["__metadata__"]["format"] = json!("pt"),
            message: "it is no file of packed weights; `shadowllm pack` makes one from a model",
        },
        Case {
            what: "another version",
            damage: |h| h["__metadata__"]["version"] = json!("2"),
            message: "it has format version 2, this program reads 1; make it again with `shadowllm pack`",
        },
        Case {
            what: "no version",
            damage: |h| drop(h["__metadata__"].as_object_mut().unwrap().remove("version")),
            message: "its metadata entry \"version\" is wrong: it is missing; make it again with `shadowllm pack`",
        },
        Case {
            what: "a configuration that was edited",
            damage: |h| h["__metadata__"]["config"] = json!(OPT),
            message: "its metadata entry \"config_hash\" is wrong: it is not the hash of the configuration; \
                      make it again with `shadowllm pack`",
        },
        Case {
            what: "a configuration that is none",
            damage: |h| {
                h["__metadata__"]["config"] = json!("{}");
                h["__metadata__"]["config_hash"] = json!(blake3::hash(b"{}").to_hex().as_str());
            },
            message: "its metadata entry \"config\" is wrong: model type (config.json has neither model_type nor \
                      architectures) is not supported; supported are opt, llama, mistral and qwen2; make it again with \
                      `shadowllm pack`",
        },
        Case {
            what: "a configuration of more layers",
            damage: |h| {
                let more = OPT.replace(r#""num_hidden_layers":2"#, r#""num_hidden_layers":3"#);
                h["__metadata__"]["config_hash"] = json!(blake3::hash(more.as_bytes()).to_hex().as_str());
                h["__metadata__"]["config"] = json!(more);
            },
            message: "it has no tensor \"layers.2.heads\", which its configuration asks for; make it again with \
                      `shadowllm pack`",
        },
        Case {
            what: "a type that does not exist",
            damage: |h| h["__metadata__"]["dtype"] = json!("int4"),
            message: "its metadata entry \"dtype\" is wrong: unknown dtype \"int4\"; expected f32, f16, bf16 or int8; \
                      make it again with `shadowllm pack`",
        },
        Case {
            what: "a type that the records do not have",
            damage: |h| h["__metadata__"]["dtype"] = json!("f16"),
            message: "its tensor \"layers.0.heads\" has type BF16, but should have f16; make it again with `shadowllm pack`",
        },
        Case {
            what: "a source that makes no sense",
            damage: |h| h["__metadata__"]["source"] = json!(r#"{"location":"x"}"#),
            message: "its metadata entry \"source\" is wrong: missing field `files` at line 1 column 16; \
                      make it again with `shadowllm pack`",
        },
        Case {
            what: "records of another shape",
            damage: |h| h["layers.1.neurons"]["shape"] = json!([6, 8, 2]),
            message: "its tensor \"layers.1.neurons\" has shape [6, 8, 2], but its configuration asks for [6, 2, 8]; \
                      make it again with `shadowllm pack`",
        },
        Case {
            what: "a norm of a type without kernels",
            damage: |h| h["model.decoder.final_layer_norm.weight"]["dtype"] = json!("I16"),
            message: "its tensor \"model.decoder.final_layer_norm.weight\" has type I16, but should have f32, f16 or bf16; \
                      make it again with `shadowllm pack`",
        },
        Case {
            what: "a tensor under another name",
            damage: |h| {
                let norm = h.remove("model.decoder.final_layer_norm.bias").unwrap();
                h.insert("norm.bias".to_owned(), norm);
            },
            message: "it has no tensor \"model.decoder.final_layer_norm.bias\", which its configuration asks for; \
                      make it again with `shadowllm pack`",
        },
        Case {
            what: "a tensor too many",
            damage: |h| {
                h.insert("more".to_owned(), json!({"dtype":"F32","shape":[0],"data_offsets":[0,0]}));
            },
            message: "its tensor \"more\" is unknown to its configuration; make it again with `shadowllm pack`",
        },
        Case {
            what: "bytes of no tensor",
            damage: |h| h["layers.0.heads"]["data_offsets"] = json!([64, 320]),
            message: "it is damaged (64 bytes at 0 of the data belong to no tensor; the file is damaged or hostile); \
                      make it again with `shadowllm pack`",
        },
    ];
    let dir = opt_directory();
    let source = Checkpoint::open(dir.path()).unwrap();
    let path = packed_path(dir.path());
    pack(&source, &path, &()).unwrap();
    let good = std::fs::read(&path).unwrap();
    let (header, data) = split(&good);
    for Case { what, damage, message: expected } in cases {
        let mut header = header.clone();
        damage(&mut header);
        std::fs::write(&path, join(&header, data)).unwrap();
        let expected = format!("DIR/model.shadow.safetensors: {expected}");
        assert_eq!(message(PackedCheckpoint::open(&path), dir.path()), expected, "{what}");
        // All of it is mended when the model is there.
        PackedCheckpoint::open_or_pack_at(&path, &source, &()).unwrap();
        assert!(std::fs::read(&path).unwrap() == good, "{what}");
    }
}

#[test]
fn odd_bytes_and_cut_off_files() {
    let dir = opt_directory();
    let source = Checkpoint::open(dir.path()).unwrap();
    let path = packed_path(dir.path());
    pack(&source, &path, &()).unwrap();
    let good = std::fs::read(&path).unwrap();
    let not_packed = "it is no file of packed weights; `shadowllm pack` makes one from a model".to_owned();
    let cut = |bytes: usize| format!("it is cut off after {bytes} bytes; make it again with `shadowllm pack`");
    // A tensor that does not begin at a multiple of its size.
    let (header, data) = split(&good);
    let text = format!("{} ", Value::Object(header));
    let text = if text.len().is_multiple_of(2) { format!("{text} ") } else { text };
    let odd = [&(text.len() as u64).to_le_bytes(), text.as_bytes(), data].concat();
    let offset = 8 + text.len();
    for (bytes, expected) in [
        (Vec::new(), cut(0)),
        (good[..5].to_vec(), cut(5)),
        (good[..100].to_vec(), cut(100)),
        (good[..good.len() - 1].to_vec(), cut(good.len() - 1)),
        (b"GGUF is something else entirely".to_vec(), not_packed.clone()),
        ([&2u64.to_le_bytes()[..], b"[]"].concat(), not_packed),
        (
            odd,
            format!(
                "it is damaged (tensor \"layers.0.heads\" begins at byte {offset} of the file, which is no multiple of its \
                 element size 2; rewrite the file with a current safetensors library); make it again with `shadowllm pack`"
            ),
        ),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let expected = format!("DIR/model.shadow.safetensors: {expected}");
        assert_eq!(message(PackedCheckpoint::open(&path), dir.path()), expected);
        PackedCheckpoint::open_or_pack_at(&path, &source, &()).unwrap();
        assert!(std::fs::read(&path).unwrap() == good);
    }
}

#[test]
fn stale_files() {
    struct Case {
        change: fn(&Path),
        reason: &'static str,
    }
    let cases = [
        Case {
            change: |dir| {
                let model = dir.join("model.safetensors");
                let mut bytes = std::fs::read(&model).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(model, bytes).unwrap();
            },
            reason: "model.safetensors has other content than when it was packed",
        },
        Case {
            change: |dir| write_model(dir, OPT, &tensors(&config(OPT), |_| false, |_| DType::F32)),
            reason: "model.safetensors had SIZE bytes, and now has SIZE",
        },
        Case {
            change: |dir| {
                std::fs::write(dir.join("config.json"), OPT.replace("{", r#"{"activation_function":"gelu","#)).unwrap()
            },
            reason: "the model has another configuration than when it was packed",
        },
        Case {
            change: |dir| {
                let shard = dir.join("model-00001-of-00001.safetensors");
                std::fs::rename(dir.join("model.safetensors"), shard).unwrap();
                let names: Map<String, Value> = ModelNames::of(&config(OPT), |_| false)
                    .layout(&config(OPT))
                    .into_iter()
                    .map(|(name, _)| (name, json!("model-00001-of-00001.safetensors")))
                    .collect();
                std::fs::write(dir.join("model.safetensors.index.json"), json!({"weight_map": names}).to_string())
                    .unwrap();
            },
            reason: "the model had the file \"model.safetensors\", and now has \"model-00001-of-00001.safetensors\"",
        },
    ];
    for Case { change, reason } in cases {
        let dir = opt_directory();
        let path = packed_path(dir.path());
        pack(&Checkpoint::open(dir.path()).unwrap(), &path, &()).unwrap();
        PackedCheckpoint::open(&path).unwrap();
        change(dir.path());
        let found = message(PackedCheckpoint::open(&path), dir.path());
        let words = found.split(' ').map(|word| if word.parse::<u64>().is_ok() { "SIZE" } else { word });
        let found = words.collect::<Vec<_>>().join(" ");
        let expected = format!(
            "DIR/model.shadow.safetensors: it is stale: {reason} (packed from DIR); make it again with `shadowllm pack`"
        );
        assert_eq!(found, expected);
        let source = Checkpoint::open(dir.path()).unwrap();
        PackedCheckpoint::open_or_pack_at(&path, &source, &()).unwrap();
        PackedCheckpoint::open(&path).unwrap();
    }
}

#[test]
fn while_another_process_writes_it() {
    let dir = opt_directory();
    let source = Checkpoint::open(dir.path()).unwrap();
    let path = packed_path(dir.path());
    let lock = PackLock::acquire(&path).unwrap();
    let expected = "DIR/model.shadow.safetensors: it is being written by process PID; try again when that has finished";
    assert_eq!(message(PackedCheckpoint::open(&path), dir.path()), expected);
    assert_eq!(message(pack(&source, &path, &()), dir.path()), expected);
    let stop = Watch { stop_after: Some(0), ..Watch::default() };
    assert!(matches!(PackedCheckpoint::open_or_pack_at(&path, &source, &stop), Err(Error::Interrupted)));
    assert_eq!(stop.phases(), [format!("waiting for process {}, which packs this model", std::process::id())]);
    std::fs::write(dir.path().join(".model.shadow.safetensors.lock"), "?").unwrap();
    let expected =
        "DIR/model.shadow.safetensors: it is being written by another process; try again when that has finished";
    assert_eq!(message(pack(&source, &path, &()), dir.path()), expected);
    drop(lock);
    assert_eq!(
        message(PackedCheckpoint::open(&path), dir.path()),
        "cannot open DIR/model.shadow.safetensors: No such file or directory (os error 2)"
    );
    pack(&source, &path, &()).unwrap();
    // While it is made again, the one that is there is good.
    let _lock = PackLock::acquire(&path).unwrap();
    PackedCheckpoint::open(&path).unwrap();
}

#[test]
fn what_is_no_packed_file_is_not_replaced() {
    let dir = opt_directory();
    let source = Checkpoint::open(dir.path()).unwrap();
    let occupied = "there is another kind of file of this name; choose another name; nothing was changed";
    let before = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    for name in ["model.safetensors", "config.json", "folder"] {
        let found = message(pack(&source, &dir.path().join(name), &()), dir.path());
        assert_eq!(found, format!("DIR/{name}: {occupied}"));
    }
    assert!(std::fs::read(dir.path().join("model.safetensors")).unwrap() == before);
    let own = dir.path().join("mine.bin");
    pack(&source, &own, &()).unwrap();
    pack(&source, &own, &()).unwrap();
}

#[test]
fn checkpoints_that_cannot_be_packed() {
    let good = tensors(&config(OPT), |_| false, |_| DType::BF16);
    let name = "model.decoder.layers.1.self_attn.v_proj.weight";
    let replaced = |tensor: Option<TensorData>| {
        let tensors = good.iter().filter_map(|(n, t)| {
            let tensor = if n == name { tensor.clone() } else { Some(t.clone()) };
            Some((n.clone(), tensor?))
        });
        Checkpoint::from_tensors(config(OPT), tensors.collect::<Vec<_>>())
    };
    let mut impossible = config(OPT);
    impossible.kv_heads = 1;
    let dir = tempfile::tempdir().unwrap();
    for (source, expected) in [
        (
            replaced(Some(TensorData::from_f32(&[8, 8], &[0.0; 64]).unwrap())),
            "tensor \"model.decoder.layers.0.self_attn.q_proj.weight\" is bf16, but \
             \"model.decoder.layers.1.self_attn.v_proj.weight\" is f32; the matrices of all layers must have one type to be \
             packed: convert the checkpoint to one",
        ),
        (
            replaced(Some(TensorData::from_f32(&[4, 8], &[0.0; 32]).unwrap())),
            "tensor \"model.decoder.layers.1.self_attn.v_proj.weight\" has shape [4, 8], but the configuration asks for [8, 8]; \
             config.json and weights are of different models",
        ),
        (
            replaced(None),
            "memory has no tensor \"model.decoder.layers.1.self_attn.v_proj.weight\"; the most similar names are \
             model.decoder.layers.0.self_attn.v_proj.weight, model.decoder.layers.1.self_attn.k_proj.weight, \
             model.decoder.layers.1.self_attn.q_proj.weight",
        ),
        (
            Checkpoint::from_tensors(impossible, good.clone()),
            "impossible configuration: no config.json of type opt can say what this one says",
        ),
    ] {
        assert_eq!(message(pack(&source, &packed_path(dir.path()), &()), dir.path()), expected);
        assert_eq!(entries(dir.path()), [""; 0]);
    }
}

/// Interrupted at any point, nothing is left and the old file is there still.
#[test]
fn interruptions_leave_the_old_file() {
    let dir = opt_directory();
    let source = Checkpoint::open(dir.path()).unwrap();
    let path = packed_path(dir.path());
    pack(&source, &path, &()).unwrap();
    let good = std::fs::read(&path).unwrap();
    let fresh = || Checkpoint::open(dir.path()).unwrap();
    let watch = Watch::default();
    pack(&fresh(), &path, &watch).unwrap();
    let total = watch.bytes.into_inner();
    for stop_after in (0..=total).step_by(61) {
        let watch = Watch { stop_after: Some(stop_after), ..Watch::default() };
        let result = pack(&fresh(), &path, &watch);
        assert!(matches!(result, Err(Error::Interrupted)), "after {stop_after}: {result:?}");
        assert!(std::fs::read(&path).unwrap() == good);
        assert_eq!(entries(dir.path()), ["config.json", "model.safetensors", FILE_NAME]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_old_file() {
    let dir = opt_directory();
    let source = Checkpoint::open(dir.path()).unwrap();
    let path = packed_path(dir.path());
    pack(&source, &path, &()).unwrap();
    let good = std::fs::read(&path).unwrap();
    let contents = Contents::of(&source).unwrap();
    let mut writer = SafetensorsWriter::create(&path, &contents.specs, &Default::default()).unwrap();
    let needed = writer.file_len();
    writer.fill_disk();
    let result = contents.write(&source, writer, 1 << 10, &());
    let expected = format!(
        "cannot write DIR/model.shadow.safetensors: No space left on device (os error 28); the whole file takes {needed} bytes; \
         nothing was replaced"
    );
    assert_eq!(message(result, dir.path()), expected);
    assert!(std::fs::read(&path).unwrap() == good);
    assert_eq!(entries(dir.path()), ["config.json", "model.safetensors", FILE_NAME]);
}

/// A file of int8 records says how many values share a scale, and its tables are of int8, too.
#[test]
fn int8_files() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int8");
    let source = Checkpoint::from_tensors(config(OPT), tensors(&config(OPT), |_| false, |_| DType::BF16));
    let source = Checkpoint::from_tensors(
        config(OPT),
        source.names().map(|name| {
            let tensor = source.tensor(name).unwrap();
            let zeros = vec![0.5; tensor.len()];
            (name.to_owned(), TensorData::from_f32(tensor.shape(), &zeros).unwrap())
        }),
    );
    crate::quantize(&source, &out, &()).unwrap();
    let path = dir.path().join("m.shadow.safetensors");
    pack(&Checkpoint::open(&out).unwrap(), &path, &()).unwrap();
    let good = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
    let whole = std::fs::read(&path).unwrap();
    let changed = |from: &str, to: &str| {
        assert!(from.len() == to.len() && good.contains(from), "{from}");
        let at = whole.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        parse_packed_header(&bytes).unwrap_err().to_string()
    };
    assert_eq!(
        changed(r#""group":"64""#, r#""group":"32""#),
        "its metadata entry \"group\" is wrong: it is \"32\", and this program reads groups of 64; make it again with \
         `shadowllm pack`"
    );
    assert_eq!(
        changed(r#""dtype":"int8""#, r#""dtype":"bf16""#),
        "its tensor \"layers.0.heads\" has shape [2, 8, 16], but its configuration asks for [2, 8, 8]; make it again with \
         `shadowllm pack`"
    );
    assert_eq!(
        changed(r#""dtype":"I8","shape":[2,8,16]"#, r#""dtype":"U8","shape":[2,8,16]"#),
        "its tensor \"layers.0.heads\" has type U8, but should have int8; make it again with `shadowllm pack`"
    );
    assert_eq!(
        changed(r#""dtype":"I8","shape":[10,16]"#, r#""dtype":"U8","shape":[10,16]"#),
        "its tensor \"model.decoder.embed_tokens.weight\" has type U8, but should have int8; make it again with `shadowllm pack`"
    );
}
