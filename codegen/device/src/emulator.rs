//! The emulator as a device: what would run on a GPU runs here, slowly, and with every access checked.

use std::collections::HashMap;

use shadowllm_emulator::{Arg, Buffer, Counters, Device, Error as EmulatorError, Module, Schedule};

use crate::backend::{Backend, BufferId, CodeForm, GraphId, LaunchArg, LaunchSpec, Memory, ModuleId};
use crate::{DeviceError, Result};

/// Memory that it is said to have.
const MEMORY: u64 = 4 << 30;
/// The instruction set whose code it is given.
const SM: u32 = 80;
const NAME: &str = "the emulator";

/// A launch that was recorded.
#[derive(Clone, Debug)]
struct Recorded {
    module: ModuleId,
    kernel: String,
    grid: [u32; 2],
    threads: u32,
    shared: u32,
    args: Vec<LaunchArg>,
}

/// The device.
#[derive(Debug, Default)]
pub struct Emulator {
    device: Device,
    buffers: HashMap<u64, (Buffer, u64)>,
    used: u64,
    next: u64,
    modules: Vec<Option<Module>>,
    graphs: Vec<Option<Vec<Recorded>>>,
    recording: Option<Vec<Recorded>>,
    memory: Option<u64>,
    counters: Option<Counters>,
}

impl Emulator {
    /// A device without buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that is said to have this much memory.
    pub fn with_memory(bytes: u64) -> Self {
        Emulator { memory: Some(bytes), ..Self::default() }
    }

    /// The order in which blocks and warps run from now on.
    pub fn set_schedule(&mut self, schedule: Schedule) {
        self.device.set_schedule(schedule);
    }

    /// From now on kernels may only read a buffer.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] for a buffer that was given back.
    pub fn set_read_only(&mut self, buffer: BufferId) -> Result<()> {
        let buffer = self.buffer(buffer)?;
        self.device.set_read_only(buffer, true).map_err(|error| emulated("protect a buffer", &error))
    }

    /// What the last kernel did.
    pub fn counters(&self) -> Option<&Counters> {
        self.counters.as_ref()
    }

    fn buffer(&self, id: BufferId) -> Result<Buffer> {
        self.buffers.get(&id.0).map(|(buffer, _)| *buffer).ok_or_else(|| failed("find a buffer", "it was given back"))
    }

    fn run(&mut self, launch: &Recorded) -> Result<()> {
        let args = launch.args.iter().map(|arg| {
            Ok(match *arg {
                LaunchArg::Address(id, offset) => Arg::At(self.buffer(id)?, offset),
                LaunchArg::U32(value) => Arg::U32(value),
            })
        });
        let args = args.collect::<Result<Vec<_>>>()?;
        let Some(Some(module)) = self.modules.get(launch.module.0) else {
            return Err(failed("launch a kernel", "its code was taken away"));
        };
        let [x, y] = launch.grid;
        let result =
            self.device.launch(module, &launch.kernel, [x, y, 1], [launch.threads, 1, 1], launch.shared, &args);
        self.counters = Some(result.map_err(|error| emulated("run a kernel", &error))?);
        Ok(())
    }
}

fn failed(doing: &'static str, reason: impl Into<String>) -> DeviceError {
    DeviceError::Failed { name: NAME.to_owned(), doing, reason: reason.into() }
}

fn emulated(doing: &'static str, error: &EmulatorError) -> DeviceError {
    failed(doing, error.to_string())
}

impl Backend for Emulator {
    fn name(&self) -> &str {
        NAME
    }

    fn sm(&self) -> u32 {
        SM
    }

    fn code_form(&self) -> CodeForm {
        CodeForm::Ptx
    }

    fn driver_version(&self) -> Option<i32> {
        None
    }

    fn memory(&self) -> Result<Memory> {
        let total = self.memory.unwrap_or(MEMORY);
        Ok(Memory { free: total.saturating_sub(self.used), total })
    }

    fn alloc(&mut self, name: &str, bytes: u64) -> Result<BufferId> {
        let size = usize::try_from(bytes).map_err(|error| failed("allocate memory", error.to_string()))?;
        let id = self.next;
        self.next += 1;
        self.buffers.insert(id, (self.device.alloc(name, size), bytes));
        self.used += bytes;
        Ok(BufferId(id))
    }

    fn free(&mut self, buffer: BufferId) {
        if let Some((buffer, bytes)) = self.buffers.remove(&buffer.0) {
            self.used -= bytes;
            // It is known, so this succeeds.
            let _ = self.device.free(buffer);
        }
    }

    fn write(&mut self, buffer: BufferId, offset: u64, bytes: &[u8]) -> Result<()> {
        let buffer = self.buffer(buffer)?;
        self.device.upload(buffer, offset as usize, bytes).map_err(|error| emulated("copy to a buffer", &error))
    }

    fn read(&mut self, buffer: BufferId, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let buffer = self.buffer(buffer)?;
        let read = self.device.download_bytes(buffer, offset as usize, bytes.len());
        bytes.copy_from_slice(&read.map_err(|error| emulated("copy from a buffer", &error))?);
        Ok(())
    }

    fn load(&mut self, code: &[u8]) -> Result<ModuleId> {
        let text = std::str::from_utf8(code).map_err(|error| failed("load code", error.to_string()))?;
        let module = self.device.load(text).map_err(|error| emulated("load code", &error))?;
        self.modules.push(Some(module));
        Ok(ModuleId(self.modules.len() - 1))
    }

    fn unload(&mut self, module: ModuleId) {
        self.modules[module.0] = None;
    }

    fn prepare(&mut self, module: ModuleId, kernel: &str, _: u32) -> Result<()> {
        let module = self.modules.get(module.0).and_then(Option::as_ref);
        match module.is_some_and(|module| module.kernels().any(|name| name == kernel)) {
            true => Ok(()),
            false => Err(failed("find a kernel in its code", format!("there is no {kernel}"))),
        }
    }

    fn launch(&mut self, module: ModuleId, launch: &LaunchSpec<'_>) -> Result<()> {
        let LaunchSpec { kernel, grid, threads, shared, args } = *launch;
        let launch = Recorded { module, kernel: kernel.to_owned(), grid, threads, shared, args: args.to_vec() };
        match &mut self.recording {
            Some(recording) => recording.push(launch),
            None => self.run(&launch)?,
        }
        Ok(())
    }

    fn begin_graph(&mut self) -> Result<()> {
        self.recording = Some(Vec::new());
        Ok(())
    }

    fn end_graph(&mut self) -> Result<GraphId> {
        let recorded = self.recording.take().ok_or_else(|| failed("end a graph", "none was begun"))?;
        self.graphs.push(Some(recorded));
        Ok(GraphId(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: GraphId) -> Result<()> {
        let launches = self.graphs.get_mut(graph.0).and_then(Option::take);
        let launches = launches.ok_or_else(|| failed("replay a graph", "it was forgotten"))?;
        let result = launches.iter().try_for_each(|launch| self.run(launch));
        self.graphs[graph.0] = Some(launches);
        result
    }

    fn drop_graph(&mut self, graph: GraphId) {
        self.graphs[graph.0] = None;
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}
