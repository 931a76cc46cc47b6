//! The device: buffers, modules, launches.

use std::collections::HashMap;

use bytemuck::{AnyBitPattern, NoUninit};

use crate::counters::Counters;
use crate::decode::decode;
use crate::error::Error;
use crate::exec::{Geometry, Launch, run};
use crate::memory::race::{LAST_TIME, THREAD_BITS};
use crate::memory::region::Region;
use crate::memory::space::address;
use crate::memory::{Buffer, Memory};
use crate::parse::{Space, parse};
use crate::program::Program;
use crate::schedule::Schedule;

/// Most threads of a block.
const MAX_THREADS: u32 = 1 << THREAD_BITS;
/// Most bytes of shared memory of a block: those of compute capability 9.0.
const MAX_SHARED: u64 = 227 * 1024;
/// Warp instructions of one launch, unless set otherwise.
const BUDGET: u64 = 1_000_000_000;

/// An emulated device.
#[derive(Debug)]
pub struct Device {
    memory: Memory,
    schedule: Schedule,
    budget: u64,
    time: u32,
}

impl Default for Device {
    fn default() -> Self {
        Self::new()
    }
}

/// A module: kernels, and variables that live on the device it was loaded to.
#[derive(Debug)]
pub struct Module {
    text: String,
    target: String,
    kernels: Vec<Program>,
    variables: HashMap<String, Buffer>,
}

impl Module {
    /// The architecture it was compiled for: `sm_80`.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Names of the kernels, in the order of the text.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|kernel| kernel.name.as_str())
    }

    /// The buffer of a `__device__` or `__constant__` variable.
    pub fn variable(&self, name: &str) -> Option<Buffer> {
        self.variables.get(name).copied()
    }
}

/// An argument of a kernel.
#[derive(Clone, Debug)]
pub enum Arg {
    /// The address of a buffer.
    Buffer(Buffer),
    /// An address inside of a buffer, so many bytes behind its beginning.
    At(Buffer, u64),
    /// A 32-bit integer.
    U32(u32),
    /// A signed 32-bit integer.
    I32(i32),
    /// A 64-bit integer.
    U64(u64),
    /// A float.
    F32(f32),
    /// A structure, byte by byte.
    Bytes(Vec<u8>),
}

impl Device {
    /// A device without buffers.
    pub fn new() -> Self {
        Self { memory: Memory::default(), schedule: Schedule::default(), budget: BUDGET, time: 1 }
    }

    /// Sets the order in which later launches run blocks and warps.
    pub fn set_schedule(&mut self, schedule: Schedule) {
        self.schedule = schedule;
    }

    /// Sets how many warp instructions a launch may execute before it counts as endless.
    pub fn set_budget(&mut self, instructions: u64) {
        self.budget = instructions;
    }

    /// A buffer of `bytes` bytes that nobody has written yet. The name appears in messages and counters.
    pub fn alloc(&mut self, name: &str, bytes: usize) -> Buffer {
        self.memory.add(Region::fresh(format!("buffer `{name}`"), bytes))
    }

    /// A new buffer with these contents.
    pub fn alloc_from<T: NoUninit>(&mut self, name: &str, values: &[T]) -> Buffer {
        let bytes = bytemuck::cast_slice::<T, u8>(values);
        let mut region = Region::fresh(format!("buffer `{name}`"), bytes.len());
        region.data.copy_from_slice(bytes);
        region.mark(0, bytes.len());
        self.memory.add(region)
    }

    /// Gives a buffer back. An access to it is an error from now on.
    pub fn free(&mut self, buffer: Buffer) -> Result<(), Error> {
        self.memory.remove(buffer)
    }

    /// Declares that kernels must not write a buffer (or may again). The host always may.
    pub fn set_read_only(&mut self, buffer: Buffer, read_only: bool) -> Result<(), Error> {
        let region = self.memory.get_mut(buffer)?;
        region.read_only = read_only;
        Ok(())
    }

    /// The address of a buffer, as kernels see it: for structures that hold pointers.
    pub fn address(&self, buffer: Buffer) -> Result<u64, Error> {
        self.memory.get(buffer)?;
        Ok(address(buffer.0))
    }

    /// The bytes of a buffer.
    pub fn size(&self, buffer: Buffer) -> Result<usize, Error> {
        Ok(self.memory.get(buffer)?.data.len())
    }

    /// Copies values into a buffer, from byte `offset` on.
    pub fn upload<T: NoUninit>(&mut self, buffer: Buffer, offset: usize, values: &[T]) -> Result<(), Error> {
        let bytes = bytemuck::cast_slice::<T, u8>(values);
        let region = self.memory.get_mut(buffer)?;
        fits(region, offset, bytes.len())?;
        region.data[offset..offset + bytes.len()].copy_from_slice(bytes);
        region.mark(offset, bytes.len());
        Ok(())
    }

    /// The contents of a buffer. Bytes that nobody wrote are 0xff.
    pub fn download<T: AnyBitPattern>(&self, buffer: Buffer) -> Result<Vec<T>, Error> {
        let region = self.memory.get(buffer)?;
        let (size, element) = (region.data.len(), size_of::<T>());
        if element == 0 || size % element != 0 {
            return Err(Error::ElementSize { buffer: region.name().to_string(), size: size as u64, element });
        }
        Ok(region.data.chunks_exact(element).map(bytemuck::pod_read_unaligned).collect())
    }

    /// `bytes` bytes of a buffer from `offset` on.
    pub fn download_bytes(&self, buffer: Buffer, offset: usize, bytes: usize) -> Result<Vec<u8>, Error> {
        let region = self.memory.get(buffer)?;
        fits(region, offset, bytes)?;
        Ok(region.data[offset..offset + bytes].to_vec())
    }

    /// Copies within the device.
    pub fn copy(
        &mut self,
        to: Buffer,
        to_offset: usize,
        from: Buffer,
        from_offset: usize,
        bytes: usize,
    ) -> Result<(), Error> {
        let data = self.download_bytes(from, from_offset, bytes)?;
        self.upload(to, to_offset, &data)
    }

    /// Parses a module and places its variables on the device.
    pub fn load(&mut self, ptx: &str) -> Result<Module, Error> {
        let module = parse(ptx)?;
        let mut places = HashMap::new();
        let mut variables = HashMap::new();
        let mut shared = Vec::new();
        let first = self.memory.len();
        for variable in module.variables {
            if variable.space == Space::Shared {
                shared.push(variable);
                continue;
            }
            let mut region = Region::fresh(format!("variable `{}`", variable.name), variable.bytes as usize);
            region.data.fill(0);
            region.data[..variable.initial.len()].copy_from_slice(&variable.initial);
            region.mark(0, variable.bytes as usize);
            region.read_only = variable.space == Space::Const;
            let buffer = self.memory.add(region);
            places.insert(variable.name.clone(), address(buffer.0));
            variables.insert(variable.name, buffer);
        }
        let decoded = module.kernels.iter().map(|kernel| decode(kernel, &places, &shared)).collect();
        match decoded {
            Ok(kernels) => Ok(Module { text: ptx.to_string(), target: module.target, kernels, variables }),
            Err(error) => {
                self.memory.truncate(first);
                Err(Error::Parse(error))
            }
        }
    }

    /// Runs a kernel to its end. `shared` is the number of bytes of dynamic shared memory.
    ///
    /// After an error buffers hold what the kernel wrote until then.
    pub fn launch(
        &mut self,
        module: &Module,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        arguments: &[Arg],
    ) -> Result<Counters, Error> {
        let Some(program) = module.kernels.iter().find(|program| program.name == kernel) else {
            let known = module.kernels().map(str::to_string).collect();
            return Err(Error::UnknownKernel { name: kernel.to_string(), known });
        };
        let geometry = Geometry { grid, block, dynamic_shared: shared };
        check(program, &geometry)?;
        let parameters = self.parameters(program, arguments)?;
        // Stamps have 30 bits for the time: long before they are used up, all is forgotten and time begins anew.
        if self.time > LAST_TIME / 2 {
            for (_, region) in self.memory.all() {
                region.forget_accesses();
            }
            self.time = 1;
        }
        let launch = Launch {
            program,
            text: &module.text,
            parameters: &parameters,
            geometry,
            schedule: self.schedule,
            budget: self.budget,
            time: self.time,
        };
        let (result, end) = run(&launch, &mut self.memory);
        self.time = end;
        Ok(result?)
    }

    fn parameters(&self, program: &Program, arguments: &[Arg]) -> Result<Vec<u8>, Error> {
        if arguments.len() != program.parameters.len() {
            return Err(Error::ArgumentCount {
                kernel: program.name.clone(),
                expected: program.parameters.len(),
                found: arguments.len(),
            });
        }
        let mut bytes = vec![0; program.parameter_bytes];
        for (index, (argument, parameter)) in arguments.iter().zip(&program.parameters).enumerate() {
            let value = match argument {
                Arg::Buffer(buffer) => self.address(*buffer)?.to_le_bytes().to_vec(),
                Arg::At(buffer, offset) => self.address(*buffer)?.wrapping_add(*offset).to_le_bytes().to_vec(),
                Arg::U32(value) => value.to_le_bytes().to_vec(),
                Arg::I32(value) => value.to_le_bytes().to_vec(),
                Arg::U64(value) => value.to_le_bytes().to_vec(),
                Arg::F32(value) => value.to_le_bytes().to_vec(),
                Arg::Bytes(bytes) => bytes.clone(),
            };
            if value.len() as u64 != parameter.bytes {
                return Err(Error::ArgumentSize {
                    kernel: program.name.clone(),
                    index,
                    expected: parameter.bytes,
                    found: value.len() as u64,
                });
            }
            let start = parameter.offset as usize;
            bytes[start..start + value.len()].copy_from_slice(&value);
        }
        Ok(bytes)
    }
}

fn fits(region: &Region, offset: usize, bytes: usize) -> Result<(), Error> {
    if offset.checked_add(bytes).is_some_and(|end| end <= region.data.len()) {
        return Ok(());
    }
    Err(Error::CopyOutOfBounds {
        buffer: region.name().to_string(),
        size: region.data.len() as u64,
        offset: offset as u64,
        bytes: bytes as u64,
    })
}

fn check(program: &Program, geometry: &Geometry) -> Result<(), Error> {
    let bad = |problem: String| Err(Error::Launch { kernel: program.name.clone(), problem });
    let threads: u64 = geometry.block.iter().map(|&n| u64::from(n)).product();
    let blocks = geometry.blocks();
    if threads == 0 || blocks == 0 {
        return bad(format!(
            "grid {:?} of blocks {:?} is empty; every size must be at least 1",
            geometry.grid, geometry.block
        ));
    }
    if threads > u64::from(MAX_THREADS) {
        return bad(format!("a block of {threads} threads; at most {MAX_THREADS} are possible"));
    }
    if blocks >= 1 << (32 - THREAD_BITS) {
        return bad(format!("{blocks} blocks; the emulator takes fewer than {}", 1 << (32 - THREAD_BITS)));
    }
    match program.max_threads {
        Some((most, false)) if threads > u64::from(most) => {
            return bad(format!("a block of {threads} threads, but its launch bounds allow {most}"));
        }
        Some((exact, true)) if threads != u64::from(exact) => {
            return bad(format!("a block of {threads} threads, but the kernel requires {exact}"));
        }
        _ => {}
    }
    let shared = program.shared_bytes + u64::from(geometry.dynamic_shared);
    if shared > MAX_SHARED {
        return bad(format!("{shared} bytes of shared memory; at most {MAX_SHARED} are possible"));
    }
    Ok(())
}
