//! Continues a text with the embedded model.
#![allow(clippy::print_stdout)]

use shadowllm::generate::{Completion, CompletionOptions};
use shadowllm::{Engine, EngineOptions, SessionOptions};

fn main() -> shadowllm::Result<()> {
    let engine = Engine::open("embedded", EngineOptions::default())?;
    let prompt = engine.tokenizer()?.encode("Once upon a time", true)?;
    let mut session = engine.session(SessionOptions::default())?;
    let options = CompletionOptions { max_tokens: Some(32), ..CompletionOptions::default() };
    let mut completion = Completion::start(&mut session, &prompt, &options)?;
    while let Some(piece) = completion.next_token()? {
        print!("{}", piece.text);
    }
    println!("{}", completion.finish_text());
    Ok(())
}
