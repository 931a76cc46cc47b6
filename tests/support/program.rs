//! Running the program as its users do.

#![allow(dead_code, clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// The program on these arguments. Nothing may look into this machine's caches or reach for the network.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shadowllm"));
    command.args(args);
    isolated(&mut command);
    command
}

/// Sets the folder and the environment in which the program runs in tests.
pub fn isolated(command: &mut Command) {
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", "no-such-cache").current_dir(ROOT);
    // A run of the tests on one instruction set may go on beside one on all.
    let isa = std::env::var("SHADOWLLM_ISA").unwrap_or_default();
    command.env("SHADOWLLM_CACHE", format!("{}/packed{isa}", env!("CARGO_TARGET_TMPDIR")));
}

pub fn run(args: &[&str]) -> Run {
    run_with_input(args, "")
}

pub fn run_with_input(args: &[&str], input: &str) -> Run {
    finish(command(args), input)
}

/// Starts a command, gives it its input and waits for its end.
pub fn finish(mut command: Command, input: &str) -> Run {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

pub fn json(args: &[&str]) -> Value {
    let run = run(args);
    assert_eq!(run.code, Some(0), "{}", run.err);
    serde_json::from_str(&run.out).unwrap()
}

pub fn fixture(name: &str) -> String {
    format!("{ROOT}/tests/fixtures/parity/{name}")
}

/// A copy of a fixture that a test may damage.
pub fn copy(name: &str, into: &Path) -> PathBuf {
    let to = into.join(name);
    std::fs::create_dir(&to).unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    to
}
