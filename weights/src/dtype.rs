//! Number formats a weight may have on disk and in memory.

use std::fmt;
use std::str::FromStr;

use crate::{Error, int8};

/// Element type of a weight. Activations are always `f32`; weights keep the type of their file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// One byte, with a scale for every 64 values in the same row ([`int8_row`](crate::int8_row)); called `int8`.
    I8,
}

impl DType {
    /// All types, widest first.
    pub const ALL: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::I8];

    /// Those whose values stand for themselves: all that a vector may have.
    pub const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

    /// Bytes of one value; of `int8` without scales.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::I8 => 1,
        }
    }

    /// Bytes of a row of `cols` values, with its scales.
    ///
    /// # Panics
    /// If that is more than the address space.
    pub fn row_bytes(self, cols: usize) -> usize {
        self.bytes(&[cols]).unwrap_or_else(|| panic!("a row of {cols} values of {self} is too long"))
    }

    /// Bytes of a tensor whose rows are its last dimension; `None` if that is more than the address space.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        let (row, rest) = match (self, shape.split_last()) {
            (DType::I8, Some((&cols, rest))) => (int8::row_bytes(cols)?, rest),
            (DType::I8, None) => return None,
            _ => (self.size(), shape),
        };
        rest.iter().try_fold(row, |n, &s| n.checked_mul(s))
    }

    /// Name in the `config.json` of a checkpoint.
    pub const fn torch_name(self) -> &'static str {
        match self {
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            DType::I8 => "int8",
        }
    }

    /// Shape of a tensor as a file's header has it: rows of `int8` count in bytes.
    pub(crate) fn stored_shape(self, shape: &[usize]) -> Option<Vec<usize>> {
        let mut shape = shape.to_vec();
        if self == DType::I8 {
            let cols = shape.last_mut()?;
            *cols = int8::row_bytes(*cols)?;
        }
        Some(shape)
    }

    /// Name used on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I8 => "int8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        DType::ALL.into_iter().find(|d| d.name() == s).ok_or_else(|| Error::UnknownDType { found: s.to_owned() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(DType::BF16.bytes(&[3, 5]), Some(30));
        assert_eq!(DType::I8.bytes(&[3, 5]), Some(3 * 16));
        assert_eq!(DType::I8.stored_shape(&[2, 3, 64]), Some(vec![2, 3, 80]));
        assert_eq!((DType::I8.bytes(&[]), DType::F32.bytes(&[])), (None, Some(4)));
        assert_eq!((DType::I8.bytes(&[usize::MAX, 2]), DType::I8.bytes(&[2, usize::MAX])), (None, None));
    }

    #[test]
    fn names() {
        for dtype in DType::ALL {
            assert_eq!(dtype.to_string().parse::<DType>().unwrap(), dtype);
        }
        assert_eq!(
            "F32".parse::<DType>().unwrap_err().to_string(),
            "unknown dtype \"F32\"; expected f32, f16, bf16 or int8"
        );
    }
}
