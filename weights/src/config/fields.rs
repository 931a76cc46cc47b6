//! Typed reading of JSON keys, with errors that name the key, what it is and what it should be.
//!
//! A key that is `null` counts as missing: transformers writes `null` for "use the default" in some places and for "none" in
//! others, so where the two differ (`sliding_window`) the reader asks [`Fields::is_null`].

use serde_json::{Map, Value};

use crate::{DType, Error, Result};

/// The keys of one JSON object. `prefix` is its own key, for messages.
pub(super) struct Fields {
    map: Map<String, Value>,
    prefix: String,
}

impl Fields {
    /// Reads a whole file, which must be one object.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let map = serde_json::from_slice(bytes).map_err(|e| Error::ConfigSyntax { reason: e.to_string() })?;
        Ok(Fields { map, prefix: String::new() })
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Full name of a key for messages: `rope_scaling.factor`.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// An [`Error::ConfigValue`] of this key.
    pub(super) fn wrong(&self, key: &str, expected: &str) -> Error {
        let mut found = self.map.get(key).map_or_else(|| "missing".to_owned(), Value::to_string);
        if let Some((cut, _)) = found.char_indices().nth(80) {
            found.truncate(cut);
            found.push_str("...");
        }
        Error::ConfigValue { key: self.name(key), found, expected: expected.to_owned() }
    }

    /// Whether the key is there, be it `null`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Whether there are no keys.
    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Whether the key is there with the value `null`.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// An object with its keys.
    pub(super) fn object(&self, key: &str) -> Result<Option<Fields>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map: map.clone(), prefix: format!("{}.", self.name(key)) })),
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    /// A whole number of at least 1.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n > 0 => Ok(Some(n)),
            _ => Err(self.wrong(key, "a whole number of at least 1")),
        }
    }

    /// A whole number of at least 0.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(self.wrong(key, "a whole number of at least 0")),
        }
    }

    /// A number over 0 that f32 can hold.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f32>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64().map(|x| x as f32) {
            Some(x) if x > 0.0 && x.is_finite() => Ok(Some(x)),
            _ => Err(self.wrong(key, "a finite number over 0")),
        }
    }

    /// As [`Fields::positive`], without a default.
    pub(super) fn required_positive(&self, key: &str) -> Result<f32> {
        self.positive(key)?
            .ok_or_else(|| Error::ConfigMissing { key: self.name(key), expected: "a finite number over 0".to_owned() })
    }

    /// A truth value.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<String>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    /// A list of strings.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value
            .as_array()
            .and_then(|list| list.iter().map(|v| v.as_str().map(str::to_owned)).collect())
            .map(Some)
            .ok_or_else(|| self.wrong(key, "a list of strings"))
    }

    /// A token id. Negative numbers mean "none", as old files write it.
    pub(super) fn token(&self, key: &str) -> Result<Option<u32>> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => self.token_of(key, value, "a token id"),
        }
    }

    /// One token id or a list of them.
    pub(super) fn tokens(&self, key: &str) -> Result<Option<Vec<u32>>> {
        const EXPECTED: &str = "a token id or a list of token ids";
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(list)) => {
                let ids = list.iter().map(|value| self.token_of(key, value, EXPECTED)).collect::<Result<Vec<_>>>()?;
                Ok(Some(ids.into_iter().flatten().collect()))
            }
            Some(value) => Ok(Some(self.token_of(key, value, EXPECTED)?.into_iter().collect())),
        }
    }

    fn token_of(&self, key: &str, value: &Value, expected: &str) -> Result<Option<u32>> {
        if value.as_i64().is_some_and(|n| n < 0) {
            return Ok(None);
        }
        match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(id) => Ok(Some(id)),
            None => Err(self.wrong(key, expected)),
        }
    }

    /// `dtype`, or `torch_dtype` as older files call it. Unknown names are no error: the tensors' own types are what counts.
    pub(super) fn dtype(&self) -> Result<Option<DType>> {
        let name = match self.text("dtype")? {
            Some(name) => Some(name),
            None => self.text("torch_dtype")?,
        };
        Ok(match name.as_deref() {
            Some("float32") => Some(DType::F32),
            Some("float16") => Some(DType::F16),
            Some("bfloat16") => Some(DType::BF16),
            Some("int8") => Some(DType::I8),
            _ => None,
        })
    }
}
