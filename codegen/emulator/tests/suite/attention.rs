//! Attention of one token, and tensor cores.

use half::{bf16, f16};
use shadowllm_emulator::Arg;

use crate::support::{Numbers, everywhere, launch};

#[test]
fn decode_attention_matches_f64() {
    const HEADS: usize = 3;
    const SIZE: usize = 64;
    everywhere("attention", |device, module| {
        for (context, scale) in [(1usize, 1.0f32), (5, 1.0), (130, 30.0), (1000, 1.0)] {
            let capacity = context + 3;
            let mut numbers = Numbers::new(context as u64);
            let query: Vec<f32> = numbers.floats(HEADS * SIZE).iter().map(|v| v * scale).collect();
            let mut cache =
                || -> Vec<bf16> { numbers.floats(HEADS * capacity * SIZE).into_iter().map(bf16::from_f32).collect() };
            let (keys, values) = (cache(), cache());
            let buffers = [
                device.alloc_from("query", &query),
                device.alloc_from("keys", &keys),
                device.alloc_from("values", &values),
            ];
            let out = device.alloc("out", HEADS * SIZE * 4);
            let length = device.alloc_from("length", &[context as i32]);
            let mut args: Vec<Arg> = buffers.into_iter().map(Arg::Buffer).collect();
            args.extend([Arg::Buffer(out), Arg::Buffer(length), Arg::I32(capacity as i32)]);
            launch(device, module, "decode_attention", HEADS, 128, &args);
            let found = device.download::<f32>(out).unwrap();
            for head in 0..HEADS {
                let q = &query[head * SIZE..][..SIZE];
                let row = |cache: &[bf16], i: usize| -> Vec<f64> {
                    cache[(head * capacity + i) * SIZE..][..SIZE].iter().map(|v| v.to_f64()).collect()
                };
                let scores: Vec<f64> = (0..context)
                    .map(|i| row(&keys, i).iter().zip(q).map(|(k, q)| k * f64::from(*q)).sum::<f64>() / 8.0)
                    .collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let mut mix = vec![0.0; SIZE];
                for (i, weight) in weights.iter().enumerate() {
                    mix.iter_mut().zip(row(&values, i)).for_each(|(mix, value)| *mix += weight / sum * value);
                }
                for (found, expected) in found[head * SIZE..].iter().zip(mix) {
                    assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} {expected}");
                }
            }
        }
    });
}

#[test]
fn tensor_cores_multiply() {
    everywhere("tensor_core", |device, module| {
        for (kernel, depth) in [("mma_bf16", 16usize), ("mma_f16", 48), ("mma_bf16", 160)] {
            let mut numbers = Numbers::new(depth as u64);
            let (a, b) = (numbers.floats(16 * depth), numbers.floats(8 * depth));
            let brain = kernel == "mma_bf16";
            let narrow = |values: &[f32]| -> Vec<u16> {
                values
                    .iter()
                    .map(|&v| if brain { bf16::from_f32(v).to_bits() } else { f16::from_f32(v).to_bits() })
                    .collect()
            };
            let wide = |bits: u16| if brain { bf16::from_bits(bits).to_f64() } else { f16::from_bits(bits).to_f64() };
            let (a, b) = (narrow(&a), narrow(&b));
            let (a_buffer, b_buffer, c) =
                (device.alloc_from("a", &a), device.alloc_from("b", &b), device.alloc("c", 16 * 8 * 4));
            let args = [Arg::Buffer(a_buffer), Arg::Buffer(b_buffer), Arg::Buffer(c), Arg::I32(depth as i32)];
            launch(device, module, kernel, 1, 32, &args);
            let found = device.download::<f32>(c).unwrap();
            for row in 0..16 {
                for column in 0..8 {
                    let expected: f64 =
                        (0..depth).map(|k| wide(a[row * depth + k]) * wide(b[column * depth + k])).sum();
                    assert!((f64::from(found[row * 8 + column]) - expected).abs() < 1e-5);
                }
            }
        }
    });
}
