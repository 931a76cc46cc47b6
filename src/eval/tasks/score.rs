//! Log-likelihoods of many choices of many questions.
//!
//! The choices of a question begin with the same tokens. Where each token decides for itself these are run once, and the choices
//! go on from there; where the last token decides for all, every choice is a text of its own. Texts share passes.

use std::ops::ControlFlow;

use crate::eval::EvalError;
use crate::eval::Likelihood;
use crate::eval::masked::{Decision, Job, Masked, MaskedText};
use crate::kernels::{argmax, log_sum_exp};
use crate::{Error, Result};

/// A continuation to score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Context and continuation; the last token is read by the loss only.
    pub tokens: Vec<u32>,
    /// Tokens of the context: at least one, and fewer than there are.
    pub context: usize,
}

/// Rows that are worth a pass, and memory of keys and values that is worth not taking more.
const BATCH_ROWS: usize = 512;
const BATCH_BYTES: usize = 1 << 30;

/// The likelihoods of all requests of all questions. `progress(questions done)` may stop the work.
///
/// # Errors
/// [`Error::NoTokens`] for a request without context or continuation, [`Error::TokenOutOfRange`], [`Error::ContextFull`], those of the policy,
/// [`EvalError::BadLikelihood`], [`Error::Interrupted`].
pub fn likelihoods(
    masked: &mut Masked,
    questions: &[Vec<Request>],
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<Vec<Likelihood>>> {
    if questions.iter().flatten().any(|request| !(1..request.tokens.len()).contains(&request.context)) {
        return Err(Error::NoTokens);
    }
    let config = masked.engine().config();
    let token_bytes = 2 * size_of::<f32>() * config.layers * config.kv_heads * config.head_dim;
    let mut results = Vec::with_capacity(questions.len());
    let mut number = 0;
    while results.len() < questions.len() {
        let left = &questions[results.len()..];
        let (mut rows, mut bytes) = (0, 0);
        let fits = |question: &&Vec<Request>| {
            let room = rows < BATCH_ROWS && bytes < BATCH_BYTES;
            let tokens: usize = question.iter().map(|request| request.tokens.len()).sum();
            rows += tokens - question.len() * shared(question);
            bytes += token_bytes * tokens;
            room
        };
        let batch = &left[..left.iter().take_while(fits).count()];
        let found = match masked.decision() {
            Decision::Causal => together(masked, batch, results.len() as u64)?,
            Decision::Sequence => apart(masked, batch, number)?,
        };
        number += batch.iter().map(|question| question.len() as u64).sum::<u64>();
        for (question, found) in (results.len() + 1..).zip(&found) {
            if let Some(choice) = found.iter().position(|found| !found.log_likelihood.is_finite()) {
                return Err(EvalError::BadLikelihood { question, choice: choice + 1 }.into());
            }
        }
        results.extend(found);
        if progress(results.len()).is_break() {
            return Err(Error::Interrupted);
        }
    }
    Ok(results)
}

/// Tokens with which all requests of a question begin, and after which no logits are wanted.
fn shared(question: &[Request]) -> usize {
    let Some((first, others)) = question.split_first() else { return 0 };
    let common = others.iter().map(|other| first.tokens.iter().zip(&other.tokens).take_while(|(a, b)| a == b).count());
    let unscored = question.iter().map(|request| request.context - 1);
    common.chain(unscored).min().unwrap_or(0)
}

/// Each question's common beginning once, then all its choices.
fn together(masked: &mut Masked, questions: &[Vec<Request>], number: u64) -> Result<Vec<Vec<Likelihood>>> {
    let begun: Vec<usize> = questions.iter().map(|question| shared(question)).collect();
    let mut texts = Vec::new();
    for (number, question) in (number..).zip(questions) {
        let longest = question.iter().map(|request| request.tokens.len()).max();
        texts.push(masked.text(number, longest.unwrap_or(0))?);
    }
    let mut jobs = Vec::new();
    for ((text, question), &begun) in texts.iter_mut().zip(questions).zip(&begun) {
        if let Some(request) = question.first().filter(|_| begun > 0) {
            jobs.push(Job { text, tokens: &request.tokens[..begun], from: begun });
        }
    }
    masked.run(&mut jobs, &mut |_, _, _| ControlFlow::Continue(()))?;
    let choices = questions
        .iter()
        .zip(&begun)
        .zip(&texts)
        .flat_map(|((question, &begun), text)| question.iter().map(move |request| (text.fork(), request, begun)));
    let found = finish(masked, choices.collect())?;
    Ok(regrouped(questions, found))
}

/// Each choice as a text of its own.
fn apart(masked: &mut Masked, questions: &[Vec<Request>], number: u64) -> Result<Vec<Vec<Likelihood>>> {
    let mut texts = Vec::new();
    for (number, request) in (number..).zip(questions.iter().flatten()) {
        texts.push((masked.text(number, request.tokens.len())?, request, 0));
    }
    let found = finish(masked, texts)?;
    Ok(regrouped(questions, found))
}

/// Runs requests whose first tokens, as many as is said, their texts have been through.
fn finish(masked: &mut Masked, mut texts: Vec<(MaskedText, &Request, usize)>) -> Result<Vec<Likelihood>> {
    let cpu = masked.engine().cpu().clone();
    let begin = |(_, request, _): &(MaskedText, &Request, usize)| Likelihood {
        log_likelihood: 0.0,
        greedy: true,
        tokens: request.tokens.len() - request.context,
    };
    let mut found: Vec<Likelihood> = texts.iter().map(begin).collect();
    let requests: Vec<(&Request, usize)> = texts.iter().map(|&(_, request, begun)| (request, begun)).collect();
    let mut jobs: Vec<Job<'_>> = texts
        .iter_mut()
        .map(|(text, request, begun)| Job {
            text,
            tokens: &request.tokens[*begun..request.tokens.len() - 1],
            from: request.context - 1 - *begun,
        })
        .collect();
    masked.run(&mut jobs, &mut |job, index, logits| {
        let (request, begun) = requests[job];
        let next = request.tokens[begun + index + 1] as usize;
        found[job].log_likelihood += f64::from(logits[next]) - log_sum_exp(&cpu, logits);
        found[job].greedy &= argmax(logits) == next;
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

fn regrouped(questions: &[Vec<Request>], found: Vec<Likelihood>) -> Vec<Vec<Likelihood>> {
    let mut found = found.into_iter();
    questions.iter().map(|question| found.by_ref().take(question.len()).collect()).collect()
}
