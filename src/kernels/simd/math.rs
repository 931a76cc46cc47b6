//! Transcendental functions on vectors. The same polynomials on every instruction set, so that results differ only by the
//! rounding of `fma`.
//!
//! The coefficients are Chebyshev interpolants computed for this file; the bounds are tested against `f64`.

use super::Simd;

/// `e^x` with at most 2 ULP of error wherever the result is normal, subnormal results within 2 ULP of the smallest
/// normal's; exactly 0 below -104, infinity above 88.73, NaN for NaN.
///
/// `x = n ln 2 + r` with integral `n` and `|r| <= ln(2)/2`, then `e^x = 2^n (1 + r + r^2 P(r))`.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    /// Adding and subtracting it rounds to an integer, ties to even.
    const ROUND: f32 = 12_582_912.0;
    /// `ln 2` in two parts, the first with enough trailing zeros that `n * LN2_HIGH` is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = s.min(s.splat(89.0), s.max(s.splat(-105.0), x));
    let n = s.sub(s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND)), s.splat(ROUND));
    let r = s.fma(n, s.splat(-LN2_HIGH), x);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let mut p = s.splat(0.001_392_619_1);
    p = s.fma(p, r, s.splat(0.008_363_185));
    p = s.fma(p, r, s.splat(0.041_666_556));
    p = s.fma(p, r, s.splat(0.166_665_77));
    p = s.fma(p, r, s.splat(0.5));
    let e = s.add(s.splat(1.0), s.fma(s.mul(r, r), p, r));
    s.scale(e, n)
}

/// `1 + e^-x`, what a sigmoid divides by.
#[inline(always)]
fn one_plus_exp<S: Simd>(s: S, x: S::V) -> S::V {
    s.add(s.splat(1.0), exp(s, s.sub(s.zero(), x)))
}

/// `x * sigmoid(x)`; see [`crate::kernels::activate`] for the bound.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    s.div(x, one_plus_exp(s, x))
}

/// [`silu`] and its derivative, `sigmoid(x) * (1 + x * sigmoid(-x))`.
#[inline(always)]
pub(crate) fn silu_slope<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let value = silu(s, x);
    let one = s.splat(1.0);
    let sigmoid = s.div(one, one_plus_exp(s, x));
    // 1 - sigmoid as a function of its own: a difference would lose it for large x, where it is multiplied by x.
    let rest = s.div(one, one_plus_exp(s, s.sub(s.zero(), x)));
    (value, s.fma(value, rest, sigmoid))
}

/// `Phi(x)`, the normal distribution, and `e^(-x^2/2)`.
///
/// With `z = |x| / sqrt(2)` and `t = 1 / (1 + 0.4 z)`, `erfc(z) = t Q(t) e^(-z^2)` where `Q` has a relative error of 2e-8
/// for `z <= 10`. The tail is computed as itself, never as a difference from 1, so small results are as accurate as large.
#[inline(always)]
fn normal<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    const Q: [f32; 10] = [
        0.225_716_86,
        0.224_748_67,
        0.216_689_4,
        0.121_059_984,
        0.297_973_2,
        -0.334_311_87,
        0.609_342_2,
        -0.546_502_6,
        0.218_785_35,
        -0.033_501_126,
    ];
    let z = s.mul(s.abs(x), s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = s.div(s.splat(1.0), s.fma(z, s.splat(0.4), s.splat(1.0)));
    let mut q = s.splat(Q[9]);
    for &c in Q[..9].iter().rev() {
        q = s.fma(q, t, s.splat(c));
    }
    // x^2/2 rather than z^2: the rounding of z would be magnified by z.
    let gauss = exp(s, s.mul(s.mul(x, x), s.splat(-0.5)));
    let half_erfc = s.mul(s.mul(s.splat(0.5), t), s.mul(q, gauss));
    (s.select_le(s.zero(), x, s.sub(s.splat(1.0), half_erfc), half_erfc), gauss)
}

/// `x * Phi(x)`, the exact GELU.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    s.mul(x, normal(s, x).0)
}

/// [`gelu`] and its derivative, `Phi(x) + x e^(-x^2/2) / sqrt(2 pi)`.
#[inline(always)]
pub(crate) fn gelu_slope<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    const FRAC_1_SQRT_2_PI: f32 = 0.398_942_3;
    let (phi, gauss) = normal(s, x);
    (s.mul(x, phi), s.fma(s.mul(x, s.splat(FRAC_1_SQRT_2_PI)), gauss, phi))
}

const TWO_SQRT_2_OVER_PI: f32 = 1.595_769_2;

/// `2u` of [`gelu_tanh`].
#[inline(always)]
fn twice_u<S: Simd>(s: S, x: S::V) -> S::V {
    let x2 = s.mul(x, x);
    s.mul(s.mul(x, s.splat(TWO_SQRT_2_OVER_PI)), s.fma(x2, s.splat(0.044_715), s.splat(1.0)))
}

/// The tanh form of GELU, `x/2 (1 + tanh(u))` with `u = sqrt(2/pi) (x + 0.044715 x^3)`, computed as `x * sigmoid(2u)`.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    s.div(x, one_plus_exp(s, twice_u(s, x)))
}

/// [`gelu_tanh`] and its derivative, `sigmoid(2u) * (1 + x * sigmoid(-2u) * 2u')`.
#[inline(always)]
pub(crate) fn gelu_tanh_slope<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let one = s.splat(1.0);
    let u = twice_u(s, x);
    let value = s.div(x, one_plus_exp(s, u));
    let sigmoid = s.div(one, one_plus_exp(s, u));
    let rest = s.div(one, one_plus_exp(s, s.sub(s.zero(), u)));
    let slope = s.mul(s.splat(TWO_SQRT_2_OVER_PI), s.fma(s.mul(x, x), s.splat(3.0 * 0.044_715), one));
    (value, s.fma(value, s.mul(rest, slope), sigmoid))
}

/// `max(x, 0)`; NaN stays NaN.
#[inline(always)]
pub(crate) fn relu<S: Simd>(s: S, x: S::V) -> S::V {
    s.max(s.zero(), x)
}

/// [`relu`] and its derivative, 0 at 0.
#[inline(always)]
pub(crate) fn relu_slope<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    (relu(s, x), s.select_le(x, s.zero(), s.zero(), s.splat(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::isa::Kernel;
    use crate::kernels::testing::{cpu, on_every_isa, values};
    use crate::kernels::{Compute, IsaName};

    struct Exp<'a>(&'a mut [f32]);

    impl Kernel for Exp<'_> {
        type Out = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for x in self.0.chunks_mut(S::LANES) {
                let y = exp(s, s.load_slice(x));
                s.store_slice(x, y);
            }
        }
    }

    /// Every 64th `f32` of the range where the result is neither 0 nor infinite, and both ends.
    fn exp_is_within_2_ulp(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        let (most, least) = (88.722_83f32, -103.9f32);
        let mut inputs: Vec<f32> = (0..=most.to_bits()).step_by(64).map(f32::from_bits).collect();
        inputs.extend((0x8000_0000..=least.to_bits()).step_by(64).map(f32::from_bits));
        inputs.extend([most, least]);
        let mut outputs = inputs.clone();
        cpu.run(Exp(&mut outputs));
        for (&x, &y) in inputs.iter().zip(&outputs) {
            let exact = f64::from(x).exp();
            // The spacing of f32 at the result, that of the smallest normal below it.
            let ulp = 2f64.powi((exact.log2().floor() as i32).max(-126) - 23);
            let error = (f64::from(y) - exact).abs() / ulp;
            assert!(error <= 2.0, "exp({x:e}) = {y:e}, {error} ULP");
        }
    }

    fn exp_has_its_limits(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        let mut x = [f32::NAN, f32::INFINITY, 88.8, 1e30, f32::NEG_INFINITY, -104.1, -1e30, 0.0];
        cpu.run(Exp(&mut x));
        assert!(x[0].is_nan());
        assert_eq!(x[1..], [f32::INFINITY, f32::INFINITY, f32::INFINITY, 0.0, 0.0, 0.0, 1.0]);
    }

    struct DotPairs<'a>(&'a [f32], &'a [f32]);

    impl Kernel for DotPairs<'_> {
        type Out = Vec<f32>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut out = vec![0.0; S::LANES];
            let sum = s.dot_pairs(s.splat(1.0), s.load_slice(self.0), s.load_slice(self.1));
            s.store_slice(&mut out, sum);
            out
        }
    }

    fn pairs_are_multiplied_and_added(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        let halves = |seed| values(seed, 32).into_iter().map(half::bf16::from_f32).collect::<Vec<_>>();
        let words = |halves: &[half::bf16]| {
            let pair = |p: &[half::bf16]| f32::from_bits(u32::from(p[0].to_bits()) | u32::from(p[1].to_bits()) << 16);
            halves.chunks_exact(2).map(pair).collect::<Vec<_>>()
        };
        let (w, x) = (halves(1), halves(2));
        for out in [cpu.run(DotPairs(&words(&w), &words(&x))), cpu.run_bf16(DotPairs(&words(&w), &words(&x)))] {
            for (i, sum) in out.into_iter().enumerate() {
                let product = |j: usize| w[j].to_f64() * x[j].to_f64();
                let exact = 1.0 + product(2 * i) + product(2 * i + 1);
                assert!((f64::from(sum) - exact).abs() <= 1e-6, "lane {i}: {sum} instead of {exact}");
            }
        }
    }

    on_every_isa!(exp_is_within_2_ulp, exp_has_its_limits, pairs_are_multiplied_and_added);
}
