//! Tokens to text, one token at a time.
//!
//! The usual way to stream text decodes the last few tokens again and again and compares strings. This is slow, and it
//! shows a replacement character, or waits forever, when a model really produces invalid bytes. Decoders of OPT and
//! Llama-family tokenizers are simpler than that: each token stands for bytes or for text, and the only context is a
//! character that is not complete yet and the space that the tokenizer put before the very first word. So that is all the
//! state kept here, and each token costs its own length.
//!
//! Three schemes exist in the wild:
//! - *byte level* (GPT-2, OPT, Llama 3, Qwen2): each character of a token is a code for one byte;
//! - *sentence* (Llama 2, Mistral): `▁` means space, `<0xE2>` is one byte of a character outside the vocabulary, the
//!   space before the first word is dropped;
//! - *words*: no decoder, tokens are joined by spaces.
//!
//! The text equals that of Hugging Face tokenizers, with one exception: bytes that are not UTF-8. Both write U+FFFD for
//! them, but in a run of `<0x..>` tokens Hugging Face also discards the complete characters of the run, which would mean
//! to hold such characters back until the run is over.

use serde_json::Value;

use super::GenerateError;

/// How a tokenizer's tokens become text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scheme {
    ByteLevel,
    Sentence(Sentence),
    Words,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sentence {
    /// Replacements inside each token, in order; usually `▁` by a space.
    replace: Vec<(String, String)>,
    /// Metaspace: the character that means space.
    metaspace: Option<char>,
    /// Metaspace: spaces of the first token are dropped.
    drop_first: bool,
    /// `<0xE2>` is one byte.
    byte_fallback: bool,
    /// How many of which character are dropped at the start of the text.
    strip: Option<(char, usize)>,
}

impl Scheme {
    /// Reads the `decoder` object of `tokenizer.json`; `Value::Null` when there is none.
    ///
    /// # Errors
    /// [`GenerateError::UnsupportedDecoder`] for decoders of other model families.
    pub fn from_json(decoder: &Value) -> Result<Self, GenerateError> {
        let unsupported = || GenerateError::UnsupportedDecoder { found: super::shorten(&decoder.to_string()) };
        if decoder.is_null() {
            return Ok(Self::Words);
        }
        let steps = match decoder.get("decoders").and_then(Value::as_array) {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(decoder),
        };
        let mut sentence = Sentence::default();
        let mut byte_level = false;
        let mut fused = false;
        for step in steps {
            let text = |key: &str| step.get(key).and_then(Value::as_str);
            let number = |key: &str| step.get(key).and_then(Value::as_u64);
            let kind = text("type").ok_or_else(unsupported)?;
            match kind {
                "ByteLevel" if steps.len() == 1 => byte_level = true,
                "Replace" if !sentence.byte_fallback && !fused => {
                    let pattern = step.get("pattern").and_then(|pattern| pattern.get("String"));
                    let from = pattern.and_then(Value::as_str).ok_or_else(unsupported)?;
                    let to = text("content").ok_or_else(unsupported)?;
                    sentence.replace.push((from.to_owned(), to.to_owned()));
                }
                "Metaspace" if sentence.metaspace.is_none() && !fused => {
                    let replacement = text("replacement").and_then(|text| text.chars().next());
                    sentence.metaspace = Some(replacement.ok_or_else(unsupported)?);
                    sentence.drop_first = text("prepend_scheme") != Some("never");
                }
                "ByteFallback" if !fused => sentence.byte_fallback = true,
                "Fuse" => fused = true,
                "Strip" if fused && sentence.strip.is_none() && number("stop") == Some(0) => {
                    let content = text("content").and_then(|text| text.chars().next());
                    let count = number("start").and_then(|count| usize::try_from(count).ok());
                    sentence.strip = Some(content.zip(count).ok_or_else(unsupported)?);
                }
                _ => return Err(unsupported()),
            }
        }
        Ok(if byte_level { Self::ByteLevel } else { Self::Sentence(sentence) })
    }

    /// The bytes one token of the vocabulary stands for, apart from what its position in the text changes.
    pub fn token_bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => byte_level_bytes(token),
            Self::Sentence(sentence) => match sentence.byte(token) {
                Some(byte) => vec![byte],
                None => sentence.text(token, false).into_bytes(),
            },
            Self::Words => token.as_bytes().to_vec(),
        }
    }
}

impl Sentence {
    /// The byte a `<0xE2>` token stands for.
    fn byte(&self, token: &str) -> Option<u8> {
        if !self.byte_fallback || token.len() != 6 {
            return None;
        }
        let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
        u8::from_str_radix(digits, 16).ok()
    }

    fn text(&self, token: &str, first: bool) -> String {
        let mut text = token.to_owned();
        for (from, to) in &self.replace {
            text = text.replace(from.as_str(), to);
        }
        match self.metaspace {
            Some(space) if first && self.drop_first => text.replace(space, ""),
            Some(space) => text.replace(space, " "),
            None => text,
        }
    }
}

/// Bytes of a byte-level token. Added tokens are written as they are: one with a character that codes no byte is text.
fn byte_level_bytes(token: &str) -> Vec<u8> {
    token.chars().map(byte_of_code).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// GPT-2's code: printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100, U+0101 and so on.
fn byte_of_code(code: char) -> Option<u8> {
    match u32::from(code) {
        own @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(own).ok(),
        shifted @ 0x100..=0x120 => u8::try_from(shifted - 0x100).ok(),
        shifted @ 0x121..=0x142 => u8::try_from(shifted - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// State of one text being written.
#[derive(Clone, Debug)]
pub(super) struct Detokenizer {
    scheme: std::sync::Arc<Scheme>,
    /// Start of a character that is not complete yet, at most 3 bytes between tokens.
    pending: Vec<u8>,
    /// No token yet.
    first: bool,
    /// Characters that may still be dropped at the start of the text.
    strip: usize,
}

impl Detokenizer {
    pub fn new(scheme: &std::sync::Arc<Scheme>) -> Self {
        let strip = match scheme.as_ref() {
            Scheme::Sentence(sentence) => sentence.strip.map_or(0, |(_, count)| count),
            _ => 0,
        };
        Self { scheme: scheme.clone(), pending: Vec::new(), first: true, strip }
    }

    /// Appends to `out` the characters that `token` completes.
    pub fn push(&mut self, token: &str, out: &mut String) {
        let scheme = self.scheme.clone();
        let first = std::mem::replace(&mut self.first, false);
        match scheme.as_ref() {
            Scheme::ByteLevel => {
                self.pending.extend(byte_level_bytes(token));
                self.complete(false, out);
            }
            Scheme::Words => {
                if !first {
                    out.push(' ');
                }
                out.push_str(token);
            }
            Scheme::Sentence(sentence) => {
                let mut text = String::new();
                if let Some(byte) = sentence.byte(token) {
                    self.pending.push(byte);
                    self.complete(true, &mut text);
                } else {
                    self.abandon(true, &mut text);
                    text.push_str(&sentence.text(token, first));
                }
                self.strip_start(sentence, &text, out);
            }
        }
    }

    /// The text is over: an incomplete character becomes U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        let per_byte = *self.scheme != Scheme::ByteLevel;
        self.abandon(per_byte, out);
    }

    /// Moves whole characters from `pending` to `out`, and U+FFFD for bytes that cannot become any.
    fn complete(&mut self, per_byte: bool, out: &mut String) {
        let mut done = 0;
        while done < self.pending.len() {
            match std::str::from_utf8(&self.pending[done..]) {
                Ok(text) => {
                    out.push_str(text);
                    done = self.pending.len();
                }
                Err(error) => {
                    let (valid, rest) = self.pending[done..].split_at(error.valid_up_to());
                    out.push_str(&String::from_utf8_lossy(valid));
                    done += valid.len();
                    let Some(invalid) = error.error_len() else {
                        break; // the start of a character; the next token may complete it
                    };
                    let invalid = invalid.min(rest.len());
                    push_replacement(if per_byte { invalid } else { 1 }, out);
                    done += invalid;
                }
            }
        }
        self.pending.drain(..done);
    }

    /// What is pending will never be a character.
    fn abandon(&mut self, per_byte: bool, out: &mut String) {
        let count = if per_byte { self.pending.len() } else { self.pending.len().min(1) };
        push_replacement(count, out);
        self.pending.clear();
    }

    fn strip_start(&mut self, sentence: &Sentence, text: &str, out: &mut String) {
        let mut rest = text;
        if let Some((content, _)) = sentence.strip {
            while self.strip > 0 && !rest.is_empty() {
                match rest.strip_prefix(content) {
                    Some(shorter) => {
                        rest = shorter;
                        self.strip -= 1;
                    }
                    None => self.strip = 0,
                }
            }
        }
        out.push_str(rest);
    }
}

fn push_replacement(count: usize, out: &mut String) {
    for _ in 0..count {
        out.push(char::REPLACEMENT_CHARACTER);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::Arc;
    use tokenizers::{Decoder, DecoderWrapper};

    fn llama2() -> Value {
        json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]})
    }

    fn metaspace(prepend: &str) -> Value {
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend, "split": true})
    }

    /// Text after each token, and at the end.
    fn stream(decoder: &Value, tokens: &[&str]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(&Arc::new(Scheme::from_json(decoder).unwrap()));
        let mut text = String::new();
        let mut steps = Vec::new();
        for token in tokens {
            detokenizer.push(token, &mut text);
            steps.push(text.clone());
        }
        detokenizer.finish(&mut text);
        steps.push(text);
        steps
    }

    fn whole(decoder: &Value, tokens: &[&str]) -> String {
        stream(decoder, tokens).pop().unwrap()
    }

    fn hugging_face(decoder: &Value, tokens: &[&str]) -> String {
        let decoder: DecoderWrapper = serde_json::from_value(decoder.clone()).unwrap();
        decoder.decode(tokens.iter().map(|token| (*token).to_owned()).collect()).unwrap()
    }

    #[test]
    fn the_byte_code_is_a_bijection() {
        let mut seen = [false; 256];
        for code in (0..0x200).filter_map(char::from_u32) {
            if let Some(byte) = byte_of_code(code) {
                assert!(!std::mem::replace(&mut seen[usize::from(byte)], true), "{byte} twice");
            }
        }
        assert!(seen.iter().all(|seen| *seen));
    }

    #[test]
    fn a_character_is_never_split() {
        let byte_level = json!({"type": "ByteLevel"});
        // 🙂 is F0 9F 99 82.
        assert_eq!(stream(&byte_level, &["Hi", "ĠðŁ", "Ļ", "Ĥ!"]), ["Hi", "Hi ", "Hi ", "Hi 🙂!", "Hi 🙂!"]);
        assert_eq!(
            stream(&llama2(), &["▁Hi", "▁", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "!"]),
            ["Hi", "Hi ", "Hi ", "Hi ", "Hi ", "Hi 🙂", "Hi 🙂!", "Hi 🙂!"]
        );
    }

    #[test]
    fn invalid_bytes_become_replacement_characters() {
        let byte_level = json!({"type": "ByteLevel"});
        assert_eq!(stream(&byte_level, &["ðŁ", "a"]), ["", "\u{fffd}a", "\u{fffd}a"]);
        assert_eq!(stream(&byte_level, &["ðŁ"]), ["", "\u{fffd}"]);
        assert_eq!(stream(&llama2(), &["<0xE5>", "<0x8F>", "a"]), ["", "", "\u{fffd}\u{fffd}a", "\u{fffd}\u{fffd}a"]);
        // The complete character of the run stays.
        assert_eq!(whole(&llama2(), &["<0xC3>", "<0xA9>", "<0xFF>"]), "é\u{fffd}");
    }

    #[test]
    fn the_first_space_is_dropped_once() {
        assert_eq!(whole(&llama2(), &["▁", "▁a", "▁b"]), " a b");
        assert_eq!(whole(&llama2(), &["a", "▁b"]), "a b");
        assert_eq!(whole(&metaspace("always"), &["▁▁a", "▁b"]), "a b");
        assert_eq!(whole(&metaspace("never"), &["▁a", "▁b"]), " a b");
        assert_eq!(whole(&Value::Null, &["a", "b"]), "a b");
    }

    #[test]
    fn other_decoders_are_errors() {
        let found = Scheme::from_json(&json!({"type": "WordPiece", "prefix": "##", "cleanup": true})).unwrap_err();
        assert_eq!(
            found.to_string(),
            "tokenizer.json has the decoder {\"type\":\"WordPiece\",\"prefix\":\"##\",\"cleanup\":true}, which is not \
             supported: expected ByteLevel, Metaspace or the Replace, ByteFallback, Fuse, Strip sequence of OPT and \
             Llama-family models; without the file the model works on token ids"
        );
        for decoder in [
            json!({"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]}),
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}]}),
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}]}),
            json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}),
            json!({"decoders": 1}),
        ] {
            assert!(Scheme::from_json(&decoder).is_err(), "{decoder}");
        }
    }

    fn any_token() -> impl Strategy<Value = String> {
        prop_oneof![
            "[▁ab é日🙂Ġ<>0xE5]{0,4}",
            (0_u8..=255).prop_map(|byte| format!("<0x{byte:02X}>")),
            proptest::sample::select(vec!["<0xE6>", "<0x97>", "<0xA5>", "▁", "▁▁"]).prop_map(str::to_owned),
        ]
    }

    proptest! {
        #[test]
        fn byte_level_equals_hugging_face(tokens in proptest::collection::vec("[\u{a1}-\u{ac}\u{ae}-\u{143}!-~ 日]{0,4}", 0..12)) {
            let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
            let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
            prop_assert_eq!(whole(&decoder, &tokens), hugging_face(&decoder, &tokens));
        }

        /// Apart from runs of bytes that mix valid and invalid ones: see the module's documentation.
        #[test]
        fn sentence_equals_hugging_face(tokens in proptest::collection::vec(any_token(), 0..12)) {
            let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
            for decoder in [llama2(), metaspace("always"), metaspace("never"), metaspace("first")] {
                let expected = hugging_face(&decoder, &tokens);
                let actual = whole(&decoder, &tokens);
                if !expected.contains(char::REPLACEMENT_CHARACTER) {
                    prop_assert_eq!(actual, expected);
                } else {
                    prop_assert!(actual.contains(char::REPLACEMENT_CHARACTER));
                }
            }
        }
    }
}
