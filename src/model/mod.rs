//! The model: weights with names, one forward pass, the key/value cache.
//!
//! OPT and the Llama family differ in norms, positions, biases and the form of the FFN, but the path of a token is the same:
//! embedding, then per layer attention and FFN around a residual stream, then the LM head. So there is one set of layer
//! structs ([`Layer`]), filled by the names that `shadowllm_weights::ModelNames` knows of each family, and one forward pass
//! ([`Model::forward`]) that knows nothing of families.
//!
//! Three things attach to the forward pass from outside without it being written again:
//!
//! * *Several sequences.* Its input is a list of [`Segment`]s: tokens and the cache they extend. Matrix products run over
//!   the rows of all segments together; only attention looks at them one by one. A prompt is one segment of many tokens, a
//!   decode step one segment of one token, a batch several.
//! * *Observers.* A [`Probe`] sees, and may change, each layer's contexts `A`, inners `Z` and the residual stream, at the
//!   points where DESIGN defines them. The masked dense model, which every sparse kernel is measured against, is a probe.
//! * *Logits where wanted.* The forward pass ends with the final norm; [`Model::logits`] turns any rows of its result into
//!   logits, so a prompt pays for one row of the LM head and scoring pays for all.

mod bytes;
mod cache;
mod forward;
mod layer;
mod load;
mod packed;
mod probe;
pub mod random;
mod sparse;
mod workspace;

pub use bytes::{ActiveBytes, UnitBytes};
pub use cache::KvCache;
pub use forward::Segment;
pub use layer::{Attention, Ffn, Layer, Linear, Model, Norm, Weight};
pub use packed::{PackedLayer, PackedModel};
pub use probe::{NoProbe, Probe, Rows};
pub use sparse::{Director, KeptUnits, SparseCount, SparseOptions, SparseRow};
pub use workspace::Workspace;
pub(crate) use workspace::sized;
