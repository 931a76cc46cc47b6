//! Memory for activations and caches, aligned to a cache line.

use std::ops::{Deref, DerefMut};

/// One cache line of values.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; Line::LEN]);

impl Line {
    const LEN: usize = 16;
}

/// A slice of `f32` that begins at a multiple of 64 bytes, so that a vector of any width is read from one cache line.
///
/// Kernels take any slice; those that stream a key/value cache lose up to a third of their speed if it is not aligned.
#[derive(Clone, Debug, Default)]
pub struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Buffer { lines: vec![Line([0.0; Line::LEN]); len.div_ceil(Line::LEN)], len }
    }

    /// Changes the length, keeping what fits. New elements are zero, except where a longer buffer was shortened before.
    /// Allocates only to grow past the greatest length so far.
    pub fn resize(&mut self, len: usize) {
        let lines = len.div_ceil(Line::LEN);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0.0; Line::LEN]));
        }
        self.len = len;
    }

    /// The greatest length that [`Buffer::resize`] reaches without allocating.
    pub fn capacity(&self) -> usize {
        self.lines.len() * Line::LEN
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: a line is sixteen initialised `f32` without padding, and the lines hold at least `len` of them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as for `deref`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_keep_their_contents() {
        for len in [0, 1, 16, 17, 1000] {
            let mut buffer = Buffer::zeros(len);
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % 64), (len, 0));
            buffer.fill(1.0);
            buffer.resize(len + 40);
            assert!(buffer[..len].iter().all(|&v| v == 1.0));
            assert!(buffer[len.next_multiple_of(16)..].iter().all(|&v| v == 0.0));
            let capacity = buffer.capacity();
            buffer.resize(3);
            assert_eq!((buffer.len(), buffer.capacity()), (3, capacity));
        }
    }
}
