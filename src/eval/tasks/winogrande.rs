//! WinoGrande: which of two names does a gap stand for? (Sakaguchi et al., 2019)
//!
//! Each name is put into the gap; what is scored is the rest of the sentence, which is the same for both.

use super::{Item, Prompt, Record, TaskFormat};
use crate::Result;

/// The task.
pub(super) struct WinoGrande;

impl TaskFormat for WinoGrande {
    fn name(&self) -> &'static str {
        "winogrande"
    }

    fn columns(&self) -> &'static [&'static str] {
        &["sentence", "option1", "option2", "answer"]
    }

    fn normalizes(&self) -> bool {
        false
    }

    fn item(&self, record: &Record<'_>) -> Result<Item> {
        let Some((before, behind)) = record.text("sentence")?.split_once('_') else {
            return Err(record.wrong("sentence", record.column("sentence")?, "a sentence with a gap, _"));
        };
        let context = |column| Ok::<_, crate::Error>(format!("{before}{}", record.text(column)?));
        let contexts = vec![context("option1")?, context("option2")?];
        let gold = record.answer("answer", 1, contexts.len())?;
        Ok(Item { prompt: Prompt::Contexts { contexts, continuation: behind.trim().to_owned() }, gold })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::item;
    use super::*;
    use serde_json::json;

    #[test]
    fn prompt() {
        let record = json!({"sentence": "The jar did not fit the box, as _ was too tall.", "option1": "the jar",
            "option2": "the box", "answer": "1"});
        let item = item(&WinoGrande, record).unwrap();
        assert_eq!(
            item.requests(""),
            [
                ("The jar did not fit the box, as the jar".into(), " was too tall.".into()),
                ("The jar did not fit the box, as the box".into(), " was too tall.".into()),
            ]
        );
        assert_eq!(item.gold, 0);
        assert_eq!(item.example(), "The jar did not fit the box, as the jar was too tall.\n\n");
    }

    #[test]
    fn a_gap_is_needed() {
        let record = json!({"sentence": "No gap.", "option1": "a", "option2": "b", "answer": "1"});
        assert_eq!(
            item(&WinoGrande, record).unwrap_err().to_string(),
            "line 1: column \"sentence\" is \"No gap.\"; expected a sentence with a gap, _"
        );
    }
}
