//! What compilers write rarely: each on its own.

use half::{bf16, f16};
use shadowllm_emulator::{Arg, Device, Schedule};

/// Runs `body` with `threads` threads, where %r0 = thread, %rd1 = a buffer of words with `data` in it, %rd3 = the thread's own word.
fn run(declarations: &str, body: &str, threads: u32, data: &[u32]) -> Result<Vec<u32>, String> {
    let text = format!(
        ".version 8.8\n.target sm_80\n.address_size 64\n{declarations}\n
        .visible .entry k(.param .u64 p) {{
            .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %rd<9>;
            mov.u32 %r0, %tid.x; ld.param.u64 %rd1, [p]; mad.wide.u32 %rd3, %r0, 4, %rd1;
            {body}
            ret;
        }}"
    );
    let mut results = Vec::new();
    for schedule in [Schedule::InOrder, Schedule::Reversed, Schedule::Random(3)] {
        let mut device = Device::new();
        device.set_schedule(schedule);
        let module = device.load(&text).map_err(|error| error.to_string())?;
        let buffer = device.alloc_from("data", data);
        let launched = device.launch(&module, "k", [1, 1, 1], [threads, 1, 1], 64, &[Arg::Buffer(buffer)]);
        launched.map_err(|error| error.to_string())?;
        results.push(device.download::<u32>(buffer).map_err(|error| error.to_string())?);
    }
    assert!(results.iter().all(|result| *result == results[0]), "results depend on the schedule");
    Ok(results.swap_remove(0))
}

#[test]
fn generic_addresses_lead_to_every_space() {
    let body = "mov.u64 %rd4, s; cvta.shared.u64 %rd4, %rd4; mov.u64 %rd5, l; cvta.local.u64 %rd5, %rd5; .local .align 4 .b8 l[8];
        mad.wide.u32 %rd4, %r0, 4, %rd4;
        st.u32 [%rd4], 5; st.u32 [%rd5+4], 6;
        cvta.to.shared.u64 %rd6, %rd4; ld.shared.u32 %r1, [%rd6]; ld.local.u32 %r2, [l+4];
        isspacep.shared %p1, %rd4; selp.u32 %r3, 100, 0, %p1;
        isspacep.global %p2, %rd1; selp.u32 %r4, 1000, 0, %p2;
        isspacep.local %p3, %rd1; selp.u32 %r5, 10000, 0, %p3;
        add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, %r3; add.u32 %r1, %r1, %r4; add.u32 %r1, %r1, %r5;
        st.u32 [%rd3], %r1;";
    assert_eq!(run(".shared .align 8 .b8 s[64];", body, 3, &[0; 3]), Ok(vec![1111; 3]));
}

/// Half of the addresses in shared memory, half in a buffer: one instruction, two places.
#[test]
fn one_load_may_go_to_two_places() {
    let body = "mov.u64 %rd4, s; cvta.shared.u64 %rd4, %rd4; mad.wide.u32 %rd4, %r0, 4, %rd4; st.u32 [%rd4], 9;
        and.b32 %r1, %r0, 1; setp.eq.u32 %p1, %r1, 0; selp.b64 %rd5, %rd4, %rd3, %p1; ld.u32 %r2, [%rd5]; st.global.u32 [%rd3], %r2;";
    assert_eq!(run(".shared .align 8 .b8 s[64];", body, 4, &[1, 2, 3, 4]), Ok(vec![9, 2, 9, 4]));
}

#[test]
fn narrow_loads_fill_with_sign_or_zero() {
    let body =
        "ld.global.s8 %r1, [%rd3]; ld.global.u8 %r2, [%rd3]; ld.global.s16 %h1, [%rd3]; ld.global.s8 %h2, [%rd3+1];
        cvt.s32.s16 %r3, %h1; cvt.u32.u16 %r4, %h2; add.s32 %r1, %r1, %r2; add.s32 %r1, %r1, %r3; add.s32 %r1, %r1, %r4;
        bar.warp.sync 1; st.global.u32 [%rd3], %r1;";
    let value = 0x1234_80ffu32;
    let expected = (-1i32 + 255 + i32::from(0x80ffu16 as i16) + 0xff80).cast_unsigned();
    assert_eq!(run("", body, 1, &[value]), Ok(vec![expected]));
}

#[test]
fn braces_have_registers_of_their_own() {
    let body = "mov.u32 %r1, 1; { .reg .b32 %r<3>; .reg .pred q; mov.u32 %r1, 7; setp.eq.u32 q, %r1, 7; @q st.global.u32 [%rd3+4], %r1; }
        st.global.u32 [%rd3], %r1;";
    assert_eq!(run("", body, 1, &[0, 0]), Ok(vec![1, 7]));
}

#[test]
fn branch_tables_jump() {
    let body = "rem.u32 %r1, %r0, 3; T: .branchtargets A, B, C; brx.idx %r1, T;
        A: mov.u32 %r2, 10; bra.uni D; B: mov.u32 %r2, 20; bra.uni D; C: mov.u32 %r2, 30; D: st.global.u32 [%rd3], %r2;";
    assert_eq!(run("", body, 5, &[0; 5]), Ok(vec![10, 20, 30, 10, 20]));
}

/// The two sides of a branch meet in one `__syncwarp`, each at an instruction of its own; what one side wrote the other may read.
#[test]
fn lanes_meet_at_different_instructions() {
    let body = "mov.u64 %rd4, s; mad.wide.u32 %rd5, %r0, 4, %rd4; setp.lt.u32 %p1, %r0, 16; @%p1 bra A;
        st.shared.u32 [%rd5], %r0; bar.warp.sync -1; bra B;
        A: add.u32 %r1, %r0, 100; st.shared.u32 [%rd5], %r1; bar.warp.sync -1;
        B: xor.b32 %r2, %r0, 16; mad.wide.u32 %rd5, %r2, 4, %rd4; ld.shared.u32 %r3, [%rd5]; st.global.u32 [%rd3], %r3;";
    let expected = (0..32u32).map(|lane| if lane < 16 { lane + 16 } else { lane - 16 + 100 }).collect();
    assert_eq!(run(".shared .align 4 .b8 s[128];", body, 32, &[0; 32]), Ok(expected));
}

/// A mask of half a warp orders its members, and nobody else.
#[test]
fn half_a_warp_synchronises_alone() {
    let body = |other: &str| {
        format!(
            "mov.u64 %rd4, s; mad.wide.u32 %rd5, %r0, 4, %rd4; st.shared.u32 [%rd5], %r0;
             setp.lt.u32 %p1, %r0, 16; @!%p1 bra A; bar.warp.sync 0xffff;
             xor.b32 %r2, %r0, {other}; mad.wide.u32 %rd5, %r2, 4, %rd4; ld.shared.u32 %r3, [%rd5]; st.global.u32 [%rd3], %r3; A:"
        )
    };
    let declared = ".shared .align 4 .b8 s[128];";
    let expected = (0..32u32).map(|lane| if lane < 16 { lane ^ 1 } else { 77 }).collect();
    assert_eq!(run(declared, &body("1"), 32, &[77; 32]), Ok(expected));
    assert!(run(declared, &body("16"), 32, &[77; 32]).unwrap_err().contains("of the same warp writes it too"));
}

/// Order is handed on: lane 0 to lane 1, lane 1 to lane 2.
#[test]
fn order_is_transitive() {
    let body = "mov.u64 %rd4, s; setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [%rd4], 42;
        setp.gt.u32 %p2, %r0, 1; @%p2 bra A; bar.warp.sync 3; @%p1 bra C; bra B;
        A: setp.gt.u32 %p3, %r0, 2; @%p3 bra C; B: bar.warp.sync 6;
        setp.eq.u32 %p4, %r0, 2; @!%p4 bra C; ld.shared.u32 %r1, [%rd4]; st.global.u32 [%rd1], %r1; C:";
    assert_eq!(run(".shared .align 4 .b8 s[4];", body, 32, &[0]), Ok(vec![42]));
}

/// Named barriers of two warps each: they order their warps only.
#[test]
fn named_barriers_count_threads() {
    let body = |flip: u32| {
        format!(
            "mov.u64 %rd4, s; mad.wide.u32 %rd5, %r0, 4, %rd4; st.shared.u32 [%rd5], %r0;
             shr.u32 %r1, %r0, 6; add.u32 %r1, %r1, 1; bar.sync %r1, 64;
             xor.b32 %r2, %r0, {flip}; mad.wide.u32 %rd5, %r2, 4, %rd4; ld.shared.u32 %r3, [%rd5]; st.global.u32 [%rd3], %r3;"
        )
    };
    let declared = ".shared .align 4 .b8 s[512];";
    assert_eq!(run(declared, &body(32), 128, &[0; 128]), Ok((0..128).map(|i| i ^ 32).collect()));
    let error = run(declared, &body(64), 128, &[0; 128]).unwrap_err();
    assert!(error.contains("was never written") || error.contains("of another warp writes it too"), "{error}");
}

#[test]
fn threads_that_are_through_are_not_waited_for() {
    let body = "setp.gt.u32 %p1, %r0, 40; @%p1 bra A; bar.sync 0; vote.sync.ballot.b32 %r1, %p1, -1; st.global.u32 [%rd3], 3; A:";
    let expected = (0..64).map(|i| if i <= 40 { 3 } else { 0 }).collect();
    assert_eq!(run("", body, 64, &[0; 64]), Ok(expected));
}

#[test]
fn reductions_and_wide_atomics_update() {
    let body = "red.global.add.u32 [%rd1], 2; atom.global.add.u64 %rd4, [%rd1+8], 1;
        atom.gpu.global.cas.b64 %rd5, [%rd1+16], 0, 5; red.relaxed.gpu.global.max.s32 [%rd1+4], %r0;
        atom.global.add.noftz.f16x2 %r1, [%rd1+24], %r2; atom.global.add.noftz.bf16x2 _, [%rd1+28], %r3;";
    let halves =
        |low: f32, high: f32| u32::from(f16::from_f32(high).to_bits()) << 16 | u32::from(f16::from_f32(low).to_bits());
    let brains = |low: f32, high: f32| {
        u32::from(bf16::from_f32(high).to_bits()) << 16 | u32::from(bf16::from_f32(low).to_bits())
    };
    let body = format!("mov.u32 %r2, {}; mov.u32 %r3, {}; {body}", halves(0.5, -1.0), brains(1.0, 2.0));
    let start = [1, (-9i32).cast_unsigned(), u32::MAX, 0, 0, 0, halves(1.0, 1.0), brains(0.0, 0.0)];
    let expected = vec![17, 7, 7, 1, 5, 0, halves(5.0, -7.0), brains(8.0, 16.0)];
    assert_eq!(run("", &body, 8, &start), Ok(expected));
}

#[test]
fn hints_have_no_effect() {
    let body = "prefetch.global.L2 [%rd1]; nanosleep.u32 20; ld.global.cg.L1::no_allocate.L2::128B.u32 %r1, [%rd3]; .pragma \"nounroll\";
        ld.relaxed.gpu.global.u32 %r2, [%rd3]; add.u32 %r1, %r1, %r2; st.release.sys.global.u32 [%rd3], %r1; fence.acq_rel.gpu; membar.cta;
        fence.sc.cta; discard.global.L2 [%rd1], 128;";
    assert_eq!(run("", body, 2, &[3, 4]), Ok(vec![6, 8]));
}

#[test]
fn special_registers_say_where_a_thread_is() {
    let body = "mov.u32 %r1, %laneid; mov.u32 %r2, %warpid; mov.u32 %r3, %nwarpid; mov.u32 %r4, %lanemask_lt; popc.b32 %r4, %r4;
        mov.u32 %r5, %lanemask_ge; popc.b32 %r5, %r5; mov.u32 %r6, %dynamic_smem_size; mov.u32 %r7, %total_smem_size;
        mad.lo.u32 %r1, %r2, 32, %r1; mad.lo.u32 %r1, %r3, 1000, %r1; add.u32 %r4, %r4, %r5; mad.lo.u32 %r1, %r4, 10000, %r1;
        sub.u32 %r7, %r7, %r6; mad.lo.u32 %r1, %r7, 1000000, %r1; st.global.u32 [%rd3], %r1;";
    let expected = (0..40).map(|thread| 16_322_000 + thread).collect();
    assert_eq!(run(".shared .align 4 .b8 s[16];", body, 40, &[0; 40]), Ok(expected));
}

/// Partial copies and ignored ones are filled up with zeros.
#[test]
fn copies_may_be_partial() {
    let body = "mov.u64 %rd4, s; mad.wide.u32 %rd5, %r0, 8, %rd4; shl.b32 %r1, %r0, 1; setp.eq.u32 %p1, %r0, 3;
        setp.lt.u32 %p2, %r0, 3; @%p2 cp.async.ca.shared.global [%rd5], [%rd1], 8, %r1; @!%p2 cp.async.ca.shared.global [%rd5], [%rd1], 8, %p1;
        cp.async.commit_group; cp.async.wait_group 0; ld.shared.v2.u32 {%r2, %r3}, [%rd5]; add.u32 %r2, %r2, %r3; bar.warp.sync -1; st.global.u32 [%rd3+8], %r2;";
    let start = [0x0403_0201, 0x0807_0605, 0, 0, 0, 0, 0];
    let all = 0x0403_0201 + 0x0807_0605;
    let expected = vec![start[0], start[1], 0, 0x0201, 0x0403_0201, 0, all];
    assert_eq!(run(".shared .align 8 .b8 s[64];", body, 5, &start), Ok(expected));
}

/// A structure by value, read in parts and through its address.
#[test]
fn structures_are_arguments() {
    let text = ".version 8.8\n.target sm_80\n.visible .entry k(.param .u32 a, .param .align 8 .b8 s[16], .param .u64 .ptr .align 4 out) {
        .reg .b32 %r<4>; .reg .b64 %rd<4>; ld.param.u32 %r1, [s]; ld.param.u64 %rd1, [s+8]; mov.b64 %rd2, s; ld.param.u32 %r2, [%rd2+4];
        add.u32 %r1, %r1, %r2; cvt.u32.u64 %r3, %rd1; add.u32 %r1, %r1, %r3; ld.param.u64 %rd3, [out]; st.global.u32 [%rd3], %r1; ret; }";
    let mut device = Device::new();
    let module = device.load(text).unwrap();
    let out = device.alloc("out", 8);
    let bytes: Vec<u8> = [1u64 | 20 << 32, 300].iter().flat_map(|v| v.to_le_bytes()).collect();
    let args = [Arg::U32(0), Arg::Bytes(bytes), Arg::At(out, 4)];
    device.launch(&module, "k", [1, 1, 1], [1, 1, 1], 0, &args).unwrap();
    assert_eq!(device.download::<u32>(out).unwrap(), [u32::MAX, 321]);
}

/// Launches are ordered: what one wrote the next may read, in any block.
#[test]
fn launches_follow_each_other() {
    let text = ".version 8.8\n.target sm_80\n.visible .entry k(.param .u64 p) { .reg .b32 %r<4>; .reg .b64 %rd<4>;
        mov.u32 %r1, %ctaid.x; xor.b32 %r1, %r1, 1; ld.param.u64 %rd1, [p]; mad.wide.u32 %rd2, %r1, 4, %rd1;
        mov.u32 %r2, 1; st.global.u32 [%rd2], %r2; ret; }";
    let mut device = Device::new();
    let module = device.load(text).unwrap();
    let data = device.alloc("data", 8);
    for schedule in [Schedule::InOrder, Schedule::Reversed, Schedule::Random(9)] {
        device.set_schedule(schedule);
        device.launch(&module, "k", [2, 1, 1], [1, 1, 1], 0, &[Arg::Buffer(data)]).unwrap();
    }
    assert_eq!(device.download::<u32>(data).unwrap(), [1, 1]);
}
