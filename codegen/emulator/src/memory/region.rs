//! A piece of memory: its bytes, which of them were ever written, and who touched them during the launch.

use super::race::{Cells, Order};
use crate::error::{Access, Other, Problem};

/// A buffer, or the shared memory of a block.
#[derive(Clone, Debug)]
pub struct Region {
    /// Name in messages: "buffer `weights`".
    pub place: String,
    /// Bytes.
    pub data: Vec<u8>,
    /// Kernels must not write it.
    pub read_only: bool,
    written: Written,
    cells: Cells,
}

/// Which bytes were written.
#[derive(Clone, Debug)]
struct Written {
    bits: Vec<u64>,
    missing: usize,
}

/// What fresh memory holds: as floats NaN, as an index -1, so that a use shows.
const FRESH: u8 = 0xff;

impl Region {
    /// Memory in which nothing is written.
    pub fn fresh(place: String, size: usize) -> Self {
        Self {
            place,
            data: vec![FRESH; size],
            read_only: false,
            written: Written { bits: vec![0; size.div_ceil(64)], missing: size },
            cells: Cells::default(),
        }
    }

    /// The name alone.
    pub fn name(&self) -> &str {
        self.place.split('`').nth(1).unwrap_or(&self.place)
    }

    /// Forgets all content.
    pub fn reset(&mut self) {
        self.data.fill(FRESH);
        self.written.bits.fill(0);
        self.written.missing = self.data.len();
    }

    /// Forgets who touched what.
    pub fn forget_accesses(&mut self) {
        self.cells.clear();
    }

    /// Marks bytes as written.
    pub fn mark(&mut self, offset: usize, bytes: usize) {
        if self.written.missing == 0 {
            return;
        }
        for byte in offset..offset + bytes {
            let bit = 1 << (byte % 64);
            let word = &mut self.written.bits[byte / 64];
            self.written.missing -= usize::from(*word & bit == 0);
            *word |= bit;
        }
    }

    /// Marks bytes as not written: an asynchronous copy is on its way there.
    pub fn unmark(&mut self, offset: usize, bytes: usize) {
        for byte in offset..offset + bytes {
            let bit = 1 << (byte % 64);
            let word = &mut self.written.bits[byte / 64];
            self.written.missing += usize::from(*word & bit != 0);
            *word &= !bit;
        }
    }

    fn first_missing(&self, offset: usize, bytes: usize) -> Option<usize> {
        if self.written.missing == 0 {
            return None;
        }
        (offset..offset + bytes).find(|byte| self.written.bits[byte / 64] >> (byte % 64) & 1 == 0)
    }

    /// Whether an access is inside and aligned.
    #[inline]
    pub fn holds(&self, offset: i64, bytes: usize) -> bool {
        let end = (offset as u64).wrapping_add(bytes as u64);
        offset >= 0 && end <= self.data.len() as u64 && offset as u64 & (bytes as u64 - 1) == 0
    }

    /// What is wrong with an access that isn't.
    #[cold]
    pub fn outside(&self, access: Access, offset: i64, bytes: usize) -> Problem {
        let (place, size) = (self.place.clone(), self.data.len() as u64);
        let bytes = bytes as u64;
        if offset < 0 || offset as u64 + bytes > size {
            return Problem::OutOfBounds { access, place, offset, bytes, size };
        }
        Problem::Misaligned { access, place, offset, bytes }
    }

    /// Whether reads need no look at single bytes: all are written, and no kernel writes them.
    pub fn settled(&self) -> bool {
        self.read_only && self.written.missing == 0
    }

    /// Whether kernels may write here.
    pub fn writable(&self, access: Access, offset: usize, bytes: usize) -> Result<(), Problem> {
        if self.read_only {
            return Err(Problem::ReadOnly {
                access,
                place: self.place.clone(),
                offset: offset as i64,
                bytes: bytes as u64,
            });
        }
        Ok(())
    }

    /// Whether all bytes were written.
    #[inline]
    pub fn initialised(&self, access: Access, offset: usize, bytes: usize, shared: bool) -> Result<(), Problem> {
        match self.first_missing(offset, bytes) {
            None => Ok(()),
            Some(byte) => Err(Problem::Uninitialised {
                access,
                place: self.place.clone(),
                offset: offset as i64,
                bytes: bytes as u64,
                byte: byte as u64,
                hint: if shared { " (or is on its way by a cp.async that nobody waited for)" } else { "" },
            }),
        }
    }

    /// Records a read; an error if it races, or if it is `cached` and reads what the launch wrote.
    #[inline]
    pub fn record_read(&mut self, offset: usize, bytes: usize, order: &Order, cached: bool) -> Result<(), Problem> {
        // What no kernel writes has no races.
        if self.read_only {
            return Ok(());
        }
        let size = self.data.len();
        for cell in self.cells.of(size, offset, bytes) {
            if let Err(conflict) = cell.read(order) {
                return Err(self.race(Access::Read, offset, bytes, order, conflict));
            }
            if cached && cell.written_since(order.floor) {
                let (place, offset, bytes) = (self.place.clone(), offset as i64, bytes as u64);
                return Err(Problem::CachedRead { place, offset, bytes });
            }
        }
        Ok(())
    }

    /// Records a write (or an update); an error if it races.
    #[inline]
    pub fn record_write(&mut self, access: Access, offset: usize, bytes: usize, order: &Order) -> Result<(), Problem> {
        let size = self.data.len();
        for cell in self.cells.of(size, offset, bytes) {
            if let Err(conflict) = cell.write(order) {
                return Err(self.race(access, offset, bytes, order, conflict));
            }
        }
        Ok(())
    }

    #[cold]
    fn race(
        &self,
        access: Access,
        offset: usize,
        bytes: usize,
        order: &Order,
        (stamp, wrote): super::race::Conflict,
    ) -> Problem {
        Problem::Race {
            access,
            place: self.place.clone(),
            offset: offset as i64,
            bytes: bytes as u64,
            other: Other {
                access: if wrote { Access::Write } else { Access::Read },
                block: stamp.block(),
                thread: stamp.thread(),
                same_warp: order.same_warp(stamp),
                same_block: order.same_block(stamp),
            },
        }
    }
}
