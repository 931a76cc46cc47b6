//! Sums and maxima over blocks: barriers, shared memory, fences.

use shadowllm_emulator::Arg;

use crate::support::{Numbers, bits, everywhere, launch};

/// The sum of a warp by shuffles down.
fn warp_sum(mut lanes: [f32; 32]) -> f32 {
    for step in [16, 8, 4, 2, 1] {
        lanes = std::array::from_fn(|lane| lanes[lane] + lanes[if lane + step < 32 { lane + step } else { lane }]);
    }
    lanes[0]
}

#[test]
fn block_sums_are_exact() {
    everywhere("reduce", |device, module| {
        for (n, grid, block) in [(1usize, 1usize, 32usize), (1000, 3, 128), (64, 2, 64), (5000, 2, 1024), (0, 1, 64)] {
            let values = Numbers::new(n as u64).floats(n);
            let (input, out) = (device.alloc_from("in", &values), device.alloc("out", grid * 4));
            let args = [Arg::Buffer(input), Arg::Buffer(out), Arg::I32(n as i32)];
            launch(device, module, "block_sum", grid, block, &args);
            let expected: Vec<f32> = (0..grid)
                .map(|b| {
                    let thread =
                        |t: usize| (b * block + t..n).step_by(grid * block).fold(0.0, |sum, i| sum + values[i]);
                    let warp = |w: usize| warp_sum(std::array::from_fn(|lane| thread(w * 32 + lane)));
                    warp_sum(std::array::from_fn(|w| if w < block / 32 { warp(w) } else { 0.0 }))
                })
                .collect();
            assert_eq!(bits(&device.download(out).unwrap()), bits(&expected), "{n} values");
        }
    });
}

#[test]
fn trees_use_dynamic_shared_memory() {
    everywhere("reduce", |device, module| {
        for (n, block) in [(1usize, 32usize), (250, 64), (256, 256)] {
            let values = Numbers::new(n as u64).floats(n);
            let grid = n.div_ceil(block);
            let (input, out) = (device.alloc_from("in", &values), device.alloc("out", grid * 4));
            let args = [Arg::Buffer(input), Arg::Buffer(out), Arg::I32(n as i32)];
            let counters = device
                .launch(module, "tree_sum", [grid as u32, 1, 1], [block as u32, 1, 1], block as u32 * 4, &args)
                .unwrap();
            let expected: Vec<f32> = (0..grid)
                .map(|b| {
                    let mut tree: Vec<f32> =
                        (0..block).map(|t| values.get(b * block + t).copied().unwrap_or(0.0)).collect();
                    while tree.len() > 1 {
                        let half = tree.len() / 2;
                        tree = (0..half).map(|i| tree[i] + tree[i + half]).collect();
                    }
                    tree[0]
                })
                .collect();
            assert_eq!(bits(&device.download(out).unwrap()), bits(&expected));
            assert_eq!(counters.barriers, grid as u64 * (1 + u64::from(block.ilog2())));
        }
    });
}

#[test]
fn warps_talk_through_shared_memory() {
    everywhere("reduce", |device, module| {
        let values = Numbers::new(4).floats(200);
        let (input, out) = (device.alloc_from("in", &values), device.alloc("out", 8 * 4));
        launch(device, module, "warp_tree_max", 2, 128, &[Arg::Buffer(input), Arg::Buffer(out), Arg::I32(200)]);
        let expected: Vec<f32> = (0..8)
            .map(|w| {
                values[(w * 32).min(200)..(w * 32 + 32).min(200)].iter().copied().fold(f32::NEG_INFINITY, f32::max)
            })
            .collect();
        assert_eq!(device.download::<f32>(out).unwrap(), expected);
    });
}

#[test]
fn blocks_vote() {
    everywhere("reduce", |device, module| {
        let mut values = Numbers::new(6).floats(256);
        values[64..128].fill(1.0);
        values[128..192].fill(-1.0);
        let input = device.alloc_from("in", &values);
        let outs = [device.alloc("counts", 16), device.alloc("all", 16), device.alloc("any", 16)];
        let mut args = vec![Arg::Buffer(input)];
        args.extend(outs.map(Arg::Buffer));
        args.push(Arg::I32(250));
        launch(device, module, "block_vote", 4, 64, &args);
        let found = outs.map(|out| device.download::<i32>(out).unwrap());
        for block in 0..4 {
            let count = (block * 64..block * 64 + 64).filter(|&i| i < 250 && values[i] > 0.0).count() as i32;
            let expected = [count, i32::from(count == 64), i32::from(count > 0)];
            assert_eq!(found.each_ref().map(|found| found[block]), expected);
        }
    });
}

/// The last block adds up what the others wrote: right, and free of races, since fences and the counter order it.
#[test]
fn the_last_block_sees_the_others() {
    everywhere("reduce", |device, module| {
        let values = Numbers::new(8).floats(300);
        let input = device.alloc_from("in", &values);
        let (partial, finished) = (device.alloc("partial", 5 * 4), device.alloc_from("finished", &[0u32]));
        let out = device.alloc("out", 4);
        let args = [input, partial, finished, out].map(Arg::Buffer);
        let args: Vec<Arg> = args.into_iter().chain([Arg::I32(300)]).collect();
        launch(device, module, "last_block_sum", 5, 64, &args);
        let expected = values.chunks(64).fold(0.0f32, |sum, part| sum + part.iter().fold(0.0f32, |sum, v| sum + v));
        assert_eq!(device.download::<f32>(out).unwrap(), [expected]);
        assert_eq!(device.download::<u32>(finished).unwrap(), [5]);
    });
}
