//! Tokenizers for the tests: that of the embedded model, and one arranged like Llama 2's.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::{GenerateError, Tokenizer, TokenizerConfig};

/// The tokenizer of the embedded model: OPT's, with 4096 tokens.
pub(super) fn embedded_json() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/embedded/tiny-opt/tokenizer.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub(super) fn from_value(json: &Value) -> Result<Tokenizer, GenerateError> {
    Tokenizer::from_json(json.to_string().as_bytes(), &TokenizerConfig::default())
}

pub(super) fn embedded() -> Tokenizer {
    from_value(&embedded_json()).unwrap()
}

/// Llama 2's arrangement: `▁` for spaces, one put before the text, bytes for what the vocabulary lacks.
pub(super) fn llama2_json() -> Value {
    let mut vocab = serde_json::Map::new();
    let pieces = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let letters = "▁ablo!".chars().map(String::from);
    let merged = ["▁a", "▁b", "lo", "▁▁"].map(str::to_owned);
    for (id, piece) in pieces.chain(bytes).chain(letters).chain(merged).enumerate() {
        vocab.insert(piece, json!(id));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                  "merges": [["▁", "a"], ["▁", "b"], ["l", "o"], ["▁", "▁"]]},
    })
}

pub(super) fn llama2() -> Tokenizer {
    from_value(&llama2_json()).unwrap()
}
