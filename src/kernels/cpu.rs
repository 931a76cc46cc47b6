//! The execution context: an instruction set, a pool of threads, and reusable scratch memory.
//!
//! Work is split by *output*: every output element is computed by one task in one fixed order, so results do not depend on
//! the number of threads, nor on how the work was cut.

use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::isa::{Geometry, Isa, Kernel};
use super::{IsaName, KernelError};
use crate::tensor::Buffer;

/// Precision of the products in [`linear`](super::linear) when many rows are multiplied at once (prefill, scoring).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// Activations and weights as they are, products in `f32`.
    #[default]
    F32,
    /// Activations that are multiplied with `bf16` weights are rounded to `bf16` first (nearest even); sums in `f32`. Uses the
    /// processor's `bf16` instructions where they exist and rounds the same way where they do not.
    ///
    /// Those that are multiplied with `int8` weights are rounded to whole numbers of 16 bits, with a scale for each token and group of
    /// values, which loses less; sums of a group are exact. With AMX they, and the weights, are rounded to `bf16`, too. Other weights
    /// as with [`Compute::F32`]. From how many tokens on: [`linear`](super::linear).
    Bf16,
}

impl Compute {
    /// Name used on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
        }
    }
}

impl std::str::FromStr for Compute {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self, KernelError> {
        let known = [Compute::F32, Compute::Bf16].into_iter().find(|c| c.name() == name);
        known.ok_or_else(|| KernelError::UnknownCompute { name: name.to_owned() })
    }
}

/// How to make a [`Cpu`].
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Instruction set. `None`: the one named by the environment variable `SHADOWLLM_ISA`, else the widest there is.
    pub isa: Option<IsaName>,
    /// Number of threads. `None`: as many as the processor offers to this process.
    pub threads: Option<usize>,
    /// Precision of batched products.
    pub compute: Compute,
}

/// The execution context that every kernel takes. Cheap to clone; clones share the threads.
#[derive(Clone, Debug)]
pub struct Cpu {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    isa: Isa,
    compute: Compute,
    threads: usize,
    /// Absent if there is one thread: then everything runs on the caller's.
    pool: Option<ThreadPool>,
    /// Buffers not in use. Taken and given back, so that steady state allocates nothing.
    scratch: Mutex<Vec<Buffer>>,
}

/// Tasks smaller than this are not worth waking a thread for: about what one core reads from memory in 10 microseconds.
const MIN_TASK_BYTES: usize = 128 << 10;

/// Tasks per thread, so that a thread delayed by another process does not hold up all.
const TASKS_PER_THREAD: usize = 4;

impl Cpu {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`KernelError::UnknownIsa`] if `SHADOWLLM_ISA` names none, [`KernelError::IsaUnavailable`] if this processor lacks the
    /// one asked for, [`KernelError::NoThreads`], [`KernelError::ThreadPool`].
    pub fn new(options: &CpuOptions) -> Result<Self, KernelError> {
        let asked = match (options.isa, std::env::var("SHADOWLLM_ISA")) {
            (Some(name), _) => Some(name),
            (None, Ok(name)) if !name.is_empty() => Some(name.parse()?),
            (None, _) => None,
        };
        let available = || IsaName::available().map(IsaName::name).collect::<Vec<_>>().join(", ");
        let widest = || IsaName::available().last().unwrap_or(IsaName::Portable);
        let asked = asked.unwrap_or_else(widest);
        let isa = Isa::new(asked).ok_or_else(|| KernelError::IsaUnavailable { asked, available: available() })?;
        let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let pool = match threads {
            0 => return Err(KernelError::NoThreads),
            1 => None,
            _ => Some(
                ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .thread_name(|i| format!("shadowllm-{i}"))
                    .build()
                    .map_err(|source| KernelError::ThreadPool { threads, source })?,
            ),
        };
        let scratch = Mutex::new(Vec::new());
        Ok(Cpu { shared: Arc::new(Shared { isa, compute: options.compute, threads, pool, scratch }) })
    }

    /// Instruction set in use.
    pub fn isa(&self) -> IsaName {
        self.shared.isa.name()
    }

    /// Number of threads in use.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Precision of batched products.
    pub fn compute(&self) -> Compute {
        self.shared.compute
    }

    /// What runs for which operation, as `(operation, kernel)`. Kernel names are `{isa}-{number formats}-{variant}`.
    pub fn kernel_names(&self) -> Vec<(String, String)> {
        let mut names = super::linear::names(self);
        names.extend(super::gather::names(self));
        names.extend(super::attention::names(self));
        let isa = self.isa();
        for operation in ["norm", "rope", "activation", "softmax"] {
            names.push((operation.to_owned(), format!("{isa}-f32-{operation}")));
        }
        names
    }

    /// Runs `f` on one of the pool's threads. Kernels work outside of it, too, but each then pays for waking a thread; a
    /// whole token inside one `install` pays once.
    pub fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.shared.pool {
            Some(pool) => pool.install(f),
            None => f(),
        }
    }

    /// Runs both, at the same time if there are threads for it: kernels that do not depend on each other then share one
    /// wait for the slowest thread.
    pub fn join<A: Send, B: Send>(&self, a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
        match &self.shared.pool {
            Some(pool) => pool.install(|| rayon::join(a, b)),
            None => (a(), b()),
        }
    }

    /// Runs a kernel on this thread with the context's instruction set.
    #[inline]
    pub(crate) fn run<K: Kernel>(&self, kernel: K) -> K::Out {
        self.shared.isa.run(kernel)
    }

    /// As [`Cpu::run`], with the processor's `bf16` products if it has them.
    #[inline]
    pub(crate) fn run_bf16<K: Kernel>(&self, kernel: K) -> K::Out {
        self.shared.isa.run_bf16(kernel)
    }

    /// As [`Cpu::run`], with the processor's products of whole numbers if it has them.
    #[inline]
    pub(crate) fn run_vnni<K: Kernel>(&self, kernel: K) -> K::Out {
        self.shared.isa.run_vnni(kernel)
    }

    /// What blocked kernels choose their tiles by.
    pub(crate) fn geometry(&self) -> Geometry {
        self.shared.isa.geometry()
    }

    /// Calls `f` on consecutive ranges that cover `0..items`, on several threads if the work is worth it. Ranges begin at
    /// multiples of `align`. `bytes_per_item` is what one item reads, or as many bytes as could be read in its time.
    pub(crate) fn split(&self, items: usize, align: usize, bytes_per_item: usize, f: &(impl Fn(Range<usize>) + Sync)) {
        if items == 0 {
            return;
        }
        let worthwhile = MIN_TASK_BYTES / bytes_per_item.max(1);
        let grain = worthwhile.max(items / (self.threads() * TASKS_PER_THREAD)).max(1).next_multiple_of(align);
        match &self.shared.pool {
            Some(pool) if items > grain => pool.install(|| halve(0..items, grain, align, f)),
            _ => f(0..items),
        }
    }

    /// Calls `f(row, its part of a, its part of b)` for each of `rows` rows, on several threads if the work is worth it. One row
    /// takes as long as reading `bytes_per_row` bytes.
    ///
    /// # Panics
    /// If `a` or `b` is no whole number of values per row.
    pub(crate) fn each_row(
        &self,
        rows: usize,
        [a, b]: [&mut [f32]; 2],
        bytes_per_row: usize,
        f: &(impl Fn(usize, &mut [f32], &mut [f32]) + Sync),
    ) {
        let widths = [a.len(), b.len()].map(|len| len.checked_div(rows).unwrap_or(0));
        assert!([a.len(), b.len()] == widths.map(|w| w * rows), "whole rows expected");
        let (a, b) = (SharedOut::new(a), SharedOut::new(b));
        self.split(rows, 1, bytes_per_row, &|range| {
            for row in range {
                // SAFETY: rows do not overlap, and each is visited once.
                let [a, b] = unsafe {
                    [(a, widths[0]), (b, widths[1])].map(|(out, width)| out.slice(row * width..(row + 1) * width))
                };
                f(row, a, b);
            }
        });
    }

    /// Whether the processor multiplies pairs of `bf16`.
    pub(crate) fn has_bf16(&self) -> bool {
        self.shared.isa.has_bf16()
    }

    /// Whether the processor multiplies pairs of 16-bit whole numbers and adds them at once.
    pub(crate) fn has_vnni(&self) -> bool {
        self.shared.isa.has_vnni()
    }

    /// The proof that products of many rows may use AMX.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn amx(&self) -> Option<super::isa::Amx> {
        self.shared.isa.amx()
    }

    /// Calls `f` once on every thread, all at the same time.
    pub(crate) fn each_thread(&self, f: &(impl Fn() + Sync)) {
        match &self.shared.pool {
            Some(pool) => {
                pool.broadcast(|_| f());
            }
            None => f(),
        }
    }

    /// Memory for at least `len` values, aligned to a cache line, with arbitrary contents. Allocates only until the largest
    /// need has been seen.
    pub(crate) fn scratch(&self, len: usize) -> Scratch<'_> {
        let mut free = self.shared.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that is large enough, else the largest, to be grown.
        let fits = (0..free.len()).filter(|&i| free[i].capacity() >= len).min_by_key(|&i| free[i].capacity());
        let best = fits.or_else(|| (0..free.len()).max_by_key(|&i| free[i].capacity()));
        let mut buffer = best.map_or_else(Buffer::default, |i| free.swap_remove(i));
        drop(free);
        buffer.resize(len);
        Scratch { buffer, cpu: self }
    }
}

fn halve(range: Range<usize>, grain: usize, align: usize, f: &(impl Fn(Range<usize>) + Sync)) {
    if range.len() <= grain {
        return f(range);
    }
    let middle = (range.start + range.len() / 2).next_multiple_of(align);
    if middle >= range.end {
        return f(range);
    }
    rayon::join(|| halve(range.start..middle, grain, align, f), || halve(middle..range.end, grain, align, f));
}

/// Borrowed scratch memory; goes back to the context when dropped.
pub(crate) struct Scratch<'a> {
    buffer: Buffer,
    cpu: &'a Cpu,
}

impl Deref for Scratch<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer
    }
}

impl DerefMut for Scratch<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.cpu.shared.scratch.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// An output slice that several tasks write to, each at places of its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedOut<'a> {
    start: *mut f32,
    len: usize,
    _borrow: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: every access goes through an unsafe method whose caller promises that no two tasks touch the same element.
unsafe impl Send for SharedOut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedOut<'_> {}

impl<'a> SharedOut<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        SharedOut { start: slice.as_mut_ptr(), len: slice.len(), _borrow: std::marker::PhantomData }
    }

    /// Pointer to element `at`, which may be one past the end.
    ///
    /// # Safety
    /// While the pointer is in use no other task accesses the elements that are reached through it.
    #[inline(always)]
    pub(crate) unsafe fn at(self, at: usize) -> *mut f32 {
        debug_assert!(at <= self.len);
        // SAFETY: inside the slice or one past its end.
        unsafe { self.start.add(at) }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No other task accesses these elements while the slice lives.
    #[inline(always)]
    pub(crate) unsafe fn slice(self, range: Range<usize>) -> &'a mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the slice; the caller promises exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn split_covers_every_item_once() {
        for threads in [1, 2, 3] {
            let cpu = Cpu::new(&CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap();
            for (items, align, bytes) in
                [(0, 1, 1), (1, 4, 1 << 20), (7, 4, 1 << 20), (1000, 6, 1 << 16), (999, 16, 10)]
            {
                let seen: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                cpu.split(items, align, bytes, &|range| {
                    assert!(range.start.is_multiple_of(align));
                    range.for_each(|i| {
                        seen[i].fetch_add(1, Ordering::Relaxed);
                    });
                });
                assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn scratch_is_reused() {
        let cpu = Cpu::new(&CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        let first = cpu.scratch(1000).as_ptr();
        assert_eq!(first as usize % 64, 0);
        let small = cpu.scratch(10);
        assert_eq!((small.as_ptr(), small.len()), (first, 10));
        let other = cpu.scratch(10);
        assert_ne!(small.as_ptr(), other.as_ptr());
    }

    #[test]
    fn names_say_what_runs() {
        let options = CpuOptions { isa: Some(IsaName::Portable), threads: Some(1), compute: Compute::F32 };
        let names = Cpu::new(&options).unwrap().kernel_names();
        let name = |operation: &str| names.iter().find(|(o, _)| o == operation).map(|(_, name)| name.as_str());
        assert_eq!(name("linear bf16, 1 row"), Some("portable-bf16xf32-rows8x1"));
        assert_eq!(name("linear f16, 48 rows or more"), Some("portable-f16xf32-tile6x16"));
        assert_eq!(name("attention, 1 row"), Some("portable-f32-pieces256"));
        let rounded = Cpu::new(&CpuOptions { compute: Compute::Bf16, ..options }).unwrap().kernel_names();
        assert!(rounded.contains(&("linear f32, 48 rows or more".into(), "portable-f32xf32-tile6x16".into())));
        assert!(rounded.contains(&("linear bf16, 32 rows or more".into(), "portable-bf16xbf16-tile6x16".into())));
        for operation in ["linear int8, 12 rows or more", "linear transposed int8, 12 rows or more"] {
            assert!(rounded.contains(&(operation.into(), "portable-int8xint16-tile6x16".into())));
        }
    }

    #[test]
    fn a_missing_instruction_set_is_named() {
        let e = KernelError::IsaUnavailable { asked: IsaName::Avx512, available: "portable, avx2".into() };
        let text =
            "instruction set avx512 was asked for, but this processor only has: portable, avx2; choose one of these";
        assert_eq!(e.to_string(), text);
        if Isa::new(IsaName::Avx512).is_none() {
            let options = CpuOptions { isa: Some(IsaName::Avx512), ..CpuOptions::default() };
            assert!(matches!(Cpu::new(&options), Err(KernelError::IsaUnavailable { .. })));
        }
    }

    #[test]
    fn no_threads_is_an_error() {
        let e = Cpu::new(&CpuOptions { threads: Some(0), ..CpuOptions::default() }).unwrap_err();
        assert_eq!(e.to_string(), "0 threads were asked for; at least 1 is needed");
    }
}
