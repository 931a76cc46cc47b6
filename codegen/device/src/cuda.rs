//! A GPU by NVIDIA's driver, which is looked for when a device is asked for.
//!
//! Functions of the driver are bound by `cudarc` one by one at their first call. It panics where the library or a function is missing, so
//! both are looked for first, and a driver too old to have what is called here is refused by its version.
//!
//! All work goes to one stream, so everything happens in the order of the calls. Bytes reach the device through two pinned buffers in
//! turn: while one is on its way over the bus, the other is filled from the mapped file.

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use cudarc::driver::DriverError;
use cudarc::driver::result::{self, event, function, graph, primary_ctx, stream};
use cudarc::driver::sys;

use crate::backend::{Backend, BufferId, CodeForm, GraphId, LaunchArg, LaunchSpec, Memory, ModuleId};
use crate::{DeviceError, Result};

/// CUDA version that a driver must support at least, as 12000 for 12.0.
const DRIVER: i32 = 12_000;
/// Bytes of one pinned buffer.
const STAGE: usize = 16 << 20;
/// Dynamic shared memory that a kernel has without asking.
const SHARED: u32 = 48 << 10;

/// A GPU.
#[derive(Debug)]
pub struct Cuda {
    name: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    stages: Vec<Stage>,
    /// The stage that is filled next.
    next: usize,
    sm: u32,
    driver: i32,
    modules: Vec<Option<Module>>,
    graphs: Vec<Option<sys::CUgraphExec>>,
}

/// A pinned buffer, and when its last copy is done.
#[derive(Debug)]
struct Stage {
    host: *mut c_void,
    done: sys::CUevent,
}

#[derive(Debug)]
struct Module {
    handle: sys::CUmodule,
    functions: HashMap<String, sys::CUfunction>,
}

// SAFETY: handles of the driver may be used from any thread that makes their context current, which every call here does, and
// the pinned memory is owned.
unsafe impl Send for Cuda {}

/// Whether the driver's library has a function; only for one that was found.
fn has_function(name: &str) -> bool {
    // SAFETY: the library was found; a symbol is looked up and not called.
    unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()).is_ok() }
}

/// The driver's words for what it refused.
fn words(error: DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    match text {
        Ok(text) => format!("{text} ({:?})", error.0),
        Err(_) => format!("{:?}", error.0),
    }
}

/// Makes an error of this module of one of the driver.
fn failed(name: &str, doing: &'static str) -> impl Fn(DriverError) -> DeviceError {
    move |error| DeviceError::Failed { name: name.to_owned(), doing, reason: words(error) }
}

/// Starts the driver; the number of its GPUs and its CUDA version.
fn start() -> Result<(usize, i32)> {
    // SAFETY: opening the driver's library runs its initialisers, which have no preconditions.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    for function in ["cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuGetErrorString"] {
        if !has_function(function) {
            return Err(DeviceError::NotADriver { function });
        }
    }
    match result::init() {
        Ok(()) => {}
        Err(DriverError(sys::CUresult::CUDA_ERROR_STUB_LIBRARY)) => return Err(DeviceError::StubDriver),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(DeviceError::NoGpu),
        Err(error) => return Err(failed("the NVIDIA driver", "start")(error)),
    }
    let mut driver = 0;
    // SAFETY: the pointer is valid for writes.
    let status = unsafe { sys::cuDriverGetVersion(&raw mut driver) };
    status.result().map_err(failed("the NVIDIA driver", "tell its version"))?;
    if driver < DRIVER {
        return Err(DeviceError::OldDriver { found: driver, needed: DRIVER, needs: "ShadowLLM".to_owned() });
    }
    match result::device::get_count() {
        Ok(0) | Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err(DeviceError::NoGpu),
        Ok(count) => Ok((usize::try_from(count).unwrap_or(0), driver)),
        Err(error) => Err(failed("the NVIDIA driver", "count its GPUs")(error)),
    }
}

impl Cuda {
    /// Opens GPU `number`.
    ///
    /// # Errors
    /// [`DeviceError::NoDriver`], [`DeviceError::StubDriver`], [`DeviceError::NotADriver`], [`DeviceError::OldDriver`], [`DeviceError::NoGpu`],
    /// [`DeviceError::NoSuchGpu`], [`DeviceError::Failed`].
    pub fn open(number: usize) -> Result<Cuda> {
        let (found, driver) = start()?;
        if number >= found {
            return Err(DeviceError::NoSuchGpu { asked: number, found });
        }
        let name = format!("cuda:{number}");
        let device = result::device::get(number as i32).map_err(failed(&name, "open"))?;
        let name = match result::device::get_name(device) {
            Ok(model) => format!("{name} ({model})"),
            Err(_) => name,
        };
        let attribute = |which| {
            // SAFETY: the device was opened.
            let value = unsafe { result::device::get_attribute(device, which) };
            value.map(i32::unsigned_abs).map_err(failed(&name, "tell its compute capability"))
        };
        use sys::CUdevice_attribute_enum as Attribute;
        let sm = 10 * attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        // SAFETY: the device was opened; the context is released on drop.
        let context = unsafe { primary_ctx::retain(device) }.map_err(failed(&name, "make a context"))?;
        let mut cuda = Cuda {
            name,
            device,
            context,
            stream: std::ptr::null_mut(),
            stages: Vec::new(),
            next: 0,
            sm,
            driver,
            modules: Vec::new(),
            graphs: Vec::new(),
        };
        cuda.enter()?;
        cuda.stream = stream::create(stream::StreamKind::NonBlocking).map_err(cuda.failed("make a stream"))?;
        Ok(cuda)
    }

    fn failed(&self, doing: &'static str) -> impl Fn(DriverError) -> DeviceError + use<'_> {
        failed(&self.name, doing)
    }

    /// Makes the device's context the one of this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained until `self` is dropped.
        unsafe { result::ctx::set_current(self.context) }.map_err(self.failed("make its context current"))
    }

    /// The pinned buffer whose turn it is, made when it is first needed, with nothing on its way from it.
    fn stage(&mut self) -> Result<(usize, *mut c_void)> {
        let index = self.next;
        self.next = (index + 1) % 2;
        if index == self.stages.len() {
            // SAFETY: the context is current; the memory is given back on drop.
            let host = unsafe { result::malloc_host(STAGE, sys::CU_MEMHOSTALLOC_WRITECOMBINED) };
            let host = host.map_err(self.failed("take pinned memory"))?;
            let done = event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
            let done = match done {
                Ok(done) => done,
                Err(error) => {
                    // SAFETY: taken above and used by nobody.
                    let _ = unsafe { result::free_host(host) };
                    return Err(self.failed("make an event")(error));
                }
            };
            self.stages.push(Stage { host, done });
        }
        let stage = &self.stages[index];
        // SAFETY: the event lives; one that was never recorded counts as done.
        unsafe { event::synchronize(stage.done) }.map_err(self.failed("copy to a buffer"))?;
        Ok((index, stage.host))
    }

    fn function(&mut self, module: ModuleId, kernel: &str, shared: u32) -> Result<sys::CUfunction> {
        let find = failed(&self.name, "find a kernel in its code");
        let Some(Some(module)) = self.modules.get_mut(module.0) else {
            return Err(find(DriverError(sys::CUresult::CUDA_ERROR_INVALID_HANDLE)));
        };
        if let Some(&function) = module.functions.get(kernel) {
            return Ok(function);
        }
        let name = CString::new(kernel).map_err(|_| find(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)))?;
        // SAFETY: the module is loaded.
        let found = unsafe { result::module::get_function(module.handle, name) }.map_err(find)?;
        if shared > SHARED {
            let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function exists.
            let raised = unsafe { function::set_function_attribute(found, most, shared as i32) };
            raised.map_err(failed(&self.name, "give a kernel its shared memory"))?;
        }
        module.functions.insert(kernel.to_owned(), found);
        Ok(found)
    }
}

impl Backend for Cuda {
    fn name(&self) -> &str {
        &self.name
    }

    fn sm(&self) -> u32 {
        self.sm
    }

    fn code_form(&self) -> CodeForm {
        CodeForm::Cubin
    }

    fn driver_version(&self) -> Option<i32> {
        Some(self.driver)
    }

    fn memory(&self) -> Result<Memory> {
        self.enter()?;
        let (free, total) = result::mem_get_info().map_err(self.failed("tell its memory"))?;
        Ok(Memory { free: free as u64, total: total as u64 })
    }

    fn alloc(&mut self, _: &str, bytes: u64) -> Result<BufferId> {
        self.enter()?;
        // SAFETY: the context is current; nobody reads the memory before something is written there.
        let address = unsafe { result::malloc_sync((bytes as usize).max(1)) };
        Ok(BufferId(address.map_err(self.failed("allocate memory"))?))
    }

    fn free(&mut self, buffer: BufferId) {
        if self.enter().is_ok() {
            // SAFETY: allocated above, given back once; the driver waits for what still uses it.
            let _ = unsafe { result::free_sync(buffer.0) };
        }
    }

    fn write(&mut self, buffer: BufferId, offset: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        let mut at = buffer.0 + offset;
        for part in bytes.chunks(STAGE) {
            let (index, host) = self.stage()?;
            // SAFETY: the stage has room for a part, nothing is on its way from it, and it lives until `self` is dropped.
            let staged = unsafe {
                std::ptr::copy_nonoverlapping(part.as_ptr(), host.cast::<u8>(), part.len());
                std::slice::from_raw_parts(host.cast::<u8>(), part.len())
            };
            // SAFETY: the caller's buffer has these bytes, and the stage is not touched before its event.
            let copied = unsafe {
                result::memcpy_htod_async(at, staged, self.stream)
                    .and_then(|()| event::record(self.stages[index].done, self.stream))
            };
            copied.map_err(self.failed("copy to a buffer"))?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn read(&mut self, buffer: BufferId, offset: u64, bytes: &mut [u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the caller's buffer has these bytes, and the stream is waited for before `bytes` is anybody else's.
        let copied = unsafe {
            let begun = result::memcpy_dtoh_async(bytes, buffer.0 + offset, self.stream);
            let waited = stream::synchronize(self.stream);
            begun.and(waited)
        };
        copied.map_err(self.failed("copy from a buffer"))
    }

    fn load(&mut self, code: &[u8]) -> Result<ModuleId> {
        self.enter()?;
        // SAFETY: machine code says how long it is, and the driver copies it.
        let handle = unsafe { result::module::load_data(code.as_ptr().cast()) }.map_err(self.failed("load code"))?;
        self.modules.push(Some(Module { handle, functions: HashMap::new() }));
        Ok(ModuleId(self.modules.len() - 1))
    }

    fn unload(&mut self, module: ModuleId) {
        if let (Some(module), Ok(())) = (self.modules[module.0].take(), self.enter()) {
            // SAFETY: loaded above, taken away once; nothing of it runs, for every token was read to its end.
            let _ = unsafe { result::module::unload(module.handle) };
        }
    }

    fn prepare(&mut self, module: ModuleId, kernel: &str, shared: u32) -> Result<()> {
        self.enter()?;
        self.function(module, kernel, shared).map(drop)
    }

    fn launch(&mut self, module: ModuleId, launch: &LaunchSpec<'_>) -> Result<()> {
        self.enter()?;
        let function = self.function(module, launch.kernel, launch.shared)?;
        let mut values: Vec<u64> = launch
            .args
            .iter()
            .map(|arg| match *arg {
                LaunchArg::Address(buffer, offset) => buffer.0 + offset,
                // Little-endian as everything that the driver exists for: the first four bytes are the number.
                LaunchArg::U32(value) => u64::from(value),
            })
            .collect();
        let mut params: Vec<*mut c_void> = values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let ([x, y], threads) = (launch.grid, launch.threads);
        // SAFETY: arguments are of the types of the kernel's parameters (the emitter made both), and are copied by the call.
        let launched = unsafe {
            result::launch_kernel(function, (x, y, 1), (threads, 1, 1), launch.shared, self.stream, &mut params)
        };
        launched.map_err(self.failed("launch a kernel"))
    }

    fn begin_graph(&mut self) -> Result<()> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        unsafe { stream::begin_capture(self.stream, mode) }.map_err(self.failed("record launches"))
    }

    fn end_graph(&mut self) -> Result<GraphId> {
        self.enter()?;
        // SAFETY: the stream lives and is recording; the graph is not used after it was made executable.
        let executable = unsafe {
            stream::end_capture(self.stream).and_then(|recorded| {
                let executable = graph::instantiate(recorded, sys::CUgraphInstantiate_flags(0));
                graph::destroy(recorded).and(executable)
            })
        };
        self.graphs.push(Some(executable.map_err(self.failed("record launches"))?));
        Ok(GraphId(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: GraphId) -> Result<()> {
        self.enter()?;
        let Some(Some(executable)) = self.graphs.get(graph.0) else {
            return Err(self.failed("replay a graph")(DriverError(sys::CUresult::CUDA_ERROR_INVALID_HANDLE)));
        };
        // SAFETY: the graph was made above, and its buffers live as long as whoever replays it.
        unsafe { graph::launch(*executable, self.stream) }.map_err(self.failed("replay a graph"))
    }

    fn drop_graph(&mut self, graph: GraphId) {
        if let (Some(executable), Ok(())) = (self.graphs[graph.0].take(), self.enter()) {
            // SAFETY: made above, destroyed once.
            let _ = unsafe { graph::exec_destroy(executable) };
        }
    }

    fn synchronize(&mut self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives.
        unsafe { stream::synchronize(self.stream) }.map_err(self.failed("finish its work"))
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if self.enter().is_ok() {
            // SAFETY: all of these were made here and are destroyed once, the context last. Failures could not be acted on.
            unsafe {
                let _ = stream::synchronize(self.stream);
                for stage in &self.stages {
                    let _ = event::destroy(stage.done);
                    let _ = result::free_host(stage.host);
                }
                if !self.stream.is_null() {
                    let _ = stream::destroy(self.stream);
                }
            }
        }
        // SAFETY: retained once in `open`.
        let _ = unsafe { primary_ctx::release(self.device) };
    }
}
