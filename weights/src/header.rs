//! The header of a safetensors file: which tensor lies where.
//!
//! A file is mapped and its tensors are handed out as slices, so this is the place where a damaged or hostile file must be
//! stopped, and where its owner must learn what is wrong with it. Everything the format promises is checked: the length of the
//! header, one entry per name, offsets that fit the shape and type, no overlap, no hole, nothing behind the last tensor.
//!
//! Format: 8 bytes little-endian header length `n`, `n` bytes of JSON, data. Offsets count from the end of the header
//! (<https://github.com/huggingface/safetensors#format>).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use serde::de::{Deserialize, Deserializer, IgnoredAny, IntoDeserializer, MapAccess, Visitor, value};

use crate::{Error, Result};

/// Bytes of the header length.
const PREFIX: u64 = 8;
/// Longest header the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderTensor {
    /// Name.
    pub name: String,
    /// Any type of the format, also those that the engine cannot compute with.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Place, counted from the start of the file.
    pub range: Range<usize>,
}

/// An entry as written.
#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// All entries in file order of the header; a map type would hide repeated names.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// Header and data of a file.
fn split(file: &[u8]) -> Result<(&[u8], &[u8])> {
    let size = file.len() as u64;
    let Some((prefix, rest)) = file.split_first_chunk::<{ PREFIX as usize }>() else {
        return Err(Error::HeaderMissing { found: size });
    };
    let declared = u64::from_le_bytes(*prefix);
    if declared > MAX_HEADER {
        return Err(Error::HeaderTooLong { declared, limit: MAX_HEADER });
    }
    let found = rest.len() as u64;
    if declared > found {
        return Err(Error::HeaderCut { declared, found });
    }
    Ok(rest.split_at(declared as usize))
}

/// The texts under `__metadata__` in the header of `file`; none if it has none.
///
/// # Errors
/// [`Error::HeaderMissing`], [`Error::HeaderTooLong`], [`Error::HeaderCut`]; [`Error::HeaderSyntax`] if they are no texts.
pub(crate) fn safetensors_metadata(file: &[u8]) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Header {
        #[serde(rename = "__metadata__", default)]
        metadata: Option<BTreeMap<String, String>>,
    }
    let (json, _) = split(file)?;
    let header: Header = serde_json::from_slice(json).map_err(|e| Error::HeaderSyntax { reason: e.to_string() })?;
    Ok(header.metadata.unwrap_or_default())
}

/// Reads and validates the header at the start of `file`, which is the whole file (only the header is touched).
///
/// Tensors come in the order of their bytes.
///
/// # Errors
/// One of the variants under "Headers of safetensors files" of [`Error`].
pub fn parse_safetensors_header(file: &[u8]) -> Result<Vec<HeaderTensor>> {
    let (json, data) = split(file)?;
    let Entries(mut entries) =
        serde_json::from_slice(json).map_err(|e| Error::HeaderSyntax { reason: e.to_string() })?;

    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(Error::RepeatedTensor { name: pair[0].0.clone() });
    }
    entries.sort_by_key(|(_, entry)| entry.data_offsets);

    let data_start = PREFIX + json.len() as u64;
    let data_len = data.len() as u64;
    let mut tensors: Vec<HeaderTensor> = Vec::with_capacity(entries.len());
    let mut next = 0;
    for (name, entry) in entries {
        let [start, end] = entry.data_offsets;
        let tensor = check_entry(name, entry, data_start, data_len)?;
        if start > next {
            return Err(Error::UnusedBytes { start: next, bytes: start - next });
        }
        if start < next
            && let Some(before) = tensors.last()
        {
            return Err(Error::TensorsOverlap { first: before.name.clone(), second: tensor.name });
        }
        next = end;
        tensors.push(tensor);
    }
    if next < data_len {
        return Err(Error::UnusedBytes { start: next, bytes: data_len - next });
    }
    Ok(tensors)
}

/// Checks one entry by itself: type, size and place inside the data.
fn check_entry(name: String, entry: Entry, data_start: u64, data_len: u64) -> Result<HeaderTensor> {
    let Entry { dtype: written, shape, data_offsets: [start, end] } = entry;
    let source: value::StrDeserializer<'_, value::Error> = written.as_str().into_deserializer();
    let Ok(dtype) = Dtype::deserialize(source) else {
        return Err(Error::StrangeDType { name, dtype: written });
    };
    let bits = shape.iter().try_fold(dtype.bitsize() as u64, |n, &s| n.checked_mul(s));
    let sizes: Option<Vec<usize>> = shape.iter().map(|&s| usize::try_from(s).ok()).collect();
    let (Some(bits), Some(sizes)) = (bits, sizes) else {
        return Err(Error::ShapeOverflow { name, shape });
    };
    if end < start {
        return Err(Error::TensorReversed { name, start, end });
    }
    let expected = bits.div_ceil(8);
    if expected != end - start || !bits.is_multiple_of(8) {
        return Err(Error::TensorLength { name, dtype: written, shape, expected, start, end, found: end - start });
    }
    if end > data_len {
        return Err(Error::TensorCut { name, end, found: data_len });
    }
    // `data_start + end` is at most the file's length, which is a `usize`.
    Ok(HeaderTensor { name, dtype, shape: sizes, range: (data_start + start) as usize..(data_start + end) as usize })
}
