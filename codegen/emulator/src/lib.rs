//! Runs the PTX that NVRTC produces, on the CPU, and checks what it does.
//!
//! Kernels are written, and changed, on machines without a GPU. Whether they compile can be seen there; whether they are right
//! could not. This crate interprets them: warps of 32 lanes with their divergence, shared memory, barriers, shuffles, atomics. It
//! is stricter than a device, which would go on silently: every access must be inside of its buffer, aligned, of bytes that somebody
//! wrote, and ordered by a barrier against the accesses of other threads; barriers and member masks must be met by those they
//! name. It counts instructions, bytes and sectors, so that what a kernel claims to move can be tested.
//!
//! Not modelled: time, caches, weak memory between blocks (blocks run one after the other), the exact bits of approximations
//! (`ex2.approx` and its like are computed in f64 and rounded once), the order of sums in tensor cores.
//!
//! ```
//! use shadowllm_emulator::{Arg, Device};
//!
//! let ptx = "
//! .version 8.8
//! .target sm_80
//! .address_size 64
//! .visible .entry twice(.param .u64 data)
//! {
//!     .reg .b32 %r<3>;
//!     .reg .b64 %rd<3>;
//!     ld.param.u64 %rd1, [data];
//!     mov.u32 %r1, %tid.x;
//!     mad.wide.u32 %rd2, %r1, 4, %rd1;
//!     ld.global.u32 %r2, [%rd2];
//!     add.s32 %r2, %r2, %r2;
//!     st.global.u32 [%rd2], %r2;
//!     ret;
//! }";
//! let mut device = Device::new();
//! let module = device.load(ptx)?;
//! let data = device.alloc_from("data", &[1u32, 2, 3]);
//! let counters = device.launch(&module, "twice", [1, 1, 1], [3, 1, 1], 0, &[Arg::Buffer(data)])?;
//! assert_eq!(device.download::<u32>(data)?, [2, 4, 6]);
//! assert_eq!(counters.global.read_bytes, 12);
//!
//! // A fourth thread has nothing to read.
//! let error = device.launch(&module, "twice", [1, 1, 1], [4, 1, 1], 0, &[Arg::Buffer(data)]).unwrap_err();
//! assert!(error.to_string().contains("reads 4 bytes at offset 12 of buffer `data`, which has 12 bytes: out of bounds"));
//! # Ok::<(), shadowllm_emulator::Error>(())
//! ```

#![forbid(unsafe_code)]

mod alu;
mod counters;
mod decode;
mod device;
mod error;
mod exec;
mod lanes;
mod memory;
mod parse;
mod program;
mod schedule;

pub use counters::{BufferTraffic, Counters, SECTOR, Traffic};
pub use device::{Arg, Device, Module};
pub use error::{Access, Error, Fault, Other, ParseError, Problem};
pub use memory::Buffer;
pub use schedule::Schedule;
