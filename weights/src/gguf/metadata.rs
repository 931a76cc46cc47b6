//! Typed access to GGUF metadata.
//!
//! Converters disagree on the width of integers, so any whole number is accepted where one is expected; everything else that
//! is not as the format says is an error that names the key.

use super::problem::{GgufProblem, GgufResult};
use super::reader::{Gguf, Value, ValueType};

impl<'a> Gguf<'a> {
    fn required<T>(&self, key: &str, value: Option<T>) -> GgufResult<T> {
        value.ok_or_else(|| GgufProblem::MissingKey { key: key.to_owned() })
    }

    fn wrong_type(key: &str, value: &Value, expected: &'static str) -> GgufProblem {
        GgufProblem::KeyType { key: key.to_owned(), found: value.describe(), expected }
    }

    /// A whole number from 0 to `u32::MAX`, if the key exists.
    ///
    /// # Errors
    /// [`GgufProblem::KeyType`], [`GgufProblem::KeyValue`].
    pub fn opt_int(&self, key: &str) -> GgufResult<Option<u64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Int(n, _)) => match u32::try_from(n) {
                Ok(n) => Ok(Some(u64::from(n))),
                Err(_) => Err(GgufProblem::KeyValue {
                    key: key.to_owned(),
                    found: n.to_string(),
                    expected: format!("0 to {}", u32::MAX),
                }),
            },
            Some(other) => Err(Self::wrong_type(key, other, "a whole number")),
        }
    }

    /// As [`Gguf::opt_int`], required and at least 1: a size.
    ///
    /// # Errors
    /// Also [`GgufProblem::MissingKey`].
    pub fn size(&self, key: &str) -> GgufResult<usize> {
        match self.required(key, self.opt_int(key)?)? {
            0 => Err(GgufProblem::KeyValue {
                key: key.to_owned(),
                found: "0".to_owned(),
                expected: "at least 1".to_owned(),
            }),
            n => Ok(n as usize),
        }
    }

    /// A finite number as `f32`, if the key exists.
    ///
    /// # Errors
    /// [`GgufProblem::KeyType`], [`GgufProblem::KeyValue`].
    pub fn opt_f32(&self, key: &str) -> GgufResult<Option<f32>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Float(v, _)) if (v as f32).is_finite() => Ok(Some(v as f32)),
            Some(&Value::Float(v, _)) => Err(GgufProblem::KeyValue {
                key: key.to_owned(),
                found: v.to_string(),
                expected: "a finite number".to_owned(),
            }),
            Some(other) => Err(Self::wrong_type(key, other, "f32")),
        }
    }

    /// As [`Gguf::opt_f32`], required.
    ///
    /// # Errors
    /// Also [`GgufProblem::MissingKey`].
    pub fn f32(&self, key: &str) -> GgufResult<f32> {
        self.required(key, self.opt_f32(key)?)
    }

    /// Yes or no, if the key exists.
    ///
    /// # Errors
    /// [`GgufProblem::KeyType`].
    pub fn opt_bool(&self, key: &str) -> GgufResult<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Bool(b)) => Ok(Some(b)),
            Some(other) => Err(Self::wrong_type(key, other, "bool")),
        }
    }

    /// A text, if the key exists.
    ///
    /// # Errors
    /// [`GgufProblem::KeyType`].
    pub fn opt_str(&self, key: &str) -> GgufResult<Option<&'a str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(Self::wrong_type(key, other, "a string")),
        }
    }

    /// As [`Gguf::opt_str`], required.
    ///
    /// # Errors
    /// Also [`GgufProblem::MissingKey`].
    pub fn str(&self, key: &str) -> GgufResult<&'a str> {
        self.required(key, self.opt_str(key)?)
    }

    /// A list of texts.
    ///
    /// # Errors
    /// [`GgufProblem::MissingKey`], [`GgufProblem::KeyType`].
    pub fn strings(&self, key: &str) -> GgufResult<&[&'a str]> {
        match self.required(key, self.metadata.get(key))? {
            Value::Strings(list) => Ok(list),
            other => Err(Self::wrong_type(key, other, "an array of string")),
        }
    }

    /// A list of `i32` (or `u32`, which some writers use for token types).
    ///
    /// # Errors
    /// [`GgufProblem::MissingKey`], [`GgufProblem::KeyType`].
    pub fn i32s(&self, key: &str) -> GgufResult<Vec<i32>> {
        match self.required(key, self.metadata.get(key))? {
            Value::Scalars(ValueType::I32 | ValueType::U32, bytes) => {
                Ok(bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
            }
            other => Err(Self::wrong_type(key, other, "an array of i32")),
        }
    }

    /// A list of `f32`.
    ///
    /// # Errors
    /// [`GgufProblem::MissingKey`], [`GgufProblem::KeyType`].
    pub fn f32s(&self, key: &str) -> GgufResult<Vec<f32>> {
        match self.required(key, self.metadata.get(key))? {
            Value::Scalars(ValueType::F32, bytes) => {
                Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
            }
            other => Err(Self::wrong_type(key, other, "an array of f32")),
        }
    }
}
