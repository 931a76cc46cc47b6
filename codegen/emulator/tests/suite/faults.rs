//! Every message: what is wrong with a text, a request, or the doings of a kernel.

use proptest::prelude::*;
use shadowllm_emulator::{Arg, Device, Error};

use crate::support::ptx;

/// A module of one kernel `k` with the parameters p (an address) and n (a number).
fn text(variables: &str, body: &str) -> String {
    format!(
        ".version 8.8\n.target sm_80\n.address_size 64\n{variables}\n.visible .entry k(.param .u64 p, .param .u32 n)\n{{\n\
         .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %rd<9>;\n\
         ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n]; mov.u32 %r2, %tid.x; mul.wide.u32 %rd2, %r2, 4; add.s64 %rd3, %rd1, %rd2;\n\
         {body}\nret;\n}}\n"
    )
}

/// Launches `body` with `threads` threads on a buffer `data` of 16 words of which the first 8 are written.
fn fault_of(variables: &str, body: &str, blocks: u32, threads: u32) -> String {
    let mut device = Device::new();
    device.set_budget(10_000);
    let module = device.load(&text(variables, body)).unwrap_or_else(|error| panic!("{body}: {error}"));
    let data = device.alloc("data", 64);
    device.upload(data, 0, &[7u32; 8]).unwrap();
    let args = [Arg::Buffer(data), Arg::U32(5)];
    let error = device.launch(&module, "k", [blocks, 1, 1], [threads, 1, 1], 128, &args).unwrap_err();
    assert!(matches!(error, Error::Fault(_)), "{error}");
    error.to_string()
}

/// Faults of kernels: body, blocks, threads, message. The body is line 9.
#[test]
fn faults_say_where_and_what() {
    let shared = ".extern .shared .align 4 .b8 dynamic[];";
    let cases: &[(&str, &str, u32, u32, &str)] = &[
        (
            "",
            "st.global.u32 [%rd3+4], %r1;",
            1,
            16,
            "kernel `k`, PTX line 9 `st.global.u32 [%rd3+4], %r1;`, block (0, 0, 0), thread (15, 0, 0): \
             writes 4 bytes at offset 64 of buffer `data`, which has 64 bytes: out of bounds",
        ),
        (
            "",
            "ld.global.u32 %r3, [%rd3+-4];",
            1,
            1,
            "thread (0, 0, 0): reads 4 bytes at offset -4 of buffer `data`, which has 64 bytes: out of bounds",
        ),
        (
            "",
            "ld.global.v2.u32 {%r3, %r4}, [%rd3];",
            1,
            2,
            "thread (1, 0, 0): reads 8 bytes at offset 4 of buffer `data`: the address must be a multiple of 8",
        ),
        (
            "",
            "ld.global.u32 %r3, [%rd3];",
            1,
            9,
            "thread (8, 0, 0): reads 4 bytes at offset 32 of buffer `data`, of which byte 32 was never written",
        ),
        (
            "",
            "ld.global.u32 %r3, [%rd2];",
            1,
            1,
            "reads 4 bytes at address 0x0, which belongs to no buffer; is the pointer null, freed, or not a pointer?",
        ),
        (
            shared,
            "mul.wide.u32 %rd2, %r2, 4; mov.u64 %rd4, dynamic; add.s64 %rd4, %rd4, %rd2; ld.shared.u32 %r3, [%rd4];",
            1,
            1,
            "reads 4 bytes at offset 0 of shared memory (`dynamic` begins at 0), of which byte 0 was never written \
             (or is on its way by a cp.async that nobody waited for)",
        ),
        (
            shared,
            "mov.u64 %rd4, dynamic; st.shared.u32 [%rd4+128], %r1;",
            1,
            1,
            "writes 4 bytes at offset 128 of shared memory (`dynamic` begins at 0), which has 128 bytes: out of bounds",
        ),
        (
            ".const .align 4 .u32 fixed = 3;",
            "mov.u64 %rd4, fixed; st.global.u32 [%rd4], %r1;",
            1,
            1,
            "writes 4 bytes at offset 0 of variable `fixed`, which is read-only",
        ),
        (
            "",
            "st.global.u32 [%rd1], %r1;",
            1,
            2,
            "thread (1, 0, 0): writes 4 bytes at offset 0 of buffer `data`: race, \
             thread 0 of the same warp writes it too, and no __syncwarp or barrier lies between them",
        ),
        (
            "",
            "setp.eq.u32 %p1, %r2, 0; @%p1 ld.global.u32 %r3, [%rd1]; setp.eq.u32 %p1, %r2, 32; @%p1 st.global.u32 [%rd1], %r1;",
            1,
            64,
            "thread (32, 0, 0): writes 4 bytes at offset 0 of buffer `data`: race, \
             thread 0 of another warp reads it too, and no barrier lies between them",
        ),
        (
            "",
            "atom.global.add.u32 %r3, [%rd1], 1; ld.global.u32 %r3, [%rd1];",
            2,
            1,
            "block (1, 0, 0), thread (0, 0, 0): updates 4 bytes at offset 0 of buffer `data`: race, thread 0 of block 0 reads it too; \
             blocks of a launch have no order (use an atomic, another launch, or a fence and a counter)",
        ),
        (
            "",
            "st.global.u32 [%rd3], %r1; ld.global.nc.u32 %r3, [%rd3];",
            1,
            1,
            "reads 4 bytes at offset 0 of buffer `data` through the read-only cache (ld.global.nc), but this launch writes it; \
             take `const __restrict__` off the pointer",
        ),
        (
            "",
            "setp.lt.u32 %p1, %r2, 5; @%p1 bra A; bar.sync 0; bra B; A: bar.sync 0; B:",
            1,
            32,
            "divergent barrier: lanes 0x0000001f of the warp wait here, lanes 0xffffffe0 never do",
        ),
        (
            "",
            "setp.lt.u32 %p1, %r2, 5; @%p1 bra A; bar.warp.sync 31; bra B; A: bar.sync 0; B:",
            1,
            32,
            "wrong member mask 0x0000001f: lane 5 executes the instruction but is not in its mask",
        ),
        (
            "",
            "setp.lt.u32 %p1, %r2, 32; @%p1 bra A; bar.sync 0; bra B; A: bar.sync 0; B:",
            1,
            64,
            "divergent barrier: 64 threads of the block wait here, 64 are expected; another warp waits at PTX line 9",
        ),
        (
            "",
            "setp.lt.u32 %p1, %r2, 32; @%p1 bra A; bar.sync 1, 64; A:",
            1,
            64,
            "divergent barrier: 32 threads of the block wait here, 64 are expected; another warp waits at PTX line 0",
        ),
        ("", "bar.sync 16;", 1, 32, "barrier 16 does not exist, there are 0 to 15"),
        ("", "bar.sync 1, 48;", 1, 32, "a barrier of 48 threads: the number must be a multiple of 32"),
        (
            "",
            "setp.lt.u32 %p1, %r2, 5; @%p1 bra A; shfl.sync.idx.b32 %r3, %r2, 0, 31, -1; A: bar.warp.sync -1;",
            1,
            32,
            "wrong member mask 0xffffffff: lanes 0x0000001f are named in it but never come to this instruction",
        ),
        (
            "",
            "setp.lt.u32 %p1, %r2, 5; @%p1 bra A; bra B; A: shfl.sync.idx.b32 %r3, %r2, 7, 31, 31; B:",
            1,
            32,
            "thread (0, 0, 0): shuffle reads lane 7, which takes no part in it (mask 0x0000001f)",
        ),
        (
            "",
            "A: add.s32 %r3, %r3, 1; bra A;",
            1,
            32,
            "the launch has executed 10000 warp instructions without an end; is there an endless loop?",
        ),
        ("", "trap;", 1, 1, "the kernel stops itself with `trap`"),
        (
            "",
            "A: B: T: .branchtargets A, B; add.s32 %r3, %r2, 2; brx.idx %r3, T;",
            1,
            1,
            "branch table of 2 targets is read at index 2",
        ),
        (
            shared,
            "mov.u64 %rd4, dynamic; mov.u32 %r3, 5; cp.async.ca.shared.global [%rd4], [%rd1], 4, %r3;",
            1,
            1,
            "a copy of 4 bytes is to read 5; at most 4 are possible",
        ),
    ];
    for (variables, body, blocks, threads, message) in cases {
        let found = fault_of(variables, body, *blocks, *threads);
        assert!(found.contains(message), "{body}\n found: {found}\n expected: {message}");
    }
}

/// A launch that fails leaves the device in use: the next one has its own time and blocks.
#[test]
fn a_device_goes_on_after_a_fault() {
    let mut device = Device::new();
    let module = device.load(&text("", "st.global.u32 [%rd3], %r1;")).unwrap();
    let data = device.alloc("data", 16);
    let args = [Arg::Buffer(data), Arg::U32(5)];
    assert!(device.launch(&module, "k", [1, 1, 1], [5, 1, 1], 0, &args).is_err());
    device.launch(&module, "k", [1, 1, 1], [4, 1, 1], 0, &args).unwrap();
    assert_eq!(device.download::<u32>(data).unwrap(), [5; 4]);
}

/// What the text must not have: statement, message.
#[test]
fn unknown_text_is_refused_with_its_line() {
    let cases = [
        ("frobnicate.b32 %r3, %r1;", "`frobnicate.b32`: unknown opcode `frobnicate`"),
        ("add.wild.s32 %r3, %r1, %r1;", "`add.wild.s32`: `add.wild` of type .s32 is unknown"),
        ("add.s32 %r3, %r1;", "`add.s32`: an operand is missing"),
        ("add.s32 %r3, %r1, %r1, %r1;", "`add.s32`: has 4 operands, expected 3"),
        ("add.s32 %r3, %r1, %rd1;", "`add.s32`: register `%rd1` has 64 bits, expected 32"),
        ("add.s32 %r3, %r1, %p1;", "`add.s32`: `%p1` is a predicate, expected a register of 32 bits"),
        ("add.s32 %r3, %r1, %r99;", "`add.s32`: `%r99` is no register of 32 bits"),
        ("add.s32 %r99, %r1, %r1;", "`add.s32`: register `%r99` is not declared"),
        ("add.s32 5, %r1, %r1;", "`add.s32`: a register of 32 bits was expected as result"),
        ("add.s16 %h3, %h1, 70000;", "`add.s16`: constant 70000 does not fit into 16 bits"),
        ("add.ftz.s32 %r3, %r1, %r1;", "`add.ftz.s32`: `.ftz` makes no sense for integers"),
        ("add.ftz.f16 %h3, %h1, %h1;", "`add.ftz.f16`: `.ftz` of 16-bit floats is not emulated"),
        ("add.s32 %r3, %r1, %r1", "found `ret`, expected `;`"),
        ("add.s32 %r3, %r1, ;", "found `;`, expected an operand"),
        ("@%r1 bra A; A:", "`bra`: `%r1` is no predicate"),
        ("@%q bra A; A:", "`bra`: register `%q` is not declared"),
        ("bra Nowhere;", "`bra`: label `Nowhere` is nowhere in the kernel"),
        ("A: A:", "label `A` is set twice"),
        ("bra 5;", "`bra`: a label was expected as operand"),
        ("brx.idx %r1, T;", "`brx.idx`: branch table `T` is nowhere in the kernel"),
        ("setp.less.s32 %p1, %r1, %r1;", "`setp.less.s32`: comparison `.less` of type .s32 is unknown"),
        ("setp.lo.s32 %p1, %r1, %r1;", "`setp.lo.s32`: comparison `.lo` of type .s32 is unknown"),
        ("selp.b8 %h1, %h1, %h1, %p1;", "`selp.b8`: type .b8 cannot be selected"),
        ("mov.u8 %h1, 3;", "`mov.u8`: type .u8 cannot be moved"),
        ("mov.b32 %r1, {%h1, %h2, %h3};", "`mov.b32`: 3 parts do not make 32 bits"),
        ("mov.u32 %r1, nothing;", "`mov.u32`: `nothing` is no register of 32 bits"),
        ("cvt.s32.f32 %r1, %r1;", "`cvt.s32.f32`: float to integer needs one of .rni, .rzi, .rmi, .rpi"),
        ("cvt.f32.s32 %r1, %r1;", "`cvt.f32.s32`: integer to float needs one of .rn, .rz, .rm, .rp"),
        ("cvt.f16.f32 %h1, %r1;", "`cvt.f16.f32`: float to a narrower float needs one of .rn, .rz, .rm, .rp"),
        ("cvt.rn.s32.s16 %r1, %h1;", "`cvt.rn.s32.s16`: integer to integer has no rounding"),
        ("cvt.rna.tf32.f32 %r1, %r1;", "`cvt.rna.tf32.f32`: `.rna` is for tf32, which is not emulated"),
        ("cvt.rn.e4m3x2.f32 %h1, %r1, %r2;", "conversion with type .e4m3x2 is unknown"),
        ("cvt.u32.u64 %r1, %r2;", "`cvt.u32.u64`: register `%r2` is too narrow for 64 bits"),
        ("cvta.u64 %rd1, %rd1;", "`cvta.u64`: a state space such as .global was expected"),
        ("ld.global.wild.u32 %r1, [%rd1];", "`ld.global.wild.u32`: type .wild is unknown"),
        ("ld.global.u32 %r1, %rd1;", "`ld.global.u32`: an address in brackets was expected as operand"),
        ("ld.global.u32 %r1, [nothing];", "`ld.global.u32`: `nothing` is neither a register nor a variable"),
        ("ld.global.v4.u32 {%r1, %r2}, [%rd1];", "`ld.global.v4.u32`: 2 registers for 4 elements"),
        ("ld.global.v4.u64 %rd1, [%rd1];", "`ld.global.v4.u64`: an access has at most 16 bytes"),
        ("ld.shared.nc.u32 %r1, [%rd1];", "`ld.shared.nc.u32`: `.nc` is for global memory"),
        ("ld.release.gpu.u32 %r1, [%rd1];", "`ld.release.gpu.u32`: loads acquire, stores release"),
        ("st.const.u32 [%rd1], %r1;", "`st.const.u32`: constants and parameters cannot be written"),
        ("atom.global.mul.u32 %r1, [%rd1], %r1;", "operation `.mul` of type .u32 is unknown"),
        ("atom.local.add.u32 %r1, [%rd1], %r1;", "atomics work on global and shared memory"),
        ("cp.async.cg.shared.global [%rd1], [%rd1], 8;", "`.cg` copies 16 bytes"),
        ("cp.async.ca.shared.global [%rd1], [%rd1], 5;", "4, 8 or 16 bytes were expected"),
        ("cp.async.wait_group %r1;", "a number of groups was expected as operand"),
        ("cp.async.bulk.wait_group 0;", "found `.bulk`, expected .ca, .cg"),
        ("bar.arrive 0, 64;", "`bar.arrive`: found `.arrive`, expected .sync, .red"),
        ("bar.sync 0, 64, 3;", "`bar.sync`: has 3 operands, expected 2"),
        ("shfl.up.b32 %r1, %r1, 1, 31;", "`shfl.up.b32`: found `.up`, expected .sync"),
        ("redux.sync.add.f32 %r1, %r1, -1;", "found `.f32`, expected .u32, .s32, .b32"),
        ("redux.sync.and.u32 %r1, %r1, -1;", "reduction `.and` of type .u32 is unknown"),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r1,%r2,%r3}, {%r1,%r2,%r3,%r4}, {%r1,%r2}, {%r1,%r2,%r3,%r4};",
            "a fragment of 3 registers, expected 4",
        ),
        ("lop3.b32 %r1, %r1, %r1, %r1, 300;", "a table of 8 bits was expected as last operand"),
        ("call.uni foo;", "functions are not emulated, mark them `__forceinline__` (and don't print)"),
        (".reg .b128 %q<2>;", "registers of type `.b128` are unknown, expected .pred or a type of 16, 32 or 64 bits"),
        (".reg .b32 %q<70000>;", "registers of a kind, at most 65535 fit"),
        (".shared .align 3 .b8 x[8];", "alignment 3 of `x` is no power of two up to 1048576"),
        (".shared .b8 x[8]; .shared .b8 x[8];", "`x` is declared twice"),
        ("mov.u32 %r1, 0f3F8;", "`0f3F8` is no f32: `0f` and eight hexadecimal digits were expected"),
        ("mov.u64 %rd1, 0d3F8;", "`0d3F8` is no f64: `0d` and sixteen hexadecimal digits were expected"),
        ("mov.u64 %rd1, 99999999999999999999;", "`99999999999999999999` is no integer of at most 64 bits"),
        ("mov.u32 %r1, #;", "character '#' has no place in PTX"),
        (".pragma \"open;\n", "string is not closed; expected `\"` before the end of the line"),
    ];
    for (body, message) in cases {
        let error = Device::new().load(&text("", body)).unwrap_err().to_string();
        assert!(error.starts_with("PTX line 9: ") || error.starts_with("PTX line 10: "), "{body}: {error}");
        assert!(error.contains(message), "{body}\n found: {error}\n expected: {message}");
    }
}

/// Texts that are no module of kernels.
#[test]
fn modules_must_be_complete() {
    let cases = [
        ("", "PTX line 1: no `.target` found; this isn't the text of a PTX module"),
        ("hello", "PTX line 1: found `hello`, expected a directive such as `.version` or `.entry`"),
        (
            ".version 8.8\n.target sm_80\n.address_size 32",
            "PTX line 3: found `32`, expected 64: kernels of 32-bit addresses are not emulated",
        ),
        (
            ".target sm_80\n.func f() {}",
            "PTX line 2: found `.func`, expected kernels only: functions are not emulated, mark them `__forceinline__`",
        ),
        (
            ".target sm_80\n.extern .global .b8 x[4];",
            "only dynamic shared memory (`.extern .shared x[]`) may be external",
        ),
        (
            ".target sm_80\n.global .u32 x = y;",
            "PTX line 2: found `y`, expected a number (addresses in initial values are not emulated)",
        ),
        (".target sm_80\n.global .u32 x[1] = {1, 2};", "variable `x` has more initial values than elements"),
        (".target sm_80\n.global .b8 x[99999999999];", "variable `x` is larger than 4 GiB"),
        (".target sm_80\n.entry k(.param .u64 a", "the text ends, expected `)`"),
        (".target sm_80\n.entry k(.u64 a)", "found `.u64`, expected `.param`"),
        (
            ".target sm_80\n.entry k() .wild {}",
            "found `.wild`, expected `.maxntid`, `.reqntid`, `.minnctapersm`, `.maxnreg` or `{`",
        ),
        (".target sm_80\n.entry k() { ret;", "the text ends, expected an instruction, a label or a directive"),
        (".target sm_80\n/* open", "PTX line 2: comment is not closed; expected `*/`"),
    ];
    for (text, message) in cases {
        let error = Device::new().load(text).unwrap_err().to_string();
        assert!(error.contains(message), "{text}\n found: {error}\n expected: {message}");
    }
}

/// Requests to the device that can't be met.
#[test]
fn requests_are_checked() {
    let mut device = Device::new();
    let limits = ".target sm_80 .visible .entry bounded() .maxntid 64, 1, 1 { ret; } \
                  .visible .entry exact() .reqntid 32 { ret; } .visible .entry k(.param .u64 p, .param .u32 n) { ret; }";
    let module = device.load(limits).unwrap();
    assert_eq!(module.kernels().collect::<Vec<_>>(), ["bounded", "exact", "k"]);
    let data = device.alloc_from("data", &[1u8; 10]);
    let gone = device.alloc("gone", 4);
    device.free(gone).unwrap();
    let mut launch = |kernel: &str, grid: [u32; 3], block: [u32; 3], shared: u32, args: &[Arg]| {
        device.launch(&module, kernel, grid, block, shared, args).unwrap_err().to_string()
    };
    let one = [1, 1, 1];
    let found = [
        launch("none", one, one, 0, &[]),
        launch("k", one, one, 0, &[]),
        launch("k", one, one, 0, &[Arg::U32(1), Arg::U32(1)]),
        launch("k", one, one, 0, &[Arg::Buffer(data), Arg::Bytes(vec![0; 8])]),
        launch("k", one, one, 0, &[Arg::Buffer(gone), Arg::U32(1)]),
        launch("bounded", one, [65, 1, 1], 0, &[]),
        launch("exact", one, [31, 1, 1], 0, &[]),
        launch("bounded", [0, 1, 1], one, 0, &[]),
        launch("bounded", one, [32, 33, 1], 0, &[]),
        launch("bounded", [1 << 20, 8, 1], one, 0, &[]),
        launch("bounded", one, one, 1 << 20, &[]),
        device.download::<u32>(data).unwrap_err().to_string(),
        device.upload(data, 8, &[0u8; 3]).unwrap_err().to_string(),
        device.download_bytes(gone, 0, 1).unwrap_err().to_string(),
    ];
    let expected = [
        "the module has no kernel `none`; it has bounded, exact, k",
        "kernel `k` takes 2 arguments, 0 were given",
        "argument 0 of kernel `k` has 8 bytes, the launch gives 4",
        "argument 1 of kernel `k` has 4 bytes, the launch gives 8",
        "buffer number 1 is unknown to this device; it was freed, or belongs to another device",
        "launch of kernel `bounded`: a block of 65 threads, but its launch bounds allow 64",
        "launch of kernel `exact`: a block of 31 threads, but the kernel requires 32",
        "launch of kernel `bounded`: grid [0, 1, 1] of blocks [1, 1, 1] is empty; every size must be at least 1",
        "launch of kernel `bounded`: a block of 1056 threads; at most 1024 are possible",
        "launch of kernel `bounded`: 8388608 blocks; the emulator takes fewer than 4194304",
        "launch of kernel `bounded`: 1048576 bytes of shared memory; at most 232448 are possible",
        "buffer `data` of 10 bytes is no whole number of elements of 4 bytes",
        "copy of 3 bytes at offset 8 does not fit into buffer `data` of 10 bytes; check offset and length",
        "buffer number 1 is unknown to this device; it was freed, or belongs to another device",
    ];
    assert_eq!(found, expected.map(str::to_string));
    device.copy(data, 0, data, 5, 5).unwrap();
    assert_eq!(device.size(data).unwrap(), 10);
    assert!(device.address(data).unwrap() > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Text with a piece exchanged is refused with its line, or is another module; nothing panics.
    #[test]
    fn damaged_text_never_panics(
        fixture in prop::sample::select(vec!["topk", "warp", "tensor_core", "arithmetic", "divergent", "async_copy"]),
        place in any::<prop::sample::Index>(),
        length in 0usize..12,
        piece in "[-%a-z0-9.,;:@!|+={}()<>\\[\\] _$\n]{0,8}",
    ) {
        let mut text = ptx(fixture, "sm_80");
        let start = place.index(text.len());
        text.replace_range(start..(start + length).min(text.len()), &piece);
        match Device::new().load(&text) {
            Ok(module) => prop_assert!(module.kernels().count() < 10),
            Err(error) => prop_assert!(error.to_string().starts_with("PTX line ")),
        }
    }
}
