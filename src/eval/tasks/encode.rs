//! Questions as tokens, cut where lm-evaluation-harness cuts.

use shadowllm_weights::ModelConfig;

use super::{Item, Request};
use crate::Result;
use crate::eval::EvalError;
use crate::generate::Tokenizer;

/// What is scored for the choices of an item, behind the examples in `shots`; no special tokens are added. Texts that are longer
/// than the model's context lose their beginning.
///
/// # Errors
/// [`crate::Error::Generate`] if a text has no tokens; [`EvalError::TaskPrompt`] if nothing of a choice is left to score, or it is too long.
pub fn encode(tokenizer: &Tokenizer, config: &ModelConfig, item: &Item, shots: &str) -> Result<Vec<Request>> {
    item.requests(shots)
        .iter()
        .enumerate()
        .map(|(choice, (context, continuation))| {
            let request = pair(tokenizer, config, context, continuation)?;
            shortened(request, config.max_positions)
                .map_err(|reason| EvalError::TaskPrompt { choice: choice + 1, reason }.into())
        })
        .collect()
}

/// A context and the answer that continues it, whatever the model's context; no special tokens are added.
///
/// # Errors
/// [`crate::Error::Generate`] if a text has no tokens; [`EvalError::TaskPrompt`] if nothing of the answer is left to score.
pub fn encode_answer(tokenizer: &Tokenizer, config: &ModelConfig, context: &str, answer: &str) -> Result<Request> {
    let request = pair(tokenizer, config, context, answer)?;
    shortened(request, usize::MAX - 1).map_err(|reason| EvalError::TaskPrompt { choice: 1, reason }.into())
}

/// Spaces at the end of the context count to the continuation, and both are tokenised together: where the context's tokens end,
/// the continuation's begin.
fn pair(tokenizer: &Tokenizer, config: &ModelConfig, context: &str, continuation: &str) -> Result<Request> {
    if context.is_empty() {
        return alone(tokenizer, config, continuation);
    }
    let trimmed = context.trim_end();
    let mut tokens = tokenizer.encode(trimmed, false)?;
    let end = tokens.len();
    let whole = tokenizer.encode(&format!("{context}{continuation}"), false)?;
    tokens.extend(whole.get(end..).unwrap_or_default());
    Ok(Request { tokens, context: end })
}

/// Behind no context stands what begins a text, or ends the one before.
fn alone(tokenizer: &Tokenizer, config: &ModelConfig, continuation: &str) -> Result<Request> {
    let mut tokens = tokenizer.encode(continuation, false)?;
    if let Some(first) = config.bos.or(config.eos.first().copied())
        && tokens.first() != Some(&first)
    {
        tokens.insert(0, first);
    }
    Ok(Request { tokens, context: 1 })
}

/// The end of a request that fits: its last token is read by the loss only.
fn shortened(mut request: Request, positions: usize) -> Result<Request, String> {
    let continuation = request.tokens.len().saturating_sub(request.context);
    if continuation == 0 || request.context == 0 {
        return Err("no token of it is left to score; look for an empty text in the record".to_owned());
    }
    if continuation > positions {
        return Err(format!("it has {continuation} tokens, but the model has {positions} positions"));
    }
    let excess = request.tokens.len().saturating_sub(positions + 1);
    request.tokens.drain(..excess);
    request.context -= excess;
    Ok(request)
}

#[cfg(all(test, feature = "embedded-model"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::choices;
    use super::*;
    use crate::{Engine, EngineOptions};

    fn requests(context: &str, texts: &[&str], positions: Option<usize>) -> Result<Vec<Request>> {
        let engine = Engine::open("embedded", EngineOptions::default()).unwrap();
        let mut config = engine.config().clone();
        config.max_positions = positions.unwrap_or(config.max_positions);
        let item = Item { prompt: choices(context, texts), gold: 0 };
        encode(engine.tokenizer().unwrap(), &config, &item, "")
    }

    fn encoded(text: &str) -> Vec<u32> {
        let engine = Engine::open("embedded", EngineOptions::default()).unwrap();
        engine.tokenizer().unwrap().encode(text, false).unwrap()
    }

    #[test]
    fn context_and_continuation_are_cut_where_the_context_ends() {
        let whole = encoded("Once upon a time");
        let context = encoded("Once upon").len();
        for text in ["Once upon", "Once upon "] {
            // A space at the end belongs to what follows.
            let continuation = if text.ends_with(' ') { "time" } else { "a time" };
            let request = &requests(text, &[continuation], None).unwrap()[0];
            assert_eq!(request.context, context);
            assert_eq!(request.tokens[..context], whole[..context]);
        }
        assert_eq!(requests("Once upon", &["a time"], None).unwrap()[0].tokens, whole);
    }

    #[test]
    fn no_context_is_the_token_that_begins_a_text() {
        let request = &requests("", &["time"], None).unwrap()[0];
        assert_eq!(request.tokens[0], 2);
        assert_eq!(request.tokens[1..], encoded(" time"));
        assert_eq!(request.context, 1);
    }

    #[test]
    fn long_texts_lose_their_beginning() {
        let whole = requests("Once upon a time there was a king", &["and a queen"], None).unwrap().remove(0);
        let short = requests("Once upon a time there was a king", &["and a queen"], Some(6)).unwrap().remove(0);
        assert_eq!(short.tokens, whole.tokens[whole.tokens.len() - 7..]);
        assert_eq!(short.tokens.len() - short.context, whole.tokens.len() - whole.context);
        let message = |error: crate::Error| error.to_string();
        assert_eq!(
            message(requests("A king", &["and", "and a queen and a king"], Some(2)).unwrap_err()),
            "choice 2: it has 7 tokens, but the model has 2 positions"
        );
    }
}
