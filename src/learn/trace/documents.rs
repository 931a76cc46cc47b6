//! Documents from text files, as many as are wanted.

use crate::learn::samples::{mix, shuffle};
use crate::{Error, Result};

/// A document is at least this many bytes of a text, up to the end of a paragraph: a plain text does not say where one ends,
/// and this is long enough that what lies behind it is about something else.
const DOCUMENT_BYTES: usize = 16 << 10;

/// Documents of one origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    name: String,
    documents: Vec<String>,
}

impl Text {
    /// A plain text, cut into documents. The name is for messages and for the description of the data.
    ///
    /// # Errors
    /// [`Error::TrainingText`] if it is empty.
    pub fn plain(name: &str, content: &str) -> Result<Self> {
        Self::documents(name, cut(content).into_iter().map(str::to_owned).collect())
    }

    /// Documents that are known as such.
    ///
    /// # Errors
    /// [`Error::TrainingText`] if there are none.
    pub fn documents(name: &str, documents: Vec<String>) -> Result<Self> {
        if documents.is_empty() {
            let reason = format!("{name} has no text; give a file with something in it");
            return Err(Error::TrainingText { reason });
        }
        Ok(Text { name: name.to_owned(), documents })
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

/// Tokens of documents of all texts, about `tokens` in all: every text gives an equal share as long as it lasts, its documents
/// in an order that depends on `seed`. `encode` turns a text into tokens. Returns also the number of documents of each text.
///
/// # Errors
/// Those of `encode`.
pub fn choose_documents(
    texts: &[Text],
    tokens: usize,
    seed: u64,
    encode: &mut dyn FnMut(&str) -> Result<Vec<u32>>,
) -> Result<(Vec<Vec<u32>>, Vec<usize>)> {
    let order = |(index, text): (usize, &Text)| {
        let mut order: Vec<usize> = (0..text.documents.len()).collect();
        shuffle(mix(seed, index as u64), &mut order);
        order.into_iter()
    };
    let mut queues: Vec<_> = texts.iter().enumerate().map(order).collect();
    let (mut chosen, mut counts, mut taken) = (Vec::new(), vec![0; texts.len()], vec![0; texts.len()]);
    while taken.iter().sum::<usize>() < tokens {
        // The text that has given least so far and has something left.
        let left = (0..queues.len()).filter(|&i| queues[i].len() > 0).min_by_key(|&i| taken[i]);
        let Some(index) = left else { break };
        let Some(document) = queues[index].next() else { break };
        let document = encode(&texts[index].documents[document])?;
        taken[index] += document.len();
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
        let mut encode = |text: &str| Ok(text.bytes().map(u32::from).collect());
        let (documents, counts) = choose_documents(&texts, 500_000, 1, &mut encode).unwrap();
        assert_eq!(documents.len(), counts.iter().sum::<usize>());
        let of = |letter: u8| documents.iter().flatten().filter(|&&t| t == u32::from(letter)).count();
        assert_eq!(of(b'b'), 100 * 999, "all of the short one");
        assert!((180_000..230_000).contains(&of(b'a')) && (180_000..230_000).contains(&of(b'c')));
        let again = choose_documents(&texts, 500_000, 1, &mut encode).unwrap().0;
        assert_eq!(documents, again);
        assert_eq!(
            Text::plain("none.txt", " \n").unwrap_err().to_string(),
            "none.txt has no text; give a file with something in it"
        );
    }
}
