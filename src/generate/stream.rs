//! Text as it is being generated.
//!
//! Tokens arrive one at a time; a user wants to read along, and must never see half a character, a space too many or too
//! few, or the first letters of a stop string. A [`TextStream`] guarantees that all it returned, joined, is exactly the
//! text of all tokens up to the stop string.
//!
//! Generation usually continues a prompt. Tokenizers with a leading space (Llama 2) drop it at the start of a text, so
//! the text of the new tokens alone would lose the space between prompt and continuation: [`TextStream::after`] knows the
//! prompt and keeps it.

use super::detokenizer::Detokenizer;
use super::{StopMatcher, StopStrings, Tokenizer};

/// Turns tokens into text one at a time. Special tokens are not shown.
///
/// ```
/// use shadowllm::generate::{StopStrings, TextStream, Tokenizer, TokenizerConfig};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/embedded/tiny-opt/tokenizer.json");
/// let tokenizer = Tokenizer::from_json(&std::fs::read(path)?, &TokenizerConfig::default())?;
/// let prompt = tokenizer.encode("Once upon", true)?;
/// let mut stream = TextStream::after(&tokenizer, &prompt).stop_at(&StopStrings::new([" END"])?);
/// let mut text = String::new();
/// for id in tokenizer.encode(" a time. END of it", false)? {
///     text.push_str(stream.push(id));
///     if stream.stopped().is_some() {
///         break;
///     }
/// }
/// text.push_str(stream.finish());
/// assert_eq!(text, " a time.");
/// assert_eq!(stream.stopped(), Some(" END"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    skip_special: bool,
    /// Text of the last token, before the search for stop strings.
    written: String,
    /// Text ready to be shown.
    ready: String,
}

impl TextStream {
    /// A stream at the start of a text, as for the answer in a chat.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            detokenizer: tokenizer.detokenizer(),
            stop: StopMatcher::new(&StopStrings::default()),
            skip_special: true,
            written: String::new(),
            ready: String::new(),
        }
    }

    /// A stream that continues the text of `prompt`, whose own text it does not return.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Self {
        let mut stream = Self::new(tokenizer);
        for &id in prompt {
            stream.write(id);
        }
        stream
    }

    /// Ends the text before the first of these stop strings. Stop strings are searched in what comes from now on.
    #[must_use]
    pub fn stop_at(mut self, strings: &StopStrings) -> Self {
        self.stop = StopMatcher::new(strings);
        self
    }

    /// Shows special tokens, such as `</s>`, as they stand in the vocabulary.
    #[must_use]
    pub fn show_special(mut self) -> Self {
        self.skip_special = false;
        self
    }

    /// Adds a token and returns the text that is certain now, perhaps none. After a stop string there is no more text.
    pub fn push(&mut self, id: u32) -> &str {
        self.ready.clear();
        self.write(id);
        self.stop.push(&self.written, &mut self.ready);
        &self.ready
    }

    /// The last token has come: returns what was held back, an incomplete character as U+FFFD.
    pub fn finish(&mut self) -> &str {
        self.ready.clear();
        self.written.clear();
        self.detokenizer.finish(&mut self.written);
        self.stop.push(&self.written, &mut self.ready);
        self.stop.finish(&mut self.ready);
        &self.ready
    }

    /// The stop string that ended the text, if one did: generation is over.
    pub fn stopped(&self) -> Option<&str> {
        self.stop.stopped()
    }

    /// Replaces `written` by the characters that `id` completes.
    fn write(&mut self, id: u32) {
        self.written.clear();
        if let Some(token) = self.tokenizer.shown(id, self.skip_special) {
            self.detokenizer.push(&token, &mut self.written);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::test_tokenizers::{embedded, llama2};
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static EMBEDDED: LazyLock<Tokenizer> = LazyLock::new(embedded);
    static LLAMA2: LazyLock<Tokenizer> = LazyLock::new(llama2);

    fn drain(stream: &mut TextStream, ids: &[u32]) -> String {
        let mut text = String::new();
        for &id in ids {
            text.push_str(stream.push(id));
        }
        text.push_str(stream.finish());
        text
    }

    /// The crate's own decoding, as an oracle.
    fn hugging_face(ids: &[u32], skip_special: bool) -> String {
        static ORACLE: LazyLock<tokenizers::Tokenizer> = LazyLock::new(|| {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/embedded/tiny-opt/tokenizer.json");
            tokenizers::Tokenizer::from_file(path).unwrap()
        });
        ORACLE.decode(ids, skip_special).unwrap()
    }

    #[test]
    fn a_continuation_keeps_its_leading_space() {
        let prompt = LLAMA2.encode("a", true).unwrap();
        let next = [LLAMA2.token_id("▁b").unwrap()];
        assert_eq!(drain(&mut TextStream::after(&LLAMA2, &prompt), &next), " b");
        assert_eq!(drain(&mut TextStream::new(&LLAMA2), &next), "b");
        assert_eq!(drain(&mut TextStream::after(&LLAMA2, &prompt[..1]), &next), "b", "<s> is no text");
    }

    #[test]
    fn special_tokens_are_shown_on_request() {
        let ids = [2, 50, 2];
        assert_eq!(drain(&mut TextStream::new(&EMBEDDED), &ids), "O");
        assert_eq!(drain(&mut TextStream::new(&EMBEDDED).show_special(), &ids), "</s>O</s>");
    }

    #[test]
    fn a_stop_string_in_the_prompt_does_not_count() {
        let prompt = EMBEDDED.encode("Q: x A:", true).unwrap();
        let stop = StopStrings::new(["Q:"]).unwrap();
        let mut stream = TextStream::after(&EMBEDDED, &prompt).stop_at(&stop);
        let answer = EMBEDDED.encode(" y Q: z", false).unwrap();
        assert_eq!(drain(&mut stream, &answer), " y ");
        assert_eq!(stream.stopped(), Some("Q:"));
    }

    #[test]
    fn an_unfinished_character_is_replaced_at_the_end() {
        let smile = EMBEDDED.encode("🙂", false).unwrap();
        assert!(smile.len() > 1);
        let mut stream = TextStream::new(&EMBEDDED);
        for &id in &smile[..smile.len() - 1] {
            assert_eq!(stream.push(id), "");
        }
        assert_eq!(stream.finish(), "\u{fffd}");
    }

    fn any_text() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-zA-Z ,.'\n]{0,60}",
            "\\PC{0,20}",
            proptest::sample::select(vec![
                "日本語のテキスト。",
                "🙂👩‍👩‍👧 🇫🇷",
                "naïve café",
                "\t\r\n  x  ",
                "한국어 العربية"
            ])
            .prop_map(str::to_owned),
        ]
    }

    proptest! {
        #[test]
        fn any_tokens_give_the_text_of_the_whole(ids in proptest::collection::vec(0_u32..4200, 0..60), skip in any::<bool>()) {
            let mut stream = TextStream::new(&EMBEDDED);
            if !skip {
                stream = stream.show_special();
            }
            let text = drain(&mut stream, &ids);
            prop_assert_eq!(&text, &hugging_face(&ids, skip));
            prop_assert_eq!(&text, &EMBEDDED.decode(&ids, skip));
        }

        #[test]
        fn any_text_comes_back(text in any_text()) {
            let ids = EMBEDDED.encode(&text, true).unwrap();
            prop_assert_eq!(drain(&mut TextStream::new(&EMBEDDED), &ids), text.clone());
            let ids = LLAMA2.encode(&text, true).unwrap();
            prop_assert_eq!(drain(&mut TextStream::new(&LLAMA2), &ids), text);
        }

        /// Wherever a text is divided into prompt and continuation, both together are the text.
        #[test]
        fn prompt_and_continuation_join(text in any_text(), part in 0.0_f64..=1.0) {
            for tokenizer in [&*EMBEDDED, &*LLAMA2] {
                let ids = tokenizer.encode(&text, true).unwrap();
                let (prompt, rest) = ids.split_at((ids.len() as f64 * part) as usize);
                let mut joined = String::new();
                let mut stream = TextStream::new(tokenizer);
                for &id in prompt {
                    joined.push_str(stream.push(id));
                }
                joined.push_str(&drain(&mut TextStream::after(tokenizer, prompt), rest));
                prop_assert_eq!(&joined, &text);
            }
        }

        /// Stop strings cut from the text itself, at any place, found across tokens.
        #[test]
        fn the_text_ends_before_the_stop_string(text in any_text(), from in 0_usize..20, length in 1_usize..6) {
            let text = format!("{text}.");
            let from = from % text.chars().count();
            let stop: String = text.chars().skip(from).take(length).collect();
            let strings = StopStrings::new([stop.as_str()]).unwrap();
            let ids = EMBEDDED.encode(&text, true).unwrap();
            let mut stream = TextStream::new(&EMBEDDED).stop_at(&strings);
            let shown = drain(&mut stream, &ids);
            prop_assert_eq!(Some(shown.as_str()), text.split(&stop).next());
            prop_assert_eq!(stream.stopped(), Some(stop.as_str()));
        }
    }
}
