//! Back through layer norm and RMS norm.
//!
//! With `n[i] = (x[i] - mean) / s` and `g[i] = dy[i] * weight[i]` the gradient is
//! `dx[i] = (g[i] - mean(g) - n[i] * mean(g * n)) / s`; without a mean to subtract, in RMS norm, the middle term is missing.
//! Bias and the weights' own gradients do not occur.

use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::Simd;

struct Backward<'a> {
    /// `[rows, d]`
    x: &'a [f32],
    /// `[rows, d]`
    dy: &'a [f32],
    d: usize,
    /// `[d]`
    weight: Option<&'a [f32]>,
    eps: f32,
    centred: bool,
    /// `[rows, d]`
    dx: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for row in 0..self.x.len() / self.d {
            self.row(s, row * self.d);
        }
    }
}

impl Backward<'_> {
    /// The row that begins at `at`.
    #[inline(always)]
    fn row<S: Simd>(&mut self, s: S, at: usize) {
        let n = self.d as f32;
        let (x, dy) = (&self.x[at..at + self.d], &self.dy[at..at + self.d]);
        let mean = if self.centred { sum(s, self.d, |i| part(s, x, i)) / n } else { 0.0 };
        let centre = s.splat(mean);
        let variance = sum(s, self.d, |i| {
            let v = centred(s, x, i, centre);
            s.mul(v, v)
        });
        let factor = 1.0 / (variance / n + self.eps).sqrt();
        let gradient = |i: usize| {
            let dy = part(s, dy, i);
            self.weight.map_or(dy, |weight| s.mul(dy, part(s, weight, i)))
        };
        let mean_gradient = if self.centred { sum(s, self.d, gradient) / n } else { 0.0 };
        let along = sum(s, self.d, |i| s.mul(gradient(i), centred(s, x, i, centre))) * factor * factor / n;
        let (mean_gradient, along, factor) = (s.splat(mean_gradient), s.splat(along), s.splat(factor));
        for i in (0..self.d).step_by(S::LANES) {
            let dx = s.sub(gradient(i), mean_gradient);
            let dx = s.sub(dx, s.mul(centred(s, x, i, centre), along));
            let out = &mut self.dx[at..at + self.d][i..];
            let sum = s.fma(dx, factor, s.load_slice(out));
            s.store_slice(out, sum);
        }
    }
}

/// One vector of `x` from `i` on, zeros behind the end.
#[inline(always)]
fn part<S: Simd>(s: S, x: &[f32], i: usize) -> S::V {
    s.load_slice(&x[i..])
}

/// One vector of `x - centre` from `i` on, zeros behind the end.
#[inline(always)]
fn centred<S: Simd>(s: S, x: &[f32], i: usize, centre: S::V) -> S::V {
    if x.len() - i >= S::LANES {
        return s.sub(part(s, x, i), centre);
    }
    // The lanes behind the end hold the centre, so that they add nothing.
    let mut padded = [0.0; 16];
    s.store_slice(&mut padded, centre);
    padded[..x.len() - i].copy_from_slice(&x[i..]);
    s.sub(s.load_slice(&padded), centre)
}

/// `sum_i f(i)` over the vectors of a row of `d`, four at a time, in an order that depends on `d` only.
#[inline(always)]
fn sum<S: Simd>(s: S, d: usize, f: impl Fn(usize) -> S::V) -> f32 {
    let mut acc = [s.zero(); 4];
    let step = 4 * S::LANES;
    let mut i = 0;
    while i + step <= d {
        for (c, acc) in acc.iter_mut().enumerate() {
            *acc = s.add(*acc, f(i + c * S::LANES));
        }
        i += step;
    }
    while i < d {
        acc[0] = s.add(acc[0], f(i));
        i += S::LANES;
    }
    s.sum(s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3])))
}

#[allow(clippy::too_many_arguments)]
fn backward(
    cpu: &Cpu,
    x: &[f32],
    d: usize,
    weight: Option<&[f32]>,
    eps: f32,
    centred: bool,
    dy: &[f32],
    dx: &mut [f32],
) {
    assert!(x.len() == dy.len() && x.len() == dx.len(), "input and gradients are of the same length");
    if x.is_empty() {
        return;
    }
    assert!(d > 0 && x.len().is_multiple_of(d), "input is no whole number of rows of {d}");
    if let Some(weight) = weight {
        assert_eq!(weight.len(), d, "the weight is as long as a row");
    }
    let dx = SharedOut::new(dx);
    cpu.split(x.len() / d, 1, 5 * d * 4, &|range| {
        let elements = range.start * d..range.end * d;
        // SAFETY: the ranges do not overlap.
        let dx = unsafe { dx.slice(elements.clone()) };
        cpu.run(Backward { x: &x[elements.clone()], dy: &dy[elements], d, weight, eps, centred, dx });
    });
}

/// Adds the gradient of the input of [`layer_norm`](crate::kernels::layer_norm) to `dx`: `x` is that input, `dy` the gradient of
/// its output, all `[T, d]`; `weight` `[d]`.
///
/// `|error| <= 2e-5 * (max |dy * weight|) * (1 + (max |n|)^2) / s` for each row, with `n` the normalised row and `s` what it was
/// divided by, over what rounding `dx` itself adds.
///
/// # Panics
/// If `x`, `dy` and `dx` differ in length, are no whole number of rows of `d`, or `weight` is not as long as a row.
pub fn layer_norm_backward(
    cpu: &Cpu,
    x: &[f32],
    d: usize,
    weight: Option<&[f32]>,
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
) {
    backward(cpu, x, d, weight, eps, true, dy, dx);
}

/// As [`layer_norm_backward`], for [`rms_norm`](crate::kernels::rms_norm).
///
/// # Panics
/// If `x`, `dy` and `dx` differ in length or are no whole number of rows.
pub fn rms_norm_backward(cpu: &Cpu, x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) {
    backward(cpu, x, weight.len(), Some(weight), eps, false, dy, dx);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::testing::{close, cpu, on_every_isa, values};
    use crate::kernels::{Compute, IsaName};

    /// A row's norm as defined, in `f64`.
    fn normalised(x: &[f64], weight: &[f64], eps: f64, centred: bool) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = if centred { x.iter().sum::<f64>() / n } else { 0.0 };
        let s = (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n + eps).sqrt();
        x.iter().zip(weight).map(|(v, w)| (v - mean) / s * w).collect()
    }

    /// Finite differences of `sum_i dy[i] * norm(x)[i]`, with the stated bound.
    fn oracle(x: &[f32], weight: &[f32], eps: f32, centred: bool, dy: &[f32]) -> Vec<(f64, f64)> {
        let d = weight.len();
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let (weight, eps) = (wide(weight), f64::from(eps));
        let mut out = Vec::new();
        for (x, dy) in x.chunks_exact(d).zip(dy.chunks_exact(d)) {
            let (x, dy) = (wide(x), wide(dy));
            let mean = if centred { x.iter().sum::<f64>() / d as f64 } else { 0.0 };
            let s = (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64 + eps).sqrt();
            let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0f64, |a, v| a.max(v.abs()));
            let g = largest(&mut dy.iter().zip(&weight).map(|(g, w)| g * w));
            let n = largest(&mut x.iter().map(|v| (v - mean) / s));
            for i in 0..d {
                let h = 1e-5 * s;
                let at = |step: f64| {
                    let mut moved = x.clone();
                    moved[i] += step;
                    normalised(&moved, &weight, eps, centred).iter().zip(&dy).map(|(y, g)| y * g).sum::<f64>()
                };
                out.push(((at(h) - at(-h)) / (2.0 * h), 2e-5 * g * (1.0 + n * n) / s + 1e-9 / s));
            }
        }
        out
    }

    fn agrees_with_finite_differences(isa: IsaName) {
        let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
        let cases = (2usize..90, 0usize..4, -1f32..1.0, any::<u64>());
        proptest!(ProptestConfig::with_cases(60), |((d, t, shift, seed) in cases)| {
            let x: Vec<f32> = values(seed, t * d).into_iter().map(|v| v + shift).collect();
            let (weight, dy) = (values(seed ^ 1, d), values(seed ^ 2, t * d));
            let mut dx = vec![0.0; x.len()];
            layer_norm_backward(&cpu, &x, d, Some(&weight), 1e-3, &dy, &mut dx);
            close(&dx, &oracle(&x, &weight, 1e-3, true, &dy))?;
            dx.fill(0.0);
            rms_norm_backward(&cpu, &x, &weight, 1e-3, &dy, &mut dx);
            close(&dx, &oracle(&x, &weight, 1e-3, false, &dy))?;
        });
    }

    fn gradients_are_added(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        let (x, dy) = (values(1, 300), values(2, 300));
        let mut fresh = vec![0.0; 300];
        layer_norm_backward(&cpu, &x, 100, None, 1e-5, &dy, &mut fresh);
        let mut added = vec![1.0; 300];
        layer_norm_backward(&cpu, &x, 100, None, 1e-5, &dy, &mut added);
        for (added, fresh) in added.iter().zip(&fresh) {
            assert!((added - 1.0 - fresh).abs() < 1e-5);
        }
        close(&fresh, &oracle(&x, &[1.0; 100], 1e-5, true, &dy)).unwrap();
    }

    fn threads_change_nothing(isa: IsaName) {
        let (x, weight, dy) = (values(1, 300 * 700), values(2, 700), values(3, 300 * 700));
        let results = [1, 2, 3].map(|threads| {
            cpu(isa, threads, Compute::F32).map(|cpu| {
                let mut dx = vec![0.0; x.len()];
                rms_norm_backward(&cpu, &x, &weight, 1e-5, &dy, &mut dx);
                dx
            })
        });
        assert!(results[0] == results[1] && results[1] == results[2]);
    }

    on_every_isa!(agrees_with_finite_differences, gradients_are_added, threads_change_nothing);
}
