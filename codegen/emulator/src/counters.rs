//! What a launch did, in numbers that a kernel's own declaration can be held to.

use crate::lanes::{LANES, Mask, each};

/// Bytes of a sector: the smallest piece that a device moves.
pub const SECTOR: u64 = 32;

/// Counts of one launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Blocks that ran.
    pub blocks: u64,
    /// Warps that ran.
    pub warps: u64,
    /// Instructions, each counted once per warp that executes it.
    pub warp_instructions: u64,
    /// Instructions, each counted once per lane that executes it.
    pub lane_instructions: u64,
    /// Barriers of blocks.
    pub barriers: u64,
    /// Rounds that shared memory needs for all loads: one per access if no two lanes want different words of one bank.
    pub shared_load_wavefronts: u64,
    /// The same for stores and atomics.
    pub shared_store_wavefronts: u64,
    /// Loads of shared memory, per warp.
    pub shared_loads: u64,
    /// Stores and atomics of shared memory, per warp.
    pub shared_stores: u64,
    /// Sum over all buffers.
    pub global: Traffic,
    /// Each buffer that was touched, in the order of allocation.
    pub buffers: Vec<BufferTraffic>,
}

impl Counters {
    /// The traffic of the buffer of this name.
    pub fn buffer(&self, name: &str) -> Option<&Traffic> {
        self.buffers.iter().find(|buffer| buffer.name == name).map(|buffer| &buffer.traffic)
    }
}

/// Traffic of one buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BufferTraffic {
    /// Its name.
    pub name: String,
    /// Its traffic.
    pub traffic: Traffic,
}

/// Movements between device memory and threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that lanes asked for.
    pub read_bytes: u64,
    /// Bytes that lanes wrote.
    pub written_bytes: u64,
    /// Sectors of all loads: what moves if nothing is cached.
    pub read_sectors: u64,
    /// Sectors of all stores and atomics.
    pub written_sectors: u64,
    /// Different sectors read: what moves if everything is cached.
    pub distinct_read_sectors: u64,
    /// Different sectors written.
    pub distinct_written_sectors: u64,
    /// Loads, per warp.
    pub loads: u64,
    /// Stores and atomics, per warp.
    pub stores: u64,
    /// Bytes of the narrowest load of a lane; zero without loads.
    pub narrowest_load: u64,
}

impl Traffic {
    /// Adds what another buffer did.
    pub fn add(&mut self, other: &Self) {
        self.read_bytes += other.read_bytes;
        self.written_bytes += other.written_bytes;
        self.read_sectors += other.read_sectors;
        self.written_sectors += other.written_sectors;
        self.distinct_read_sectors += other.distinct_read_sectors;
        self.distinct_written_sectors += other.distinct_written_sectors;
        self.loads += other.loads;
        self.stores += other.stores;
        if other.narrowest_load != 0 && (self.narrowest_load == 0 || other.narrowest_load < self.narrowest_load) {
            self.narrowest_load = other.narrowest_load;
        }
    }
}

/// The traffic of a buffer while a launch runs.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    traffic: Traffic,
    read: Vec<u64>,
    written: Vec<u64>,
}

impl Meter {
    /// One access of a warp: the byte offsets of its lanes in a buffer of `size` bytes, `bytes` each.
    pub fn count(&mut self, store: bool, offsets: &[usize; LANES], mask: Mask, bytes: usize, size: usize) {
        let (sectors, seen) = (&mut [0u64; LANES], if store { &mut self.written } else { &mut self.read });
        if seen.is_empty() {
            seen.resize(size.div_ceil(SECTOR as usize).div_ceil(64), 0);
        }
        // Neighbours mostly share a sector or follow each other: count changes, sort only if they jump back.
        let (mut count, mut sorted, mut last) = (0, true, u64::MAX);
        for lane in each(mask) {
            let sector = offsets[lane] as u64 / SECTOR;
            if sector != last {
                sorted &= last == u64::MAX || sector > last;
                sectors[count] = sector;
                count += 1;
                last = sector;
                seen[(sector / 64) as usize] |= 1 << (sector % 64);
            }
        }
        if !sorted {
            let found = &mut sectors[..count];
            found.sort_unstable();
            count = found.chunk_by(|a, b| a == b).count();
        }
        let (moved, count) = (u64::from(mask.count_ones()) * bytes as u64, count as u64);
        let traffic = &mut self.traffic;
        if store {
            traffic.stores += 1;
            traffic.written_bytes += moved;
            traffic.written_sectors += count;
        } else {
            traffic.loads += 1;
            traffic.read_bytes += moved;
            traffic.read_sectors += count;
            let bytes = bytes as u64;
            if traffic.narrowest_load == 0 || bytes < traffic.narrowest_load {
                traffic.narrowest_load = bytes;
            }
        }
    }

    /// The sum at the end; `None` if nothing was touched.
    pub fn finish(mut self) -> Option<Traffic> {
        let ones = |bits: &[u64]| bits.iter().map(|word| u64::from(word.count_ones())).sum();
        self.traffic.distinct_read_sectors = ones(&self.read);
        self.traffic.distinct_written_sectors = ones(&self.written);
        (self.traffic != Traffic::default()).then_some(self.traffic)
    }
}

/// Rounds of one access to shared memory: it has 32 banks of four bytes, each gives one word per round. Accesses of 8 bytes are
/// served by half warps, of 16 bytes by quarters.
pub fn wavefronts(offsets: &[usize; LANES], mask: Mask, bytes: usize) -> u64 {
    let lanes_at_once = LANES * 4 / bytes.max(4);
    let words_each = bytes.div_ceil(4);
    let mut rounds = 0;
    for first in (0..LANES).step_by(lanes_at_once) {
        let part = mask & (u32::MAX >> (LANES - lanes_at_once)) << first;
        if part == 0 {
            continue;
        }
        // The first word of each bank, and what else is wanted of any.
        let (mut first_word, mut others, mut count) = ([0usize; 32], [0usize; LANES], 0);
        let mut per_bank = [0u8; 32];
        for lane in each(part) {
            for word in offsets[lane] / 4..offsets[lane] / 4 + words_each {
                let bank = word % 32;
                if per_bank[bank] == 0 {
                    first_word[bank] = word;
                    per_bank[bank] = 1;
                } else if first_word[bank] != word && !others[..count].contains(&word) {
                    others[count] = word;
                    count += 1;
                    per_bank[bank] += 1;
                }
            }
        }
        rounds += u64::from(per_bank.into_iter().max().unwrap_or(0));
    }
    rounds
}
