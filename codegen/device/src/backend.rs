//! What a device does: the one interface behind which a GPU and its emulator are the same.
//!
//! A device is its own memory, code that was loaded, and work in a fixed order. Nothing here knows of models. Everything is called
//! from one thread at a time; copies are finished when they return, launches when something that waits for them does.

use std::fmt;

use crate::Result;

/// A buffer on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub u64);

/// Code on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModuleId(pub usize);

/// Launches that were recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphId(pub usize);

/// Form of the code that a device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeForm {
    /// Portable assembly.
    Ptx,
    /// Machine code.
    Cubin,
}

impl CodeForm {
    /// End of the names of files with it.
    pub const fn extension(self) -> &'static str {
        match self {
            CodeForm::Ptx => "ptx",
            CodeForm::Cubin => "cubin",
        }
    }
}

/// Memory of a device in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What can still be allocated.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchArg {
    /// The address of byte `1` of buffer `0`.
    Address(BufferId, u64),
    /// A number.
    U32(u32),
}

/// One launch.
#[derive(Clone, Copy, Debug)]
pub struct LaunchSpec<'a> {
    /// The kernel's name.
    pub kernel: &'a str,
    /// Blocks in x and y.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// One for each parameter.
    pub args: &'a [LaunchArg],
}

/// A device.
pub trait Backend: Send + fmt::Debug {
    /// What it is called in messages.
    fn name(&self) -> &str;

    /// Version of its instruction set: 80 for `sm_80`.
    fn sm(&self) -> u32;

    /// The form of code that [`Backend::load`] takes.
    fn code_form(&self) -> CodeForm;

    /// CUDA version of the driver, as 12080 for 12.8; `None` if there is no driver whose age matters.
    fn driver_version(&self) -> Option<i32>;

    /// Its memory now.
    ///
    /// # Errors
    /// [`DeviceError::Failed`](crate::DeviceError::Failed), here and below.
    fn memory(&self) -> Result<Memory>;

    /// A buffer of `bytes` bytes, at an address that is a multiple of 256. What is in it nobody knows. `name` is for messages.
    ///
    /// # Errors
    /// As above.
    fn alloc(&mut self, name: &str, bytes: u64) -> Result<BufferId>;

    /// Gives a buffer back. A failure could not be acted on.
    fn free(&mut self, buffer: BufferId);

    /// Copies bytes into a buffer, from byte `offset` on.
    ///
    /// # Errors
    /// As above.
    fn write(&mut self, buffer: BufferId, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Copies bytes out of a buffer, after everything that was launched.
    ///
    /// # Errors
    /// As above.
    fn read(&mut self, buffer: BufferId, offset: u64, bytes: &mut [u8]) -> Result<()>;

    /// Loads compiled code of the form that it asks for.
    ///
    /// # Errors
    /// As above; code that the device does not take.
    fn load(&mut self, code: &[u8]) -> Result<ModuleId>;

    /// Takes code away. Its graphs are of no use any more.
    fn unload(&mut self, module: ModuleId);

    /// Finds a kernel that will be given `shared` bytes of dynamic shared memory, so that a launch loads nothing, which a recording may not.
    ///
    /// # Errors
    /// As above; a kernel that the code does not have.
    fn prepare(&mut self, module: ModuleId, kernel: &str, shared: u32) -> Result<()>;

    /// Runs a kernel, or records it between [`Backend::begin_graph`] and [`Backend::end_graph`].
    ///
    /// # Errors
    /// As above.
    fn launch(&mut self, module: ModuleId, launch: &LaunchSpec<'_>) -> Result<()>;

    /// From here on launches are recorded in place of being run.
    ///
    /// # Errors
    /// As above.
    fn begin_graph(&mut self) -> Result<()>;

    /// Ends the recording. After an error nothing is recorded any more.
    ///
    /// # Errors
    /// As above.
    fn end_graph(&mut self) -> Result<GraphId>;

    /// Runs what was recorded, in its order.
    ///
    /// # Errors
    /// As above.
    fn replay(&mut self, graph: GraphId) -> Result<()>;

    /// Forgets a recording.
    fn drop_graph(&mut self, graph: GraphId);

    /// Waits for everything that was launched.
    ///
    /// # Errors
    /// As above, also of kernels that ran before.
    fn synchronize(&mut self) -> Result<()>;
}
