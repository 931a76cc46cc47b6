//! ARC-Easy: school science with three to five choices. (Clark et al., 2018)

use super::{Item, Prompt, Record, TaskFormat};
use crate::Result;

/// The task.
pub(super) struct ArcEasy;

impl TaskFormat for ArcEasy {
    fn name(&self) -> &'static str {
        "arc_easy"
    }

    fn columns(&self) -> &'static [&'static str] {
        &["question", "choices", "answerKey"]
    }

    fn normalizes(&self) -> bool {
        true
    }

    fn item(&self, record: &Record<'_>) -> Result<Item> {
        let context = format!("Question: {}\nAnswer:", record.text("question")?);
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
        let record = serde_json::json!({"id": "x", "question": "What is wet?", "answerKey": "3",
            "choices": {"text": ["Sand", "Wood", "Water"], "label": ["1", "2", "3"]}});
        let item = item(&ArcEasy, record).unwrap();
        let prompt = choices("Question: What is wet?\nAnswer:", &["Sand", "Wood", "Water"]);
        assert_eq!(item, Item { prompt, gold: 2 });
        assert_eq!(item.requests("")[2], ("Question: What is wet?\nAnswer:".into(), " Water".into()));
    }
}
