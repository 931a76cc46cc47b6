//! Which model a scores file or a predictor belongs to.
//!
//! Importances say nothing about another model, even one of the same shape: its heads have other jobs. A file therefore carries
//! a fingerprint of the model that it was made for, and loading it for another one is an error rather than bad text.

use std::fmt;

use shadowllm_weights::ModelConfig;

use crate::model::{Ffn, Model, Weight};
use crate::tensor::Matrix;

/// A fingerprint of a model: its configuration, and a sample of its weights in the number format of its file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ModelIdentity(String);

impl ModelIdentity {
    /// The fingerprint of a loaded model. Touches two rows of weights per layer and one of the embedding.
    pub fn of(model: &Model) -> Self {
        let first = |w: &Weight| w.stored().rows_range(0..w.stored().rows().min(1)).ok();
        let rows = model.layers.iter().flat_map(|layer| {
            let ffn = match &layer.ffn {
                Ffn::Plain { fc1, .. } => &fc1.weight,
                Ffn::Gated { gate, .. } => &gate.weight,
            };
            [first(&layer.attention.q.weight), first(ffn)]
        });
        // A row in the middle: the first ones may be unused special tokens, equal in many models.
        let middle = model.embedding.rows() / 2;
        let embedding = model.embedding.rows_range(middle..(middle + 1).min(model.embedding.rows())).ok();
        Self::from_rows(&model.config, std::iter::once(embedding).chain(rows).flatten())
    }

    /// As [`ModelIdentity::of`], for weights in another arrangement. `rows`, each `[1, n]`: row `V/2` of the embedding; then
    /// of every layer the first row of the query matrix and the first row of `fc1` or `gate`.
    pub fn from_rows(config: &ModelConfig, rows: impl Iterator<Item = Matrix>) -> Self {
        let mut hash = Hash::new();
        let c = config;
        hash.add(c.architecture.name().as_bytes());
        hash.add(c.activation.name().as_bytes());
        for size in [c.layers, c.heads, c.kv_heads, c.head_dim, c.hidden, c.ffn, c.vocab] {
            hash.add(&(size as u64).to_le_bytes());
        }
        for row in rows {
            hash.add(row.dtype().name().as_bytes());
            hash.add(row.view_bytes());
        }
        ModelIdentity(format!("{:032x}", hash.0))
    }

    /// 32 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for ModelIdentity {
    fn from(text: String) -> Self {
        ModelIdentity(text)
    }
}

/// A fingerprint of data, 32 hexadecimal digits; where the parts are cut counts.
pub(crate) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Hash::new();
    parts.into_iter().for_each(|part| hash.add(part));
    format!("{:032x}", hash.0)
}

/// FNV-1a of 128 bits (Fowler, Noll, Vo; IETF draft-eastlake-fnv). It guards against mistakes, not against forgery.
struct Hash(u128);

impl Hash {
    fn new() -> Self {
        Hash(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    /// Adds a part and its length, so that parts cannot run into each other.
    fn add(&mut self, bytes: &[u8]) {
        self.write(&(bytes.len() as u64).to_le_bytes());
        self.write(bytes);
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sparsity::testing::{config, row};

    #[test]
    fn the_hash_is_fnv_1a() {
        // Published test vectors: the empty string, "a" and "foobar".
        let hash = |text: &str| {
            let mut hash = Hash::new();
            hash.write(text.as_bytes());
            hash.0
        };
        assert_eq!(hash(""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(hash("a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(hash("foobar"), 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }

    #[test]
    fn configuration_and_weights_count() {
        let identity = |config: &ModelConfig, rows: &[&[f32]]| {
            ModelIdentity::from_rows(config, rows.iter().map(|values| row(values)))
        };
        let a = config();
        let mut b = a.clone();
        b.kv_heads = 2;
        let first = identity(&a, &[&[1.0, 2.0], &[3.0]]);
        assert_eq!(first, identity(&a, &[&[1.0, 2.0], &[3.0]]));
        assert_eq!(first.as_str().len(), 32);
        for other in [
            identity(&b, &[&[1.0, 2.0], &[3.0]]),
            identity(&a, &[&[1.0], &[2.0, 3.0]]),
            identity(&a, &[&[1.0, 2.5], &[3.0]]),
        ] {
            assert_ne!(first, other);
        }
    }
}
