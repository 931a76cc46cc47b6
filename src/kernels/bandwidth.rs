//! What this machine can do, measured: the yardsticks that every kernel is held against.

use std::hint::black_box;
use std::time::Instant;

use super::cpu::Cpu;
use super::isa::Kernel;
use super::simd::Simd;

/// Passes over the buffer for [`read_bandwidth`]; the fastest counts, because everything else that runs can only slow a pass
/// down.
const PASSES: usize = 7;

struct Read<'a> {
    x: &'a [f32],
}

impl Kernel for Read<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        // Eight streams, a page apart, each asking for its place in the next block: more requests under way than one
        // stream gets.
        let mut acc = [s.zero(); 8];
        for block in self.x.chunks_exact(8 * 1024) {
            for i in (0..1024).step_by(S::LANES) {
                for (j, acc) in acc.iter_mut().enumerate() {
                    s.prefetch(block.as_ptr().wrapping_add((8 + j) * 1024 + i));
                    *acc = s.add(*acc, s.load_slice(&block[j * 1024 + i..][..S::LANES]));
                }
            }
        }
        s.sum(acc.into_iter().fold(s.zero(), |a, b| s.add(a, b)))
    }
}

/// Read bandwidth in GB/s (10^9 bytes) with all threads of `cpu`: best of several passes over a buffer of `bytes`, each thread
/// reading contiguous parts. `bytes` should be several times the last-level cache; 512 MiB is enough for most machines.
pub fn read_bandwidth(cpu: &Cpu, bytes: usize) -> f64 {
    read_passes(cpu, bytes, PASSES).into_iter().fold(0.0, f64::max)
}

/// Read bandwidth of each of `passes` passes, in GB/s, as in [`read_bandwidth`]. For a comparison with work that runs for
/// seconds on a machine whose bandwidth changes: take the median of passes before and after the work.
pub fn read_passes(cpu: &Cpu, bytes: usize, passes: usize) -> Vec<f64> {
    const CHUNK: usize = 64 << 10;
    let chunks = (bytes / 4 / CHUNK).max(1);
    // Written, not only reserved: pages never written are all the same page of zeros.
    let buffer: Vec<f32> = (0..chunks * CHUNK).map(|i| (i % 3) as f32).collect();
    let pass = || {
        let start = Instant::now();
        cpu.split(chunks, 1, CHUNK * 4, &|range| {
            black_box(cpu.run(Read { x: &buffer[range.start * CHUNK..range.end * CHUNK] }));
        });
        (buffer.len() * 4) as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    cpu.install(|| (0..passes).map(|_| pass()).collect())
}

struct Multiply {
    steps: usize,
}

impl Kernel for Multiply {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut acc = [s.zero(); 12];
        let (a, b) = (s.splat(black_box(0.5)), s.splat(black_box(0.25)));
        for _ in 0..self.steps {
            for acc in &mut acc {
                *acc = s.fma(*acc, a, b);
            }
        }
        s.sum(acc.into_iter().fold(s.zero(), |a, b| s.add(a, b)))
    }
}

/// Peak `f32` multiply-add rate in GFLOP/s (10^9 operations, a multiply-add counts two) with all threads of `cpu`.
pub fn peak_flops(cpu: &Cpu) -> f64 {
    const STEPS: usize = 1 << 20;
    let lanes = cpu.geometry().lanes;
    let pass = || {
        let start = Instant::now();
        cpu.each_thread(&|| {
            black_box(cpu.run(Multiply { steps: STEPS }));
        });
        start.elapsed().as_secs_f64()
    };
    let best = (0..PASSES).map(|_| pass()).fold(f64::INFINITY, f64::min);
    (2 * 12 * STEPS * lanes * cpu.threads()) as f64 / best / 1e9
}
