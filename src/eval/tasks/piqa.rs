//! PIQA: which of two ways reaches a goal? (Bisk et al., 2020)

use super::{Item, Prompt, Record, TaskFormat};
use crate::Result;

/// The task.
pub(super) struct Piqa;

impl TaskFormat for Piqa {
    fn name(&self) -> &'static str {
        "piqa"
    }

    fn columns(&self) -> &'static [&'static str] {
        &["goal", "sol1", "sol2", "label"]
    }

    fn normalizes(&self) -> bool {
        true
    }

    fn item(&self, record: &Record<'_>) -> Result<Item> {
        let context = format!("Question: {}\nAnswer:", record.text("goal")?);
        let choices = vec![record.text("sol1")?.to_owned(), record.text("sol2")?.to_owned()];
        let gold = record.answer("label", 0, choices.len())?;
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
        let record =
            serde_json::json!({"goal": "Open a tin", "sol1": "Use an opener. ", "sol2": "Sing to it.", "label": 0});
        let item = item(&Piqa, record).unwrap();
        let prompt = choices("Question: Open a tin\nAnswer:", &["Use an opener. ", "Sing to it."]);
        assert_eq!(item, Item { prompt, gold: 0 });
        assert_eq!(item.requests("S\n\n")[1], ("S\n\nQuestion: Open a tin\nAnswer:".into(), " Sing to it.".into()));
        assert_eq!(item.example(), "Question: Open a tin\nAnswer: Use an opener. \n\n");
    }
}
