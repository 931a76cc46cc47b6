//! GGUF vocabulary to `tokenizer.json` and `tokenizer_config.json`.
//!
//! GGUF stores the tokens and merge rules, and of the splitting of text into words only a name, `tokenizer.ggml.pre`. The
//! rules behind each name are written out here, in the form in which the `tokenizers` library reads them, so that the engine
//! needs one kind of tokenizer only. An unknown name is refused: a tokenizer that splits differently gives other ids, and
//! the model's answers get worse without any error.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::config::SpecialIds;
use super::problem::{GgufProblem, GgufResult};
use super::reader::Gguf;
use super::sentencepiece;

/// Splitting of text in Qwen2: contractions, words, single digits, punctuation, white space.
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Splitting of text in Llama 3: as Qwen2, but up to three digits together.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Kind of a token, `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenKind {
    fn from_number(number: i32) -> Option<Self> {
        Some(match number {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => return None,
        })
    }
}

/// The tokens and their ids.
pub(crate) struct Vocabulary<'g> {
    /// By id.
    pub(crate) tokens: &'g [&'g str],
    /// By id.
    pub(crate) kinds: Vec<TokenKind>,
    /// Id of each token.
    pub(crate) ids: HashMap<&'g str, usize>,
}

impl<'g> Vocabulary<'g> {
    /// Reads tokens and types.
    ///
    /// # Errors
    /// Missing keys, lists of different length, two ids for one token, unknown types.
    pub(crate) fn read(gguf: &'g Gguf) -> GgufResult<Self> {
        const TYPES: &str = "tokenizer.ggml.token_type";
        let tokens = gguf.strings("tokenizer.ggml.tokens")?;
        let numbers = gguf.i32s(TYPES)?;
        if numbers.len() != tokens.len() {
            return Err(GgufProblem::TokenList { key: TYPES, found: numbers.len(), expected: tokens.len() });
        }
        let kind = |(id, &number): (usize, &i32)| {
            TokenKind::from_number(number).ok_or_else(|| GgufProblem::KeyValue {
                key: TYPES.to_owned(),
                found: format!("{number} for token {id}"),
                expected: "1 to 6".to_owned(),
            })
        };
        let kinds = numbers.iter().enumerate().map(kind).collect::<GgufResult<Vec<_>>>()?;
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, &token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token, id) {
                return Err(GgufProblem::DuplicateToken { token: token.to_owned(), first, second: id });
            }
        }
        Ok(Vocabulary { tokens, kinds, ids })
    }

    /// Token to id, in the order of ids.
    fn to_json(&self) -> Value {
        Value::Object(self.tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect())
    }

    /// Entries of `added_tokens` for those that are matched in the text before anything else.
    fn added_tokens(&self, special: &[TokenKind], plain: &[TokenKind]) -> Vec<Value> {
        let entries = self.tokens.iter().zip(&self.kinds).enumerate();
        entries
            .filter(|(_, (_, kind))| special.contains(kind) || plain.contains(kind))
            .map(|(id, (token, kind))| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special.contains(kind),
                })
            })
            .collect()
    }
}

/// The two files.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TokenizerFiles {
    /// `tokenizer.json`.
    pub(crate) tokenizer: Value,
    /// `tokenizer_config.json`.
    pub(crate) config: Value,
    /// Number of tokens.
    pub(crate) tokens: usize,
}

/// Makes the files; `None` if the GGUF file has no tokenizer. `context` is the model's longest context, `vocab` its `V`.
///
/// # Errors
/// Missing keys, wrong types, merge rules that do not fit the vocabulary, kinds of tokenizer that are not known.
pub(crate) fn tokenizer(
    gguf: &Gguf,
    special: &SpecialIds,
    context: usize,
    vocab: usize,
) -> GgufResult<Option<TokenizerFiles>> {
    const MODEL: &str = "tokenizer.ggml.model";
    let parts = match gguf.opt_str(MODEL)? {
        None | Some("no_vocab" | "none") => return Ok(None),
        Some("gpt2") => byte_level(gguf)?,
        Some("llama") => sentence_piece(gguf, special)?,
        Some(other) => {
            return Err(GgufProblem::KeyValue {
                key: MODEL.to_owned(),
                found: format!("{other:?}"),
                expected: "\"gpt2\" (byte-level BPE) or \"llama\" (SentencePiece BPE)".to_owned(),
            });
        }
    };
    let tokens = gguf.strings("tokenizer.ggml.tokens")?;
    if tokens.len() > vocab {
        return Err(GgufProblem::TokensWithoutRow { tokens: tokens.len(), rows: vocab });
    }
    for (key, id) in special.keys() {
        if let Some(id) = id.filter(|&id| id >= tokens.len() as u64) {
            return Err(GgufProblem::TokenId { key, id, tokens: tokens.len() });
        }
    }
    let text = |id: u64| tokens[id as usize];
    let add_bos = gguf.opt_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(parts.bos_by_default);
    let add_eos = gguf.opt_bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let bos = special.bos.filter(|_| add_bos).map(|id| (id, text(id)));
    let eos = special.eos.filter(|_| add_eos).map(|id| (id, text(id)));

    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": parts.added_tokens,
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": post_processor(bos, eos),
        "decoder": parts.decoder,
        "model": parts.model,
    });

    let mut config = Map::new();
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    config.insert("model_max_length".to_owned(), json!(context));
    config.insert("add_bos_token".to_owned(), json!(add_bos));
    if add_eos {
        config.insert("add_eos_token".to_owned(), json!(true));
    }
    let names = ["bos_token", "eos_token", "pad_token", "unk_token"];
    for (name, (_, id)) in names.into_iter().zip(special.keys()) {
        if let Some(id) = id {
            config.insert(name.to_owned(), json!(text(id)));
        }
    }
    if let Some(template) = gguf.opt_str("tokenizer.chat_template")? {
        config.insert("chat_template".to_owned(), json!(template));
    }
    Ok(Some(TokenizerFiles { tokenizer, config: Value::Object(config), tokens: tokens.len() }))
}

/// What differs between the kinds of tokenizer.
struct Parts {
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    /// Whether a text begins with the bos token where the file does not say.
    bos_by_default: bool,
}

fn byte_level(gguf: &Gguf) -> GgufResult<Parts> {
    const PRE: &str = "tokenizer.ggml.pre";
    let vocabulary = Vocabulary::read(gguf)?;
    let merges = merges(gguf, &vocabulary)?;
    let prefix_space = gguf.opt_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true, "use_regex": use_regex });
    let split = |regex: &str| {
        json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false },
            bytes(false),
        ]})
    };
    let pre = gguf.str(PRE)?;
    let llama3 = matches!(pre, "llama-bpe" | "llama3" | "llama-v3");
    let (normalizer, pre_tokenizer) = match pre {
        "smollm" => (
            Value::Null,
            json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Digits", "individual_digits": true },
                bytes(true),
            ]}),
        ),
        "gpt-2" | "default" => (Value::Null, bytes(true)),
        "qwen2" => (json!({ "type": "NFC" }), split(QWEN2_SPLIT)),
        _ if llama3 => (Value::Null, split(LLAMA3_SPLIT)),
        other => {
            return Err(GgufProblem::KeyValue {
                key: PRE.to_owned(),
                found: format!("{other:?}"),
                expected: "one of default, gpt-2, llama-bpe, qwen2, smollm".to_owned(),
            });
        }
    };
    Ok(Parts {
        added_tokens: vocabulary.added_tokens(&[TokenKind::Control], &[TokenKind::UserDefined]),
        normalizer,
        pre_tokenizer,
        decoder: json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
        // Llama 3 takes a word that is a token as it is, even where the merge rules do not lead to it.
        model: bpe_model(&vocabulary, &merges, &Bpe { ignore_merges: llama3, ..Bpe::default() }),
        bos_by_default: llama3,
    })
}

/// Merge rules `"left right"` as pairs, checked against the vocabulary.
fn merges<'g>(gguf: &'g Gguf, vocabulary: &Vocabulary) -> GgufResult<Vec<(&'g str, &'g str)>> {
    let mut merged = String::new();
    let rules = gguf.strings("tokenizer.ggml.merges")?;
    let check = |(index, &rule): (usize, &&'g str)| {
        let pair = rule.split_once(' ').filter(|(l, r)| !l.is_empty() && !r.is_empty() && !r.contains(' '));
        let Some((left, right)) = pair else {
            return Err(GgufProblem::Merge { index, found: rule.to_owned() });
        };
        merged.clear();
        merged.push_str(left);
        merged.push_str(right);
        for token in [left, right, merged.as_str()] {
            if !vocabulary.ids.contains_key(token) {
                let (rule, token) = (rule.to_owned(), token.to_owned());
                return Err(GgufProblem::MergeToken { index, rule, token });
            }
        }
        Ok((left, right))
    };
    rules.iter().enumerate().map(check).collect()
}

/// SentencePiece in the form Hugging Face gives it: spaces become `▁`, one is put in front, unknown characters become bytes.
fn sentence_piece(gguf: &Gguf, special: &SpecialIds) -> GgufResult<Parts> {
    let vocabulary = Vocabulary::read(gguf)?;
    let merges = sentencepiece::merges(gguf, &vocabulary)?;
    let prefix_space = gguf.opt_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix_space {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let by_id = special.unknown.and_then(|id| vocabulary.tokens.get(id as usize));
    let by_kind = || vocabulary.kinds.iter().position(|&k| k == TokenKind::Unknown).map(|id| &vocabulary.tokens[id]);
    let bpe = Bpe {
        unknown: by_id.or_else(by_kind).copied(),
        fuse_unknown: true,
        byte_fallback: vocabulary.kinds.contains(&TokenKind::Byte),
        ignore_merges: false,
    };
    Ok(Parts {
        added_tokens: vocabulary.added_tokens(&[TokenKind::Unknown, TokenKind::Control], &[TokenKind::UserDefined]),
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer: Value::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model: bpe_model(&vocabulary, &merges, &bpe),
        bos_by_default: true,
    })
}

/// Settings of the BPE model.
#[derive(Default)]
struct Bpe<'a> {
    unknown: Option<&'a str>,
    fuse_unknown: bool,
    byte_fallback: bool,
    ignore_merges: bool,
}

fn bpe_model(vocabulary: &Vocabulary, merges: &[(&str, &str)], bpe: &Bpe) -> Value {
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": bpe.unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": bpe.fuse_unknown,
        "byte_fallback": bpe.byte_fallback,
        "ignore_merges": bpe.ignore_merges,
        "vocab": vocabulary.to_json(),
        "merges": merges,
    })
}

/// Tokens put around a text (and around both texts of a pair); `null` if there are none.
fn post_processor(bos: Option<(u64, &str)>, eos: Option<(u64, &str)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let side = |sequence: &str, type_id: u8| {
        let special = |token: Option<(u64, &str)>| {
            token.map(|(_, text)| json!({ "SpecialToken": { "id": text, "type_id": type_id } }))
        };
        let text = json!({ "Sequence": { "id": sequence, "type_id": type_id } });
        special(bos).into_iter().chain([text]).chain(special(eos)).collect::<Vec<_>>()
    };
    let used = bos.into_iter().chain(eos);
    let tokens: Map<String, Value> =
        used.map(|(id, text)| (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }))).collect();
    let pair = [side("A", 0), side("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": side("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    })
}
