//! Generating: sample, stream, stop.

use std::ops::ControlFlow;
use std::time::Instant;

use shadowllm_weights::ModelConfig;

use super::StopTokens;
use super::{BatchStep, Sampler, SamplerOptions, Session};
#[cfg(feature = "tokenizer")]
use super::{StopStrings, TextStream};
use crate::Result;
use crate::model::NoProbe;
use crate::sparsity::Kept;

/// Settings of a [`Completion`].
#[derive(Clone, Debug, Default)]
pub struct CompletionOptions {
    /// How tokens are chosen; the default takes the most likely one.
    pub sampler: SamplerOptions,
    /// Most tokens to generate; `None`: until something else ends the text.
    pub max_tokens: Option<usize>,
    /// Strings that end the text; they are not part of it. Needs a tokenizer.
    #[cfg(feature = "tokenizer")]
    pub stop: Vec<String>,
    /// Goes on after an end-of-sequence token.
    pub ignore_eos: bool,
}

/// What ended a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model said so with an end-of-sequence token.
    Eos,
    /// A stop string.
    StopString,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The session's context holds no more.
    ContextFull,
}

/// One generated token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Its id.
    pub token: u32,
    /// Text that has become certain with it: whole characters, perhaps none. Empty without a tokenizer.
    pub text: &'a str,
}

/// Speed, bytes and memory of a completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Timing {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Time to process them.
    pub prompt_seconds: f64,
    /// Decode steps: passes of one token. One less than the tokens generated, for the first comes from the prompt.
    pub decode_steps: usize,
    /// Time of all decode steps with sampling; those that several completions took together count whole in each.
    pub decode_seconds: f64,
    /// Bytes that all decode steps read, as declared by the model and the kernels.
    pub decode_bytes: u64,
    /// Bytes that they would have read over all units.
    pub dense_bytes: u64,
    /// Of `decode_bytes`, what the decisions of a policy read.
    pub decision_bytes: u64,
    /// Of `decode_seconds`, what the decisions of a policy took.
    pub decision_seconds: f64,
    /// Heads that all decode steps kept.
    pub kept_heads: u64,
    /// Neurons that all decode steps kept.
    pub kept_neurons: u64,
    /// Memory of the session's key/value cache, in bytes.
    pub cache_bytes: u64,
    /// Memory beside it of the attention inputs that missing keys and values are made from, in bytes. A session keeps it
    /// for its next tokens, so this is the most that was needed so far.
    pub pending_bytes: u64,
    /// Neurons of these whose record was read to the end.
    pub active_neurons: u64,
}

impl Timing {
    /// Prompt tokens per second.
    pub fn prompt_rate(&self) -> f64 {
        self.prompt_tokens as f64 / self.prompt_seconds
    }

    /// Decode steps per second; `None` if there was none.
    pub fn decode_rate(&self) -> Option<f64> {
        (self.decode_steps > 0).then(|| self.decode_steps as f64 / self.decode_seconds)
    }

    /// Bytes read by a decode step, on average; `None` if there was none.
    pub fn bytes_per_token(&self) -> Option<f64> {
        self.per_step(self.decode_bytes)
    }

    /// Milliseconds that the decisions of a decode step took, on average; `None` if there was no step.
    pub fn decision_ms_per_token(&self) -> Option<f64> {
        (self.decode_steps > 0).then(|| 1e3 * self.decision_seconds / self.decode_steps as f64)
    }

    /// A sum over the decode steps as a mean; `None` if there was none.
    pub fn per_step(&self, sum: u64) -> Option<f64> {
        (self.decode_steps > 0).then(|| sum as f64 / self.decode_steps as f64)
    }

    /// Units kept / units, over all layers and decode steps; `None` if there was no step.
    pub fn kept(&self, config: &ModelConfig) -> Option<Kept> {
        Some(Kept {
            heads: self.per_step(self.kept_heads)? / (config.layers * config.heads) as f64,
            neurons: self.per_step(self.kept_neurons)? / (config.layers * config.ffn) as f64,
        })
    }

    /// Kept neurons whose record was not read to the end / kept neurons; `None` if there was no step.
    pub fn skipped(&self) -> Option<f64> {
        (self.kept_neurons > 0).then(|| 1.0 - self.active_neurons as f64 / self.kept_neurons as f64)
    }

    /// How much faster decoding would be than dense if time were bytes; `None` if there was no step.
    pub fn ideal_speedup(&self) -> Option<f64> {
        (self.decode_steps > 0).then(|| self.dense_bytes as f64 / self.decode_bytes as f64)
    }

    /// Bytes read per second of decoding, in 10^9; `None` if there was no step.
    pub fn gb_per_second(&self) -> Option<f64> {
        (self.decode_steps > 0).then(|| self.decode_bytes as f64 / self.decode_seconds / 1e9)
    }
}

/// A text being generated on a session. Text appears as soon as it is certain; the next token is computed only when it
/// is asked for.
///
#[cfg_attr(
    feature = "tokenizer",
    doc = r#"
```
# use shadowllm::{Engine, EngineOptions, SessionOptions};
use shadowllm::generate::{Completion, CompletionOptions};

# fn main() -> shadowllm::Result<()> {
let engine = Engine::open("embedded", EngineOptions::default())?;
let prompt = engine.tokenizer()?.encode("Once upon a time", true)?;
let mut session = engine.session(SessionOptions::default())?;
let options = CompletionOptions { max_tokens: Some(5), ..CompletionOptions::default() };
let mut completion = Completion::start(&mut session, &prompt, &options)?;
let mut text = String::new();
while let Some(piece) = completion.next_token()? {
    text.push_str(piece.text);
}
text.push_str(completion.finish_text());
assert_eq!(text, ", and the whole of");
# Ok(())
# }
```
"#
)]
#[derive(Debug)]
pub struct Completion<'s> {
    session: &'s mut Session,
    sampler: Sampler,
    eos: StopTokens,
    max_tokens: usize,
    tokens: Vec<u32>,
    /// Sampled, but not yet run through the model.
    pending: Option<u32>,
    reason: Option<StopReason>,
    timing: Timing,
    #[cfg(feature = "tokenizer")]
    stream: Option<TextStream>,
    /// Text of the last piece.
    text: String,
}

/// Tokens that memory is taken for in advance when the length is not known.
const RESERVE: usize = 256;

impl<'s> Completion<'s> {
    /// Processes `prompt` after whatever the session holds already.
    ///
    /// # Errors
    /// [`crate::Error::Generate`] for impossible sampling settings or stop strings, [`crate::Error::NoTokenizer`] for
    /// stop strings without a tokenizer, and those of [`Session::prefill`].
    pub fn start(session: &'s mut Session, prompt: &[u32], options: &CompletionOptions) -> Result<Self> {
        Self::start_with(session, prompt, options, &mut |_| ControlFlow::Continue(()))
    }

    /// [`Completion::start`] with a callback that is told how many tokens of the prompt are done and may stop the work.
    ///
    /// # Errors
    /// As [`Completion::start`], and [`crate::Error::Interrupted`] if the callback says so; the session then holds what it
    /// held before.
    pub fn start_with(
        session: &'s mut Session,
        prompt: &[u32],
        options: &CompletionOptions,
        done: &mut (dyn FnMut(usize) -> ControlFlow<()> + Send),
    ) -> Result<Self> {
        let sampler = Sampler::new(options.sampler.clone())?;
        #[cfg(feature = "tokenizer")]
        let stop = StopStrings::new(options.stop.iter().cloned())?;
        #[cfg(feature = "tokenizer")]
        if !stop.is_empty() {
            session.engine().tokenizer()?;
        }
        let eos = if options.ignore_eos { Vec::new() } else { session.engine().config().eos.clone() };
        let max_tokens = options.max_tokens.unwrap_or(usize::MAX);
        session.check(prompt)?;
        let wanted = session.tokens().len() + prompt.len() + max_tokens.min(RESERVE);
        session.reserve(wanted);
        let start = Instant::now();
        session.prefill_with(prompt, &mut NoProbe, done)?;
        let timing = Timing {
            prompt_tokens: prompt.len(),
            prompt_seconds: start.elapsed().as_secs_f64(),
            cache_bytes: session.cache_bytes(),
            pending_bytes: session.pending_bytes(),
            ..Timing::default()
        };
        Ok(Completion {
            #[cfg(feature = "tokenizer")]
            stream: session.engine().tokenizer().ok().map(|t| TextStream::after(t, session.tokens()).stop_at(&stop)),
            reason: (max_tokens == 0).then_some(StopReason::MaxTokens),
            tokens: Vec::with_capacity(max_tokens.min(RESERVE)),
            eos: StopTokens::new(eos),
            pending: None,
            text: String::new(),
            sampler,
            session,
            max_tokens,
            timing,
        })
    }

    /// Generates one token; `None` when the text has ended.
    ///
    /// # Errors
    /// [`crate::Error::Generate`] if the logits are not finite.
    pub fn next_token(&mut self) -> Result<Option<Piece<'_>>> {
        if self.reason.is_some() {
            return Ok(None);
        }
        let start = Instant::now();
        if let Some(token) = self.pending {
            self.session.step(token)?;
            self.stepped();
        }
        self.sample(start).map(Some)
    }

    /// Generates one token of each of several completions on one engine, decoded together as [`Engine::step_batch`](super::Engine::step_batch)
    /// does: the same tokens as alone. `each(index, piece)` gets those of the completions that go on. Returns what the step read
    /// (nothing at first, when all come from their prompts); `None` when all texts have ended.
    ///
    /// # Errors
    /// As [`Completion::next_token`] and [`Engine::step_batch`](super::Engine::step_batch).
    pub fn next_tokens(
        completions: &mut [Completion<'_>],
        each: &mut dyn FnMut(usize, Piece<'_>) -> Result<()>,
    ) -> Result<Option<BatchStep>> {
        let start = Instant::now();
        let mut engine = None;
        let (mut sessions, mut tokens) = (Vec::new(), Vec::new());
        for completion in completions.iter_mut().filter(|completion| completion.reason.is_none()) {
            engine.get_or_insert_with(|| completion.session.engine().clone());
            if let Some(token) = completion.pending {
                sessions.push(&mut *completion.session);
                tokens.push(token);
            }
        }
        let Some(engine) = engine else { return Ok(None) };
        let step = engine.step_batch(&mut sessions, &tokens)?;
        for (index, completion) in completions.iter_mut().enumerate().filter(|(_, c)| c.reason.is_none()) {
            if completion.pending.is_some() {
                completion.stepped();
            }
            each(index, completion.sample(start)?)?;
        }
        Ok(Some(step))
    }

    /// The pending token has been run.
    fn stepped(&mut self) {
        self.pending = None;
        self.timing.decode_steps += 1;
        self.count_step(self.session.tokens().len() - 1);
    }

    /// Chooses the next token, of a step that began at `start`.
    fn sample(&mut self, start: Instant) -> Result<Piece<'_>> {
        let token = self.sampler.sample(self.session.logits(), self.session.tokens())?;
        if self.timing.decode_steps > 0 {
            self.timing.decode_seconds += start.elapsed().as_secs_f64();
        }
        self.tokens.push(token);
        self.pending = Some(token);
        let stopped = self.write(token);
        if self.eos.contains(token) {
            self.reason = Some(StopReason::Eos);
        } else if stopped {
            self.reason = Some(StopReason::StopString);
        } else if self.tokens.len() >= self.max_tokens {
            self.reason = Some(StopReason::MaxTokens);
        } else if self.session.remaining() == 0 {
            self.reason = Some(StopReason::ContextFull);
        }
        Ok(Piece { token, text: &self.text })
    }

    fn count_step(&mut self, position: usize) {
        let (session, timing) = (&*self.session, &mut self.timing);
        timing.decode_bytes += session.step_bytes();
        timing.dense_bytes += session.engine().model().active_bytes(position).total();
        let config = session.engine().config();
        let (heads, neurons, active) = match session.sparsity() {
            Some(sparsity) => {
                timing.decision_bytes += sparsity.decision_bytes();
                timing.decision_seconds += sparsity.decision_time().as_secs_f64();
                let count = sparsity.count();
                (count.heads, count.neurons, count.neurons_active)
            }
            None => {
                let neurons = (config.layers * config.ffn) as u64;
                ((config.layers * config.heads) as u64, neurons, neurons)
            }
        };
        timing.kept_heads += heads;
        timing.kept_neurons += neurons;
        timing.active_neurons += active;
        timing.cache_bytes = session.cache_bytes();
        timing.pending_bytes = session.pending_bytes();
    }

    /// Puts the text that is certain with `token` into `self.text`; whether a stop string has ended it.
    fn write(&mut self, token: u32) -> bool {
        self.text.clear();
        #[cfg(feature = "tokenizer")]
        if let Some(stream) = &mut self.stream {
            self.text.push_str(stream.push(token));
            return stream.stopped().is_some();
        }
        let _ = token;
        false
    }

    /// Text that was held back because it might have become a stop string or a longer character. Call it once, at the
    /// end.
    pub fn finish_text(&mut self) -> &str {
        self.text.clear();
        #[cfg(feature = "tokenizer")]
        if let Some(stream) = &mut self.stream {
            self.text.push_str(stream.finish());
        }
        &self.text
    }

    /// The tokens generated so far, an end-of-sequence token included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What ended the text; `None` while it goes on.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.reason
    }

    /// Speed and bytes so far.
    pub fn timing(&self) -> Timing {
        self.timing
    }
}
