//! Merge rules of a SentencePiece vocabulary.
//!
//! SentencePiece has no rules: it joins, again and again, the two neighbours whose union is the token of the best score. The
//! rules that make the `tokenizers` library do the same are all ways to cut a token into two others, ordered by the score of
//! the whole. Ties are ordered as Hugging Face's conversion does (`generate_merges` of transformers): longer left part first,
//! then longer right part, then lower ids.

use std::cmp::Reverse;

use super::problem::{GgufProblem, GgufResult};
use super::reader::Gguf;
use super::tokenizer::{TokenKind, Vocabulary};

/// The rules, best first. Only normal tokens are made and used by merging: control tokens, bytes and user-defined tokens
/// enter a text in other ways.
///
/// # Errors
/// [`GgufProblem::TokenList`], [`GgufProblem::KeyValue`] if a score is not a number, missing keys and wrong types.
pub(crate) fn merges<'g>(gguf: &Gguf, vocabulary: &Vocabulary<'g>) -> GgufResult<Vec<(&'g str, &'g str)>> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores = gguf.f32s(SCORES)?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(GgufProblem::TokenList { key: SCORES, found: scores.len(), expected: vocabulary.tokens.len() });
    }
    if let Some(id) = scores.iter().position(|s| s.is_nan()) {
        return Err(GgufProblem::KeyValue {
            key: SCORES.to_owned(),
            found: format!("not a number for token {id}"),
            expected: "a number".to_owned(),
        });
    }
    let mergeable =
        |part: &str| vocabulary.ids.get(part).copied().filter(|&id| vocabulary.kinds[id] == TokenKind::Normal);
    let longest = vocabulary.tokens.iter().zip(&vocabulary.kinds).filter(|(_, k)| **k == TokenKind::Normal);
    // No part is longer than the longest token that is not the whole itself, which keeps absurd tokens cheap.
    let mut lengths: Vec<usize> = longest.map(|(t, _)| t.len()).collect();
    lengths.sort_unstable();
    let longest_part = lengths.len().checked_sub(2).map_or(0, |i| lengths[i]);

    let mut rules = Vec::new();
    for (id, &token) in vocabulary.tokens.iter().enumerate() {
        if vocabulary.kinds[id] != TokenKind::Normal {
            continue;
        }
        let mut cuts: Vec<_> = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at))
            .filter(|(left, right)| left.len() <= longest_part && right.len() <= longest_part)
            .filter_map(|(left, right)| Some((mergeable(left)?, mergeable(right)?, left, right)))
            .collect();
        cuts.sort_by_key(|&(left, right, ..)| (left, right));
        rules.extend(cuts.into_iter().map(|(.., left, right)| {
            (scores[id], Reverse(left.chars().count()), Reverse(right.chars().count()), left, right)
        }));
    }
    // Adding zero makes the two zeros one, so that the total order is the numeric one.
    rules.sort_by(|a, b| (b.0 + 0.0).total_cmp(&(a.0 + 0.0)).then((a.1, a.2).cmp(&(b.1, b.2))));
    Ok(rules.into_iter().map(|(.., left, right)| (left, right)).collect())
}
