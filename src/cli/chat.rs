//! `shadowllm chat`: a conversation with a chat model.

use clap::Args;
use serde::Serialize;

use super::accounting::Accounting;
use super::console::Console;
use super::generate::{complete, speed};
use super::options::{ModelArgs, SamplingArgs};
use super::sparsity::SparsityArgs;
use crate::generate::{
    ChatMessage, ChatOptions, ChatTemplate, CompletionOptions, Engine, Session, SessionOptions, StopReason,
};
use crate::{Error, Result};

/// Talk to a chat model, line by line.
///
/// Every line of standard input is a message. `/reset` starts a new conversation, `/exit` or the end of input ends it.
/// Ctrl-C ends an answer, or a message that is being read; without one, the program.
/// Sampling follows the settings published with the model unless options say otherwise.
#[derive(Debug, Args)]
pub(super) struct Chat {
    #[command(flatten)]
    model: ModelArgs,

    /// Instructions for the whole conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Most tokens of one answer.
    #[arg(long, short = 'n', default_value_t = 512, value_name = "N")]
    max_tokens: usize,

    /// Most tokens of the conversation [default: the model's context].
    #[arg(long, value_name = "N")]
    context: Option<usize>,

    /// Say how fast each answer was.
    #[arg(long, short)]
    verbose: bool,

    /// Print one JSON document per answer.
    #[arg(long)]
    json: bool,

    // Last: its heading is that of all options after it.
    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    sparsity: SparsityArgs,
}

/// What `chat --json` prints for every answer.
#[derive(Debug, Serialize)]
struct Turn<'a> {
    /// The answer.
    text: &'a str,
    /// Ids of the tokens generated.
    tokens: &'a [u32],
    /// What ended the answer.
    stop_reason: Option<StopReason>,
    /// Tokens of the whole conversation before the answer.
    prompt_tokens: usize,
    /// Of these, tokens that were not in the key/value cache yet.
    new_prompt_tokens: usize,
    /// Decode steps per second.
    decode_tokens_per_second: Option<f64>,
    /// Bytes that one decode step reads, on average.
    bytes_per_token: Option<f64>,
    /// What was kept, and what choosing it cost.
    #[serde(flatten)]
    accounting: Accounting,
}

impl Chat {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        let checkpoint = self.model.checkpoint(console)?;
        let engine = self.model.fast_engine_of(&checkpoint)?;
        engine.tokenizer()?;
        engine.chat_template()?;
        let (engine, sparsity, _) = self.sparsity.load(console, checkpoint, engine)?;
        let template = engine.chat_template()?;
        let options = CompletionOptions {
            sampler: self.sampling.over(&engine.text().defaults.sampler_options()),
            max_tokens: Some(self.max_tokens),
            ..CompletionOptions::default()
        };
        let mut session = engine.session(SessionOptions { context: self.context })?;
        session.set_sparsity(sparsity)?;
        let opening: Vec<_> = self.system.iter().map(ChatMessage::system).collect();
        let mut messages = opening.clone();
        while let Some(line) = console.ask("> ")? {
            match line.trim() {
                "" => continue,
                "/exit" => break,
                "/reset" => {
                    messages.clone_from(&opening);
                    continue;
                }
                _ => messages.push(ChatMessage::user(line)),
            }
            match self.answer(console, &engine, template, &mut session, &messages, &options) {
                Ok(answer) => messages.push(ChatMessage::assistant(answer)),
                Err(error @ Error::ContextFull { .. }) if !self.json => {
                    messages.pop();
                    console.note(&format!("error: {error}; type /reset to start a new conversation"));
                }
                // Nothing of the answer was there yet, and somebody can ask again.
                Err(Error::Interrupted) if console.is_interactive() => {
                    messages.pop();
                    console.note("interrupted; the message is forgotten");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Runs what is new of the conversation and generates the answer.
    fn answer(
        &self,
        console: &mut Console,
        engine: &Engine,
        template: &ChatTemplate,
        session: &mut Session,
        messages: &[ChatMessage],
        options: &CompletionOptions,
    ) -> Result<String> {
        let prompt = template.render(messages, &ChatOptions::default())?;
        let ids = engine.tokenizer()?.encode(&prompt, false)?;
        if ids.is_empty() {
            return Err(Error::NoTokens);
        }
        // At least the last token has to be run again: its logits choose the first token of the answer.
        let known = session.tokens().iter().zip(&ids).take_while(|(a, b)| a == b).count().min(ids.len() - 1);
        session.truncate(known);
        let done = complete(console, session, &ids[known..], options, !self.json)?;
        if self.json {
            console.json(&Turn {
                text: &done.text,
                tokens: &done.tokens,
                stop_reason: done.reason,
                prompt_tokens: ids.len(),
                new_prompt_tokens: ids.len() - known,
                decode_tokens_per_second: done.timing.decode_rate(),
                bytes_per_token: done.timing.bytes_per_token(),
                accounting: Accounting::new(session, &done.timing),
            })?;
        } else {
            console.line("")?;
            if done.reason == Some(StopReason::ContextFull) {
                console.note("stopped: the context is full; type /reset to start a new conversation");
            }
            if self.verbose {
                console.note(&speed(&done.timing, engine.cpu(), None));
                if let Some(note) = Accounting::note(session, &done.timing) {
                    console.note(&note);
                }
            }
        }
        if !console.is_interactive() {
            // Nobody is there to ask something else.
            done.complete()?;
        }
        Ok(done.text)
    }
}
