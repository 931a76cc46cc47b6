//! Names most similar to one that is not there: a missing tensor is nearly always a prefix or a number away from a real one.

use std::collections::BinaryHeap;

/// Longest name compared; real ones have under 100 bytes.
const MAX_NAME: usize = 256;

/// Up to `count` of `names`, most similar to `wanted` first; ties in the order given.
pub(crate) fn closest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>, count: usize) -> Vec<&'a str> {
    let mut best = BinaryHeap::new();
    for (order, name) in names.enumerate().filter(|(_, name)| name.len() <= MAX_NAME) {
        best.push((distance(wanted.as_bytes(), name.as_bytes()), order, name));
        if best.len() > count {
            best.pop();
        }
    }
    best.into_sorted_vec().into_iter().map(|(_, _, name)| name).collect()
}

/// Levenshtein distance in bytes.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in
            [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("fc1", "fc2", 1), ("ab", "a", 1)]
        {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), expected, "{a} {b}");
            assert_eq!(distance(b.as_bytes(), a.as_bytes()), expected, "{b} {a}");
        }
    }

    #[test]
    fn nearest_first() {
        let names = ["model.norm.weight", "layers.0.fc1.weight", "layers.1.fc1.weight", "layers.0.fc2.bias"];
        assert_eq!(closest("layers.2.fc1.weight", names.into_iter(), 2), [names[1], names[2]]);
        assert!(closest("x", [].into_iter(), 3).is_empty());
    }
}
