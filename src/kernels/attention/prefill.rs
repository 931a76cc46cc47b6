//! Many query rows: both multiplications with the tile of the blocked product.
//!
//! All rows of all query heads that share a key/value head are one long list of *pairs* (row, query head), row-major. A block
//! of consecutive pairs is one panel: vectors run along pairs, so that a key, broadcast, meets all of them, the running
//! maximum and sum are plain vectors, and nothing is ever summed across lanes. Keys and values are read in blocks that stay
//! in the cache while a panel passes.

use std::ops::Range;

use super::Operands;
use super::panel::{BLOCK, VECTORS, pack, panel_width, product};
use crate::kernels::cpu::{Cpu, SharedOut};
use crate::kernels::isa::Kernel;
use crate::kernels::simd::{Simd, math, transpose};

/// Score of a position that a row does not see. Finite, so that differences are never NaN; real scores are far above.
const HIDDEN: f32 = -1e30;

/// `log_sums`, if wanted, `[t, H]`: the logarithm of the sum of each row's exponentials.
pub(super) fn prefill(cpu: &Cpu, operands: Operands<'_>, out: &mut [f32], log_sums: Option<&mut [f32]>) {
    let shape = operands.shape;
    let width = panel_width(cpu.geometry());
    let pairs = operands.t * shape.group();
    let panels = pairs.div_ceil(width);
    let seen = operands.t / 2 + operands.start.min(shape.window.unwrap_or(usize::MAX));
    // Operations of a panel, as bytes that memory could have delivered in the time.
    let cost = 4 * width * seen * shape.head_dim / 8;
    let out = SharedOut::new(out);
    let log_sums = log_sums.map(SharedOut::new);
    cpu.split(shape.kv_heads * panels, 1, cost, &|items| {
        let d = shape.head_dim;
        let mut scratch = cpu.scratch((3 * d + BLOCK + 4) * width + 8 * d);
        let (queries, rest) = scratch.split_at_mut(d * width);
        let (values, rest) = rest.split_at_mut(d * width);
        let (rows, rest) = rest.split_at_mut(d * width + 8 * d);
        let (scores, state) = rest.split_at_mut(BLOCK * width);
        for item in items {
            let (kv_head, first) = (item / panels, item % panels * width);
            let pairs = first..pairs.min(first + width);
            cpu.run(Panel { operands, kv_head, pairs, queries, values, rows, scores, state, out, log_sums });
        }
    });
}

/// One panel of pairs against the whole visible context.
struct Panel<'a> {
    operands: Operands<'a>,
    kv_head: usize,
    /// Pair `p` is row `p / group`, query head `kv_head * group + p % group`.
    pairs: Range<usize>,
    /// `[d_h, width]`, scaled queries.
    queries: &'a mut [f32],
    /// `[d_h, width]`, weighted sums of values.
    values: &'a mut [f32],
    /// `[width, d_h]` and 8 rows more, for transposing.
    rows: &'a mut [f32],
    /// `[BLOCK, width]`, scores, then their exponentials.
    scores: &'a mut [f32],
    /// `[4, width]`: running maximum, running sum, first and last visible position.
    state: &'a mut [f32],
    /// `[t, H, d_h]`
    out: SharedOut<'a>,
    /// `[t, H]`
    log_sums: Option<SharedOut<'a>>,
}

impl Kernel for Panel<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.pairs.len().div_ceil(S::LANES) {
            1 => self.panel::<S, 1>(s),
            2 => self.panel::<S, 2>(s),
            _ => self.panel::<S, VECTORS>(s),
        }
    }
}

impl Panel<'_> {
    #[inline(always)]
    fn panel<S: Simd, const C: usize>(&mut self, s: S) {
        let Operands { shape, start, .. } = self.operands;
        let d = shape.head_dim;
        let width = C * S::LANES;
        self.pack(s, width);
        self.values[..d * width].fill(0.0);
        let (first_row, last_row) = (self.pairs.start / shape.group(), (self.pairs.end - 1) / shape.group());
        let positions = shape.visible(start + first_row).start..start + last_row + 1;
        // Positions that every pair sees need no mask.
        let common = shape.visible(start + last_row).start..start + first_row + 1;
        let mut j = positions.start;
        while j < positions.end {
            let block = j..positions.end.min(j + BLOCK);
            let masked = block.start < common.start || block.end > common.end;
            self.block::<S, C>(s, block.clone(), masked);
            j = block.end;
        }
        self.finish(s, width);
    }

    /// Transposes the scaled queries into the panel and initialises the state.
    #[inline(always)]
    fn pack<S: Simd>(&mut self, s: S, width: usize) {
        let Operands { shape, q, start, .. } = self.operands;
        let (d, group) = (shape.head_dim, shape.group());
        let (max, rest) = self.state.split_at_mut(width);
        let (sum, rest) = rest.split_at_mut(width);
        let (first, last) = rest.split_at_mut(width);
        max.fill(HIDDEN);
        sum.fill(0.0);
        // Lanes behind the last pair repeat it; their results are not written.
        let pair = |lane: usize| (self.pairs.start + lane).min(self.pairs.end - 1);
        for (lane, (first, last)) in first.iter_mut().zip(last).enumerate().take(width) {
            let visible = shape.visible(start + pair(lane) / group);
            *first = visible.start as f32;
            *last = (visible.end - 1) as f32;
        }
        let query = |lane: usize| {
            let (t, head) = (pair(lane) / group, self.kv_head * group + pair(lane) % group);
            &q[(t * shape.heads + head) * d..][..d]
        };
        pack(s, query, shape.scale, self.rows, self.queries, [d, width]);
    }

    /// Adds the positions `block` to the running sums.
    #[inline(always)]
    fn block<S: Simd, const C: usize>(&mut self, s: S, block: Range<usize>, masked: bool) {
        let d = self.operands.shape.head_dim;
        let width = C * S::LANES;
        let n = block.len();
        let (k, v) = self.operands.cached(self.kv_head, block.clone());
        let scores = &mut self.scores[..n * width];
        scores.fill(0.0);
        product::<S, C>(s, [n, d], k, [d, 1], &self.queries[..d * width], scores);
        if masked {
            let limits = &self.state[2 * width..4 * width];
            for (j, row) in scores.chunks_exact_mut(width).enumerate() {
                let position = s.splat((block.start + j) as f32);
                for c in 0..C {
                    let lanes = c * S::LANES..(c + 1) * S::LANES;
                    let (first, last) =
                        (s.load_slice(&limits[lanes.clone()]), s.load_slice(&limits[width..][lanes.clone()]));
                    let score = s.load_slice(&row[lanes.clone()]);
                    let score = s.select_le(position, last, score, s.splat(HIDDEN));
                    let score = s.select_le(first, position, score, s.splat(HIDDEN));
                    s.store_slice(&mut row[lanes], score);
                }
            }
        }
        let mut factors = [s.zero(); C];
        for (c, factor) in factors.iter_mut().enumerate() {
            let (maxima, sums) = self.state[..2 * width].split_at_mut(width);
            let (maxima, sums) = (&mut maxima[c * S::LANES..][..S::LANES], &mut sums[c * S::LANES..][..S::LANES]);
            let before = s.load_slice(maxima);
            let column = |j: usize| j * width + c * S::LANES;
            let max = (0..n).fold(before, |max, j| s.max(s.load_slice(&scores[column(j)..]), max));
            *factor = math::exp(s, s.sub(before, max));
            let mut sum = s.mul(s.load_slice(sums), *factor);
            for j in 0..n {
                let score = s.load_slice(&scores[column(j)..]);
                let e = math::exp(s, s.sub(score, max));
                // While a pair has seen nothing its maximum is HIDDEN itself, and the exponential would be 1.
                let e = s.select_le(score, s.splat(HIDDEN), s.zero(), e);
                sum = s.add(sum, e);
                s.store_slice(&mut scores[column(j)..], e);
            }
            s.store_slice(maxima, max);
            s.store_slice(sums, sum);
        }
        let values = &mut self.values[..d * width];
        for row in values.chunks_exact_mut(width) {
            for (x, &factor) in row.chunks_exact_mut(S::LANES).zip(&factors) {
                let y = s.mul(s.load_slice(x), factor);
                s.store_slice(x, y);
            }
        }
        product::<S, C>(s, [d, n], v, [1, d], scores, values);
    }

    /// Divides by the sums and writes the rows.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S, width: usize) {
        let shape = self.operands.shape;
        let (d, group) = (shape.head_dim, shape.group());
        let sums = &self.state[width..2 * width];
        for row in self.values[..d * width].chunks_exact_mut(width) {
            for (x, sum) in row.chunks_exact_mut(S::LANES).zip(sums.chunks_exact(S::LANES)) {
                let y = s.div(s.load_slice(x), s.load_slice(sum));
                s.store_slice(x, y);
            }
        }
        // SAFETY: the panel is `d` rows of `width`, `rows` at least `width` rows of `d`.
        unsafe { transpose(s, self.values.as_ptr(), width, [d, width], self.rows.as_mut_ptr(), d) };
        for (pair, row) in self.pairs.clone().zip(self.rows.chunks_exact(d)) {
            let (t, head) = (pair / group, self.kv_head * group + pair % group);
            let at = (t * shape.heads + head) * d;
            // SAFETY: a pair belongs to one panel, and this task alone computes it.
            unsafe { self.out.slice(at..at + d) }.copy_from_slice(row);
        }
        if let Some(log_sums) = self.log_sums {
            let (maxima, sums) = self.state[..2 * width].split_at(width);
            for (pair, (max, sum)) in self.pairs.clone().zip(maxima.iter().zip(sums)) {
                let (t, head) = (pair / group, self.kv_head * group + pair % group);
                // SAFETY: as above.
                unsafe { *log_sums.at(t * shape.heads + head) = max + sum.ln() };
            }
        }
    }
}
