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
}

impl Kernel for Rotate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.cos.len();
        for head in self.x.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            let angles = self.cos.chunks(S::LANES).zip(self.sin.chunks(S::LANES));
            let pairs = low.chunks_mut(S::LANES).zip(high.chunks_mut(S::LANES));
            for ((low, high), (cos, sin)) in pairs.zip(angles) {
                let (a, b) = (s.load_slice(low), s.load_slice(high));
                let (cos, sin) = (s.load_slice(cos), s.load_slice(sin));
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
            cpu.run(Rotate { x, cos, sin });
        }
    });
}
