//! Perplexity over windows of a token sequence.
//!
//! The convention of the quantisation and pruning literature: the text is tokenised once and cut into windows that do not
//! overlap; each window runs on its own from position 0 and every token but its first is scored. Perplexity is
//! `exp(sum of negative log-likelihoods / tokens scored)`: per token, not per word.

use std::ops::{ControlFlow, Range};

use super::masked::{Job, Masked};
use crate::eval::EvalError;
use crate::generate::{Engine, SessionOptions};
use crate::kernels::log_sum_exp;
use crate::model::{NoProbe, Probe};
use crate::sparsity::PlanMasks;
use crate::{Error, Result};

/// How the token sequence is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of one window, at least 2.
    pub size: usize,
    /// Windows from the start of the text; `None`: all that are complete.
    pub count: Option<usize>,
}

/// Negative log-likelihood of one window.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct WindowNll {
    /// Sum over the scored tokens, in nats.
    pub nll: f64,
    /// Tokens scored: window size minus one.
    pub tokens: usize,
}

/// Result over all windows.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// `exp(nll / tokens)`.
    pub perplexity: f64,
    /// Tokens scored.
    pub tokens: usize,
    /// Sum of negative log-likelihoods, in nats.
    pub nll: f64,
    /// Each window on its own.
    pub windows: Vec<WindowNll>,
}

impl Perplexity {
    fn of(windows: Vec<WindowNll>) -> Self {
        let nll: f64 = windows.iter().map(|w| w.nll).sum();
        let tokens = windows.iter().map(|w| w.tokens).sum();
        Perplexity { perplexity: (nll / tokens as f64).exp(), tokens, nll, windows }
    }
}

impl Windows {
    /// The windows of `tokens`.
    ///
    /// # Errors
    /// [`EvalError::Windows`] if the size is under 2 or over the context, or the text is too short.
    pub fn cut<'a>(&self, tokens: &'a [u32], context: usize) -> Result<Vec<&'a [u32]>> {
        let Windows { size, count } = *self;
        let complete = tokens.len().checked_div(size).unwrap_or(0);
        let reason = if size < 2 {
            format!("a window of {size} tokens has nothing to score; use at least 2")
        } else if size > context {
            format!("a window of {size} tokens does not fit into the model's {context} positions")
        } else if count == Some(0) {
            "0 windows were asked for; use at least 1".to_owned()
        } else if complete < count.unwrap_or(1) {
            format!(
                "the text has {} tokens, which is {complete} complete windows of {size}, but {} were asked for; \
                 use a longer text, a smaller window or fewer windows",
                tokens.len(),
                count.unwrap_or(1)
            )
        } else {
            return Ok(tokens.chunks_exact(size).take(count.unwrap_or(complete)).collect());
        };
        Err(EvalError::Windows { reason }.into())
    }
}

/// Scores `tokens` window by window. `progress(windows done, result so far)` is called after each and may stop the work.
///
/// # Errors
/// [`EvalError::Windows`] if the text cannot be cut so, [`Error::TokenOutOfRange`], [`EvalError::BadLogits`],
/// [`Error::Interrupted`].
pub fn perplexity(
    engine: &Engine,
    tokens: &[u32],
    windows: Windows,
    progress: &mut dyn FnMut(&Perplexity) -> ControlFlow<()>,
) -> Result<Perplexity> {
    perplexity_with(engine, tokens, windows, &mut NoProbe, progress)
}

/// [`perplexity`] with a probe on the forward pass, which sees the rows of one window after the other.
///
/// # Errors
/// As [`perplexity`].
pub fn perplexity_with(
    engine: &Engine,
    tokens: &[u32],
    windows: Windows,
    probe: &mut (dyn Probe + Send),
    progress: &mut dyn FnMut(&Perplexity) -> ControlFlow<()>,
) -> Result<Perplexity> {
    let mut session =
        engine.session(SessionOptions { context: Some(windows.size.min(engine.config().max_positions)) })?;
    let cut = windows.cut(tokens, engine.config().max_positions)?;
    over_texts(engine, &cut, progress, &mut |_, window, each| {
        session.truncate(0);
        session.score_with(window, 0, probe, each)
    })
}

/// [`perplexity`] under the policy of `masked`; every window is a text of its own.
///
/// # Errors
/// As [`perplexity`], and those of the policy.
pub fn perplexity_masked(
    masked: &mut Masked,
    tokens: &[u32],
    windows: Windows,
    progress: &mut dyn FnMut(&Perplexity) -> ControlFlow<()>,
) -> Result<Perplexity> {
    let cut = windows.cut(tokens, masked.engine().config().max_positions)?;
    perplexity_of_texts(masked, &cut, progress)
}

/// As [`perplexity_masked`], over texts of at least 2 tokens that may differ in length.
///
/// # Errors
/// As there; [`Error::ContextFull`] for a text that does not fit.
pub fn perplexity_of_texts(
    masked: &mut Masked,
    texts: &[&[u32]],
    progress: &mut dyn FnMut(&Perplexity) -> ControlFlow<()>,
) -> Result<Perplexity> {
    perplexity_observed(masked, texts, &mut |_, _, _| (), progress)
}

/// [`perplexity_of_texts`], which also shows the plans of every pass: the number of the text, the tokens of it that the rows are,
/// and the plans.
///
/// # Errors
/// As [`perplexity_of_texts`].
pub fn perplexity_observed(
    masked: &mut Masked,
    texts: &[&[u32]],
    observe: &mut dyn FnMut(usize, Range<usize>, &PlanMasks),
    progress: &mut dyn FnMut(&Perplexity) -> ControlFlow<()>,
) -> Result<Perplexity> {
    let engine = masked.engine().clone();
    over_texts(&engine, texts, progress, &mut |number, tokens, each| {
        let mut text = masked.text(number as u64, tokens.len())?;
        let jobs = &mut [Job { text: &mut text, tokens, from: 0 }];
        let passed = &mut |parts: &[(usize, Range<usize>)], masks: &PlanMasks| {
            parts.iter().for_each(|(_, range)| observe(number, range.clone(), masks));
        };
        masked.run_with(jobs, passed, &mut |_, index, logits| each(index, logits))
    })
}

/// Is told the logits after a token: its index in the window, and `[V]`.
type Each<'a> = &'a mut (dyn FnMut(usize, &[f32]) -> ControlFlow<()> + Send);

/// Runs the window of a number and calls the last argument for all its tokens.
type Score<'a> = dyn FnMut(usize, &[u32], Each<'_>) -> Result<()> + 'a;

/// Scores text by text.
fn over_texts(
    engine: &Engine,
    texts: &[&[u32]],
    progress: &mut dyn FnMut(&Perplexity) -> ControlFlow<()>,
    score: &mut Score<'_>,
) -> Result<Perplexity> {
    let mut done = Vec::with_capacity(texts.len());
    for (number, &window) in texts.iter().enumerate() {
        let mut nll = 0.0;
        score(number, window, &mut |index, logits| {
            if let Some(&next) = window.get(index + 1) {
                nll += log_sum_exp(engine.cpu(), logits) - f64::from(logits[next as usize]);
            }
            ControlFlow::Continue(())
        })?;
        if !nll.is_finite() {
            return Err(EvalError::BadLogits { window: number }.into());
        }
        done.push(WindowNll { nll, tokens: window.len() - 1 });
        let so_far = Perplexity::of(done.clone());
        if progress(&so_far).is_break() {
            return Err(Error::Interrupted);
        }
    }
    Ok(Perplexity::of(done))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cuts_complete_windows_only() {
        let tokens: Vec<u32> = (0..10).collect();
        let cut = |size, count| Windows { size, count }.cut(&tokens, 100).map(|w| w.len());
        assert_eq!(cut(4, None).unwrap(), 2);
        assert_eq!(cut(5, Some(1)).unwrap(), 1);
        assert_eq!(cut(10, None).unwrap(), 1);
    }

    #[test]
    fn says_why_it_cannot_cut() {
        struct Case {
            windows: Windows,
            message: &'static str,
        }
        let cases = [
            Case {
                windows: Windows { size: 1, count: None },
                message: "a window of 1 tokens has nothing to score; use at least 2",
            },
            Case {
                windows: Windows { size: 0, count: None },
                message: "a window of 0 tokens has nothing to score; use at least 2",
            },
            Case {
                windows: Windows { size: 200, count: None },
                message: "a window of 200 tokens does not fit into the model's 100 positions",
            },
            Case { windows: Windows { size: 4, count: Some(0) }, message: "0 windows were asked for; use at least 1" },
            Case {
                windows: Windows { size: 4, count: Some(3) },
                message: "the text has 10 tokens, which is 2 complete windows of 4, but 3 were asked for; \
                          use a longer text, a smaller window or fewer windows",
            },
        ];
        for Case { windows, message } in cases {
            let tokens: Vec<u32> = (0..10).collect();
            assert_eq!(windows.cut(&tokens, 100).unwrap_err().to_string(), message);
        }
    }
}
