//! `tokenizer_config.json`: which strings are the special tokens, and where the chat template is.
//!
//! `tokenizer.json` says how text becomes tokens; this file, written by transformers, says what some of these tokens are
//! *for*. Special tokens come as plain strings or, in older files, as objects with a `content`.

use serde_json::Value;

use super::{GenerateError, shorten};

const FILE: &str = "tokenizer_config.json";

/// What this engine reads of `tokenizer_config.json`. The default is that of a model without the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizerConfig {
    /// Beginning-of-sequence token, such as `<s>`.
    pub bos_token: Option<String>,
    /// End-of-sequence token, such as `</s>`.
    pub eos_token: Option<String>,
    /// Token for what the vocabulary cannot express.
    pub unk_token: Option<String>,
    /// Padding token.
    pub pad_token: Option<String>,
    /// Whether a beginning-of-sequence token is put first. Heeded only for `vocab.json` + `merges.txt`: as in
    /// transformers, a `tokenizer.json` carries its own rule, which wins.
    pub add_bos_token: Option<bool>,
    /// Likewise for an end-of-sequence token at the end.
    pub add_eos_token: Option<bool>,
    /// Whether a text is tokenized as if a space preceded it; `vocab.json` + `merges.txt` only.
    pub add_prefix_space: Option<bool>,
    /// Name of the transformers class.
    pub tokenizer_class: Option<String>,
    /// Chat templates as (name, text); a single one is called `default`.
    pub chat_templates: Vec<(String, String)>,
}

impl TokenizerConfig {
    /// Reads the content of `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`GenerateError::Json`] when it is not JSON, [`GenerateError::Field`] when a field has another type.
    ///
    /// ```
    /// use shadowllm::generate::TokenizerConfig;
    /// let config = TokenizerConfig::from_json(br#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}"#)?;
    /// assert_eq!(config.bos_token.as_deref(), Some("<s>"));
    /// assert_eq!(config.eos_token.as_deref(), Some("</s>"));
    /// # Ok::<(), shadowllm::generate::GenerateError>(())
    /// ```
    pub fn from_json(bytes: &[u8]) -> Result<Self, GenerateError> {
        let root: Value = serde_json::from_slice(bytes)
            .map_err(|error| GenerateError::Json { file: FILE, reason: error.to_string() })?;
        if !root.is_object() {
            return Err(field_error("(top level)", &root, "an object"));
        }
        let field = |name: &str| root.get(name).filter(|value| !value.is_null());
        let token = |name: &str| match field(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(value) => match value.get("content").and_then(Value::as_str) {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(field_error(name, value, "a string or an object with a `content` string")),
            },
        };
        let flag = |name: &str| {
            field(name)
                .map(|value| value.as_bool().ok_or_else(|| field_error(name, value, "true or false")))
                .transpose()
        };
        Ok(Self {
            bos_token: token("bos_token")?,
            eos_token: token("eos_token")?,
            unk_token: token("unk_token")?,
            pad_token: token("pad_token")?,
            add_bos_token: flag("add_bos_token")?,
            add_eos_token: flag("add_eos_token")?,
            add_prefix_space: flag("add_prefix_space")?,
            tokenizer_class: field("tokenizer_class").and_then(Value::as_str).map(str::to_owned),
            chat_templates: field("chat_template").map_or(Ok(Vec::new()), chat_templates)?,
        })
    }

    /// The named special tokens that are set, as (role, text): `bos_token`, `eos_token`, `unk_token`, `pad_token`.
    pub fn special_tokens(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("pad_token", &self.pad_token),
        ]
        .into_iter()
        .filter_map(|(role, text)| Some((role, text.as_deref()?)))
    }
}

/// `chat_template` is one template or a list of `{"name": .., "template": ..}`.
fn chat_templates(value: &Value) -> Result<Vec<(String, String)>, GenerateError> {
    if let Value::String(text) = value {
        return Ok(vec![("default".to_owned(), text.clone())]);
    }
    let named = |entry: &Value| {
        let text = |key: &str| Some(entry.get(key)?.as_str()?.to_owned());
        Some((text("name")?, text("template")?))
    };
    value
        .as_array()
        .and_then(|entries| entries.iter().map(named).collect())
        .ok_or_else(|| field_error("chat_template", value, "a string or a list of objects with `name` and `template`"))
}

fn field_error(field: &str, value: &Value, expected: &'static str) -> GenerateError {
    GenerateError::Field { file: FILE, field: field.to_owned(), found: shorten(&value.to_string()), expected }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_styles_of_special_tokens() {
        let config = TokenizerConfig::from_json(
            br#"{"bos_token": {"content": "</s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null,
                 "add_bos_token": true, "tokenizer_class": "GPT2Tokenizer"}"#,
        )
        .unwrap();
        assert_eq!(config.special_tokens().collect::<Vec<_>>(), [("bos_token", "</s>"), ("eos_token", "</s>")]);
        assert_eq!((config.add_bos_token, config.add_eos_token), (Some(true), None));
    }

    #[test]
    fn reads_one_chat_template_or_several() {
        let one = TokenizerConfig::from_json(br#"{"chat_template": "x"}"#).unwrap();
        assert_eq!(one.chat_templates, [("default".to_owned(), "x".to_owned())]);
        let two = TokenizerConfig::from_json(
            br#"{"chat_template": [{"name": "default", "template": "x"}, {"name": "rag", "template": "y"}]}"#,
        )
        .unwrap();
        assert_eq!(two.chat_templates[1], ("rag".to_owned(), "y".to_owned()));
    }

    #[test]
    fn wrong_types_are_errors() {
        let cases = [
            (
                r#"{"bos_token": 1}"#,
                "tokenizer_config.json: field `bos_token` is 1, expected a string or an object with a `content` string",
            ),
            (
                r#"{"add_bos_token": "yes"}"#,
                "tokenizer_config.json: field `add_bos_token` is \"yes\", expected true or false",
            ),
            (
                r#"{"chat_template": [{"name": "default"}]}"#,
                "tokenizer_config.json: field `chat_template` is [{\"name\":\"default\"}], expected a string or a list of \
                 objects with `name` and `template`",
            ),
            ("7", "tokenizer_config.json: field `(top level)` is 7, expected an object"),
            (
                "",
                "tokenizer_config.json is not valid JSON: EOF while parsing a value at line 1 column 0; download the file \
                 again",
            ),
        ];
        for (json, message) in cases {
            let error = TokenizerConfig::from_json(json.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}
