//! What a user calls a device, and an open one.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use shadowllm_codegen::{Program, Sm};
use shadowllm_nvrtc::{Nvrtc, Options};

use super::cache::{CodeCache, Key};
use super::shared::Shared;
use super::{Backend, CodeForm, DeviceError, GpuError, Memory, ModuleId};
use crate::{Error, Result};

/// Where decode steps run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The CPU engine.
    #[default]
    Cpu,
    /// The first GPU if it can run the model, else the CPU engine.
    Auto,
    /// The GPU of this number.
    Cuda(usize),
    /// The emulator, in builds with the feature `emulator`.
    Emulator,
}

impl FromStr for Device {
    type Err = GpuError;

    fn from_str(name: &str) -> Result<Self, GpuError> {
        match name {
            "cpu" => Ok(Device::Cpu),
            "auto" => Ok(Device::Auto),
            "cuda" => Ok(Device::Cuda(0)),
            "emulator" => Ok(Device::Emulator),
            _ => name
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Device::Cuda)
                .ok_or_else(|| GpuError::UnknownDevice { found: name.to_owned() }),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Auto => f.write_str("auto"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
            Device::Emulator => f.write_str("emulator"),
        }
    }
}

impl Device {
    /// Opens it; `None` for the CPU engine, which needs no opening. [`Device::Auto`] is the first GPU, and an error says why it is not
    /// there.
    ///
    /// # Errors
    /// [`GpuError`], one sentence for each thing that may be missing.
    pub fn open(self) -> Result<Option<Gpu>> {
        match self {
            Device::Cpu => Ok(None),
            Device::Auto => cuda(0).map(Some),
            Device::Cuda(number) => cuda(number).map(Some),
            Device::Emulator => emulator().map(Some),
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda(number: usize) -> Result<Gpu> {
    Gpu::new(Box::new(super::Cuda::open(number)?), Compiler::Nvrtc)
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> Result<Gpu> {
    Err(GpuError::NotBuilt { feature: "cuda" }.into())
}

#[cfg(feature = "emulator")]
fn emulator() -> Result<Gpu> {
    Gpu::new(Box::new(super::Emulator::new()), Compiler::Nvrtc)
}

#[cfg(not(feature = "emulator"))]
fn emulator() -> Result<Gpu> {
    Err(GpuError::NotBuilt { feature: "emulator" }.into())
}

/// Where compiled code comes from.
#[derive(Clone, Debug, Default)]
pub enum Compiler {
    /// NVIDIA's compiler, found at run time; what it made is kept on disk.
    #[default]
    Nvrtc,
    /// Code that is there already, with every kernel that will be asked for: where there is no compiler.
    Compiled(Arc<[u8]>),
}

/// An open device. Cheap to clone; all clones are the same device, used in turn.
#[derive(Clone, Debug)]
pub struct Gpu {
    pub(super) shared: Shared,
    name: Arc<str>,
    sm: Sm,
    form: CodeForm,
    driver: Option<i32>,
    compiler: Compiler,
    cache: CodeCache,
}

impl Gpu {
    /// A device by what it does.
    ///
    /// # Errors
    /// [`GpuError::OldGpu`] if there are no kernels for its version; [`GpuError::Compile`] if there is no compiler.
    pub fn new(backend: Box<dyn Backend>, compiler: Compiler) -> Result<Gpu> {
        let (name, found) = (backend.name().to_owned(), backend.sm());
        let sm = Sm::of_device(found).ok_or_else(|| Error::from(GpuError::OldGpu { name: name.clone(), sm: found }))?;
        let gpu = Gpu {
            name: name.into(),
            sm,
            form: backend.code_form(),
            driver: backend.driver_version(),
            shared: Shared::new(backend),
            compiler,
            cache: CodeCache::of_user(),
        };
        if let Compiler::Nvrtc = gpu.compiler {
            // To be known before weights are packed and copied.
            gpu.nvrtc()?;
        }
        Ok(gpu)
    }

    /// The same device, with compiled code kept in `folder` in place of the user's cache; with `None` nowhere.
    #[must_use]
    pub fn with_cache(self, folder: Option<PathBuf>) -> Gpu {
        Gpu { cache: CodeCache(folder), ..self }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version that kernels are emitted for.
    pub fn sm(&self) -> Sm {
        self.sm
    }

    /// Its memory now.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn memory(&self) -> Result<Memory> {
        self.shared.lock().memory()
    }

    /// The compiler, if the driver takes its code.
    fn nvrtc(&self) -> Result<Nvrtc> {
        let nvrtc = Nvrtc::open().map_err(GpuError::from)?;
        let major = nvrtc.version().split('.').next().and_then(|major| major.parse::<i32>().ok()).unwrap_or(0);
        match self.driver {
            Some(found) if self.form == CodeForm::Cubin && found < 1000 * major => {
                let needs = format!("the code of NVRTC {}", nvrtc.version());
                Err(DeviceError::OldDriver { found, needed: 1000 * major, needs }.into())
            }
            _ => Ok(nvrtc),
        }
    }

    /// An error unless `needed` more bytes fit.
    pub(super) fn check_room(&self, what: &'static str, needed: u64) -> Result<()> {
        let Memory { free, total } = self.memory()?;
        match needed <= free {
            true => Ok(()),
            false => Err(GpuError::Memory { what, name: self.name.to_string(), needed, free, total }.into()),
        }
    }

    /// Compiles a program, or takes it from the cache, and loads it.
    pub(super) fn load(&self, program: &Program) -> Result<Loaded> {
        let code = match &self.compiler {
            Compiler::Compiled(code) => Arc::clone(code),
            Compiler::Nvrtc => self.compile(&program.source())?.into(),
        };
        let module = self.shared.lock().load(&code)?;
        Ok(Loaded { module, device: self.shared.clone() })
    }

    fn compile(&self, source: &str) -> Result<Vec<u8>> {
        let nvrtc = self.nvrtc()?;
        let (sm, compiler) = (self.sm.version(), nvrtc.version());
        let key = Key { source, sm, compiler: &compiler, form: self.form };
        if let Some(code) = self.cache.get(&key) {
            return Ok(code);
        }
        let compiled = nvrtc.compile(source, &Options::new(sm)).map_err(GpuError::from)?;
        let code = match self.form {
            CodeForm::Ptx => compiled.ptx.into_bytes(),
            CodeForm::Cubin => compiled.cubin,
        };
        self.cache.put(&key, &code);
        Ok(code)
    }
}

/// Code on a device, taken away on drop.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) module: ModuleId,
    device: Shared,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.device.lock().unload(self.module);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        for (name, device) in [
            ("cpu", Device::Cpu),
            ("auto", Device::Auto),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:12", Device::Cuda(12)),
            ("emulator", Device::Emulator),
        ] {
            assert_eq!(name.parse::<Device>().unwrap(), device);
            assert_eq!(device.to_string(), name);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for name in ["gpu", "cuda:", "cuda:-1", "CUDA", ""] {
            let expected = format!(
                "unknown device {name:?}; expected cpu, auto, cuda, cuda:N (such as cuda:0) or, in builds with it, emulator"
            );
            assert_eq!(name.parse::<Device>().unwrap_err().to_string(), expected);
        }
        assert!(Device::Cpu.open().unwrap().is_none());
    }
}
