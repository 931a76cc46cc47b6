//! The innermost tile.

// Tiles are indexed by constants, several arrays at once: that is what keeps them in registers.
#![allow(clippy::needless_range_loop)]

use crate::kernels::simd::Simd;

/// The operands of a tile of some rows of weights and some vectors of tokens.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Words, pairs of values, to be summed.
    pub(super) words: usize,
    /// Words that share scales; the last ones may be fewer.
    pub(super) group: usize,
    /// Word `i` of row `r` is at `r * strides[0] + i * strides[1]`.
    pub(super) weights: *const f32,
    pub(super) strides: [usize; 2],
    /// Scale of group `g` of row `r` at `r * scales_row + g`.
    pub(super) weights_scales: *const f32,
    pub(super) scales_row: usize,
    /// `[words, tokens of the panel]` without gaps.
    pub(super) x: *const f32,
    /// Scales of group `g` at `g * x_scales_row`.
    pub(super) x_scales: *const f32,
    pub(super) x_scales_row: usize,
    /// Rows `sums_row` apart.
    pub(super) sums: *mut f32,
    pub(super) sums_row: usize,
}

impl Tile {
    /// `sums[r][c] += scales of r and c * sum_i weights[r][i] . x[i][c]` for `R` rows and `vectors` vectors of tokens, at most four,
    /// group by group. A group's sum is exact as long as 32 bits hold it.
    ///
    /// # Safety
    /// The operands are valid for these sizes, and the sums are not aliased.
    #[inline(always)]
    pub(super) unsafe fn add<S: Simd, const R: usize>(self, s: S, vectors: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match vectors {
                1 => self.vectors::<S, R, 1>(s),
                2 => self.vectors::<S, R, 2>(s),
                3 => self.vectors::<S, R, 3>(s),
                _ => self.vectors::<S, R, 4>(s),
            }
        }
    }

    /// [`Tile::add`] for `C` vectors.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn vectors<S: Simd, const R: usize, const C: usize>(self, s: S) {
        let (mut w, mut x) = (self.weights, self.x);
        for (g, first) in (0..self.words).step_by(self.group).enumerate() {
            let mut acc = [[s.zero(); C]; R];
            for _ in first..self.words.min(first + self.group) {
                // SAFETY: this word of every row and of the panel exists. The pointers end at most one step behind the last.
                unsafe {
                    let mut xs = [s.zero(); C];
                    for c in 0..C {
                        xs[c] = s.load(x.add(c * S::LANES));
                    }
                    for r in 0..R {
                        let wv = s.splat(*w.add(r * self.strides[0]));
                        for c in 0..C {
                            acc[r][c] = s.dot_words(acc[r][c], wv, xs[c]);
                        }
                    }
                }
                x = x.wrapping_add(C * S::LANES);
                w = w.wrapping_add(self.strides[1]);
            }
            for c in 0..C {
                // SAFETY: the scales of this group and these tokens exist.
                let x_scale = unsafe { s.load(self.x_scales.add(g * self.x_scales_row + c * S::LANES)) };
                for r in 0..R {
                    // SAFETY: the scale of this row and group exists; the place is inside row `r` of the sums.
                    unsafe {
                        let scale = s.mul(x_scale, s.splat(*self.weights_scales.add(r * self.scales_row + g)));
                        let place = self.sums.add(r * self.sums_row + c * S::LANES);
                        s.store(place, s.fma(s.whole_to_f32(acc[r][c]), scale, s.load(place)));
                    }
                }
            }
        }
    }
}
