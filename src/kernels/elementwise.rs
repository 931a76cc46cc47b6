//! Operations on every element by itself: residual additions and what the other elementwise kernels share.

use super::cpu::{Cpu, SharedOut};
use super::isa::Kernel;
use super::simd::Simd;

/// Calls `f(first index, elements)` for consecutive pieces of `x`, on several threads if there are enough. `weight` is how
/// many times longer than a plain read an element takes.
pub(super) fn in_pieces(cpu: &Cpu, x: &mut [f32], weight: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let len = x.len();
    let shared = SharedOut::new(x);
    // SAFETY: the ranges do not overlap.
    cpu.split(len, 64, 4 * weight, &|range| f(range.start, unsafe { shared.slice(range) }));
}

/// `x[i] += y[i]`.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign(cpu: &Cpu, x: &mut [f32], y: &[f32]) {
    struct Add<'a> {
        x: &'a mut [f32],
        y: &'a [f32],
    }
    impl Kernel for Add<'_> {
        type Out = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (x, y) in self.x.chunks_mut(S::LANES).zip(self.y.chunks(S::LANES)) {
                let sum = s.add(s.load_slice(x), s.load_slice(y));
                s.store_slice(x, sum);
            }
        }
    }
    assert_eq!(x.len(), y.len(), "both summands are of the same length");
    in_pieces(cpu, x, 3, |at, x| {
        let y = &y[at..at + x.len()];
        cpu.run(Add { x, y });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{cpu, on_every_isa, values};
    use crate::kernels::{Compute, IsaName};

    fn sums_are_exact(isa: IsaName) {
        for threads in [1, 3] {
            let Some(cpu) = cpu(isa, threads, Compute::F32) else { return };
            for n in [0, 1, 15, 16, 17, 1000, 200_003] {
                let (mut x, y) = (values(1, n), values(2, n));
                let expected: Vec<f32> = x.iter().zip(&y).map(|(a, b)| a + b).collect();
                add_assign(&cpu, &mut x, &y);
                assert_eq!(x, expected);
            }
        }
    }

    on_every_isa!(sums_are_exact);
}
