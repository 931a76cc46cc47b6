//! What training needs of a linear layer beside [`linear`](super::linear) and the way back through it
//! ([`linear_transposed`](super::linear_transposed)): the gradients of its weights and bias.

use std::ops::Range;

use super::linear_transposed_f32;
use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Simd, transpose};

/// `dw[n][k] = sum_t dy[t][n] * x[t][k]`: what `out = x W^T` makes of the gradient `dy` of its output.
///
/// `dy` `[T, N]`, `x` `[T, K]`, `dw` `[N, K]`, accumulated in `f32`: `|error| <= (T/8 + 16) * 2^-23 * sum_t |dy[t][n] * x[t][k]|`.
/// The bits depend on the instruction set and on nothing else.
///
/// # Panics
/// If the lengths do not fit.
pub fn weight_gradient(cpu: &Cpu, [t, n, k]: [usize; 3], dy: &[f32], x: &[f32], dw: &mut [f32]) {
    assert_eq!(dy.len(), t * n, "{t} rows of {n} gradients expected");
    assert_eq!(x.len(), t * k, "{t} rows of {k} inputs expected");
    assert_eq!(dw.len(), n * k, "gradients of {n} rows of {k} weights expected");
    if k == 0 {
        return;
    }
    // As the product with the transposed matrix `x`, of rows that are the columns of `dy`.
    let mut columns = cpu.scratch(n * t);
    let turned = SharedOut::new(&mut columns);
    cpu.split(n, 8, 8 * t, &|range| cpu.run(Turn { dy, n, t, range, out: turned }));
    linear_transposed_f32(cpu, x, [t, k], &columns[..n * t], dw);
}

/// Writes columns `range` of `dy` `[t, n]` as rows.
struct Turn<'a> {
    dy: &'a [f32],
    n: usize,
    t: usize,
    range: Range<usize>,
    /// `[n, t]`
    out: SharedOut<'a>,
}

impl Kernel for Turn<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Turn { dy, n, t, range, out } = self;
        if t == 0 {
            return;
        }
        // SAFETY: `range.len()` columns of `dy` follow the first; rows `range` of the result belong to this task alone.
        unsafe { transpose(s, dy.as_ptr().add(range.start), n, [t, range.len()], out.at(range.start * t), t) };
    }
}

/// `db[n] = sum_t dy[t][n]`: the gradient of a bias, `dy` `[T, N]`, added in the order of `t`.
///
/// # Panics
/// If `dy` is no whole number of rows.
pub fn bias_gradient(cpu: &Cpu, dy: &[f32], db: &mut [f32]) {
    struct Add<'a> {
        rows: std::slice::ChunksExact<'a, f32>,
        range: Range<usize>,
        sums: &'a mut [f32],
    }
    impl Kernel for Add<'_> {
        type Out = ();

        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            self.sums.fill(0.0);
            for row in self.rows {
                self.sums.iter_mut().zip(&row[self.range.clone()]).for_each(|(sum, v)| *sum += v);
            }
        }
    }
    let n = db.len();
    assert!(n > 0 && dy.len().is_multiple_of(n), "gradients are no whole number of rows of {n}");
    let out = SharedOut::new(db);
    cpu.split(n, 16, dy.len() / n * 4, &|range| {
        // SAFETY: the ranges do not overlap.
        let sums = unsafe { out.slice(range.clone()) };
        cpu.run(Add { rows: dy.chunks_exact(n), range, sums });
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::testing::{close, cpu, on_every_isa, values};
    use crate::kernels::{Compute, IsaName};

    fn oracle([t, n, k]: [usize; 3], dy: &[f32], x: &[f32]) -> Vec<(f64, f64)> {
        let bound = (t as f64 / 8.0 + 16.0) * f64::from(f32::EPSILON);
        let element = |row: usize, column: usize| {
            let products = (0..t).map(|t| f64::from(dy[t * n + row]) * f64::from(x[t * k + column]));
            products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + bound * p.abs()))
        };
        (0..n * k).map(|i| element(i / k, i % k)).collect()
    }

    fn run(cpu: &Cpu, shape: [usize; 3], dy: &[f32], x: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; shape[1] * shape[2]];
        weight_gradient(cpu, shape, dy, x, &mut out);
        out
    }

    fn agrees_with_the_oracle(isa: IsaName) {
        let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
        let cases = (0usize..300, 1usize..210, 1usize..150, any::<u64>());
        proptest!(ProptestConfig::with_cases(60), |((t, n, k, seed) in cases)| {
            let (dy, x) = (values(seed, t * n), values(seed ^ 1, t * k));
            close(&run(&cpu, [t, n, k], &dy, &x), &oracle([t, n, k], &dy, &x))?;
        });
    }

    fn threads_change_nothing(isa: IsaName) {
        let (dy, x) = (values(1, 300 * 1000), values(2, 300 * 70));
        let bits = |threads| {
            let found = run(&cpu(isa, threads, Compute::F32)?, [300, 1000, 70], &dy, &x);
            Some(found.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        assert!(bits(1) == bits(2) && bits(2) == bits(3));
    }

    fn special_values_spread_to_what_depends_on_them(isa: IsaName) {
        let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
        let (mut dy, x) = (values(1, 5 * 20), values(2, 5 * 33));
        dy[3 * 20 + 7] = f32::NAN;
        let found = run(&cpu, [5, 20, 33], &dy, &x);
        for (i, v) in found.iter().enumerate() {
            assert_eq!(v.is_nan(), i / 33 == 7, "{i}");
        }
    }

    fn bias_gradients_agree(isa: IsaName) {
        let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
        let cases = (1usize..200, 1usize..100, any::<u64>());
        proptest!(ProptestConfig::with_cases(40), |((t, n, seed) in cases)| {
            let dy = values(seed, t * n);
            let mut db = vec![f32::NAN; n];
            bias_gradient(&cpu, &dy, &mut db);
            close(&db, &oracle([t, n, 1], &dy, &vec![1.0; t]))?;
        });
    }

    on_every_isa!(
        bias_gradients_agree,
        agrees_with_the_oracle,
        threads_change_nothing,
        special_values_spread_to_what_depends_on_them
    );
}
