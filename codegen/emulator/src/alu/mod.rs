//! Arithmetic of one instruction on all lanes, bit for bit as PTX defines it where it does.
//!
//! Where it doesn't, the choice is: division by zero gives all ones and the remainder the dividend; approximations (`ex2`, `lg2`,
//! `rcp`, `rsqrt`, `sqrt`, `sin`, `cos`, `tanh`, and `div` with `.approx` or `.full`) are computed in f64 and rounded once, so
//! they are at least as exact as a device's; a NaN result of 32 bits or less is the canonical one, of 64 bits the host's.

pub mod compare;
pub mod convert;
pub mod float;
pub mod half;
pub mod integer;
pub mod logic;
pub mod round;
