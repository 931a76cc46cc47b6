//! OpenBookQA: which of four texts completes a sentence of elementary science? (Mihaylov et al., 2018)

use super::{Item, Prompt, Record, TaskFormat};
use crate::Result;

/// The task.
pub(super) struct OpenBookQa;

impl TaskFormat for OpenBookQa {
    fn name(&self) -> &'static str {
        "openbookqa"
    }

    fn columns(&self) -> &'static [&'static str] {
        &["question_stem", "choices", "answerKey"]
    }

    fn normalizes(&self) -> bool {
        true
    }

    fn item(&self, record: &Record<'_>) -> Result<Item> {
        let context = record.text("question_stem")?.to_owned();
        let (choices, gold) = record.labelled("choices", "answerKey")?;
        Ok(Item { prompt: Prompt::Choices { context, choices }, gold })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::{choices, item};
    use super::*;

    #[test]
    fn prompt() {
        let record = serde_json::json!({"id": "1", "question_stem": "Ice is", "answerKey": " B",
            "choices": {"text": ["warm", "cold", "loud"], "label": ["A", "B", "C"]}});
        let item = item(&OpenBookQa, record).unwrap();
        assert_eq!(item, Item { prompt: choices("Ice is", &["warm", "cold", "loud"]), gold: 1 });
        assert_eq!(item.requests("")[2], ("Ice is".into(), " loud".into()));
        assert_eq!(item.example(), "Ice is cold\n\n");
    }
}
