//! Threads that go their own ways, and threads that meet at one address.

use shadowllm_emulator::Arg;

use crate::support::{Numbers, everywhere, launch};

#[test]
fn loops_end_lane_by_lane() {
    everywhere("divergent", |device, module| {
        for n in [1usize, 32, 100] {
            let values: Vec<u32> = (1..=n as u32).map(|i| i * 7 % 97 + 1).collect();
            let (input, steps) = (device.alloc_from("in", &values), device.alloc("steps", n * 4));
            let args = [Arg::Buffer(input), Arg::Buffer(steps), Arg::I32(n as i32)];
            launch(device, module, "collatz", n.div_ceil(64), 64, &args);
            let expected: Vec<u32> = values
                .iter()
                .map(|&v| {
                    let (mut v, mut count) = (v, 0);
                    while v != 1 && count < 200 {
                        v = if v & 1 == 1 { 3 * v + 1 } else { v / 2 };
                        count += 1;
                    }
                    count
                })
                .collect();
            assert_eq!(device.download::<u32>(steps).unwrap(), expected);
        }
    });
}

#[test]
fn switches_branch_eight_ways() {
    everywhere("divergent", |device, module| {
        let mut numbers = Numbers::new(2);
        let values: Vec<i32> = (0..90).map(|_| numbers.bits() as i32 >> 4).collect();
        let (input, out) = (device.alloc_from("in", &values), device.alloc("out", 360));
        launch(device, module, "switched", 3, 32, &[Arg::Buffer(input), Arg::Buffer(out), Arg::I32(90)]);
        let expected: Vec<i32> = values
            .iter()
            .map(|&v| match v & 7 {
                0 => v.wrapping_mul(3),
                1 => v / 7,
                2 => v % 5,
                3 => -v,
                4 => v ^ 0x55,
                5 => v << 3,
                6 => v >> 2,
                _ => v.abs(),
            })
            .collect();
        assert_eq!(device.download::<i32>(out).unwrap(), expected);
    });
}

#[test]
fn nested_loops_break_and_continue() {
    everywhere("divergent", |device, module| {
        let out = device.alloc("out", 40 * 4);
        launch(device, module, "triangle", 1, 64, &[Arg::Buffer(out), Arg::I32(40)]);
        let expected: Vec<i32> = (0..40)
            .map(|i| (0..i).filter(|a| a % 3 != 1).map(|a| (0..=a).take_while(|b| (a ^ b) != 5).sum::<i32>()).sum())
            .collect();
        assert_eq!(device.download::<i32>(out).unwrap(), expected);
    });
}

#[test]
fn arrays_of_a_thread_are_its_own() {
    everywhere("divergent", |device, module| {
        let mut numbers = Numbers::new(3);
        let values: Vec<i32> = (0..500).map(|_| numbers.below(100) as i32).collect();
        let (input, out) = (device.alloc_from("in", &values), device.alloc("out", 2000));
        launch(device, module, "local_sort", 2, 32, &[Arg::Buffer(input), Arg::Buffer(out), Arg::I32(500)]);
        let mut expected = values.clone();
        expected.chunks_mut(12).for_each(<[i32]>::sort);
        assert_eq!(device.download::<i32>(out).unwrap(), expected);
    });
}

#[test]
fn modules_have_variables() {
    everywhere("divergent", |device, module| {
        let values: Vec<i32> = (0..70).map(|i| i * 3).collect();
        let (input, out) = (device.alloc_from("in", &values), device.alloc("out", 280));
        let args = [Arg::Buffer(input), Arg::Buffer(out), Arg::I32(70)];
        launch(device, module, "lookup", 2, 64, &args);
        launch(device, module, "lookup", 2, 64, &args);
        let table = [0.5f32, 1.0, -2.0, 4.0, 0.125, 3.0, -7.5, 9.0];
        let expected: Vec<f32> = values.iter().map(|v| table[*v as usize & 7]).collect();
        assert_eq!(device.download::<f32>(out).unwrap(), expected);
        let visits = module.variable("visits").unwrap();
        assert_eq!(device.download::<i32>(visits).unwrap(), [140]);
    });
}

#[test]
fn histograms_count() {
    everywhere("atomics", |device, module| {
        let mut numbers = Numbers::new(4);
        let values: Vec<u8> = (0..1001).map(|_| (numbers.below(16) * numbers.below(16)) as u8).collect();
        let (input, counts) = (device.alloc_from("in", &values), device.alloc_from("counts", &[0u32; 256]));
        launch(device, module, "histogram", 3, 96, &[Arg::Buffer(input), Arg::Buffer(counts), Arg::I32(1001)]);
        let mut expected = [0u32; 256];
        values.iter().for_each(|v| expected[usize::from(*v)] += 1);
        assert_eq!(device.download::<u32>(counts).unwrap(), expected);
    });
}

#[test]
fn atomics_do_what_they_say() {
    everywhere("atomics", |device, module| {
        let mut numbers = Numbers::new(5);
        let values: Vec<i32> = (0..77).map(|_| numbers.bits() as i32).collect();
        let start = [0, 0, -1, 0, 0, 0, 0, 3, 3, 0, -1];
        let (input, out) = (device.alloc_from("in", &values), device.alloc_from("out", &start));
        launch(device, module, "extremes", 2, 64, &[Arg::Buffer(input), Arg::Buffer(out), Arg::I32(77)]);
        let sum = values.iter().fold(0i32, |sum, v| sum.wrapping_add(*v));
        let unsigned = || values.iter().map(|v| v.cast_unsigned());
        let expected = [
            values.iter().copied().fold(0, i32::min),
            values.iter().copied().fold(0, i32::max),
            values.iter().fold(-1, |all, v| all & v),
            values.iter().fold(0, |all, v| all | v),
            values.iter().fold(0, |all, v| all ^ v),
            sum,
            sum.wrapping_neg(),
            // 77 steps around a cycle of ten.
            (3 + 77) % 10,
            (3 - 77i32).rem_euclid(10),
            unsigned().max().unwrap().cast_signed(),
            unsigned().min().unwrap().cast_signed(),
        ];
        assert_eq!(device.download::<i32>(out).unwrap(), expected);
    });
}

#[test]
fn floats_are_added_atomically() {
    everywhere("atomics", |device, module| {
        // Small integers: the sum is the same in any order.
        let values: Vec<f32> = (0..100).map(|i| (i % 17) as f32 - 5.0).collect();
        let input = device.alloc_from("in", &values);
        let (sum, wide) = (device.alloc_from("sum", &[0.0f32]), device.alloc_from("wide", &[0.0f64]));
        let count = device.alloc_from("count", &[u64::from(u32::MAX)]);
        let args = [input, sum, wide, count].map(Arg::Buffer);
        let args: Vec<Arg> = args.into_iter().chain([Arg::I32(100)]).collect();
        launch(device, module, "float_sum", 2, 64, &args);
        let expected: f32 = values.iter().sum();
        assert_eq!(device.download::<f32>(sum).unwrap(), [expected]);
        assert_eq!(device.download::<f64>(wide).unwrap(), [f64::from(expected)]);
        assert_eq!(device.download::<u64>(count).unwrap(), [u64::from(u32::MAX) + 100]);
    });
}

#[test]
fn compare_and_swap_finds_the_maximum() {
    everywhere("atomics", |device, module| {
        let values = Numbers::new(6).floats(60);
        let input = device.alloc_from("in", &values);
        let top = device.alloc_from("top", &[f32::NEG_INFINITY]);
        let tickets = device.alloc_from("tickets", &[u32::MAX; 61]);
        let args = [Arg::Buffer(input), Arg::Buffer(top), Arg::Buffer(tickets), Arg::I32(60)];
        launch(device, module, "float_max", 1, 64, &args);
        let expected = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(device.download::<f32>(top).unwrap(), [expected]);
        // Everybody took the ticket of the one before: together with the last they are all there.
        let mut tickets = device.download::<u32>(tickets).unwrap();
        tickets.sort_unstable();
        assert_eq!(tickets, (0..60).chain([u32::MAX]).collect::<Vec<_>>());
    });
}
