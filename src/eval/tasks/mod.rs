//! Multiple-choice tasks by log-likelihood, as lm-evaluation-harness has them.
//!
//! A question is asked as a text that each choice would continue, and the choice that the model finds most likely is its answer.
//! Prompts are those of lm-evaluation-harness 0.4, spaces and quirks included, so that figures compare with published ones. The
//! data sets are jsonl files with the columns that Hugging Face gives them.
//!
//! ```text
//! jsonl --TaskFormat--> Item (a prompt and its answer) --encode--> Requests --likelihoods--> TaskResult
//! ```
//!
//! A new task is one file with a [`TaskFormat`], and a line in [`TASKS`].

mod arc_easy;
mod copa;
#[cfg(feature = "tokenizer")]
mod encode;
mod hellaswag;
mod item;
mod openbookqa;
mod piqa;
mod prepare;
mod record;
mod result;
mod rte;
mod score;
mod shots;
mod winogrande;

#[cfg(feature = "tokenizer")]
pub use encode::{encode, encode_answer};
pub use item::{Item, Prompt};
pub use prepare::Prepared;
pub use record::{Record, read_items};
pub use result::{Answer, TaskResult};
pub use score::{Request, likelihoods};
pub use shots::Shots;

use crate::Result;
use crate::eval::EvalError;

/// How the records of a data set become questions.
pub trait TaskFormat: Sync {
    /// Name on the command line, in reports and in lm-evaluation-harness.
    fn name(&self) -> &'static str;

    /// Columns that a record must have.
    fn columns(&self) -> &'static [&'static str];

    /// Whether lm-evaluation-harness also reports accuracy by likelihood per character.
    fn normalizes(&self) -> bool;

    /// The question of a record.
    ///
    /// # Errors
    /// [`EvalError::TaskRecord`] if the record is not of this data set.
    fn item(&self, record: &Record<'_>) -> Result<Item>;
}

impl std::fmt::Debug for dyn TaskFormat + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// All tasks.
pub const TASKS: [&dyn TaskFormat; 7] = [
    &piqa::Piqa,
    &copa::Copa,
    &openbookqa::OpenBookQa,
    &winogrande::WinoGrande,
    &rte::Rte,
    &hellaswag::HellaSwag,
    &arc_easy::ArcEasy,
];

/// The task of a name.
///
/// # Errors
/// [`EvalError::UnknownTask`].
pub fn task(name: &str) -> Result<&'static dyn TaskFormat> {
    TASKS.into_iter().find(|task| task.name() == name).ok_or_else(|| {
        EvalError::UnknownTask { found: name.to_owned(), known: TASKS.map(TaskFormat::name).join(", ") }.into()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The question that a format makes of one record.
    pub(super) fn item(task: &dyn TaskFormat, record: serde_json::Value) -> Result<Item> {
        let line = record.to_string();
        task.item(&Record::parse(&line, 1, task)?)
    }

    /// A prompt whose choices continue one context.
    pub(super) fn choices(context: &str, choices: &[&str]) -> Prompt {
        Prompt::Choices { context: context.to_owned(), choices: choices.iter().map(|&c| c.to_owned()).collect() }
    }

    #[test]
    fn tasks_have_names() {
        for format in TASKS {
            assert_eq!(task(format.name()).unwrap().name(), format.name());
        }
        assert_eq!(
            task("boolq").unwrap_err().to_string(),
            "unknown task \"boolq\"; known are piqa, copa, openbookqa, winogrande, rte, hellaswag, arc_easy"
        );
    }
}
