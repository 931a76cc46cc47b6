//! The C functions of NVRTC.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::Error;

/// `nvrtcProgram`: a pointer to something opaque.
pub(crate) type Program = *mut c_void;
/// `nvrtcResult`: 0 is success.
pub(crate) type Status = c_int;

/// `NVRTC_ERROR_COMPILATION`: the text is wrong, and the log says where.
pub(crate) const COMPILATION: Status = 6;

/// The functions, and the library that they live in.
pub(crate) struct Bindings {
    pub(crate) error_string: unsafe extern "C" fn(Status) -> *const c_char,
    pub(crate) version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    pub(crate) arch_count: unsafe extern "C" fn(*mut c_int) -> Status,
    pub(crate) archs: unsafe extern "C" fn(*mut c_int) -> Status,
    pub(crate) create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    pub(crate) destroy: unsafe extern "C" fn(*mut Program) -> Status,
    pub(crate) compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    pub(crate) log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    pub(crate) log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    pub(crate) ptx_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    pub(crate) ptx: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    pub(crate) cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    pub(crate) cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    /// Keeps the code of the functions mapped; dropped last.
    _library: Library,
}

impl Bindings {
    /// Opens the library at `path`, or of that name wherever the system looks.
    pub(crate) fn open(path: &Path) -> Result<Bindings, libloading::Error> {
        // SAFETY: initialisers of NVIDIA's compiler library have no preconditions; the user chose the file.
        let library = unsafe { Library::new(path)? };
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type of the field is the one that NVIDIA documents for this name, and `_library` outlives it.
                unsafe { *library.get(concat!($name, "\0").as_bytes())? }
            };
        }
        Ok(Bindings {
            error_string: function!("nvrtcGetErrorString"),
            version: function!("nvrtcVersion"),
            arch_count: function!("nvrtcGetNumSupportedArchs"),
            archs: function!("nvrtcGetSupportedArchs"),
            create: function!("nvrtcCreateProgram"),
            destroy: function!("nvrtcDestroyProgram"),
            compile: function!("nvrtcCompileProgram"),
            log_size: function!("nvrtcGetProgramLogSize"),
            log: function!("nvrtcGetProgramLog"),
            ptx_size: function!("nvrtcGetPTXSize"),
            ptx: function!("nvrtcGetPTX"),
            cubin_size: function!("nvrtcGetCUBINSize"),
            cubin: function!("nvrtcGetCUBIN"),
            _library: library,
        })
    }

    /// An error unless `status` is success. `doing` completes "NVRTC failed to".
    pub(crate) fn check(&self, status: Status, doing: &'static str) -> Result<(), Error> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: returns a pointer to a constant string for every value, known or not.
        let text = unsafe { (self.error_string)(status) };
        let reason = if text.is_null() {
            format!("error {status}")
        } else {
            // SAFETY: not null, and NVRTC's strings are constants that end in a zero.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(Error::Failed { doing, reason })
    }
}

/// The first library of `candidates` that opens; otherwise each with the reason why it did not.
pub(crate) fn open_first(candidates: &[PathBuf]) -> Result<(PathBuf, Bindings), Vec<String>> {
    let mut reasons = Vec::new();
    for path in candidates {
        match Bindings::open(path) {
            Ok(bindings) => return Ok((path.clone(), bindings)),
            Err(error) => reasons.push(format!("{}: {error}", path.display())),
        }
    }
    Err(reasons)
}
