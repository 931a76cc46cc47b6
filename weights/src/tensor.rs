//! A named tensor's bytes with their type and shape.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::{DType, Error, Result, Storage};

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
    /// [`Error::TensorSize`] if the range is not exactly as long as shape and type ask for or lies outside the storage,
    /// [`Error::Misaligned`] if it does not start at a multiple of the element size.
    pub fn new(storage: Arc<Storage>, range: Range<usize>, dtype: DType, shape: &[usize]) -> Result<Self> {
        let expected = shape.iter().try_fold(dtype.size(), |n, &s| n.checked_mul(s)).unwrap_or(usize::MAX);
        let found = storage.bytes().get(range.clone()).map_or(0, <[u8]>::len);
        if expected != found {
            return Err(Error::TensorSize { shape: shape.to_vec(), dtype, expected, found });
        }
        if !(storage.bytes().as_ptr() as usize + range.start).is_multiple_of(dtype.size()) {
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

    /// Rounds f32 values to `dtype` and stores them.
    ///
    /// # Errors
    /// As [`TensorData::from_f32`].
    pub fn from_f32_as(shape: &[usize], dtype: DType, values: &[f32]) -> Result<Self> {
        match dtype {
            DType::F32 => Self::from_f32(shape, values),
            DType::F16 => Self::from_f16(shape, &values.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>()),
            DType::BF16 => Self::from_bf16(shape, &values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>()),
        }
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
        self.range.len() / self.dtype.size()
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
        }
    }

    /// Rows `rows` of a tensor of at least one dimension, sharing the bytes.
    ///
    /// # Errors
    /// [`Error::TensorSize`] if the rows lie outside the tensor.
    pub fn slice_rows(&self, rows: Range<usize>) -> Result<Self> {
        let row: usize = self.shape[1..].iter().product::<usize>() * self.dtype.size();
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        let start = self.range.start.saturating_add(rows.start.saturating_mul(row));
        let end = start.saturating_add(rows.len().saturating_mul(row));
        if end > self.range.end {
            return Err(Error::TensorSize {
                shape,
                dtype: self.dtype,
                expected: end - start,
                found: self.range.end.saturating_sub(start),
            });
        }
        Self::new(Arc::clone(&self.storage), start..end, self.dtype, &shape)
    }
}
