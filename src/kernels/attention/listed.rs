//! Which query heads take part in decoding: all, or those of a list.

use std::ops::Range;

use super::{AttentionShape, Operands, decode};
use crate::kernels::cpu::Cpu;

/// The query heads of one call of [`decode`](super::decode), in the order of its queries and outputs.
#[derive(Clone, Copy)]
pub(super) enum Heads<'a> {
    All,
    Listed(&'a [u32]),
}

/// Consecutive places among the queries that share one key/value head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) kv_head: usize,
    pub(super) places: Range<usize>,
}

impl Heads<'_> {
    /// How many query heads there are.
    pub(super) fn count(self, shape: &AttentionShape) -> usize {
        match self {
            Heads::All => shape.heads,
            Heads::Listed(list) => list.len(),
        }
    }

    /// How many values of `i` are to be tried with [`Heads::run`]. All heads have a run per key/value head. A list has one per
    /// entry, of which only the first of those that belong together counts: so nothing needs to be stored, and lists that
    /// share nothing are cut evenly.
    pub(super) fn candidates(self, shape: &AttentionShape) -> usize {
        match self {
            Heads::All => shape.kv_heads,
            Heads::Listed(list) => list.len(),
        }
    }

    /// Run `i`, or `None` if it is part of an earlier one or `i` is behind the last.
    pub(super) fn run(self, shape: &AttentionShape, i: usize) -> Option<Run> {
        let group = shape.group();
        match self {
            Heads::All => (i < shape.kv_heads).then(|| Run { kv_head: i, places: i * group..(i + 1) * group }),
            Heads::Listed(list) => {
                let kv_head = |place: usize| list.get(place).map(|&head| head as usize / group);
                let own = kv_head(i)?;
                if i > 0 && kv_head(i - 1) == Some(own) {
                    return None;
                }
                let mut end = i + 1;
                while kv_head(end) == Some(own) {
                    end += 1;
                }
                Some(Run { kv_head: own, places: i..end })
            }
        }
    }

    /// All runs.
    pub(super) fn runs(self, shape: &AttentionShape) -> impl Iterator<Item = Run> {
        (0..self.candidates(shape)).filter_map(move |i| self.run(shape, i))
    }
}

/// One query row of the heads in `list` only: `q` and `out` `[list.len(), d_h]`, the cache as in
/// [`attention`](super::attention), the row at `position`. Every listed head gets the bits that
/// [`attention`](super::attention) gives it for one row.
///
/// The keys and values of a head are read once for all its query heads that follow each other in the list.
///
/// # Panics
/// As [`attention`](super::attention), or if the list names a head that does not exist.
#[allow(clippy::too_many_arguments)]
pub fn attention_gather(
    cpu: &Cpu,
    shape: &AttentionShape,
    list: &[u32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    capacity: usize,
    position: usize,
    out: &mut [f32],
) {
    shape.check();
    assert_eq!(q.len(), list.len() * shape.head_dim, "queries of {} heads of {} expected", list.len(), shape.head_dim);
    assert_eq!(q.len(), out.len(), "queries and output are of the same length");
    if let Some(head) = list.iter().find(|&&head| head as usize >= shape.heads) {
        panic!("the list names head {head} of {}", shape.heads);
    }
    let operands = Operands { shape: *shape, q, k, v, capacity, start: position, t: 1 };
    operands.check();
    decode::decode(cpu, operands, Heads::Listed(list), out);
}

/// Bytes of the key/value cache that [`attention_gather`] reads for the row at `position`.
pub fn attention_gather_bytes(shape: &AttentionShape, list: &[u32], position: usize) -> u64 {
    let runs = Heads::Listed(list).runs(shape).count();
    (2 * runs * shape.visible(position).len() * shape.head_dim * size_of::<f32>()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(heads: Heads<'_>, shape: &AttentionShape) -> Vec<(usize, Range<usize>)> {
        heads.runs(shape).map(|run| (run.kv_head, run.places)).collect()
    }

    #[test]
    fn runs_are_what_shares_a_key_value_head() {
        let shape = AttentionShape { heads: 6, kv_heads: 3, head_dim: 8, window: Some(4), scale: 1.0 };
        let all: Vec<u32> = (0..6).collect();
        assert_eq!(places(Heads::All, &shape), [(0, 0..2), (1, 2..4), (2, 4..6)]);
        assert_eq!(places(Heads::Listed(&all), &shape), places(Heads::All, &shape));
        assert_eq!(places(Heads::Listed(&[1, 4, 5]), &shape), [(0, 0..1), (2, 1..3)]);
        assert_eq!(places(Heads::Listed(&[]), &shape), []);
        assert_eq!(attention_gather_bytes(&shape, &[1, 4, 5], 9), 2 * 2 * 4 * 8 * 4);
        assert_eq!(attention_gather_bytes(&shape, &all, 2), super::super::attention_bytes(&shape, 2, 1));
    }
}
