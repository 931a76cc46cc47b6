//! Tokenizers published as `vocab.json` and `merges.txt`, without a `tokenizer.json`.
//!
//! The OPT models are published this way. Both files together are GPT-2's byte-level BPE: `vocab.json` maps tokens to ids,
//! `merges.txt` lists the pairs to merge, best first. What transformers adds when it loads them (byte-level splitting,
//! special tokens, the beginning-of-sequence token) is added here in the form of a `tokenizer.json`, which then takes the
//! same way as any other.

use serde_json::{Map, Value, json};

use super::{GenerateError, TokenizerConfig, shorten};

const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";

/// The content of a `tokenizer.json` that means the same as the two files.
///
/// # Errors
/// [`GenerateError::Json`] and [`GenerateError::Tokenizer`] for files that are not what they should be, or belong to a
/// class of tokenizer that these two files do not describe completely.
pub(super) fn tokenizer_json(vocab: &[u8], merges: &[u8], config: &TokenizerConfig) -> Result<Value, GenerateError> {
    if let Some(class) = &config.tokenizer_class
        && !matches!(class.as_str(), "GPT2Tokenizer" | "GPT2TokenizerFast")
    {
        return Err(GenerateError::Tokenizer {
            file: VOCAB,
            reason: format!(
                "the tokenizer is a {class}, which vocab.json and merges.txt do not describe completely; tokenizer.json is \
                 needed: save it with transformers, AutoTokenizer.from_pretrained(..).save_pretrained(..)"
            ),
        });
    }
    let vocab: Map<String, Value> = serde_json::from_slice(vocab)
        .map_err(|error| GenerateError::Json { file: VOCAB, reason: error.to_string() })?;
    let merges = parse_merges(merges)?;

    let id_of = |token: &str| vocab.get(token).and_then(Value::as_u64);
    let mut special: Vec<(u64, &str)> =
        config.special_tokens().filter_map(|(_, token)| Some((id_of(token)?, token))).collect();
    special.sort_unstable();
    special.dedup();
    let added_tokens: Vec<Value> = special
        .iter()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();

    let mut template = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
    let mut template_tokens = Map::new();
    let mut place = |wanted: Option<bool>, role: &'static str, token: &Option<String>, at: usize| {
        let (Some(true), Some(token)) = (wanted, token) else {
            return Ok(());
        };
        let id = id_of(token).ok_or_else(|| GenerateError::Tokenizer {
            file: VOCAB,
            reason: format!("tokenizer_config.json names {token:?} as {role}, but vocab.json has no such token"),
        })?;
        template.insert(at, json!({"SpecialToken": {"id": token, "type_id": 0}}));
        template_tokens.insert(token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}));
        Ok(())
    };
    place(config.add_eos_token, "eos_token", &config.eos_token, 1)?;
    place(config.add_bos_token, "bos_token", &config.bos_token, 0)?;

    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": config.add_prefix_space.unwrap_or(false),
                            "trim_offsets": true, "use_regex": true});
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {"type": "TemplateProcessing", "single": template,
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": template_tokens},
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": merges},
    }))
}

/// One `left right` pair a line; the first line may be `#version: ..`.
fn parse_merges(merges: &[u8]) -> Result<Vec<[&str; 2]>, GenerateError> {
    let broken = |reason: String| GenerateError::Tokenizer { file: MERGES, reason };
    let text = std::str::from_utf8(merges).map_err(|error| broken(format!("it is not UTF-8: {error}")))?;
    (1..)
        .zip(text.lines())
        .filter(|(number, line)| !(line.is_empty() || *number == 1 && line.starts_with("#version")))
        .map(|(number, line)| {
            line.split_once(' ')
                .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '))
                .map(|(left, right)| [left, right])
                .ok_or_else(|| {
                    let line = shorten(line);
                    broken(format!("line {number} is {line:?}, expected two tokens with a space between"))
                })
        })
        .collect()
}
