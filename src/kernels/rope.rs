//! Rotary position embedding in Hugging Face's order: component `i` is rotated with component `i + d_h/2`.

use std::sync::OnceLock;

use shadowllm_weights::{Rope, RopeScaling};

use super::cpu::{Cpu, SharedOut};
use super::isa::Kernel;
use super::simd::Simd;

/// Positions in the first segment of a table; each next segment is twice as long.
const FIRST_SEGMENT: usize = 256;

/// Cosines and sines of every position, made when a position is first asked for and never again.
///
/// Segments double in length, so that a table never moves what it has and readers need no lock.
#[derive(Debug)]
pub struct RopeTable {
    /// `[d_h/2]`, angle per position.
    frequencies: Vec<f32>,
    /// Segment `i` holds `FIRST_SEGMENT << i` positions, each `[cos d_h/2, sin d_h/2]`.
    segments: [OnceLock<Vec<f32>>; 48],
}

impl RopeTable {
    /// A table for heads of width `head_dim`. Frequencies are computed as in transformers: in `f32`, then scaled.
    pub fn new(rope: &Rope, head_dim: usize) -> Self {
        let frequencies = (0..head_dim / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / head_dim as f32;
                let base = 1.0 / f64::from(rope.theta).powf(f64::from(exponent)) as f32;
                scaled(base, rope.scaling)
            })
            .collect();
        RopeTable { frequencies, segments: [const { OnceLock::new() }; 48] }
    }

    /// `(cos, sin)` of a position, `[d_h/2]` each.
    pub fn row(&self, position: usize) -> (&[f32], &[f32]) {
        // Segments 0 .. i together hold FIRST_SEGMENT * (2^i - 1) positions.
        let i = (position / FIRST_SEGMENT + 1).ilog2() as usize;
        let first = FIRST_SEGMENT * ((1 << i) - 1);
        let half = self.frequencies.len();
        let segment = self.segments[i].get_or_init(|| self.segment(first, FIRST_SEGMENT << i));
        segment[(position - first) * 2 * half..][..2 * half].split_at(half)
    }

    fn segment(&self, first: usize, positions: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(positions * 2 * self.frequencies.len());
        for position in first..first + positions {
            // The angle is rounded to f32 as in the reference; its cosine is then computed exactly.
            let angles = self.frequencies.iter().map(|f| f64::from(position as f32 * f));
            values.extend(angles.clone().map(|a| a.cos() as f32));
            values.extend(angles.map(|a| a.sin() as f32));
        }
        values
    }
}

/// A frequency stretched for long contexts, as transformers does.
fn scaled(frequency: f32, scaling: RopeScaling) -> f32 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let context = original_max_positions as f32;
            let wavelength = 2.0 * std::f32::consts::PI / frequency;
            if wavelength > context / low_freq_factor {
                frequency / factor
            } else if wavelength < context / high_freq_factor {
                frequency
            } else {
                let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

struct Rotate<'a> {
    /// `[heads, d_h]`
    x: &'a mut [f32],
    /// `[d_h/2]`
    cos: &'a [f32],
    /// `[d_h/2]`
    sin: &'a [f32],
    /// By the negative angle.
    back: bool,
}

impl Kernel for Rotate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.cos.len();
        let sign = s.splat(if self.back { -1.0 } else { 1.0 });
        for head in self.x.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            let angles = self.cos.chunks(S::LANES).zip(self.sin.chunks(S::LANES));
            let pairs = low.chunks_mut(S::LANES).zip(high.chunks_mut(S::LANES));
            for ((low, high), (cos, sin)) in pairs.zip(angles) {
                let (a, b) = (s.load_slice(low), s.load_slice(high));
                let (cos, sin) = (s.load_slice(cos), s.mul(s.load_slice(sin), sign));
                s.store_slice(low, s.sub(s.mul(a, cos), s.mul(b, sin)));
                s.store_slice(high, s.fma(b, cos, s.mul(a, sin)));
            }
        }
    }
}

/// Rotates `x` `[T, heads, d_h]` in place; row `t` is at position `first_position + t`.
///
/// # Panics
/// If `x` is no whole number of rows, or `head_dim` is not that of the table.
pub fn rope(cpu: &Cpu, x: &mut [f32], heads: usize, head_dim: usize, table: &RopeTable, first_position: usize) {
    rotate(cpu, x, heads, head_dim, table, first_position, false);
}

/// The way back through [`rope`]: from the gradient of the rotated values to that of `x`, in place. A rotation goes back by the
/// negative angle.
///
/// # Panics
/// As [`rope`].
pub fn rope_backward(
    cpu: &Cpu,
    dx: &mut [f32],
    heads: usize,
    head_dim: usize,
    table: &RopeTable,
    first_position: usize,
) {
    rotate(cpu, dx, heads, head_dim, table, first_position, true);
}

fn rotate(
    cpu: &Cpu,
    x: &mut [f32],
    heads: usize,
    head_dim: usize,
    table: &RopeTable,
    first_position: usize,
    back: bool,
) {
    assert_eq!(head_dim, 2 * table.frequencies.len(), "the table is for another head width");
    let row = heads * head_dim;
    if x.is_empty() {
        return;
    }
    assert!(row > 0 && x.len().is_multiple_of(row), "input is no whole number of rows of {heads} x {head_dim}");
    let rows = x.len() / row;
    let shared = SharedOut::new(x);
    cpu.split(rows, 1, 3 * row * 4, &|range| {
        for t in range {
            let (cos, sin) = table.row(first_position + t);
            // SAFETY: rows do not overlap.
            let x = unsafe { shared.slice(t * row..(t + 1) * row) };
            cpu.run(Rotate { x, cos, sin, back });
        }
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernels::testing::{close, cpu, on_every_isa, values};
    use crate::kernels::{Compute, IsaName};

    const PLAIN: Rope = Rope { theta: 10_000.0, scaling: RopeScaling::None };

    fn rotates_pairs(isa: IsaName) {
        for threads in [1, 2] {
            let Some(cpu) = cpu(isa, threads, Compute::F32) else { return };
            for head_dim in [2, 6, 12, 16, 64, 80, 128] {
                let (heads, t, first) = (3, 50, 250);
                let table = RopeTable::new(&PLAIN, head_dim);
                let x = values(7, t * heads * head_dim);
                let mut out = x.clone();
                rope(&cpu, &mut out, heads, head_dim, &table, first);
                let half = head_dim / 2;
                let mut expected = Vec::new();
                for (i, head) in x.chunks_exact(head_dim).enumerate() {
                    let position = (first + i / heads) as f64;
                    for c in 0..head_dim {
                        let angle = position * 10_000f64.powf(-((c % half) as f64) / half as f64);
                        let other = if c < half { -head[c + half] } else { head[c - half] };
                        let value = f64::from(head[c]) * angle.cos() + f64::from(other) * angle.sin();
                        // An angle is known to one part in 2^22: rounding of the frequency and of the product.
                        expected.push((value, 1e-6 + position * 5e-7));
                    }
                }
                close(&out, &expected).unwrap();
            }
        }
    }

    fn the_way_back_undoes_it(isa: IsaName) {
        let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
        for head_dim in [2, 12, 64, 80] {
            let table = RopeTable::new(&PLAIN, head_dim);
            let x = values(3, 20 * 3 * head_dim);
            let mut there_and_back = x.clone();
            rope(&cpu, &mut there_and_back, 3, head_dim, &table, 900);
            // Rotations keep inner products, so the gradient of `<rope(x), g>` is what undoes the rotation of g.
            rope_backward(&cpu, &mut there_and_back, 3, head_dim, &table, 900);
            close(&there_and_back, &x.iter().map(|&v| (f64::from(v), 1e-6)).collect::<Vec<_>>()).unwrap();
        }
    }

    fn nothing_to_rotate_is_fine(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        rope(&cpu, &mut [], 4, 8, &RopeTable::new(&PLAIN, 8), 0);
    }

    on_every_isa!(rotates_pairs, the_way_back_undoes_it, nothing_to_rotate_is_fine);

    #[test]
    fn a_row_does_not_depend_on_what_was_asked_before() {
        let (a, b) = (RopeTable::new(&PLAIN, 8), RopeTable::new(&PLAIN, 8));
        let positions = [0, 255, 256, 767, 768, 5000, 131_071];
        let forward: Vec<_> = positions.iter().map(|&p| a.row(p)).collect();
        let mut backward: Vec<_> = positions.iter().rev().map(|&p| b.row(p)).collect();
        backward.reverse();
        assert_eq!(forward, backward);
        assert_eq!(a.row(0), (&[1.0; 4][..], &[0.0; 4][..]));
        assert_eq!(a.row(5000).0[0], (5000f64).cos() as f32);
    }

    #[test]
    fn scaling_is_that_of_transformers() {
        // Frequencies 1, 0.1, 0.01, 0.001 of theta 10^4 and d_h 8.
        let linear = Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } };
        let found = RopeTable::new(&linear, 8).frequencies;
        assert_eq!(found, [0.25, 0.025, 0.0025, 0.00025]);
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 1024,
        };
        let found = RopeTable::new(&Rope { theta: 10_000.0, scaling }, 8).frequencies;
        // Wavelengths 6.3, 63, 628, 6283 against the limits 256 and 1024: kept, kept, ramp, divided.
        let smooth = (1024.0 / (2.0 * std::f64::consts::PI / 0.01) - 1.0) / 3.0;
        let ramp = (1.0 - smooth) * 0.01 / 8.0 + smooth * 0.01;
        for (found, expected) in found.iter().zip([1.0, 0.1, ramp, 0.001 / 8.0]) {
            assert!((f64::from(*found) / expected - 1.0).abs() < 1e-6, "{found} instead of {expected}");
        }
    }
}
