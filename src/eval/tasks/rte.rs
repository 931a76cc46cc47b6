//! RTE: does a text entail a sentence? (Recognizing Textual Entailment; GLUE)

use super::{Item, Prompt, Record, TaskFormat};
use crate::Result;

/// The task.
pub(super) struct Rte;

impl TaskFormat for Rte {
    fn name(&self) -> &'static str {
        "rte"
    }

    fn columns(&self) -> &'static [&'static str] {
        &["sentence1", "sentence2", "label"]
    }

    fn normalizes(&self) -> bool {
        false
    }

    fn item(&self, record: &Record<'_>) -> Result<Item> {
        let (text, sentence) = (record.text("sentence1")?, record.text("sentence2")?);
        let context = format!("{text}\nQuestion: {sentence} True or False?\nAnswer:");
        let choices = vec!["True".to_owned(), "False".to_owned()];
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
        let record = serde_json::json!({"sentence1": "Rain fell.", "sentence2": "It was dry.", "label": 1, "idx": 0});
        let item = item(&Rte, record).unwrap();
        let prompt = choices("Rain fell.\nQuestion: It was dry. True or False?\nAnswer:", &["True", "False"]);
        assert_eq!(item, Item { prompt, gold: 1 });
        assert_eq!(item.example(), "Rain fell.\nQuestion: It was dry. True or False?\nAnswer: False\n\n");
    }
}
