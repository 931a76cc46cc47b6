//! When a text ends: end-of-sequence tokens and stop strings.
//!
//! A stop string lives in *text*, generation in *tokens*: it may begin in the middle of one token and end in the middle
//! of the third, and until it is complete nobody knows whether its first characters should have been shown. So a
//! [`StopMatcher`] stands between detokenization and the user. It lets through what can no longer become part of a stop
//! string, holds back the rest, and cuts at the match. Which text comes out does not depend on how it was split.
//!
//! **Which match counts.** Generation stops the moment any stop string is complete, so the one that *ends* first wins;
//! of several that end together, the longest. Everything before that match is emitted, the match and all after it is not.
//!
//! Each stop string is a Knuth-Morris-Pratt automaton over bytes: its state is the length of the longest prefix that
//! the text ends with. The largest state is exactly what has to be held back. Cost: O(1) per byte and stop string,
//! amortised. As stop strings begin with a whole character, held text begins at a character boundary.

use std::sync::Arc;

use super::GenerateError;

/// End-of-sequence token ids: generation stops *at* such a token and does not show it.
///
/// ```
/// use shadowllm::generate::StopTokens;
/// let stop = StopTokens::new([2, 128_009]);
/// assert!(stop.contains(128_009));
/// assert!(!stop.contains(50));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopTokens {
    ids: Vec<u32>,
}

impl StopTokens {
    /// A set of ids; order and repetition do not matter.
    pub fn new(ids: impl IntoIterator<Item = u32>) -> Self {
        let mut ids: Vec<u32> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        Self { ids }
    }

    /// Whether generation ends with this token.
    pub fn contains(&self, id: u32) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// The ids, ascending, each once.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

/// A set of stop strings, prepared for searching. Cheap to clone and shared between sessions.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    patterns: Arc<[Pattern]>,
}

#[derive(Debug)]
struct Pattern {
    text: String,
    /// `border[n]`: length of the longest proper prefix of `text[..n + 1]` that is also its suffix.
    border: Vec<usize>,
}

impl StopStrings {
    /// Prepares stop strings.
    ///
    /// # Errors
    /// [`GenerateError::EmptyStopString`]: an empty string occurs everywhere.
    pub fn new<S: Into<String>>(strings: impl IntoIterator<Item = S>) -> Result<Self, GenerateError> {
        let patterns = strings.into_iter().map(|text| Pattern::new(text.into())).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { patterns: patterns.into() })
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The strings in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().map(|pattern| pattern.text.as_str())
    }
}

impl Pattern {
    fn new(text: String) -> Result<Self, GenerateError> {
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return Err(GenerateError::EmptyStopString);
        }
        let mut border = vec![0; bytes.len()];
        let mut state = 0;
        for at in 1..bytes.len() {
            while state > 0 && bytes[state] != bytes[at] {
                state = border[state - 1];
            }
            state += usize::from(bytes[state] == bytes[at]);
            border[at] = state;
        }
        Ok(Self { text, border })
    }

    /// State after one more byte of text; a state equal to the length is a match and never advanced further.
    fn advance(&self, mut state: usize, byte: u8) -> usize {
        let bytes = self.text.as_bytes();
        while state > 0 && bytes[state] != byte {
            state = self.border[state - 1];
        }
        state + usize::from(bytes[state] == byte)
    }
}

/// Searches one growing text for stop strings.
///
/// ```
/// use shadowllm::generate::{StopMatcher, StopStrings};
/// let mut matcher = StopMatcher::new(&StopStrings::new(["\nUser:"])?);
/// let mut shown = String::new();
/// matcher.push("Fine.\nUs", &mut shown);
/// assert_eq!(shown, "Fine."); // "\nUs" may be the start of the stop string
/// matcher.push("er: and", &mut shown);
/// assert_eq!(shown, "Fine.");
/// assert_eq!(matcher.stopped(), Some("\nUser:"));
/// # Ok::<(), shadowllm::generate::GenerateError>(())
/// ```
#[derive(Clone, Debug)]
pub struct StopMatcher {
    strings: StopStrings,
    /// `[patterns]`: how much of each stop string the text ends with.
    states: Vec<usize>,
    /// Text that may be the start of a stop string.
    held: String,
    /// Index of the stop string that matched.
    matched: Option<usize>,
}

impl StopMatcher {
    /// A matcher at the start of a text.
    pub fn new(strings: &StopStrings) -> Self {
        Self { states: vec![0; strings.patterns.len()], strings: strings.clone(), held: String::new(), matched: None }
    }

    /// Adds `text` and appends to `out` what is certain not to belong to a stop string. After a match it adds nothing.
    pub fn push(&mut self, text: &str, out: &mut String) {
        if self.matched.is_some() {
            return;
        }
        let scanned = self.held.len();
        self.held.push_str(text);
        for (at, &byte) in self.held.as_bytes().iter().enumerate().skip(scanned) {
            let mut longest = None;
            for (index, pattern) in self.strings.patterns.iter().enumerate() {
                let state = pattern.advance(self.states[index], byte);
                self.states[index] = state;
                if state == pattern.text.len() && longest.is_none_or(|(length, _)| state > length) {
                    longest = Some((state, index));
                }
            }
            if let Some((length, index)) = longest {
                out.push_str(&self.held[..at + 1 - length]);
                self.held.clear();
                self.matched = Some(index);
                return;
            }
        }
        let keep = self.states.iter().copied().max().unwrap_or(0);
        let ready = self.held.len() - keep;
        out.push_str(&self.held[..ready]);
        self.held.drain(..ready);
    }

    /// The text is over: what was held back was no stop string after all and is appended to `out`.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
        self.states.fill(0);
    }

    /// The stop string that ended the text, if one did.
    pub fn stopped(&self) -> Option<&str> {
        let index = self.matched?;
        self.strings.patterns.get(index).map(|pattern| pattern.text.as_str())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pushes `parts`, returns all text emitted and the stop string.
    fn run(stop: &[&str], parts: &[&str]) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(&StopStrings::new(stop.iter().copied()).unwrap());
        let mut out = String::new();
        for part in parts {
            matcher.push(part, &mut out);
        }
        matcher.finish(&mut out);
        (out, matcher.stopped().map(str::to_owned))
    }

    /// The definition, by brute force: of all occurrences the one that ends first, then the longest.
    fn oracle(stop: &[String], text: &str) -> (String, Option<String>) {
        stop.iter()
            .flat_map(|pattern| {
                text.char_indices()
                    .filter(|&(start, _)| text[start..].starts_with(pattern.as_str()))
                    .map(move |(start, _)| (start + pattern.len(), start, pattern))
            })
            .min_by_key(|&(end, start, _)| (end, start))
            .map_or((text.to_owned(), None), |(_, start, pattern)| (text[..start].to_owned(), Some(pattern.clone())))
    }

    #[test]
    fn cuts_at_the_match() {
        struct Case {
            stop: &'static [&'static str],
            parts: &'static [&'static str],
            text: &'static str,
            stopped: Option<&'static str>,
        }
        let cases = [
            Case { stop: &[], parts: &["a", "b"], text: "ab", stopped: None },
            Case { stop: &["END"], parts: &["a E", "N", "D b"], text: "a ", stopped: Some("END") },
            Case { stop: &["END"], parts: &["a E", "N"], text: "a EN", stopped: None },
            Case { stop: &["aab"], parts: &["aa", "ab", "c"], text: "a", stopped: Some("aab") },
            // "cd" is complete before "abcdef" can be.
            Case { stop: &["abcdef", "cd"], parts: &["xabcdef"], text: "xab", stopped: Some("cd") },
            // Both end together: the longer one.
            Case { stop: &["c", "abc"], parts: &["xa", "bc"], text: "x", stopped: Some("abc") },
            Case { stop: &["é!"], parts: &["né", "!"], text: "n", stopped: Some("é!") },
            Case { stop: &["é!"], parts: &["né", "?"], text: "né?", stopped: None },
        ];
        for case in cases {
            let (text, stopped) = run(case.stop, case.parts);
            assert_eq!(text, case.text, "{:?} {:?}", case.stop, case.parts);
            assert_eq!(stopped.as_deref(), case.stopped, "{:?} {:?}", case.stop, case.parts);
        }
    }

    #[test]
    fn emits_as_soon_as_it_is_certain() {
        let mut matcher = StopMatcher::new(&StopStrings::new(["\n\n"]).unwrap());
        let mut out = String::new();
        matcher.push("one\n", &mut out);
        assert_eq!(out, "one");
        matcher.push("two", &mut out);
        assert_eq!(out, "one\ntwo");
    }

    #[test]
    fn nothing_comes_after_a_match() {
        let mut matcher = StopMatcher::new(&StopStrings::new(["."]).unwrap());
        let mut out = String::new();
        matcher.push("a.b", &mut out);
        matcher.push("c", &mut out);
        matcher.finish(&mut out);
        assert_eq!(out, "a");
    }

    #[test]
    fn an_empty_stop_string_is_an_error() {
        assert_eq!(
            StopStrings::new(["a", ""]).unwrap_err().to_string(),
            "a stop string is empty: it would stop before the first character; leave it out instead"
        );
    }

    #[test]
    fn stop_tokens_are_a_set() {
        let stop = StopTokens::new([7, 2, 7]);
        assert_eq!(stop.ids(), [2, 7]);
        assert!(stop.contains(7) && !stop.contains(3));
        assert!(!StopTokens::default().contains(0));
    }

    proptest! {
        /// A small alphabet makes overlaps, borders and partial matches the rule; "é" has two bytes, "日" three.
        #[test]
        fn agrees_with_the_definition(
            stop in proptest::collection::vec("[abé日]{1,5}", 0..4),
            parts in proptest::collection::vec("[abé日]{0,4}", 0..12),
        ) {
            let stop_refs: Vec<&str> = stop.iter().map(String::as_str).collect();
            let part_refs: Vec<&str> = parts.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&stop_refs, &part_refs), oracle(&stop, &parts.concat()));
        }
    }
}
