//! Instructions one by one, against Rust and `half`, on values that proptest chooses.

use half::{bf16, f16};
use proptest::prelude::*;
use shadowllm_emulator::{Arg, Device, Module};

/// A kernel that applies `body` to registers a, b, c of 32 or 64 bits (`r` or `rd`) of each of 32 threads.
fn module(device: &mut Device, body: &str) -> Module {
    let text = format!(
        ".version 8.8\n.target sm_90\n.address_size 64\n
        .visible .entry apply(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 out) {{
            .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<16>; .reg .b64 %rd<16>; .reg .b64 %a<8>;
            mov.u32 %r0, %tid.x;
            ld.param.u64 %a1, [a]; mad.wide.u32 %a1, %r0, 8, %a1; ld.global.b64 %rd1, [%a1];
            ld.param.u64 %a2, [b]; mad.wide.u32 %a2, %r0, 8, %a2; ld.global.b64 %rd2, [%a2];
            ld.param.u64 %a3, [c]; mad.wide.u32 %a3, %r0, 8, %a3; ld.global.b64 %rd3, [%a3];
            cvt.u32.u64 %r1, %rd1; cvt.u32.u64 %r2, %rd2; cvt.u32.u64 %r3, %rd3;
            cvt.u16.u64 %h1, %rd1; cvt.u16.u64 %h2, %rd2; cvt.u16.u64 %h3, %rd3;
            mov.u64 %rd4, 0; mov.u32 %r4, 0;
            {body}
            ld.param.u64 %a4, [out]; mad.wide.u32 %a4, %r0, 8, %a4; st.global.b64 [%a4], %rd4;
            ret;
        }}"
    );
    device.load(&text).unwrap_or_else(|error| panic!("{body}: {error}"))
}

/// Applies `body` to 32 triples.
fn apply(body: &str, values: &[[u64; 3]]) -> Vec<u64> {
    let mut device = Device::new();
    let module = module(&mut device, body);
    let column = |i: usize| values.iter().map(|v| v[i]).collect::<Vec<_>>();
    let mut args: Vec<Arg> = (0..3).map(|i| Arg::Buffer(device.alloc_from("operand", &column(i)))).collect();
    let out = device.alloc("out", values.len() * 8);
    args.push(Arg::Buffer(out));
    device.launch(&module, "apply", [1, 1, 1], [values.len() as u32, 1, 1], 0, &args).unwrap();
    device.download(out).unwrap()
}

/// Bits of all kinds: random ones, small integers, floats near each other, special values.
fn operand() -> impl Strategy<Value = u64> {
    let special32 = prop::sample::select(vec![
        0u32,
        1,
        0x8000_0000,
        0x7fff_ffff,
        u32::MAX,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x3f80_0000,
        0xbf00_0000,
        0x0000_0001,
        0x007f_ffff,
        0x7f7f_ffff,
        0x7c00_3c00,
        0x8001_0001,
        0x4b80_0001,
        31,
        32,
        33,
    ]);
    prop_oneof![
        3 => any::<u64>(),
        2 => 0u64..70,
        2 => (-100.0f32..100.0).prop_map(|v| u64::from(v.to_bits()) << 32 | u64::from(v.to_bits())),
        2 => (-100.0f64..100.0).prop_map(f64::to_bits),
        2 => (special32.clone(), special32).prop_map(|(a, b)| u64::from(a) << 32 | u64::from(b)),
        1 => any::<u64>().prop_map(|v| v >> (v & 63)),
    ]
}

fn triples() -> impl Strategy<Value = Vec<[u64; 3]>> {
    prop::collection::vec([operand(), operand(), operand()], 32)
}

/// The canonical NaN, or the bits.
fn single(value: f32) -> u64 {
    u64::from(if value.is_nan() { 0x7fff_ffff } else { value.to_bits() })
}

fn s(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn i(bits: u64) -> i32 {
    bits as i32
}

fn u(bits: u64) -> u32 {
    bits as u32
}

fn h(bits: u64) -> f16 {
    f16::from_bits(bits as u16)
}

fn b(bits: u64) -> bf16 {
    bf16::from_bits(bits as u16)
}

fn of_h(value: f16) -> u64 {
    u64::from(if value.is_nan() { 0x7fff } else { value.to_bits() })
}

fn of_b(value: bf16) -> u64 {
    u64::from(if value.is_nan() { 0x7fff } else { value.to_bits() })
}

fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}

/// What an instruction computes from its three operands.
type Meaning = fn(u64, u64, u64) -> u64;

/// Instructions of 32-bit operands and results.
#[rustfmt::skip]
const WORDS: &[(&str, Meaning)] = &[
    ("add.s32 %r4, %r1, %r2;", |a, b, _| u(a).wrapping_add(u(b)).into()),
    ("sub.u32 %r4, %r1, %r2;", |a, b, _| u(a).wrapping_sub(u(b)).into()),
    ("add.sat.s32 %r4, %r1, %r2;", |a, b, _| i(a).saturating_add(i(b)).cast_unsigned().into()),
    ("sub.sat.s32 %r4, %r1, %r2;", |a, b, _| i(a).saturating_sub(i(b)).cast_unsigned().into()),
    ("mul.lo.s32 %r4, %r1, %r2;", |a, b, _| u(a).wrapping_mul(u(b)).into()),
    ("mul.hi.u32 %r4, %r1, %r2;", |a, b, _| (u64::from(u(a)) * u64::from(u(b))) >> 32),
    ("mul.hi.s32 %r4, %r1, %r2;", |a, b, _| ((i64::from(i(a)) * i64::from(i(b))) >> 32) as u32 as u64),
    ("mad.lo.u32 %r4, %r1, %r2, %r3;", |a, b, c| u(a).wrapping_mul(u(b)).wrapping_add(u(c)).into()),
    ("mad.hi.u32 %r4, %r1, %r2, %r3;", |a, b, c| (((u64::from(u(a)) * u64::from(u(b))) >> 32) as u32).wrapping_add(u(c)).into()),
    ("mad.hi.s32 %r4, %r1, %r2, %r3;", |a, b, c| (((i64::from(i(a)) * i64::from(i(b))) >> 32) as u32).wrapping_add(u(c)).into()),
    ("div.u32 %r4, %r1, %r2;", |a, b, _| u(a).checked_div(u(b)).unwrap_or(u32::MAX).into()),
    ("div.s32 %r4, %r1, %r2;", |a, b, _| if i(b) == 0 { u32::MAX.into() } else { i(a).wrapping_div(i(b)).cast_unsigned().into() }),
    ("rem.u32 %r4, %r1, %r2;", |a, b, _| u(a).checked_rem(u(b)).unwrap_or(u(a)).into()),
    ("rem.s32 %r4, %r1, %r2;", |a, b, _| if i(b) == 0 { u(a).into() } else { i(a).wrapping_rem(i(b)).cast_unsigned().into() }),
    ("min.s32 %r4, %r1, %r2;", |a, b, _| i(a).min(i(b)).cast_unsigned().into()),
    ("max.u32 %r4, %r1, %r2;", |a, b, _| u(a).max(u(b)).into()),
    ("abs.s32 %r4, %r1;", |a, _, _| i(a).wrapping_abs().cast_unsigned().into()),
    ("neg.s32 %r4, %r1;", |a, _, _| i(a).wrapping_neg().cast_unsigned().into()),
    ("sad.u32 %r4, %r1, %r2, %r3;", |a, b, c| u(c).wrapping_add(u(a).abs_diff(u(b))).into()),
    ("shl.b32 %r4, %r1, %r2;", |a, b, _| if u(b) > 31 { 0 } else { (u(a) << u(b)).into() }),
    ("shr.u32 %r4, %r1, %r2;", |a, b, _| if u(b) > 31 { 0 } else { (u(a) >> u(b)).into() }),
    ("shr.s32 %r4, %r1, %r2;", |a, b, _| (i(a) >> u(b).min(31)).cast_unsigned().into()),
    ("shf.l.wrap.b32 %r4, %r1, %r2, %r3;", |a, b, c| ((u64::from(u(b)) << 32 | u64::from(u(a))) << (c & 31)) >> 32),
    ("shf.r.wrap.b32 %r4, %r1, %r2, %r3;", |a, b, c| (u64::from(u(b)) << 32 | u64::from(u(a))) >> (c & 31) & 0xffff_ffff),
    ("shf.l.clamp.b32 %r4, %r1, %r2, %r3;", |a, b, c| if u(c) >= 32 { u(a).into() } else { ((u64::from(u(b)) << 32 | u64::from(u(a))) << u(c)) >> 32 }),
    ("shf.r.clamp.b32 %r4, %r1, %r2, %r3;", |a, b, c| if u(c) >= 32 { u(b).into() } else { (u64::from(u(b)) << 32 | u64::from(u(a))) >> u(c) & 0xffff_ffff }),
    ("popc.b32 %r4, %r1;", |a, _, _| u(a).count_ones().into()),
    ("clz.b32 %r4, %r1;", |a, _, _| u(a).leading_zeros().into()),
    ("brev.b32 %r4, %r1;", |a, _, _| u(a).reverse_bits().into()),
    ("bfind.u32 %r4, %r1;", |a, _, _| u(a).checked_ilog2().unwrap_or(u32::MAX).into()),
    ("bfind.s32 %r4, %r1;", |a, _, _| (if i(a) < 0 { !u(a) } else { u(a) }).checked_ilog2().unwrap_or(u32::MAX).into()),
    ("bfind.shiftamt.u32 %r4, %r1;", |a, _, _| u(a).checked_ilog2().map_or(u32::MAX, |bit| 31 - bit).into()),
    ("bfe.u32 %r4, %r1, %r2, %r3;", |a, b, c| (0..32).filter(|k| k + (b & 255) < 32 && *k < c & 255).fold(0, |sum, k| sum | (a >> (k + (b & 255)) & 1) << k)),
    ("bfe.s32 %r4, %r1, %r2, %r3;", |a, b, c| {
        let (start, length) = (b & 255, c & 255);
        let sign = if length == 0 { 0 } else { a >> (start + length - 1).min(31) & 1 };
        (0..32).fold(0, |sum, k| sum | (if k < length && start + k < 32 { a >> (start + k) & 1 } else { sign }) << k)
    }),
    ("bfi.b32 %r4, %r1, %r2, %r3, 5;", |a, b, c| (0..32).fold(0, |sum, k| {
        let start = c & 255;
        sum | (if k >= start && k < start + 5 { a >> (k - start) & 1 } else { b >> k & 1 }) << k
    })),
    ("and.b32 %r4, %r1, %r2;", |a, b, _| (u(a) & u(b)).into()),
    ("or.b32 %r4, %r1, %r2;", |a, b, _| (u(a) | u(b)).into()),
    ("xor.b32 %r4, %r1, %r2;", |a, b, _| (u(a) ^ u(b)).into()),
    ("not.b32 %r4, %r1;", |a, _, _| (!u(a)).into()),
    ("cnot.b32 %r4, %r1;", |a, _, _| (u(a) == 0).into()),
    ("lop3.b32 %r4, %r1, %r2, %r3, 0xE8;", |a, b, c| ((u(a) & u(b)) | (u(b) & u(c)) | (u(a) & u(c))).into()),
    ("lop3.b32 %r4, %r1, %r2, %r3, 0x1A;", |a, b, c| {
        let bit = |v: u64, k: u32| v >> k & 1;
        (0..32).fold(0, |sum, k| sum | (0x1A >> (bit(a, k) * 4 + bit(b, k) * 2 + bit(c, k)) & 1) << k)
    }),
    ("prmt.b32 %r4, %r1, %r2, 0xA731;", |a, b, _| {
        let bytes = u64::from(u(b)) << 32 | u64::from(u(a));
        let byte = |k: u32| bytes >> (8 * k) & 255;
        byte(1) | byte(3) << 8 | byte(7) << 16 | ((byte(2) >> 7) * 255) << 24
    }),
    ("prmt.b32.b4e %r4, %r1, %r2, 0;", |a, b, _| {
        let bytes = u64::from(u(b)) << 32 | u64::from(u(a));
        [0, 7, 6, 5].iter().rev().fold(0, |sum, k| sum << 8 | bytes >> (8 * k) & 255)
    }),
    ("mov.b32 {%h1, %h2}, %r1; mov.b32 %r4, {%h2, %h1};", |a, _, _| u(a).rotate_left(16).into()),
    ("add.rn.f32 %r4, %r1, %r2;", |a, b, _| single(s(a) + s(b))),
    ("sub.f32 %r4, %r1, %r2;", |a, b, _| single(s(a) - s(b))),
    ("mul.f32 %r4, %r1, %r2;", |a, b, _| single(s(a) * s(b))),
    ("add.ftz.f32 %r4, %r1, %r2;", |a, b, _| single(flushed(flushed(s(a)) + flushed(s(b))))),
    ("mul.rn.ftz.f32 %r4, %r1, %r2;", |a, b, _| single(flushed(flushed(s(a)) * flushed(s(b))))),
    ("fma.rn.f32 %r4, %r1, %r2, %r3;", |a, b, c| single(s(a).mul_add(s(b), s(c)))),
    ("div.rn.f32 %r4, %r1, %r2;", |a, b, _| single(s(a) / s(b))),
    ("rcp.rn.f32 %r4, %r1;", |a, _, _| single(1.0 / s(a))),
    ("sqrt.rn.f32 %r4, %r1;", |a, _, _| single(s(a).sqrt())),
    ("rsqrt.approx.f32 %r4, %r1;", |a, _, _| single((1.0 / f64::from(s(a)).sqrt()) as f32)),
    ("ex2.approx.f32 %r4, %r1;", |a, _, _| single(f64::from(s(a)).exp2() as f32)),
    ("lg2.approx.f32 %r4, %r1;", |a, _, _| single(f64::from(s(a)).log2() as f32)),
    ("tanh.approx.f32 %r4, %r1;", |a, _, _| single(f64::from(s(a)).tanh() as f32)),
    ("neg.f32 %r4, %r1;", |a, _, _| (u(a) ^ 1 << 31).into()),
    ("abs.f32 %r4, %r1;", |a, _, _| (u(a) & !(1 << 31)).into()),
    ("copysign.f32 %r4, %r1, %r2;", |a, b, _| (u(a) & 1 << 31 | u(b) & !(1 << 31)).into()),
    ("min.f32 %r4, %r1, %r2;", |a, b, _| single(match (s(a).is_nan(), s(b).is_nan()) {
        (true, _) => s(b),
        (_, true) => s(a),
        _ if s(a) == 0.0 && s(b) == 0.0 => if s(a).is_sign_negative() { s(a) } else { s(b) },
        _ => s(a).min(s(b)),
    })),
    ("max.NaN.f32 %r4, %r1, %r2;", |a, b, _| single(match (s(a), s(b)) {
        (x, y) if x.is_nan() || y.is_nan() => f32::NAN,
        (x, y) if x == 0.0 && y == 0.0 => if x.is_sign_positive() { x } else { y },
        (x, y) => x.max(y),
    })),
    ("cvt.rni.s32.f32 %r4, %r1;", |a, _, _| (s(a).round_ties_even() as i32).cast_unsigned().into()),
    ("cvt.rzi.u32.f32 %r4, %r1;", |a, _, _| (s(a) as u32).into()),
    ("cvt.rmi.s32.f32 %r4, %r1;", |a, _, _| (s(a).floor() as i32).cast_unsigned().into()),
    ("cvt.rpi.s32.f32 %r4, %r1;", |a, _, _| (s(a).ceil() as i32).cast_unsigned().into()),
    ("cvt.rn.f32.s32 %r4, %r1;", |a, _, _| single(i(a) as f32)),
    ("cvt.rn.f32.u32 %r4, %r1;", |a, _, _| single(u(a) as f32)),
    ("cvt.sat.f32.f32 %r4, %r1;", |a, _, _| single(if s(a) > 0.0 { s(a).min(1.0) } else { 0.0 })),
    ("cvt.s32.s8 %r4, %r1;", |a, _, _| i32::from(a as i8).cast_unsigned().into()),
    ("cvt.u32.u8 %r4, %r1;", |a, _, _| a & 255),
    ("cvt.sat.s16.s32 %h4, %r1; cvt.s32.s16 %r4, %h4;", |a, _, _| i(a).clamp(-32768, 32767).cast_unsigned().into()),
    ("cvt.f32.f16 %r4, %h1;", |a, _, _| single(h(a).to_f32())),
    ("cvt.f32.bf16 %r4, %h1;", |a, _, _| single(b(a).to_f32())),
    ("cvt.rn.f16x2.f32 %r4, %r1, %r2;", |a, b, _| of_h(f16::from_f32(s(a))) << 16 | of_h(f16::from_f32(s(b)))),
    ("cvt.rn.bf16x2.f32 %r4, %r1, %r2;", |a, x, _| of_b(bf16::from_f32(s(a))) << 16 | of_b(bf16::from_f32(s(x)))),
    ("fma.rn.f16x2 %r4, %r1, %r2, %r3;", |a, b, c| {
        // Exact in f64 unless the exponents are far apart; then one rounding to odd decides.
        let one = |k: u32| of_h(fused_half(h(a >> k), h(b >> k), h(c >> k)));
        one(16) << 16 | one(0)
    }),
    ("mul.bf16x2 %r4, %r1, %r2;", |a, x, _| {
        let one = |k: u32| of_b(bf16::from_f32(b(a >> k).to_f32() * b(x >> k).to_f32()));
        one(16) << 16 | one(0)
    }),
    ("selp.b32 %r4, %r1, %r2, %p1;", |_, b, _| u(b).into()),
    ("dp2a.lo.s32.s32 %r4, %r1, %r2, %r3;", |a, b, c| {
        let sum = i32::from(a as i16) * i32::from(b as i8) + i32::from((a >> 16) as i16) * i32::from((b >> 8) as i8);
        u(c).wrapping_add(sum.cast_unsigned()).into()
    }),
    ("dp2a.hi.u32.s32 %r4, %r1, %r2, %r3;", |a, b, c| {
        let sum = i32::from(a as u16) * i32::from((b >> 16) as i8) + i32::from((a >> 16) as u16) * i32::from((b >> 24) as i8);
        u(c).wrapping_add(sum.cast_unsigned()).into()
    }),
    ("dp4a.u32.s32 %r4, %r1, %r2, %r3;", |a, b, c| {
        (0..4).fold(u(c), |sum, k| sum.wrapping_add((i32::from((a >> (8 * k)) as u8) * i32::from((b >> (8 * k)) as i8)).cast_unsigned())).into()
    }),
];

/// `a b + c` of f16 by integers: all of them are multiples of 2^-48 below 2^33, so 128 bits hold the sum.
fn fused_half(a: f16, b: f16, c: f16) -> f16 {
    if !(a.is_finite() && b.is_finite() && c.is_finite()) {
        return f16::from_f64(a.to_f64().mul_add(b.to_f64(), c.to_f64()));
    }
    let scaled = |v: f16| (v.to_f64() * f64::from(1 << 24)) as i128;
    let sum = scaled(a) * scaled(b) + (scaled(c) << 24);
    if sum == 0 {
        return f16::from_f64(a.to_f64() * b.to_f64() + c.to_f64());
    }
    // Of the two neighbours and the even one: candidates around the f64 value, compared exactly.
    let guess = f16::from_f64((sum as f64) / (1u64 << 48) as f64);
    let near = [guess.to_bits().wrapping_sub(1), guess.to_bits(), guess.to_bits().wrapping_add(1)];
    let distance = |bits: u16| {
        let v = f16::from_bits(bits);
        let value = if v.is_infinite() { f64::from(65536.0f32).copysign(v.to_f64()) } else { v.to_f64() };
        (sum - ((value * f64::from(1 << 24)) as i128 * (1 << 24))).abs()
    };
    let usable = near.into_iter().filter(|&bits| {
        let v = f16::from_bits(bits);
        !v.is_nan() && v.is_sign_negative() == (sum < 0)
    });
    f16::from_bits(usable.min_by_key(|&bits| (distance(bits), bits & 1)).unwrap())
}

/// Instructions of 64-bit operands and results.
#[rustfmt::skip]
const LONGS: &[(&str, Meaning)] = &[
    ("add.s64 %rd4, %rd1, %rd2;", |a, b, _| a.wrapping_add(b)),
    ("sub.u64 %rd4, %rd1, %rd2;", |a, b, _| a.wrapping_sub(b)),
    ("mul.lo.u64 %rd4, %rd1, %rd2;", |a, b, _| a.wrapping_mul(b)),
    ("mul.hi.u64 %rd4, %rd1, %rd2;", |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64),
    ("mul.hi.s64 %rd4, %rd1, %rd2;", |a, b, _| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
    ("mul.wide.u32 %rd4, %r1, %r2;", |a, b, _| u64::from(u(a)) * u64::from(u(b))),
    ("mul.wide.s32 %rd4, %r1, %r2;", |a, b, _| (i64::from(i(a)) * i64::from(i(b))).cast_unsigned()),
    ("mad.wide.s32 %rd4, %r1, %r2, %rd3;", |a, b, c| (i64::from(i(a)) * i64::from(i(b))).cast_unsigned().wrapping_add(c)),
    ("mad.lo.s64 %rd4, %rd1, %rd2, %rd3;", |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
    ("mul.wide.s16 %r4, %h1, %h2; cvt.u64.u32 %rd4, %r4;", |a, b, _| (i32::from(a as i16) * i32::from(b as i16)).cast_unsigned().into()),
    ("div.u64 %rd4, %rd1, %rd2;", |a, b, _| a.checked_div(b).unwrap_or(u64::MAX)),
    ("rem.s64 %rd4, %rd1, %rd2;", |a, b, _| if b == 0 { a } else { (a as i64).wrapping_rem(b as i64).cast_unsigned() }),
    ("min.s64 %rd4, %rd1, %rd2;", |a, b, _| (a as i64).min(b as i64).cast_unsigned()),
    ("shl.b64 %rd4, %rd1, %r2;", |a, b, _| if u(b) > 63 { 0 } else { a << u(b) }),
    ("shr.u64 %rd4, %rd1, %r2;", |a, b, _| if u(b) > 63 { 0 } else { a >> u(b) }),
    ("shr.s64 %rd4, %rd1, %r2;", |a, b, _| (a as i64 >> u(b).min(63)).cast_unsigned()),
    ("popc.b64 %r4, %rd1; cvt.u64.u32 %rd4, %r4;", |a, _, _| a.count_ones().into()),
    ("bfe.u64 %rd4, %rd1, %r2, %r3;", |a, b, c| (0..64).filter(|k| k + (b & 255) < 64 && *k < c & 255).fold(0, |sum, k| sum | (a >> (k + (b & 255)) & 1) << k)),
    ("bfi.b64 %rd4, %rd1, %rd2, %r3, 9;", |a, b, c| (0..64).fold(0, |sum, k| {
        let start = c & 255;
        sum | (if k >= start && k < start + 9 { a >> (k - start) & 1 } else { b >> k & 1 }) << k
    })),
    ("mov.b64 {%r5, %r6}, %rd1; mov.b64 %rd4, {%r6, %r5};", |a, _, _| a.rotate_left(32)),
    ("cvt.s64.s32 %rd4, %r1;", |a, _, _| i64::from(i(a)).cast_unsigned()),
    ("cvt.rn.f64.u64 %rd4, %rd1;", |a, _, _| (a as f64).to_bits()),
    ("cvt.rn.f32.s64 %r4, %rd1; cvt.u64.u32 %rd4, %r4;", |a, _, _| single(a as i64 as f32)),
    ("cvt.rn.f32.f64 %r4, %rd1; cvt.u64.u32 %rd4, %r4;", |a, _, _| single(f64::from_bits(a) as f32)),
    ("cvt.rzi.s64.f64 %rd4, %rd1;", |a, _, _| (f64::from_bits(a) as i64).cast_unsigned()),
    ("cvt.rni.u64.f32 %rd4, %r1;", |a, _, _| s(a).round_ties_even() as u64),
    ("add.f16 %h4, %h1, %h2; cvt.u64.u16 %rd4, %h4;", |a, b, _| of_h(f16::from_f32(h(a).to_f32() + h(b).to_f32()))),
    ("sub.bf16 %h4, %h1, %h2; cvt.u64.u16 %rd4, %h4;", |a, x, _| of_b(bf16::from_f32(b(a).to_f32() - b(x).to_f32()))),
    ("max.bf16 %h4, %h1, %h2; cvt.u64.u16 %rd4, %h4;", |a, x, _| of_b(match (b(a), b(x)) {
        (p, q) if p.is_nan() => q,
        (p, q) if q.is_nan() => p,
        (p, q) if p.to_f32() == q.to_f32() => if p.is_sign_positive() { p } else { q },
        (p, q) => if p > q { p } else { q },
    })),
    ("cvt.rn.f16.f64 %h4, %rd1; cvt.u64.u16 %rd4, %h4;", |a, _, _| {
        // `half` cuts the lower 32 bits off before it rounds: put what they say into the bit above.
        of_h(f16::from_f64_const(f64::from_bits(a | u64::from(a as u32 != 0) << 32)))
    }),
    ("cvt.rn.bf16.f32 %h4, %r1; cvt.u64.u16 %rd4, %h4;", |a, _, _| of_b(bf16::from_f32(s(a)))),
    ("add.s16 %h4, %h1, %h2; cvt.u64.u16 %rd4, %h4;", |a, b, _| (a as u16).wrapping_add(b as u16).into()),
    ("min.s16 %h4, %h1, %h2; cvt.u64.u16 %rd4, %h4;", |a, b, _| ((a as i16).min(b as i16) as u16).into()),
    ("shr.s16 %h4, %h1, %r2; cvt.u64.u16 %rd4, %h4;", |a, b, _| ((a as i16 >> u(b).min(15)) as u16).into()),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn words_are_as_rust_has_them(values in triples()) {
        for (body, meaning) in WORDS {
            let found = apply(&format!("setp.ne.u32 %p1, 0, 0; {body} cvt.u64.u32 %rd4, %r4;"), &values);
            for (found, [a, b, c]) in found.iter().zip(&values) {
                prop_assert_eq!(*found, meaning(*a, *b, *c), "{} of {:#x} {:#x} {:#x}", body, a, b, c);
            }
        }
    }

    #[test]
    fn longs_are_as_rust_has_them(values in triples()) {
        for (body, meaning) in LONGS {
            let found = apply(body, &values);
            for (found, [a, b, c]) in found.iter().zip(&values) {
                prop_assert_eq!(*found, meaning(*a, *b, *c), "{} of {:#x} {:#x} {:#x}", body, a, b, c);
            }
        }
    }

    /// Every comparison of every type, alone and combined with a predicate.
    #[test]
    fn comparisons_know_unordered(values in triples()) {
        use std::cmp::Ordering::{self, Equal, Greater, Less};
        let accepts = |name: &str, order: Option<Ordering>| match name {
            "eq" => order == Some(Equal),
            "ne" => matches!(order, Some(Less | Greater)),
            "lt" | "lo" => order == Some(Less),
            "le" | "ls" => matches!(order, Some(Less | Equal)),
            "gt" | "hi" => order == Some(Greater),
            "ge" | "hs" => matches!(order, Some(Greater | Equal)),
            "equ" => !matches!(order, Some(Less | Greater)),
            "neu" => order != Some(Equal),
            "ltu" => !matches!(order, Some(Greater | Equal)),
            "leu" => order != Some(Greater),
            "gtu" => !matches!(order, Some(Less | Equal)),
            "geu" => order != Some(Less),
            "num" => order.is_some(),
            _ => order.is_none(),
        };
        let ordered = ["eq", "ne", "lt", "le", "gt", "ge"];
        let unordered = ["equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];
        type Order = fn(u64, u64) -> Option<Ordering>;
        let kinds: [(&str, &str, Order); 8] = [
            ("u32", "%r", |a, b| Some(u(a).cmp(&u(b)))),
            ("s32", "%r", |a, b| Some(i(a).cmp(&i(b)))),
            ("s16", "%h", |a, b| Some((a as i16).cmp(&(b as i16)))),
            ("s64", "%rd", |a, b| Some((a as i64).cmp(&(b as i64)))),
            ("f16", "%h", |a, b| h(a).partial_cmp(&h(b))),
            ("bf16", "%h", |a, x| b(a).partial_cmp(&b(x))),
            ("f32", "%r", |a, b| s(a).partial_cmp(&s(b))),
            ("f64", "%rd", |a, b| f64::from_bits(a).partial_cmp(&f64::from_bits(b))),
        ];
        for (kind, register, order) in kinds {
            let float = kind.contains('f');
            let names = ordered.iter().chain(if float { &unordered[..] } else { &[][..] });
            let names: Vec<&str> = names.copied().chain(["lo", "ls", "hi", "hs"].into_iter().filter(|_| kind == "u32")).collect();
            for name in names {
                let body = format!(
                    "setp.{name}.{kind} %p1, {register}1, {register}2;
                     setp.gt.u32 %p2, %r3, 100;
                     setp.{name}.and.{kind} %p3|%p4, {register}1, {register}2, !%p2;
                     selp.u64 %rd4, 1, 0, %p1; selp.u64 %rd5, 2, 0, %p3; selp.u64 %rd6, 4, 0, %p4;
                     or.b64 %rd4, %rd4, %rd5; or.b64 %rd4, %rd4, %rd6;"
                );
                let found = apply(&body, &values);
                for (found, [a, b, c]) in found.iter().zip(&values) {
                    let (is, small) = (accepts(name, order(*a, *b)), u(*c) <= 100);
                    let expected = u64::from(is) | u64::from(is && small) << 1 | u64::from(!is && small) << 2;
                    prop_assert_eq!(*found, expected, "setp.{}.{} of {:#x} {:#x}", name, kind, a, b);
                }
            }
        }
    }

    /// Directed roundings of f32 enclose the exact value: down and up are neighbours, or equal where it is exact.
    #[test]
    fn directed_roundings_enclose(values in triples()) {
        for operation in ["add", "mul", "fma"] {
            let at = |rounding: &str| {
                let third = if operation == "fma" { ", %r3" } else { "" };
                apply(&format!("{operation}.{rounding}.f32 %r4, %r1, %r2{third}; cvt.u64.u32 %rd4, %r4;"), &values)
            };
            let (nearest, zero, down, up) = (at("rn"), at("rz"), at("rm"), at("rp"));
            for k in 0..values.len() {
                let (nearest, zero, down, up) = (s(nearest[k]), s(zero[k]), s(down[k]), s(up[k]));
                if nearest.is_nan() {
                    prop_assert!(zero.is_nan() && down.is_nan() && up.is_nan());
                    continue;
                }
                prop_assert!(down <= nearest && nearest <= up, "{} {:?}", operation, values[k]);
                prop_assert!(down == up || down.next_up() == up, "{} {:?}: {} {}", operation, values[k], down, up);
                prop_assert_eq!(zero, if nearest > 0.0 || down >= 0.0 { down } else { up });
            }
        }
    }
}

/// All f16 to f32 and back, and to bf16: every one of the 65536.
#[test]
fn all_halves_convert() {
    let values: Vec<u16> = (0..=u16::MAX).collect();
    for chunk in values.chunks(1024) {
        let triples: Vec<[u64; 3]> = chunk.iter().map(|&bits| [bits.into(), 0, 0]).collect();
        let found = apply(
            "cvt.f32.f16 %r4, %h1; cvt.rn.f16.f32 %h4, %r4; cvt.rn.bf16.f32 %h5, %r4; mov.b64 %rd4, {%h4, %h5, %h4, %h5};",
            &triples,
        );
        for (&bits, found) in chunk.iter().zip(found) {
            let value = f16::from_bits(bits);
            let expected = of_b(bf16::from_f32(value.to_f32())) << 16 | of_h(value);
            assert_eq!(found, expected << 32 | expected);
        }
    }
}
