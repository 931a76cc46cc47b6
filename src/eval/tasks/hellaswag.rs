//! HellaSwag: which of four endings continues a description? (Zellers et al., 2019)
//!
//! Takes the data set as published, and also with the harness's cleaning already done (`query`, `choices`, `gold`).

use super::{Item, Prompt, Record, TaskFormat};
use crate::Result;

/// The task.
pub(super) struct HellaSwag;

impl TaskFormat for HellaSwag {
    fn name(&self) -> &'static str {
        "hellaswag"
    }

    fn columns(&self) -> &'static [&'static str] {
        &["activity_label", "ctx_a", "ctx_b", "endings", "label"]
    }

    fn normalizes(&self) -> bool {
        true
    }

    fn item(&self, record: &Record<'_>) -> Result<Item> {
        if record.has("query") {
            let (context, choices) = (record.text("query")?.to_owned(), record.texts("choices")?);
            let gold = record.answer("gold", 0, choices.len())?;
            return Ok(Item { prompt: Prompt::Choices { context, choices }, gold });
        }
        let (label, before) = (record.text("activity_label")?, record.text("ctx_a")?);
        let context = cleaned(&format!("{label}: {before} {}", capitalized(record.text("ctx_b")?)));
        let choices: Vec<String> = record.texts("endings")?.iter().map(|ending| cleaned(ending)).collect();
        let gold = record.answer("label", 0, choices.len())?;
        Ok(Item { prompt: Prompt::Choices { context, choices }, gold })
    }
}

/// The first character large, all others small.
fn capitalized(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().into_iter().flat_map(char::to_uppercase);
    first.chain(rest.as_str().to_lowercase().chars()).collect()
}

/// Without the marks of the how-to articles that a part of the data set is made of.
fn cleaned(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let (before, bracket) = rest.split_at(open);
        out.push_str(before);
        // A bracket ends on its line.
        match bracket.find([']', '\n']).filter(|&end| bracket[end..].starts_with(']')) {
            Some(close) => rest = &bracket[close + 1..],
            None => {
                out.push('[');
                rest = &bracket[1..];
            }
        }
    }
    out.push_str(rest);
    out.replace("  ", " ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::{choices, item};
    use super::*;
    use serde_json::json;

    #[test]
    fn prompt() {
        let record = json!({"ind": 1, "activity_label": "Baking", "ctx_a": "A cook mixes dough.", "ctx_b": "the Cook",
            "ctx": "", "endings": ["bakes [step] it.", " sings. [title] Eat "], "label": "1"});
        let prompt = choices("Baking: A cook mixes dough. The cook", &["bakes it.", "sings.. Eat"]);
        assert_eq!(item(&HellaSwag, record).unwrap(), Item { prompt, gold: 1 });
    }

    #[test]
    fn prompt_of_cleaned_records() {
        let record =
            json!({"ind": 1, "query": "Baking: A cook. Then", "choices": [", he sings.", ", he bakes."], "gold": 1});
        let prompt = choices("Baking: A cook. Then", &[", he sings.", ", he bakes."]);
        assert_eq!(item(&HellaSwag, record).unwrap(), Item { prompt, gold: 1 });
    }

    #[test]
    fn cleaning() {
        for (text, expected) in [
            ("", ""),
            ("[header] How to rest [title] Lie down. [step] Sleep.", " How to rest. Lie down. Sleep."),
            ("a [b c", "a [b c"),
            ("a [b\n] c [d]", "a [b\n] c "),
            ("a [[b] c] d", "a c] d"),
            ("a    b", "a  b"),
        ] {
            assert_eq!(cleaned(text), expected, "{text:?}");
        }
        assert_eq!(capitalized("éTUDE no. TWO"), "Étude no. two");
        assert_eq!(capitalized(""), "");
    }
}
