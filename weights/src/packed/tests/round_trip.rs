//! Records are what the format says, and taking them apart gives the checkpoint back.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::FfnNames;
use crate::packed::pack::Contents;

/// Every tensor of the model comes back with its type, shape and bytes.
fn assert_identity(source: &Checkpoint, packed: &PackedCheckpoint) {
    let unpacked = packed.unpack().unwrap();
    let names = ModelNames::of(source.config(), |name| source.get(name).is_some());
    let mut layout = names.layout(source.config());
    layout.sort();
    assert_eq!(unpacked.len(), layout.len());
    for ((name, tensor), (expected, _)) in unpacked.iter().zip(&layout) {
        let original = source.tensor(expected).unwrap();
        assert_eq!((name, tensor.dtype(), tensor.shape()), (expected, original.dtype(), original.shape()));
        assert!(tensor.bytes() == original.bytes(), "{name} has other values");
    }
}

/// Every record, value by value, against its definition.
fn assert_records(source: &Checkpoint, packed: &PackedCheckpoint) {
    let c = source.config();
    let (d, dh) = (c.hidden, c.head_dim);
    let names = ModelNames::of(c, |name| source.get(name).is_some());
    let matrix = |name: &str| source.tensor(&format!("{name}.weight")).unwrap();
    // Compared as bits, because not every bit pattern is a number.
    let at = |tensor: &TensorData, index: usize| {
        let size = tensor.dtype().size();
        tensor.bytes()[index * size..][..size].to_vec()
    };
    let row = |m: &TensorData, row: usize, i: usize| at(m, row * d + i);
    let column = |m: &TensorData, col: usize, i: usize| at(m, i * m.shape()[1] + col);
    for (l, layer) in names.layers.iter().enumerate() {
        let PackedLayer { heads, kv_heads, neurons } = packed.layer(l);
        let (q, k, v, out) = (matrix(&layer.q), matrix(&layer.k), matrix(&layer.v), matrix(&layer.out));
        assert_eq!(heads.shape(), [c.heads, 2 * dh, d]);
        assert_eq!(kv_heads.shape(), [c.kv_heads, 2 * dh, d]);
        assert_eq!(neurons.shape(), [c.ffn, if c.gated { 3 } else { 2 }, d]);
        for i in 0..d {
            for (h, r) in (0..c.heads).flat_map(|h| (0..dh).map(move |r| (h, r))) {
                let line = h * 2 * dh + r;
                assert_eq!(at(heads, line * d + i), row(q, h * dh + r, i));
                assert_eq!(at(heads, (line + dh) * d + i), column(out, h * dh + r, i));
                if h < c.kv_heads {
                    assert_eq!(at(kv_heads, line * d + i), row(k, h * dh + r, i));
                    assert_eq!(at(kv_heads, (line + dh) * d + i), row(v, h * dh + r, i));
                }
            }
            for n in 0..c.ffn {
                match &layer.ffn {
                    FfnNames::Plain { fc1, fc2 } => {
                        assert_eq!(at(neurons, 2 * n * d + i), row(matrix(fc1), n, i));
                        assert_eq!(at(neurons, (2 * n + 1) * d + i), column(matrix(fc2), n, i));
                    }
                    FfnNames::Gated { gate, up, down } => {
                        assert_eq!(at(neurons, 3 * n * d + i), row(matrix(gate), n, i));
                        assert_eq!(at(neurons, (3 * n + 1) * d + i), row(matrix(up), n, i));
                        assert_eq!(at(neurons, (3 * n + 2) * d + i), column(matrix(down), n, i));
                    }
                }
            }
        }
    }
}

/// Architecture, sizes and flags of a model, as `config.json`.
fn model() -> impl Strategy<Value = String> {
    let sizes = (1usize..4, 1usize..4, 1usize..4, 1usize..5, 1usize..70, 3usize..20);
    (0usize..4, sizes, prop::array::uniform4(any::<bool>())).prop_map(
        |(family, (layers, kv, group, half, ffn, vocab), [tied, bias, wide, narrow])| {
            let (heads, head_dim) = (kv * group, 2 * half);
            // `d` beyond one tile, and head widths that are not `d / H`.
            let hidden = if family == 0 || !wide { heads * head_dim } else { 37 };
            let name = ["opt", "llama", "mistral", "qwen2"][family];
            let own = if family == 0 {
                let embed = if narrow { 3 } else { hidden };
                format!(
                    r#""ffn_dim":{ffn},"word_embed_proj_dim":{embed},"enable_bias":{bias},"do_layer_norm_before":{wide},
                       "layer_norm_elementwise_affine":{bias}"#
                )
            } else {
                format!(
                    r#""intermediate_size":{ffn},"num_key_value_heads":{kv},"head_dim":{head_dim},
                       "attention_bias":{bias},"mlp_bias":{narrow}"#
                )
            };
            format!(
                r#"{{"model_type":"{name}","num_hidden_layers":{layers},"num_attention_heads":{heads},
                   "hidden_size":{hidden},"vocab_size":{vocab},"max_position_embeddings":5,"bos_token_id":1,
                   "eos_token_id":2,"tie_word_embeddings":{tied},{own}}}"#
            )
        },
    )
}

/// A packed file.
static PACKED_OPT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let source = Checkpoint::from_tensors(config(OPT), tensors(&config(OPT), |_| false, |_| DType::F16));
    let dir = tempfile::tempdir().unwrap();
    pack(&source, &packed_path(dir.path()), &()).unwrap();
    std::fs::read(packed_path(dir.path())).unwrap()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn packing_and_unpacking_is_the_identity(
        json in model(),
        dtype in prop::sample::select(DType::FLOATS.to_vec()),
        norms in prop::sample::select(DType::FLOATS.to_vec()),
        prefixed in any::<bool>(),
        block in 1usize..5000,
    ) {
        let config = config(&json);
        let plain_prefix = |name: &str| !prefixed && matches!(name, "decoder.embed_tokens.weight" | "embed_tokens.weight");
        let is_norm = |name: &str| name.contains("norm");
        let tensors = tensors(&config, plain_prefix, |name| if is_norm(name) { norms } else { dtype });
        let source = Checkpoint::from_tensors(config, tensors);
        let dir = tempfile::tempdir().unwrap();
        let path = packed_path(dir.path());
        let report = pack(&source, &path, &()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        prop_assert_eq!(whole.len() as u64, report.bytes);

        let packed = PackedCheckpoint::open_for(&path, &source, &()).unwrap();
        prop_assert_eq!(packed.dtype(), dtype);
        prop_assert_eq!(packed.config(), source.config());
        let expected = source.fingerprint().unwrap();
        prop_assert_eq!(packed.fingerprint(), expected.as_str());
        assert_identity(&source, &packed);
        assert_records(&source, &packed);

        // The size of the blocks changes nothing.
        let contents = Contents::of(&source).unwrap();
        let header = parse_packed_header(&whole).unwrap();
        let metadata = format::metadata(source.config(), dtype, &report.fingerprint, &header.source);
        let writer = SafetensorsWriter::create(&dir.path().join("blocks"), &contents.specs, &metadata).unwrap();
        contents.write(&source, writer, block, &()).unwrap();
        prop_assert!(std::fs::read(dir.path().join("blocks")).unwrap() == whole);
    }

    /// A packed file with one byte changed or cut somewhere is refused, or all its tensors have their shapes.
    #[test]
    fn damaged_files(at in any::<prop::sample::Index>(), change in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = PACKED_OPT.clone();
        // Most bytes of so small a file are header.
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
            let cut = matches!(parse_packed_header(&bytes), Err(PackedProblem::Truncated { found }) if found == at as u64);
            prop_assert!(cut);
        } else {
            bytes[at] = change;
            if let Ok(header) = parse_packed_header(&bytes) {
                prop_assert!(header.tensors.iter().all(|t| bytes.get(t.range.clone()).is_some()));
            }
        }
    }
}

#[test]
fn every_parity_fixture() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/parity");
    let mut count = 0;
    for entry in std::fs::read_dir(fixtures).unwrap() {
        let source = Checkpoint::open(&entry.unwrap().path()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = packed_path(dir.path());
        pack(&source, &path, &()).unwrap();
        let packed = PackedCheckpoint::open(&path).unwrap();
        assert_eq!(packed.config(), source.config());
        assert_identity(&source, &packed);
        assert_records(&source, &packed);
        count += 1;
    }
    assert!(count >= 29, "{count} fixtures");
}

#[test]
fn a_tied_head_is_stored_once() {
    let json = OPT.replace('}', r#","tie_word_embeddings":true}"#);
    let mut tensors = tensors(&config(&json), |_| false, |_| DType::F32);
    let embedding = tensors[0].1.clone();
    // Some checkpoints have it although the configuration says that it is the embedding.
    tensors.push(("lm_head.weight".to_owned(), embedding));
    let source = Checkpoint::from_tensors(config(&json), tensors);
    let dir = tempfile::tempdir().unwrap();
    pack(&source, &packed_path(dir.path()), &()).unwrap();
    let packed = PackedCheckpoint::open_for(&packed_path(dir.path()), &source, &()).unwrap();
    assert!(packed.checkpoint().get("lm_head.weight").is_none());
    assert_identity(&source, &packed);
}

#[cfg(feature = "embedded-model")]
#[test]
fn the_embedded_model() {
    let source = Checkpoint::embedded().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.shadow.safetensors");
    let report = pack(&source, &path, &()).unwrap();
    assert_eq!((report.source.as_str(), report.dtype.as_str(), report.layers), ("embedded:tiny-opt", "bf16", 8));
    // 8 layers of 4 * 256 * 256 attention and 2 * 256 * 1024 FFN weights.
    assert_eq!(report.packed_bytes, 8 * (4 * 256 * 256 + 2 * 256 * 1024) * 2);
    let packed = PackedCheckpoint::open(&path).unwrap();
    assert_identity(&source, &packed);
    // Records begin at cache lines, so that vector loads do not cross them.
    for l in 0..8 {
        let PackedLayer { heads, kv_heads, neurons } = packed.layer(l);
        for tensor in [heads, kv_heads, neurons] {
            assert_eq!(tensor.bytes().as_ptr() as usize % 64, 0);
        }
    }
}

#[test]
fn memory_holds_the_same_records() {
    let config = config(OPT);
    let mut tensors = tensors(&config, |_| false, |_| DType::BF16);
    let packed = PackedCheckpoint::in_memory(&Checkpoint::from_tensors(config.clone(), tensors.clone()), &()).unwrap();
    let source = Checkpoint::from_tensors(config.clone(), tensors.clone());
    assert_identity(&source, &packed);
    assert_records(&source, &packed);
    assert_eq!((packed.path().to_str(), packed.mapped_bytes()), (Some("memory"), 0));
    let start = |packed: &PackedCheckpoint, layer| packed.layer(layer).neurons.bytes().as_ptr();
    assert_ne!(start(&packed, 0), start(&packed, 1));
    // Layers that are the same memory are so in records, too.
    let first = tensors.clone();
    for (name, tensor) in &mut tensors {
        if let Some((_, same)) = first.iter().find(|(other, _)| *other == name.replace("layers.1.", "layers.0.")) {
            *tensor = same.clone();
        }
    }
    let source = Checkpoint::from_tensors(config, tensors);
    let packed = PackedCheckpoint::in_memory(&source, &()).unwrap();
    assert_records(&source, &packed);
    assert_eq!(start(&packed, 0), start(&packed, 1));
    let watch = Watch { stop_after: Some(1), ..Watch::default() };
    assert!(matches!(PackedCheckpoint::in_memory(&source, &watch), Err(crate::Error::Interrupted)));
}
