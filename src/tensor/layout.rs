//! Where the rows of a matrix are, in memory that it may share with other matrices.

/// Rows of a matrix, in elements from the start of its memory.
///
/// In a packed file a matrix lies in pieces: `group` rows in every record, and between them the rows of the matrices whose
/// units are the same. Rows of one record are `stride` apart; a matrix of one row per record is a single group whose stride is
/// the record, so kernels find the same few long *runs* of equal steps in every arrangement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLayout {
    /// Start of the first row of the first record.
    first: usize,
    /// Rows of one record.
    group: usize,
    /// From one row to the next of the same record.
    stride: usize,
    /// From one record to the next.
    record: usize,
    /// Rows of the first record in front of row 0.
    skipped: usize,
}

impl RowLayout {
    /// Rows of `cols` elements, one directly behind the other.
    pub fn contiguous(cols: usize) -> Self {
        RowLayout { first: 0, group: usize::MAX, stride: cols, record: 0, skipped: 0 }
    }

    /// `group` rows of `cols` elements (at least one) in every record of `record` elements, the first of them `first` elements
    /// behind the record's start.
    pub fn in_records(cols: usize, first: usize, group: usize, record: usize) -> Self {
        match group {
            1 => RowLayout { first, stride: record, ..Self::contiguous(cols) },
            _ if group * cols == record => Self::contiguous(cols),
            _ => RowLayout { first, group, stride: cols, record, skipped: 0 },
        }
    }

    /// The same without the first `rows` rows.
    pub(super) fn skip(self, rows: usize) -> Self {
        RowLayout { skipped: self.skipped + rows, ..self }
    }

    /// Element at which row `row` begins.
    #[inline(always)]
    pub fn start(&self, row: usize) -> usize {
        let row = row + self.skipped;
        self.first + row / self.group * self.record + row % self.group * self.stride
    }

    /// The first row behind `row` that does not begin [`RowLayout::stride`] elements after the one before it.
    #[inline(always)]
    pub fn run_end(&self, row: usize) -> usize {
        ((row + self.skipped) / self.group + 1).saturating_mul(self.group) - self.skipped
    }

    /// Elements from one row of a run to the next.
    #[inline(always)]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The starts of row `row` and all behind it, without a division for each.
    #[inline(always)]
    pub(crate) fn starts(self, row: usize) -> RowStarts {
        RowStarts { layout: self, row, start: self.start(row), run_end: self.run_end(row) }
    }
}

/// Walks through the starts of rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowStarts {
    layout: RowLayout,
    row: usize,
    start: usize,
    run_end: usize,
}

impl RowStarts {
    /// Start of the present row; the next row is present then.
    #[inline(always)]
    pub(crate) fn advance(&mut self) -> usize {
        let start = self.start;
        self.row += 1;
        if self.row < self.run_end {
            self.start += self.layout.stride;
        } else {
            (self.start, self.run_end) = (self.layout.start(self.row), self.layout.run_end(self.row));
        }
        start
    }
}

/// Elements of one type with the rows of a matrix among them: what a kernel reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowsOf<'a, T> {
    /// All elements of the memory that the rows lie in.
    pub(crate) elements: &'a [T],
    pub(crate) layout: RowLayout,
    /// Elements of a row; with scales more than it has values.
    pub(crate) span: usize,
}

impl<'a, T> RowsOf<'a, T> {
    /// Rows of `span` elements, one directly behind the other.
    #[inline(always)]
    pub(crate) fn contiguous(elements: &'a [T], span: usize) -> Self {
        RowsOf { elements, layout: RowLayout::contiguous(span), span }
    }

    /// Row `row`.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [T] {
        &self.elements[self.layout.start(row)..][..self.span]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_where_records_have_them() {
        // Records of 5 lines of 4 elements, of which lines 2 and 3 are the matrix.
        let layout = RowLayout::in_records(4, 8, 2, 20);
        let starts = |layout: RowLayout| (0..5).map(|row| layout.start(row)).collect::<Vec<_>>();
        let ends = |layout: RowLayout| (0..5).map(|row| layout.run_end(row)).collect::<Vec<_>>();
        assert_eq!((starts(layout), layout.stride()), (vec![8, 12, 28, 32, 48], 4));
        assert_eq!(ends(layout), [2, 2, 4, 4, 6]);
        let mut walk = layout.starts(1);
        assert_eq!([0; 4].map(|_| walk.advance()), [12, 28, 32, 48]);
        let later = layout.skip(1);
        assert_eq!((starts(later), ends(later)), (vec![12, 28, 32, 48, 52], vec![1, 3, 3, 5, 5]));
        // One line of each record: a single run.
        let single = RowLayout::in_records(4, 16, 1, 20);
        assert_eq!((starts(single), single.stride()), (vec![16, 36, 56, 76, 96], 20));
        assert_eq!(single.skip(2).start(1), 76);
        for whole in [RowLayout::contiguous(4), RowLayout::in_records(4, 0, 5, 20)] {
            assert_eq!((starts(whole), whole.stride()), (vec![0, 4, 8, 12, 16], 4));
        }
        assert!(ends(single).iter().chain(&ends(RowLayout::contiguous(4))).all(|&end| end == usize::MAX));
        assert_eq!(RowLayout::contiguous(4).skip(3).run_end(9), usize::MAX - 3);
    }
}
