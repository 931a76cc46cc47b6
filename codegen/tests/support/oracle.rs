//! The masked dense model, in plain loops and `f64`.

use shadowllm_codegen::{Activation, KernelSpec, Norm, NormSite, Tensor};

use super::host::{Host, rounded};

/// Keys and values of all heads and positions.
pub struct Oracle {
    /// By layer, `[position][H_kv * d_h]`.
    keys: Vec<Vec<Vec<f64>>>,
    values: Vec<Vec<Vec<f64>>>,
}

/// Heads and neurons of one layer.
pub type Kept = (Vec<u32>, Vec<u32>);

fn dot(row: &[f32], x: &[f64]) -> f64 {
    row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()
}

/// `1 - erf(x)`: the power series near zero, where its terms are small, and the continued fraction beyond.
fn erfc(x: f64) -> f64 {
    let root_pi = std::f64::consts::PI.sqrt();
    let z = x.abs();
    let upper = if z < 2.0 {
        let (mut term, mut sum) = (z, z);
        for n in 1..60 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        1.0 - 2.0 / root_pi * sum
    } else {
        // exp(-z^2) / sqrt(pi) / (z + (1/2) / (z + (2/2) / (z + (3/2) / (z + ...)))), from its end.
        let tail = (1..80).rev().fold(z, |below, n| z + f64::from(n) / 2.0 / below);
        (-z * z).exp() / root_pi / tail
    };
    if x >= 0.0 { upper } else { 2.0 - upper }
}

pub fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * 0.5 * erfc(-x / std::f64::consts::SQRT_2),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x / (1.0 + (-2.0 * u).exp())
        }
    }
}

pub fn norm(host: &Host, site: NormSite, x: &[f64]) -> Vec<f64> {
    let spec = &host.program.spec;
    let n = x.len() as f64;
    let weight = host.tensor(Tensor::NormWeight(site));
    let mean = if spec.norm == Norm::LayerNorm { x.iter().sum::<f64>() / n } else { 0.0 };
    let square = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    let factor = 1.0 / (square + f64::from(spec.norm_eps)).sqrt();
    let bias = host.tensors.get(&Tensor::NormBias(site));
    x.iter()
        .enumerate()
        .map(|(i, v)| (v - mean) * factor * f64::from(weight[i]) + bias.map_or(0.0, |b| f64::from(b[i])))
        .collect()
}

impl Oracle {
    pub fn new(spec: &KernelSpec) -> Oracle {
        let empty = vec![Vec::new(); spec.sizes.layers];
        Oracle { keys: empty.clone(), values: empty }
    }

    /// Keys and values of the first positions of a layer.
    pub fn preset(&mut self, layer: usize, keys: &[Vec<f32>], values: &[Vec<f32>]) {
        let wide = |rows: &[Vec<f32>]| rows.iter().map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect();
        self.keys[layer] = wide(keys);
        self.values[layer] = wide(values);
    }

    /// Logits of one token. `window` is that of every layer, 0 for none.
    pub fn token(&mut self, host: &Host, token: u32, position: usize, plan: &[Kept], window: usize) -> Vec<f64> {
        let spec = &host.program.spec;
        let s = spec.sizes;
        let d = s.hidden;
        let mut x: Vec<f64> =
            host.tensor(Tensor::Embedding)[token as usize * d..][..d].iter().map(|v| f64::from(*v)).collect();
        if let Some(table) = host.tensors.get(&Tensor::Positions) {
            let row = &table[(position + spec.position_offset) * d..][..d];
            x.iter_mut().zip(row).for_each(|(x, v)| *x += f64::from(*v));
        }
        for (layer, (heads, neurons)) in plan.iter().enumerate() {
            let out = self.attention(host, layer, position, heads, window, &norm(host, NormSite::Attention(layer), &x));
            x.iter_mut().zip(&out).for_each(|(x, v)| *x += v);
            let out = ffn(host, layer, neurons, &norm(host, NormSite::Ffn(layer), &x));
            x.iter_mut().zip(&out).for_each(|(x, v)| *x += v);
        }
        let x = norm(host, NormSite::Final, &x);
        host.tensor(Tensor::LmHead).chunks_exact(d).map(|row| dot(row, &x)).collect()
    }

    fn attention(
        &mut self,
        host: &Host,
        layer: usize,
        position: usize,
        heads: &[u32],
        window: usize,
        x: &[f64],
    ) -> Vec<f64> {
        let spec = &host.program.spec;
        let s = spec.sizes;
        let (d, dh) = (s.hidden, s.head_dim);
        let (q_records, kv_records) = (host.tensor(Tensor::Heads(layer)), host.tensor(Tensor::KvHeads(layer)));
        let bias = |tensor, i: usize| host.tensors.get(&tensor).map_or(0.0, |b| f64::from(b[i]));
        let rotate = |v: &mut [f64]| {
            let Some(table) = host.tensors.get(&Tensor::Rope) else { return };
            let (cos, sin) = table[position * dh..][..dh].split_at(dh / 2);
            for c in 0..dh / 2 {
                let (a, b) = (v[c], v[c + dh / 2]);
                let (cos, sin) = (f64::from(cos[c]), f64::from(sin[c]));
                v[c] = a * cos - b * sin;
                v[c + dh / 2] = b * cos + a * sin;
            }
        };
        let project = |records: &[f32], head: usize, part: usize, tensor| -> Vec<f64> {
            let rows = &records[(head * 2 + part) * dh * d..][..dh * d];
            rows.chunks_exact(d).enumerate().map(|(c, row)| dot(row, x) + bias(tensor, head * dh + c)).collect()
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for g in 0..s.kv_heads {
            let mut key = project(kv_records, g, 0, Tensor::KeyBias(layer));
            rotate(&mut key);
            // Only what the cache's type loses is rounded, as the device does.
            let stored = |v: f64| f64::from(rounded(v as f32, spec.cache));
            keys.extend(key.into_iter().map(stored));
            values.extend(project(kv_records, g, 1, Tensor::ValueBias(layer)).into_iter().map(stored));
        }
        self.keys[layer].push(keys);
        self.values[layer].push(values);
        let first = if window > 0 { (position + 1).saturating_sub(window) } else { 0 };
        let mut out: Vec<f64> = (0..d).map(|j| bias(Tensor::OutBias(layer), j)).collect();
        for &head in heads {
            let head = head as usize;
            let mut q = project(q_records, head, 0, Tensor::QueryBias(layer));
            rotate(&mut q);
            let g = head / (s.heads / s.kv_heads) * dh;
            let scores: Vec<f64> = (first..=position)
                .map(|p| {
                    let key = &self.keys[layer][p][g..g + dh];
                    q.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / (dh as f64).sqrt()
                })
                .collect();
            let most = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            for c in 0..dh {
                let context: f64 =
                    (first..=position).zip(&weights).map(|(p, w)| w * self.values[layer][p][g + c]).sum::<f64>()
                        / total;
                let row = &q_records[((head * 2 + 1) * dh + c) * d..][..d];
                out.iter_mut().zip(row).for_each(|(out, w)| *out += context * f64::from(*w));
            }
        }
        out
    }
}

fn ffn(host: &Host, layer: usize, neurons: &[u32], x: &[f64]) -> Vec<f64> {
    let spec = &host.program.spec;
    let d = spec.sizes.hidden;
    let records = host.tensor(Tensor::Neurons(layer));
    let bias = |tensor, i: usize| host.tensors.get(&tensor).map_or(0.0, |b| f64::from(b[i]));
    let rows = records.len() / d / spec.sizes.ffn;
    let mut out: Vec<f64> = (0..d).map(|j| bias(Tensor::SecondBias(layer), j)).collect();
    for &neuron in neurons {
        let neuron = neuron as usize;
        let row = |r: usize| &records[(neuron * rows + r) * d..][..d];
        let mut z = activate(spec.activation, dot(row(0), x) + bias(Tensor::FirstBias(layer), neuron));
        if rows == 3 {
            z *= dot(row(1), x) + bias(Tensor::UpBias(layer), neuron);
        }
        out.iter_mut().zip(row(rows - 1)).for_each(|(out, w)| *out += z * f64::from(*w));
    }
    out
}

/// The largest difference relative to the largest value.
pub fn difference(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let size = expected.iter().fold(0.0_f64, |size, v| size.max(v.abs()));
    let largest = found
        .iter()
        .zip(expected)
        .map(|(f, e)| (f64::from(*f) - e).abs())
        .fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) });
    largest / size.max(1e-30)
}
