//! What lanes tell each other.

use shadowllm_emulator::Arg;

use crate::support::{Numbers, everywhere, launch};

#[test]
fn scans_are_prefix_sums() {
    everywhere("warp", |device, module| {
        let mut numbers = Numbers::new(1);
        let values: Vec<i32> = (0..100).map(|_| numbers.below(1000) as i32 - 500).collect();
        let (input, out) = (device.alloc_from("in", &values), device.alloc("out", 400));
        launch(device, module, "scan", 2, 64, &[Arg::Buffer(input), Arg::Buffer(out), Arg::I32(100)]);
        let expected: Vec<i32> = (0..100).map(|i| values[i / 32 * 32..=i].iter().sum()).collect();
        assert_eq!(device.download::<i32>(out).unwrap(), expected);
    });
}

#[test]
fn ballots_compact() {
    everywhere("warp", |device, module| {
        let values = Numbers::new(2).floats(77);
        let (input, out) = (device.alloc_from("in", &values), device.alloc("out", 96 * 4));
        let counts = device.alloc("counts", 12);
        let args = [Arg::Buffer(input), Arg::Buffer(out), Arg::Buffer(counts), Arg::I32(77)];
        launch(device, module, "compact", 1, 96, &args);
        let (found, counts) = (device.download::<f32>(out).unwrap(), device.download::<i32>(counts).unwrap());
        for warp in 0..3 {
            let kept: Vec<f32> =
                values[warp * 32..(warp * 32 + 32).min(77)].iter().copied().filter(|v| *v > 0.0).collect();
            assert_eq!(counts[warp] as usize, kept.len());
            assert_eq!(found[warp * 32..][..kept.len()], kept);
        }
    });
}

/// Masks that name a part of the warp, and masks that differ among the lanes of one instruction.
#[test]
fn equal_lanes_find_each_other() {
    everywhere("warp", |device, module| {
        for n in [1usize, 31, 50, 64] {
            let mut numbers = Numbers::new(n as u64);
            let mut values: Vec<i32> = (0..n).map(|_| numbers.below(5) as i32).collect();
            if n == 50 {
                values[32..].fill(3);
            }
            let input = device.alloc_from("in", &values);
            let outs = ["same", "all", "agreed", "sums"].map(|name| device.alloc(name, n * 4));
            let mut args = vec![Arg::Buffer(input)];
            args.extend(outs.map(Arg::Buffer));
            args.push(Arg::I32(n as i32));
            launch(device, module, "matches", n.div_ceil(64), 64, &args);
            let found = outs.map(|out| device.download::<u32>(out).unwrap());
            for i in 0..n {
                let warp = &values[i / 32 * 32..(i / 32 * 32 + 32).min(n)];
                let same = (0..warp.len()).filter(|&j| warp[j] == values[i]).fold(0u32, |mask, j| mask | 1 << j);
                let equal = same.count_ones() as usize == warp.len();
                let expected = [same, if equal { same } else { 0 }, equal.into(), same.count_ones() * values[i] as u32];
                assert_eq!(found.each_ref().map(|found| found[i]), expected);
            }
        }
    });
}

#[test]
fn warps_reduce() {
    everywhere("warp", |device, module| {
        let mut numbers = Numbers::new(5);
        let values: Vec<i32> = (0..64).map(|i| if i < 32 { numbers.bits() as i32 } else { 200 + i }).collect();
        let (input, out) = (device.alloc_from("in", &values), device.alloc("out", 24 * 4));
        launch(device, module, "reductions", 1, 64, &[Arg::Buffer(input), Arg::Buffer(out)]);
        let found = device.download::<i32>(out).unwrap();
        for (warp, found) in values.chunks(32).zip(found.chunks(12)) {
            let unsigned = || warp.iter().map(|v| v.cast_unsigned());
            let expected = [
                warp.iter().fold(0i32, |sum, v| sum.wrapping_add(*v)),
                *warp.iter().min().unwrap(),
                *warp.iter().max().unwrap(),
                unsigned().min().unwrap().cast_signed(),
                unsigned().max().unwrap().cast_signed(),
                warp.iter().fold(-1, |sum, v| sum & v),
                warp.iter().fold(0, |sum, v| sum | v),
                warp.iter().fold(0, |sum, v| sum ^ v),
                i32::from(warp.iter().any(|v| *v > 100)),
                i32::from(warp.iter().all(|v| *v > 0)),
                warp[(warp[0] & 31) as usize],
                -1,
            ];
            assert_eq!(found, expected);
        }
    });
}

#[test]
fn shuffles_stay_in_segments() {
    everywhere("warp", |device, module| {
        let values: Vec<f64> = Numbers::new(3).floats(64).into_iter().map(|v| f64::from(v) / 3.0).collect();
        let (input, sums, firsts) =
            (device.alloc_from("in", &values), device.alloc("sums", 64), device.alloc("firsts", 512));
        launch(device, module, "segments", 1, 64, &[input, sums, firsts].map(Arg::Buffer));
        let (sums, firsts) = (device.download::<f64>(sums).unwrap(), device.download::<f64>(firsts).unwrap());
        for (segment, values) in values.chunks(8).enumerate() {
            let by_four: Vec<f64> = (0..4).map(|i| values[i] + values[i + 4]).collect();
            let expected = (by_four[0] + by_four[2]) + (by_four[1] + by_four[3]);
            assert_eq!(sums[segment], expected);
            assert!(firsts[segment * 8..][..8].iter().all(|first| *first == values[0]));
        }
    });
}
