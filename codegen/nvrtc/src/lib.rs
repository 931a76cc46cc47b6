//! NVIDIA's run-time compiler, found at run time: CUDA C++ text in, PTX and machine code out.
//!
//! NVRTC needs neither a GPU nor a driver nor a toolkit, so emitted kernels can be compiled, and their registers and spills
//! counted, on any Linux machine. The library is opened when it is asked for ([`Nvrtc::open`]): a program that links this crate
//! starts without it, and its absence is one clear [`Error`].
//!
//! Its interface is a dozen C functions that have not changed since CUDA 11.2, so they are bound here: bindings made for one
//! CUDA release know only that release's file name, and panic where the library is missing.
//!
//! ```no_run
//! # fn main() -> Result<(), shadowllm_nvrtc::Error> {
//! let nvrtc = shadowllm_nvrtc::Nvrtc::open()?;
//! let compiled = nvrtc.compile("extern \"C\" __global__ void nothing() {}", &shadowllm_nvrtc::Options::new(80))?;
//! assert_eq!(compiled.kernels[0].name, "nothing");
//! # Ok(())
//! # }
//! ```

mod bindings;
mod compile;
mod error;
mod facts;
mod find;

pub use compile::{Compiled, Nvrtc, Options};
pub use error::Error;
pub use facts::KernelFacts;
pub use find::VARIABLE;
