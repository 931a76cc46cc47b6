//! Once warm, the kernels of a token allocate nothing: scratch memory belongs to the execution context and is reused.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use shadowllm::kernels::{
    AttentionShape, Cpu, CpuOptions, FfnGather, IsaName, RopeTable, attention, attention_gather, embed_row, ffn_gather,
    gated, heads_output, heads_project, kv_project, linear, rms_norm, rope, softmax,
};
use shadowllm::tensor::Matrix;
use shadowllm_weights::{Activation, DType, Rope, RopeScaling, TensorData};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

// One test only: a second one running beside it would be counted.
#[test]
fn a_warm_token_allocates_nothing() {
    [DType::BF16, DType::I8].into_iter().for_each(allocates_nothing);
}

fn allocates_nothing(dtype: DType) {
    let (d, f, heads, kv_heads, head_dim, capacity) = (512, 2048, 8, 4, 64, 1024);
    let matrix = |rows: usize, cols: usize| {
        let values: Vec<f32> = (0..rows * cols).map(|i| (i % 13) as f32 * 0.01).collect();
        Matrix::new(TensorData::from_f32_as(&[rows, cols], dtype, &values).expect("sizes fit")).expect("a matrix")
    };
    let records = |count: usize, rows: usize| {
        let values: Vec<f32> = (0..count * rows * d).map(|i| (i % 13) as f32 * 0.01).collect();
        let data = TensorData::from_f32_as(&[count, rows, d], dtype, &values).expect("sizes fit");
        Matrix::of_records(data).expect("records")
    };
    let (q, up, down) = (matrix(d, d), matrix(f, d), matrix(d, f));
    let (k, v) = (vec![0.5; kv_heads * capacity * head_dim], vec![0.25; kv_heads * capacity * head_dim]);
    let table = RopeTable::new(&Rope { theta: 10_000.0, scaling: RopeScaling::None }, head_dim);
    let (head_records, records) = (records(heads, 2 * head_dim), records(f, 3));
    let (some_heads, neurons) = ([0, 1, 4, 7], (0..f as u32).step_by(3).collect::<Vec<_>>());
    let thresholds = vec![0.01; f];
    let ffn = FfnGather {
        records: &records,
        bias: None,
        up_bias: None,
        out_bias: None,
        activation: Activation::Silu,
        gate_thresholds: Some(&thresholds),
        skip: true,
    };
    let shape = AttentionShape { heads, kv_heads, head_dim, window: None, scale: 0.125 };
    for isa in IsaName::available() {
        for threads in [1, 2] {
            let cpu = Cpu::new(&CpuOptions { isa: Some(isa), threads: Some(threads), ..CpuOptions::default() })
                .expect("available");
            for rows in [1, 4, 100] {
                let (mut x, mut y) = (vec![0.1; rows * d], vec![0.1; rows * d]);
                let (mut a, b) = (vec![0.1; rows * f], vec![0.1; rows * f]);
                let mut token = || {
                    embed_row(&cpu, &q, 3, &mut y[..d]);
                    rms_norm(&cpu, &x, &b[..d], 1e-5, &mut y);
                    linear(&cpu, &q, None, &y, &mut x);
                    rope(&cpu, &mut x, heads, head_dim, &table, 700);
                    attention(&cpu, &shape, &x, &k, &v, capacity, 700, &mut y);
                    linear(&cpu, &up, None, &y, &mut a);
                    gated(&cpu, Activation::Silu, &mut a, &b);
                    linear(&cpu, &down, None, &a, &mut x);
                    softmax(&cpu, &mut x[..d]);
                    let (q, contexts) = a.split_at_mut(some_heads.len() * head_dim);
                    let contexts = &mut contexts[..q.len()];
                    heads_project(&cpu, &head_records, head_dim, &some_heads, None, &x[..d], q);
                    attention_gather(&cpu, &shape, &some_heads, q, &k, &v, capacity, 700, contexts);
                    heads_output(&cpu, &head_records, head_dim, &some_heads, contexts, None, &mut y[..d]);
                    ffn_gather(&cpu, &ffn, &neurons, &x[..d], &mut y[..d]);
                    let (keys, values) = a[..2 * rows * head_dim].split_at_mut(rows * head_dim);
                    kv_project(&cpu, &head_records, head_dim, 3, None, None, &x, keys, values);
                };
                let allocations = cpu.install(|| {
                    // Which thread needs how much scratch at once depends on chance: warm is when a while passes without.
                    let mut last = usize::MAX;
                    for _ in 0..20 {
                        let before = ALLOCATIONS.load(Ordering::Relaxed);
                        (0..20).for_each(|_| token());
                        last = ALLOCATIONS.load(Ordering::Relaxed) - before;
                        if last == 0 {
                            break;
                        }
                    }
                    last
                });
                assert_eq!(allocations, 0, "{rows} rows of {dtype} with {isa} and {threads} threads");
            }
        }
    }
}
