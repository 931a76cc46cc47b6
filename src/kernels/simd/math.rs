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

/// `x * sigmoid(x)`; see [`crate::kernels::activate`] for the bound.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.sub(s.zero(), x));
    s.div(x, s.add(s.splat(1.0), e))
}

/// `x * Phi(x)`, the exact GELU.
///
/// With `z = |x| / sqrt(2)` and `t = 1 / (1 + 0.4 z)`, `erfc(z) = t Q(t) e^(-z^2)` where `Q` has a relative error of 2e-8
/// for `z <= 10`. The tail is computed as itself, never as a difference from 1, so small results are as accurate as large.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    const Q: [f32; 10] = [
        0.225_716_86,
        0.224_748_67,
        0.216_689_39,
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
    let phi = s.select_le(s.zero(), x, s.sub(s.splat(1.0), half_erfc), half_erfc);
    s.mul(x, phi)
}

/// The tanh form of GELU, `x/2 (1 + tanh(u))` with `u = sqrt(2/pi) (x + 0.044715 x^3)`, computed as `x * sigmoid(2u)`.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    const TWO_SQRT_2_OVER_PI: f32 = 1.595_769_1;
    let x2 = s.mul(x, x);
    let u2 = s.mul(s.mul(x, s.splat(TWO_SQRT_2_OVER_PI)), s.fma(x2, s.splat(0.044_715), s.splat(1.0)));
    let e = exp(s, s.sub(s.zero(), u2));
    s.div(x, s.add(s.splat(1.0), e))
}

/// `max(x, 0)`; NaN stays NaN.
#[inline(always)]
pub(crate) fn relu<S: Simd>(s: S, x: S::V) -> S::V {
    s.max(s.zero(), x)
}
