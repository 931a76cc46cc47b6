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
