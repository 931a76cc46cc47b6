//! Checkpoints of int8 weights: what `quantize` and an import make, how it is read and packed, and what is refused.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::fs;
use std::path::Path;

use shadowllm_weights::{
    Checkpoint, DType, INT8_GROUP, ModelConfig, ModelNames, PackedCheckpoint, Progress, SafetensorsWriter, TensorData,
    TensorSpec, int8_row, pack, quantize,
};

const OPT: &str = r#"{"model_type":"opt","hidden_size":72,"num_attention_heads":2,"ffn_dim":70,"num_hidden_layers":2,
    "vocab_size":10,"max_position_embeddings":4,"word_embed_proj_dim":5}"#;
const LLAMA: &str = r#"{"model_type":"llama","hidden_size":40,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":6,
    "intermediate_size":131,"num_hidden_layers":2,"vocab_size":10,"max_position_embeddings":4,"tie_word_embeddings":false}"#;

/// A model whose values are all over the place.
fn model(json: &str, dtype: DType) -> Checkpoint {
    let config = ModelConfig::from_json(json.as_bytes()).unwrap();
    let mut state = 1u64;
    let layout = ModelNames::of(&config, |_| false).layout(&config);
    let tensors = layout.into_iter().map(|(name, shape)| {
        let values = (0..shape.iter().product::<usize>()).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 2f32.powi((state >> 30 & 7) as i32 - 4)
        });
        (name, TensorData::from_f32_as(&shape, dtype, &values.collect::<Vec<_>>()).unwrap())
    });
    Checkpoint::from_tensors(config.clone(), tensors.collect::<Vec<_>>())
}

/// Rows of `cols` values.
fn rounded(values: &[f32], cols: usize) -> Vec<u8> {
    let mut bytes = vec![0; values.len() / cols * DType::I8.row_bytes(cols)];
    for (values, row) in values.chunks_exact(cols).zip(bytes.chunks_exact_mut(DType::I8.row_bytes(cols))) {
        int8_row(values, row);
    }
    bytes
}

#[test]
fn rows_are_rounded_one_by_one() {
    for (json, dtype) in [(OPT, DType::F32), (LLAMA, DType::BF16), (OPT, DType::F16)] {
        let source = model(json, dtype);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("deep/int8");
        let report = quantize(&source, &out, &()).unwrap();
        assert_eq!(report.bytes, fs::metadata(out.join("model.safetensors")).unwrap().len());
        assert_eq!((report.dtype.as_str(), &report.source_types[dtype.name()]), ("int8", &report.tensors));
        let made = Checkpoint::open(&out).unwrap();
        assert_eq!(made.config(), &ModelConfig { dtype: Some(DType::I8), ..source.config().clone() });
        let names = ModelNames::of(source.config(), |_| false);
        let outputs: Vec<String> = names.outputs().collect();
        assert_eq!(outputs.len(), 4);
        for (name, shape) in names.layout(source.config()) {
            let (found, values) = (made.tensor(&name).unwrap(), source.tensor(&name).unwrap().to_f32());
            let [rows, cols] = shape[..] else {
                assert_eq!((found.dtype(), found.to_f32()), (DType::F32, values));
                continue;
            };
            assert_eq!(found.dtype(), DType::I8);
            if outputs.contains(&name) {
                let columns: Vec<f32> = (0..rows * cols).map(|i| values[i % rows * cols + i / rows]).collect();
                assert_eq!((found.shape(), found.bytes()), (&[cols, rows][..], &rounded(&columns, rows)[..]), "{name}");
            } else {
                assert_eq!((found.shape(), found.bytes()), (&[rows, cols][..], &rounded(&values, cols)[..]), "{name}");
            }
            assert_eq!(found.bytes().as_ptr() as usize % 16, 0, "{name}");
        }
    }
}

#[test]
fn packing_moves_rows() {
    for json in [OPT, LLAMA] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("int8");
        quantize(&model(json, DType::F32), &out, &()).unwrap();
        let source = Checkpoint::open(&out).unwrap();
        let file = dir.path().join("m.shadow.safetensors");
        let report = pack(&source, &file, &()).unwrap();
        assert_eq!(report.dtype, "int8");
        for packed in [
            PackedCheckpoint::open(&file).unwrap(),
            PackedCheckpoint::open_for(&file, &source, &()).unwrap(),
            PackedCheckpoint::in_memory(&source, &()).unwrap(),
        ] {
            let (c, d) = (source.config(), source.config().hidden);
            assert_eq!(packed.dtype(), DType::I8);
            let records = packed.layer(1);
            assert_eq!(records.heads.shape(), [c.heads, 2 * c.head_dim, d]);
            assert_eq!(records.neurons.shape(), [c.ffn, if c.gated { 3 } else { 2 }, d]);
            let names = ModelNames::of(c, |_| false);
            let row =
                |name: &str, row| source.tensor(&format!("{name}.weight")).unwrap().slice_rows(row..row + 1).unwrap();
            let (q, o) = (row(&names.layers[1].q, c.head_dim + 1), row(&names.layers[1].out, c.head_dim + 1));
            let head = records.heads.slice_rows(1..2).unwrap().reshaped(&[2 * c.head_dim, d]).unwrap();
            assert_eq!(head.slice_rows(1..2).unwrap().bytes(), q.bytes());
            assert_eq!(head.slice_rows(c.head_dim + 1..c.head_dim + 2).unwrap().bytes(), o.bytes());
            // Taking it apart gives the checkpoint back.
            let unpacked = packed.unpack().unwrap();
            assert_eq!(unpacked.len(), source.names().count());
            for (name, tensor) in unpacked {
                let expected = source.tensor(&name).unwrap();
                assert_eq!((tensor.shape(), tensor.dtype()), (expected.shape(), expected.dtype()), "{name}");
                assert!(tensor.bytes() == expected.bytes(), "{name}");
            }
        }
    }
}

#[cfg(feature = "embedded-model")]
#[test]
fn side_files_come_along() {
    let source = Checkpoint::embedded().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int8");
    quantize(&source, &out, &()).unwrap();
    let made = Checkpoint::open(&out).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"] {
        assert_eq!(made.side_file(name).unwrap(), source.side_file(name).unwrap(), "{name}");
    }
    assert_eq!(made.config().eos, source.config().eos);
    let bytes = |checkpoint: &Checkpoint| checkpoint.mapped_bytes() as f64;
    assert!(bytes(&made) / bytes(&source) < 0.55, "{} of {}", bytes(&made), bytes(&source));
}

/// The message of a failure, after checking that nothing was left behind.
fn message(source: &Checkpoint, progress: &dyn Progress) -> String {
    let dir = tempfile::tempdir().unwrap();
    let error = quantize(source, &dir.path().join("out"), progress).unwrap_err();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    error.to_string()
}

#[test]
fn what_cannot_be_rounded() {
    let config = ModelConfig::from_json(OPT.as_bytes()).unwrap();
    let good = model(OPT, DType::F32);
    let changed = |name: &str, at: usize, value: f32| {
        let tensors = good.names().map(|n| {
            let tensor = good.tensor(n).unwrap();
            let mut values = tensor.to_f32();
            if n == name {
                values[at] = value;
            }
            (n.to_owned(), TensorData::from_f32(tensor.shape(), &values).unwrap())
        });
        Checkpoint::from_tensors(config.clone(), tensors.collect::<Vec<_>>())
    };
    let name = "model.decoder.layers.1.fc2.weight";
    assert_eq!(
        message(&changed(name, 701, f32::NAN), &()),
        "tensor \"model.decoder.layers.1.fc2.weight\" has the value NaN at index 701, and int8 weights are finite numbers; mend the \
         checkpoint"
    );
    let embedding = changed("model.decoder.embed_tokens.weight", 7, f32::NEG_INFINITY);
    assert!(message(&embedding, &()).contains("has the value -inf at index 7, and"));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("int8");
    quantize(&good, &out, &()).unwrap();
    assert_eq!(
        message(&Checkpoint::open(&out).unwrap(), &()),
        format!("{} has int8 weights already; quantise the model that it was made from", out.display())
    );
    let error = quantize(&good, &out, &()).unwrap_err().to_string();
    assert!(error.contains("is not empty") || error.contains("exists"), "{error}");
}

#[test]
fn interruptions_leave_nothing() {
    struct Stop(Cell<u64>);
    impl Progress for Stop {
        fn start(&self, _: &str, _: Option<u64>) {}
        fn advance(&self, bytes: u64) {
            self.0.set(self.0.get().saturating_sub(bytes));
        }
        fn finish(&self) {}
        fn go_on(&self) -> bool {
            self.0.get() > 0
        }
    }
    let source = model(OPT, DType::F32);
    for after in [1, 5000, 20000] {
        assert_eq!(message(&source, &Stop(Cell::new(after))), "interrupted");
    }
}

/// Writes a directory of int8 weights with other metadata or another tensor.
fn write(dir: &Path, metadata: &[(&str, &str)], change: impl Fn(TensorSpec) -> TensorSpec) {
    let config = ModelConfig::from_json(OPT.as_bytes()).unwrap();
    fs::write(dir.join("config.json"), OPT).unwrap();
    let specs = ModelNames::of(&config, |_| false).stored(&config, DType::I8);
    let specs: Vec<TensorSpec> = specs.into_iter().map(change).collect();
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let mut writer = SafetensorsWriter::create(&dir.join("model.safetensors"), &specs, &metadata).unwrap();
    for spec in &specs {
        writer.write(&spec.name, &vec![0; spec.byte_len().unwrap()]).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn files_of_other_kinds() {
    let group = INT8_GROUP.to_string();
    let good = [("format", "shadowllm-int8"), ("version", "1"), ("group", group.as_str())];
    let opened = |metadata: &[(&str, &str)], change: &dyn Fn(TensorSpec) -> TensorSpec| {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), metadata, change);
        let checkpoint =
            Checkpoint::open(dir.path()).map_err(|e| e.to_string().replace(&dir.path().display().to_string(), "DIR"));
        checkpoint.and_then(|c| c.tensor("model.decoder.layers.0.fc2.weight").cloned().map_err(|e| e.to_string()))
    };
    assert_eq!(opened(&good, &|spec| spec).unwrap().shape(), [70, 72]);
    for (entry, value, found) in [(1, "2", "version 2 and groups of 64"), (2, "32", "version 1 and groups of 32")] {
        let mut other = good;
        other[entry].1 = value;
        assert_eq!(
            opened(&other, &|spec| spec).unwrap_err(),
            format!(
                "DIR/model.safetensors: its int8 weights have format {found}, this program reads version 1 and groups of 64; make \
                 them again with `shadowllm import --dtype int8`"
            )
        );
    }
    // Someone else's bytes are of no known kind.
    assert_eq!(
        opened(&[("format", "pt")], &|spec| spec).unwrap_err(),
        "tensor \"model.decoder.layers.0.fc2.weight\" has type I8; supported are F32, F16 and BF16: convert the checkpoint to one \
         of them"
    );
    let wider = |mut spec: TensorSpec| {
        if spec.name.ends_with("0.fc2.weight") {
            spec.shape = vec![70, 200];
        }
        spec
    };
    assert_eq!(
        opened(&good, &wider).unwrap_err(),
        "DIR/model.safetensors: tensor \"model.decoder.layers.0.fc2.weight\" of int8 rows has shape [70, 208] in bytes, but the \
         configuration asks for [70, 80]; make the checkpoint again with `shadowllm import --dtype int8`"
    );
}
