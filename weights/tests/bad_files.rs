//! Every way a directory, index or weight file can be wrong, and what its owner is told.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use shadowllm_weights::{Checkpoint, Error, parse_safetensors_header, parse_safetensors_index};
use tempfile::TempDir;

const CONFIG: &str =
    r#"{"model_type":"llama","hidden_size":8,"num_attention_heads":2,"num_hidden_layers":1,"vocab_size":10}"#;

/// A safetensors file with this header and so many zero bytes of data. Headers are padded with spaces to 8 bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// One header entry.
fn tensor(name: &str, dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

/// A directory with a good configuration and these files.
fn directory(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// The message with which a directory fails to open, the directory's name replaced.
fn message(dir: &Path) -> String {
    Checkpoint::open(dir).unwrap_err().to_string().replace(dir.to_str().unwrap(), "DIR")
}

#[test]
fn headers() {
    struct Case {
        what: &'static str,
        bytes: Vec<u8>,
        message: &'static str,
    }
    let good = tensor("a", "F32", "[2]", 0, 8);
    let cases = [
        Case {
            what: "zero-length file",
            bytes: Vec::new(),
            message: "0 bytes are too few for a safetensors file; it is empty or cut off: download or copy it again",
        },
        Case {
            what: "length cut off",
            bytes: vec![8, 0, 0],
            message: "3 bytes are too few for a safetensors file; it is empty or cut off: download or copy it again",
        },
        Case {
            what: "absurd header length",
            bytes: [u64::MAX.to_le_bytes(), [0; 8]].concat(),
            message: "header length of 18446744073709551615 bytes, more than the 100000000 that the format allows; \
                      this is not a safetensors file",
        },
        Case {
            what: "header cut off",
            bytes: [100u64.to_le_bytes().as_slice(), b"{\"a\":"].concat(),
            message: "header of 100 bytes, but only 5 follow; the file is cut off: download or copy it again",
        },
        Case {
            what: "empty header",
            bytes: vec![0; 8],
            message: "header is no valid safetensors header: EOF while parsing a value at line 1 column 0",
        },
        Case {
            what: "no object",
            bytes: file("[]", 0),
            message: "header is no valid safetensors header: invalid type: sequence, expected an object of tensors at line 1 column 0",
        },
        Case {
            what: "no UTF-8",
            bytes: [8u64.to_le_bytes().as_slice(), b"{\"\xff\":1}  "].concat()[..16].to_vec(),
            message: "header is no valid safetensors header: invalid unicode code point at line 1 column 3",
        },
        Case {
            what: "negative shape",
            bytes: file(&format!("{{{}}}", tensor("a", "F32", "[-2]", 0, 8)), 8),
            message: "header is no valid safetensors header: invalid value: integer `-2`, expected u64 at line 1 column 31",
        },
        Case {
            what: "missing key",
            bytes: file(r#"{"a":{"dtype":"F32","shape":[2]}}"#, 8),
            message: "header is no valid safetensors header: missing field `data_offsets` at line 1 column 32",
        },
        Case {
            what: "repeated name",
            bytes: file(&format!("{{{good},{}}}", tensor("a", "F32", "[2]", 8, 16)), 16),
            message: "tensor \"a\" is listed twice; the file is damaged or hostile",
        },
        Case {
            what: "strange type",
            bytes: file(&format!("{{{}}}", tensor("a", "F33", "[2]", 0, 8)), 8),
            message: "tensor \"a\" has type \"F33\", which is no safetensors type",
        },
        Case {
            what: "overflowing shape",
            bytes: file(&format!("{{{}}}", tensor("a", "F32", "[4294967296,4294967296]", 0, 8)), 8),
            message: "tensor \"a\" of shape [4294967296, 4294967296] is larger than any memory; the file is damaged or hostile",
        },
        Case {
            what: "shape and offsets disagree",
            bytes: file(&format!("{{{}}}", tensor("a", "BF16", "[3,2]", 0, 8)), 8),
            message: "tensor \"a\" (BF16, shape [3, 2]) needs 12 bytes, but its offsets 0..8 hold 8",
        },
        Case {
            what: "half a byte",
            bytes: file(&format!("{{{}}}", tensor("a", "F4", "[3]", 0, 2)), 2),
            message: "tensor \"a\" (F4, shape [3]) needs 2 bytes, but its offsets 0..2 hold 2",
        },
        Case {
            what: "reversed offsets",
            bytes: file(&format!("{{{}}}", tensor("a", "F32", "[2]", 8, 0)), 8),
            message: "tensor \"a\" has offsets 8..0, which end before they begin",
        },
        Case {
            what: "data cut off",
            bytes: file(&format!("{{{good}}}"), 7),
            message: "tensor \"a\" ends at byte 8 of the data, but the file has 7; it is cut off: download or copy it again",
        },
        Case {
            what: "overlap",
            bytes: file(&format!("{{{good},{}}}", tensor("b", "F32", "[2]", 4, 12)), 12),
            message: "tensors \"a\" and \"b\" overlap; the file is damaged or hostile",
        },
        Case {
            what: "same bytes twice",
            bytes: file(&format!("{{{good},{}}}", tensor("b", "F32", "[2]", 0, 8)), 8),
            message: "tensors \"a\" and \"b\" overlap; the file is damaged or hostile",
        },
        Case {
            what: "hole",
            bytes: file(&format!("{{{good},{}}}", tensor("b", "F32", "[2]", 12, 20)), 20),
            message: "4 bytes at 8 of the data belong to no tensor; the file is damaged or hostile",
        },
        Case {
            what: "bytes behind the end",
            bytes: file(&format!("{{{good}}}"), 9),
            message: "1 bytes at 8 of the data belong to no tensor; the file is damaged or hostile",
        },
        Case {
            what: "deep nesting",
            bytes: file(&format!("{{\"__metadata__\":{}", "[".repeat(5000)), 0),
            message: "header is no valid safetensors header: EOF while parsing a list at line 1 column 5016",
        },
        Case {
            what: "misaligned",
            bytes: file(&format!("{{{},{}}}", tensor("m", "U8", "[2]", 0, 2), tensor("w", "F32", "[1]", 2, 6)), 6),
            message: "tensor \"w\" begins at byte 122 of the file, which is no multiple of its element size 4; \
                      rewrite the file with a current safetensors library",
        },
    ];
    for Case { what, bytes, message: expected } in cases {
        let dir = directory(&[("model.safetensors", bytes.clone())]);
        assert_eq!(message(dir.path()), format!("DIR/model.safetensors: {expected}"), "{what}");
        let parsed = parse_safetensors_header(&bytes);
        assert_eq!(parsed.is_ok(), what == "misaligned", "{what}: alignment alone depends on the reader");
    }
}

#[test]
fn oddities_that_are_valid() {
    let header = format!(
        "{{\"__metadata__\":{{\"format\":\"pt\"}},{},{},{},{}}}",
        tensor("late", "F16", "[2]", 4, 8),
        tensor("scalar", "F32", "[]", 0, 4),
        tensor("empty", "F32", "[0,5]", 4, 4),
        tensor("ids", "I64", "[1]", 8, 16),
    );
    let dir = directory(&[("model.safetensors", file(&header, 16))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["empty", "late", "scalar"]);
    assert_eq!(checkpoint.unsupported().collect::<Vec<_>>(), [("ids", "I64")]);
    assert_eq!((checkpoint.get("scalar").unwrap().shape(), checkpoint.get("scalar").unwrap().len()), (&[][..], 1));
    assert!(checkpoint.get("empty").unwrap().is_empty());
    assert!(checkpoint.get("ids").is_none());
    assert_eq!(
        checkpoint.tensor("ids").unwrap_err().to_string(),
        "tensor \"ids\" has type I64; supported are F32, F16 and BF16: convert the checkpoint to one of them"
    );
    let no_tensors = directory(&[("model.safetensors", file("{}", 0))]);
    assert_eq!(Checkpoint::open(no_tensors.path()).unwrap().names().count(), 0);
}

#[test]
fn asking_for_tensors() {
    let header = format!(
        "{{{},{}}}",
        tensor("model.layers.0.mlp.up_proj.weight", "F32", "[2,1]", 0, 8),
        tensor("model.norm.weight", "F32", "[1]", 8, 12)
    );
    let dir = directory(&[("model.safetensors", file(&header, 12))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let text = |error: Error| error.to_string().replace(dir.path().to_str().unwrap(), "DIR");
    assert_eq!(
        text(checkpoint.tensor("model.layers.1.mlp.up_proj.weight").unwrap_err()),
        "DIR has no tensor \"model.layers.1.mlp.up_proj.weight\"; the most similar names are \
         model.layers.0.mlp.up_proj.weight, model.norm.weight"
    );
    assert_eq!(
        text(checkpoint.tensor_with_shape("model.layers.0.mlp.up_proj.weight", &[1, 2]).unwrap_err()),
        "tensor \"model.layers.0.mlp.up_proj.weight\" has shape [2, 1], but the configuration asks for [1, 2]; \
         config.json and weights are of different models"
    );
    assert!(checkpoint.tensor_with_shape("model.norm.weight", &[1]).is_ok());
    let none = Checkpoint::from_tensors(checkpoint.config().clone(), []);
    assert_eq!(none.tensor("x").unwrap_err().to_string(), "memory has no tensor \"x\"; it has no tensors at all");
}

#[test]
fn directories() {
    struct Case {
        what: &'static str,
        files: &'static [&'static str],
        message: &'static str,
    }
    const NO_WEIGHTS: &str = "DIR has no model.safetensors and no model.safetensors.index.json; ";
    for Case { what, files, message: expected } in [
        Case { what: "nothing", files: &[], message: "download or copy the weights" },
        Case {
            what: "PyTorch",
            files: &["pytorch_model-00001-of-00002.bin", "model.gguf"],
            message: "it has pytorch_model-00001-of-00002.bin, which may run code when it is read: \
                      convert it to safetensors with transformers' save_pretrained",
        },
        Case {
            what: "GGUF",
            files: &["m.Q4_0.gguf"],
            message: "it has m.Q4_0.gguf: convert it with `shadowllm import`",
        },
        Case {
            what: "shards without an index",
            files: &["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"],
            message: "it has model-00001-of-00002.safetensors: rename it, or restore the index if it is one of several shards",
        },
    ] {
        let files: Vec<_> = files.iter().map(|name| (*name, Vec::new())).collect();
        assert_eq!(message(directory(&files).path()), format!("{NO_WEIGHTS}{expected}"), "{what}");
    }

    let dir = tempfile::tempdir().unwrap();
    let expected = "expected a Hugging Face model directory with config.json and *.safetensors";
    assert_eq!(message(dir.path()), format!("DIR has no config.json; {expected}"));
    let gone = dir.path().join("gone");
    assert_eq!(message(&gone), format!("DIR is not a directory; {expected}"));
    std::fs::create_dir(dir.path().join("config.json")).unwrap();
    assert_eq!(message(dir.path()), "DIR/config.json is not a regular file");

    let dir = directory(&[]);
    std::fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    assert_eq!(message(dir.path()), "DIR/model.safetensors is not a regular file");

    let dir = directory(&[("generation_config.json", b"[1]".to_vec()), ("model.safetensors", file("{}", 0))]);
    assert_eq!(
        message(dir.path()),
        "DIR/generation_config.json: not a valid configuration: invalid type: sequence, expected a map at line 1 column 0"
    );
    let dir = directory(&[("model.safetensors", file("{}", 0))]);
    std::fs::File::create(dir.path().join("config.json")).unwrap().set_len((16 << 20) + 1).unwrap();
    assert_eq!(message(dir.path()), "DIR/config.json has 16777217 bytes; a file of this kind has at most 16777216");
}

/// A file that may not be read. Root may read everything, so there the check is that it does open.
#[test]
#[cfg(unix)]
fn unreadable_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = directory(&[("model.safetensors", file("{}", 0))]);
    let path = dir.path().join("model.safetensors");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    let readable = std::fs::File::open(&path).is_ok();
    match Checkpoint::open(dir.path()) {
        Ok(_) => assert!(readable),
        Err(error) => {
            let text = error.to_string().replace(dir.path().to_str().unwrap(), "DIR");
            assert_eq!(text, "cannot open DIR/model.safetensors: Permission denied (os error 13)");
        }
    }
}

/// A pipe would block for ever when opened.
#[test]
#[cfg(unix)]
fn pipe() {
    let dir = directory(&[]);
    let path = dir.path().join("model.safetensors");
    let made = std::process::Command::new("mkfifo").arg(&path).status().is_ok_and(|status| status.success());
    if made {
        assert_eq!(message(dir.path()), "DIR/model.safetensors is not a regular file");
    }
}

#[test]
fn generation_config_adds_end_tokens() {
    let dir = directory(&[
        ("generation_config.json", br#"{"eos_token_id":[7,2,9],"pad_token_id":0,"bos_token_id":3}"#.to_vec()),
        ("model.safetensors", file("{}", 0)),
    ]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let config = checkpoint.config();
    assert_eq!((config.bos, config.eos.as_slice(), config.pad), (Some(1), &[2, 7, 9][..], Some(0)));
    std::fs::write(dir.path().join("generation_config.json"), br#"{"eos_token_id":10}"#).unwrap();
    assert_eq!(
        message(dir.path()),
        "DIR/generation_config.json: impossible configuration: eos_token_id is 10, but vocab_size is 10"
    );
}

#[test]
fn shards() {
    struct Case {
        what: &'static str,
        index: &'static str,
        message: &'static str,
    }
    let one = file(&format!("{{{}}}", tensor("a", "F32", "[2]", 0, 8)), 8);
    let two = file(&format!("{{{},{}}}", tensor("b", "F32", "[2]", 0, 8), tensor("extra", "F32", "[1]", 8, 12)), 12);
    const INDEX: &str = "DIR/model.safetensors.index.json: ";
    for Case { what, index, message: expected } in [
        Case {
            what: "no JSON",
            index: "weights",
            message: "not a valid index of shards: expected value at line 1 column 1",
        },
        Case {
            what: "no map",
            index: r#"{"metadata":{}}"#,
            message: "not a valid index of shards: missing field `weight_map` at line 1 column 15",
        },
        Case {
            what: "wrong map",
            index: r#"{"weight_map":{"a":1}}"#,
            message: "not a valid index of shards: invalid type: integer `1`, expected a string at line 1 column 20",
        },
        Case {
            what: "empty map",
            index: r#"{"weight_map":{}}"#,
            message: "not a valid index of shards: weight_map is empty",
        },
        Case {
            what: "repeated tensor",
            index: r#"{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}"#,
            message: "tensor \"a\" is listed twice; the file is damaged or hostile",
        },
        Case {
            what: "climbing out",
            index: r#"{"weight_map":{"a":"../1.safetensors"}}"#,
            message: "tensor \"a\" is said to be in \"../1.safetensors\"; a shard must be a plain file name in the same directory",
        },
        Case {
            what: "missing shard",
            index: r#"{"weight_map":{"a":"1.safetensors","b":"3.safetensors"}}"#,
            message: "shard \"3.safetensors\" is missing (the index puts tensor \"b\" there); download it or copy it to the directory",
        },
        Case {
            what: "tensor not in its shard",
            index: r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"}}"#,
            message: "the index puts tensor \"c\" in shard \"2.safetensors\", which has no such tensor; \
                      index and shards are of different models",
        },
        Case {
            what: "tensor in another shard",
            index: r#"{"weight_map":{"a":"2.safetensors","b":"2.safetensors","x":"1.safetensors"}}"#,
            message: "the index puts tensor \"a\" in shard \"2.safetensors\", which has no such tensor; \
                      index and shards are of different models",
        },
        Case {
            what: "tensor in two shards",
            index: r#"{"weight_map":{"a":"1.safetensors","b":"copy.safetensors"}}"#,
            message: "tensor \"a\" is in shard \"1.safetensors\" and in shard \"copy.safetensors\"; remove shards of other models",
        },
    ] {
        let dir = directory(&[
            ("1.safetensors", one.clone()),
            ("2.safetensors", two.clone()),
            ("copy.safetensors", one.clone()),
            ("model.safetensors.index.json", index.as_bytes().to_vec()),
        ]);
        assert_eq!(message(dir.path()), format!("{INDEX}{expected}"), "{what}");
    }

    let index = br#"{"metadata":{"total_size":20},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#.to_vec();
    let dir = directory(&[("1.safetensors", one), ("2.safetensors", two), ("model.safetensors.index.json", index)]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "extra"]);
    let sizes = ["1.safetensors", "2.safetensors"].map(|name| dir.path().join(name).metadata().unwrap().len());
    assert_eq!(checkpoint.mapped_bytes(), sizes.iter().sum::<u64>());
    std::fs::write(dir.path().join("2.safetensors"), b"oops").unwrap();
    assert_eq!(
        message(dir.path()),
        "DIR/2.safetensors: 4 bytes are too few for a safetensors file; it is empty or cut off: download or copy it again"
    );
}

#[test]
fn shard_names() {
    for name in ["", ".", "..", "a/b", "/a", "a\\b", "C:a", "./a", "a/", "a\0b"] {
        let json = serde_json::json!({"weight_map": {"t": name}}).to_string();
        let error = parse_safetensors_index(json.as_bytes()).unwrap_err();
        assert!(matches!(error, Error::ShardName { .. }), "{name:?}: {error}");
    }
}
