//! Checks of `tokenizer.json` that the crate `tokenizers` leaves out.
//!
//! The crate trusts two parts of the file that can contradict each other, and panics when they do: the tokens of a
//! byte-pair vocabulary may have a prefix that its merges must then have too, and the `post_processor`, which says which
//! special tokens surround a text, names tokens that are defined elsewhere. Both are checked when the file is loaded.

use serde::Deserialize;
use serde_json::Value;

use super::GenerateError;

fn unusable(reason: String) -> GenerateError {
    GenerateError::Tokenizer { file: "tokenizer.json", reason }
}

/// Checks the file before the crate reads it: no subword prefix. Models with one (BERT's) are of other families, and
/// their tokens become text in another way.
///
/// # Errors
/// [`GenerateError::Tokenizer`] for such a model, or when the file has no model.
pub(super) fn check_model(json: &[u8]) -> Result<(), GenerateError> {
    #[derive(Deserialize)]
    struct File {
        model: Model,
    }
    #[derive(Deserialize)]
    struct Model {
        continuing_subword_prefix: Option<String>,
    }
    let file: File = serde_json::from_slice(json).map_err(|error| unusable(error.to_string()))?;
    match file.model.continuing_subword_prefix {
        Some(prefix) if !prefix.is_empty() => {
            Err(unusable(format!("its tokens have the subword prefix {prefix:?}, as in no OPT or Llama-family model")))
        }
        _ => Ok(()),
    }
}

/// Checks the serialised post-processor, `Value::Null` when there is none.
///
/// # Errors
/// [`GenerateError::Tokenizer`] for a template with an undefined part.
pub(super) fn check_post_processor(post_processor: &Value) -> Result<(), GenerateError> {
    if let Some(steps) = post_processor.get("processors").and_then(Value::as_array) {
        return steps.iter().try_for_each(check_post_processor);
    }
    let Some(template) = post_processor.get("single").and_then(Value::as_array) else {
        return Ok(());
    };
    let undefined =
        |what: String| unusable(format!("the template of its post_processor uses {what}, which is not defined"));
    for part in template {
        let name = |kind: &str| part.get(kind)?.get("id")?.as_str();
        if let Some(sequence) = name("Sequence")
            && sequence != "A"
        {
            return Err(undefined(format!("sequence {sequence}")));
        }
        if let Some(token) = name("SpecialToken")
            && post_processor.get("special_tokens").and_then(|tokens| tokens.get(token)).is_none()
        {
            return Err(undefined(format!("the token {token:?}")));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::test_tokenizers::{embedded_json, from_value};
    use serde_json::json;

    #[test]
    fn undefined_parts_are_errors() {
        let mut json = embedded_json();
        json["post_processor"]["single"][0]["SpecialToken"]["id"] = json!("<bos>");
        assert_eq!(
            from_value(&json).unwrap_err().to_string(),
            "tokenizer.json is not a usable tokenizer: the template of its post_processor uses the token \"<bos>\", which \
             is not defined"
        );
        let mut json = embedded_json();
        json["post_processor"]["single"][1]["Sequence"]["id"] = json!("B");
        json["post_processor"] = json!({"type": "Sequence", "processors": [json["post_processor"]]});
        assert_eq!(
            from_value(&json).unwrap_err().to_string(),
            "tokenizer.json is not a usable tokenizer: the template of its post_processor uses sequence B, which is not \
             defined"
        );
    }

    #[test]
    fn a_subword_prefix_is_an_error() {
        let mut json = embedded_json();
        json["model"]["continuing_subword_prefix"] = json!("##");
        assert_eq!(
            from_value(&json).unwrap_err().to_string(),
            "tokenizer.json is not a usable tokenizer: its tokens have the subword prefix \"##\", as in no OPT or \
             Llama-family model"
        );
    }
}
