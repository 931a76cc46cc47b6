//! One step of AdamW.
//!
//! Four arrays of the size of the weights pass by for a handful of operations, so the step is bound by memory, and all of it
//! is one pass. The arithmetic has no sums over elements: every instruction set gives the same bits.

use super::cpu::{Cpu, SharedOut};
use super::isa::Kernel;
use super::simd::Simd;

/// What a step is made with; names as in the paper (Loshchilov and Hutter, 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// How far a weight moves.
    pub learning_rate: f32,
    /// Memory of the mean of the gradients.
    pub beta1: f32,
    /// Memory of the mean of their squares.
    pub beta2: f32,
    /// Keeps weights of tiny gradients from moving far.
    pub epsilon: f32,
    /// Share of a weight that decays per step, times the learning rate; not through the moments.
    pub weight_decay: f32,
}

impl AdamW {
    /// Takes step `step`, counted from 1: `w` and both moments (all `[n]`) change by the gradient `g`, which is multiplied with
    /// `scale` first.
    ///
    /// # Panics
    /// If the lengths differ.
    #[allow(clippy::too_many_arguments)]
    pub fn step(
        &self,
        cpu: &Cpu,
        step: u64,
        scale: f32,
        g: &[f32],
        w: &mut [f32],
        moment1: &mut [f32],
        moment2: &mut [f32],
    ) {
        let n = w.len();
        assert!(g.len() == n && moment1.len() == n && moment2.len() == n, "all arrays are of the same length");
        // In f64: the second is 1e-3 at the first step.
        let correction = |beta: f32| 1.0 / (1.0 - f64::from(beta).powf(step as f64));
        let (c1, c2) = (correction(self.beta1) as f32, correction(self.beta2) as f32);
        let (w, m, v) = (SharedOut::new(w), SharedOut::new(moment1), SharedOut::new(moment2));
        cpu.split(n, 64, 28, &|range| {
            // SAFETY: the ranges do not overlap, and each of the three is another array.
            let (w, m, v) = unsafe { (w.slice(range.clone()), m.slice(range.clone()), v.slice(range.clone())) };
            cpu.run(Step { settings: *self, scale, c1, c2, g: &g[range], w, m, v });
        });
    }
}

struct Step<'a> {
    settings: AdamW,
    scale: f32,
    /// Corrections of the moments' beginning from zero.
    c1: f32,
    c2: f32,
    g: &'a [f32],
    w: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl Kernel for Step<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Step { settings: AdamW { learning_rate, beta1, beta2, epsilon, weight_decay }, scale, c1, c2, .. } = self;
        let keep = 1.0 - learning_rate * weight_decay;
        let (rest1, rest2) = (1.0 - beta1, 1.0 - beta2);
        // A plain loop, which the compiler makes vectors of: each operation is rounded by itself.
        for (((w, m), v), g) in self.w.iter_mut().zip(self.m).zip(self.v).zip(self.g) {
            let g = g * scale;
            *m = beta1 * *m + rest1 * g;
            *v = beta2 * *v + rest2 * (g * g);
            *w = keep * *w - learning_rate * (c1 * *m) / ((c2 * *v).sqrt() + epsilon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{cpu, on_every_isa, values};
    use crate::kernels::{Compute, IsaName};

    const SETTINGS: AdamW = AdamW { learning_rate: 1e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };

    fn steps_agree_with_the_definition(isa: IsaName) {
        for threads in [1, 3] {
            let Some(cpu) = cpu(isa, threads, Compute::F32) else { return };
            let n = 100_003;
            let mut w = values(1, n);
            let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
            let mut exact: Vec<[f64; 3]> = w.iter().map(|&w| [f64::from(w), 0.0, 0.0]).collect();
            let s = SETTINGS;
            let [lr, b1, b2, eps, decay] =
                [s.learning_rate, s.beta1, s.beta2, s.epsilon, s.weight_decay].map(f64::from);
            for step in 1..=5_i32 {
                let g = values(10 + step as u64, n);
                s.step(&cpu, step as u64, 0.5, &g, &mut w, &mut m, &mut v);
                for ([w, m, v], g) in exact.iter_mut().zip(&g) {
                    let g = 0.5 * f64::from(*g);
                    *m = b1 * *m + (1.0 - b1) * g;
                    *v = b2 * *v + (1.0 - b2) * g * g;
                    *w -= lr * decay * *w;
                    *w -= lr * (*m / (1.0 - b1.powi(step))) / ((*v / (1.0 - b2.powi(step))).sqrt() + eps);
                }
            }
            for (found, [expected, ..]) in w.iter().zip(&exact) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} instead of {expected}");
            }
        }
    }

    on_every_isa!(steps_agree_with_the_definition);

    #[test]
    fn instruction_sets_and_threads_give_the_same_bits() {
        let mut results = Vec::new();
        for isa in IsaName::available() {
            for threads in [1, 2, 3] {
                let Some(cpu) = cpu(isa, threads, Compute::F32) else { continue };
                let (mut w, mut m, mut v) = (values(1, 70_001), vec![0.0; 70_001], vec![0.0; 70_001]);
                for step in 1..4 {
                    SETTINGS.step(&cpu, step, 1.0, &values(step, 70_001), &mut w, &mut m, &mut v);
                }
                results.push(w.into_iter().map(f32::to_bits).collect::<Vec<_>>());
            }
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
