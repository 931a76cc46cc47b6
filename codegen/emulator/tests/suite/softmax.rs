//! Softmax and norms of rows.

use shadowllm_emulator::Arg;

use crate::support::{Numbers, everywhere, launch};

#[test]
fn softmax_is_right_for_huge_scores() {
    everywhere("softmax", |device, module| {
        for (columns, scale) in [(1usize, 1.0f32), (7, 1.0), (256, 5.0), (1000, 500.0), (300, 0.0)] {
            let values: Vec<f32> = Numbers::new(columns as u64).floats(2 * columns).iter().map(|v| v * scale).collect();
            let (input, out) = (device.alloc_from("in", &values), device.alloc("out", 8 * columns));
            let args = [Arg::Buffer(input), Arg::Buffer(out), Arg::I32(columns as i32)];
            launch(device, module, "softmax", 2, 256, &args);
            let found = device.download::<f32>(out).unwrap();
            for (row, found) in values.chunks(columns).zip(found.chunks(columns)) {
                let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f64> = row.iter().map(|v| f64::from(v - top).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for (found, weight) in found.iter().zip(weights) {
                    assert!((f64::from(*found) - weight / sum).abs() <= 1e-6 + 1e-4 * weight / sum);
                }
            }
        }
    });
}

#[test]
fn norms_match_f64() {
    everywhere("softmax", |device, module| {
        for columns in [1usize, 63, 64, 200] {
            let values = Numbers::new(columns as u64).floats(3 * columns);
            let input = device.alloc_from("in", &values);
            let (rms, layer) = (device.alloc("rms", 12 * columns), device.alloc("layer", 12 * columns));
            let args = [Arg::Buffer(input), Arg::Buffer(rms), Arg::Buffer(layer), Arg::I32(columns as i32)];
            launch(device, module, "norms", 3, 64, &args);
            let (rms, layer) = (device.download::<f32>(rms).unwrap(), device.download::<f32>(layer).unwrap());
            for (i, row) in values.chunks(columns).enumerate() {
                let n = columns as f64;
                let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
                let square = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n;
                for (j, value) in row.iter().enumerate() {
                    let value = f64::from(*value);
                    let expected = [
                        value / (square + 1e-5).sqrt(),
                        (value - mean) / ((square - mean * mean).max(0.0) + 1e-5).sqrt(),
                    ];
                    let found = [rms[i * columns + j], layer[i * columns + j]];
                    for (found, expected) in found.into_iter().zip(expected) {
                        // A row of one has no deviation: what is left is rounding, divided by the root of 1e-5.
                        assert!((f64::from(found) - expected).abs() < 1e-3 * (1.0 + expected.abs()));
                    }
                }
            }
        }
    });
}
