use proptest::prelude::*;

use super::{AttentionShape, Operands, attention, attention_bytes, oracle};
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

on_every_isa!(
    decode_agrees_with_the_oracle,
    prefill_agrees_with_the_oracle,
    threads_change_nothing,
    broken_values_stay_visible,
    no_rows_are_fine,
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
