use proptest::prelude::*;

use super::{
    AttentionPass, AttentionShape, Operands, attention, attention_backward, attention_bytes, attention_recorded, oracle,
};
use crate::kernels::testing::{close, cpu, on_every_isa, values};
use crate::kernels::{Compute, Cpu, IsaName};

/// Random operands of one call; the cache holds NaN where nothing was written.
#[derive(Debug)]
struct Inputs {
    shape: AttentionShape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    capacity: usize,
    start: usize,
    t: usize,
}

impl Inputs {
    fn new(shape: AttentionShape, start: usize, t: usize, seed: u64) -> Self {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let capacity = start + t + 3;
        let cache = |seed| {
            let mut x = values(seed, kv_heads * capacity * head_dim);
            for head in x.chunks_exact_mut(capacity * head_dim) {
                head[(start + t) * head_dim..].fill(f32::NAN);
            }
            x
        };
        let q = values(seed, t * heads * head_dim).iter().map(|v| 4.0 * v).collect();
        Inputs { shape, q, k: cache(seed ^ 1), v: cache(seed ^ 2), capacity, start, t }
    }

    fn run(&self, cpu: &Cpu) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.q.len()];
        attention(cpu, &self.shape, &self.q, &self.k, &self.v, self.capacity, self.start, &mut out);
        out
    }

    fn expected(&self) -> Vec<(f64, f64)> {
        let Inputs { shape, capacity, start, t, .. } = *self;
        oracle::attention(Operands { shape, q: &self.q, k: &self.k, v: &self.v, capacity, start, t })
    }
}

fn inputs(rows: std::ops::Range<usize>, starts: std::ops::Range<usize>) -> impl Strategy<Value = Inputs> {
    let widths = prop::sample::select(vec![1usize, 6, 12, 16, 20, 64, 80, 128]);
    let window = prop::option::of(1usize..120);
    (1usize..4, 1usize..7, widths, window, starts, rows, any::<u64>()).prop_map(
        |(kv_heads, group, head_dim, window, start, t, seed)| {
            let scale = 1.0 / (head_dim as f32).sqrt();
            let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim, window, scale };
            Inputs::new(shape, start, t, seed)
        },
    )
}

fn decode_agrees_with_the_oracle(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    proptest!(ProptestConfig::with_cases(60), |(inputs in inputs(1..2, 0..700))| {
        close(&inputs.run(&cpu), &inputs.expected())?;
    });
}

fn prefill_agrees_with_the_oracle(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    proptest!(ProptestConfig::with_cases(60), |(inputs in inputs(2..90, 0..200))| {
        close(&inputs.run(&cpu), &inputs.expected())?;
    });
}

fn threads_change_nothing(isa: IsaName) {
    let shape = AttentionShape { heads: 6, kv_heads: 3, head_dim: 64, window: None, scale: 0.125 };
    for (start, t) in [(1500, 1), (20, 200)] {
        let inputs = Inputs::new(shape, start, t, 5);
        let bits = |cpu: Cpu| inputs.run(&cpu).into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let results = [1, 2, 3].map(|threads| cpu(isa, threads, Compute::F32).map(bits));
        assert!(results[0] == results[1] && results[1] == results[2]);
    }
}

fn broken_values_stay_visible(isa: IsaName) {
    let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
    let shape = AttentionShape { heads: 2, kv_heads: 2, head_dim: 16, window: None, scale: 0.25 };
    for t in [1, 30] {
        let mut inputs = Inputs::new(shape, 10, t, 5);
        // One broken key of head 0 at position 3, which every row sees.
        inputs.k[3 * 16] = f32::NAN;
        let out = inputs.run(&cpu);
        for row in out.chunks_exact(32) {
            assert!(row[..16].iter().all(|v| v.is_nan()));
            assert!(row[16..].iter().all(|v| v.is_finite()));
        }
    }
}

fn no_rows_are_fine(isa: IsaName) {
    let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 16, window: None, scale: 0.25 };
    attention(&cpu, &shape, &[], &[0.0; 64], &[0.0; 64], 4, 4, &mut []);
}

impl Inputs {
    /// `out` and the logarithms of [`attention_recorded`].
    fn record(&self, cpu: &Cpu) -> (Vec<f32>, Vec<f32>) {
        let Inputs { shape, q, k, v, capacity, t, .. } = self;
        let (mut out, mut log_sums) = (vec![f32::NAN; q.len()], vec![f32::NAN; t * shape.heads]);
        attention_recorded(cpu, shape, q, k, v, *capacity, &mut out, &mut log_sums);
        (out, log_sums)
    }

    /// The gradients of queries, keys and values.
    fn run_backward(&self, cpu: &Cpu, dout: &[f32]) -> [Vec<f32>; 3] {
        let (out, log_sums) = self.record(cpu);
        let Inputs { shape, ref q, ref k, ref v, capacity, t, .. } = *self;
        let pass = AttentionPass { shape, q, k, v, capacity, out: &out, log_sums: &log_sums };
        let cached = vec![f32::NAN; t * shape.kv_heads * shape.head_dim];
        let [mut dq, mut dk, mut dv] = [vec![f32::NAN; q.len()], cached.clone(), cached];
        attention_backward(cpu, &pass, dout, &mut dq, &mut dk, &mut dv);
        [dq, dk, dv]
    }

    fn operands(&self) -> Operands<'_> {
        let Inputs { shape, capacity, start, t, .. } = *self;
        Operands { shape, q: &self.q, k: &self.k, v: &self.v, capacity, start, t }
    }
}

fn recording_changes_nothing(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    proptest!(ProptestConfig::with_cases(20), |(inputs in inputs(1..90, 0..1))| {
        let (out, log_sums) = inputs.record(&cpu);
        prop_assert!(inputs.t == 1 || out == inputs.run(&cpu));
        close(&out, &inputs.expected())?;
        prop_assert!(log_sums.iter().all(|v| v.is_finite()));
    });
}

fn backward_agrees_with_the_oracle(isa: IsaName) {
    let Some(cpu) = cpu(isa, 2, Compute::F32) else { return };
    proptest!(ProptestConfig::with_cases(60), |(inputs in inputs(1..150, 0..1))| {
        let dout = values(99, inputs.q.len());
        let expected = oracle::attention_backward(inputs.operands(), &dout);
        for (found, expected) in inputs.run_backward(&cpu, &dout).iter().zip(&expected) {
            close(found, expected)?;
        }
    });
}

fn threads_change_nothing_on_the_way_back(isa: IsaName) {
    let shape = AttentionShape { heads: 6, kv_heads: 3, head_dim: 64, window: Some(150), scale: 0.125 };
    let inputs = Inputs::new(shape, 0, 200, 5);
    let dout = values(7, inputs.q.len());
    let bits = |cpu: Cpu| inputs.run_backward(&cpu, &dout).map(|x| x.into_iter().map(f32::to_bits).collect::<Vec<_>>());
    let results = [1, 2, 3].map(|threads| cpu(isa, threads, Compute::F32).map(bits));
    assert!(results[0] == results[1] && results[1] == results[2]);
}

fn broken_gradients_stay_visible(isa: IsaName) {
    let Some(cpu) = cpu(isa, 1, Compute::F32) else { return };
    let shape = AttentionShape { heads: 2, kv_heads: 2, head_dim: 16, window: None, scale: 0.25 };
    let inputs = Inputs::new(shape, 0, 30, 5);
    let mut dout = values(7, inputs.q.len());
    // Row 20 of head 0.
    dout[20 * 32] = f32::NAN;
    let [dq, dk, dv] = inputs.run_backward(&cpu, &dout);
    for (t, row) in dq.chunks_exact(32).enumerate() {
        assert!(row[..16].iter().all(|v| v.is_nan()) == (t == 20));
        assert!(row[16..].iter().all(|v| v.is_finite()));
    }
    // Positions that row 20 does not see may break, too: nothing times NaN is NaN.
    for (dk, dv) in dk.chunks_exact(32).zip(dv.chunks_exact(32)).take(21) {
        assert!(dk[..16].iter().all(|v| v.is_nan()) && dv[0].is_nan());
    }
    for (dk, dv) in dk.chunks_exact(32).zip(dv.chunks_exact(32)) {
        assert!(dk[16..].iter().chain(&dv[16..]).all(|v| v.is_finite()));
    }
}

#[test]
fn the_oracle_is_the_derivative() {
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 6, window: Some(5), scale: 0.4 };
    let inputs = Inputs::new(shape, 0, 9, 3);
    let dout = values(8, inputs.q.len());
    let loss = |inputs: &Inputs| {
        let out = inputs.expected();
        out.iter().zip(&dout).map(|((value, _), &g)| value * f64::from(g)).sum::<f64>()
    };
    // Powers of two, so that the moved operand is exact.
    let step = 1.0 / 256.0;
    let derivative =
        |moved: &dyn Fn(f32) -> Inputs| (loss(&moved(step)) - loss(&moved(-step))) / (2.0 * f64::from(step));
    let copy = || Inputs::new(shape, 0, 9, 3);
    let [dq, dk, dv] = oracle::attention_backward(inputs.operands(), &dout);
    for (i, (expected, _)) in dq.iter().enumerate() {
        let found = derivative(&|step| {
            let mut moved = copy();
            moved.q[i] += step;
            moved
        });
        assert!((found - expected).abs() < 1e-4, "query {i}: {expected} instead of {found}");
    }
    for (i, ((dk, _), (dv, _))) in dk.iter().zip(&dv).enumerate() {
        let (position, head, c) = (i / 12, i / 6 % 2, i % 6);
        let at = (head * inputs.capacity + position) * 6 + c;
        let found = derivative(&|step| {
            let mut moved = copy();
            moved.k[at] += step;
            moved
        });
        assert!((found - dk).abs() < 1e-3, "key {i}: {dk} instead of {found}");
        let found = derivative(&|step| {
            let mut moved = copy();
            moved.v[at] += step;
            moved
        });
        assert!((found - dv).abs() < 1e-4, "value {i}: {dv} instead of {found}");
    }
}

on_every_isa!(
    decode_agrees_with_the_oracle,
    prefill_agrees_with_the_oracle,
    threads_change_nothing,
    broken_values_stay_visible,
    no_rows_are_fine,
    recording_changes_nothing,
    backward_agrees_with_the_oracle,
    threads_change_nothing_on_the_way_back,
    broken_gradients_stay_visible,
);

#[test]
fn bytes_count_the_visible_cache() {
    let mut shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8, window: None, scale: 1.0 };
    assert_eq!(attention_bytes(&shape, 9, 1), 2 * 2 * 10 * 8 * 4);
    assert_eq!(attention_bytes(&shape, 0, 10), 2 * 2 * 10 * 8 * 4);
    shape.window = Some(4);
    assert_eq!(attention_bytes(&shape, 9, 1), 2 * 2 * 4 * 8 * 4);
    assert_eq!(attention_bytes(&shape, 9, 0), 0);
}
