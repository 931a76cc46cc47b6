//! A value of each lane: what a register of a warp holds, and functions from such values to such values.
//!
//! An arithmetic instruction is decoded to a pointer to one of these functions. They work on all 32 lanes, active or not, in loops
//! that the compiler turns into vector instructions; the executor keeps the results of the active lanes only. So they must
//! be defined for every input, whatever an inactive lane holds.

/// Lanes of a warp.
pub const LANES: usize = 32;
/// A register of up to 32 bits. Types of 8 and 16 bits are kept with zeros above them.
pub type Word = [u32; LANES];
/// A register of 64 bits.
pub type Long = [u64; LANES];
/// A predicate: one bit per lane; also a set of lanes.
pub type Mask = u32;

/// Defines the function of all lanes from an expression of one lane: `lanes!(Word; a: Word, b: Word => a & b)`.
macro_rules! lanes {
    ($out:ty; $($name:ident: $type:ty),+ => $body:expr) => {{
        fn all($($name: &$type),+) -> $out {
            let mut out = [Default::default(); $crate::lanes::LANES];
            for lane in 0..$crate::lanes::LANES {
                $(let $name = $name[lane];)+
                out[lane] = $body;
            }
            out
        }
        all
    }};
}

/// Defines the predicate of all lanes from a condition of one lane.
macro_rules! condition {
    ($($name:ident: $type:ty),+ => $body:expr) => {{
        fn all($($name: &$type),+) -> $crate::lanes::Mask {
            let mut out = 0;
            for lane in 0..$crate::lanes::LANES {
                $(let $name = $name[lane];)+
                out |= u32::from($body) << lane;
            }
            out
        }
        all
    }};
}

pub(crate) use {condition, lanes};

/// The lanes of `mask`, ascending.
pub fn each(mut mask: Mask) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(lane)
    })
}
