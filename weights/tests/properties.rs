//! Parsers take any bytes without a panic, agree with the reference implementation, and undo what writers do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use shadowllm_weights::{
    Activation, Architecture, Biases, Checkpoint, DType, ModelConfig, NormKind, NormPlacement, Positions, Rope,
    RopeScaling, parse_safetensors_header, parse_safetensors_index,
};

/// Files that are right, or wrong in up to two places: a name, type, shape, offset, the header length, the length of the data.
fn file() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec!["a", "b", "c", "d", "a.b", "é", "__metadata__"]);
    let dtype =
        prop::sample::select(vec![("F32", 4), ("F16", 2), ("BF16", 2), ("I64", 8), ("BOOL", 1), ("F4", 1), ("Q9", 1)]);
    let shape = prop::collection::vec(0u64..4, 0..3);
    let entries = prop::collection::vec((name, dtype, shape), 0..4);
    let number = prop_oneof![0u64..40, any::<u64>()];
    let faults = prop::collection::vec((0usize..6, any::<prop::sample::Index>(), number), 0..3);
    (entries, faults).prop_map(|(entries, faults)| {
        let mut next = 0;
        let mut entries: Vec<_> = entries
            .into_iter()
            .map(|(name, (dtype, size), shape)| {
                let start = next;
                next += shape.iter().product::<u64>() * size;
                (name, dtype, shape, [start, next])
            })
            .collect();
        let (mut data, mut length_error) = (next, 0);
        for (kind, at, number) in faults {
            match kind {
                0 => data = number % 100,
                1 => length_error = number,
                _ if entries.is_empty() => {}
                _ => {
                    let entry = at.get_mut(&mut entries);
                    match kind {
                        2 => entry.2.push(number),
                        3 => entry.3[0] = number,
                        4 => entry.3[1] = number,
                        _ => entry.1 = "U16",
                    }
                }
            }
        }
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(name, dtype, shape, offsets)| {
                format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":{offsets:?}}}"#)
            })
            .collect();
        let header = format!("{{{}}}", entries.join(","));
        let length = (header.len() as u64).wrapping_add(length_error);
        [&length.to_le_bytes()[..], header.as_bytes(), &vec![0; data as usize]].concat()
    })
}

/// Tensors with different values, as the reference implementation writes them.
fn tensors() -> impl Strategy<Value = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>> {
    let dtype = prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I64, Dtype::U8]);
    let tensor = (dtype, prop::collection::vec(0usize..6, 0..4), any::<u8>()).prop_map(|(dtype, shape, seed)| {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (dtype, shape, (0..bytes).map(|i| seed.wrapping_add(i as u8)).collect())
    });
    prop::collection::btree_map("[a-z.]{1,12}", tensor, 0..8)
}

fn config() -> impl Strategy<Value = ModelConfig> {
    let architecture =
        prop::sample::select(vec![Architecture::Opt, Architecture::Llama, Architecture::Mistral, Architecture::Qwen2]);
    let sizes = (1usize..5, 1usize..5, 1usize..4, 1usize..9, 1usize..100, 10usize..1000);
    let eps_and_theta = (1e-12f32..1.0, 1.0f32..1e7);
    let scaling = prop_oneof![
        Just(RopeScaling::None),
        (0.1f32..100.0).prop_map(|factor| RopeScaling::Linear { factor }),
        (0.1f32..100.0, 0.1f32..4.0, 1usize..9999).prop_map(|(factor, low, original)| RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: low + 1.0,
            original_max_positions: original,
        }),
    ];
    let flags = prop::array::uniform6(any::<bool>());
    let activation =
        prop::sample::select(vec![Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu]);
    let dtype = prop::sample::select(vec![None, Some(DType::F32), Some(DType::F16), Some(DType::BF16)]);
    let tokens = (prop::option::of(0u32..10), prop::collection::vec(0u32..10, 0..3), prop::option::of(0u32..10));
    let window = prop::option::of(1usize..100);
    (architecture, sizes, eps_and_theta, scaling, flags, activation, dtype, tokens, window, any::<u64>()).prop_map(
        |(
            architecture,
            (layers, kv, group, half, ffn, vocab),
            (eps, theta),
            scaling,
            flags,
            activation,
            dtype,
            tokens,
            window,
            mask,
        )| {
            let [a, b, c, d, e, tied] = flags;
            let opt = architecture == Architecture::Opt;
            let heads = kv * group;
            let hidden = heads * half * 2;
            let post = opt && e;
            let windows = match architecture {
                Architecture::Mistral => vec![window; layers],
                Architecture::Qwen2 => (0..layers).map(|i| window.filter(|_| mask >> i & 1 == 1)).collect(),
                _ => vec![None; layers],
            };
            ModelConfig {
                architecture,
                layers,
                heads,
                kv_heads: if opt { heads } else { kv },
                head_dim: if opt || c { half * 2 } else { half * 4 },
                hidden,
                ffn,
                vocab,
                max_positions: ffn + 1,
                embed_dim: if opt && d { hidden / 2 } else { hidden },
                norm: if opt { NormKind::LayerNorm { affine: a } } else { NormKind::RmsNorm },
                norm_eps: if opt { 1e-5 } else { eps },
                norm_placement: if post { NormPlacement::Post } else { NormPlacement::Pre },
                final_norm: !opt || !post && c,
                activation,
                gated: !opt,
                positions: if opt {
                    Positions::Learned { offset: 2 }
                } else {
                    Positions::Rope(Rope { theta, scaling })
                },
                windows,
                bias: match architecture {
                    Architecture::Opt => Biases { qkv: b, out: b, ffn: b },
                    Architecture::Llama => Biases { qkv: a, out: a, ffn: b },
                    Architecture::Mistral => Biases { qkv: false, out: false, ffn: false },
                    Architecture::Qwen2 => Biases { qkv: true, out: false, ffn: false },
                },
                tied,
                dtype,
                bos: tokens.0,
                eos: tokens.1,
                pad: tokens.2,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_safetensors_header(&bytes);
        let _ = parse_safetensors_index(&bytes);
        let _ = ModelConfig::from_json(&bytes);
    }

    /// What this crate accepts, the reference accepts with the same tensors; what it refuses, the reference refuses too,
    /// except for repeated names.
    #[test]
    fn agrees_with_the_reference(bytes in file()) {
        match (parse_safetensors_header(&bytes), SafeTensors::read_metadata(&bytes)) {
            (Ok(ours), Ok((n, reference))) => {
                prop_assert_eq!(ours.len(), reference.tensors().len());
                for tensor in ours {
                    let info = reference.info(&tensor.name).unwrap();
                    prop_assert_eq!(tensor.dtype, info.dtype);
                    prop_assert_eq!(&tensor.shape, &info.shape);
                    prop_assert_eq!(tensor.range.start, 8 + n + info.data_offsets.0);
                    prop_assert_eq!(tensor.range.end, 8 + n + info.data_offsets.1);
                }
            }
            (Err(_), Err(_)) => {}
            (Err(error), Ok(_)) => {
                let repeated = matches!(error, shadowllm_weights::Error::RepeatedTensor { .. });
                prop_assert!(repeated, "refused what the reference accepts: {}", error);
            }
            // The reference reads `__metadata__` as strings; here it is skipped.
            (Ok(_), Err(error)) => {
                let metadata = bytes.windows(12).any(|w| w == b"__metadata__");
                prop_assert!(metadata, "accepted what the reference refuses: {}", error);
            }
        }
    }

    #[test]
    fn reads_what_the_reference_writes(tensors in tensors()) {
        let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"model_type":"opt"}"#).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let (known, unknown): (Vec<_>, Vec<_>) =
            tensors.iter().partition(|(_, t)| matches!(t.0, Dtype::F32 | Dtype::F16 | Dtype::BF16));
        prop_assert!(checkpoint.names().eq(known.iter().map(|(name, _)| name.as_str())));
        prop_assert!(checkpoint.unsupported().map(|(name, _)| name).eq(unknown.iter().map(|(name, _)| name.as_str())));
        for (name, (dtype, shape, bytes)) in known {
            let tensor = checkpoint.tensor_with_shape(name, shape).unwrap();
            prop_assert_eq!(tensor.bytes(), &bytes[..]);
            prop_assert_eq!(tensor.dtype().name(), dtype.to_string().to_lowercase());
        }
    }

    /// A valid file with one byte changed or cut somewhere is read or refused, and tensors stay inside the file.
    #[test]
    fn damaged_files(tensors in tensors(), at in any::<prop::sample::Index>(), change in any::<u8>(), cut in any::<bool>()) {
        let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let mut bytes = safetensors::serialize(views, None).unwrap();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
            prop_assert!(parse_safetensors_header(&bytes).is_err());
        } else {
            bytes[at] = change;
            for tensor in parse_safetensors_header(&bytes).into_iter().flatten() {
                prop_assert!(bytes.get(tensor.range).is_some());
            }
        }
    }

    #[test]
    fn configurations_survive_writing(config in config()) {
        let json = config.to_json();
        prop_assert_eq!(ModelConfig::from_json(&json).unwrap(), config);
    }

    /// One key of a valid configuration replaced by something else.
    #[test]
    fn damaged_configurations(config in config(), at in any::<prop::sample::Index>(), n in any::<i64>(), kind in 0..5) {
        let mut json: serde_json::Value = serde_json::from_slice(&config.to_json()).unwrap();
        let keys: Vec<String> = json.as_object().unwrap().keys().cloned().collect();
        let key = &keys[at.index(keys.len())];
        json[key] = match kind {
            0 => serde_json::Value::Null,
            1 => n.into(),
            2 => (n as f64 / 7.0).into(),
            3 => "x".into(),
            _ => serde_json::json!([n]),
        };
        if let Ok(config) = ModelConfig::from_json(json.to_string().as_bytes()) {
            prop_assert_eq!(config.windows.len(), config.layers);
            prop_assert_eq!(config.heads % config.kv_heads, 0);
            prop_assert!(config.eos.iter().all(|&id| (id as usize) < config.vocab));
        }
    }
}
