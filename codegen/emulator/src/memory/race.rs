//! Who touched a byte when, and whether something lies between two accesses.
//!
//! Time counts the synchronisations of a launch. An access is stamped with the time and its thread. A later access of another
//! thread is ordered behind it if a synchronisation that both took part in came after the stamp: `bar.sync` for a block,
//! `bar.warp.sync` for the lanes of its mask (shuffles and votes order no memory). Blocks have no order, except from a block that
//! fenced and did an atomic to one that did an atomic on the same address later and then fenced.
//!
//! A place remembers its last write and two reads by different threads: enough, since a write by a third is unordered with one
//! of them or with none.

use std::collections::HashSet;

/// Time, `strong` and thread in 64 bits; zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp(u64);

/// Bits of a thread's number in its block.
pub const THREAD_BITS: u32 = 10;
/// Time must stay below this.
pub const LAST_TIME: u32 = 1 << 30;

impl Stamp {
    /// An access at `time` by `thread` of `block`; `strong` ones (atomics, volatiles) don't race with each other.
    pub fn new(time: u32, strong: bool, block: u32, thread: u32) -> Self {
        Self(u64::from(time) << 33 | u64::from(strong) << 32 | u64::from(block << THREAD_BITS | thread))
    }

    fn time(self) -> u32 {
        (self.0 >> 33) as u32
    }

    fn strong(self) -> bool {
        self.0 >> 32 & 1 == 1
    }

    fn who(self) -> u32 {
        self.0 as u32
    }

    /// Its block.
    pub fn block(self) -> u32 {
        self.who() >> THREAD_BITS
    }

    /// Its thread in the block.
    pub fn thread(self) -> u32 {
        self.who() & ((1 << THREAD_BITS) - 1)
    }
}

/// The last synchronisation of each pair of lanes, or of warps.
#[derive(Clone, Debug, Default)]
pub struct Clocks {
    all: u32,
    pairs: Option<Box<[[u32; 32]; 32]>>,
}

impl Clocks {
    /// Everyone was synchronised at `time`.
    pub fn all(&mut self, time: u32) {
        self.all = time;
        self.pairs = None;
    }

    /// The members of `mask` were. What one of them had seen, all have seen now.
    pub fn some(&mut self, mask: u32, time: u32) {
        let pairs = self.pairs.get_or_insert_with(|| Box::new([[0; 32]; 32]));
        let mut joined = [0; 32];
        for member in crate::lanes::each(mask) {
            for (joined, &seen) in joined.iter_mut().zip(&pairs[member]) {
                *joined = (*joined).max(seen);
            }
        }
        for member in crate::lanes::each(mask) {
            joined[member] = time;
        }
        for member in crate::lanes::each(mask) {
            pairs[member] = joined;
        }
    }

    /// The time before which `me` has seen everything of `other`.
    fn seen(&self, me: u32, other: u32) -> u32 {
        let pair = self.pairs.as_ref().map_or(0, |pairs| pairs[me as usize][other as usize]);
        self.all.max(pair)
    }
}

/// What an accessing thread knows of the others.
pub struct Order<'a> {
    /// Its stamp.
    pub me: Stamp,
    /// Stamps before this time are of another launch (or of another block, in shared memory).
    pub floor: u32,
    /// Synchronisations between warps of the block.
    pub block: &'a Clocks,
    /// Synchronisations between lanes of the warp.
    pub warp: &'a Clocks,
    /// Blocks that this one has seen the end of.
    pub seen: &'a HashSet<u32>,
}

impl Order<'_> {
    /// Whether the access of `stamp` comes before this one for sure.
    fn before(&self, stamp: Stamp) -> bool {
        let (time, who, me) = (stamp.time(), stamp.who(), self.me.who());
        if time < self.floor || who == me {
            return true;
        }
        if stamp.block() != self.me.block() {
            return self.seen.contains(&stamp.block());
        }
        let (warp, other) = (self.me.thread() >> 5, stamp.thread() >> 5);
        if warp != other {
            return time < self.block.seen(warp, other);
        }
        time < self.block.all.max(self.warp.seen(me & 31, who & 31))
    }

    fn conflict(&self, stamp: Stamp) -> bool {
        stamp != Stamp::default() && !(stamp.strong() && self.me.strong()) && !self.before(stamp)
    }

    /// Whether the access is one of the same warp.
    pub fn same_warp(&self, stamp: Stamp) -> bool {
        self.same_block(stamp) && stamp.thread() >> 5 == self.me.thread() >> 5
    }

    /// Whether the access is one of the same block.
    pub fn same_block(&self, stamp: Stamp) -> bool {
        stamp.block() == self.me.block()
    }
}

/// Memory of one place.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cell {
    write: Stamp,
    reads: [Stamp; 2],
}

/// The earlier access of a race, and whether it wrote.
pub type Conflict = (Stamp, bool);

impl Cell {
    /// A read.
    #[inline]
    pub fn read(&mut self, order: &Order) -> Result<(), Conflict> {
        if order.conflict(self.write) {
            return Err((self.write, true));
        }
        let [first, second] = &mut self.reads;
        if *first == order.me || *second == order.me {
            return Ok(());
        }
        if *first == Stamp::default() || order.before(*first) {
            *first = order.me;
        } else {
            *second = order.me;
        }
        Ok(())
    }

    /// A write.
    #[inline]
    pub fn write(&mut self, order: &Order) -> Result<(), Conflict> {
        if order.conflict(self.write) {
            return Err((self.write, true));
        }
        if let Some(&read) = self.reads.iter().find(|&&read| order.conflict(read)) {
            return Err((read, false));
        }
        *self = Self { write: order.me, reads: [Stamp::default(); 2] };
        Ok(())
    }

    /// Whether it was written since `floor`.
    pub fn written_since(&self, floor: u32) -> bool {
        self.write != Stamp::default() && self.write.time() >= floor
    }
}

/// The cells of a region: one per word, until someone touches less than a word; then one per byte.
#[derive(Clone, Debug, Default)]
pub struct Cells {
    cells: Vec<Cell>,
    per_byte: bool,
}

impl Cells {
    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The cells of `bytes` bytes from `offset`, in a region of `size` bytes.
    #[inline]
    pub fn of(&mut self, size: usize, offset: usize, bytes: usize) -> &mut [Cell] {
        if !self.per_byte && bytes < 4 {
            self.split();
        }
        let (first, count, all) =
            if self.per_byte { (offset, bytes, size) } else { (offset / 4, bytes.div_ceil(4), size.div_ceil(4)) };
        if self.cells.len() < all {
            self.cells.resize(all, Cell::default());
        }
        &mut self.cells[first..first + count]
    }

    #[cold]
    fn split(&mut self) {
        self.cells = self.cells.iter().flat_map(|&cell| [cell; 4]).collect();
        self.per_byte = true;
    }
}
