//! Row-major weight matrices over shared checkpoint bytes.

use std::ops::Range;

use half::{bf16, f16};
use shadowllm_weights::{DType, TensorData};

/// Why bytes cannot be used as a weight matrix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// A tensor that is not two-dimensional was given where a matrix is needed.
    #[error("expected a matrix (2 dimensions), but the tensor has shape {shape:?}")]
    NotAMatrix {
        /// The shape as found.
        shape: Vec<usize>,
    },
    /// Rows were asked for that the matrix does not have.
    #[error("rows {start}..{end} lie outside a matrix of {rows} rows")]
    RowRange {
        /// First row asked for.
        start: usize,
        /// One past the last row asked for.
        end: usize,
        /// Rows that exist.
        rows: usize,
    },
}

/// A weight matrix `[rows, cols]`, row-major: row `n` holds the weights of output `n`. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct Matrix {
    data: TensorData,
    rows: usize,
    cols: usize,
}

/// The elements of a [`Matrix`], typed. Always exactly `rows * cols` long.
#[derive(Clone, Copy, Debug)]
pub enum MatrixView<'a> {
    /// `[rows, cols]` of `f32`.
    F32(&'a [f32]),
    /// `[rows, cols]` of `f16`.
    F16(&'a [f16]),
    /// `[rows, cols]` of `bf16`.
    BF16(&'a [bf16]),
}

impl Matrix {
    /// Takes a two-dimensional tensor as a matrix.
    ///
    /// # Errors
    /// [`TensorError::NotAMatrix`] for any other number of dimensions.
    pub fn new(data: TensorData) -> Result<Self, TensorError> {
        match *data.shape() {
            [rows, cols] => Ok(Matrix { data, rows, cols }),
            _ => Err(TensorError::NotAMatrix { shape: data.shape().to_vec() }),
        }
    }

    /// Number of rows: outputs of the linear layer.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: inputs of the linear layer.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.data.bytes().len()
    }

    /// The elements as a typed slice.
    pub fn view(&self) -> MatrixView<'_> {
        let bytes = self.data.bytes();
        match self.data.dtype() {
            DType::F32 => MatrixView::F32(bytemuck::cast_slice(bytes)),
            DType::F16 => MatrixView::F16(bytemuck::cast_slice(bytes)),
            DType::BF16 => MatrixView::BF16(bytemuck::cast_slice(bytes)),
        }
    }

    /// The matrix of rows `range`, sharing the bytes.
    ///
    /// # Errors
    /// [`TensorError::RowRange`] if the range is reversed or ends behind the last row.
    pub fn rows_range(&self, range: Range<usize>) -> Result<Matrix, TensorError> {
        let error = TensorError::RowRange { start: range.start, end: range.end, rows: self.rows };
        if range.start > range.end || range.end > self.rows {
            return Err(error);
        }
        let rows = range.len();
        let data = self.data.slice_rows(range).map_err(|_| error)?;
        Ok(Matrix { data, rows, cols: self.cols })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_share_bytes_and_keep_order() {
        let m = Matrix::new(TensorData::from_f32(&[3, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap()).unwrap();
        let r = m.rows_range(1..3).unwrap();
        assert_eq!((r.rows(), r.cols(), r.bytes(), r.dtype()), (2, 2, 16, DType::F32));
        let MatrixView::F32(v) = r.view() else { panic!("wrong type") };
        assert_eq!(v, [2.0, 3.0, 4.0, 5.0]);
        assert_eq!(m.rows_range(3..3).unwrap().rows(), 0);
    }

    #[test]
    fn errors_name_what_was_found() {
        let t = TensorData::from_f32(&[2], &[0.0, 1.0]).unwrap();
        assert_eq!(
            Matrix::new(t).unwrap_err().to_string(),
            "expected a matrix (2 dimensions), but the tensor has shape [2]"
        );
        let m = Matrix::new(TensorData::from_f32(&[2, 1], &[0.0, 1.0]).unwrap()).unwrap();
        let e = m.rows_range(1..4).unwrap_err();
        assert_eq!(e.to_string(), "rows 1..4 lie outside a matrix of 2 rows");
    }
}
