//! A task file as requests: read, checked and tokenised before the first question is scored, so that a mistake shows at once.

use super::{Item, Request, TaskFormat};

/// A task, ready to be scored.
#[derive(Debug)]
pub struct Prepared {
    /// What the questions are of.
    pub task: &'static dyn TaskFormat,
    /// The questions.
    pub items: Vec<Item>,
    /// A request for each choice of each.
    pub questions: Vec<Vec<Request>>,
}

#[cfg(feature = "tokenizer")]
impl Prepared {
    /// The first `limit` questions of a file, each behind examples that are drawn from `shots`.
    ///
    /// # Errors
    /// As [`super::read_items`]; [`crate::Error::NoTokenizer`]; [`crate::Error::InFile`] around [`crate::eval::EvalError::TaskQuestion`] for a question that cannot be
    /// asked.
    pub fn read(
        engine: &crate::Engine,
        task: &'static dyn TaskFormat,
        path: &std::path::Path,
        limit: Option<usize>,
        shots: &mut super::Shots,
    ) -> crate::Result<Prepared> {
        use super::{encode, read_items};
        use crate::Error;
        use crate::eval::EvalError;

        let items = read_items(path, task, limit)?;
        let (tokenizer, config) = (engine.tokenizer()?, engine.config());
        let question = |(index, item)| {
            encode(tokenizer, config, item, &shots.draw()).map_err(|error| {
                Error::from(EvalError::TaskQuestion { question: index + 1, source: Box::new(error) }).in_file(path)
            })
        };
        let questions = items.iter().enumerate().map(question).collect::<Result<_, Error>>()?;
        Ok(Prepared { task, items, questions })
    }
}
