//! The order in which samples come, whether from text or from trace files.

/// Part of a document that is read in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::learn) struct Window {
    pub(in crate::learn) document: u32,
    /// Where it begins: a token of the document, or a row of a file.
    pub(in crate::learn) start: usize,
    /// Tokens.
    pub(in crate::learn) len: usize,
}

/// Windows and a place among them.
#[derive(Clone, Debug, Default)]
pub(super) struct Windows {
    pub(super) all: Vec<Window>,
    pub(super) next: usize,
}

impl Windows {
    /// Index of the next window of a wanted document; `None` at the end.
    pub(super) fn take(&mut self, wanted: &dyn Fn(u32) -> bool) -> Option<usize> {
        let ahead = self.all.get(self.next..)?.iter().position(|w| wanted(w.document));
        let found = ahead.map(|ahead| self.next + ahead);
        self.next = found.map_or(self.all.len(), |at| at + 1);
        found
    }

    /// Tokens of wanted documents.
    pub(super) fn rows(&self, wanted: &dyn Fn(u32) -> bool) -> u64 {
        self.all.iter().filter(|w| wanted(w.document)).map(|w| w.len as u64).sum()
    }

    /// Goes to a place; beyond the end is the end.
    pub(super) fn seek(&mut self, position: u64) {
        self.next = usize::try_from(position).unwrap_or(usize::MAX).min(self.all.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_other_documents_are_passed_over() {
        let all = [(0, 10), (1, 4), (0, 5), (2, 2)].map(|(document, len)| Window { document, start: 0, len }).to_vec();
        let mut windows = Windows { all, next: 0 };
        assert_eq!((windows.rows(&|_| true), windows.rows(&|d| d == 0)), (21, 15));
        let everything: Vec<usize> = std::iter::from_fn(|| windows.take(&|_| true)).collect();
        assert_eq!(everything, [0, 1, 2, 3]);
        windows.seek(1);
        assert_eq!((windows.take(&|d| d != 1), windows.next), (Some(2), 3));
        assert_eq!((windows.take(&|d| d == 1), windows.next), (None, 4));
        windows.seek(1000);
        assert_eq!((windows.take(&|_| true), windows.next), (None, 4));
    }
}
