//! `model.safetensors.index.json`: which shard holds which tensor.
//!
//! The index comes from the network, and its values become file names, so they are checked before anything is opened.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::{Error, Result};

/// Pairs as written; a map type would hide repeated names.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensor names and shard names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}

#[derive(serde::Deserialize)]
struct Document {
    weight_map: Pairs,
}

/// Reads an index: tensor name to shard, a plain file name.
///
/// # Errors
/// [`Error::IndexSyntax`], [`Error::RepeatedTensor`], [`Error::ShardName`].
pub fn parse_safetensors_index(json: &[u8]) -> Result<BTreeMap<String, String>> {
    let document: Document = serde_json::from_slice(json).map_err(|e| Error::IndexSyntax { reason: e.to_string() })?;
    let mut map = BTreeMap::new();
    for (tensor, shard) in document.weight_map.0 {
        if !is_plain_name(&shard) {
            return Err(Error::ShardName { tensor, shard });
        }
        if map.contains_key(&tensor) {
            return Err(Error::RepeatedTensor { name: tensor });
        }
        map.insert(tensor, shard);
    }
    if map.is_empty() {
        return Err(Error::IndexSyntax { reason: "weight_map is empty".to_owned() });
    }
    Ok(map)
}

/// Whether `name` is a file in the same directory, on every operating system.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains(['/', '\\', ':', '\0'])
}
