//! Addresses. Every buffer has a terabyte of addresses of its own and begins in the middle of it: from an address alone one can
//! say which buffer was meant and how far off it is, also when it lies before the beginning.

use crate::lanes::{LANES, Long, Mask};
use crate::parse::Space;

const SHIFT: u32 = 40;
const MIDDLE: u64 = 1 << (SHIFT - 1);
/// Generic address of the first byte of shared memory.
pub const SHARED_WINDOW: u64 = (1 << SHIFT) + MIDDLE;
/// Generic address of the first byte of local memory.
pub const LOCAL_WINDOW: u64 = (2 << SHIFT) + MIDDLE;
/// The terabyte of the first buffer.
const FIRST_BUFFER: u64 = 16;

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The buffer of this number.
    Buffer(u32),
    /// Shared memory of the block.
    Shared,
    /// Local memory of the thread.
    Local,
    /// Arguments.
    Param,
    /// Nowhere.
    Nothing,
}

/// The address of the first byte of a buffer.
pub fn address(buffer: u32) -> u64 {
    ((FIRST_BUFFER + u64::from(buffer)) << SHIFT) + MIDDLE
}

/// The lanes of `mask` that go where the first of them goes, and their offsets there.
pub fn together(space: Space, addresses: &Long, mask: Mask) -> (Target, [i64; LANES], Mask) {
    let first = addresses[mask.trailing_zeros() as usize % LANES];
    let (target, _) = locate(space, first);
    if matches!(space, Space::Shared | Space::Local | Space::Param) {
        return (target, addresses.map(u64::cast_signed), mask);
    }
    let (mut offsets, mut same) = ([0; LANES], 0);
    for lane in 0..LANES {
        offsets[lane] = (addresses[lane] & ((1 << SHIFT) - 1)).cast_signed() - MIDDLE.cast_signed();
        same |= u32::from(addresses[lane] >> SHIFT == first >> SHIFT) << lane;
    }
    (target, offsets, same & mask)
}

/// What `address` in `space` means, and the offset there.
pub fn locate(space: Space, address: u64) -> (Target, i64) {
    match space {
        Space::Shared => (Target::Shared, address.cast_signed()),
        Space::Local => (Target::Local, address.cast_signed()),
        Space::Param => (Target::Param, address.cast_signed()),
        Space::Global | Space::Const | Space::Generic => {
            let offset = (address & ((1 << SHIFT) - 1)).cast_signed() - MIDDLE.cast_signed();
            let target = match address >> SHIFT {
                1 if space == Space::Generic => Target::Shared,
                2 if space == Space::Generic => Target::Local,
                number if number >= FIRST_BUFFER => Target::Buffer((number - FIRST_BUFFER) as u32),
                _ => Target::Nothing,
            };
            (target, offset)
        }
    }
}
