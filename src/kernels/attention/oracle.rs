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

/// Expected values and error bounds of the gradients of queries `[T, H, d_h]`, keys and values `[T, H_kv, d_h]`, from the
/// gradient `dout` of the output.
///
/// The bounds follow the errors through: of a probability (in proportion, as above), of `dP` and `delta` (inner products of `d_h`,
/// and that of the output in `delta`), and of the final sums.
pub(super) fn attention_backward(operands: Operands<'_>, dout: &[f32]) -> [Vec<(f64, f64)>; 3] {
    let Operands { shape, q, start, t, .. } = operands;
    assert_eq!(start, 0);
    let (d, scale) = (shape.head_dim, f64::from(shape.scale));
    let eps = f64::from(f32::EPSILON);
    let wide = |x: &[f32]| x.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let dot_size = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum::<f64>();
    let mut dq = vec![(0.0, 0.0); q.len()];
    let mut dk = vec![(0.0, 0.0); t * shape.kv_heads * d];
    let mut dv = dk.clone();
    let add = |sums: &mut [(f64, f64)], factor: f64, error: f64, row: &[f64], terms: usize| {
        for ((sum, bound), x) in sums.iter_mut().zip(row) {
            *sum += factor * x;
            *bound += x.abs() * (error + eps * (terms as f64 / 8.0 + 16.0) * factor.abs());
        }
    };
    for row in 0..t {
        for h in 0..shape.heads {
            let at = (row * shape.heads + h) * d;
            let (query, dout) = (wide(&q[at..][..d]), wide(&dout[at..][..d]));
            let visible = shape.visible(row);
            let (k, v) = operands.cached(h / shape.group(), visible.clone());
            let keys: Vec<Vec<f64>> = k.chunks_exact(d).map(wide).collect();
            let values: Vec<Vec<f64>> = v.chunks_exact(d).map(wide).collect();
            let scores: Vec<f64> = keys.iter().map(|key| scale * dot(key, &query)).collect();
            let size = keys.iter().map(|key| scale * dot_size(key, &query)).fold(0.0, f64::max);
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            let log_sum = max + sum.ln();
            let p: Vec<f64> = scores.iter().map(|s| (s - log_sum).exp()).collect();
            let out: Vec<f64> = (0..d).map(|c| p.iter().zip(&values).map(|(p, v)| p * v[c]).sum()).collect();
            let most = values.iter().flatten().map(|v| v.abs()).fold(0.0, f64::max);
            let delta = dot(&out, &dout);
            let dots = d as f64 / 8.0 + 16.0;
            let probability = 16.0 + 4.0 * (d as f64 / 4.0 + 8.0) * size + log_sum.abs();
            let output = most * (probability + visible.len() as f64 / 8.0);
            let delta_error = dots * dot_size(&out, &dout) + output * dout.iter().map(|v| v.abs()).sum::<f64>();
            for (i, position) in visible.enumerate() {
                let dp = dot(&values[i], &dout);
                let ds = p[i] * (dp - delta);
                let error = probability * (dp.abs() + delta.abs()) + dots * dot_size(&values[i], &dout) + delta_error;
                let error = eps * p[i] * error;
                let cached = (position * shape.kv_heads + h / shape.group()) * d;
                let terms = t * shape.group();
                add(&mut dq[at..][..d], scale * ds, scale * error, &keys[i], terms);
                add(&mut dk[cached..][..d], scale * ds, scale * error, &query, terms);
                add(&mut dv[cached..][..d], p[i], eps * probability * p[i], &dout, terms);
            }
        }
    }
    [dq, dk, dv]
}
