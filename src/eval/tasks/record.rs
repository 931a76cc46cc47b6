//! Records of a data set: lines of JSON objects, checked column by column.

use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Map, Value};

use super::{Item, TaskFormat};
use crate::eval::EvalError;
use crate::generate::shorten;
use crate::{Error, Result};

/// One line of a task file.
#[derive(Debug)]
pub struct Record<'a> {
    task: &'a dyn TaskFormat,
    /// From 1.
    line: usize,
    columns: Map<String, Value>,
}

impl<'a> Record<'a> {
    /// A record of `task`; `line` is for messages.
    ///
    /// # Errors
    /// [`EvalError::TaskRecord`] if the text is no JSON object.
    pub fn parse(text: &str, line: usize, task: &'a dyn TaskFormat) -> Result<Self> {
        let fail = |reason: String| Err(EvalError::TaskRecord { line, reason }.into());
        match serde_json::from_str(text) {
            Ok(Value::Object(columns)) => Ok(Record { task, line, columns }),
            Ok(_) => fail("this is no JSON object; a task file has one object per line".to_owned()),
            Err(error) => fail(format!("this is no JSON ({error}); a task file has one object per line")),
        }
    }

    /// Whether there is such a column.
    pub fn has(&self, column: &str) -> bool {
        self.columns.contains_key(column)
    }

    /// A text.
    ///
    /// # Errors
    /// [`EvalError::TaskRecord`], here and below, if the column is missing or something else.
    pub fn text(&self, column: &str) -> Result<&str> {
        let value = self.column(column)?;
        value.as_str().ok_or_else(|| self.wrong(column, value, "a text"))
    }

    /// Several texts, at least one.
    ///
    /// # Errors
    /// As there.
    pub fn texts(&self, column: &str) -> Result<Vec<String>> {
        let value = self.column(column)?;
        let list = texts(value).filter(|list| !list.is_empty());
        list.ok_or_else(|| self.wrong(column, value, "a list of texts, at least one"))
    }

    /// The answer to a question with `choices` choices: a number from `first` on, perhaps written as a text.
    ///
    /// # Errors
    /// As there.
    pub fn answer(&self, column: &str, first: u64, choices: usize) -> Result<usize> {
        let value = self.column(column)?;
        let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
        let index = number.and_then(|number| usize::try_from(number.checked_sub(first)?).ok());
        index.filter(|&index| index < choices).ok_or_else(|| {
            let last = first + choices as u64 - 1;
            self.wrong(
                column,
                value,
                &format!("a number from {first} to {last}; a split without answers cannot be scored"),
            )
        })
    }

    /// Choices with labels, and which of them is the answer: `{"text": [..], "label": [..]}` and the label in `answer`.
    ///
    /// # Errors
    /// As there.
    pub fn labelled(&self, column: &str, answer: &str) -> Result<(Vec<String>, usize)> {
        let value = self.column(column)?;
        let list = |name| value.get(name).and_then(texts);
        let (Some(choices), Some(labels)) = (list("text"), list("label")) else {
            return Err(self.wrong(column, value, "an object with the lists text and label"));
        };
        if choices.len() != labels.len() || choices.is_empty() {
            return Err(self.wrong(column, value, "as many labels as texts, and at least one"));
        }
        let wanted = self.text(answer)?.trim_start();
        match labels.iter().position(|label| label == wanted) {
            Some(gold) => Ok((choices, gold)),
            None => Err(self.wrong(answer, self.column(answer)?, &format!("one of {}", labels.join(", ")))),
        }
    }

    /// An error about a column's value.
    pub fn wrong(&self, column: &str, found: &Value, expected: &str) -> Error {
        let found = shorten(&found.to_string());
        self.error(format!("column {column:?} is {found}; expected {expected}"))
    }

    fn error(&self, reason: String) -> Error {
        EvalError::TaskRecord { line: self.line, reason }.into()
    }

    /// A column's value.
    ///
    /// # Errors
    /// As there.
    pub fn column(&self, name: &str) -> Result<&Value> {
        self.columns.get(name).ok_or_else(|| {
            let found: Vec<&str> = self.columns.keys().map(String::as_str).collect();
            self.error(format!(
                "there is no column {name:?}; a record of {} has {}, and this one has {}: use the file of that data set",
                self.task.name(),
                self.task.columns().join(", "),
                if found.is_empty() { "none".to_owned() } else { shorten(&found.join(", ")) },
            ))
        })
    }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|text| Some(text.as_str()?.to_owned())).collect()
}

/// The questions of a file, the first `limit` of them. Empty lines are skipped.
///
/// # Errors
/// [`Error::Io`]; [`Error::InFile`] around [`EvalError::TaskRecord`], which names the line, or [`EvalError::TaskEmpty`].
pub fn read_items(path: &Path, task: &dyn TaskFormat, limit: Option<usize>) -> Result<Vec<Item>> {
    let io = |source| Error::Io { action: "read", path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let mut items = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        if limit.is_some_and(|limit| items.len() >= limit) {
            break;
        }
        let line = line.map_err(io)?;
        if !line.trim().is_empty() {
            let item = Record::parse(&line, index + 1, task).and_then(|record| task.item(&record));
            items.push(item.map_err(|error| error.in_file(path))?);
        }
    }
    match items.is_empty() {
        true => Err(Error::from(EvalError::TaskEmpty).in_file(path)),
        false => Ok(items),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{TASKS, task, tests::item};
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn wrong_records_are_named() {
        for (name, record, expected) in [
            (
                "piqa",
                json!({"question": "?", "answer": "!"}),
                "line 1: there is no column \"goal\"; a record of piqa has goal, sol1, sol2, label, and this one has question, \
                 answer: use the file of that data set",
            ),
            (
                "piqa",
                json!({}),
                "line 1: there is no column \"goal\"; a record of piqa has goal, sol1, sol2, label, and this one has none: use the \
                 file of that data set",
            ),
            ("piqa", json!({"goal": 1}), "line 1: column \"goal\" is 1; expected a text"),
            (
                "piqa",
                json!({"goal": "g", "sol1": "a", "sol2": "b", "label": -1}),
                "line 1: column \"label\" is -1; expected a number from 0 to 1; a split without answers cannot be scored",
            ),
            (
                "winogrande",
                json!({"sentence": "a _ b", "option1": "x", "option2": "y", "answer": ""}),
                "line 1: column \"answer\" is \"\"; expected a number from 1 to 2; a split without answers cannot be scored",
            ),
            (
                "arc_easy",
                json!({"question": "q", "choices": {"text": ["a"]}, "answerKey": "A"}),
                "line 1: column \"choices\" is {\"text\":[\"a\"]}; expected an object with the lists text and label",
            ),
            (
                "arc_easy",
                json!({"question": "q", "choices": {"text": ["a"], "label": ["A", "B"]}, "answerKey": "A"}),
                "line 1: column \"choices\" is {\"text\":[\"a\"],\"label\":[\"A\",\"B\"]}; expected as many labels as texts, and at \
                 least one",
            ),
            (
                "arc_easy",
                json!({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}),
                "line 1: column \"answerKey\" is \"C\"; expected one of A, B",
            ),
        ] {
            assert_eq!(item(task(name).unwrap(), record).unwrap_err().to_string(), expected);
        }
        for (text, expected) in [
            ("[1]", "line 7: this is no JSON object; a task file has one object per line"),
            (
                "{\"a\": ",
                "line 7: this is no JSON (EOF while parsing a value at line 1 column 6); a task file has one object per line",
            ),
        ] {
            assert_eq!(Record::parse(text, 7, TASKS[0]).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn files_are_read_line_by_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.jsonl");
        let line = r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}"#;
        let read = |text: &str, limit| {
            std::fs::write(&path, text).unwrap();
            read_items(&path, task("piqa").unwrap(), limit)
        };
        let three = format!("{line}\n\n{line}\n{line}");
        assert_eq!(read(&three, None).unwrap().len(), 3);
        assert_eq!(read(&three, Some(2)).unwrap().len(), 2);
        // What is behind the limit is not looked at.
        assert_eq!(read(&format!("{line}\nnonsense"), Some(1)).unwrap().len(), 1);
        let message = |text: &str| read(text, None).unwrap_err().to_string();
        let name = path.display();
        assert_eq!(
            message(" \n"),
            format!("{name}: there are no records in it; a task file has one JSON object per line")
        );
        assert!(message(&format!("{line}\n\n7")).starts_with(&format!("{name}: line 3: this is no JSON object")));
        let missing = directory.path().join("none.jsonl");
        let error = read_items(&missing, task("piqa").unwrap(), None).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot read {}: ", missing.display())), "{error}");
    }

    proptest! {
        /// Whatever stands in the columns: an item or an error.
        #[test]
        fn any_record_is_an_item_or_an_error(
            which in 0..TASKS.len(),
            texts in prop::collection::vec("\\PC{0,12}", 6),
            number in -2i64..5,
        ) {
            let value = json!({
                "goal": texts[0], "sol1": texts[1], "sol2": texts[2], "label": number,
                "premise": texts[0], "choice1": texts[1], "choice2": texts[2], "question": texts[3],
                "question_stem": texts[0], "choices": {"text": [texts[1], texts[2]], "label": [texts[3], "B"]},
                "answerKey": texts[4], "sentence": texts[0], "option1": texts[1], "option2": texts[2],
                "answer": number.to_string(), "sentence1": texts[0], "sentence2": texts[1],
                "activity_label": texts[0], "ctx_a": texts[1], "ctx_b": texts[2], "endings": [texts[3], texts[4]],
            });
            if let Ok(item) = item(TASKS[which], value) {
                prop_assert!(item.gold < item.choices().len());
                prop_assert_eq!(item.requests("").len(), item.choices().len());
                prop_assert!(item.example().ends_with("\n\n"));
            }
        }
    }
}
