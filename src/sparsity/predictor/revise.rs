//! New validations in a predictor file that exists.
//!
//! What a predictor costs is measured after it was trained, perhaps on other text and by somebody else. Everything that the file
//! says besides must come through as it is, so its description is edited as text and its tensors are copied.

use serde_json::Value;
use shadowllm_weights::parse_safetensors_header;

use super::info::KEY;
use super::{PredictorInfo, Validation};
use crate::{Error, Result};

/// The content of a predictor file with other validations; all else is the same, bit for bit.
///
/// # Errors
/// [`Error::Weights`] and [`Error::FileMetadata`] if it is no predictor file.
pub fn with_validation(file: &[u8], validated: &[Validation]) -> Result<Vec<u8>> {
    parse_safetensors_header(file)?;
    let wrong = |reason: &str| Error::FileMetadata { key: KEY.to_owned(), reason: reason.to_owned() };
    // The header was checked: it is there, as long as its length says, and JSON.
    let length = file.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)) as usize;
    let (json, data) = file.get(8..).and_then(|rest| rest.split_at_checked(length)).unwrap_or_default();
    let mut header: Value = serde_json::from_slice(json).map_err(|e| wrong(&e.to_string()))?;
    let entry = header.get_mut("__metadata__").and_then(|metadata| metadata.get_mut(KEY));
    let Some(Value::String(description)) = entry else {
        return Err(wrong("it is not there; this is no predictor file"));
    };
    PredictorInfo::from_json(description)?;
    let list = serde_json::to_string(validated).map_err(|e| wrong(&e.to_string()))?;
    *description = with_list(description, &list);
    if PredictorInfo::from_json(description)?.validated != validated {
        return Err(wrong("its field validated cannot be replaced; train the predictor again"));
    }
    let mut json = header.to_string();
    json.extend(std::iter::repeat_n(' ', json.len().next_multiple_of(8) - json.len()));
    Ok([&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat())
}

/// A JSON object with another value of `validated`.
fn with_list(object: &str, list: &str) -> String {
    match value_of(object, "\"validated\"") {
        Some(place) => format!("{}{list}{}", &object[..place.start], &object[place.end..]),
        None => {
            let end = object.rfind('}').unwrap_or(object.len());
            format!("{},\"validated\":{list}{}", &object[..end], &object[end..])
        }
    }
}

/// Where the value of a key of the outermost object of `json`, which is valid, lies; `None` without the key.
fn value_of(json: &str, key: &str) -> Option<std::ops::Range<usize>> {
    let (mut depth, mut string, mut escaped) = (0, None, false);
    let mut start = None;
    let mut last = "";
    for (at, byte) in json.bytes().enumerate() {
        if let Some(begin) = string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    last = &json[begin..=at];
                    string = None;
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => string = Some(at),
            b'{' | b'[' => depth += 1,
            b':' if depth == 1 && start.is_none() && last == key => start = Some(at + 1),
            b',' if depth == 1 && start.is_some() => return Some(start?..at),
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(start?..at);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sparsity::predictor::{TrainingRun, WeightFormat, predictor_bytes, random_predictor};
    use crate::sparsity::testing::{config, info};
    use crate::sparsity::{Budget, Predictor};

    #[test]
    fn values_are_found_whatever_is_around_them() {
        for (json, expected) in [
            (r#"{"validated":[1,{"a":"]}\","}],"b":2}"#, Some(r#"[1,{"a":"]}\","}]"#)),
            (r#"{"b":"validated","validated":[]}"#, Some("[]")),
            (r#"{"b":{"validated":1},"validated" : [2] }"#, Some(" [2] ")),
            (r#"{"b":{"validated":1},"c":"\"validated\":3"}"#, None),
            (r#"{}"#, None),
        ] {
            assert_eq!(value_of(json, "\"validated\"").map(|place| &json[place]), expected, "{json}");
        }
    }

    /// The description without its validations, the tensors' entries, and the data.
    fn rest(file: &[u8]) -> (String, Value, Vec<u8>) {
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert_eq!(length % 8, 0);
        let mut header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
        let metadata = header.as_object_mut().unwrap().remove("__metadata__").unwrap();
        let mut description = metadata[KEY].as_str().unwrap().to_owned();
        description.replace_range(value_of(&description, "\"validated\"").unwrap(), "");
        (description, header, file[8 + length..].to_vec())
    }

    #[test]
    fn all_but_the_validations_stays_bit_for_bit() {
        let mut described = info();
        // Many digits, which a reader and writer of numbers need not keep.
        described.training.run = Some(TrainingRun { learning_rate: 0.002, held_out: 0.1 + 0.2, ..Default::default() });
        let weights = random_predictor(&described, &config(), 4, 4, 1);
        let before = predictor_bytes(&described, &weights, WeightFormat::Int8).unwrap();
        let validations: Vec<Validation> = [0.9_f32, 0.5]
            .map(|neurons| Validation {
                budget: Budget { neurons, ..Budget::DENSE },
                tokens: 7,
                ..info().validated[0].clone()
            })
            .to_vec();
        for validated in [&validations[..], &[]] {
            let after = with_validation(&before, validated).unwrap();
            let read = Predictor::from_bytes(&after, &config(), &described.model).unwrap();
            assert_eq!(read.info().validated, validated);
            assert!(rest(&after) == rest(&before));
            // The way there does not matter.
            let again = with_validation(&after, &validations).unwrap();
            assert!(again == with_validation(&before, &validations).unwrap());
        }
    }

    #[test]
    fn other_files_are_refused() {
        assert!(with_validation(b"", &[]).is_err());
        let other = br#"{"__metadata__":{"format":"pt"}}"#;
        let file = [&(other.len() as u64).to_le_bytes()[..], other].concat();
        let error = with_validation(&file, &[]).unwrap_err().to_string();
        assert_eq!(error, "metadata predictor: it is not there; this is no predictor file");
    }
}
