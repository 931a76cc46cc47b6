//! Real directories: the embedded model and every parity fixture open, with the configuration and tensors they should have.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};

use shadowllm_weights::{Architecture, Checkpoint, DType, NormPlacement, Positions, Rope, RopeScaling};

fn tiny_opt() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("embedded/tiny-opt")
}

/// Directories below the fixtures' folders that are checkpoints.
fn fixtures() -> Vec<PathBuf> {
    let shared = std::env::var_os("SHADOWLLM_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/parity");
    let mut found = Vec::new();
    for folder in [shared.join("fixtures/parity"), here] {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.join("config.json").exists() {
                found.push(path);
            }
        }
    }
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

#[test]
fn parity_fixtures() {
    let fixtures = fixtures();
    if fixtures.is_empty() {
        println!("skipped: ../shared is not there");
    }
    for dir in fixtures {
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let config = checkpoint.config();
        let family = match name.split('-').next().unwrap() {
            "opt" => Architecture::Opt,
            "mistral" => Architecture::Mistral,
            "qwen2" => Architecture::Qwen2,
            _ => Architecture::Llama,
        };
        assert_eq!(config.architecture, family, "{name}");
        assert_eq!((config.layers, config.heads, config.hidden, config.vocab), (3, 4, 48, 131), "{name}");
        assert_eq!((config.bos, config.eos.as_slice(), config.pad), (Some(2), &[3][..], Some(1)), "{name}");
        assert_eq!(config.head_dim, if name == "llama-mqa-headdim" { 16 } else { 12 }, "{name}");
        let kv_heads = match name.as_str() {
            "llama-mqa-headdim" => 1,
            n if n.contains("gqa") || family == Architecture::Mistral || family == Architecture::Qwen2 => 2,
            "llama-relu" | "llama3-rope" => 2,
            _ => 4,
        };
        assert_eq!(config.kv_heads, kv_heads, "{name}");
        let window = (name == "mistral-swa8").then_some(8);
        assert_eq!(config.windows, [window; 3], "{name}");
        let post = name == "opt-350m-post";
        assert_eq!(config.norm_placement == NormPlacement::Post, post, "{name}");
        assert_eq!(config.final_norm, !post, "{name}");
        let projected = post || name == "opt-proj-pre";
        assert_eq!(config.embed_dim, if projected { 24 } else { 48 }, "{name}");
        let rope = match name.as_str() {
            "llama-gqa-tied" => Rope { theta: 100_000.0, scaling: RopeScaling::None },
            "qwen2-tied" => Rope { theta: 1_000_000.0, scaling: RopeScaling::None },
            "llama-rope-linear" => Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } },
            "llama3-rope" => Rope {
                theta: 500_000.0,
                scaling: RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_positions: 32,
                },
            },
            _ => Rope { theta: 10_000.0, scaling: RopeScaling::None },
        };
        let positions =
            if family == Architecture::Opt { Positions::Learned { offset: 2 } } else { Positions::Rope(rope) };
        assert_eq!(config.positions, positions, "{name}");
        assert_eq!(
            config.tied,
            name.ends_with("tied") && !name.contains("untied")
                || family == Architecture::Opt && !name.contains("untied"),
            "{name}"
        );
        let dtype = match name.rsplit('-').next().unwrap() {
            "bf16" => DType::BF16,
            "f16" => DType::F16,
            _ => DType::F32,
        };
        assert_eq!(config.dtype, Some(dtype), "{name}");
        let table = match name.as_str() {
            "opt-pre-noprefix" => "decoder.embed_tokens.weight",
            n if n.starts_with("opt") => "model.decoder.embed_tokens.weight",
            _ => "model.embed_tokens.weight",
        };
        let table = checkpoint.tensor_with_shape(table, &[131, config.embed_dim]).unwrap();
        assert_eq!(table.dtype(), dtype, "{name}");
        assert!(table.to_f32().iter().all(|v| v.is_finite()), "{name}");
    }
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
