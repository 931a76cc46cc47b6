//! Reading a GGUF file's header: metadata and the table of tensors.
//!
//! The file is untrusted. Every length and count is compared with what is left of the file before anything is allocated, so
//! memory stays within a small multiple of the file's size, and every tensor that [`Gguf`] hands out was checked to lie
//! inside the file, aligned and not overlapping another.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3, little-endian.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use super::problem::{GgufProblem, GgufResult};
use super::quants::{QuantType, format_type_name};

/// Deepest nesting of arrays in metadata that is read.
const MAX_NESTING: usize = 4;
/// Alignment of tensor data where `general.alignment` does not say otherwise.
const DEFAULT_ALIGNMENT: u32 = 32;

/// Type of a metadata value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// Unsigned 8 bit.
    U8,
    /// Signed 8 bit.
    I8,
    /// Unsigned 16 bit.
    U16,
    /// Signed 16 bit.
    I16,
    /// Unsigned 32 bit.
    U32,
    /// Signed 32 bit.
    I32,
    /// IEEE 754 binary32.
    F32,
    /// One byte, zero or not.
    Bool,
    /// Length and UTF-8 bytes.
    String,
    /// Values of one type.
    Array,
    /// Unsigned 64 bit.
    U64,
    /// Signed 64 bit.
    I64,
    /// IEEE 754 binary64.
    F64,
}

impl ValueType {
    /// In the order of their numbers.
    const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::String,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// Name used in messages.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }

    /// Bytes of one value; for strings and arrays the least there can be.
    fn size(self) -> usize {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 | ValueType::String => 8,
            ValueType::Array => 12,
        }
    }
}

/// One metadata value; texts and arrays of numbers stay in the file's memory.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// A whole number of any width.
    Int(i128, ValueType),
    /// A number with a fraction.
    Float(f64, ValueType),
    /// Yes or no.
    Bool(bool),
    /// A text.
    String(&'a str),
    /// Numbers or booleans, as raw little-endian bytes.
    Scalars(ValueType, &'a [u8]),
    /// Texts.
    Strings(Vec<&'a str>),
    /// Arrays.
    Arrays(Vec<Value<'a>>),
}

impl Value<'_> {
    /// What it is, for messages.
    pub fn describe(&self) -> String {
        match self {
            Value::Int(_, t) | Value::Float(_, t) => format!("of type {}", t.name()),
            Value::Bool(_) => "of type bool".to_owned(),
            Value::String(_) => "of type string".to_owned(),
            Value::Scalars(t, bytes) => format!("an array of {} {}", bytes.len() / t.size(), t.name()),
            Value::Strings(s) => format!("an array of {} string", s.len()),
            Value::Arrays(a) => format!("an array of {} array", a.len()),
        }
    }
}

/// A number or boolean; `bytes` has the type's size.
fn scalar<'a>(kind: ValueType, bytes: &[u8]) -> Value<'a> {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(word);
    match kind {
        ValueType::Bool => Value::Bool(unsigned != 0),
        ValueType::F32 => Value::Float(f64::from(f32::from_bits(unsigned as u32)), kind),
        ValueType::F64 => Value::Float(f64::from_bits(unsigned), kind),
        ValueType::I8 => Value::Int(i128::from(unsigned as i8), kind),
        ValueType::I16 => Value::Int(i128::from(unsigned as i16), kind),
        ValueType::I32 => Value::Int(i128::from(unsigned as i32), kind),
        ValueType::I64 => Value::Int(i128::from(unsigned as i64), kind),
        _ => Value::Int(i128::from(unsigned), kind),
    }
}

/// One tensor of a GGUF file.
#[derive(Clone, PartialEq)]
pub struct GgufTensor<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// Type on disk.
    pub quant: QuantType,
    /// Sizes, outermost first (the file stores them innermost first).
    pub shape: Vec<usize>,
    /// The blocks.
    pub data: &'a [u8],
}

impl fmt::Debug for GgufTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.name, self.quant, self.shape)
    }
}

impl GgufTensor<'_> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }
}

/// A parsed GGUF file over its bytes.
#[derive(Clone, Debug)]
pub struct Gguf<'a> {
    /// Metadata by key.
    pub metadata: BTreeMap<&'a str, Value<'a>>,
    /// Tensors in the file's order.
    pub tensors: Vec<GgufTensor<'a>>,
}

impl<'a> Gguf<'a> {
    /// Reads and checks the header of a whole file.
    ///
    /// # Errors
    /// The first [`GgufProblem`] met.
    pub fn parse(file: &'a [u8]) -> GgufResult<Self> {
        let mut cursor = Cursor { file, at: 0 };
        let magic = &file[..file.len().min(4)];
        if magic != b"GGUF" {
            return Err(GgufProblem::Magic { found: magic.to_vec() });
        }
        cursor.at = 4;
        let version = cursor.u32("the version")?;
        if !matches!(version, 2 | 3) {
            let big_endian = matches!(version.swap_bytes(), 1..=3);
            return Err(if big_endian { GgufProblem::BigEndian } else { GgufProblem::Version { found: version } });
        }
        let tensor_count = cursor.u64("the number of tensors")?;
        let key_count = cursor.u64("the number of metadata keys")?;
        // The smallest key is a length, a type and one byte; the smallest tensor a length, a count, a size, a type, an offset.
        let key_count = cursor.count(key_count, 8 + 4 + 1, || "the number of metadata keys".to_owned())?;
        let metadata = read_metadata(&mut cursor, key_count)?;
        let tensor_count = cursor.count(tensor_count, 8 + 4 + 8 + 4 + 8, || "the number of tensors".to_owned())?;
        let infos = (0..tensor_count).map(|i| TensorInfo::read(&mut cursor, i)).collect::<GgufResult<Vec<_>>>()?;

        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(&Value::Int(n, ValueType::U32)) => n as u32,
            Some(other) => {
                return Err(GgufProblem::KeyType {
                    key: "general.alignment".to_owned(),
                    found: other.describe(),
                    expected: "u32",
                });
            }
        };
        if !alignment.is_power_of_two() || alignment > 1 << 16 {
            return Err(GgufProblem::Alignment { found: alignment });
        }
        let data_start = cursor.at.next_multiple_of(alignment as usize).min(file.len());
        let tensors = place_tensors(infos, &file[data_start..], u64::from(alignment))?;
        Ok(Gguf { metadata, tensors })
    }
}

/// A position in the file that cannot leave it.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.file.len() - self.at) as u64
    }

    fn take(&mut self, len: u64, what: impl FnOnce() -> String) -> GgufResult<&'a [u8]> {
        if len > self.left() {
            return Err(GgufProblem::Truncated { what: what(), needed: len, available: self.left() });
        }
        let end = self.at + len as usize;
        let bytes = &self.file[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> GgufResult<[u8; N]> {
        let bytes = self.take(N as u64, || what.to_owned())?;
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> GgufResult<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> GgufResult<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Checks a count of things of at least `least` bytes each against the rest of the file.
    fn count(&self, found: u64, least: usize, what: impl FnOnce() -> String) -> GgufResult<usize> {
        let limit = self.left() / least as u64;
        if found > limit {
            return Err(GgufProblem::Count { what: what(), found, limit });
        }
        Ok(found as usize)
    }

    fn string(&mut self, what: impl Fn() -> String) -> GgufResult<&'a str> {
        let len = self.array(&what()).map(u64::from_le_bytes)?;
        let bytes = self.take(len, &what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufProblem::NotUtf8 { what: what() })
    }

    fn value_type(&mut self, key: &str) -> GgufResult<ValueType> {
        let found = self.u32("a value type")?;
        let known = ValueType::ALL.get(found as usize).copied();
        known.ok_or_else(|| GgufProblem::ValueType { key: key.to_owned(), found })
    }

    fn value(&mut self, key: &str, kind: ValueType, depth: usize) -> GgufResult<Value<'a>> {
        let what = || format!("the value of key {key:?}");
        match kind {
            ValueType::String => self.string(what).map(Value::String),
            ValueType::Array if depth == MAX_NESTING => {
                Err(GgufProblem::Nesting { key: key.to_owned(), limit: MAX_NESTING })
            }
            ValueType::Array => {
                let element = self.value_type(key)?;
                let len = self.u64("an array length")?;
                let len = self.count(len, element.size(), || format!("the array length of key {key:?}"))?;
                match element {
                    ValueType::String => {
                        (0..len).map(|_| self.string(what)).collect::<GgufResult<_>>().map(Value::Strings)
                    }
                    ValueType::Array => (0..len)
                        .map(|_| self.value(key, element, depth + 1))
                        .collect::<GgufResult<_>>()
                        .map(Value::Arrays),
                    _ => {
                        let bytes = self.take((len * element.size()) as u64, what)?;
                        Ok(Value::Scalars(element, bytes))
                    }
                }
            }
            _ => self.take(kind.size() as u64, what).map(|bytes| scalar(kind, bytes)),
        }
    }
}

fn read_metadata<'a>(cursor: &mut Cursor<'a>, count: usize) -> GgufResult<BTreeMap<&'a str, Value<'a>>> {
    let mut metadata = BTreeMap::new();
    for i in 0..count {
        let key = cursor.string(|| format!("metadata key {i}"))?;
        let kind = cursor.value_type(key)?;
        let value = cursor.value(key, kind, 0)?;
        if metadata.insert(key, value).is_some() {
            return Err(GgufProblem::DuplicateKey { key: key.to_owned() });
        }
    }
    Ok(metadata)
}

/// A row of the tensor table, not yet checked against the data.
struct TensorInfo<'a> {
    name: &'a str,
    quant: QuantType,
    /// Outermost first.
    shape: Vec<usize>,
    /// From the start of the data.
    offset: u64,
    /// Bytes of the data.
    len: u64,
}

impl<'a> TensorInfo<'a> {
    fn read(cursor: &mut Cursor<'a>, index: usize) -> GgufResult<Self> {
        let name = cursor.string(|| format!("the name of tensor {index}"))?;
        let what = format!("the entry of tensor {name:?}");
        let dimensions = cursor.u32(&what)?;
        if !(1..=4).contains(&dimensions) {
            return Err(GgufProblem::Dimensions { name: name.to_owned(), found: dimensions });
        }
        let mut sizes = (0..dimensions).map(|_| cursor.u64(&what)).collect::<GgufResult<Vec<u64>>>()?;
        let number = cursor.u32(&what)?;
        let offset = cursor.u64(&what)?;
        let quant = QuantType::from_number(number)
            .ok_or_else(|| GgufProblem::TensorType { name: name.to_owned(), found: format_type_name(number) })?;
        let row = sizes[0];
        if !row.is_multiple_of(quant.block_len() as u64) {
            return Err(GgufProblem::Blocks { name: name.to_owned(), row, quant });
        }
        sizes.reverse();
        // `isize::MAX` rather than `usize::MAX` elements of `f32`, so that later arithmetic cannot overflow either.
        let values = sizes.iter().try_fold(1u64, |n, &s| n.checked_mul(s)).filter(|&n| n <= (isize::MAX / 4) as u64);
        let Some(values) = values else {
            return Err(GgufProblem::Shape { name: name.to_owned(), shape: sizes });
        };
        let len = values / quant.block_len() as u64 * quant.block_bytes() as u64;
        let shape = sizes.iter().map(|&s| s as usize).collect();
        Ok(TensorInfo { name, quant, shape, offset, len })
    }
}

/// Checks names and places, and attaches the data.
fn place_tensors<'a>(infos: Vec<TensorInfo<'a>>, data: &'a [u8], alignment: u64) -> GgufResult<Vec<GgufTensor<'a>>> {
    let mut names = HashSet::with_capacity(infos.len());
    for info in &infos {
        let name = || info.name.to_owned();
        if !names.insert(info.name) {
            return Err(GgufProblem::DuplicateTensor { name: name() });
        }
        if !info.offset.is_multiple_of(alignment) {
            return Err(GgufProblem::Misaligned { name: name(), offset: info.offset, alignment });
        }
        let end = info.offset.saturating_add(info.len);
        if end > data.len() as u64 {
            return Err(GgufProblem::OutOfBounds { name: name(), end, available: data.len() as u64 });
        }
    }
    let mut by_offset: Vec<&TensorInfo> = infos.iter().filter(|i| i.len > 0).collect();
    by_offset.sort_by_key(|i| i.offset);
    for pair in by_offset.windows(2) {
        if pair[0].offset + pair[0].len > pair[1].offset {
            return Err(GgufProblem::Overlap { first: pair[0].name.to_owned(), second: pair[1].name.to_owned() });
        }
    }
    let place = |i: TensorInfo<'a>| {
        let data = &data[i.offset as usize..(i.offset + i.len) as usize];
        GgufTensor { name: i.name, quant: i.quant, shape: i.shape, data }
    };
    Ok(infos.into_iter().map(place).collect())
}
