//! Attention as its definition says, in `f64`, with the whole score row in memory.

use super::Operands;

/// Expected value and error bound of every output `[T, H, d_h]`.
///
/// The bound: a score's error, `d_h * 2^-23 * sum |q k| * scale`, changes a weight in proportion; exponentials and sums add a few
/// units; both act on values of at most `max |v|`.
pub(super) fn attention(operands: Operands<'_>) -> Vec<(f64, f64)> {
    let Operands { shape, q, start, t, .. } = operands;
    let d = shape.head_dim;
    let eps = f64::from(f32::EPSILON);
    let mut out = Vec::with_capacity(q.len());
    for row in 0..t {
        for h in 0..shape.heads {
            let query = &q[(row * shape.heads + h) * d..][..d];
            let (k, v) = operands.cached(h / shape.group(), shape.visible(start + row));
            let mut size: f64 = 0.0;
            let scores: Vec<f64> = k
                .chunks_exact(d)
                .map(|key| {
                    let products = || key.iter().zip(query).map(|(&a, &b)| f64::from(a) * f64::from(b));
                    size = size.max(products().map(f64::abs).sum::<f64>() * f64::from(shape.scale));
                    products().sum::<f64>() * f64::from(shape.scale)
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for c in 0..d {
                let column = || v.iter().skip(c).step_by(d).map(|&v| f64::from(v));
                let value = column().zip(&weights).map(|(v, w)| v * w).sum::<f64>() / sum;
                let most = column().map(f64::abs).fold(0.0, f64::max);
                out.push((
                    value,
                    eps * most * (16.0 + 2.0 * (d as f64 / 4.0 + 8.0) * size + k.len() as f64 / d as f64 / 8.0),
                ));
            }
        }
    }
    out
}
