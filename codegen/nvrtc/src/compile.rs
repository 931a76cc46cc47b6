//! One program: text in, code and facts out.

use std::ffi::{CString, c_char, c_int};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr;

use crate::bindings::{Bindings, COMPILATION, Program, Status};
use crate::facts::{self, KernelFacts};
use crate::{Error, VARIABLE, find};

/// Stack of a thread that compiles, as that of a main thread.
const STACK: usize = 8 << 20;

/// The compiler. One may be used by several threads: NVRTC serialises what has to be.
pub struct Nvrtc {
    bindings: Bindings,
    path: PathBuf,
    version: (u32, u32),
}

impl fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nvrtc").field("path", &self.path).field("version", &self.version).finish_non_exhaustive()
    }
}

/// How to compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Target, such as 80 for `sm_80`.
    pub arch: u32,
    /// Whether a warning is an error.
    pub deny_warnings: bool,
}

impl Options {
    /// For `arch`; warnings are errors.
    pub fn new(arch: u32) -> Options {
        Options { arch, deny_warnings: true }
    }
}

/// What became of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Portable assembly.
    pub ptx: String,
    /// Machine code of the target, as the driver loads it.
    pub cubin: Vec<u8>,
    /// Resources of every kernel, in the order in which they were compiled.
    pub kernels: Vec<KernelFacts>,
    /// Warnings, where they are not errors.
    pub warnings: Vec<String>,
}

impl Nvrtc {
    /// Opens the library that the environment variable `SHADOWLLM_NVRTC` names; if it is not set, the system's.
    ///
    /// # Errors
    /// One sentence that says what was looked for, where, and what to do.
    pub fn open() -> Result<Nvrtc, Error> {
        Nvrtc::open_at(std::env::var_os(VARIABLE).map(PathBuf::from).as_deref())
    }

    /// Opens the library at `path`, a file or a folder; without a path, the system's.
    ///
    /// # Errors
    /// As [`Nvrtc::open`].
    pub fn open_at(path: Option<&Path>) -> Result<Nvrtc, Error> {
        let (path, bindings) = find::open(path)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are valid for writes.
        let status = unsafe { (bindings.version)(&raw mut major, &raw mut minor) };
        bindings.check(status, "tell its version")?;
        Ok(Nvrtc { bindings, path, version: (major.unsigned_abs(), minor.unsigned_abs()) })
    }

    /// Version, such as `12.9`.
    pub fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// Version as numbers, such as `(12, 9)`.
    pub fn number(&self) -> (u32, u32) {
        self.version
    }

    /// The library's file, or its name where the system found it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Targets that it can compile for.
    ///
    /// # Errors
    /// [`Error::Failed`] if it does not tell.
    pub fn archs(&self) -> Result<Vec<u32>, Error> {
        let mut count: c_int = 0;
        // SAFETY: the pointer is valid for writes.
        self.bindings.check(unsafe { (self.bindings.arch_count)(&raw mut count) }, "count its targets")?;
        let mut archs: Vec<c_int> = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: there is room for as many as it has just counted.
        self.bindings.check(unsafe { (self.bindings.archs)(archs.as_mut_ptr()) }, "list its targets")?;
        Ok(archs.into_iter().map(i32::unsigned_abs).collect())
    }

    /// Compiles a program without includes. Products and sums are not fused except where the text says `fmaf`, so that
    /// every execution of it rounds alike.
    ///
    /// # Errors
    /// [`Error::UnsupportedArch`], [`Error::Rejected`] with the compiler's log, [`Error::Warned`].
    pub fn compile(&self, source: &str, options: &Options) -> Result<Compiled, Error> {
        let (arch, version) = (options.arch, self.version());
        let supported = self.archs()?;
        if !supported.contains(&arch) {
            return Err(Error::UnsupportedArch { arch, version, supported });
        }
        let source = CString::new(source).map_err(|error| Error::ZeroByte { offset: error.nul_position() })?;
        let program = Opened::create(&self.bindings, &source)?;
        let status = program.compile(&[
            format!("--gpu-architecture=sm_{arch}"),
            "--std=c++17".to_owned(),
            "--fmad=false".to_owned(),
            "--ptxas-options=-v".to_owned(),
            "--ptxas-options=-warn-spills".to_owned(),
        ])?;
        let log = program.text(self.bindings.log_size, self.bindings.log, "give its log")?;
        if status == COMPILATION {
            return Err(Error::Rejected { arch, version, log: log.trim().to_owned() });
        }
        self.bindings.check(status, "compile the CUDA source")?;
        let warnings = facts::warnings(&log);
        if options.deny_warnings && !warnings.is_empty() {
            return Err(Error::Warned { arch, version, warnings });
        }
        let ptx = program.text(self.bindings.ptx_size, self.bindings.ptx, "give PTX")?;
        let cubin = program.bytes(self.bindings.cubin_size, self.bindings.cubin, "give machine code")?;
        Ok(Compiled { ptx, cubin, kernels: facts::kernels(&log), warnings })
    }

    /// Compiles several programs, each in a thread of its own. What becomes of one does not depend on the others.
    ///
    /// # Errors
    /// Those of [`Nvrtc::compile`], of the first program that has one; [`Error::Thread`].
    pub fn compile_all(&self, sources: &[String], options: &Options) -> Result<Vec<Compiled>, Error> {
        std::thread::scope(|scope| {
            let threads = sources.iter().map(|source| {
                let builder = std::thread::Builder::new().name("nvrtc".to_owned()).stack_size(STACK);
                builder.spawn_scoped(scope, || self.compile(source, options)).map_err(Error::Thread)
            });
            let threads: Vec<_> = threads.collect();
            let joined = threads.into_iter().map(|thread| match thread?.join() {
                Ok(compiled) => compiled,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect()
        })
    }
}

type SizeOf = unsafe extern "C" fn(Program, *mut usize) -> Status;
type BytesOf = unsafe extern "C" fn(Program, *mut c_char) -> Status;

/// A program inside the compiler, destroyed on drop.
struct Opened<'a> {
    bindings: &'a Bindings,
    program: Program,
}

impl<'a> Opened<'a> {
    fn create(bindings: &'a Bindings, source: &CString) -> Result<Opened<'a>, Error> {
        let mut program = ptr::null_mut();
        // SAFETY: the strings end in a zero, there are no headers, and NVRTC copies the text.
        let status = unsafe {
            (bindings.create)(&raw mut program, source.as_ptr(), c"shadowllm.cu".as_ptr(), 0, ptr::null(), ptr::null())
        };
        bindings.check(status, "take the CUDA source")?;
        Ok(Opened { bindings, program })
    }

    fn compile(&self, options: &[String]) -> Result<Status, Error> {
        let options: Result<Vec<CString>, _> = options.iter().map(|option| CString::new(option.as_str())).collect();
        let options = options.map_err(|error| Error::ZeroByte { offset: error.nul_position() })?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
        // SAFETY: `count` pointers to strings that end in a zero and live until the call returns.
        Ok(unsafe { (self.bindings.compile)(self.program, count, pointers.as_ptr()) })
    }

    fn bytes(&self, size: SizeOf, read: BytesOf, doing: &'static str) -> Result<Vec<u8>, Error> {
        let mut len = 0;
        // SAFETY: the program is alive and the pointer valid for writes.
        self.bindings.check(unsafe { size(self.program, &raw mut len) }, doing)?;
        let mut bytes = vec![0_u8; len];
        // SAFETY: there is room for as many bytes as it has just told.
        self.bindings.check(unsafe { read(self.program, bytes.as_mut_ptr().cast()) }, doing)?;
        Ok(bytes)
    }

    /// Bytes that are text and end in a zero.
    fn text(&self, size: SizeOf, read: BytesOf, doing: &'static str) -> Result<String, Error> {
        let bytes = self.bytes(size, read, doing)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once. A failure could not be acted on.
        unsafe { (self.bindings.destroy)(&raw mut self.program) };
    }
}
