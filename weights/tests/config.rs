//! `config.json` of every family, in both styles, with missing keys and with mistakes.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use shadowllm_weights::{
    Activation, Architecture, Biases, DType, ModelConfig, NormKind, NormPlacement, Positions, Rope, RopeScaling,
};

fn read(value: &Value) -> Result<ModelConfig, String> {
    ModelConfig::from_json(value.to_string().as_bytes()).map_err(|e| e.to_string())
}

/// `base` with some keys replaced.
fn with(base: &Value, changes: Value) -> Value {
    let mut value = base.clone();
    for (key, change) in changes.as_object().unwrap() {
        value[key] = change.clone();
    }
    value
}

/// A small model that is valid in every Llama-like family.
fn small(model_type: &str) -> Value {
    json!({"model_type": model_type, "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 4, "intermediate_size": 112, "vocab_size": 131, "max_position_embeddings": 128})
}

#[test]
fn defaults_are_those_of_transformers() {
    let config = read(&json!({"model_type": "opt"})).unwrap();
    let expected = ModelConfig {
        architecture: Architecture::Opt,
        layers: 12,
        heads: 12,
        kv_heads: 12,
        head_dim: 64,
        hidden: 768,
        ffn: 3072,
        vocab: 50272,
        max_positions: 2048,
        embed_dim: 768,
        norm: NormKind::LayerNorm { affine: true },
        norm_eps: 1e-5,
        norm_placement: NormPlacement::Pre,
        final_norm: true,
        activation: Activation::Relu,
        gated: false,
        positions: Positions::Learned { offset: 2 },
        windows: vec![None; 12],
        bias: Biases { qkv: true, out: true, ffn: true },
        tied: true,
        dtype: None,
        bos: Some(2),
        eos: vec![2],
        pad: Some(1),
    };
    assert_eq!(config, expected);

    let llama = ModelConfig {
        architecture: Architecture::Llama,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        head_dim: 128,
        hidden: 4096,
        ffn: 11008,
        vocab: 32000,
        max_positions: 2048,
        embed_dim: 4096,
        norm: NormKind::RmsNorm,
        norm_eps: 1e-6,
        norm_placement: NormPlacement::Pre,
        final_norm: true,
        activation: Activation::Silu,
        gated: true,
        positions: Positions::Rope(Rope { theta: 10_000.0, scaling: RopeScaling::None }),
        windows: vec![None; 32],
        bias: Biases { qkv: false, out: false, ffn: false },
        tied: false,
        dtype: None,
        bos: Some(1),
        eos: vec![2],
        pad: None,
    };
    assert_eq!(read(&json!({"model_type": "llama"})).unwrap(), llama);
    let mistral = ModelConfig {
        architecture: Architecture::Mistral,
        kv_heads: 8,
        ffn: 14336,
        max_positions: 131_072,
        windows: vec![Some(4096); 32],
        ..llama.clone()
    };
    assert_eq!(read(&json!({"model_type": "mistral"})).unwrap(), mistral);
    let qwen2 = ModelConfig {
        architecture: Architecture::Qwen2,
        ffn: 22016,
        vocab: 151_936,
        max_positions: 32768,
        bias: Biases { qkv: true, out: false, ffn: false },
        bos: None,
        eos: vec![],
        ..llama
    };
    assert_eq!(read(&json!({"model_type": "qwen2"})).unwrap(), qwen2);
}

#[test]
fn opt_350m_and_old_files() {
    let file = json!({"activation_dropout": 0.0, "activation_function": "relu", "architectures": ["OPTForCausalLM"],
        "bos_token_id": 2, "do_layer_norm_before": false, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 4096,
        "hidden_size": 1024, "max_position_embeddings": 2048, "model_type": "opt", "num_attention_heads": 16,
        "num_hidden_layers": 24, "pad_token_id": 1, "torch_dtype": "float16", "vocab_size": 50272,
        "word_embed_proj_dim": 512});
    let config = read(&file).unwrap();
    assert_eq!((config.hidden, config.embed_dim, config.head_dim), (1024, 512, 64));
    assert_eq!((config.norm_placement, config.final_norm), (NormPlacement::Post, false));
    assert_eq!(config.dtype, Some(DType::F16));

    let removed = read(&json!({"model_type": "opt", "_remove_final_layer_norm": true})).unwrap();
    assert_eq!((removed.norm_placement, removed.final_norm), (NormPlacement::Pre, false));
    let plain = json!({"model_type": "opt", "layer_norm_elementwise_affine": false, "enable_bias": false,
        "activation_function": "gelu", "eos_token_id": null, "bos_token_id": null});
    let plain = read(&plain).unwrap();
    assert_eq!(plain.norm, NormKind::LayerNorm { affine: false });
    assert_eq!((plain.bias, plain.activation), (Biases { qkv: false, out: false, ffn: false }, Activation::Gelu));
    assert_eq!((plain.bos, plain.eos), (None, vec![]));
}

#[test]
fn family_without_model_type() {
    for (class, expected) in [
        ("OPTForCausalLM", Architecture::Opt),
        ("OPTModel", Architecture::Opt),
        ("LlamaForCausalLM", Architecture::Llama),
        ("MistralForCausalLM", Architecture::Mistral),
        ("Qwen2ForCausalLM", Architecture::Qwen2),
    ] {
        assert_eq!(read(&json!({"architectures": [class]})).unwrap().architecture, expected);
    }
}

#[test]
fn heads_and_biases() {
    let llama = small("llama");
    let all = read(&with(&llama, json!({"attention_bias": true, "mlp_bias": true, "head_dim": 16}))).unwrap();
    assert_eq!((all.bias, all.head_dim), (Biases { qkv: true, out: true, ffn: true }, 16));
    let none = read(&with(&llama, json!({"num_key_value_heads": null, "head_dim": null}))).unwrap();
    assert_eq!((none.kv_heads, none.head_dim), (4, 12));
    for family in ["mistral", "qwen2"] {
        assert_eq!(read(&with(&small(family), json!({"num_key_value_heads": null}))).unwrap().kv_heads, 4);
    }
    let odd_division = read(&with(&llama, json!({"hidden_size": 50, "head_dim": 12}))).unwrap();
    assert_eq!((odd_division.hidden, odd_division.head_dim), (50, 12));
}

#[test]
fn rotary_positions() {
    let llama3 =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 32 };
    let parameters = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32});
    let without_original = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4});
    let mut with_theta = parameters.clone();
    with_theta["rope_theta"] = json!(500_000);
    for (changes, theta, scaling) in [
        (json!({}), 10_000.0, RopeScaling::None),
        (json!({"rope_theta": 1e6, "rope_scaling": null}), 1e6, RopeScaling::None),
        (json!({"rope_scaling": {"type": "linear", "factor": 2}}), 10_000.0, RopeScaling::Linear { factor: 2.0 }),
        (json!({"rope_theta": 5e5, "rope_scaling": parameters}), 5e5, llama3),
        (json!({"rope_parameters": with_theta}), 5e5, llama3),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": 8.0}),
            7.0,
            RopeScaling::None,
        ),
        (json!({"rope_scaling": without_original, "max_position_embeddings": 32}), 10_000.0, llama3),
        (json!({"rope_parameters": {"rope_theta": 9.0, "partial_rotary_factor": 1.0}}), 9.0, RopeScaling::None),
    ] {
        let config = read(&with(&small("llama"), changes.clone())).unwrap();
        assert_eq!(config.positions, Positions::Rope(Rope { theta, scaling }), "{changes}");
    }
}

#[test]
fn sliding_windows() {
    for (family, changes, expected) in [
        ("llama", json!({"sliding_window": 8}), [None; 4]),
        ("mistral", json!({}), [Some(4096); 4]),
        ("mistral", json!({"sliding_window": null}), [None; 4]),
        ("mistral", json!({"sliding_window": 8}), [Some(8); 4]),
        ("qwen2", json!({"sliding_window": 8}), [None; 4]),
        ("qwen2", json!({"sliding_window": 8, "use_sliding_window": true}), [None; 4]),
        (
            "qwen2",
            json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1}),
            [None, Some(8), Some(8), Some(8)],
        ),
        ("qwen2", json!({"use_sliding_window": true, "max_window_layers": 0}), [Some(4096); 4]),
        (
            "qwen2",
            json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 0, "layer_types":
                ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]}),
            [Some(8), None, None, Some(8)],
        ),
    ] {
        assert_eq!(read(&with(&small(family), changes.clone())).unwrap().windows, expected, "{family} {changes}");
    }
}

#[test]
fn tokens_types_and_activations() {
    let llama = small("llama");
    for (eos, expected) in
        [(json!(3), vec![3]), (json!([3, 5]), vec![3, 5]), (json!(null), vec![]), (json!(-1), vec![])]
    {
        assert_eq!(read(&with(&llama, json!({"eos_token_id": eos}))).unwrap().eos, expected);
    }
    for (pad, expected) in [(json!(3), Some(3)), (json!(-1), None), (json!(131), None), (json!(null), None)] {
        assert_eq!(read(&with(&llama, json!({"pad_token_id": pad}))).unwrap().pad, expected);
    }
    for (key, value, expected) in [
        ("torch_dtype", "bfloat16", Some(DType::BF16)),
        ("dtype", "float16", Some(DType::F16)),
        ("dtype", "float64", None),
    ] {
        assert_eq!(read(&with(&llama, json!({key: value}))).unwrap().dtype, expected);
    }
    for (name, expected) in [
        ("relu", Activation::Relu),
        ("gelu", Activation::Gelu),
        ("gelu_new", Activation::GeluTanh),
        ("gelu_fast", Activation::GeluTanh),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("silu", Activation::Silu),
        ("swish", Activation::Silu),
    ] {
        assert_eq!(read(&with(&llama, json!({"hidden_act": name}))).unwrap().activation, expected);
    }
}

#[test]
fn mistakes() {
    const ROPE: &str = "supported are default, linear and llama3";
    const MODELS: &str = "supported are opt, llama, mistral and qwen2";
    for (changes, expected) in [
        (json!({"model_type": "gpt2"}), format!("model type \"gpt2\" is not supported; {MODELS}")),
        (
            json!({"model_type": null}),
            format!("model type (config.json has neither model_type nor architectures) is not supported; {MODELS}"),
        ),
        (
            json!({"model_type": null, "architectures": ["GPT2LMHeadModel"]}),
            format!("model type \"GPT2LMHeadModel\" is not supported; {MODELS}"),
        ),
        (json!({"model_type": 3}), "model_type is 3; expected a string".to_owned()),
        (json!({"hidden_size": 0}), "hidden_size is 0; expected a whole number of at least 1".to_owned()),
        (json!({"hidden_size": -4}), "hidden_size is -4; expected a whole number of at least 1".to_owned()),
        (json!({"hidden_size": 4.5}), "hidden_size is 4.5; expected a whole number of at least 1".to_owned()),
        (json!({"num_hidden_layers": "3"}), "num_hidden_layers is \"3\"; expected a whole number of at least 1".to_owned()),
        (
            json!({"hidden_size": 50}),
            "num_attention_heads is 4; expected a divisor of hidden_size, which is 50, or head_dim".to_owned(),
        ),
        (
            json!({"num_key_value_heads": 3}),
            "impossible configuration: num_attention_heads is 4, which is no multiple of num_key_value_heads 3".to_owned(),
        ),
        (
            json!({"num_key_value_heads": 8}),
            "impossible configuration: num_attention_heads is 4, which is no multiple of num_key_value_heads 8".to_owned(),
        ),
        (
            json!({"head_dim": 11}),
            "impossible configuration: head_dim is 11, but rotary positions need an even one".to_owned(),
        ),
        (json!({"rms_norm_eps": 0}), "rms_norm_eps is 0; expected a finite number over 0".to_owned()),
        (json!({"rms_norm_eps": 1e300}), "rms_norm_eps is 1e+300; expected a finite number over 0".to_owned()),
        (
            json!({"num_hidden_layers": 1_000_000_000_000u64}),
            "impossible configuration: num_hidden_layers is 1000000000000; the most that is accepted is 16384".to_owned(),
        ),
        (
            json!({"vocab_size": 2_147_483_648u64}),
            "impossible configuration: vocab_size is 2147483648; the most that is accepted is 2147483647".to_owned(),
        ),
        (
            json!({"num_hidden_layers": 16384, "num_attention_heads": 65536, "num_key_value_heads": 65536, "head_dim": 65536,
                "max_position_embeddings": 2_147_483_648u64}),
            "impossible configuration: the key/value cache of [2, 16384, 65536, 65536, 2147483648] values is larger than any memory"
                .to_owned(),
        ),
        (json!({"eos_token_id": 131}), "impossible configuration: eos_token_id is 131, but vocab_size is 131".to_owned()),
        (json!({"bos_token_id": 500}), "impossible configuration: bos_token_id is 500, but vocab_size is 131".to_owned()),
        (json!({"eos_token_id": "</s>"}), "eos_token_id is \"</s>\"; expected a token id or a list of token ids".to_owned()),
        (json!({"eos_token_id": [2, 0.5]}), "eos_token_id is [2,0.5]; expected a token id or a list of token ids".to_owned()),
        (json!({"tie_word_embeddings": "yes"}), "tie_word_embeddings is \"yes\"; expected true or false".to_owned()),
        (
            json!({"hidden_act": "quick_gelu"}),
            "hidden_act \"quick_gelu\" is not supported; \
             supported are relu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, silu and swish"
                .to_owned(),
        ),
        (
            json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
            format!("rotary scaling \"dynamic\" is not supported; {ROPE}"),
        ),
        (
            json!({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}),
            format!("rotary scaling \"yarn\" is not supported; {ROPE}"),
        ),
        (
            json!({"rope_scaling": {"rope_type": "longrope"}}),
            format!("rotary scaling \"longrope\" is not supported; {ROPE}"),
        ),
        (
            json!({"rope_scaling": {"rope_type": "linear"}}),
            "rope_scaling.factor is missing; expected a finite number over 0".to_owned(),
        ),
        (json!({"rope_scaling": [1]}), "rope_scaling is [1]; expected an object".to_owned()),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}}),
            "rope_scaling.high_freq_factor is 4; expected a number over low_freq_factor, which is 4".to_owned(),
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "rope_parameters.full_attention (different rotary positions for kinds of layers) is not supported; \
             supported is one set of parameters for all layers"
                .to_owned(),
        ),
        (
            json!({"partial_rotary_factor": 0.5}),
            "partial_rotary_factor 0.5 is not supported; supported is 1: every dimension of a head is rotated".to_owned(),
        ),
        (
            json!({"rope_parameters": {"partial_rotary_factor": 0.25}}),
            "rope_parameters.partial_rotary_factor 0.25 is not supported; supported is 1: every dimension of a head is rotated"
                .to_owned(),
        ),
        (
            json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}),
            "quantization_config (gptq) is not supported; use the checkpoint in f32, f16 or bf16, or import a GGUF file of the model"
                .to_owned(),
        ),
        (
            json!({"model_type": "qwen2", "layer_types": ["full_attention"]}),
            "impossible configuration: layer_types has 1 entries, but num_hidden_layers is 4".to_owned(),
        ),
        (
            json!({"model_type": "qwen2", "layer_types": ["full_attention", "full_attention", "chunked_attention", "x"]}),
            "layer type \"chunked_attention\" is not supported; supported are full_attention and sliding_attention".to_owned(),
        ),
        (json!({"model_type": "mistral", "sliding_window": 0}), "sliding_window is 0; expected a whole number of at least 1".to_owned()),
        (
            json!({"model_type": "opt"}),
            // No mistake: OPT does not read the keys of the others.
            String::new(),
        ),
        (
            json!({"model_type": "opt", "num_attention_heads": 5}),
            "num_attention_heads is 5; expected a divisor of hidden_size, which is 48".to_owned(),
        ),
        (
            json!({"hidden_size": "x".repeat(200)}),
            format!("hidden_size is \"{}...; expected a whole number of at least 1", "x".repeat(79)),
        ),
    ] {
        let found = read(&with(&small("llama"), changes.clone())).err().unwrap_or_default();
        assert_eq!(found, expected, "{changes}");
    }
}

#[test]
fn no_json() {
    for (bytes, expected) in [
        (&b""[..], "not a valid configuration: EOF while parsing a value at line 1 column 0"),
        (b"[]", "not a valid configuration: invalid type: sequence, expected a map at line 1 column 0"),
        (b"{\"a\":", "not a valid configuration: EOF while parsing a value at line 1 column 5"),
        (b"{\"a\":NaN}", "not a valid configuration: expected value at line 1 column 6"),
    ] {
        assert_eq!(ModelConfig::from_json(bytes).unwrap_err().to_string(), expected);
    }
    let deep = [b"{\"a\":".as_slice(), &[b'['; 100_000]].concat();
    assert_eq!(
        ModelConfig::from_json(&deep).unwrap_err().to_string(),
        "not a valid configuration: recursion limit exceeded at line 1 column 132"
    );
}
