//! Mistakes put into kernels that are right: each must be found, by a check or by a wrong result.
//!
//! The mistakes are edits of the PTX of the fixtures, so that no compiler is needed: what a programmer forgets (a barrier, a bound,
//! an atomic) or gets wrong (a mask, a stride). They guard the checks: a change of the emulator that lets one pass is a mistake
//! itself.

use shadowllm_emulator::{Arg, Device, Error, Problem, Schedule};

use crate::support::{Numbers, SCHEDULES, ptx};

/// How a mistake shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    Race,
    Uninitialised,
    OutOfBounds,
    Misaligned,
    ReadOnly,
    Mask,
    Endless,
    /// No check stops it, but the result is another.
    Result,
}

use Shows::{Endless, Mask, Misaligned, OutOfBounds, Race, ReadOnly, Result as Wrong, Uninitialised};

/// An edit of the text of one kernel.
struct Mutant {
    what: &'static str,
    fixture: &'static str,
    kernel: &'static str,
    /// Text to replace, and which of its places in the kernel.
    from: &'static str,
    nth: usize,
    to: &'static str,
    /// What it may show as: that can depend on which warp comes first.
    shows: &'static [Shows],
}

#[rustfmt::skip]
const MUTANTS: &[Mutant] = &[
    Mutant { what: "no barrier after the first stores", fixture: "reduce", kernel: "tree_sum", from: "bar.sync 	0;", nth: 0, to: "", shows: &[Race, Uninitialised] },
    Mutant { what: "no barrier between steps", fixture: "reduce", kernel: "tree_sum", from: "bar.sync 	0;", nth: 1, to: "", shows: &[Race] },
    Mutant { what: "one thread too many in a step", fixture: "reduce", kernel: "tree_sum", from: "setp.ge.u32", nth: 0, to: "setp.gt.u32", shows: &[OutOfBounds, Race] },
    Mutant { what: "a loop that halves nothing", fixture: "reduce", kernel: "tree_sum", from: "shr.u32 	%r10, %r10, 1;", nth: 0, to: "shr.u32 	%r10, %r10, 0;", shows: &[Endless] },
    Mutant { what: "bound off by one", fixture: "elementwise", kernel: "vector_add", from: "setp.ge.s32", nth: 0, to: "setp.gt.s32", shows: &[OutOfBounds] },
    Mutant { what: "stride twice as wide", fixture: "elementwise", kernel: "vector_add", from: "%r1, 4;", nth: 0, to: "%r1, 8;", shows: &[OutOfBounds] },
    Mutant { what: "stride half as wide", fixture: "elementwise", kernel: "vector_add", from: "%r1, 4;", nth: 0, to: "%r1, 2;", shows: &[Misaligned] },
    Mutant { what: "result written over an input", fixture: "elementwise", kernel: "vector_add", from: "st.global.f32 	[%rd10]", nth: 0, to: "st.global.f32 	[%rd8]", shows: &[ReadOnly] },
    Mutant { what: "no barrier between writing a tile and reading it", fixture: "elementwise", kernel: "transpose", from: "bar.sync 	0;", nth: 0, to: "", shows: &[Race, Uninitialised] },
    Mutant { what: "tile written with another pitch than it is read", fixture: "elementwise", kernel: "transpose", from: "68;", nth: 0, to: "64;", shows: &[Race, Uninitialised, Wrong] },
    Mutant { what: "`and` of bounds instead of `or`", fixture: "elementwise", kernel: "transpose", from: "or.pred", nth: 0, to: "and.pred", shows: &[OutOfBounds] },
    Mutant { what: "no barrier before the sums of warps are read", fixture: "reduce", kernel: "block_sum", from: "bar.sync 	0;", nth: 0, to: "", shows: &[Race, Uninitialised] },
    Mutant { what: "member mask of half a warp", fixture: "reduce", kernel: "block_sum", from: "mov.u32 	%r16, -1;", nth: 0, to: "mov.u32 	%r16, 65535;", shows: &[Mask] },
    Mutant { what: "sums of warps that don't exist", fixture: "reduce", kernel: "block_sum", from: "shr.u32 	%r29, %r3, 5;", nth: 0, to: "shr.u32 	%r29, %r3, 4;", shows: &[Uninitialised] },
    Mutant { what: "wrong distance of a shuffle", fixture: "reduce", kernel: "block_sum", from: "mov.u32 	%r15, 16;", nth: 0, to: "mov.u32 	%r15, 15;", shows: &[Wrong] },
    Mutant { what: "every lane stores the sum of its warp", fixture: "reduce", kernel: "block_sum", from: "@%p8 bra 	$L__BB0_5;", nth: 0, to: "", shows: &[Race] },
    Mutant { what: "no __syncwarp between steps", fixture: "reduce", kernel: "warp_tree_max", from: "bar.warp.sync 	-1;", nth: 1, to: "", shows: &[Race] },
    Mutant { what: "__syncwarp of half a warp", fixture: "reduce", kernel: "warp_tree_max", from: "bar.warp.sync 	-1;", nth: 0, to: "bar.warp.sync 	65535;", shows: &[Mask] },
    Mutant { what: "no __syncwarp between reading and writing what is wanted", fixture: "topk", kernel: "topk", from: "bar.warp.sync 	-1;", nth: 0, to: "", shows: &[Race] },
    Mutant { what: "histogram counted without atomics", fixture: "topk", kernel: "topk", from: "atom.shared.add.u32 	%r75, [%rd25], 1;", nth: 0, to: "ld.shared.u32 %r75, [%rd25]; add.s32 %r75, %r75, 1; st.shared.u32 [%rd25], %r75;", shows: &[Race] },
    Mutant { what: "no barrier after the histogram is cleared", fixture: "topk", kernel: "topk", from: "bar.sync 	0;", nth: 0, to: "", shows: &[Race, Uninitialised] },
    Mutant { what: "no barrier after the histogram is filled", fixture: "topk", kernel: "topk", from: "bar.sync 	0;", nth: 1, to: "", shows: &[Race] },
    Mutant { what: "no barrier after the digit is chosen", fixture: "topk", kernel: "topk", from: "bar.sync 	0;", nth: 2, to: "", shows: &[Race] },
    Mutant { what: "digits of a lane counted from another place", fixture: "topk", kernel: "topk", from: "mad.lo.s32 	%r58, %r2, -8, 255;", nth: 0, to: "mad.lo.s32 	%r58, %r2, -4, 255;", shows: &[Wrong, OutOfBounds] },
    Mutant { what: "counts of blocks added without atomics", fixture: "atomics", kernel: "histogram", from: "atom.global.add.u32 	%r20, [%rd18], %r11;", nth: 0, to: "ld.global.u32 %r20, [%rd18]; add.s32 %r20, %r20, %r11; st.global.u32 [%rd18], %r20;", shows: &[Race] },
    Mutant { what: "shared counts not set to zero", fixture: "atomics", kernel: "histogram", from: "st.shared.u32 	[%rd8], %r14;", nth: 0, to: "", shows: &[Uninitialised] },
    Mutant { what: "no barrier before partial maxima are overwritten", fixture: "softmax", kernel: "softmax", from: "bar.sync 	0;", nth: 1, to: "", shows: &[Race] },
    Mutant { what: "waits for one copy too few", fixture: "async_copy", kernel: "tile_sums", from: "cp.async.wait_group 1;", nth: 0, to: "cp.async.wait_group 2;", shows: &[Uninitialised] },
    Mutant { what: "no barrier before a tile is overwritten", fixture: "async_copy", kernel: "tile_sums", from: "bar.sync 	0;", nth: 1, to: "", shows: &[Race, Uninitialised] },
    Mutant { what: "no barrier after a copy has landed", fixture: "async_copy", kernel: "tile_sums", from: "bar.sync 	0;", nth: 0, to: "", shows: &[Race, Uninitialised] },
    Mutant { what: "no fence before the counter of finished blocks", fixture: "reduce", kernel: "last_block_sum", from: "membar.gl;", nth: 0, to: "", shows: &[Race] },
    Mutant { what: "no __syncwarp before fragments are loaded", fixture: "tensor_core", kernel: "mma_bf16", from: "bar.warp.sync 	-1;", nth: 0, to: "", shows: &[Race] },
    Mutant { what: "list read with the stride of pairs", fixture: "row_dot", kernel: "row_dot_bf16", from: "mul.wide.s32 	%rd17, %r2, 4;", nth: 0, to: "mul.wide.s32 	%rd17, %r2, 8;", shows: &[OutOfBounds] },
    Mutant { what: "count of the list not looked at", fixture: "row_dot", kernel: "row_dot_bf16", from: "@%p1 bra 	$L__BB0_9;", nth: 0, to: "", shows: &[OutOfBounds] },
    Mutant { what: "no barrier before the parts of warps are merged", fixture: "attention", kernel: "decode_attention", from: "bar.sync 	0;", nth: 0, to: "", shows: &[Race, Uninitialised] },
];

/// A buffer or number that a kernel is given.
enum Given {
    /// Contents, read-only.
    In(&'static str, Vec<u8>),
    /// Contents that the kernel changes.
    Changed(&'static str, Vec<u8>),
    /// Bytes to write.
    Out(&'static str, usize),
    /// A number.
    Number(i32),
}

/// Grid, block, dynamic shared memory, arguments.
type Case = ([u32; 3], [u32; 3], u32, Vec<Given>);

/// A launch of each kernel whose shape is ragged enough for its mistakes to show.
fn case(kernel: &str) -> Case {
    use Given::{Changed, In, Number, Out};
    let mut numbers = Numbers::new(99);
    let mut floats = |n: usize| -> Vec<u8> { numbers.floats(n).iter().flat_map(|v| v.to_le_bytes()).collect() };
    let words = |values: &[i32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let line = |grid, block| ([grid, 1, 1], [block, 1, 1]);
    let ((grid, block), shared, given) = match kernel {
        "tree_sum" => (line(3, 128), 512, vec![In("in", floats(300)), Out("out", 12), Number(300)]),
        "block_sum" => (line(2, 128), 0, vec![In("in", floats(700)), Out("out", 8), Number(700)]),
        "warp_tree_max" => (line(1, 128), 0, vec![In("in", floats(100)), Out("out", 16), Number(100)]),
        "last_block_sum" => (
            line(4, 64),
            0,
            vec![
                In("in", floats(250)),
                Out("partial", 16),
                Changed("finished", words(&[0])),
                Out("out", 4),
                Number(250),
            ],
        ),
        "vector_add" => {
            (line(2, 64), 0, vec![In("a", floats(100)), In("b", floats(100)), Out("out", 400), Number(100)])
        }
        "transpose" => {
            (([3, 2, 1], [16, 16, 1]), 0, vec![In("in", floats(20 * 37)), Out("out", 80 * 37), Number(20), Number(37)])
        }
        "topk" => (
            line(1, 256),
            0,
            vec![
                // Half of it ties.
                In("scores", [floats(300), floats(1).repeat(300)].concat()),
                Number(600),
                In("budget", words(&[400])),
                Out("list", 1600),
                Out("count", 4),
            ],
        ),
        "histogram" => (
            line(2, 64),
            0,
            vec![
                In("in", (0..500).map(|i| (i * i % 251) as u8).collect()),
                Changed("counts", words(&[0; 256])),
                Number(500),
            ],
        ),
        "softmax" => (line(2, 256), 0, vec![In("in", floats(1000)), Out("out", 4000), Number(500)]),
        "tile_sums" => (line(1, 64), 0, vec![In("in", floats(1300)), Out("out", 256), Number(325), Number(6)]),
        "mma_bf16" => {
            // Floats as pairs of bf16: their lower halves are noise, but finite.
            let finite = |bytes: Vec<u8>| -> Vec<u8> { bytes.iter().map(|b| b & 0xbf).collect() };
            (
                line(1, 32),
                0,
                vec![In("a", finite(floats(512))), In("b", finite(floats(256))), Out("c", 512), Number(64)],
            )
        }
        "row_dot_bf16" => (
            line(2, 128),
            0,
            vec![
                In("weights", floats(9 * 80).iter().map(|b| b & 0xbf).collect()),
                In("x", floats(160)),
                In("list", words(&[8, 0, 3, 5, 1])),
                In("count", words(&[5])),
                Out("out", 20),
                Number(160),
            ],
        ),
        "decode_attention" => (
            line(2, 128),
            0,
            vec![
                In("query", floats(128)),
                In("keys", floats(2 * 70 * 32).iter().map(|b| b & 0xbf).collect()),
                In("values", floats(2 * 70 * 32).iter().map(|b| b & 0xbf).collect()),
                Out("out", 512),
                In("length", words(&[66])),
                Number(70),
            ],
        ),
        other => panic!("no case for {other}"),
    };
    (grid, block, shared, given)
}

/// What the kernel leaves in its buffers.
fn run(text: &str, kernel: &str, schedule: Schedule) -> Result<Vec<Vec<u8>>, Error> {
    let (grid, block, shared, given) = case(kernel);
    let mut device = Device::new();
    device.set_schedule(schedule);
    device.set_budget(100_000);
    let module = device.load(text)?;
    let (mut args, mut outs) = (Vec::new(), Vec::new());
    for given in given {
        args.push(match given {
            Given::Number(value) => Arg::I32(value),
            Given::In(name, bytes) => {
                let buffer = device.alloc_from(name, &bytes);
                device.set_read_only(buffer, true)?;
                Arg::Buffer(buffer)
            }
            Given::Changed(name, bytes) => {
                outs.push(device.alloc_from(name, &bytes));
                Arg::Buffer(outs[outs.len() - 1])
            }
            Given::Out(name, bytes) => {
                outs.push(device.alloc(name, bytes));
                Arg::Buffer(outs[outs.len() - 1])
            }
        });
    }
    device.launch(&module, kernel, grid, block, shared, &args)?;
    outs.into_iter().map(|out| device.download::<u8>(out)).collect()
}

/// The module with the mistake.
fn mutate(text: &str, mutant: &Mutant) -> String {
    let start = text.find(&format!(".entry {}(", mutant.kernel)).expect("the fixture has the kernel");
    let mut at = start;
    for _ in 0..mutant.nth {
        at += text[at..].find(mutant.from).expect(mutant.what) + 1;
    }
    at += text[at..].find(mutant.from).expect(mutant.what);
    let end = start + text[start..].find("\n}").expect("the kernel ends");
    assert!(at < end, "{}: the text is in another kernel", mutant.what);
    format!("{}{}{}", &text[..at], mutant.to, &text[at + mutant.from.len()..])
}

fn kind(problem: &Problem) -> Option<Shows> {
    Some(match problem {
        Problem::Race { .. } | Problem::CachedRead { .. } => Race,
        Problem::Uninitialised { .. } => Uninitialised,
        Problem::OutOfBounds { .. } => OutOfBounds,
        Problem::Misaligned { .. } => Misaligned,
        Problem::ReadOnly { .. } => ReadOnly,
        Problem::NotInMask { .. } | Problem::MissingLanes { .. } | Problem::ShuffleSource { .. } => Mask,
        Problem::Endless { .. } => Endless,
        _ => return None,
    })
}

#[test]
fn every_mistake_is_found_under_every_schedule() {
    assert!(MUTANTS.len() >= 20);
    let mut missed = Vec::new();
    for mutant in MUTANTS {
        for target in ["sm_80", "sm_90"] {
            let text = ptx(mutant.fixture, target);
            let mutated = mutate(&text, mutant);
            for schedule in SCHEDULES {
                let right = run(&text, mutant.kernel, schedule).unwrap_or_else(|e| panic!("{}: {e}", mutant.kernel));
                let shown = match run(&mutated, mutant.kernel, schedule) {
                    Ok(found) if found != right => Some(Wrong),
                    Ok(_) => None,
                    Err(Error::Fault(fault)) => {
                        assert_eq!(fault.kernel, mutant.kernel);
                        Some(kind(&fault.problem).unwrap_or_else(|| panic!("{}: {fault}", mutant.what)))
                    }
                    Err(error) => panic!("{}: {error}", mutant.what),
                };
                if !shown.is_some_and(|shown| mutant.shows.contains(&shown)) {
                    missed.push(format!("{} ({}, {target}, {schedule:?}): {shown:?}", mutant.what, mutant.kernel));
                }
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
