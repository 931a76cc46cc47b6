//! Gather GEMV: the kernel that decode is made of.

use crate::support::{Numbers, bits, everywhere, launch};
use half::{bf16, f16};
use shadowllm_emulator::Arg;

/// What the kernel computes, in its order: lanes stride over 16-byte vectors, then a butterfly of sums.
fn oracle(row: &[f32], x: &[f32], per_vector: usize) -> f32 {
    let mut lanes = [0.0f32; 32];
    for (vector, (w, x)) in row.chunks(per_vector).zip(x.chunks(per_vector)).enumerate() {
        for (w, x) in w.iter().zip(x) {
            lanes[vector % 32] = w.mul_add(*x, lanes[vector % 32]);
        }
    }
    for step in [16, 8, 4, 2, 1] {
        lanes = std::array::from_fn(|lane| lanes[lane] + lanes[lane ^ step]);
    }
    lanes[0]
}

/// Rows listed, in any order; columns that fill no warp, one, and several and a half.
#[test]
fn equals_the_oracle_bit_by_bit() {
    for (kernel, per_vector) in [("row_dot_bf16", 8), ("row_dot_f16", 8), ("row_dot_f32", 4)] {
        everywhere("row_dot", |device, module| {
            for (columns, rows, listed) in [(8, 3, 1), (72, 5, 5), (256, 9, 6), (776, 4, 3), (64, 7, 0)] {
                let mut numbers = Numbers::new(columns as u64);
                let dense = numbers.floats(rows * columns);
                let x = numbers.floats(columns);
                let (weights, rounded) = match kernel {
                    "row_dot_bf16" => {
                        let w: Vec<bf16> = dense.iter().map(|&v| bf16::from_f32(v)).collect();
                        (device.alloc_from("weights", &w), w.iter().map(|v| v.to_f32()).collect())
                    }
                    "row_dot_f16" => {
                        let w: Vec<f16> = dense.iter().map(|&v| f16::from_f32(v)).collect();
                        (device.alloc_from("weights", &w), w.iter().map(|v| v.to_f32()).collect())
                    }
                    _ => (device.alloc_from("weights", &dense), dense.clone()),
                };
                let rounded: Vec<f32> = rounded;
                device.set_read_only(weights, true).unwrap();
                let list: Vec<i32> = (0..listed).map(|i| ((i * 5 + 2) % rows) as i32).collect();
                let x_buffer = device.alloc_from("x", &x);
                let list_buffer = device.alloc_from("list", &list);
                let count = device.alloc_from("count", &[listed as i32]);
                let out = device.alloc("out", listed * 4);
                let args = [
                    Arg::Buffer(weights),
                    Arg::Buffer(x_buffer),
                    Arg::Buffer(list_buffer),
                    Arg::Buffer(count),
                    Arg::Buffer(out),
                    Arg::I32(columns as i32),
                ];
                let counters = launch(device, module, kernel, listed.div_ceil(4).max(1), 128, &args);
                let expected: Vec<f32> = list
                    .iter()
                    .map(|&row| oracle(&rounded[row as usize * columns..][..columns], &x, per_vector))
                    .collect();
                assert_eq!(
                    bits(&device.download::<f32>(out).unwrap()),
                    bits(&expected),
                    "{kernel} of {columns} columns"
                );
                // Each listed row is read once, in 16 bytes per lane.
                let traffic = counters.buffer("weights").cloned().unwrap_or_default();
                assert_eq!(traffic.read_bytes as usize, listed * columns * if kernel == "row_dot_f32" { 4 } else { 2 });
                assert!(columns % 16 != 0 || traffic.read_sectors * 32 == traffic.read_bytes);
                assert!(listed == 0 || traffic.narrowest_load == 16);
            }
        });
    }
}
