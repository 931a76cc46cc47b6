//! A named tensor's bytes with their type and shape.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::{DType, Error, Result, Storage, int8_row, int8_values};

/// Row-major tensor over shared bytes: cheap to clone, and it keeps its file mapped.
///
/// Length and alignment were checked when it was made, so every typed view is valid.
#[derive(Clone, Debug)]
pub struct TensorData {
    storage: Arc<Storage>,
    range: Range<usize>,
    dtype: DType,
    shape: Vec<usize>,
}

impl TensorData {
    /// A view of `storage[range]` as a tensor.
    ///
    /// # Errors
    /// [`Error::TensorRange`] if the range does not lie in the storage, [`Error::TensorSize`] if it is not exactly as long as
    /// shape and type ask for, [`Error::Misaligned`] if it does not start at a multiple of the element size.
    pub fn new(storage: Arc<Storage>, range: Range<usize>, dtype: DType, shape: &[usize]) -> Result<Self> {
        let expected = dtype.bytes(shape).unwrap_or(usize::MAX);
        let Some(bytes) = storage.bytes().get(range.clone()) else {
            return Err(Error::TensorRange { start: range.start, end: range.end, len: storage.bytes().len() });
        };
        if expected != bytes.len() {
            return Err(Error::TensorSize { shape: shape.to_vec(), dtype, expected, found: bytes.len() });
        }
        if !(bytes.as_ptr() as usize).is_multiple_of(dtype.size()) {
            return Err(Error::Misaligned { size: dtype.size() });
        }
        Ok(TensorData { storage, range, dtype, shape: shape.to_vec() })
    }

    fn owned<T: bytemuck::NoUninit>(shape: &[usize], dtype: DType, values: &[T]) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        Self::new(Arc::new(Storage::owned(bytes)), 0..bytes.len(), dtype, shape)
    }

    /// A tensor of its own memory.
    ///
    /// # Errors
    /// [`Error::TensorSize`] if the number of values is not the product of the shape.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Result<Self> {
        Self::owned(shape, DType::F32, values)
    }

    /// As [`TensorData::from_f32`].
    pub fn from_f16(shape: &[usize], values: &[f16]) -> Result<Self> {
        Self::owned(shape, DType::F16, values)
    }

    /// As [`TensorData::from_f32`].
    pub fn from_bf16(shape: &[usize], values: &[bf16]) -> Result<Self> {
        Self::owned(shape, DType::BF16, values)
    }

    /// A tensor of its own memory, from little-endian bytes.
    ///
    /// # Errors
    /// As [`TensorData::from_f32`].
    pub fn from_bytes(shape: &[usize], dtype: DType, bytes: &[u8]) -> Result<Self> {
        Self::owned(shape, dtype, bytes)
    }

    /// Rounds f32 values to `dtype` and stores them.
    ///
    /// # Errors
    /// As [`TensorData::from_f32`].
    pub fn from_f32_as(shape: &[usize], dtype: DType, values: &[f32]) -> Result<Self> {
        match dtype {
            DType::F32 => Self::from_f32(shape, values),
            DType::F16 => Self::from_f16(shape, &values.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>()),
            DType::BF16 => Self::from_bf16(shape, &values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>()),
            DType::I8 => {
                let cols = shape.last().copied().unwrap_or(0);
                let row_bytes = dtype.row_bytes(cols);
                let mut bytes = vec![0; values.len() / cols.max(1) * row_bytes];
                for (values, row) in values.chunks_exact(cols.max(1)).zip(bytes.chunks_exact_mut(row_bytes.max(1))) {
                    int8_row(values, row);
                }
                Self::from_bytes(shape, dtype, &bytes)
            }
        }
    }

    /// The same bytes with other sizes.
    ///
    /// # Errors
    /// [`Error::TensorSize`] if the sizes have another product.
    pub fn reshaped(&self, shape: &[usize]) -> Result<Self> {
        Self::new(Arc::clone(&self.storage), self.range.clone(), self.dtype, shape)
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Raw little-endian bytes, aligned to the element size.
    pub fn bytes(&self) -> &[u8] {
        &self.storage.bytes()[self.range.clone()]
    }

    fn typed<T: bytemuck::AnyBitPattern>(&self, dtype: DType) -> Option<&[T]> {
        (self.dtype == dtype).then(|| bytemuck::cast_slice(self.bytes()))
    }

    /// The elements, if they are `f32`.
    pub fn as_f32(&self) -> Option<&[f32]> {
        self.typed(DType::F32)
    }

    /// The elements, if they are `f16`.
    pub fn as_f16(&self) -> Option<&[f16]> {
        self.typed(DType::F16)
    }

    /// The elements, if they are `bf16`.
    pub fn as_bf16(&self) -> Option<&[bf16]> {
        self.typed(DType::BF16)
    }

    /// A copy of all elements, widened to `f32` (exact for every type).
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => bytemuck::cast_slice(self.bytes()).to_vec(),
            DType::F16 => bytemuck::cast_slice::<u8, f16>(self.bytes()).iter().map(|v| v.to_f32()).collect(),
            DType::BF16 => bytemuck::cast_slice::<u8, bf16>(self.bytes()).iter().map(|v| v.to_f32()).collect(),
            DType::I8 => {
                let cols = self.shape.last().copied().unwrap_or(0);
                let mut values = vec![0.0; self.len()];
                let rows = self.bytes().chunks_exact(self.dtype.row_bytes(cols).max(1));
                for (row, values) in rows.zip(values.chunks_exact_mut(cols.max(1))) {
                    int8_values(row, values);
                }
                values
            }
        }
    }

    /// Rows `rows` of a tensor of at least one dimension, sharing the bytes.
    ///
    /// # Errors
    /// [`Error::RowRange`] if the rows lie outside the tensor, or the tensor has no dimension.
    pub fn slice_rows(&self, rows: Range<usize>) -> Result<Self> {
        let count = self.shape.first().copied().unwrap_or(0);
        if self.shape.is_empty() || rows.start > rows.end || rows.end > count {
            return Err(Error::RowRange { start: rows.start, end: rows.end, shape: self.shape.clone() });
        }
        // `new` checked that all rows together can be counted in bytes; a tensor without elements has empty rows.
        let row = self.range.len().checked_div(count).unwrap_or(0);
        let start = self.range.start + rows.start * row;
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        Self::new(Arc::clone(&self.storage), start..start + rows.len() * row, self.dtype, &shape)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn storage(len: u8) -> Arc<Storage> {
        Arc::new(Storage::owned(&(0..len).collect::<Vec<u8>>()))
    }

    #[test]
    fn refuses_what_does_not_fit() {
        for (range, dtype, shape, expected) in [
            (0..8, DType::F32, &[3][..], "tensor of shape [3] and type f32 needs 12 bytes, but 8 were given"),
            (0..8, DType::F32, &[], "tensor of shape [] and type f32 needs 4 bytes, but 8 were given"),
            (
                0..8,
                DType::F16,
                &[usize::MAX, 3],
                "tensor of shape [18446744073709551615, 3] and type f16 needs 18446744073709551615 bytes, but 8 were given",
            ),
            (8..20, DType::F32, &[3], "tensor bytes 8..20 do not lie in a storage of 16 bytes"),
            (20..20, DType::F32, &[0], "tensor bytes 20..20 do not lie in a storage of 16 bytes"),
            (
                2..10,
                DType::F32,
                &[2],
                "tensor data starts at an address that is no multiple of 4 bytes; \
                 rewrite the file with a current safetensors library",
            ),
        ] {
            let error = TensorData::new(storage(16), range, dtype, shape).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        assert!(TensorData::new(storage(16), 2..10, DType::BF16, &[4]).is_ok());
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = TensorData::new(storage(16), 8..4, DType::F32, &[0]);
        assert_eq!(reversed.unwrap_err().to_string(), "tensor bytes 8..4 do not lie in a storage of 16 bytes");
        assert!(TensorData::from_f32(&[3], &[1.0, 2.0]).is_err());
    }

    #[test]
    fn typed_views() {
        let values = [0.0, -1.5, 65504.0, 0.333_333_34];
        for dtype in DType::FLOATS {
            let tensor = TensorData::from_f32_as(&[2, 2], dtype, &values).unwrap();
            assert_eq!((tensor.dtype(), tensor.shape(), tensor.len()), (dtype, &[2, 2][..], 4));
            assert_eq!(tensor.bytes().len(), 4 * dtype.size());
            assert_eq!(tensor.as_f32().is_some(), dtype == DType::F32);
            assert_eq!(tensor.as_f16().is_some(), dtype == DType::F16);
            assert_eq!(tensor.as_bf16().is_some(), dtype == DType::BF16);
            let round = |v: f32| match dtype {
                DType::F32 => v,
                DType::F16 => f16::from_f32(v).to_f32(),
                DType::BF16 | DType::I8 => bf16::from_f32(v).to_f32(),
            };
            assert_eq!(tensor.to_f32(), values.map(round));
        }
    }

    #[test]
    fn rows_with_scales() {
        let values: Vec<f32> = (0..6 * 70).map(|i| (i % 70) as f32 - 35.0).collect();
        let tensor = TensorData::from_f32_as(&[2, 3, 70], DType::I8, &values).unwrap();
        assert_eq!((tensor.len(), tensor.bytes().len()), (420, 6 * 80));
        let back = tensor.to_f32();
        assert!(values.iter().zip(&back).all(|(v, w)| (v - w).abs() < 0.5 * 35.5 / 127.0));
        let second = tensor.slice_rows(1..2).unwrap();
        assert_eq!((second.shape(), second.to_f32().as_slice()), (&[1, 3, 70][..], &back[210..]));
        assert!(tensor.as_f32().is_none());
        let error = TensorData::from_bytes(&[2, 70], DType::I8, &[0; 140]).unwrap_err().to_string();
        assert_eq!(error, "tensor of shape [2, 70] and type int8 needs 160 bytes, but 140 were given");
    }

    #[test]
    fn rows() {
        let tensor = TensorData::from_f32(&[3, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let part = tensor.slice_rows(1..3).unwrap();
        assert_eq!((part.shape(), part.to_f32()), (&[2, 2][..], vec![2.0, 3.0, 4.0, 5.0]));
        assert_eq!(part.slice_rows(1..2).unwrap().to_f32(), [4.0, 5.0]);
        assert!(tensor.slice_rows(3..3).unwrap().is_empty());
        for rows in [2..4, 4..4, usize::MAX..usize::MAX] {
            let expected = format!("rows {}..{} do not lie in a tensor of shape [3, 2]", rows.start, rows.end);
            assert_eq!(tensor.slice_rows(rows).unwrap_err().to_string(), expected);
        }
        let scalar = TensorData::from_f32(&[], &[1.0]).unwrap();
        assert_eq!(scalar.slice_rows(0..1).unwrap_err().to_string(), "rows 0..1 do not lie in a tensor of shape []");
        let empty = TensorData::from_f32(&[3, 0], &[]).unwrap();
        assert_eq!(empty.slice_rows(1..3).unwrap().shape(), [2, 0]);
    }
}
