//! One thread per element; arithmetic as the compiler writes it.

use half::{bf16, f16};
use shadowllm_emulator::Arg;

use crate::support::{Numbers, bits, everywhere, launch};

/// No elements, one, a block but one, a block, one more.
const SIZES: [usize; 6] = [0, 1, 63, 64, 65, 200];

#[test]
fn vectors_are_added() {
    everywhere("elementwise", |device, module| {
        for n in SIZES {
            let mut numbers = Numbers::new(n as u64);
            let (a, b) = (numbers.floats(n), numbers.floats(n));
            let buffers = [device.alloc_from("a", &a), device.alloc_from("b", &b), device.alloc("out", n * 4)];
            let [a_buffer, b_buffer, out] = buffers;
            let args = [Arg::Buffer(a_buffer), Arg::Buffer(b_buffer), Arg::Buffer(out), Arg::I32(n as i32)];
            let counters = launch(device, module, "vector_add", n.div_ceil(64).max(1), 64, &args);
            let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            assert_eq!(bits(&device.download(out).unwrap()), bits(&expected));
            assert_eq!(counters.global.read_bytes, 8 * n as u64);
            assert_eq!(counters.global.written_bytes, 4 * n as u64);
            assert_eq!(counters.global.distinct_written_sectors, n.div_ceil(8) as u64);
        }
    });
}

#[test]
fn vectors_are_scaled_in_place() {
    everywhere("elementwise", |device, module| {
        let mut numbers = Numbers::new(7);
        let (x, y) = (numbers.floats(300), numbers.floats(300));
        let (x_buffer, y_buffer) = (device.alloc_from("x", &x), device.alloc_from("y", &y));
        let args = [Arg::Buffer(y_buffer), Arg::Buffer(x_buffer), Arg::F32(0.3), Arg::U32(299)];
        launch(device, module, "scale_add", 3, 32, &args);
        let mut expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 0.3f32.mul_add(*x, *y)).collect();
        expected[299] = y[299];
        assert_eq!(bits(&device.download(y_buffer).unwrap()), bits(&expected));
    });
}

#[test]
fn bytes_are_added() {
    everywhere("elementwise", |device, module| {
        let a: Vec<u8> = (0..100).map(|i| (i * 7) as u8).collect();
        let b: Vec<i8> = (0..100).map(|i| (i * 13 - 50) as i8).collect();
        let (a_buffer, b_buffer) = (device.alloc_from("a", &a), device.alloc_from("b", &b));
        let out = device.alloc("out", 100);
        let args = [Arg::Buffer(out), Arg::Buffer(a_buffer), Arg::Buffer(b_buffer), Arg::I32(100)];
        launch(device, module, "add_bytes", 4, 32, &args);
        let expected: Vec<u8> = a.iter().zip(&b).map(|(a, b)| a.wrapping_add_signed(*b)).collect();
        assert_eq!(device.download::<u8>(out).unwrap(), expected);
    });
}

#[test]
fn matrices_are_transposed() {
    everywhere("elementwise", |device, module| {
        for (rows, columns) in [(1usize, 1usize), (16, 16), (17, 40), (33, 5)] {
            let values = Numbers::new(3).floats(rows * columns);
            let (input, out) = (device.alloc_from("in", &values), device.alloc("out", rows * columns * 4));
            let grid = [columns.div_ceil(16) as u32, rows.div_ceil(16) as u32, 1];
            let args = [Arg::Buffer(input), Arg::Buffer(out), Arg::I32(rows as i32), Arg::I32(columns as i32)];
            let counters = device.launch(module, "transpose", grid, [16, 16, 1], 0, &args).unwrap();
            let expected: Vec<f32> = (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect();
            assert_eq!(device.download::<f32>(out).unwrap(), expected);
            // Half warps of a row each: the padding keeps columns of the tile in different banks, up to one word.
            assert!(counters.shared_load_wavefronts <= 2 * counters.shared_loads);
        }
    });
}

#[test]
fn floats_are_narrowed() {
    everywhere("row_dot", |device, module| {
        let mut values: Vec<f32> = Numbers::new(5).floats(200);
        values.extend([0.0, -0.0, f32::INFINITY, 65504.0, 65519.9, 65520.0, 1e-8, 6e-8, 3.4e38, f32::NAN, 1.003_906_3]);
        let n = values.len();
        let input = device.alloc_from("in", &values);
        let outs = [device.alloc("bf16", n * 2), device.alloc("f16", n * 2), device.alloc("pairs", n * 4)];
        let [brain, half, pairs] = outs;
        let args = [Arg::Buffer(input), Arg::Buffer(brain), Arg::Buffer(half), Arg::Buffer(pairs), Arg::I32(n as i32)];
        launch(device, module, "narrow", n.div_ceil(64), 64, &args);
        let (brain, half) = (device.download::<u16>(brain).unwrap(), device.download::<u16>(half).unwrap());
        let pairs = device.download::<u32>(pairs).unwrap();
        for (i, &value) in values.iter().enumerate() {
            let (b, h) = if value.is_nan() {
                (0x7fff, 0x7fff)
            } else {
                (bf16::from_f32(value).to_bits(), f16::from_f32(value).to_bits())
            };
            let low = if value.is_nan() { 0x7fff } else { bf16::from_f32(-value).to_bits() };
            assert_eq!((brain[i], half[i], pairs[i]), (b, h, u32::from(b) << 16 | u32::from(low)), "{value}");
        }
    });
}

/// Values that fill 32 bits in every way.
fn words(seed: u64, n: usize) -> Vec<u32> {
    let mut numbers = Numbers::new(seed);
    (0..n)
        .map(|i| match i % 6 {
            0 => [0, 1, u32::MAX, 0x8000_0000, 0x7fff_ffff, 31, 32, 33][i / 6 % 8],
            1 => numbers.below(64) as u32,
            _ => (numbers.bits() >> numbers.below(32)) as u32,
        })
        .collect()
}

#[test]
fn integers_follow_c() {
    everywhere("arithmetic", |device, module| {
        let n = 300;
        let (a, b, c) = (words(1, n), words(2, n), words(3, n));
        let inputs = [device.alloc_from("a", &a), device.alloc_from("b", &b), device.alloc_from("c", &c)];
        let out = device.alloc("out", n * 24 * 4);
        let mut args: Vec<Arg> = inputs.into_iter().map(Arg::Buffer).collect();
        args.extend([Arg::Buffer(out), Arg::I32(n as i32)]);
        launch(device, module, "integers", n.div_ceil(64), 64, &args);
        let found = device.download::<u32>(out).unwrap();
        for i in 0..n {
            let (x, y, z) = (a[i], b[i], c[i]);
            let (sx, sy, sz) = (x.cast_signed(), y.cast_signed(), z.cast_signed());
            let wide = u64::from(y) << 32 | u64::from(x);
            let byte = |s: u32| (wide >> (8 * (s & 7))) as u32 & 0xff;
            let dot = (0..4)
                .fold(sz, |sum, k| sum.wrapping_add(i32::from((x >> (8 * k)) as i8) * i32::from((y >> (8 * k)) as i8)));
            let signed = y != 0 && y != u32::MAX;
            let expected = [
                ((u64::from(x) * u64::from(y)) >> 32) as u32,
                ((i64::from(sx) * i64::from(sy)) >> 32) as u32,
                x.checked_div(y).unwrap_or(0),
                x.checked_rem(y).unwrap_or(0),
                if signed { (sx / sy).cast_unsigned() } else { 0 },
                if signed { (sx % sy).cast_unsigned() } else { 0 },
                x.leading_zeros(),
                if x == 0 { 0 } else { x.trailing_zeros() + 1 },
                x.reverse_bits(),
                x.count_ones(),
                (0..4).fold(0, |sum, k| sum | byte(z >> (4 * k)) << (8 * k)),
                (wide << (z & 31) >> 32) as u32,
                (wide >> (z & 63).min(32)) as u32,
                (x & y) | (!x & z),
                x ^ y ^ z,
                sx.abs_diff(sy).wrapping_add(z),
                x.min(y),
                sx.max(sy).cast_unsigned(),
                x << (z & 31),
                (sx >> (z & 31)).cast_unsigned(),
                (u64::from(x).wrapping_mul(u64::from(y)) >> 16) as u32,
                ((i64::from(sx) * i64::from(sy)).wrapping_add(i64::from(sz)) >> 32) as u32,
                (x >> 5 & 0x3ff).wrapping_mul(z),
                dot.cast_unsigned(),
            ];
            assert_eq!(found[i * 24..][..24], expected, "{x:#x} {y:#x} {z:#x}");
        }
    });
}

#[test]
fn long_integers_follow_c() {
    everywhere("arithmetic", |device, module| {
        let n = 200;
        let long = |seed| -> Vec<u64> {
            let (high, low) = (words(seed, n), words(seed + 1, n));
            high.iter().zip(&low).map(|(&high, &low)| u64::from(high) << 32 | u64::from(low)).collect()
        };
        let (a, b) = (long(10), long(20));
        let (a_buffer, b_buffer, out) =
            (device.alloc_from("a", &a), device.alloc_from("b", &b), device.alloc("out", n * 12 * 8));
        let args = [Arg::Buffer(a_buffer), Arg::Buffer(b_buffer), Arg::Buffer(out), Arg::I32(n as i32)];
        launch(device, module, "long_integers", n.div_ceil(32), 32, &args);
        let found = device.download::<u64>(out).unwrap();
        for i in 0..n {
            let (x, y) = (a[i], b[i]);
            let (sx, sy) = (x.cast_signed(), y.cast_signed());
            let expected = [
                x.wrapping_add(y),
                x.wrapping_mul(y),
                ((u128::from(x) * u128::from(y)) >> 64) as u64,
                ((i128::from(sx) * i128::from(sy)) >> 64) as u64,
                x.checked_div(y).unwrap_or(0),
                x.checked_rem(y).unwrap_or(0),
                x.leading_zeros().into(),
                x.count_ones().into(),
                x.reverse_bits(),
                x << (y & 63),
                (sx >> (y & 63)).cast_unsigned(),
                sx.min(sy).cast_unsigned(),
            ];
            assert_eq!(found[i * 12..][..12], expected, "{x:#x} {y:#x}");
        }
    });
}

#[test]
fn floats_follow_ieee() {
    everywhere("arithmetic", |device, module| {
        let mut numbers = Numbers::new(9);
        let special = [0.0, -0.0, 1.5, -2.5, 0.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, 3e38, 1e10, -1e10];
        let mut value = |i: usize| if i.is_multiple_of(3) { special[i / 3 % 12] } else { numbers.unit() * 100.0 };
        let a: Vec<f32> = (0..300).map(&mut value).collect();
        let b: Vec<f32> = (0..300).map(|i| value(i * 7 + 5)).collect();
        let (a_buffer, b_buffer, out) =
            (device.alloc_from("a", &a), device.alloc_from("b", &b), device.alloc("out", 300 * 16 * 4));
        let args = [Arg::Buffer(a_buffer), Arg::Buffer(b_buffer), Arg::Buffer(out), Arg::I32(300)];
        launch(device, module, "floats", 5, 64, &args);
        let found = device.download::<f32>(out).unwrap();
        for (i, (&x, &y)) in a.iter().zip(&b).enumerate() {
            let smaller = if x.is_nan() || y < x || (x == y && y.is_sign_negative()) { y } else { x };
            let larger = if x.is_nan() || y > x || (x == y && y.is_sign_positive()) { y } else { x };
            let expected = [
                x - y,
                x / y,
                x.sqrt(),
                smaller,
                larger,
                x.abs() - y,
                x.floor(),
                x.ceil(),
                x.trunc(),
                x.round_ties_even(),
                x as i32 as f32,
                y as u32 as f32,
                x.copysign(y),
                if x < y { x } else { y },
            ];
            for (k, (&found, expected)) in found[i * 16..].iter().zip(expected).enumerate() {
                // Arithmetic gives the canonical NaN; moves and signs keep theirs.
                let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                assert!(same, "result {k} of {x} and {y}: {found}, expected {expected}");
            }
            // Directed roundings: between the neighbours in f64, and on the right side.
            let (toward_zero, down) = (found[i * 16 + 14], found[i * 16 + 15]);
            let product = f64::from(x) * f64::from(y);
            if product.is_finite() && toward_zero.is_finite() {
                assert!(f64::from(toward_zero).abs() <= product.abs());
                assert!(product.abs() <= f64::from(f32::from_bits(toward_zero.to_bits() + 1)).abs());
            }
            let exact = product + f64::from(x);
            if exact.is_finite() && down.is_finite() && x.abs() < 1e6 && y.abs() < 1e6 && x.abs() > 1e-30 {
                assert!(f64::from(down) <= exact, "{x} {y}: {down} > {exact}");
            }
        }
    });
}

#[test]
fn doubles_follow_ieee() {
    everywhere("arithmetic", |device, module| {
        let mut numbers = Numbers::new(11);
        let a: Vec<f64> = (0..90).map(|_| f64::from(numbers.unit()) * 1e5 + 1e-9).collect();
        let b: Vec<f64> = (0..90).map(|_| f64::from(numbers.unit())).collect();
        let (a_buffer, b_buffer) = (device.alloc_from("a", &a), device.alloc_from("b", &b));
        let (out, narrow) = (device.alloc("out", 90 * 6 * 8), device.alloc("narrow", 90 * 4));
        let args = [a_buffer, b_buffer, out, narrow].map(Arg::Buffer);
        let args = args.into_iter().chain([Arg::I32(90)]).collect::<Vec<_>>();
        launch(device, module, "doubles", 3, 32, &args);
        let (found, narrow) = (device.download::<f64>(out).unwrap(), device.download::<f32>(narrow).unwrap());
        for (i, (&x, &y)) in a.iter().zip(&b).enumerate() {
            let expected = [x * y + 1.0, x / y, x.sqrt(), x.mul_add(y, x), x.min(y), x as i64 as f64];
            for (found, expected) in found[i * 6..].iter().zip(expected) {
                assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan());
            }
            assert_eq!(narrow[i].to_bits(), (x as f32).to_bits());
        }
    });
}
