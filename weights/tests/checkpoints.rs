//! Real directories: the embedded model and every parity fixture open, with the configuration and tensors they should have.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use shadowllm_weights::{
    Activation, Architecture, Checkpoint, DType, ModelConfig, NormKind, NormPlacement, Positions, Rope, RopeScaling,
};

fn tiny_opt() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("embedded/tiny-opt")
}

/// Checkpoints among the entries of a folder.
fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|path| path.join("config.json").exists()).collect();
    found.sort();
    found
}

#[test]
fn tiny_opt_directory() {
    let checkpoint = Checkpoint::open(&tiny_opt()).unwrap();
    let config = checkpoint.config();
    assert_eq!(config.architecture, Architecture::Opt);
    assert_eq!((config.layers, config.heads, config.head_dim, config.hidden), (8, 8, 32, 256));
    assert_eq!((config.ffn, config.vocab, config.max_positions), (1024, 4096, 512));
    assert_eq!(config.dtype, Some(DType::BF16));
    assert_eq!((config.bos, config.eos.as_slice(), config.pad), (Some(2), &[2][..], Some(1)));
    let size = std::fs::metadata(tiny_opt().join("model.safetensors")).unwrap().len();
    assert_eq!(checkpoint.mapped_bytes(), size);
    assert_eq!(checkpoint.location(), tiny_opt().display().to_string());
    assert!(checkpoint.side_file("tokenizer.json").unwrap().is_some());
    assert!(checkpoint.side_file("chat_template.jinja").unwrap().is_none());
    let names: Vec<&str> = checkpoint.names().collect();
    assert!(names.is_sorted());
    let bytes: usize = names.iter().map(|name| checkpoint.get(name).unwrap().bytes().len()).sum();
    assert!(size - (bytes as u64) < 100_000, "{bytes} of {size} bytes are tensors");
}

#[test]
#[cfg(feature = "embedded-model")]
fn embedded_is_the_directory() {
    let directory = Checkpoint::open(&tiny_opt()).unwrap();
    let embedded = Checkpoint::embedded().unwrap();
    assert_eq!(embedded.location(), "embedded:tiny-opt");
    assert_eq!(embedded.config(), directory.config());
    assert!(embedded.names().eq(directory.names()));
    assert_eq!(embedded.mapped_bytes(), directory.mapped_bytes());
    for name in directory.names() {
        assert_eq!(embedded.tensor(name).unwrap().bytes(), directory.tensor(name).unwrap().bytes(), "{name}");
    }
    for name in ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"] {
        assert_eq!(embedded.side_file(name).unwrap(), directory.side_file(name).unwrap(), "{name}");
    }
}

#[test]
#[cfg(not(feature = "embedded-model"))]
fn no_embedded_model() {
    assert_eq!(
        Checkpoint::embedded().unwrap_err().to_string(),
        "this build has no embedded model; rebuild with the feature `embedded-model`, or name a model directory"
    );
}

/// Names and shapes of all tensors that a model of this configuration has.
fn expected_tensors(config: &ModelConfig, prefix: &str) -> BTreeMap<String, Vec<usize>> {
    let mut all = BTreeMap::new();
    let mut put = |name: String, shape: &[usize]| {
        all.insert(name, shape.to_vec());
    };
    let (d, q, kv) = (config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let opt = config.architecture == Architecture::Opt;
    let attention =
        [("q_proj", q, d, config.bias.qkv), ("k_proj", kv, d, config.bias.qkv), ("v_proj", kv, d, config.bias.qkv)];
    let out = (if opt { "out_proj" } else { "o_proj" }, d, q, config.bias.out);
    let ffn: &[(&str, usize, usize)] = if config.gated {
        &[("mlp.gate_proj", config.ffn, d), ("mlp.up_proj", config.ffn, d), ("mlp.down_proj", d, config.ffn)]
    } else {
        &[("fc1", config.ffn, d), ("fc2", d, config.ffn)]
    };
    let norms = if opt {
        ["self_attn_layer_norm", "final_layer_norm"]
    } else {
        ["input_layernorm", "post_attention_layernorm"]
    };
    let (norm_weight, norm_bias) = match config.norm {
        NormKind::LayerNorm { affine } => (affine, affine),
        NormKind::RmsNorm => (true, false),
    };
    let norm = |put: &mut dyn FnMut(String, &[usize]), name: String| {
        if norm_weight {
            put(format!("{name}.weight"), &[d]);
        }
        if norm_bias {
            put(format!("{name}.bias"), &[d]);
        }
    };
    for layer in 0..config.layers {
        let at = format!("{prefix}layers.{layer}.");
        for (name, rows, columns, bias) in attention.into_iter().chain([out]) {
            put(format!("{at}self_attn.{name}.weight"), &[rows, columns]);
            if bias {
                put(format!("{at}self_attn.{name}.bias"), &[rows]);
            }
        }
        for &(name, rows, columns) in ffn {
            put(format!("{at}{name}.weight"), &[rows, columns]);
            if config.bias.ffn {
                put(format!("{at}{name}.bias"), &[rows]);
            }
        }
        for name in norms {
            norm(&mut put, format!("{at}{name}"));
        }
    }
    put(format!("{prefix}embed_tokens.weight"), &[config.vocab, config.embed_dim]);
    if let Positions::Learned { offset } = config.positions {
        put(format!("{prefix}embed_positions.weight"), &[config.max_positions + offset, d]);
    }
    if config.embed_dim != d {
        put(format!("{prefix}project_in.weight"), &[d, config.embed_dim]);
        put(format!("{prefix}project_out.weight"), &[config.embed_dim, d]);
    }
    if config.final_norm {
        norm(&mut put, format!("{prefix}{}", if opt { "final_layer_norm" } else { "norm" }));
    }
    if !config.tied {
        put("lm_head.weight".to_owned(), &[config.vocab, config.embed_dim]);
    }
    all
}

/// What a configuration says that no tensor's shape shows.
fn check_computation(name: &str, config: &ModelConfig) {
    let rope = |theta: f32, scaling| Positions::Rope(Rope { theta, scaling });
    let linear = RopeScaling::Linear { factor: 4.0 };
    let llama3 =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 32 };
    let positions = match name {
        _ if name.starts_with("opt") => Positions::Learned { offset: 2 },
        "llama-gqa-tied" => rope(100_000.0, RopeScaling::None),
        "qwen2-tied" => rope(1_000_000.0, RopeScaling::None),
        "llama-rope-linear" | "llama-rope-linear-type" => rope(10_000.0, linear),
        "llama3-rope" => rope(500_000.0, llama3),
        "llama3-rope-type" => rope(10_000.0, llama3),
        _ => rope(10_000.0, RopeScaling::None),
    };
    assert_eq!(config.positions, positions, "{name}");
    let windows: &[Option<usize>] = match name {
        "mistral-swa8" => &[Some(8), Some(8), Some(8)],
        "qwen2-swa" => &[None, None, Some(5)],
        "qwen2-layer-types" => &[Some(5), None, Some(5)],
        _ => &[None; 3],
    };
    assert_eq!(config.windows, windows[..config.layers], "{name}");
    let activation = match name {
        "llama-relu" => Activation::Relu,
        "llama-gelu-tanh" | "opt-gelu-new" => Activation::GeluTanh,
        "opt-nobias-gelu" => Activation::Gelu,
        _ if name.starts_with("opt") => Activation::Relu,
        _ => Activation::Silu,
    };
    assert_eq!(config.activation, activation, "{name}");
    let placement = if name == "opt-350m-post" { NormPlacement::Post } else { NormPlacement::Pre };
    let eps = match name {
        "llama-gelu-tanh" | "llama-rope-linear-type" | "llama3-rope-type" | "qwen2-layer-types" | "qwen2-swa" => 0.03,
        _ => 1e-5,
    };
    assert_eq!((config.norm_placement, config.norm_eps), (placement, eps), "{name}");
    assert_eq!((config.bos, config.eos.as_slice(), config.pad), (Some(2), &[3][..], Some(1)), "{name}");
}

fn check_fixture(dir: &Path) {
    let name = dir.file_name().unwrap().to_str().unwrap();
    let checkpoint = Checkpoint::open(dir).unwrap();
    let config = checkpoint.config();
    let family = match name.split('-').next().unwrap() {
        "opt" => Architecture::Opt,
        "mistral" => Architecture::Mistral,
        "qwen2" => Architecture::Qwen2,
        _ => Architecture::Llama,
    };
    assert_eq!(config.architecture, family, "{name}");
    check_computation(name, config);
    let prefix = match name {
        "opt-pre-noprefix" => "decoder.",
        _ if family == Architecture::Opt => "model.decoder.",
        _ => "model.",
    };
    let dtype = match name.rsplit('-').next().unwrap() {
        "bf16" => DType::BF16,
        "f16" => DType::F16,
        _ => DType::F32,
    };
    assert_eq!(config.dtype, Some(dtype), "{name}");
    let mut found = BTreeMap::new();
    for tensor_name in checkpoint.names() {
        let tensor = checkpoint.tensor(tensor_name).unwrap();
        assert_eq!(tensor.dtype(), dtype, "{name} {tensor_name}");
        assert!(tensor.to_f32().iter().all(|v| v.is_finite()), "{name} {tensor_name}");
        found.insert(tensor_name.to_owned(), tensor.shape().to_vec());
    }
    assert_eq!(found, expected_tensors(config, prefix), "{name}");
}

#[test]
fn parity_fixtures() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/parity");
    let found = checkpoints(&folder);
    assert!(found.len() >= 22, "only {} fixtures in {}", found.len(), folder.display());
    found.iter().for_each(|dir| check_fixture(dir));
}

#[test]
fn shared_parity_fixtures() {
    let shared = std::env::var_os("SHADOWLLM_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let found = checkpoints(&shared.join("fixtures/parity"));
    if found.is_empty() {
        println!("skipped: ../shared is not there");
    }
    found.iter().for_each(|dir| check_fixture(dir));
}

/// A file as large as OPT-1.3B opens at once: only its header is read. The file has no data on disk, only a length.
#[test]
fn large_files_open_at_once() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{"model_type":"opt"}"#).unwrap();
    let path = dir.path().join("model.safetensors");
    let (tensors, size) = (388, 6_800_000u64);
    let entries: Vec<String> = (0..tensors)
        .map(|i| {
            format!(
                r#""t{i}":{{"dtype":"BF16","shape":[{}],"data_offsets":[{},{}]}}"#,
                size / 2,
                i * size,
                (i + 1) * size
            )
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    let total = 8 + header.len() as u64 + tensors * size;
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(total).unwrap();

    let start = std::time::Instant::now();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let elapsed = start.elapsed();
    assert_eq!((checkpoint.mapped_bytes(), checkpoint.names().count()), (total, 388));
    assert!(elapsed.as_millis() < 250, "{elapsed:?} for {total} bytes");
    println!("{total} bytes in {elapsed:?}");
}
