//! What a user calls a device, and an open one.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use shadowllm_codegen::{Program, Sm};
use shadowllm_nvrtc::{Nvrtc, Options};

use super::cache::{CodeCache, Key, Version};
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
    /// NVRTC, since it was first needed.
    nvrtc: Arc<OnceLock<Nvrtc>>,
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
            nvrtc: Arc::default(),
            cache: CodeCache::of_user(),
        };
        if matches!(gpu.compiler, Compiler::Nvrtc) && gpu.cache.is_empty(gpu.form) {
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
        Ok(self.shared.lock().memory()?)
    }

    /// The compiler, if the driver takes its code.
    fn nvrtc(&self) -> Result<&Nvrtc> {
        let nvrtc = match self.nvrtc.get() {
            Some(nvrtc) => nvrtc,
            None => {
                let opened = Nvrtc::open().map_err(GpuError::from)?;
                self.nvrtc.get_or_init(|| opened)
            }
        };
        match self.driver {
            Some(found) if !self.accepts(nvrtc.number()) => {
                let needs = format!("the code of NVRTC {}", nvrtc.version());
                Err(DeviceError::OldDriver { found, needed: 1000 * nvrtc.number().0 as i32, needs }.into())
            }
            _ => Ok(nvrtc),
        }
    }

    /// Whether the driver takes the code of a version of NVRTC.
    fn accepts(&self, (major, _): Version) -> bool {
        self.form != CodeForm::Cubin || self.driver.is_none_or(|driver| driver >= 1000 * major as i32)
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
        let compiled;
        let codes: Vec<&[u8]> = match &self.compiler {
            Compiler::Compiled(code) => vec![code],
            Compiler::Nvrtc => {
                compiled = self.compile(program.parts())?;
                compiled.iter().map(Vec::as_slice).collect()
            }
        };
        let mut loaded = Loaded { modules: Vec::with_capacity(codes.len()), device: self.shared.clone() };
        for code in codes {
            let module = self.shared.lock().load(code)?;
            loaded.modules.push(module);
        }
        Ok(loaded)
    }

    fn key<'a>(&self, source: &'a str) -> Key<'a> {
        Key { source, sm: self.sm.version(), form: self.form }
    }

    /// The code of every text, those that are not in the cache compiled at once.
    fn compile(&self, sources: Vec<String>) -> Result<Vec<Vec<u8>>> {
        let kept = |source: &String| self.cache.get(&self.key(source), |version| self.accepts(version));
        let mut codes: Vec<Option<Vec<u8>>> = sources.iter().map(kept).collect();
        let missing = sources.into_iter().zip(&mut codes).filter(|(_, code)| code.is_none());
        let (missing, places): (Vec<String>, Vec<_>) = missing.unzip();
        if !missing.is_empty() {
            let nvrtc = self.nvrtc()?;
            let compiled = nvrtc.compile_all(&missing, &Options::new(self.sm.version())).map_err(GpuError::from)?;
            for ((source, place), compiled) in missing.iter().zip(places).zip(compiled) {
                let code = match self.form {
                    CodeForm::Ptx => compiled.ptx.into_bytes(),
                    CodeForm::Cubin => compiled.cubin,
                };
                self.cache.put(&self.key(source), nvrtc.number(), &code);
                *place = Some(code);
            }
        }
        Ok(codes.into_iter().flatten().collect())
    }
}

/// Code on a device, taken away on drop.
#[derive(Debug)]
pub(super) struct Loaded {
    /// One, or one for each of [`Program::parts`].
    modules: Vec<ModuleId>,
    device: Shared,
}

impl Loaded {
    /// Where a kernel of the program is.
    pub(super) fn module(&self, kernel: usize) -> ModuleId {
        self.modules[kernel % self.modules.len()]
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let mut device = self.device.lock();
        self.modules.iter().for_each(|module| device.unload(*module));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::print_stdout)]
mod tests {
    use std::time::{Duration, Instant};

    use shadowllm_codegen as codegen;
    use shadowllm_codegen::{DType, KernelSpec, Sizes};

    use super::*;
    use crate::gpu::{BufferId, GraphId, LaunchSpec};

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

    /// A GPU that takes any code and does nothing.
    #[derive(Debug)]
    struct Idle(u32);

    impl Backend for Idle {
        fn name(&self) -> &str {
            "an idle GPU"
        }
        fn sm(&self) -> u32 {
            self.0
        }
        fn code_form(&self) -> CodeForm {
            CodeForm::Cubin
        }
        fn driver_version(&self) -> Option<i32> {
            Some(13_000)
        }
        fn memory(&self) -> shadowllm_device::Result<Memory> {
            Ok(Memory { free: 0, total: 0 })
        }
        fn alloc(&mut self, _: &str, _: u64) -> shadowllm_device::Result<BufferId> {
            Ok(BufferId(0))
        }
        fn free(&mut self, _: BufferId) {}
        fn write(&mut self, _: BufferId, _: u64, _: &[u8]) -> shadowllm_device::Result<()> {
            Ok(())
        }
        fn read(&mut self, _: BufferId, _: u64, _: &mut [u8]) -> shadowllm_device::Result<()> {
            Ok(())
        }
        fn load(&mut self, code: &[u8]) -> shadowllm_device::Result<ModuleId> {
            Ok(ModuleId(code.len()))
        }
        fn unload(&mut self, _: ModuleId) {}
        fn prepare(&mut self, _: ModuleId, _: &str, _: u32) -> shadowllm_device::Result<()> {
            Ok(())
        }
        fn launch(&mut self, _: ModuleId, _: &LaunchSpec<'_>) -> shadowllm_device::Result<()> {
            Ok(())
        }
        fn begin_graph(&mut self) -> shadowllm_device::Result<()> {
            Ok(())
        }
        fn end_graph(&mut self) -> shadowllm_device::Result<GraphId> {
            Ok(GraphId(0))
        }
        fn replay(&mut self, _: GraphId) -> shadowllm_device::Result<()> {
            Ok(())
        }
        fn drop_graph(&mut self, _: GraphId) {}
        fn synchronize(&mut self) -> shadowllm_device::Result<()> {
            Ok(())
        }
    }

    /// What it takes from a spec to loaded code, and whether the compiler was needed.
    fn ready(gpu: &Gpu, spec: &KernelSpec) -> (Duration, bool) {
        let predictor = codegen::PredictorSpec {
            stations: vec![0],
            input: codegen::PredictorInput::Residual,
            normalization: codegen::Normalization::None,
            relu: true,
            format: codegen::WeightFormat::Int8,
            bias: true,
            heads: Some(128),
            neurons: Some(128),
            trunk: false,
        };
        let start = Instant::now();
        let program = Program::emit(spec, Some(&predictor), &[]).unwrap();
        let loaded = gpu.load(&program).unwrap();
        assert!(loaded.modules.iter().all(|module| module.0 > 1000), "machine code is longer");
        (start.elapsed(), gpu.nvrtc.get().is_some())
    }

    /// `cargo test -p shadowllm --lib whole_models_kernels -- --nocapture` prints the times.
    #[test]
    fn a_whole_models_kernels_come_from_the_cache_without_the_compiler() {
        if let Err(error) = Nvrtc::open() {
            return println!("skipped: {error}");
        }
        let opt = Sizes {
            layers: 32,
            hidden: 4096,
            heads: 32,
            kv_heads: 32,
            head_dim: 128,
            ffn: 16384,
            vocab: 50272,
            context: 2048,
        };
        let llama = Sizes { kv_heads: 8, ffn: 14336, vocab: 128_256, context: 8192, ..opt };
        for sm in [80, 90] {
            let version = Sm::new(sm).unwrap();
            for (name, spec) in [
                ("opt-6.7b", KernelSpec::opt(opt, DType::F16, version)),
                ("llama-3-8b", KernelSpec::llama(llama, DType::BF16, version)),
            ] {
                let folder = tempfile::tempdir().unwrap();
                let open = || {
                    let gpu = Gpu::new(Box::new(Idle(sm)), Compiler::Compiled(Arc::new([]))).unwrap();
                    let cache = CodeCache(Some(folder.path().to_owned()));
                    Gpu { compiler: Compiler::Nvrtc, cache, ..gpu }
                };
                let (cold, compiled) = ready(&open(), &spec);
                let (kept, again) = ready(&open(), &spec);
                println!("{name}, sm_{sm}: compiled in {cold:?}, from the cache in {kept:?}");
                assert!(compiled && !again, "{name}, sm_{sm}");
                assert!(kept * 20 < cold, "{name}, sm_{sm}: {kept:?} from the cache, {cold:?} without");
            }
        }
    }
}
