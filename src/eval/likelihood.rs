//! Log-likelihood of a continuation after a context, the unit of multiple-choice tasks.

use std::ops::ControlFlow;

use crate::generate::Session;
use crate::kernels::{argmax, log_sum_exp};
use crate::{Error, Result};

/// How likely a continuation is.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Likelihood {
    /// Sum of `log P(token | everything before)` over the continuation's tokens, in nats.
    pub log_likelihood: f64,
    /// Whether greedy decoding would have produced exactly these tokens.
    pub greedy: bool,
    /// Tokens of the continuation.
    pub tokens: usize,
}

/// Scores `continuation` after `context` as lm-evaluation-harness does: both from position 0, the last token of the
/// continuation read by the loss only. The session is emptied first.
///
/// # Errors
/// [`Error::NoTokens`] if either is empty, [`Error::TokenOutOfRange`], [`Error::ContextFull`].
pub fn log_likelihood(session: &mut Session, context: &[u32], continuation: &[u32]) -> Result<Likelihood> {
    if context.is_empty() || continuation.is_empty() {
        return Err(Error::NoTokens);
    }
    session.engine().model().check_tokens(continuation)?;
    session.truncate(0);
    let cpu = session.engine().cpu().clone();
    let text: Vec<u32> = context.iter().chain(continuation).copied().collect();
    let mut result = Likelihood { log_likelihood: 0.0, greedy: true, tokens: continuation.len() };
    session.score(&text[..text.len() - 1], context.len() - 1, &mut |index, logits| {
        let next = text[index + 1] as usize;
        result.log_likelihood += f64::from(logits[next]) - log_sum_exp(&cpu, logits);
        result.greedy &= argmax(logits) == next;
        ControlFlow::Continue(())
    })?;
    Ok(result)
}
