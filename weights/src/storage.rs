//! Where the bytes of a tensor live.

use std::fmt;

/// One contiguous block of memory that tensors point into. Shared by reference count: the last tensor unmaps the file.
pub enum Storage {
    /// A memory-mapped file. Pages are read when they are touched.
    Mapped(memmap2::Mmap),
    /// Bytes compiled into the program.
    Static(&'static [u8]),
    /// Values made in memory; `u64` words keep every element type aligned.
    Owned {
        /// The memory, possibly up to seven bytes longer than what was stored.
        words: Vec<u64>,
        /// Bytes in use.
        len: usize,
    },
}

impl Storage {
    /// Copies `bytes` into memory of its own.
    pub fn owned(bytes: &[u8]) -> Self {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Storage::Owned { words, len: bytes.len() }
    }

    /// Maps a whole regular file read-only; its pages are read when they are touched. Files are replaced by renaming, which leaves a
    /// mapped one as it is; whoever shortens or rewrites one in place changes what its readers see.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) or [`Error::NotAFile`](crate::Error::NotAFile).
    pub fn map(path: &std::path::Path) -> crate::Result<Self> {
        Ok(crate::files::map(path)?.0)
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(map) => map,
            Storage::Static(bytes) => bytes,
            Storage::Owned { words, len } => &bytemuck::cast_slice(words)[..*len],
        }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Storage::Mapped(_) => "mapped",
            Storage::Static(_) => "static",
            Storage::Owned { .. } => "owned",
        };
        write!(f, "Storage({kind}, {} bytes)", self.bytes().len())
    }
}
