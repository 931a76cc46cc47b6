//! Documents from text files, as many as are wanted.

use std::ops::Range;

use crate::Result;
use crate::learn::LearnError;
use crate::learn::samples::{mix, shuffle};
use crate::learn::{Loss, Reduction};

/// A document is at least this many bytes of a text, up to the end of a paragraph: a plain text does not say where one ends,
/// and this is long enough that what lies behind it is about something else.
const DOCUMENT_BYTES: usize = 16 << 10;

/// Tokens of one text, read from position 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// The text.
    pub tokens: Vec<u32>,
    /// Where the answer of a task's record begins, which then ends the text: losses are of its tokens alone. `None`: of all.
    pub answer: Option<usize>,
    /// Which of the texts it is of.
    pub text: usize,
}

impl From<Vec<u32>> for Document {
    fn from(tokens: Vec<u32>) -> Self {
        Document { tokens, answer: None, text: 0 }
    }
}

impl Document {
    /// A record of a task: `tokens` from `answer` on are its answer.
    pub fn with_answer(tokens: Vec<u32>, answer: usize) -> Self {
        Document { tokens, answer: Some(answer), text: 0 }
    }

    /// What of it is read in one go with at most `window` tokens, each at least 2.
    pub(in crate::learn) fn pieces(&self, window: usize) -> Vec<Range<usize>> {
        let len = self.tokens.len();
        (0..len).step_by(window).map(|start| start..len.min(start + window)).filter(|piece| piece.len() > 1).collect()
    }

    /// The same where losses count. Of a record it is its end: the question loses its beginning, the answer stays.
    pub(in crate::learn) fn scored_pieces(&self, window: usize) -> Vec<Range<usize>> {
        let len = self.tokens.len();
        match self.answer {
            None => self.pieces(window),
            Some(answer) if answer >= len || len < 2 => Vec::new(),
            Some(_) => Vec::from_iter(Some(len.saturating_sub(window)..len)),
        }
    }

    /// The loss of a piece: of its tokens of the answer, or of all but the first, which nothing predicts. Of the sum, so that a
    /// token's gradients do not depend on how long the piece is.
    pub(in crate::learn) fn loss(&self, piece: &Range<usize>) -> Loss {
        let first = |answer: usize| answer.saturating_sub(piece.start).max(1);
        Loss { tokens: self.answer.map(|answer| first(answer)..piece.len()), reduction: Reduction::Sum }
    }
}

/// What a document is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passage {
    /// A text.
    Plain(String),
    /// A record of a task.
    Answer {
        /// What is asked, with everything in front of it.
        context: String,
        /// What continues it.
        answer: String,
    },
}

/// Documents of one origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    name: String,
    passages: Vec<Passage>,
}

impl Text {
    /// A plain text, cut into documents. The name is for messages and for the description of the data.
    ///
    /// # Errors
    /// [`LearnError::TrainingText`] if it is empty.
    pub fn plain(name: &str, content: &str) -> Result<Self> {
        Self::passages(name, cut(content).into_iter().map(|text| Passage::Plain(text.to_owned())).collect())
    }

    /// Passages that are documents as they are.
    ///
    /// # Errors
    /// [`LearnError::TrainingText`] if there are none.
    pub fn passages(name: &str, passages: Vec<Passage>) -> Result<Self> {
        if passages.is_empty() {
            let reason = format!("{name} has no text; give a file with something in it");
            return Err(LearnError::TrainingText { reason }.into());
        }
        Ok(Text { name: name.to_owned(), passages })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Cuts a text at the ends of paragraphs (empty lines), or of lines where it has no paragraphs.
fn cut(text: &str) -> Vec<&str> {
    let mut documents = Vec::new();
    let mut rest = text;
    while rest.len() > DOCUMENT_BYTES {
        let from = boundary(rest, DOCUMENT_BYTES);
        // An endless line is cut where it must be.
        let most = boundary(rest, 2 * DOCUMENT_BYTES);
        let tail = &rest[from..most];
        let end = ["\n\n", "\n"].iter().find_map(|mark| tail.find(mark).map(|at| from + at + mark.len()));
        let (document, after) = rest.split_at(end.unwrap_or(if most == rest.len() { most } else { from }));
        documents.push(document);
        rest = after;
    }
    if !rest.trim().is_empty() {
        documents.push(rest);
    }
    documents
}

/// The first place from byte `at` on where a character begins.
fn boundary(text: &str, at: usize) -> usize {
    (at..text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len())
}

/// Documents of all texts, about `tokens` tokens in all: every text gives an equal share as long as it lasts, its documents in an
/// order that depends on `seed`. `encode` turns a passage into tokens. Returns also the number of documents of each text.
///
/// # Errors
/// Those of `encode`.
pub fn choose_documents(
    texts: &[Text],
    tokens: usize,
    seed: u64,
    encode: &mut dyn FnMut(&Passage) -> Result<Document>,
) -> Result<(Vec<Document>, Vec<usize>)> {
    let order = |(index, text): (usize, &Text)| {
        let mut order: Vec<usize> = (0..text.passages.len()).collect();
        shuffle(mix(seed, index as u64), &mut order);
        order.into_iter()
    };
    let mut queues: Vec<_> = texts.iter().enumerate().map(order).collect();
    let (mut chosen, mut counts, mut taken) = (Vec::new(), vec![0; texts.len()], vec![0; texts.len()]);
    while taken.iter().sum::<usize>() < tokens {
        // The text that has given least so far and has something left.
        let left = (0..queues.len()).filter(|&i| queues[i].len() > 0).min_by_key(|&i| taken[i]);
        let Some(index) = left else { break };
        let Some(passage) = queues[index].next() else { break };
        let document = Document { text: index, ..encode(&texts[index].passages[passage])? };
        taken[index] += document.tokens.len();
        counts[index] += 1;
        chosen.push(document);
    }
    Ok((chosen, counts))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn documents_are_the_text(lines in proptest::collection::vec("[a-zäß ]{0,400}", 0..200), paragraphs in any::<bool>()) {
            let text = lines.join(if paragraphs { "\n\n" } else { "\n" });
            let documents = cut(&text);
            let joined: String = documents.concat();
            prop_assert!(text.starts_with(&joined) && text[joined.len()..].trim().is_empty());
            let all_but_last = &documents[..documents.len().saturating_sub(1)];
            prop_assert!(all_but_last.iter().all(|d| d.len() >= DOCUMENT_BYTES && d.len() <= 2 * DOCUMENT_BYTES + 4));
            prop_assert!(all_but_last.iter().all(|d| d.ends_with('\n')));
        }
    }

    #[test]
    fn texts_give_equal_shares() {
        let text = |name: &str, letter: &str, lines: usize| {
            Text::plain(name, &format!("{}\n", letter.repeat(999)).repeat(lines)).unwrap()
        };
        let texts = [text("long", "a", 2000), text("short", "b", 100), text("other", "c", 2000)];
        let mut encode = |passage: &Passage| match passage {
            Passage::Plain(text) => Ok(Document::from(text.bytes().map(u32::from).collect::<Vec<_>>())),
            Passage::Answer { .. } => unreachable!("these texts are plain"),
        };
        let (documents, counts) = choose_documents(&texts, 500_000, 1, &mut encode).unwrap();
        assert_eq!(documents.len(), counts.iter().sum::<usize>());
        let of = |letter: u8| documents.iter().flat_map(|d| &d.tokens).filter(|&&t| t == u32::from(letter)).count();
        assert_eq!(of(b'b'), 100 * 999, "all of the short one");
        assert!((180_000..230_000).contains(&of(b'a')) && (180_000..230_000).contains(&of(b'c')));
        assert!(documents.iter().all(|d| d.tokens[0] == u32::from(b"abc"[d.text])), "each knows its text");
        let again = choose_documents(&texts, 500_000, 1, &mut encode).unwrap().0;
        assert_eq!(documents, again);
        assert_eq!(
            Text::plain("none.txt", " \n").unwrap_err().to_string(),
            "none.txt has no text; give a file with something in it"
        );
    }

    #[test]
    fn an_answer_stays_where_a_record_is_too_long() {
        let record = Document::with_answer((0..10).collect(), 7);
        assert_eq!(record.pieces(4), [0..4, 4..8, 8..10]);
        for (window, piece, scored) in [(10, 0..10, 7..10), (12, 0..10, 7..10), (6, 4..10, 3..6), (2, 8..10, 1..2)] {
            assert_eq!(record.scored_pieces(window), Vec::from_iter(Some(piece.clone())));
            assert_eq!(record.loss(&piece).range(piece.len()).unwrap(), scored);
        }
        let plain = Document::from((0..9).collect::<Vec<_>>());
        assert_eq!(plain.scored_pieces(4), [0..4, 4..8]);
        assert_eq!(plain.loss(&(4..8)), Loss::sum());
        assert!(Document::with_answer(vec![1, 2], 2).scored_pieces(8).is_empty(), "nothing to score");
    }
}
