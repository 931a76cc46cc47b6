//! Scores that the oracle ranks by: what the dense model computes for each token.

use std::sync::Arc;

use crate::Result;
use crate::kernels::Cpu;
use crate::model::{Layer, Model, Probe, Rows};
use crate::sparsity::{ScoreSource, Scores, Units};

/// Scores of the rows of one pass.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    /// `[rows, L, H]`
    heads: Vec<f32>,
    /// `[rows, L, F]`
    neurons: Vec<f32>,
}

/// Norms of the columns of every layer's second FFN matrix, `[L, F]`.
pub(super) fn column_norms(cpu: &Cpu, model: &Model) -> Vec<f32> {
    let norms = |layer: &Layer| layer.ffn.output_squares(cpu).into_iter().map(|sum| sum.sqrt() as f32);
    model.layers.iter().flat_map(norms).collect()
}

/// Records, in a dense pass, the squared norms of contexts and the sizes of inners times the norm of their column.
pub(super) struct Magnitudes<'a> {
    units: Units,
    /// `[L, F]`
    norms: &'a [f32],
    recorded: &'a mut Recorded,
}

impl<'a> Magnitudes<'a> {
    /// For a pass of `rows` rows.
    pub(super) fn new(units: Units, norms: &'a [f32], recorded: &'a mut Recorded, rows: usize) -> Self {
        recorded.heads.resize(rows * units.layers * units.heads, 0.0);
        recorded.neurons.resize(rows * units.layers * units.neurons, 0.0);
        Magnitudes { units, norms, recorded }
    }
}

impl Probe for Magnitudes<'_> {
    fn contexts(&mut self, rows: Rows, values: &mut [f32]) {
        let (layers, heads) = (self.units.layers, self.units.heads);
        let width = values.len() / rows.count;
        for (contexts, scores) in values.chunks_exact(width).zip(self.recorded.heads.chunks_exact_mut(layers * heads)) {
            let scores = &mut scores[rows.layer * heads..][..heads];
            for (context, score) in contexts.chunks_exact(width / heads).zip(scores) {
                *score = context.iter().map(|v| v * v).sum();
            }
        }
    }

    fn inners(&mut self, rows: Rows, values: &mut [f32]) {
        let (layers, f) = (self.units.layers, self.units.neurons);
        let norms = &self.norms[rows.layer * f..][..f];
        for (inners, scores) in values.chunks_exact(f).zip(self.recorded.neurons.chunks_exact_mut(layers * f)) {
            for ((score, z), norm) in scores[rows.layer * f..][..f].iter_mut().zip(inners).zip(norms) {
                *score = z.abs() * norm;
            }
        }
    }
}

/// The scores of one text among those of its pass.
#[derive(Clone, Debug)]
pub(super) struct TextScores {
    pub(super) recorded: Arc<Recorded>,
    /// Row of the pass, and position in the text, of its first token.
    pub(super) row: usize,
    pub(super) position: usize,
}

impl ScoreSource for TextScores {
    fn scores(&mut self, position: usize, scores: &mut Scores) -> Result<()> {
        let row = self.row + position - self.position;
        for (all, into) in [(&self.recorded.heads, &mut scores.heads), (&self.recorded.neurons, &mut scores.neurons)] {
            let width = into.len();
            into.copy_from_slice(&all[row * width..][..width]);
        }
        Ok(())
    }
}
