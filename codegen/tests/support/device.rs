//! The device that a test runs on: the emulator, or a GPU. Test bodies do not know which.

use std::cell::{Cell, RefCell};

use shadowllm_codegen::Sm;
use shadowllm_device::{Backend, BufferId, Cuda, DeviceError, Emulator, LaunchArg, LaunchSpec, ModuleId};
use shadowllm_emulator::{Counters, Schedule};
use shadowllm_nvrtc::Compiled;

/// Number of the GPU that tests run on, too.
const VARIABLE: &str = "SHADOWLLM_CUDA_DEVICE";

thread_local! {
    /// The GPU of this test; `None`: the emulator.
    static GPU: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Makes the GPU that the environment names the device of this test. Without one the test is skipped.
pub fn use_gpu() -> bool {
    let Some(value) = std::env::var(VARIABLE).ok() else {
        eprintln!("skipped: {VARIABLE} is not set to the number of a GPU");
        return false;
    };
    GPU.set(Some(value.parse().unwrap_or_else(|_| panic!("{VARIABLE} is {value:?}, expected the number of a GPU"))));
    true
}

/// One body, two tests: on the emulator, and on a GPU.
macro_rules! on_devices {
    ($($(#[$attribute:meta])* fn $name:ident() $body:block)*) => {$(
        $(#[$attribute])*
        mod $name {
            use super::*;

            fn run() $body

            #[test]
            fn emulated() {
                run();
            }

            #[test]
            fn on_a_gpu() {
                if support::device::use_gpu() {
                    run();
                }
            }
        }
    )*};
}
pub(crate) use on_devices;

enum Kind {
    Emulated(Box<Emulator>),
    Gpu(Cuda),
}

impl Kind {
    fn backend(&mut self) -> &mut dyn Backend {
        match self {
            Kind::Emulated(emulator) => emulator.as_mut(),
            Kind::Gpu(cuda) => cuda,
        }
    }
}

fn open() -> Kind {
    match GPU.get() {
        None => Kind::Emulated(Box::default()),
        Some(number) => Kind::Gpu(Cuda::open(number).unwrap_or_else(|error| panic!("{error}"))),
    }
}

/// The version that kernels of this test are emitted for.
pub fn sm() -> Sm {
    let version = open().backend().sm();
    Sm::of_device(version).unwrap_or_else(|| panic!("there are no kernels for sm_{version}"))
}

/// The code that the device of this test takes.
pub fn code(compiled: Compiled) -> Vec<u8> {
    match GPU.get() {
        None => compiled.ptx.into_bytes(),
        Some(_) => compiled.cubin,
    }
}

/// A device with its code.
pub struct Device {
    kind: RefCell<Kind>,
    module: ModuleId,
}

impl Device {
    pub fn new(code: &[u8]) -> Device {
        let mut kind = open();
        let module = kind.backend().load(code).unwrap();
        Device { kind: RefCell::new(kind), module }
    }

    /// Of the emulator; a GPU has its own.
    pub fn set_schedule(&self, schedule: Schedule) {
        if let Kind::Emulated(emulator) = &mut *self.kind.borrow_mut() {
            emulator.set_schedule(schedule);
        }
    }

    /// Kernels that write to it are in the wrong, which the emulator says.
    pub fn set_read_only(&self, buffer: BufferId) {
        if let Kind::Emulated(emulator) = &mut *self.kind.borrow_mut() {
            emulator.set_read_only(buffer).unwrap();
        }
    }

    pub fn alloc(&self, name: &str, bytes: usize) -> BufferId {
        self.kind.borrow_mut().backend().alloc(name, bytes as u64).unwrap()
    }

    pub fn alloc_from<T: bytemuck::NoUninit>(&self, name: &str, values: &[T]) -> BufferId {
        let buffer = self.alloc(name, size_of_val(values));
        self.upload(buffer, 0, values).unwrap();
        buffer
    }

    pub fn upload<T: bytemuck::NoUninit>(
        &self,
        buffer: BufferId,
        offset: usize,
        values: &[T],
    ) -> Result<(), DeviceError> {
        self.kind.borrow_mut().backend().write(buffer, offset as u64, bytemuck::cast_slice(values))
    }

    pub fn download<T: bytemuck::Pod>(&self, buffer: BufferId, offset: usize, count: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); count];
        let bytes = bytemuck::cast_slice_mut(&mut values);
        self.kind.borrow_mut().backend().read(buffer, offset as u64, bytes).unwrap();
        values
    }

    /// Runs a kernel to its end. A GPU counts nothing.
    pub fn launch(
        &self,
        kernel: &str,
        grid: [u32; 2],
        [threads, shared]: [u32; 2],
        args: &[LaunchArg],
    ) -> Result<Counters, DeviceError> {
        let mut kind = self.kind.borrow_mut();
        let backend = kind.backend();
        backend.prepare(self.module, kernel, shared)?;
        backend.launch(self.module, &LaunchSpec { kernel, grid, threads, shared, args })?;
        backend.synchronize()?;
        Ok(match &*kind {
            Kind::Emulated(emulator) => emulator.counters().cloned().unwrap_or_default(),
            Kind::Gpu(_) => Counters::default(),
        })
    }
}
