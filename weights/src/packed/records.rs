//! From matrices to records and back.
//!
//! A record is made of parts of equal size: `height` rows of one matrix, or `height` columns of another, each column turned into a
//! row. Columns are copied in square tiles, so that both sides of a tile stay in the first-level cache.

use std::ops::Range;

use bytemuck::Pod;

use super::format::{heads_name, kv_heads_name, neurons_name};
use crate::{DType, FfnNames, LayerNames, ModelConfig, TensorData};

/// Rows and columns of a tile: one cache line of two-byte values.
const TILE: usize = 32;

/// What a record takes from one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Rows of `[count*height, d]`.
    Rows,
    /// Columns of `[d, count*height]`.
    Columns,
}

/// One packed tensor, `[count, parts*height, d]`: which matrices it is made of, and how.
#[derive(Clone, Debug)]
pub(super) struct Records {
    /// Name of the packed tensor.
    pub(super) name: String,
    /// Names of the matrices, in the order in which they stand in a record.
    pub(super) parts: Vec<(String, Part)>,
    pub(super) count: usize,
    pub(super) height: usize,
    /// `d`; of int8 the bytes of a row, which are moved as they are.
    pub(super) width: usize,
    /// Bytes of a value.
    pub(super) size: usize,
}

impl Records {
    /// The three packed tensors of layer `i`.
    pub(super) fn of_layer(config: &ModelConfig, dtype: DType, i: usize, names: &LayerNames) -> [Records; 3] {
        use Part::{Columns, Rows};
        let int8 = dtype == DType::I8;
        let records = |name, count, height, parts: &[(&String, Part)]| Records {
            name,
            // Output matrices of int8 are stored by input already.
            parts: parts
                .iter()
                .map(|(name, part)| (format!("{name}.weight"), if int8 { Rows } else { *part }))
                .collect(),
            count,
            height,
            width: if int8 { dtype.row_bytes(config.hidden) } else { config.hidden },
            size: dtype.size(),
        };
        let neuron: &[(&String, Part)] = match &names.ffn {
            FfnNames::Plain { fc1, fc2 } => &[(fc1, Rows), (fc2, Columns)],
            FfnNames::Gated { gate, up, down } => &[(gate, Rows), (up, Rows), (down, Columns)],
        };
        [
            records(heads_name(i), config.heads, config.head_dim, &[(&names.q, Rows), (&names.out, Columns)]),
            records(kv_heads_name(i), config.kv_heads, config.head_dim, &[(&names.k, Rows), (&names.v, Rows)]),
            records(neurons_name(i), config.ffn, 1, neuron),
        ]
    }

    /// Bytes of one record.
    pub(super) fn record_bytes(&self) -> usize {
        self.parts.len() * self.height * self.width * self.size
    }

    /// Writes the records `range` into `out`, which is exactly as long as they are. `matrices` are those of the parts.
    pub(super) fn fill(&self, matrices: &[&TensorData], range: Range<usize>, out: &mut [u8]) {
        match self.size {
            1 => self.fill_as::<u8>(matrices, range, out),
            2 => self.fill_as::<u16>(matrices, range, bytemuck::cast_slice_mut(out)),
            _ => self.fill_as::<u32>(matrices, range, bytemuck::cast_slice_mut(out)),
        }
    }

    fn fill_as<T: Pod>(&self, matrices: &[&TensorData], range: Range<usize>, out: &mut [T]) {
        let part_len = self.height * self.width;
        let record_len = self.parts.len() * part_len;
        for (p, ((_, part), matrix)) in self.parts.iter().zip(matrices).enumerate() {
            let values: &[T] = bytemuck::cast_slice(matrix.bytes());
            match part {
                Part::Rows => {
                    let rows = &values[range.start * part_len..range.end * part_len];
                    for (from, record) in rows.chunks_exact(part_len).zip(out.chunks_exact_mut(record_len)) {
                        record[p * part_len..][..part_len].copy_from_slice(from);
                    }
                }
                Part::Columns => {
                    let cols = self.count * self.height;
                    let wanted = range.start * self.height..range.end * self.height;
                    for_tiles(self.width, wanted, |rows, col| {
                        let record = (col / self.height - range.start) * record_len + p * part_len;
                        let line = record + col % self.height * self.width;
                        for (to, row) in out[line..][rows.clone()].iter_mut().zip(rows) {
                            *to = values[row * cols + col];
                        }
                    });
                }
            }
        }
    }

    /// Shape and values of part `p`'s matrix, taken out of `records`, the bytes of all of them.
    pub(super) fn matrix(&self, p: usize, records: &[u8]) -> (Vec<usize>, Vec<u8>) {
        match self.size {
            1 => self.matrix_as::<u8>(p, records),
            2 => self.matrix_as::<u16>(p, bytemuck::cast_slice(records)),
            _ => self.matrix_as::<u32>(p, bytemuck::cast_slice(records)),
        }
    }

    fn matrix_as<T: Pod>(&self, p: usize, records: &[T]) -> (Vec<usize>, Vec<u8>) {
        let part_len = self.height * self.width;
        let record_len = self.parts.len() * part_len;
        let lines = self.count * self.height;
        let rows = records.chunks_exact(record_len).flat_map(|record| &record[p * part_len..][..part_len]);
        let rows: Vec<T> = rows.copied().collect();
        match self.parts[p].1 {
            Part::Rows => (vec![lines, self.width], bytemuck::cast_slice(&rows).to_vec()),
            Part::Columns => {
                let mut values = vec![T::zeroed(); rows.len()];
                for_tiles(self.width, 0..lines, |range, col| {
                    for (row, &from) in range.clone().zip(&rows[col * self.width..][range]) {
                        values[row * lines + col] = from;
                    }
                });
                (vec![self.width, lines], bytemuck::cast_slice(&values).to_vec())
            }
        }
    }
}

/// Calls `copy(rows, col)` for pieces of all columns `cols` of a matrix of `height` rows, tile by tile.
fn for_tiles(height: usize, cols: Range<usize>, mut copy: impl FnMut(Range<usize>, usize)) {
    for first_col in cols.clone().step_by(TILE) {
        for first_row in (0..height).step_by(TILE) {
            for col in first_col..cols.end.min(first_col + TILE) {
                copy(first_row..height.min(first_row + TILE), col);
            }
        }
    }
}
