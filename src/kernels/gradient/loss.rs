//! The next-token cross-entropy of rows of logits, and its gradient in their place.

use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::reduce::log_sum_exp;
use crate::kernels::simd::{Simd, math};

/// `x[i] = e^(x[i] - log_sum) * factor`.
struct Probabilities<'a> {
    x: &'a mut [f32],
    log_sum: f32,
    factor: f32,
}

impl Kernel for Probabilities<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (log_sum, factor) = (s.splat(self.log_sum), s.splat(self.factor));
        for x in self.x.chunks_mut(S::LANES) {
            let e = math::exp(s, s.sub(s.load_slice(x), log_sum));
            s.store_slice(x, s.mul(e, factor));
        }
    }
}

/// Replaces each row of `logits` `[T, V]` by the gradient of `factor * loss` and writes the loss, `-ln softmax(row)[target]`, to
/// `losses` `[T]`; `targets` `[T]`.
///
/// Losses: `|error| <= 3e-7` plus an ULP of the row's largest value. Gradients: `|error| <= (8 + m) * 2^-23 * factor * p`, where
/// `m` is the size of the row's logarithm of the sum and `p` the probability, and `2^-24 * factor` more at the target.
///
/// # Panics
/// If the lengths do not fit or a target is no column.
pub fn cross_entropy_backward(cpu: &Cpu, logits: &mut [f32], targets: &[u32], factor: f32, losses: &mut [f32]) {
    assert_eq!(targets.len(), losses.len(), "one loss for each target");
    let width = logits.len().checked_div(targets.len()).unwrap_or(0);
    assert_eq!(logits.len(), width * targets.len(), "one row of logits for each target");
    assert!(targets.iter().all(|&target| (target as usize) < width), "a target is one of {width} columns");
    let (logits, losses) = (SharedOut::new(logits), SharedOut::new(losses));
    cpu.split(targets.len(), 1, 16 * width, &|range| {
        for row in range {
            // SAFETY: rows do not overlap, and this task alone takes this one.
            let (x, loss) = unsafe { (logits.slice(row * width..(row + 1) * width), losses.slice(row..row + 1)) };
            let target = targets[row] as usize;
            let log_sum = log_sum_exp(cpu, x);
            loss[0] = (log_sum - f64::from(x[target])) as f32;
            cpu.run(Probabilities { x, log_sum: log_sum as f32, factor });
            x[target] -= factor;
        }
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::testing::{close, cpu, on_every_isa, values};
    use crate::kernels::{Compute, IsaName};

    fn agrees_with_the_oracle(isa: IsaName) {
        let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
        let cases = (1usize..300, 0usize..6, 0f32..30.0, 0.01f32..2.0, any::<u64>());
        proptest!(ProptestConfig::with_cases(60), |((v, t, scale, factor, seed) in cases)| {
            let logits: Vec<f32> = values(seed, t * v).into_iter().map(|x| x * scale).collect();
            let targets: Vec<u32> = (0..t).map(|i| ((seed >> i) % v as u64) as u32).collect();
            let (mut gradients, mut losses) = (logits.clone(), vec![f32::NAN; t]);
            cross_entropy_backward(&cpu, &mut gradients, &targets, factor, &mut losses);
            for (row, x) in logits.chunks_exact(v).enumerate() {
                let target = targets[row] as usize;
                let log_sum = x.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
                let loss = log_sum - f64::from(x[target]);
                prop_assert!((f64::from(losses[row]) - loss).abs() <= 3e-7 + (1.0 + 2.0 * f64::from(scale)) * 2f64.powi(-23));
                let expected: Vec<(f64, f64)> = (0..v)
                    .map(|i| {
                        let p = (f64::from(x[i]) - log_sum).exp() * f64::from(factor);
                        let rounding = (8.0 + log_sum.abs()) * 2f64.powi(-23) * p + 2f64.powi(-126);
                        let hit = if i == target { f64::from(factor) } else { 0.0 };
                        (p - hit, rounding + hit * 2f64.powi(-24))
                    })
                    .collect();
                close(&gradients[row * v..(row + 1) * v], &expected)?;
            }
        });
    }

    fn broken_logits_stay_visible(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        for broken in [f32::NAN, f32::INFINITY] {
            let mut logits = values(1, 80);
            logits[17] = broken;
            let mut losses = [0.0; 2];
            cross_entropy_backward(&cpu, &mut logits, &[3, 5], 1.0, &mut losses);
            assert!(!losses[0].is_finite() && losses[1].is_finite());
            assert!(logits[17].is_nan() && logits[40..].iter().all(|v| v.is_finite()));
        }
    }

    on_every_isa!(agrees_with_the_oracle, broken_logits_stay_visible);
}
