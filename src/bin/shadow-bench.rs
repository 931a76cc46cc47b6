//! The `shadow-bench` command-line program.

use std::process::ExitCode;

fn main() -> ExitCode {
    shadowllm::bench::main(std::env::args_os())
}
