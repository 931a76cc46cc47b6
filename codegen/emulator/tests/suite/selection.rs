//! Radix select of the k largest.

use shadowllm_emulator::{Arg, Device, Error, Module};

use crate::support::{Numbers, everywhere, try_launch};

/// Runs `topk` and checks the list; shared with the mutants.
pub fn check_topk(device: &mut Device, module: &Module, scores: &[f32], k: usize) -> Result<bool, Error> {
    let buffer = device.alloc_from("scores", scores);
    device.set_read_only(buffer, true)?;
    let budget = device.alloc_from("budget", &[k as i32]);
    let (list, count) = (device.alloc("list", scores.len().min(k) * 4), device.alloc("count", 4));
    let args = [
        Arg::Buffer(buffer),
        Arg::I32(scores.len() as i32),
        Arg::Buffer(budget),
        Arg::Buffer(list),
        Arg::Buffer(count),
    ];
    try_launch(device, module, "topk", 1, 256, &args)?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let mut expected: Vec<i32> = order[..k.min(scores.len())].iter().map(|&i| i as i32).collect();
    expected.sort_unstable();
    Ok(device.download::<i32>(list)? == expected && device.download::<i32>(count)? == [expected.len() as i32])
}

/// Scores and budgets with everything that makes selection hard.
pub fn cases() -> Vec<(Vec<f32>, usize)> {
    let mut numbers = Numbers::new(1);
    let random = numbers.floats(1000);
    let ties: Vec<f32> = (0..700).map(|_| numbers.below(4) as f32 - 1.0).collect();
    let huge: Vec<f32> = (0..300).map(|_| numbers.unit() * 3e38).collect();
    vec![
        (random.clone(), 100),
        (random.clone(), 1),
        (random[..257].to_vec(), 257),
        (random[..5].to_vec(), 9),
        (ties.clone(), 333),
        (ties, 1),
        (vec![0.25; 600], 257),
        (huge, 31),
        (vec![-0.0, 0.0, -0.0, 0.0], 2),
        (random[..64].to_vec(), 0),
    ]
}

#[test]
fn the_largest_are_selected_and_ties_go_to_the_smaller_index() {
    everywhere("topk", |device, module| {
        for (scores, k) in cases() {
            assert!(check_topk(device, module, &scores, k).unwrap(), "{k} of {}", scores.len());
        }
    });
}
