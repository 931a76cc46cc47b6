//! The FFN's non-linearities, in place.

use shadowllm_weights::Activation;

use super::cpu::Cpu;
use super::elementwise::in_pieces;
use super::isa::Kernel;
use super::simd::{Simd, math};

/// A function of one value, chosen at compile time.
trait Function: Copy {
    fn apply<S: Simd>(s: S, x: S::V) -> S::V;
}

macro_rules! functions {
    ($($name:ident => $function:path),*) => {$(
        #[derive(Clone, Copy)]
        struct $name;

        impl Function for $name {
            #[inline(always)]
            fn apply<S: Simd>(s: S, x: S::V) -> S::V {
                $function(s, x)
            }
        }
    )*};
}

functions!(Relu => math::relu, Gelu => math::gelu, GeluTanh => math::gelu_tanh, Silu => math::silu);

/// `x[i] = f(x[i])`, or `f(x[i]) * up[i]`.
struct Activate<'a, F> {
    x: &'a mut [f32],
    up: Option<&'a [f32]>,
    function: std::marker::PhantomData<F>,
}

impl<F: Function> Kernel for Activate<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.up {
            None => {
                for x in self.x.chunks_mut(S::LANES) {
                    let y = F::apply(s, s.load_slice(x));
                    s.store_slice(x, y);
                }
            }
            Some(up) => {
                for (x, up) in self.x.chunks_mut(S::LANES).zip(up.chunks(S::LANES)) {
                    let y = s.mul(F::apply(s, s.load_slice(x)), s.load_slice(up));
                    s.store_slice(x, y);
                }
            }
        }
    }
}

fn run(cpu: &Cpu, activation: Activation, x: &mut [f32], up: Option<&[f32]>) {
    fn piece<F: Function>(cpu: &Cpu, x: &mut [f32], up: Option<&[f32]>) {
        cpu.run(Activate::<F> { x, up, function: std::marker::PhantomData });
    }
    in_pieces(cpu, x, if activation == Activation::Relu { 2 } else { 8 }, |at, x| {
        let up = up.map(|up| &up[at..at + x.len()]);
        match activation {
            Activation::Relu => piece::<Relu>(cpu, x, up),
            Activation::Gelu => piece::<Gelu>(cpu, x, up),
            Activation::GeluTanh => piece::<GeluTanh>(cpu, x, up),
            Activation::Silu => piece::<Silu>(cpu, x, up),
        }
    });
}

/// Applies the activation to every element.
///
/// Against `f64`: ReLU exact; the others `|error| <= (8 + 2g) * 2^-24 * |f(x)| + (4 + |x|) * 2^-128`, where `g`, the size of the
/// exponential's argument, is `|x|` for SiLU, `x^2` for GELU and `|x|^3` for its tanh form. The error is thus relative to the
/// result in the tails, too, until the exponential leaves the range of `f32`. NaN gives NaN.
pub fn activate(cpu: &Cpu, activation: Activation, x: &mut [f32]) {
    run(cpu, activation, x, None);
}

/// The gated FFN's inner: `gate[i] = activation(gate[i]) * up[i]`.
///
/// # Panics
/// If the lengths differ.
pub fn gated(cpu: &Cpu, activation: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up are of the same length");
    run(cpu, activation, gate, Some(up));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{cpu, on_every_isa, values};
    use crate::kernels::{Compute, IsaName};

    const ALL: [Activation; 4] = [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu];

    /// The complementary error function of `z >= 0` in `f64`: a series for small `z`, a continued fraction for large.
    fn erfc(z: f64) -> f64 {
        if z < 2.5 {
            let (mut term, mut sum, mut n) = (z, z, 0.0);
            while term.abs() > 1e-18 * sum.abs() {
                n += 1.0;
                term *= -z * z / n;
                sum += term / (2.0 * n + 1.0);
            }
            return 1.0 - sum * 2.0 / std::f64::consts::PI.sqrt();
        }
        let fraction = (1..=200).rev().fold(0.0, |f, n| f64::from(n) / 2.0 / (z + f));
        (-z * z).exp() / std::f64::consts::PI.sqrt() / (z + fraction)
    }

    fn expected(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Relu => x.max(0.0),
            Activation::Gelu if x < 0.0 => x * 0.5 * erfc(-x / std::f64::consts::SQRT_2),
            Activation::Gelu => x * (1.0 - 0.5 * erfc(x / std::f64::consts::SQRT_2)),
            Activation::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                x / (1.0 + (-2.0 * u).exp())
            }
            Activation::Silu => x / (1.0 + (-x).exp()),
        }
    }

    fn bound(activation: Activation, x: f64) -> f64 {
        let growth = match activation {
            Activation::Relu => return 0.0,
            Activation::Silu => x.abs(),
            Activation::Gelu => x * x,
            Activation::GeluTanh => x.abs().powi(3),
        };
        (8.0 + 2.0 * growth) * 2f64.powi(-24) * expected(activation, x).abs() + (4.0 + x.abs()) * 2f64.powi(-128)
    }

    fn errors_are_within_the_bound(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        let inputs: Vec<f32> = (-40_000..40_000).map(|i| i as f32 / 1500.0).chain([0.0, -0.0, 1e-30, -1e-30]).collect();
        for activation in ALL {
            let mut x = inputs.clone();
            activate(&cpu, activation, &mut x);
            for (&x, &y) in inputs.iter().zip(&x) {
                let error = (f64::from(y) - expected(activation, f64::from(x))).abs();
                let bound = bound(activation, f64::from(x));
                assert!(error <= bound, "{activation:?}({x:e}) = {y:e}, error {error:e}, bound {bound:e}");
            }
        }
    }

    fn limits_are_right(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        for activation in ALL {
            let mut x = [f32::NAN, f32::INFINITY, 200.0, -200.0];
            activate(&cpu, activation, &mut x);
            assert!(x[0].is_nan(), "{activation:?} lost a NaN");
            assert_eq!(x[1..3], [f32::INFINITY, 200.0], "{activation:?}");
            assert_eq!(x[3].abs(), 0.0, "{activation:?}");
        }
    }

    fn gated_is_the_product(isa: IsaName) {
        for threads in [1, 2] {
            let Some(cpu) = cpu(isa, threads, Compute::F32) else { return };
            for n in [0, 1, 7, 16, 1000, 300_001] {
                let (gate, up) = (values(1, n), values(2, n));
                for activation in ALL {
                    let mut plain = gate.clone();
                    activate(&cpu, activation, &mut plain);
                    let mut inner = gate.clone();
                    gated(&cpu, activation, &mut inner, &up);
                    assert!(inner.iter().zip(plain.iter().zip(&up)).all(|(z, (a, b))| *z == a * b));
                }
            }
        }
    }

    on_every_isa!(errors_are_within_the_bound, limits_are_right, gated_is_the_product);
}
