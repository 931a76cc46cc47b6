//! Causal attention over a key/value cache.
//!
//! Scores never exist as a matrix: keys are taken in blocks with a running maximum and a running sum, so memory does not grow
//! with the context. Two regimes:
//!
//! * one query row (decode) is bound by reading the cache: [`decode`] streams the keys and values of a head once for all
//!   query heads that share them, and cuts long contexts into pieces of fixed length that several threads can take;
//! * many rows (prefill) are bound by arithmetic: [`prefill`] runs vectors along (row, query head) pairs and uses the tile of
//!   the blocked product for both multiplications.
//!
//! The way back, [`backward`], takes the probabilities again from the logarithms of their sums, block by block as well, so it
//! needs no matrix of scores either.

mod backward;
mod decode;
mod listed;
#[cfg(test)]
pub(crate) mod oracle;
mod panel;
mod prefill;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::ops::Range;

pub use backward::{AttentionPass, attention_backward};
use listed::Heads;
pub use listed::{attention_gather, attention_gather_bytes};

use super::cpu::Cpu;

/// What one layer's attention looks like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// `H`, query heads.
    pub heads: usize,
    /// `H_kv`, key/value heads; divides `H`. Query head `h` uses key/value head `h / (H / H_kv)`.
    pub kv_heads: usize,
    /// `d_h`.
    pub head_dim: usize,
    /// Each row sees at most this many positions, itself included. `None`: all before it.
    pub window: Option<usize>,
    /// Factor on every score, usually `1/sqrt(d_h)`.
    pub scale: f32,
}

impl AttentionShape {
    /// Panics if this is no shape of an attention.
    fn check(&self) {
        let AttentionShape { heads, kv_heads, window, .. } = *self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "{kv_heads} key/value heads do not divide {heads} heads"
        );
        assert_ne!(window, Some(0), "a window sees at least one position");
    }

    /// Query heads that share one key/value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Positions that the row at `position` sees.
    fn visible(&self, position: usize) -> Range<usize> {
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        first..position + 1
    }
}

/// `out = softmax(q k^T * scale) v` for each row and query head.
///
/// `q` `[T, H, d_h]`, `k` and `v` `[H_kv, capacity, d_h]`, `out` `[T, H, d_h]`. Row `t` is at position `start + t` and sees the
/// positions `max(0, start + t + 1 - window) ..= start + t`, which must have been written to the cache.
///
/// # Panics
/// If `H_kv` does not divide `H`, the lengths do not fit the shape, `window` is 0, or `start + T > capacity`.
#[allow(clippy::too_many_arguments)]
pub fn attention(
    cpu: &Cpu,
    shape: &AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    capacity: usize,
    start: usize,
    out: &mut [f32],
) {
    let Some(operands) = Operands::of(shape, q, k, v, capacity, start, out) else { return };
    if operands.t == 1 {
        decode::decode(cpu, operands, Heads::All, out);
    } else {
        prefill::prefill(cpu, operands, out, None);
    }
}

/// [`attention`] of the rows from position 0 on that also records what [`attention_backward`] needs: `log_sums` `[T, H]`, the
/// logarithm of the sum of each row's exponentials. `out` has the bits that [`attention`] gives for two rows and more.
///
/// # Panics
/// As [`attention`], or if `log_sums` is not `[T, H]`.
#[allow(clippy::too_many_arguments)]
pub fn attention_recorded(
    cpu: &Cpu,
    shape: &AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    capacity: usize,
    out: &mut [f32],
    log_sums: &mut [f32],
) {
    let Some(operands) = Operands::of(shape, q, k, v, capacity, 0, out) else { return };
    assert_eq!(log_sums.len(), operands.t * shape.heads, "one logarithm for each row and head");
    prefill::prefill(cpu, operands, out, Some(log_sums));
}

/// Bytes of the key/value cache that [`attention`] reads for `t` rows from position `start`.
pub fn attention_bytes(shape: &AttentionShape, start: usize, t: usize) -> u64 {
    if t == 0 {
        return 0;
    }
    let positions = start + t - shape.visible(start).start;
    (2 * shape.kv_heads * positions * shape.head_dim * size_of::<f32>()) as u64
}

/// Names of the kernels that [`attention`] runs.
pub(super) fn names(cpu: &Cpu) -> Vec<(String, String)> {
    let isa = cpu.isa();
    vec![
        ("attention, 1 row".to_owned(), format!("{isa}-f32-pieces{}", decode::PIECE)),
        ("attention, 2 rows or more".to_owned(), format!("{isa}-f32-panel{}", panel::panel_width(cpu.geometry()))),
        ("attention, gradient".to_owned(), format!("{isa}-f32-panel{}", panel::panel_width(cpu.geometry()))),
    ]
}

/// The operands of one call; lengths were checked.
#[derive(Clone, Copy)]
struct Operands<'a> {
    shape: AttentionShape,
    /// `[t, H, d_h]`, or `[listed heads, d_h]`
    q: &'a [f32],
    /// `[H_kv, capacity, d_h]`
    k: &'a [f32],
    /// `[H_kv, capacity, d_h]`
    v: &'a [f32],
    capacity: usize,
    /// Position of row 0.
    start: usize,
    t: usize,
}

impl<'a> Operands<'a> {
    /// Checks the lengths; `None` if there is nothing to compute.
    fn of(
        shape: &AttentionShape,
        q: &'a [f32],
        k: &'a [f32],
        v: &'a [f32],
        capacity: usize,
        start: usize,
        out: &[f32],
    ) -> Option<Self> {
        let AttentionShape { heads, head_dim, .. } = *shape;
        shape.check();
        assert_eq!(q.len(), out.len(), "queries and output are of the same length");
        let row = heads * head_dim;
        if row == 0 || q.is_empty() {
            return None;
        }
        let t = q.len() / row;
        assert_eq!(q.len(), t * row, "queries are no whole number of rows of {heads} x {head_dim}");
        let operands = Operands { shape: *shape, q, k, v, capacity, start, t };
        operands.check();
        Some(operands)
    }

    /// Panics if the cache does not have the shape or ends before the last row.
    fn check(&self) {
        let Operands { capacity, start, t, .. } = *self;
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        assert!(start + t <= capacity, "positions {start}..{} in a cache of {capacity}", start + t);
        assert_eq!(self.k.len(), kv_heads * capacity * head_dim, "keys are {kv_heads} x {capacity} x {head_dim}");
        assert_eq!(self.v.len(), self.k.len(), "values are as many as keys");
    }

    /// Keys and values of one head at `positions`, `[positions, d_h]` each.
    fn cached(&self, kv_head: usize, positions: Range<usize>) -> (&'a [f32], &'a [f32]) {
        let d = self.shape.head_dim;
        let range = (kv_head * self.capacity + positions.start) * d..(kv_head * self.capacity + positions.end) * d;
        (&self.k[range.clone()], &self.v[range])
    }
}
