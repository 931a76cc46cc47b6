//! Counters, on accesses whose cost is known.

use shadowllm_emulator::{Arg, Counters, Device, Schedule};

/// Counts of one warp that runs `body` with %r0 = lane, %rd1 = a buffer of 64 KiB, %rd2 = shared memory of 16 KiB, all zero.
fn counters(body: &str) -> Counters {
    let text = format!(
        ".version 8.8\n.target sm_80\n.address_size 64\n.shared .align 16 .b8 s[16384];\n
        .visible .entry k(.param .u64 p) {{
            .reg .pred %p<4>; .reg .b16 %h<4>; .reg .b32 %r<9>; .reg .b64 %rd<9>;
            mov.u32 %r0, %laneid; ld.param.u64 %rd1, [p]; mov.u64 %rd2, s; mov.u32 %r1, 0; mov.u64 %rd5, 0;
            {body}
            ret;
        }}"
    );
    let mut device = Device::new();
    let module = device.load(&text).unwrap();
    let data = device.alloc_from("data", &vec![0u8; 65536]);
    device.launch(&module, "k", [1, 1, 1], [32, 1, 1], 0, &[Arg::Buffer(data)]).unwrap()
}

/// Bytes between lanes, bytes of an access, and what a store to shared memory then costs.
#[test]
fn banks_conflict_as_they_do() {
    for (stride, bytes, wavefronts) in
        [(4, 4, 1), (8, 4, 2), (128, 4, 32), (132, 4, 1), (64, 4, 16), (8, 8, 2), (16, 16, 4), (32, 16, 8), (2, 2, 1)]
    {
        let registers = match bytes {
            2 => "u16 [%rd3], %h1",
            4 => "u32 [%rd3], %r1",
            8 => "u64 [%rd3], %rd5",
            _ => "v4.u32 [%rd3], {%r1, %r1, %r1, %r1}",
        };
        let counted = counters(&format!(
            "mov.u16 %h1, 0; mul.wide.u32 %rd3, %r0, {stride}; add.s64 %rd3, %rd3, %rd2; st.shared.{registers};"
        ));
        assert_eq!(counted.shared_store_wavefronts, wavefronts, "{bytes} bytes, {stride} apart");
        assert_eq!(counted.shared_stores, 1);
    }
    // All lanes read one word: one round.
    let counted = counters(
        "setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [%rd2], %r1; bar.warp.sync -1; ld.shared.u32 %r2, [%rd2];",
    );
    assert_eq!((counted.shared_load_wavefronts, counted.shared_loads), (1, 1));
}

/// Bytes between lanes, bytes of an access, sectors.
#[test]
fn sectors_are_counted() {
    for (stride, vector, bytes, sectors) in [
        (4, "u32 %r2", 4, 4),
        (16, "v4.u32 {%r2, %r3, %r4, %r5}", 16, 16),
        (32, "u32 %r2", 4, 32),
        (0, "u32 %r2", 4, 1),
        (1024, "u32 %r2", 4, 32),
    ] {
        let counted = counters(&format!(
            "mul.wide.u32 %rd3, %r0, {stride}; add.s64 %rd3, %rd3, %rd1; ld.global.{vector}, [%rd3]; ld.global.{vector}, [%rd3];"
        ));
        let traffic = counted.buffer("data").unwrap();
        assert_eq!(traffic.read_sectors, 2 * sectors, "{stride}");
        assert_eq!(traffic.distinct_read_sectors, sectors, "{stride}");
        assert_eq!((traffic.read_bytes, traffic.loads, traffic.narrowest_load), (64 * bytes, 2, bytes));
    }
    // Lanes in reverse, and pairs that swap: the order does not matter.
    let counted = counters(
        "xor.b32 %r2, %r0, 31; mul.wide.u32 %rd3, %r2, 4; add.s64 %rd3, %rd3, %rd1; ld.global.u32 %r3, [%rd3];
         bar.warp.sync -1; xor.b32 %r2, %r0, 9; mul.wide.u32 %rd3, %r2, 4; add.s64 %rd3, %rd3, %rd1; st.global.u32 [%rd3], %r1;",
    );
    assert_eq!((counted.global.read_sectors, counted.global.written_sectors), (4, 4));
    assert_eq!(counted.global.distinct_written_sectors, 4);
}

#[test]
fn instructions_are_counted_per_warp_and_lane() {
    // Five of the frame, a comparison, a guarded move of three lanes, and the return.
    let counted = counters("setp.lt.u32 %p1, %r0, 3; @%p1 mov.u32 %r2, 1;");
    assert_eq!((counted.warp_instructions, counted.lane_instructions), (8, 7 * 32 + 3));
    assert_eq!((counted.blocks, counted.warps, counted.barriers), (1, 1, 0));
}

/// The same seed gives the same run, counters and all.
#[test]
fn schedules_repeat() {
    let text = crate::support::ptx("topk", "sm_80");
    let scores: Vec<f32> = crate::support::Numbers::new(3).floats(700);
    let run = |schedule: Schedule| {
        let mut device = Device::new();
        device.set_schedule(schedule);
        let module = device.load(&text).unwrap();
        let (scores, budget) = (device.alloc_from("scores", &scores), device.alloc_from("budget", &[99]));
        let (list, count) = (device.alloc("list", 400), device.alloc("count", 4));
        let args = [Arg::Buffer(scores), Arg::I32(700), Arg::Buffer(budget), Arg::Buffer(list), Arg::Buffer(count)];
        let counters = device.launch(&module, "topk", [1, 1, 1], [256, 1, 1], 0, &args).unwrap();
        (counters, device.download::<i32>(list).unwrap())
    };
    for schedule in [Schedule::InOrder, Schedule::Random(5)] {
        assert_eq!(run(schedule), run(schedule));
    }
    assert_eq!(run(Schedule::InOrder).1, run(Schedule::Random(6)).1);
}
