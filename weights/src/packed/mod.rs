//! Weights in the order in which sparse decoding reads them.
//!
//! A checkpoint stores matrices. A neuron is then a row of `fc1` and a *column* of `fc2`: `d` values, each on another page. A
//! head's part of the output projection is a block of columns likewise. An engine that reads only some neurons and heads of
//! such a file saves arithmetic but hardly any bytes. So the layers are packed once, into a file where a unit is one contiguous
//! record that the engine streams from the mapped file as it is.
//!
//! It is a safetensors file. Layer `i` has three tensors, all of one type; the last dimension is the model width `d`:
//!
//! | tensor | shape | record |
//! | --- | --- | --- |
//! | `layers.{i}.heads` | `[H, 2*d_h, d]` | head `h`: its `d_h` rows of Wq, then its `d_h` columns of Wo |
//! | `layers.{i}.kv_heads` | `[H_kv, 2*d_h, d]` | key/value head `g`: its `d_h` rows of Wk, then its `d_h` rows of Wv |
//! | `layers.{i}.neurons` | `[F, R, d]` | neuron: `fc1` row, `fc2` column (`R = 2`), or `gate` row, `up` row, `down` column (`R = 3`) |
//!
//! Everything else that the model has (norms, biases, embeddings, an untied head) follows under its own name and type. The
//! metadata holds the format's version, the type, `config.json`, a fingerprint, and which files the weights were packed from.
//!
//! Packing is slow enough (a few seconds per GB) to be done once, and a file that is kept can be wrong later. What protects its
//! user: it is written under a temporary name by one process at a time and renamed when complete; every name, shape, type and
//! offset is checked before the first read; and it names its source by content hash. Hashing gigabytes at every start would be
//! slow itself, so a source file of the same size and modification time counts as the same, and only one whose time differs is
//! hashed again.

mod format;
mod identity;
mod location;
mod lock;
mod memory;
mod open;
mod pack;
mod problem;
mod records;
#[cfg(test)]
mod tests;

pub use format::{PackedHeader, parse_packed_header};
pub use identity::{SourceFile, SourceIdentity};
pub(crate) use location::FILE_NAME;
pub use location::{cache_directory, packed_location};
pub use open::{PackedCheckpoint, PackedLayer};
pub use pack::{PackReport, pack};
pub use problem::PackedProblem;
