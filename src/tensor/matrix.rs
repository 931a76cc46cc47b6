//! Row-major weight matrices over shared checkpoint bytes, whole or spread over records.

use std::ops::Range;

use half::{bf16, f16};
use shadowllm_weights::{DType, TensorData};

use super::{RowLayout, RowsOf};

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
    /// A tensor that is not three-dimensional was given where records are needed.
    #[error("expected records (3 dimensions), but the tensor has shape {shape:?}")]
    NotRecords {
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

/// A byte of a row of int8 weights: a value, or a part of a scale ([`shadowllm_weights::int8_row`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Int8(pub u8);

/// A weight matrix `[rows, cols]`, row-major. Cloning shares the bytes.
///
/// Its rows lie one behind the other, or in records between the rows of other matrices ([`RowLayout`]). Each row is contiguous.
#[derive(Clone, Debug)]
pub struct Matrix {
    data: TensorData,
    rows: usize,
    cols: usize,
    /// Values of a line: what is stored with scales of its own. A row, or one of the rows of which a record consists.
    line: usize,
    layout: RowLayout,
}

/// Elements of a [`Matrix`], typed.
#[derive(Clone, Copy, Debug)]
pub enum MatrixView<'a> {
    /// `f32`.
    F32(&'a [f32]),
    /// `f16`.
    F16(&'a [f16]),
    /// `bf16`.
    BF16(&'a [bf16]),
    /// Rows of `int8` with their scales.
    I8(&'a [Int8]),
}

/// Elements of a line of `cols` values.
fn span(dtype: DType, cols: usize) -> usize {
    dtype.row_bytes(cols) / dtype.size()
}

impl Matrix {
    /// Takes a two-dimensional tensor as a matrix.
    ///
    /// # Errors
    /// [`TensorError::NotAMatrix`] for any other number of dimensions.
    pub fn new(data: TensorData) -> Result<Self, TensorError> {
        match *data.shape() {
            [rows, cols] => {
                let layout = RowLayout::contiguous(span(data.dtype(), cols));
                Ok(Matrix { data, rows, cols, line: cols, layout })
            }
            _ => Err(TensorError::NotAMatrix { shape: data.shape().to_vec() }),
        }
    }

    /// Records `[count, rows of a record, cols]` as a matrix with a row for each, `[count, rows of a record * cols]`.
    ///
    /// # Errors
    /// [`TensorError::NotRecords`] for another number of dimensions.
    pub fn of_records(records: TensorData) -> Result<Self, TensorError> {
        let &[rows, height, line] = records.shape() else {
            return Err(TensorError::NotRecords { shape: records.shape().to_vec() });
        };
        let layout = RowLayout::contiguous(height * span(records.dtype(), line));
        Ok(Matrix { data: records, rows, cols: height * line, line, layout })
    }

    /// The matrix that consists of rows `range` of every record of `records`, `[count, rows of a record, cols]`.
    ///
    /// # Errors
    /// [`TensorError::NotRecords`] for another number of dimensions, [`TensorError::RowRange`] for rows that a record does not
    /// have.
    pub fn in_records(records: TensorData, range: Range<usize>) -> Result<Self, TensorError> {
        let &[count, height, cols] = records.shape() else {
            return Err(TensorError::NotRecords { shape: records.shape().to_vec() });
        };
        check_range(&range, height)?;
        let span = span(records.dtype(), cols);
        let layout = match range.len() {
            0 => RowLayout::contiguous(span),
            group => RowLayout::in_records(span, range.start * span, group, height * span),
        };
        Ok(Matrix { data: records, rows: count * range.len(), cols, line: cols, layout })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// Values of a line, which is a row or a part of one; scales never belong to two.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Size in bytes, without what lies between the rows.
    pub fn bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    /// Size of a row in bytes, with its scales.
    pub fn row_bytes(&self) -> usize {
        self.span() * self.dtype().size()
    }

    /// Elements of a row; with scales more than it has values.
    pub(crate) fn span(&self) -> usize {
        self.cols.checked_div(self.line).unwrap_or(0) * span(self.dtype(), self.line)
    }

    /// Where the rows are in [`Matrix::elements`].
    pub fn layout(&self) -> RowLayout {
        self.layout
    }

    /// The rows, given [`Matrix::elements`] in their type.
    pub(crate) fn rows_of<'a, T>(&self, elements: &'a [T]) -> RowsOf<'a, T> {
        RowsOf { elements, layout: self.layout, span: self.span() }
    }

    /// All elements of the memory that the rows lie in.
    pub fn elements(&self) -> MatrixView<'_> {
        let bytes = self.data.bytes();
        match self.data.dtype() {
            DType::F32 => MatrixView::F32(bytemuck::cast_slice(bytes)),
            DType::F16 => MatrixView::F16(bytemuck::cast_slice(bytes)),
            DType::BF16 => MatrixView::BF16(bytemuck::cast_slice(bytes)),
            DType::I8 => MatrixView::I8(bytemuck::cast_slice(bytes)),
        }
    }

    /// The elements `[rows, cols]`, of int8 with their scales.
    ///
    /// # Panics
    /// If the rows do not lie one directly behind the other.
    pub fn view(&self) -> MatrixView<'_> {
        let one_run = self.layout.stride() == self.span() && self.layout.run_end(0) >= self.rows;
        assert!(self.rows <= 1 || one_run, "the rows of this matrix lie apart, in records");
        let range = match self.rows {
            0 => 0..0,
            rows => self.layout.start(0)..self.layout.start(0) + rows * self.span(),
        };
        match self.elements() {
            MatrixView::F32(values) => MatrixView::F32(&values[range]),
            MatrixView::F16(values) => MatrixView::F16(&values[range]),
            MatrixView::BF16(values) => MatrixView::BF16(&values[range]),
            MatrixView::I8(values) => MatrixView::I8(&values[range]),
        }
    }

    /// The bytes of [`Matrix::view`].
    pub(crate) fn view_bytes(&self) -> &[u8] {
        match self.view() {
            MatrixView::F32(values) => bytemuck::cast_slice(values),
            MatrixView::F16(values) => bytemuck::cast_slice(values),
            MatrixView::BF16(values) => bytemuck::cast_slice(values),
            MatrixView::I8(values) => bytemuck::cast_slice(values),
        }
    }

    /// The matrix of rows `range`, sharing the bytes.
    ///
    /// # Errors
    /// [`TensorError::RowRange`] if the range is reversed or ends behind the last row.
    pub fn rows_range(&self, range: Range<usize>) -> Result<Matrix, TensorError> {
        check_range(&range, self.rows)?;
        Ok(Matrix { rows: range.len(), layout: self.layout.skip(range.start), ..self.clone() })
    }
}

fn check_range(range: &Range<usize>, rows: usize) -> Result<(), TensorError> {
    match range.start <= range.end && range.end <= rows {
        true => Ok(()),
        false => Err(TensorError::RowRange { start: range.start, end: range.end, rows }),
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
        assert!(matches!(m.rows_range(3..3).unwrap().view(), MatrixView::F32([])));
        let last = r.rows_range(1..2).unwrap();
        let MatrixView::F32(v) = last.view() else { panic!("wrong type") };
        assert_eq!(v, [4.0, 5.0]);
    }

    #[test]
    fn matrices_in_records() {
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let records = TensorData::from_f32(&[2, 4, 3], &values).unwrap();
        let rows = |m: &Matrix| -> Vec<Vec<f32>> {
            let MatrixView::F32(all) = m.elements() else { panic!("wrong type") };
            (0..m.rows()).map(|row| all[m.layout().start(row)..][..m.cols()].to_vec()).collect()
        };
        let middle = Matrix::in_records(records.clone(), 1..3).unwrap();
        assert_eq!((middle.rows(), middle.cols(), middle.bytes()), (4, 3, 48));
        let expected = [[3.0, 4.0, 5.0], [6.0, 7.0, 8.0], [15.0, 16.0, 17.0], [18.0, 19.0, 20.0]];
        assert_eq!(rows(&middle), expected);
        assert_eq!(rows(&middle.rows_range(1..3).unwrap()), expected[1..3]);
        // Two rows of one record, and a single one, are contiguous.
        for range in [0..2, 2..4, 3..4] {
            let part = middle.rows_range(range.clone()).unwrap();
            let MatrixView::F32(v) = part.view() else { panic!("wrong type") };
            assert_eq!(v, expected[range].concat());
        }
        let single = Matrix::in_records(records.clone(), 3..4).unwrap();
        assert_eq!(rows(&single), [[9.0, 10.0, 11.0], [21.0, 22.0, 23.0]]);
        let whole = Matrix::in_records(records.clone(), 0..4).unwrap();
        let MatrixView::F32(v) = whole.view() else { panic!("wrong type") };
        assert_eq!(v, values);
        let none = Matrix::in_records(records, 2..2).unwrap();
        assert_eq!((none.rows(), none.bytes()), (0, 0));
    }

    #[test]
    fn rows_with_scales() {
        let values: Vec<f32> = (0..4 * 70).map(|i| (i / 70) as f32).collect();
        let records = TensorData::from_f32_as(&[2, 2, 70], DType::I8, &values).unwrap();
        let line = DType::I8.row_bytes(70);
        let second = Matrix::in_records(records.clone(), 1..2).unwrap();
        assert_eq!((second.rows(), second.cols(), second.bytes()), (2, 70, 2 * line));
        let starts = [0, 1].map(|row| second.layout().start(row));
        assert_eq!(starts, [line, 3 * line]);
        let whole = Matrix::of_records(records).unwrap();
        assert_eq!((whole.rows(), whole.cols(), whole.line(), whole.bytes()), (2, 140, 70, 4 * line));
        assert_eq!(whole.rows_range(1..2).unwrap().view_bytes().len(), 2 * line);
        assert_eq!(whole.view_bytes()[..line].len(), whole.row_bytes() / 2);
        let error = Matrix::of_records(TensorData::from_f32(&[1], &[0.0]).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "expected records (3 dimensions), but the tensor has shape [1]");
    }

    #[test]
    #[should_panic(expected = "the rows of this matrix lie apart, in records")]
    fn rows_that_lie_apart_are_no_slice() {
        let records = TensorData::from_f32(&[2, 2, 1], &[0.0; 4]).unwrap();
        let _ = Matrix::in_records(records, 0..1).unwrap().view();
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
        let t = TensorData::from_f32(&[2, 1], &[0.0, 1.0]).unwrap();
        assert_eq!(
            Matrix::in_records(t, 0..1).unwrap_err().to_string(),
            "expected records (3 dimensions), but the tensor has shape [2, 1]"
        );
        let t = TensorData::from_f32(&[1, 2, 1], &[0.0, 1.0]).unwrap();
        let e = Matrix::in_records(t, 1..3).unwrap_err();
        assert_eq!(e.to_string(), "rows 1..3 lie outside a matrix of 2 rows");
    }
}
