//! Layer norm and RMS norm, row by row, in `f32` with the variance in a second pass.

use super::cpu::{Cpu, SharedOut};
use super::isa::Kernel;
use super::simd::Simd;

/// Sums in flight: enough for the latency of an addition.
const CHAINS: usize = 4;

/// `sum_i f(x[i])`, in an order that depends on the length only.
#[inline(always)]
fn sum_of<S: Simd>(s: S, x: &[f32], centre: f32, square: bool) -> f32 {
    let centre = s.splat(centre);
    let mut acc = [s.zero(); CHAINS];
    let blocks = x.chunks_exact(CHAINS * S::LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for (acc, x) in acc.iter_mut().zip(block.chunks_exact(S::LANES)) {
            let v = s.sub(s.load_slice(x), centre);
            *acc = if square { s.fma(v, v, *acc) } else { s.add(*acc, v) };
        }
    }
    let mut total = s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3]));
    let whole = rest.chunks_exact(S::LANES);
    let tail = whole.remainder();
    for x in whole {
        let v = s.sub(s.load_slice(x), centre);
        total = if square { s.fma(v, v, total) } else { s.add(total, v) };
    }
    if !tail.is_empty() {
        // The lanes behind the tail hold the centre, so that they add nothing.
        let mut padded = [0.0; 16];
        s.store_slice(&mut padded, centre);
        padded[..tail.len()].copy_from_slice(tail);
        let v = s.sub(s.load_slice(&padded), centre);
        total = if square { s.fma(v, v, total) } else { s.add(total, v) };
    }
    s.sum(total)
}

/// `out = (x - centre) * factor * weight + bias`
#[inline(always)]
fn affine<S: Simd>(
    s: S,
    x: &[f32],
    centre: f32,
    factor: f32,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let (centre, factor) = (s.splat(centre), s.splat(factor));
    for (i, (x, out)) in x.chunks(S::LANES).zip(out.chunks_mut(S::LANES)).enumerate() {
        let mut v = s.mul(s.sub(s.load_slice(x), centre), factor);
        if let Some(weight) = weight {
            v = s.mul(v, s.load_slice(&weight[i * S::LANES..]));
        }
        if let Some(bias) = bias {
            v = s.add(v, s.load_slice(&bias[i * S::LANES..]));
        }
        s.store_slice(out, v);
    }
}

struct Norm<'a> {
    /// `[rows, d]`
    x: &'a [f32],
    d: usize,
    /// `[d]`
    weight: Option<&'a [f32]>,
    /// `[d]`
    bias: Option<&'a [f32]>,
    eps: f32,
    centred: bool,
    /// `[rows, d]`
    out: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.d as f32;
        for (x, out) in self.x.chunks_exact(self.d).zip(self.out.chunks_exact_mut(self.d)) {
            let mean = if self.centred { sum_of(s, x, 0.0, false) / n } else { 0.0 };
            let factor = 1.0 / (sum_of(s, x, mean, true) / n + self.eps).sqrt();
            affine(s, x, mean, factor, self.weight, self.bias, out);
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn norm(
    cpu: &Cpu,
    x: &[f32],
    d: usize,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    eps: f32,
    centred: bool,
    out: &mut [f32],
) {
    assert_eq!(x.len(), out.len(), "input and output are of the same length");
    assert!(d > 0 && x.len().is_multiple_of(d), "input is no whole number of rows of {d}");
    for v in [weight, bias].into_iter().flatten() {
        assert_eq!(v.len(), d, "weight and bias are as long as a row");
    }
    let rows = x.len() / d;
    let out = SharedOut::new(out);
    cpu.split(rows, 1, 3 * d * 4, &|range| {
        let elements = range.start * d..range.end * d;
        // SAFETY: the ranges do not overlap.
        let out = unsafe { out.slice(elements.clone()) };
        cpu.run(Norm { x: &x[elements], d, weight, bias, eps, centred, out });
    });
}

/// `out = (x - mean) / sqrt(variance + eps) * weight + bias` for each row of `x` `[T, d]`; `out` `[T, d]`.
///
/// `d` is the length of weight or bias; a norm without either takes all of `x` as one row (call it row by row).
///
/// # Panics
/// If `x` and `out` differ in length, or weight or bias are not as long as a row.
pub fn layer_norm(cpu: &Cpu, x: &[f32], weight: Option<&[f32]>, bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    let d = weight.or(bias).map_or(x.len(), <[f32]>::len);
    if !x.is_empty() {
        norm(cpu, x, d, weight, bias, eps, true, out);
    }
}

/// `out = x / sqrt(mean(x^2) + eps) * weight` for each row of `x` `[T, d]`; `weight` `[d]`, `out` `[T, d]`.
///
/// # Panics
/// If `x` and `out` differ in length or `x` is no whole number of rows.
pub fn rms_norm(cpu: &Cpu, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    if !x.is_empty() {
        norm(cpu, x, weight.len(), Some(weight), None, eps, false, out);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::testing::{close, cpu, on_every_isa, values};
    use crate::kernels::{Compute, IsaName};

    /// Either norm as defined, in `f64`; bounds of 1e-5 of the largest possible result.
    fn oracle(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, centred: bool) -> Vec<(f64, f64)> {
        let d = weight.len();
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks_exact(d) {
            let row: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
            let mean = if centred { row.iter().sum::<f64>() / d as f64 } else { 0.0 };
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
            let factor = 1.0 / (variance + f64::from(eps)).sqrt();
            let size = row.iter().fold(0.0f64, |a, v| a.max(v.abs())) * factor;
            for (i, v) in row.iter().enumerate() {
                let b = bias.map_or(0.0, |bias| f64::from(bias[i]));
                let w = f64::from(weight[i]);
                out.push(((v - mean) * factor * w + b, 1e-5 * (1.0 + size) * (w.abs() + b.abs()) + 1e-12));
            }
        }
        out
    }

    fn agree_with_the_oracle(isa: IsaName) {
        let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
        let cases = (1usize..400, 0usize..9, -3f32..3.0, any::<bool>(), any::<u64>());
        proptest!(ProptestConfig::with_cases(100), |((d, t, shift, bias, seed) in cases)| {
            let x: Vec<f32> = values(seed, t * d).into_iter().map(|v| v + shift).collect();
            let (weight, bias) = (values(seed ^ 1, d), bias.then(|| values(seed ^ 2, d)));
            let mut out = vec![f32::NAN; x.len()];
            layer_norm(&cpu, &x, Some(&weight), bias.as_deref(), 1e-5, &mut out);
            close(&out, &oracle(&x, &weight, bias.as_deref(), 1e-5, true))?;
            rms_norm(&cpu, &x, &weight, 1e-6, &mut out);
            close(&out, &oracle(&x, &weight, None, 1e-6, false))?;
        });
    }

    fn plain_layer_norm_takes_one_row(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        let x = values(1, 100);
        let mut out = vec![0.0; 100];
        layer_norm(&cpu, &x, None, None, 1e-5, &mut out);
        close(&out, &oracle(&x, &[1.0; 100], None, 1e-5, true)).unwrap();
    }

    fn threads_change_nothing(isa: IsaName) {
        let (x, weight) = (values(1, 300 * 700), values(2, 700));
        let results = [1, 2, 3].map(|threads| {
            cpu(isa, threads, Compute::F32).map(|cpu| {
                let mut out = vec![0.0; x.len()];
                layer_norm(&cpu, &x, Some(&weight), None, 1e-5, &mut out);
                out
            })
        });
        assert!(results[0] == results[1] && results[1] == results[2]);
    }

    on_every_isa!(agree_with_the_oracle, plain_layer_norm_takes_one_row, threads_change_nothing);
}
