//! How work is cut for one GPU generation.
//!
//! Kernels that read weights run one block of about 512 threads on every multiprocessor. Each warp has eight loads of 16 bytes in
//! flight for each lane: 64 KiB on a multiprocessor, several times what latency times bandwidth asks for. Who computes what
//! depends on the spec and the counts alone, so results do not depend on how blocks are scheduled.

use crate::template::round_up;
use crate::{KernelSpec, Sm};

/// Threads that a block has at most.
const THREADS: usize = 512;
/// Warps of a block of [`THREADS`].
const WARPS: usize = THREADS / 32;
/// Pieces of the context. Each is a block of attention for each key/value head.
const SPLITS: usize = 16;

impl Sm {
    /// Multiprocessors of the largest widespread GPU of this version; on a smaller one some blocks wait for others.
    pub const fn multiprocessors(self) -> usize {
        match self.version() {
            80 => 108,
            86 => 84,
            89 => 128,
            90 => 132,
            100 => 148,
            _ => 170,
        }
    }
}

/// A group of threads that holds a row of sums together, and how many groups make a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Groups {
    /// Threads of a group, whole warps.
    pub(crate) group: usize,
    /// Vectors of a row for each thread.
    pub(crate) passes: usize,
    /// Groups of a block.
    pub(crate) groups: usize,
}

impl Groups {
    /// For rows of `vectors` vectors of 16 bytes, shared by about 256 threads.
    pub(crate) fn of(vectors: usize) -> Groups {
        let passes = vectors.div_ceil(THREADS / 2);
        let group = round_up(vectors.div_ceil(passes), 32);
        Groups { group, passes, groups: (THREADS / group).max(1) }
    }

    /// Threads of a block.
    pub(crate) const fn threads(self) -> usize {
        self.group * self.groups
    }
}

impl KernelSpec {
    /// Vectors of 16 bytes in a row of `d` weights.
    pub(crate) const fn vectors(&self) -> usize {
        self.sizes.hidden / self.dtype.vector()
    }

    /// Bytes of a row of `d` weights.
    pub(crate) const fn row_bytes(&self) -> u64 {
        (self.sizes.hidden * self.dtype.size()) as u64
    }

    /// Query heads that share a key/value head.
    pub(crate) const fn group(&self) -> usize {
        self.sizes.heads / self.sizes.kv_heads
    }

    /// Bytes of one head's keys, or values, of one position.
    pub(crate) const fn cached_row(&self) -> u64 {
        (self.sizes.head_dim * self.cache.size()) as u64
    }

    /// How a row of `d` is shared by threads.
    pub(crate) fn groups(&self) -> Groups {
        Groups::of(self.vectors())
    }

    /// Blocks for `units` of work of which each warp takes one at a time.
    pub(crate) const fn blocks(&self, units: usize) -> usize {
        let all = self.sm.multiprocessors();
        let wanted = units.div_ceil(WARPS);
        if wanted < all { wanted } else { all }
    }

    /// Pieces that a layer's FFN is summed in: blocks of its kernel.
    pub(crate) const fn ffn_pieces(&self) -> usize {
        self.blocks(self.sizes.ffn)
    }

    /// Vectors of 16 bytes of every row that a block of the output projection takes: whole sectors, and about a block for every
    /// multiprocessor, at most a few more than there are.
    pub(crate) fn columns(&self) -> usize {
        let blocks = self.sm.multiprocessors() * 5 / 4;
        round_up(self.vectors().div_ceil(blocks), 2).min(self.vectors())
    }

    /// Pieces that the context is cut into.
    pub(crate) const fn splits(&self) -> usize {
        let most = self.sizes.context.div_ceil(32);
        if most < SPLITS { most } else { SPLITS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_cover_rows_with_few_idle_threads() {
        for (vectors, group, passes, groups) in
            [(512, 256, 2, 2), (896, 224, 4, 2), (72, 96, 1, 5), (96, 96, 1, 5), (320, 160, 2, 3), (2, 32, 1, 16)]
        {
            assert_eq!(Groups::of(vectors), Groups { group, passes, groups });
        }
        for vectors in 1..4000 {
            let g = Groups::of(vectors);
            assert!(g.group * g.passes >= vectors && g.group.is_multiple_of(32) && g.threads() <= THREADS);
        }
    }
}
