//! Text to token ids and back.
//!
//! Tokenization is a solved problem: this wraps the crate `tokenizers`, the implementation behind Hugging Face's, without
//! its C dependency (regular expressions by `fancy-regex`). What is added: loading from the layouts in which OPT and
//! Llama-family models are published, the check that tokenizer and model belong together, and decoding one token at a
//! time ([`TextStream`](super::TextStream)).
//!
//! Which special tokens are added follows transformers 5: with a `tokenizer.json` its own post-processor decides; with
//! `vocab.json` and `merges.txt`, `add_bos_token` and `add_eos_token` of `tokenizer_config.json` do. Truncation and padding
//! in the file are training settings and are ignored, as is `clean_up_tokenization_spaces`, which would make decoded text
//! differ from what the model wrote.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::AddedToken;

use super::detokenizer::{Detokenizer, Scheme};
use super::tokenizer_checks::{check_model, check_post_processor};
use super::vocab_merges::tokenizer_json;
use super::{GenerateError, TokenizerConfig};

const FILE: &str = "tokenizer.json";

/// A model's tokenizer. Cheap to clone; clones share the vocabulary.
///
/// ```
/// use shadowllm::generate::{Tokenizer, TokenizerConfig};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/embedded/tiny-opt/tokenizer.json");
/// let tokenizer = Tokenizer::from_json(&std::fs::read(path)?, &TokenizerConfig::default())?;
/// let ids = tokenizer.encode("Once upon a time", true)?;
/// assert_eq!(ids, [2, 50, 1266, 584, 262, 580]); // OPT puts </s>, id 2, first
/// assert_eq!(tokenizer.decode(&ids, true), "Once upon a time");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    tokenizer: Arc<tokenizers::Tokenizer>,
    scheme: Arc<Scheme>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("scheme", &self.scheme)
            .finish()
    }
}

impl Tokenizer {
    /// Loads whichever tokenizer files a model has. `side_file` returns the content of a file of the model's directory, or
    /// `None` if there is no such file; it is asked for `tokenizer.json` and `tokenizer_config.json`, then for `vocab.json`
    /// and `merges.txt`. `None`: the model has no tokenizer.
    ///
    /// # Errors
    /// Those of `side_file`, [`TokenizerConfig::from_json`] and the constructors below.
    pub fn load<E: From<GenerateError>>(
        side_file: impl Fn(&str) -> Result<Option<Vec<u8>>, E>,
    ) -> Result<Option<Self>, E> {
        let config = match side_file("tokenizer_config.json")? {
            Some(bytes) => TokenizerConfig::from_json(&bytes)?,
            None => TokenizerConfig::default(),
        };
        if let Some(json) = side_file(FILE)? {
            return Ok(Some(Self::from_json(&json, &config)?));
        }
        match (side_file("vocab.json")?, side_file("merges.txt")?) {
            (Some(vocab), Some(merges)) => Ok(Some(Self::from_vocab_and_merges(&vocab, &merges, &config)?)),
            _ => Ok(None),
        }
    }

    /// Loads the content of a `tokenizer.json`. Special tokens that `config` names are treated as such also if the file
    /// lists them as ordinary ones.
    ///
    /// # Errors
    /// [`GenerateError::Tokenizer`] when the file is malformed, [`GenerateError::UnsupportedDecoder`] when its tokens become
    /// text in a way of other model families.
    pub fn from_json(json: &[u8], config: &TokenizerConfig) -> Result<Self, GenerateError> {
        let broken = |reason: String| GenerateError::Tokenizer { file: FILE, reason };
        check_model(json)?;
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json).map_err(|error| broken(error.to_string()))?;
        tokenizer.with_truncation(None).map_err(|error| broken(error.to_string()))?;
        tokenizer.with_padding(None);
        let unmarked: Vec<AddedToken> = config
            .special_tokens()
            .map(|(_, token)| token)
            .filter(|token| {
                tokenizer.token_to_id(token).is_some() && !tokenizer.get_added_vocabulary().is_special_token(token)
            })
            .map(|token| AddedToken::from(token, true))
            .collect();
        if !unmarked.is_empty() {
            tokenizer.add_special_tokens(unmarked).map_err(|error| broken(error.to_string()))?;
        }
        let part = |value: Result<Value, serde_json::Error>| value.map_err(|error| broken(error.to_string()));
        check_post_processor(&part(serde_json::to_value(tokenizer.get_post_processor()))?)?;
        let decoder = part(serde_json::to_value(tokenizer.get_decoder()))?;
        Ok(Self { scheme: Arc::new(Scheme::from_json(&decoder)?), tokenizer: Arc::new(tokenizer) })
    }

    /// Loads GPT-2's two files, as the OPT models are published.
    ///
    /// # Errors
    /// [`GenerateError::Json`] and [`GenerateError::Tokenizer`] for malformed files, or when `config` names a class of
    /// tokenizer that needs a `tokenizer.json`.
    pub fn from_vocab_and_merges(vocab: &[u8], merges: &[u8], config: &TokenizerConfig) -> Result<Self, GenerateError> {
        let json: Value = tokenizer_json(vocab, merges, config)?;
        Self::from_json(json.to_string().as_bytes(), config).map_err(|error| match error {
            GenerateError::Tokenizer { reason, .. } => {
                GenerateError::Tokenizer { file: "vocab.json with merges.txt", reason }
            }
            other => other,
        })
    }

    /// Checks that the model, with a vocabulary of `vocab` entries, can be fed what this tokenizer produces. A tokenizer may
    /// know fewer tokens than the model. Added tokens beyond the model's vocabulary are let pass: some published models
    /// have a padding token there, which no prompt contains.
    ///
    /// # Errors
    /// [`GenerateError::WrongTokenizer`] when ordinary tokens have ids of `vocab` or more.
    pub fn check_vocabulary(&self, vocab: usize) -> Result<(), GenerateError> {
        let largest = self.tokenizer.get_vocab(false).into_iter().max_by_key(|(_, id)| *id);
        match largest {
            Some((token, id)) if id as usize >= vocab => Err(GenerateError::WrongTokenizer { id, token, vocab }),
            _ => Ok(()),
        }
    }

    /// Token ids of a text. `add_special` adds the tokens the model expects around a text (OPT: `</s>` first; Llama: `<s>`);
    /// a rendered chat template already has them. Special tokens written out in the text become these tokens.
    ///
    /// # Errors
    /// [`GenerateError::Encode`] when the vocabulary has no way to express the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, GenerateError> {
        self.tokenizer
            .encode_fast(text, add_special)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| GenerateError::Encode { reason: error.to_string() })
    }

    /// Text of a list of tokens, with or without special ones. Ids that no token has are skipped: a model's vocabulary is
    /// often padded. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut text = String::new();
        let mut detokenizer = self.detokenizer();
        for &id in ids {
            if let Some(token) = self.shown(id, skip_special) {
                detokenizer.push(&token, &mut text);
            }
        }
        detokenizer.finish(&mut text);
        text
    }

    /// Number of tokens, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Id of a token as it stands in the vocabulary, such as `</s>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The token as it stands in the vocabulary, such as `Ġtime`.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// The bytes a token stands for, such as ` time`: not always whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.piece(id).map(|token| self.scheme.token_bytes(&token))
    }

    /// Whether a token is a special one, which decoding may skip.
    pub fn is_special(&self, id: u32) -> bool {
        self.piece(id).is_some_and(|token| self.tokenizer.get_added_vocabulary().is_special_token(&token))
    }

    /// A text yet to be written.
    pub(super) fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(&self.scheme)
    }

    /// The token as it stands in the vocabulary, if it exists and is not skipped.
    pub(super) fn shown(&self, id: u32, skip_special: bool) -> Option<String> {
        self.piece(id).filter(|token| !(skip_special && self.tokenizer.get_added_vocabulary().is_special_token(token)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::test_tokenizers::{embedded, embedded_json, from_value, llama2, llama2_json};
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn opt_begins_with_its_special_token() {
        let tokenizer = embedded();
        assert_eq!(tokenizer.encode("Once upon a time", true).unwrap(), [2, 50, 1266, 584, 262, 580]);
        assert_eq!(tokenizer.encode("Once upon a time", false).unwrap(), [50, 1266, 584, 262, 580]);
        assert_eq!(tokenizer.encode("", true).unwrap(), [2]);
        assert_eq!(tokenizer.encode("a</s>b", false).unwrap(), [68, 2, 69]);
        assert_eq!(tokenizer.decode(&[68, 2, 69], true), "ab");
        assert_eq!(tokenizer.decode(&[68, 2, 69], false), "a</s>b");
        assert_eq!(tokenizer.decode(&[68, 9_999_999, 69], false), "ab");
    }

    #[test]
    fn tokens_can_be_looked_at() {
        let tokenizer = embedded();
        assert_eq!(tokenizer.vocab_size(), 4096);
        assert_eq!(tokenizer.token_id("</s>"), Some(2));
        assert_eq!(tokenizer.token_id("no such token"), None);
        assert_eq!(tokenizer.piece(580).as_deref(), Some("Ġtime"));
        assert_eq!(tokenizer.token_bytes(580).as_deref(), Some(" time".as_bytes()));
        assert_eq!(tokenizer.token_bytes(4096), None);
        assert!(tokenizer.is_special(2) && !tokenizer.is_special(580) && !tokenizer.is_special(4096));
        assert_eq!(llama2().token_bytes(3 + 0xE2), Some(vec![0xE2]));
    }

    #[test]
    fn llama2_keeps_spaces_and_falls_back_to_bytes() {
        let tokenizer = llama2();
        let texts = ["a b", " a  b", "alo!", "日本 🙂!", "", "\n", "  "];
        for text in texts {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(ids[0], 1, "{text:?}");
            assert_eq!(tokenizer.decode(&ids, true), text);
        }
        // Neither truncated to 4 tokens nor padded to 8, as the file would have it.
        assert_eq!(tokenizer.encode("a b a b a b", true).unwrap().len(), 7);
        assert_eq!(tokenizer.encode("a", true).unwrap().len(), 2);
    }

    /// Qwen2 and Llama 3: a Split by their own expression, then byte level without another; NFC.
    #[test]
    fn qwen2_splits_by_its_own_expression() {
        let mut json = embedded_json();
        let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        json["normalizer"] = json!({"type": "NFC"});
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]});
        json["post_processor"] =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
        let tokenizer = from_value(&json).unwrap();
        let digits = tokenizer.encode("1234", true).unwrap();
        assert_eq!(digits.len(), 4, "each digit by itself");
        for text in ["It's 1984,\n\n  isn't it?", "naïve 日本語 🙂\r\n", "   \t x"] {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text, true).unwrap(), true), text);
        }
        assert_eq!(tokenizer.encode("e\u{301}", true).unwrap(), tokenizer.encode("é", true).unwrap());
    }

    #[test]
    fn vocab_and_merges_give_the_same_ids_as_tokenizer_json() {
        let json = embedded_json();
        let vocab = json["model"]["vocab"].to_string();
        let merges: String = json["model"]["merges"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pair| format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
            .collect();
        let merges = format!("#version: 0.2\n{merges}");
        let config = br#"{"bos_token": {"content": "</s>"}, "eos_token": {"content": "</s>"}, "unk_token": "</s>",
                          "pad_token": "<pad>", "add_bos_token": true, "tokenizer_class": "GPT2Tokenizer"}"#;
        let load = |config: &[u8]| {
            Tokenizer::load(|name| {
                Ok::<_, GenerateError>(match name {
                    "vocab.json" => Some(vocab.as_bytes().to_vec()),
                    "merges.txt" => Some(merges.as_bytes().to_vec()),
                    "tokenizer_config.json" => Some(config.to_vec()),
                    _ => None,
                })
            })
            .map(Option::unwrap)
        };
        let (tokenizer, expected) = (load(config).unwrap(), embedded());
        for text in ["Once upon a time", "I'll see 3 ships.\n\n  日本 🙂", "a</s>b<pad>", " "] {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(ids, expected.encode(text, true).unwrap(), "{text:?}");
            assert_eq!(tokenizer.decode(&ids, true), expected.decode(&ids, true));
        }
        let plain = load(br#"{"bos_token": "</s>"}"#).unwrap();
        assert_eq!(plain.encode("a", true).unwrap(), [68]);
        let both =
            load(br#"{"bos_token": "</s>", "eos_token": "<pad>", "add_bos_token": true, "add_eos_token": true}"#);
        assert_eq!(both.unwrap().encode("a", true).unwrap(), [2, 68, 1]);

        assert_eq!(
            load(br#"{"bos_token": "<|begin|>", "add_bos_token": true}"#).unwrap_err().to_string(),
            "vocab.json is not a usable tokenizer: tokenizer_config.json names \"<|begin|>\" as bos_token, but vocab.json has \
             no such token"
        );
        assert_eq!(
            load(br#"{"tokenizer_class": "Qwen2Tokenizer"}"#).unwrap_err().to_string(),
            "vocab.json is not a usable tokenizer: the tokenizer is a Qwen2Tokenizer, which vocab.json and merges.txt do not \
             describe completely; tokenizer.json is needed: save it with transformers, \
             AutoTokenizer.from_pretrained(..).save_pretrained(..)"
        );
    }

    #[test]
    fn malformed_vocab_and_merges_are_errors() {
        let config = TokenizerConfig::default();
        let load = |vocab: &str, merges: &[u8]| {
            Tokenizer::from_vocab_and_merges(vocab.as_bytes(), merges, &config).unwrap_err().to_string()
        };
        assert_eq!(
            load("[]", b""),
            "vocab.json is not valid JSON: invalid type: sequence, expected a map at line 1 column 0; download the file again"
        );
        let vocab = r#"{"a": 0, "b": 1, "ab": 2}"#;
        assert_eq!(
            load(vocab, b"#version: 0.2\na b\nab\n"),
            "merges.txt is not a usable tokenizer: line 3 is \"ab\", expected two tokens with a space between"
        );
        assert!(load(vocab, b"\xff").starts_with("merges.txt is not a usable tokenizer: it is not UTF-8: "));
        assert!(
            load(vocab, b"a c\n").starts_with("vocab.json with merges.txt is not a usable tokenizer: "),
            "{}",
            load(vocab, b"a c\n")
        );
    }

    #[test]
    fn a_model_without_tokenizer_has_none() {
        assert!(Tokenizer::load(|_| Ok::<_, GenerateError>(None)).unwrap().is_none());
        let only_vocab = |name: &str| Ok::<_, GenerateError>((name == "vocab.json").then(|| b"{}".to_vec()));
        assert!(Tokenizer::load(only_vocab).unwrap().is_none());
    }

    #[test]
    fn the_config_marks_special_tokens() {
        let mut json = embedded_json();
        json["added_tokens"].as_array_mut().unwrap().retain(|token| token["content"] != "<pad>");
        let config = TokenizerConfig { pad_token: Some("<pad>".to_owned()), ..TokenizerConfig::default() };
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), &config).unwrap();
        assert!(tokenizer.is_special(1));
        assert_eq!(tokenizer.encode("<pad>", false).unwrap(), [1]);
        assert!(!from_value(&json).unwrap().is_special(1));
    }

    #[test]
    fn a_tokenizer_of_another_model_is_an_error() {
        let tokenizer = embedded();
        assert!(tokenizer.check_vocabulary(4096).is_ok());
        assert!(tokenizer.check_vocabulary(50_272).is_ok());
        let error = tokenizer.check_vocabulary(4095).unwrap_err().to_string();
        let token = tokenizer.piece(4095).unwrap();
        assert_eq!(
            error,
            format!(
                "wrong tokenizer: it knows token id 4095 ({token:?}), but the model's vocabulary has 4095 entries (ids 0 to \
                 4094); use the tokenizer that was published with the model"
            )
        );
    }

    #[test]
    fn malformed_files_are_errors() {
        for json in ["", "{", "[]", "{}", r#"{"model": {}}"#, r#"{"version": "2.0"}"#, "null", "\u{0}"] {
            let error = Tokenizer::from_json(json.as_bytes(), &TokenizerConfig::default()).unwrap_err();
            let message = error.to_string();
            assert!(message.starts_with("tokenizer.json is not a usable tokenizer: "), "{json:?}: {message}");
        }
        let mut json = embedded_json();
        json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        assert!(matches!(from_value(&json), Err(GenerateError::UnsupportedDecoder { .. })));
    }

    /// Paths to all values inside `json`, as for [`Value::pointer`].
    fn pointers(json: &Value, prefix: &str, found: &mut Vec<String>) {
        let mut visit = |key: &str, value: &Value| {
            let escaped = key.replace('~', "~0").replace('/', "~1");
            let pointer = format!("{prefix}/{escaped}");
            pointers(value, &pointer, found);
            found.push(pointer);
        };
        match json {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| visit(key, value)),
            Value::Array(items) => (0..).zip(items).for_each(|(at, value): (usize, _)| visit(&at.to_string(), value)),
            _ => {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// A value of the wrong type or size anywhere in the file: an error, or a tokenizer that works somehow.
        #[test]
        fn a_damaged_file_is_no_panic(
            place in any::<proptest::sample::Index>(),
            value in proptest::sample::select(vec![
                json!(null), json!(0), json!(-1), json!(4_294_967_296_u64), json!(""), json!("a"), json!("▁"), json!([]),
                json!({}), json!(true), json!({"String": ""}), json!({"Regex": "("}), json!([["a", "b"]]),
            ]),
        ) {
            let mut json = llama2_json();
            let mut paths = Vec::new();
            pointers(&json, "", &mut paths);
            // The 256 byte tokens would otherwise be hit nearly always.
            paths.retain(|path| !path.starts_with("/model/vocab/<0x") || path.ends_with("E5>"));
            *json.pointer_mut(&paths[place.index(paths.len())]).unwrap() = value;
            if let Ok(tokenizer) = from_value(&json) {
                let _ = tokenizer.check_vocabulary(1);
                if let Ok(ids) = tokenizer.encode("<s>a blo 日本!", true) {
                    tokenizer.decode(&ids, false);
                }
                tokenizer.decode(&(0..270).collect::<Vec<u32>>(), true);
            }
        }
    }
}
