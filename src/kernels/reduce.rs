//! Reductions of one row of logits.

use super::cpu::Cpu;
use super::isa::Kernel;
use super::simd::{Simd, math};
use super::softmax::max_of;

/// Index of the largest element, the first of equals. NaN counts as smaller than everything, so that a broken logit is never
/// chosen while a sound one exists. 0 for an empty row or one of NaN only.
pub fn argmax(x: &[f32]) -> usize {
    // Lane-wise maxima first, so that the long pass has no dependency from element to element.
    let mut lanes = [f32::NEG_INFINITY; 32];
    let blocks = x.chunks_exact(lanes.len());
    let rest = blocks.remainder();
    for block in blocks {
        for (most, &v) in lanes.iter_mut().zip(block) {
            *most = if v > *most { v } else { *most };
        }
    }
    let most = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    x.iter().position(|&v| v == most).unwrap_or(0)
}

struct LogSumExp<'a> {
    x: &'a [f32],
}

impl Kernel for LogSumExp<'_> {
    type Out = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let max = max_of(s, self.x);
        if !max.is_finite() {
            // Empty or all minus infinity, or plus infinity: the sum is the maximum itself, unless there is a NaN.
            return if self.x.iter().any(|v| v.is_nan()) { f64::NAN } else { f64::from(max) };
        }
        let shift = s.splat(max);
        let mut sums = [0f64; 16];
        let mut block = [0f32; 16];
        for x in self.x.chunks(S::LANES) {
            let e = math::exp(s, s.sub(s.load_slice(x), shift));
            s.store_slice(&mut block[..x.len()], e);
            for (sum, &e) in sums[..S::LANES].iter_mut().zip(&block[..x.len()]) {
                *sum += f64::from(e);
            }
        }
        f64::from(max) + sums.iter().sum::<f64>().ln()
    }
}

/// `ln sum_i e^x[i]` of one row; exponentials in `f32` (2 ULP), summed in `f64`: `|error| <= 3e-7`. NaN if an element is NaN.
pub fn log_sum_exp(cpu: &Cpu, x: &[f32]) -> f64 {
    cpu.run(LogSumExp { x })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{cpu, on_every_isa, values};
    use crate::kernels::{Compute, IsaName};

    #[test]
    fn argmax_takes_the_first_and_passes_over_nan() {
        struct Case {
            x: Vec<f32>,
            expected: usize,
        }
        let long = |place: usize| {
            let mut x = values(1, 1000);
            x[place] = 2.0;
            x
        };
        let cases = [
            Case { x: vec![], expected: 0 },
            Case { x: vec![f32::NAN], expected: 0 },
            Case { x: vec![1.0, 3.0, 3.0], expected: 1 },
            Case { x: vec![f32::NAN, -5.0], expected: 1 },
            Case { x: vec![f32::NAN, f32::NEG_INFINITY], expected: 1 },
            Case { x: long(0), expected: 0 },
            Case { x: long(517), expected: 517 },
            Case { x: long(999), expected: 999 },
        ];
        for Case { x, expected } in cases {
            assert_eq!(argmax(&x), expected);
        }
    }

    fn log_sum_exp_agrees(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        for n in [1, 2, 15, 16, 17, 1000, 50_000] {
            for scale in [0.01, 1.0, 30.0] {
                let x: Vec<f32> = values(n as u64, n).into_iter().map(|v| v * scale + 5.0).collect();
                let expected = x.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
                let found = log_sum_exp(&cpu, &x);
                assert!((found - expected).abs() <= 3e-7 * (1.0 + f64::from(scale)), "{found} instead of {expected}");
            }
        }
    }

    fn special_rows_are_right(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        assert_eq!(log_sum_exp(&cpu, &[]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&cpu, &[f32::NEG_INFINITY; 3]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&cpu, &[0.0, f32::INFINITY]), f64::INFINITY);
        for place in 0..40 {
            let mut x = values(1, 40);
            x[place] = f32::NAN;
            assert!(log_sum_exp(&cpu, &x).is_nan(), "NaN at {place} was lost");
        }
        // Far above what the exponential itself could hold.
        assert!((log_sum_exp(&cpu, &[1000.0, 1000.0]) - (1000.0 + 2f64.ln())).abs() < 1e-9);
    }

    on_every_isa!(log_sum_exp_agrees, special_rows_are_right);
}
