//! `shadowllm eval`: quality of a model, dense or under a policy.

mod masking;
mod perplexity;
mod tasks;

use clap::Subcommand;

pub(super) use tasks::{TaskFile, task_file};

use super::console::Console;
use crate::Result;

/// Measure a model's quality.
#[derive(Debug, Subcommand)]
pub(super) enum Eval {
    Perplexity(perplexity::PerplexityCommand),
    Tasks(tasks::TasksCommand),
}

impl Eval {
    pub(super) fn run(self, console: &mut Console) -> Result<()> {
        match self {
            Eval::Perplexity(command) => command.run(console),
            Eval::Tasks(command) => command.run(console),
        }
    }
}
