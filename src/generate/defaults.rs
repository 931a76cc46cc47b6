//! Generation settings published with a model: `generation_config.json`.
//!
//! Authors ship the sampling settings their model was tuned for. They are defaults: whatever the user says wins. Every
//! field is optional, and `null` means absent, as in Hugging Face's `GenerationConfig`.

use serde_json::{Map, Value};

use super::{GenerateError, SamplerOptions};

const FILE: &str = "generation_config.json";

/// The fields of `generation_config.json` that this engine heeds.
///
/// ```
/// use shadowllm::generate::GenerationDefaults;
/// let defaults = GenerationDefaults::from_json(
///     br#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [128001, 128009]}"#,
/// )?;
/// assert_eq!(defaults.eos, [128001, 128009]);
/// assert_eq!(defaults.sampler_options().temperature, 0.6);
/// # Ok::<(), shadowllm::generate::GenerateError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Whether the model's authors sample at all; absent means no.
    pub do_sample: Option<bool>,
    /// See [`SamplerOptions::temperature`].
    pub temperature: Option<f32>,
    /// See [`SamplerOptions::top_k`].
    pub top_k: Option<usize>,
    /// See [`SamplerOptions::top_p`].
    pub top_p: Option<f32>,
    /// See [`SamplerOptions::min_p`].
    pub min_p: Option<f32>,
    /// See [`SamplerOptions::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// Most tokens to generate.
    pub max_new_tokens: Option<usize>,
    /// Beginning-of-sequence token.
    pub bos: Option<u32>,
    /// End-of-sequence tokens; the file has one id or a list.
    pub eos: Vec<u32>,
    /// Padding token.
    pub pad: Option<u32>,
}

impl GenerationDefaults {
    /// Reads the content of `generation_config.json`.
    ///
    /// # Errors
    /// [`GenerateError::Json`] when it is not JSON, [`GenerateError::Field`] when a field has another type, or a sampling
    /// value that [`SamplerOptions::validate`] rejects.
    pub fn from_json(bytes: &[u8]) -> Result<Self, GenerateError> {
        let root: Value = serde_json::from_slice(bytes)
            .map_err(|error| GenerateError::Json { file: FILE, reason: error.to_string() })?;
        let Value::Object(fields) = &root else {
            return Err(field_error("(top level)", &root, "an object"));
        };
        let defaults = Self {
            do_sample: read(fields, "do_sample", "true or false", Value::as_bool)?,
            temperature: read(fields, "temperature", "a number", number)?,
            top_k: read(fields, "top_k", "a whole number of at least 0", count)?,
            top_p: read(fields, "top_p", "a number", number)?,
            min_p: read(fields, "min_p", "a number", number)?,
            repetition_penalty: read(fields, "repetition_penalty", "a number", number)?,
            max_new_tokens: read(fields, "max_new_tokens", "a whole number of at least 0", count)?,
            bos: read(fields, "bos_token_id", "a token id", token)?,
            eos: read(fields, "eos_token_id", "a token id or a list of them", tokens)?.unwrap_or_default(),
            pad: read(fields, "pad_token_id", "a token id", token)?,
        };
        defaults.sampler_options().validate().map_err(|error| match error {
            GenerateError::SamplerOption { name, value, expected } => {
                GenerateError::Field { file: FILE, field: name.to_owned(), found: value, expected }
            }
            other => other,
        })?;
        Ok(defaults)
    }

    /// The sampler these settings ask for, with seed 0. Without `do_sample` it is greedy; when sampling, fields that are
    /// absent have Hugging Face's defaults: temperature 1, top-k 50, top-p 1.
    pub fn sampler_options(&self) -> SamplerOptions {
        let neutral = SamplerOptions::default();
        let repetition_penalty = self.repetition_penalty.unwrap_or(neutral.repetition_penalty);
        if self.do_sample != Some(true) {
            return SamplerOptions { repetition_penalty, ..neutral };
        }
        SamplerOptions {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(50),
            top_p: self.top_p.unwrap_or(neutral.top_p),
            min_p: self.min_p.unwrap_or(neutral.min_p),
            repetition_penalty,
            ..neutral
        }
    }
}

fn read<T>(
    fields: &Map<String, Value>,
    name: &str,
    expected: &'static str,
    convert: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, GenerateError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => convert(value).map(Some).ok_or_else(|| field_error(name, value, expected)),
    }
}

fn field_error(field: &str, value: &Value, expected: &'static str) -> GenerateError {
    GenerateError::Field { file: FILE, field: field.to_owned(), found: super::shorten(&value.to_string()), expected }
}

fn number(value: &Value) -> Option<f32> {
    value.as_f64().map(|number| number as f32)
}

fn count(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

fn token(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn tokens(value: &Value) -> Option<Vec<u32>> {
    match value {
        Value::Array(ids) => ids.iter().map(token).collect(),
        one => token(one).map(|id| vec![id]),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<GenerationDefaults, GenerateError> {
        GenerationDefaults::from_json(json.as_bytes())
    }

    #[test]
    fn reads_what_models_ship() {
        let llama = parse(
            r#"{"bos_token_id": 128000, "do_sample": true, "eos_token_id": [128001, 128008, 128009],
                "temperature": 0.6, "top_p": 0.9, "transformers_version": "4.45.0"}"#,
        )
        .unwrap();
        assert_eq!(llama.eos, [128_001, 128_008, 128_009]);
        assert_eq!(
            llama.sampler_options(),
            SamplerOptions { temperature: 0.6, top_k: 50, top_p: 0.9, ..SamplerOptions::default() }
        );
        let qwen = parse(
            r#"{"do_sample": true, "eos_token_id": 151645, "pad_token_id": 151643, "repetition_penalty": 1.1,
                "temperature": 0.7, "top_k": 20, "top_p": 0.8}"#,
        )
        .unwrap();
        assert_eq!((qwen.eos.as_slice(), qwen.pad, qwen.bos), ([151_645].as_slice(), Some(151_643), None));
        assert_eq!(qwen.sampler_options().repetition_penalty, 1.1);
    }

    #[test]
    fn without_do_sample_it_is_greedy() {
        let defaults = parse(r#"{"temperature": 0.6, "top_k": null, "eos_token_id": null}"#).unwrap();
        assert_eq!(defaults.sampler_options(), SamplerOptions::default());
        assert_eq!(defaults.temperature, Some(0.6));
        assert!(defaults.eos.is_empty());
    }

    #[test]
    fn bad_files_are_errors() {
        struct Case {
            json: &'static str,
            message: &'static str,
        }
        let cases = [
            Case {
                json: "{",
                message: "generation_config.json is not valid JSON: EOF while parsing an object at line 1 column 1; \
                          download the file again",
            },
            Case { json: "[1]", message: "generation_config.json: field `(top level)` is [1], expected an object" },
            Case {
                json: r#"{"temperature": "hot"}"#,
                message: "generation_config.json: field `temperature` is \"hot\", expected a number",
            },
            Case {
                json: r#"{"top_k": -1}"#,
                message: "generation_config.json: field `top_k` is -1, expected a whole number of at least 0",
            },
            Case {
                json: r#"{"eos_token_id": [2, "x"]}"#,
                message: "generation_config.json: field `eos_token_id` is [2,\"x\"], expected a token id or a list of them",
            },
            Case {
                json: r#"{"do_sample": true, "top_p": 1.5}"#,
                message: "generation_config.json: field `top_p` is 1.5, expected a number above 0 and at most 1 (1 keeps \
                          all tokens)",
            },
        ];
        for case in cases {
            assert_eq!(parse(case.json).unwrap_err().to_string(), case.message);
        }
    }
}
