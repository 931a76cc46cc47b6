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
/// Against `f64`: ReLU exact; the others `|error| <= (8 + 2|x|) * 2^-24 * |f(x)| + 2^-126`, in the tails, too, until the
/// result is subnormal (the exponential's argument carries a rounding error in proportion to `|x|`; GELU's and its tanh
/// form's, whose arguments grow faster, `(8 + 2 x^2)` and `(8 + 2|x|^3)` instead of `(8 + 2|x|)`).
/// NaN gives NaN.
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
