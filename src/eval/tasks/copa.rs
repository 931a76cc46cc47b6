//! COPA: which of two sentences is the cause, or the effect, of another? (Roemmele et al., 2011; SuperGLUE)

use super::{Item, Prompt, Record, TaskFormat};
use crate::Result;

/// The task.
pub(super) struct Copa;

impl TaskFormat for Copa {
    fn name(&self) -> &'static str {
        "copa"
    }

    fn columns(&self) -> &'static [&'static str] {
        &["premise", "choice1", "choice2", "question", "label"]
    }

    fn normalizes(&self) -> bool {
        false
    }

    fn item(&self, record: &Record<'_>) -> Result<Item> {
        let mut premise = record.text("premise")?.trim().chars();
        // The period.
        premise.next_back();
        let connector = match record.text("question")? {
            "cause" => "because",
            "effect" => "therefore",
            _ => return Err(record.wrong("question", record.column("question")?, "cause or effect")),
        };
        let context = format!("{} {connector}", premise.as_str());
        let choice = |column| Ok::<_, crate::Error>(continued(record.text(column)?));
        let choices = vec![choice("choice1")?, choice("choice2")?];
        let gold = record.answer("label", 0, choices.len())?;
        Ok(Item { prompt: Prompt::Choices { context, choices }, gold })
    }
}

/// A sentence in the middle of another: a space in front and the first letter small. The space comes on top of the one that stands
/// in front of every choice; so has it the harness.
fn continued(sentence: &str) -> String {
    let mut rest = sentence.chars();
    let first: String = rest.next().into_iter().flat_map(char::to_lowercase).collect();
    format!(" {first}{}", rest.as_str())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::{choices, item};
    use super::*;
    use serde_json::json;

    #[test]
    fn prompt() {
        let record = |question| {
            json!({"premise": "The tree fell. ", "choice1": "The wind blew.", "choice2": "It was noon.", "question": question,
                "idx": 3, "label": 0})
        };
        let cause = item(&Copa, record("cause")).unwrap();
        let prompt = choices("The tree fell because", &[" the wind blew.", " it was noon."]);
        assert_eq!(cause, Item { prompt, gold: 0 });
        assert_eq!(cause.requests("")[0], ("The tree fell because".into(), "  the wind blew.".into()));
        assert_eq!(cause.example(), "The tree fell because  the wind blew.\n\n");
        let effect = item(&Copa, record("effect")).unwrap();
        assert_eq!(effect.requests("")[1].0, "The tree fell therefore");
        assert_eq!(
            item(&Copa, record("why")).unwrap_err().to_string(),
            "line 1: column \"question\" is \"why\"; expected cause or effect"
        );
    }
}
