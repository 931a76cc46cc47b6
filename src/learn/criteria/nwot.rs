//! `nwot`: how many different activation patterns the unit makes of the tokens (Mellor et al.: Neural Architecture Search without
//! Training, 2021): `ln det` of a kernel that counts where the binary codes of two tokens agree.
//!
//! A head's code is the sign of its `d_h` components, a neuron's one bit: whether the activation is open (its gate positive). With
//! `M` `[T, 2 w]`, codes beside their complements, the kernel is `M M^T`. It is `[T, T]` and singular as soon as there are more
//! tokens than bits, so the score is `ln det(1 + M^T M / T)`, which has the same spectrum, exists for every text, and does not
//! grow with its length: for a neuron that is open in a fraction `p` of the tokens `ln((1 + p)(2 - p))`, the most at one half.
//!
//! Published code uses the complement alone and one text, which leaves `ln(number of closed components)`: that is the length of the
//! text, nearly, and for neurons, `ln(fraction closed)`, is largest for one that never fires.

use super::linear_algebra::log_determinant;
use super::{Criterion, Form, LayerInput, UnitKind};
use crate::Result;

/// See the head of this file.
pub(super) struct Nwot;

impl Criterion for Nwot {
    fn name(&self) -> &'static str {
        "nwot"
    }

    fn has(&self, _: UnitKind, form: Form) -> bool {
        form == Form::Sequence
    }

    fn score(&self, input: &LayerInput<'_>, kind: UnitKind, _: Form, out: &mut [f32]) -> Result<()> {
        let tokens = input.record.tokens as f64;
        match kind {
            UnitKind::Neurons => {
                let mut open = vec![0u32; out.len()];
                for gates in input.record.gates.chunks_exact(out.len().max(1)) {
                    open.iter_mut().zip(gates).for_each(|(open, gate)| *open += u32::from(*gate > 0.0));
                }
                for (out, open) in out.iter_mut().zip(open) {
                    let p = f64::from(open) / tokens;
                    *out = ((1.0 + p) * (2.0 - p)).ln() as f32;
                }
            }
            UnitKind::Heads => {
                let heads = input.activations(kind);
                let n = 2 * heads.width;
                let mut counts = vec![0.0; heads.units * n * n];
                let mut code = vec![0.0; n];
                heads.each(|head, a, _| {
                    for (c, v) in a.iter().enumerate() {
                        code[c] = f64::from(u8::from(*v > 0.0));
                        code[heads.width + c] = 1.0 - code[c];
                    }
                    let counts = &mut counts[head * n * n..(head + 1) * n * n];
                    for (row, &bit) in counts.chunks_exact_mut(n).zip(&code) {
                        if bit > 0.0 {
                            row.iter_mut().zip(&code).for_each(|(count, bit)| *count += bit);
                        }
                    }
                });
                for (out, counts) in out.iter_mut().zip(counts.chunks_exact_mut(n * n)) {
                    counts.iter_mut().for_each(|count| *count /= tokens);
                    (0..n).for_each(|i| counts[i * n + i] += 1.0);
                    *out = log_determinant(counts, n) as f32;
                }
            }
        }
        Ok(())
    }
}
