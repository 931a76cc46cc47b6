//! The `shadowllm` command-line program.

use std::process::ExitCode;

fn main() -> ExitCode {
    shadowllm::cli::main(std::env::args_os())
}
