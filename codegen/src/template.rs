//! Text with holes.
//!
//! CUDA text is full of braces, so `format!` would hide it. A hole is `$NAME`, in capitals.

use std::fmt::Display;

/// Replaces the holes of `text` by values. A hole without a value stays, which the tests of every kernel would see.
pub(crate) fn fill(text: &str, values: &[(&str, &dyn Display)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let name = &rest[at + 1..];
        let end = name.find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_').unwrap_or(name.len());
        let (name, behind) = name.split_at(end);
        match values.iter().find(|(known, _)| *known == name) {
            Some((_, value)) => out.push_str(&value.to_string()),
            None => {
                out.push('$');
                out.push_str(name);
            }
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// The smallest multiple of `unit` that is at least `n`.
pub(crate) const fn round_up(n: usize, unit: usize) -> usize {
    n.div_ceil(unit) * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_filled_and_unknown_ones_stay() {
        assert_eq!(fill("a[$N] = $N_2 + $X;", &[("N", &3), ("N_2", &"y")]), "a[3] = y + $X;");
        assert_eq!(fill("no holes {}", &[]), "no holes {}");
    }
}
