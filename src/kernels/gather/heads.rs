//! Projections of listed heads: into queries, out of contexts, and into keys and values.

use std::ops::Range;

use super::check_lines;
use super::pieces::Pieces;
use super::streams::{add_rows, dots};
use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::linear::{Linear, Packed, Rows};
use crate::kernels::simd::{Element, Simd};
use crate::tensor::{Matrix, MatrixView, RowsOf};

/// Tokens that [`kv_project`] takes at a time: their inputs then stay in the second-level cache.
const TOKENS: usize = 64;

/// Bytes of weights that [`heads_project`] reads for `kept` heads, and [`heads_output`] as well.
pub fn heads_bytes(heads: &Matrix, kept: usize) -> u64 {
    (kept * heads.row_bytes() / 2) as u64
}

/// Bytes of weights that [`kv_project`] reads for one key/value head and some tokens.
pub fn kv_project_bytes(kv_heads: &Matrix, tokens: usize) -> u64 {
    (tokens.div_ceil(TOKENS) * kv_heads.row_bytes()) as u64
}

/// Panics unless a record of `heads` is twice `head_dim` rows of `d`.
pub(super) fn check(heads: &Matrix, head_dim: usize, d: usize) {
    assert_eq!(heads.cols(), 2 * head_dim * d, "head records are 2 x {head_dim} rows of {d}");
    check_lines(heads, d);
}

/// Queries of the heads in `list`: the products of `x` with their rows of Wq.
///
/// `heads` `[H, 2*d_h*d]`: d_h rows of Wq, then d_h columns of Wo. `bias` `[H*d_h]`, `x` `[d]`, `out` `[list.len(), d_h]`. The
/// same bits as the rows of [`linear`](super::super::linear) with Wq for one row of `x`, and its bound.
///
/// # Panics
/// If a length does not fit or the list names a head that does not exist.
pub fn heads_project(
    cpu: &Cpu,
    heads: &Matrix,
    head_dim: usize,
    list: &[u32],
    bias: Option<&[f32]>,
    x: &[f32],
    out: &mut [f32],
) {
    check(heads, head_dim, x.len());
    assert_eq!(out.len(), list.len() * head_dim, "{head_dim} outputs for each of {} heads expected", list.len());
    if let Some(bias) = bias {
        assert_eq!(bias.len(), heads.rows() * head_dim, "one bias for each row of Wq expected");
    }
    match heads.view() {
        MatrixView::F32(w) => project(cpu, Heads { w, head_dim, d: x.len(), list }, bias, x, out),
        MatrixView::F16(w) => project(cpu, Heads { w, head_dim, d: x.len(), list }, bias, x, out),
        MatrixView::BF16(w) => project(cpu, Heads { w, head_dim, d: x.len(), list }, bias, x, out),
        MatrixView::I8(w) => project(cpu, Heads { w, head_dim, d: x.len(), list }, bias, x, out),
    }
}

fn project<W: Element>(cpu: &Cpu, heads: Heads<'_, W>, bias: Option<&[f32]>, x: &[f32], out: &mut [f32]) {
    let shared = SharedOut::new(out);
    cpu.split(heads.list.len() * heads.head_dim, 1, W::span(heads.d) * size_of::<W>(), &|range| {
        // SAFETY: the ranges do not overlap.
        let out = unsafe { shared.slice(range.clone()) };
        cpu.run(Project { heads, bias, x, range, out });
    });
}

/// The attention output of the heads in `list`, as if every other head's context were 0.
///
/// `heads` as in [`heads_project`], `contexts` `[list.len(), d_h]`, `bias` `[d]`, `out` `[d]`:
/// `out = sum_h sum_c contexts[h][c] * Wo[:, h*d_h + c] + bias`, with an error of at most
/// `(P + 34) * 2^-23 * (sum |contexts * Wo| + |bias|)`, where `P = max(128, n/32 + 8)` for `n` contexts. It depends on the
/// operands and the list, and on nothing else.
///
/// # Panics
/// If a length does not fit or the list names a head that does not exist.
pub fn heads_output(
    cpu: &Cpu,
    heads: &Matrix,
    head_dim: usize,
    list: &[u32],
    contexts: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let d = out.len();
    check(heads, head_dim, d);
    assert_eq!(contexts.len(), list.len() * head_dim, "{head_dim} values for each of {} heads expected", list.len());
    if let Some(bias) = bias {
        assert_eq!(bias.len(), d, "one bias for each of {d} outputs expected");
    }
    match heads.view() {
        MatrixView::F32(w) => output(cpu, Heads { w, head_dim, d, list }, contexts, bias, out),
        MatrixView::F16(w) => output(cpu, Heads { w, head_dim, d, list }, contexts, bias, out),
        MatrixView::BF16(w) => output(cpu, Heads { w, head_dim, d, list }, contexts, bias, out),
        MatrixView::I8(w) => output(cpu, Heads { w, head_dim, d, list }, contexts, bias, out),
    }
}

fn output<W: Element>(cpu: &Cpu, heads: Heads<'_, W>, contexts: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
    Pieces::new(contexts.len()).sum(cpu, W::span(heads.d) * size_of::<W>(), bias, out, &|rows, sum| {
        cpu.run(Output { heads, factors: &contexts[rows.clone()], first: rows.start, sum });
    });
}

/// Keys and values of one key/value head for `n` tokens; the weights are read once for up to 64 of them.
///
/// `kv_heads` `[H_kv, 2*d_h*d]`: d_h rows of Wk, then d_h rows of Wv. The biases are those of all heads, `[H_kv*d_h]`. `x`
/// `[n, d]`, `keys` and `values` `[n, d_h]`. Every row has the bits of [`linear`](super::super::linear) for that row
/// alone, however many are projected together and whatever the context's [`Compute`](super::super::Compute).
///
/// # Panics
/// If a length does not fit or the head does not exist.
#[allow(clippy::too_many_arguments)]
pub fn kv_project(
    cpu: &Cpu,
    kv_heads: &Matrix,
    head_dim: usize,
    kv_head: usize,
    key_bias: Option<&[f32]>,
    value_bias: Option<&[f32]>,
    x: &[f32],
    keys: &mut [f32],
    values: &mut [f32],
) {
    let t = keys.len().checked_div(head_dim).unwrap_or(0);
    assert_eq!(keys.len(), t * head_dim, "keys are no whole number of rows of {head_dim}");
    assert_eq!(values.len(), keys.len(), "values are as many as keys");
    if t == 0 {
        return;
    }
    let d = x.len() / t;
    assert_eq!(x.len(), t * d, "inputs are no whole number of rows for {t} tokens");
    check(kv_heads, head_dim, d);
    let own = kv_head * head_dim..(kv_head + 1) * head_dim;
    for bias in [key_bias, value_bias].into_iter().flatten() {
        assert_eq!(bias.len(), kv_heads.rows() * head_dim, "one bias for each row of Wk and of Wv expected");
    }
    let biases = [key_bias, value_bias].map(|bias| bias.map(|bias| &bias[own.clone()]));
    let record = kv_head * kv_heads.span()..(kv_head + 1) * kv_heads.span();
    let chunks = keys.chunks_mut(TOKENS * head_dim).zip(values.chunks_mut(TOKENS * head_dim));
    for (i, (keys, values)) in chunks.enumerate() {
        let x = &x[i * TOKENS * d..][..keys.len() / head_dim * d];
        match kv_heads.view() {
            MatrixView::F32(w) => project_kv(cpu, &w[record.clone()], biases, x, [keys, values], head_dim),
            MatrixView::F16(w) => project_kv(cpu, &w[record.clone()], biases, x, [keys, values], head_dim),
            MatrixView::BF16(w) => project_kv(cpu, &w[record.clone()], biases, x, [keys, values], head_dim),
            MatrixView::I8(w) => project_kv(cpu, &w[record.clone()], biases, x, [keys, values], head_dim),
        }
    }
}

fn project_kv<W: Element>(
    cpu: &Cpu,
    record: &[W],
    biases: [Option<&[f32]>; 2],
    x: &[f32],
    outs: [&mut [f32]; 2],
    head_dim: usize,
) {
    let t = outs[0].len() / head_dim;
    let (d, span) = (x.len() / t, record.len() / (2 * head_dim));
    let outs = outs.map(SharedOut::new);
    let packed = Packed::new::<W>(cpu, x, [t, d]);
    cpu.split(2 * head_dim, 1, span * size_of::<W>() + t * d, &|range| {
        for (i, out) in outs.into_iter().enumerate() {
            let of = |row: usize| row.clamp(i * head_dim, (i + 1) * head_dim) - i * head_dim;
            let w = &record[i * head_dim * span..(i + 1) * head_dim * span];
            let w = RowsOf::contiguous(w, span);
            let linear = Linear { w, bias: biases[i], x, n: head_dim, k: d, t };
            cpu.run(Rows { linear, x: packed.values(), range: of(range.start)..of(range.end), out });
        }
    });
}

/// Records of listed heads.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a, W> {
    /// `[H, 2*d_h, d]`, with scales
    pub(super) w: &'a [W],
    pub(super) head_dim: usize,
    pub(super) d: usize,
    pub(super) list: &'a [u32],
}

impl<'a, W: Element> Heads<'a, W> {
    /// Row `i` of the first (0) or second (1) halves of the listed heads, counted through.
    #[inline(always)]
    pub(super) fn row(&self, half: usize, i: usize) -> Option<&'a [W]> {
        let head = *self.list.get(i / self.head_dim)? as usize;
        let row = (2 * head + half) * self.head_dim + i % self.head_dim;
        let span = W::span(self.d);
        Some(&self.w[row * span..][..span])
    }
}

/// Rows `range` of the listed heads' queries.
struct Project<'a, W> {
    heads: Heads<'a, W>,
    /// `[H*d_h]`
    bias: Option<&'a [f32]>,
    /// `[d]`
    x: &'a [f32],
    range: Range<usize>,
    /// `[range]`
    out: &'a mut [f32],
}

impl<W: Element> Kernel for Project<'_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Project { heads, bias, x, range, out } = self;
        let row = |i: usize| heads.row(0, range.start + i);
        dots(s, range.len(), row, x, |i, product| {
            let (place, c) = ((range.start + i) / heads.head_dim, (range.start + i) % heads.head_dim);
            out[i] = product + bias.map_or(0.0, |bias| bias[heads.list[place] as usize * heads.head_dim + c]);
        });
    }
}

/// Adds the output columns from row `first` of the listed heads, times `factors`, to `sum`.
struct Output<'a, W> {
    heads: Heads<'a, W>,
    factors: &'a [f32],
    first: usize,
    /// `[d]`
    sum: &'a mut [f32],
}

impl<W: Element> Kernel for Output<'_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.heads.d;
        add_rows(s, self.factors, d, 0..d, |i| self.heads.row(1, self.first + i), self.sum);
    }
}
