//! Which instruction sets exist, which of them this processor has, and how a kernel is entered with one.
//!
//! A token such as [`Avx512`] can only be made by a function that has asked the processor, so *holding the token is the
//! proof* that the instructions exist. That is what makes the vector operations of [`Simd`] safe to call.

use std::fmt;
use std::str::FromStr;

use super::KernelError;
use super::simd::Simd;

/// Name of an instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IsaName {
    /// No assumption about the processor (crate `wide`).
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
    /// AVX-512 with the tile instructions for `bf16` (AMX-TILE, AMX-BF16): many rows are multiplied with them, everything
    /// else runs as with [`IsaName::Avx512`].
    Amx,
}

impl IsaName {
    /// All names, narrowest first.
    pub const ALL: [IsaName; 4] = [IsaName::Portable, IsaName::Avx2, IsaName::Avx512, IsaName::Amx];

    /// Name as in `SHADOWLLM_ISA` and in kernel names.
    pub const fn name(self) -> &'static str {
        match self {
            IsaName::Portable => "portable",
            IsaName::Avx2 => "avx2",
            IsaName::Avx512 => "avx512",
            IsaName::Amx => "amx",
        }
    }

    /// Those that this processor has, narrowest first.
    pub fn available() -> impl Iterator<Item = IsaName> {
        IsaName::ALL.into_iter().filter(|&name| Isa::new(name).is_some())
    }
}

impl fmt::Display for IsaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for IsaName {
    type Err = KernelError;

    fn from_str(s: &str) -> Result<Self, KernelError> {
        let known = IsaName::ALL.into_iter().find(|name| name.name() == s);
        known.ok_or_else(|| KernelError::UnknownIsa { found: s.to_owned() })
    }
}

/// Proof of nothing: every processor runs these kernels.
#[derive(Clone, Copy, Debug)]
pub struct Portable(());

impl Portable {
    /// Always succeeds.
    pub const fn new() -> Option<Self> {
        Some(Portable(()))
    }
}

/// Proof that AVX2, FMA and F16C exist.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    /// Asks the processor.
    pub fn new() -> Option<Self> {
        let found =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        found.then_some(Avx2(()))
    }
}

/// Proof that AVX-512 F, BW, VL and DQ exist, and all that [`Avx2`] proves.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    /// Asks the processor.
    pub fn new() -> Option<Self> {
        let found = Avx2::new().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        found.then_some(Avx512(()))
    }
}

/// Proof that AVX512-BF16 exists on top of [`Avx512`].
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Avx512Bf16(());

#[cfg(target_arch = "x86_64")]
impl Avx512Bf16 {
    /// Asks the processor.
    pub fn new() -> Option<Self> {
        (Avx512::new().is_some() && is_x86_feature_detected!("avx512bf16")).then_some(Avx512Bf16(()))
    }
}

/// Proof that AVX512-VNNI exists on top of [`Avx512`].
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Avx512Vnni(());

#[cfg(target_arch = "x86_64")]
impl Avx512Vnni {
    /// Asks the processor.
    pub fn new() -> Option<Self> {
        (Avx512::new().is_some() && is_x86_feature_detected!("avx512vnni")).then_some(Avx512Vnni(()))
    }
}

/// Proof that AMX-TILE and AMX-BF16 exist on top of [`Avx512Bf16`], and that this process may use their registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Amx(());

#[cfg(target_arch = "x86_64")]
impl Amx {
    /// Asks the processor, then the kernel: tiles are 8 KiB of state per thread, which Linux saves only for processes that asked.
    /// On other systems there is no AMX.
    pub fn new() -> Option<Self> {
        (Avx512Bf16::new().is_some() && Self::in_processor() && Self::permitted()).then_some(Amx(()))
    }

    fn in_processor() -> bool {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE
    }

    #[cfg(target_os = "linux")]
    fn permitted() -> bool {
        /// `arch/x86/include/uapi/asm/prctl.h` of Linux.
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILE_DATA: libc::c_long = 18;
        // SAFETY: asks for a permission of this process; touches no memory.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn permitted() -> bool {
        false
    }
}

/// Work that is written once for every instruction set. Implementations mark `run` `#[inline(always)]`, and so must be
/// everything it calls that takes a [`Simd`] token: only then is it compiled with the instructions of the caller.
pub(crate) trait Kernel {
    /// What it returns.
    type Out;

    /// Does the work with the instructions that `s` proves.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// What blocked kernels choose their tiles by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// `f32` lanes of one vector.
    pub(crate) lanes: usize,
    /// Vector registers.
    pub(crate) registers: usize,
}

impl Geometry {
    pub(crate) const fn of<S: Simd>() -> Self {
        Geometry { lanes: S::LANES, registers: S::REGISTERS }
    }
}

/// One instruction set, proven to exist.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Isa {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512, Option<Avx512Bf16>, Option<Avx512Vnni>),
    #[cfg(target_arch = "x86_64")]
    Amx(Avx512, Avx512Bf16, Amx),
}

impl Isa {
    /// The named instruction set, if this processor has it.
    ///
    /// Fuzz targets look for mistakes in what reads files, and are compiled with instrumentation: for them the other instruction
    /// sets do not exist, which halves their compilation at least. Tests run every kernel with every instruction set.
    pub(crate) fn new(name: IsaName) -> Option<Self> {
        if cfg!(fuzzing) && name != IsaName::Portable {
            return None;
        }
        match name {
            IsaName::Portable => Portable::new().map(Isa::Portable),
            #[cfg(target_arch = "x86_64")]
            IsaName::Avx2 => Avx2::new().map(Isa::Avx2),
            #[cfg(target_arch = "x86_64")]
            IsaName::Avx512 => Avx512::new().map(|s| Isa::Avx512(s, Avx512Bf16::new(), Avx512Vnni::new())),
            #[cfg(target_arch = "x86_64")]
            IsaName::Amx => Some(Isa::Amx(Avx512::new()?, Avx512Bf16::new()?, Amx::new()?)),
            #[cfg(not(target_arch = "x86_64"))]
            IsaName::Avx2 | IsaName::Avx512 | IsaName::Amx => None,
        }
    }

    pub(crate) fn name(self) -> IsaName {
        match self {
            Isa::Portable(_) => IsaName::Portable,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => IsaName::Avx2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(..) => IsaName::Avx512,
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(..) => IsaName::Amx,
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            Isa::Portable(s) => kernel.run(s),
            // SAFETY: the token proves that the processor has the instructions.
            #[cfg(all(target_arch = "x86_64", not(fuzzing)))]
            Isa::Avx2(s) => unsafe { enter_avx2(s, kernel) },
            // SAFETY: as above.
            #[cfg(all(target_arch = "x86_64", not(fuzzing)))]
            Isa::Avx512(s, ..) | Isa::Amx(s, ..) => unsafe { enter_avx512(s, kernel) },
            #[cfg(all(target_arch = "x86_64", fuzzing))]
            _ => unreachable!("the other instruction sets are never made"),
        }
    }

    /// As [`Isa::run`], with the processor's `bf16` products if it has them. A separate way in, so that only the kernels
    /// that use them are compiled twice.
    #[inline]
    pub(crate) fn run_bf16<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            // SAFETY: the token proves that the processor has the instructions.
            #[cfg(all(target_arch = "x86_64", not(fuzzing)))]
            Isa::Avx512(_, Some(s), _) | Isa::Amx(_, s, _) => unsafe { enter_avx512_bf16(s, kernel) },
            other => other.run(kernel),
        }
    }

    /// As [`Isa::run`], with the processor's products of whole numbers if it has them.
    #[inline]
    pub(crate) fn run_vnni<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            // SAFETY: the token proves that the processor has the instructions.
            #[cfg(all(target_arch = "x86_64", not(fuzzing)))]
            Isa::Avx512(.., Some(s)) => unsafe { enter_avx512_vnni(s, kernel) },
            other => other.run(kernel),
        }
    }

    /// Whether [`Isa::run_vnni`] has an instruction for products of whole numbers.
    pub(crate) fn has_vnni(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(.., vnni) => vnni.is_some(),
            _ => false,
        }
    }

    /// Whether [`Isa::run_bf16`] has an instruction for `bf16` products.
    pub(crate) fn has_bf16(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_, bf16, _) => bf16.is_some(),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(..) => true,
            _ => false,
        }
    }

    /// The proof that tiles may be used.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn amx(self) -> Option<Amx> {
        if let Isa::Amx(.., amx) = self { Some(amx) } else { None }
    }

    /// `f32` lanes of one vector and vector registers.
    pub(crate) fn geometry(self) -> Geometry {
        match self {
            Isa::Portable(_) => Geometry::of::<Portable>(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => Geometry::of::<Avx2>(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(..) | Isa::Amx(..) => Geometry::of::<Avx512>(),
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(fuzzing)))]
#[target_feature(enable = "avx2,fma,f16c")]
fn enter_avx2<K: Kernel>(s: Avx2, kernel: K) -> K::Out {
    kernel.run(s)
}

#[cfg(all(target_arch = "x86_64", not(fuzzing)))]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn enter_avx512<K: Kernel>(s: Avx512, kernel: K) -> K::Out {
    kernel.run(s)
}

#[cfg(all(target_arch = "x86_64", not(fuzzing)))]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn enter_avx512_bf16<K: Kernel>(s: Avx512Bf16, kernel: K) -> K::Out {
    kernel.run(s)
}

#[cfg(all(target_arch = "x86_64", not(fuzzing)))]
#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn enter_avx512_vnni<K: Kernel>(s: Avx512Vnni, kernel: K) -> K::Out {
    kernel.run(s)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in IsaName::ALL {
            assert_eq!(name.to_string().parse::<IsaName>().unwrap(), name);
        }
        assert_eq!(
            "sse9".parse::<IsaName>().unwrap_err().to_string(),
            "unknown instruction set \"sse9\"; expected portable, avx2, avx512 or amx"
        );
    }

    #[test]
    fn portable_is_always_there() {
        assert_eq!(IsaName::available().next(), Some(IsaName::Portable));
        for name in IsaName::available() {
            assert_eq!(Isa::new(name).unwrap().name(), name);
        }
    }
}
