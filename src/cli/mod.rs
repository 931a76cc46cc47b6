//! The `shadowllm` program: one file per subcommand.
//!
//! Results go to standard output, everything else (progress, timing, warnings) to standard error, so that output can be
//! piped. With `--json` a command prints exactly one JSON document instead; its fields are the struct at the top of the
//! command's file.

mod accounting;
mod activations;
mod calibrate_gate;
mod chat;
pub(crate) mod console;
mod criteria;
mod demo;
mod device;
mod emit_cuda;
mod eval;
mod gate;
mod generate;
mod import;
mod inspect;
mod logits;
pub(crate) mod options;
mod pack;
mod plan;
mod policy;
mod random_model;
mod samples;
mod several;
mod sparsity;
mod sweep;
mod text;
mod trace;
mod train;
mod validate;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{Error, Result};
use console::Console;

/// Exit code of a run that was interrupted by the user, as shells have it for SIGINT.
const EXIT_INTERRUPTED: u8 = 130;

/// Exit code if the device that was asked for cannot be used.
const EXIT_NO_DEVICE: u8 = 3;

/// Runs OPT and Llama-family language models; reads only the weights that a token needs.
///
/// Without a command it shows what it does on the small model that is compiled into the program.
#[derive(Debug, Parser)]
#[command(name = "shadowllm", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(Box<generate::Generate>),
    Chat(chat::Chat),
    Inspect(inspect::Inspect),
    Import(import::Import),
    Pack(pack::Pack),
    CalibrateGate(calibrate_gate::CalibrateGate),
    Train(Box<train::Train>),
    Validate(validate::Validate),
    Trace(Box<trace::Trace>),
    Criteria(criteria::Criteria),
    #[command(subcommand)]
    Eval(eval::Eval),
    Sweep(Box<sweep::SweepCommand>),
    Logits(logits::Logits),
    Activations(activations::Activations),
    RandomModel(random_model::RandomModel),
    EmitCuda(emit_cuda::EmitCuda),
}

/// Runs the program on command-line arguments, the program's name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    run(args, dispatch)
}

/// Runs a program on command-line arguments, its name first, and turns what comes of it into an exit code.
pub(crate) fn run<C: Parser>(
    args: impl IntoIterator<Item = OsString>,
    program: impl FnOnce(C, &mut Console) -> Result<()>,
) -> ExitCode {
    let options = match C::try_parse_from(args) {
        Ok(options) => options,
        // Clap knows which of its messages are help (standard output, success) and which are errors.
        Err(message) => {
            let _ = message.print();
            return ExitCode::from(u8::try_from(message.exit_code()).unwrap_or(2));
        }
    };
    let mut console = Console::new();
    match program(options, &mut console) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if console::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(Error::Interrupted | Error::Weights(shadowllm_weights::Error::Interrupted)) => {
            console.note("interrupted");
            ExitCode::from(EXIT_INTERRUPTED)
        }
        Err(error) => {
            console.note(&format!("error: {error}"));
            match error {
                Error::Gpu(error) if error.is_unusable() => ExitCode::from(EXIT_NO_DEVICE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn dispatch(cli: Cli, console: &mut Console) -> Result<()> {
    match cli.command {
        None => demo::run(console),
        Some(Command::Generate(command)) => command.run(console),
        Some(Command::Chat(command)) => command.run(console),
        Some(Command::Inspect(command)) => command.run(console),
        Some(Command::Import(command)) => command.run(console),
        Some(Command::Pack(command)) => command.run(console),
        Some(Command::CalibrateGate(command)) => command.run(console),
        Some(Command::Train(command)) => command.run(console),
        Some(Command::Validate(command)) => command.run(console),
        Some(Command::Trace(command)) => command.run(console),
        Some(Command::Criteria(command)) => command.run(console),
        Some(Command::Eval(command)) => command.run(console),
        Some(Command::Sweep(command)) => command.run(console),
        Some(Command::Logits(command)) => command.run(console),
        Some(Command::Activations(command)) => command.run(console),
        Some(Command::RandomModel(command)) => command.run(console),
        Some(Command::EmitCuda(command)) => command.run(console),
    }
}
