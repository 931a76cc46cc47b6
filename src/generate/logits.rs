//! Reading logits: log-probabilities, and the best few of a large vocabulary.
//!
//! Scores come as raw logits, one `f32` per vocabulary entry, up to 150 thousand per token. What callers want of them,
//! the probability of one token or the ten best ones, must not cost a sort of all. Sums are in `f64`: the mass of many
//! small terms would be lost in `f32`.

use std::cmp::Ordering;

use super::GenerateError;

/// A token and the natural logarithm of its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogProb {
    /// Token id.
    pub id: u32,
    /// `ln p(id)`, at most 0; `-inf` for a token that was masked out.
    pub log_prob: f64,
}

/// A token with its score, while candidates are being chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub score: f32,
    pub id: u32,
}

impl Candidate {
    /// Best first: higher score, then lower id. A total order, as no score is NaN ([`checked_max`]); 0.0 and -0.0 tie.
    pub fn best_first(&self, other: &Self) -> Ordering {
        other.score.partial_cmp(&self.score).unwrap_or(Ordering::Equal).then(self.id.cmp(&other.id))
    }
}

/// Largest logit, after checking that a distribution exists.
///
/// # Errors
/// [`GenerateError::BadLogit`] for NaN or +infinity, [`GenerateError::NoCandidate`] when no logit is finite.
pub(super) fn checked_max(logits: &[f32] /* [V] */) -> Result<f32, GenerateError> {
    let mut max = f32::NEG_INFINITY;
    let mut sound = true;
    for &logit in logits {
        // False for NaN and for +infinity.
        sound &= logit < f32::INFINITY;
        max = if logit > max { logit } else { max };
    }
    if !sound && let Some(at) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
        return Err(GenerateError::BadLogit { id: at as u32, value: logits[at] });
    }
    if max == f32::NEG_INFINITY {
        return Err(GenerateError::NoCandidate { count: logits.len() });
    }
    Ok(max)
}

/// Best token: the highest logit, of equal ones the lowest id.
///
/// # Errors
/// As [`log_prob`], apart from the id.
///
/// ```
/// assert_eq!(shadowllm::generate::greedy(&[0.5, 2.0, 2.0])?, 1);
/// # Ok::<(), shadowllm::generate::GenerateError>(())
/// ```
pub fn greedy(logits: &[f32] /* [V] */) -> Result<u32, GenerateError> {
    let max = checked_max(logits)?;
    let at = logits.iter().position(|logit| *logit == max).unwrap_or(0);
    Ok(at as u32)
}

/// `ln softmax(logits)[id]`, the log-probability of one token.
///
/// # Errors
/// [`GenerateError::TokenOutOfRange`] unless `id < V`, [`GenerateError::BadLogit`] for NaN or +infinity,
/// [`GenerateError::NoCandidate`] when no logit is finite.
///
/// ```
/// let log_prob = shadowllm::generate::log_prob(&[0.0, 0.0, 0.0, 0.0], 2)?;
/// assert!((log_prob - 0.25_f64.ln()).abs() < 1e-12);
/// # Ok::<(), shadowllm::generate::GenerateError>(())
/// ```
pub fn log_prob(logits: &[f32] /* [V] */, id: u32) -> Result<f64, GenerateError> {
    let logit = logits.get(id as usize).copied().ok_or(GenerateError::TokenOutOfRange { id, vocab: logits.len() })?;
    Ok(f64::from(logit) - log_normaliser(logits)?)
}

/// The `count` most probable tokens, best first (equal ones by id), fewer if the vocabulary is smaller.
///
/// # Errors
/// As [`log_prob`], apart from the id.
///
/// ```
/// let top = shadowllm::generate::top_log_probs(&[0.0, 3.0, 1.0], 2)?;
/// assert_eq!(top.iter().map(|token| token.id).collect::<Vec<_>>(), [1, 2]);
/// # Ok::<(), shadowllm::generate::GenerateError>(())
/// ```
pub fn top_log_probs(
    logits: &[f32], // [V]
    count: usize,
) -> Result<Vec<TokenLogProb>, GenerateError> {
    let normaliser = log_normaliser(logits)?;
    let mut best = Vec::new();
    select_best(logits, count, &mut best);
    Ok(best
        .iter()
        .map(|candidate| TokenLogProb { id: candidate.id, log_prob: f64::from(candidate.score) - normaliser })
        .collect())
}

/// `ln sum(exp(logits))`.
fn log_normaliser(logits: &[f32]) -> Result<f64, GenerateError> {
    let max = f64::from(checked_max(logits)?);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum();
    Ok(max + sum.ln())
}

/// Writes the `count` best of `scores` to `best`, best first, ties by id.
///
/// One pass with a buffer of `2 * count`: when it is full, the better half stays and its worst member becomes the
/// bar for what follows. Nearly all of a large vocabulary fails that one comparison.
pub(super) fn select_best(scores: &[f32], count: usize, best: &mut Vec<Candidate>) {
    best.clear();
    if count == 0 {
        return;
    }
    let capacity = count.saturating_mul(2);
    let mut bar = None;
    for (id, &score) in scores.iter().enumerate() {
        // Ids ascend, so an equal score is worse than the bar.
        if bar.is_some_and(|bar| score <= bar) {
            continue;
        }
        best.push(Candidate { score, id: id as u32 });
        if best.len() == capacity {
            best.select_nth_unstable_by(count - 1, Candidate::best_first);
            best.truncate(count);
            bar = Some(best[count - 1].score);
        }
    }
    best.sort_unstable_by(Candidate::best_first);
    best.truncate(count);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sorted(scores: &[f32]) -> Vec<Candidate> {
        let mut all: Vec<Candidate> =
            scores.iter().enumerate().map(|(id, &score)| Candidate { score, id: id as u32 }).collect();
        all.sort_by(Candidate::best_first);
        all
    }

    #[test]
    fn broken_logits_are_errors() {
        struct Case {
            logits: &'static [f32],
            message: &'static str,
        }
        let cases = [
            Case {
                logits: &[0.0, f32::NAN, f32::NAN],
                message: "the logit of token 1 is NaN: the forward pass broke down, no token can be chosen; check the \
                          checkpoint for NaN, infinite or wrongly converted weights",
            },
            Case {
                logits: &[f32::INFINITY, 0.0],
                message: "the logit of token 0 is inf: the forward pass broke down, no token can be chosen; check the \
                          checkpoint for NaN, infinite or wrongly converted weights",
            },
            Case { logits: &[f32::NEG_INFINITY; 3], message: "none of 3 logits is finite: no token can be chosen" },
            Case { logits: &[], message: "none of 0 logits is finite: no token can be chosen" },
        ];
        for case in cases {
            assert_eq!(greedy(case.logits).unwrap_err().to_string(), case.message);
            assert_eq!(top_log_probs(case.logits, 1).unwrap_err().to_string(), case.message);
        }
        assert_eq!(
            log_prob(&[0.0; 4], 4).unwrap_err().to_string(),
            "token id 4 is out of range: there are 4 logits, so ids go from 0 to 3"
        );
    }

    #[test]
    fn masked_tokens_have_probability_zero() {
        let logits = [1.0, f32::NEG_INFINITY, 1.0];
        assert_eq!(log_prob(&logits, 1).unwrap(), f64::NEG_INFINITY);
        assert!((log_prob(&logits, 0).unwrap() + std::f64::consts::LN_2).abs() < 1e-12);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        assert!((log_prob(&[3e38, 0.0], 0).unwrap()).abs() < 1e-12);
        assert_eq!(log_prob(&[3e38, 0.0], 1).unwrap(), -f64::from(3e38_f32));
    }

    proptest! {
        /// Few distinct scores, so that ties are common.
        #[test]
        fn best_equals_sorted(levels in proptest::collection::vec(-4_i8..4, 0..200), count in 0_usize..250) {
            let scores: Vec<f32> = levels.iter().map(|level| f32::from(*level)).collect();
            let mut best = vec![Candidate { score: 0.0, id: 9 }];
            select_best(&scores, count, &mut best);
            let mut expected = sorted(&scores);
            expected.truncate(count);
            prop_assert_eq!(best, expected);
        }

        #[test]
        fn log_probs_are_a_distribution(logits in proptest::collection::vec(-30.0_f32..30.0, 1..100)) {
            let top = top_log_probs(&logits, logits.len()).unwrap();
            let mass: f64 = top.iter().map(|token| token.log_prob.exp()).sum();
            prop_assert!((mass - 1.0).abs() < 1e-9);
            prop_assert_eq!(top[0].id, greedy(&logits).unwrap());
            for token in top {
                prop_assert_eq!(token.log_prob, log_prob(&logits, token.id).unwrap());
            }
        }
    }
}
