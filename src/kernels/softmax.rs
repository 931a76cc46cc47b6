//! Softmax of one row, for attention-free uses such as sampling.

use super::cpu::Cpu;
use super::isa::Kernel;
use super::simd::{Simd, math};

/// Largest element; NaN may be passed over. Negative infinity if there is none.
#[inline(always)]
pub(super) fn max_of<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut max = [s.splat(f32::NEG_INFINITY); 4];
    let blocks = x.chunks_exact(4 * S::LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for (max, x) in max.iter_mut().zip(block.chunks_exact(S::LANES)) {
            *max = s.max(s.load_slice(x), *max);
        }
    }
    let most = s.max_lane(s.max(s.max(max[0], max[1]), s.max(max[2], max[3])));
    rest.iter().fold(most, |a, &b| if b > a { b } else { a })
}

struct Softmax<'a> {
    x: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let max = s.splat(max_of(s, self.x));
        let mut sum = s.zero();
        let whole = self.x.len() / S::LANES * S::LANES;
        let (body, tail) = self.x.split_at_mut(whole);
        for x in body.chunks_exact_mut(S::LANES) {
            let e = math::exp(s, s.sub(s.load_slice(x), max));
            s.store_slice(x, e);
            sum = s.add(sum, e);
        }
        let e = math::exp(s, s.sub(s.load_slice(tail), max));
        s.store_slice(tail, e);
        let sum = tail.iter().fold(s.sum(sum), |a, b| a + b);
        let factor = s.splat(1.0 / sum);
        for x in self.x.chunks_mut(S::LANES) {
            let y = s.mul(s.load_slice(x), factor);
            s.store_slice(x, y);
        }
    }
}

/// `x[i] = e^x[i] / sum_j e^x[j]` in place, for one row. NaN anywhere, or a maximum that is infinite, gives NaN everywhere.
pub fn softmax(cpu: &Cpu, x: &mut [f32]) {
    cpu.run(Softmax { x });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::testing::{close, cpu, on_every_isa, values};
    use crate::kernels::{Compute, IsaName};

    fn agrees_with_the_oracle(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        proptest!(ProptestConfig::with_cases(60), |(n in 1usize..300, scale in 0f32..50.0, seed in any::<u64>())| {
            let x: Vec<f32> = values(seed, n).into_iter().map(|v| v * scale).collect();
            let exact: Vec<f64> = x.iter().map(|&v| f64::from(v).exp()).collect();
            let sum: f64 = exact.iter().sum();
            let mut out = x.clone();
            softmax(&cpu, &mut out);
            // The difference from the maximum is rounded: a relative error of half an ULP of it.
            let bound = f64::from(f32::EPSILON) * (8.0 + f64::from(scale) + n as f64 / 16.0);
            close(&out, &exact.iter().map(|e| (e / sum, bound * e / sum + 2f64.powi(-126))).collect::<Vec<_>>())?;
        });
    }

    fn special_rows_are_right(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        softmax(&cpu, &mut []);
        let mut x = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        softmax(&cpu, &mut x);
        assert_eq!(x, [0.0, 1.0, 0.0]);
        for broken in [f32::NAN, f32::INFINITY] {
            for place in 0..40 {
                let mut x = values(1, 40);
                x[place] = broken;
                softmax(&cpu, &mut x);
                assert!(x[place].is_nan(), "{broken} at {place} was lost");
            }
        }
    }

    on_every_isa!(agrees_with_the_oracle, special_rows_are_right);
}
