//! Back through the FFN's non-linearities.

use shadowllm_weights::Activation;

use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Simd, math};

/// A function of one value and its derivative, chosen at compile time.
trait Slope: Copy {
    /// `(f(x), f'(x))`
    fn of<S: Simd>(s: S, x: S::V) -> (S::V, S::V);
}

macro_rules! slopes {
    ($($name:ident => $function:path),*) => {$(
        #[derive(Clone, Copy)]
        struct $name;

        impl Slope for $name {
            #[inline(always)]
            fn of<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
                $function(s, x)
            }
        }
    )*};
}

slopes!(
    Relu => math::relu_slope, Gelu => math::gelu_slope, GeluTanh => math::gelu_tanh_slope, Silu => math::silu_slope
);

/// Calls `$piece::<F>(..)` with the function of an activation.
macro_rules! of_activation {
    ($activation:expr, $piece:ident($($argument:expr),*)) => {
        match $activation {
            Activation::Relu => $piece::<Relu>($($argument),*),
            Activation::Gelu => $piece::<Gelu>($($argument),*),
            Activation::GeluTanh => $piece::<GeluTanh>($($argument),*),
            Activation::Silu => $piece::<Silu>($($argument),*),
        }
    };
}

/// `dz[i] *= f'(x[i])`.
struct Plain<'a, F> {
    x: &'a [f32],
    dz: &'a mut [f32],
    function: std::marker::PhantomData<F>,
}

impl<F: Slope> Kernel for Plain<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (dz, x) in self.dz.chunks_mut(S::LANES).zip(self.x.chunks(S::LANES)) {
            let (_, slope) = F::of(s, s.load_slice(x));
            let dx = s.mul(s.load_slice(dz), slope);
            s.store_slice(dz, dx);
        }
    }
}

/// `gate[i] = dz[i] * up[i] * f'(gate[i])` and `up[i] = dz[i] * f(gate[i])`.
struct Gated<'a, F> {
    dz: &'a [f32],
    gate: &'a mut [f32],
    up: &'a mut [f32],
    function: std::marker::PhantomData<F>,
}

impl<F: Slope> Kernel for Gated<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let pairs = self.gate.chunks_mut(S::LANES).zip(self.up.chunks_mut(S::LANES));
        for ((gate, up), dz) in pairs.zip(self.dz.chunks(S::LANES)) {
            let (value, slope) = F::of(s, s.load_slice(gate));
            let dz = s.load_slice(dz);
            let dgate = s.mul(s.mul(dz, s.load_slice(up)), slope);
            s.store_slice(gate, dgate);
            s.store_slice(up, s.mul(dz, value));
        }
    }
}

/// Bytes that memory could deliver in the time of one element, by the activation.
fn cost(activation: Activation) -> usize {
    if activation == Activation::Relu { 12 } else { 48 }
}

/// The way back through [`activate`](crate::kernels::activate): `dz[i] *= f'(x[i])`, where `x` is its input.
///
/// Against `f64`: ReLU exact, with slope 0 at 0; the others `|error of f'| <= (16 + 4g) * 2^-24`, with `g` as there, which is at
/// most that of slope 1 until the exponential leaves the range of `f32`.
///
/// # Panics
/// If the lengths differ.
pub fn activate_backward(cpu: &Cpu, activation: Activation, x: &[f32], dz: &mut [f32]) {
    fn piece<F: Slope>(cpu: &Cpu, x: &[f32], dz: &mut [f32]) {
        cpu.run(Plain::<F> { x, dz, function: std::marker::PhantomData });
    }
    assert_eq!(x.len(), dz.len(), "input and gradient are of the same length");
    let shared = SharedOut::new(dz);
    cpu.split(x.len(), 64, cost(activation), &|range| {
        // SAFETY: the ranges do not overlap.
        let dz = unsafe { shared.slice(range.clone()) };
        of_activation!(activation, piece(cpu, &x[range], dz));
    });
}

/// The way back through [`gated`](crate::kernels::gated): from the gradient `dz` of `f(gate) * up` to those of `gate` and `up`,
/// which take their places. Errors as in [`activate_backward`], times the other factors.
///
/// # Panics
/// If the lengths differ.
pub fn gated_backward(cpu: &Cpu, activation: Activation, dz: &[f32], gate: &mut [f32], up: &mut [f32]) {
    fn piece<F: Slope>(cpu: &Cpu, dz: &[f32], gate: &mut [f32], up: &mut [f32]) {
        cpu.run(Gated::<F> { dz, gate, up, function: std::marker::PhantomData });
    }
    assert!(dz.len() == gate.len() && dz.len() == up.len(), "gate, up and gradient are of the same length");
    let (gate, up) = (SharedOut::new(gate), SharedOut::new(up));
    cpu.split(dz.len(), 64, cost(activation), &|range| {
        // SAFETY: the ranges do not overlap.
        let (gate, up) = unsafe { (gate.slice(range.clone()), up.slice(range.clone())) };
        of_activation!(activation, piece(cpu, &dz[range], gate, up));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{cpu, on_every_isa, values};
    use crate::kernels::{Compute, IsaName, activate, gated};

    const ALL: [Activation; 4] = [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu];

    /// The derivatives as defined, in `f64`; that of GELU by its integral `Phi`, summed as a series.
    fn slope(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Relu => f64::from(x > 0.0),
            Activation::Silu => {
                let sigmoid = 1.0 / (1.0 + (-x).exp());
                sigmoid * (1.0 + x * (1.0 - sigmoid))
            }
            Activation::GeluTanh => {
                let c = (2.0 / std::f64::consts::PI).sqrt();
                let tanh = (c * (x + 0.044715 * x.powi(3))).tanh();
                0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * c * (1.0 + 3.0 * 0.044715 * x * x)
            }
            Activation::Gelu => {
                let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
                // Phi(x) = 1/2 + density * (x + x^3/3 + x^5/15 + ..)
                let (mut term, mut sum, mut n) = (x, x, 1.0);
                while term.abs() > 1e-18 {
                    n += 2.0;
                    term *= x * x / n;
                    sum += term;
                }
                0.5 + density * sum + x * density
            }
        }
    }

    fn growth(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Relu => 0.0,
            Activation::Silu => x.abs(),
            Activation::Gelu => x * x,
            Activation::GeluTanh => x.abs().powi(3),
        }
    }

    fn slopes_are_within_the_bound(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        let inputs: Vec<f32> = (-9_000..9_000).map(|i| i as f32 / 1500.0).chain([0.0, -0.0, 1e-30, -1e-30]).collect();
        for activation in ALL {
            let mut dz = vec![1.0; inputs.len()];
            activate_backward(&cpu, activation, &inputs, &mut dz);
            for (&x, &y) in inputs.iter().zip(&dz) {
                let x = f64::from(x);
                let error = (f64::from(y) - slope(activation, x)).abs();
                let bound = (16.0 + 4.0 * growth(activation, x)) * 2f64.powi(-24);
                assert!(error <= bound, "{activation:?}'({x:e}) = {y:e}, error {error:e}, bound {bound:e}");
            }
        }
    }

    fn limits_are_right(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        for activation in ALL {
            let mut dz = [1.0, 2.0, 2.0, f32::NAN];
            activate_backward(&cpu, activation, &[f32::NAN, 200.0, -200.0, 1.0], &mut dz);
            assert!(dz[0].is_nan() || activation == Activation::Relu && dz[0] == 1.0, "{activation:?} lost a NaN");
            assert_eq!((dz[1], dz[2].abs()), (2.0, 0.0), "{activation:?}");
            assert!(dz[3].is_nan());
        }
    }

    fn gated_gradients_are_those_of_both_factors(isa: IsaName) {
        for threads in [1, 2] {
            let Some(cpu) = cpu(isa, threads, Compute::F32) else { return };
            for n in [0, 1, 7, 16, 1000, 100_001] {
                let (gates, ups, dz) = (values(1, n), values(2, n), values(3, n));
                for activation in ALL {
                    let (mut dgate, mut dup) = (gates.clone(), ups.clone());
                    gated_backward(&cpu, activation, &dz, &mut dgate, &mut dup);
                    let mut expected_up = gates.clone();
                    gated(&cpu, activation, &mut expected_up, &dz);
                    assert_eq!(dup, expected_up, "{activation:?}");
                    let mut expected: Vec<f32> = dz.iter().zip(&ups).map(|(dz, up)| dz * up).collect();
                    activate_backward(&cpu, activation, &gates, &mut expected);
                    assert_eq!(dgate, expected, "{activation:?}");
                }
            }
        }
    }

    /// The slope belongs to the function that the forward pass computes.
    fn slopes_are_those_of_the_activation(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        let x: Vec<f32> = (-400..400).map(|i| i as f32 / 100.0 + 0.005).collect();
        for activation in ALL {
            let value = |step: f32| {
                let mut y: Vec<f32> = x.iter().map(|x| x + step).collect();
                activate(&cpu, activation, &mut y);
                y
            };
            let (high, low) = (value(1.0 / 256.0), value(-1.0 / 256.0));
            let mut dz = vec![1.0; x.len()];
            activate_backward(&cpu, activation, &x, &mut dz);
            for (i, slope) in dz.iter().enumerate() {
                let difference = (high[i] - low[i]) * 128.0;
                assert!((difference - slope).abs() < 2e-4, "{activation:?} at {}: {slope}, {difference}", x[i]);
            }
        }
    }

    on_every_isa!(
        slopes_are_within_the_bound,
        limits_are_right,
        gated_gradients_are_those_of_both_factors,
        slopes_are_those_of_the_activation,
    );
}
