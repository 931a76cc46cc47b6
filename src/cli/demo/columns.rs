//! Two texts beside each other.

/// The texts in columns of `width` characters, broken between words where that can be.
pub(super) fn beside(texts: [&str; 2], width: usize) -> String {
    let [left, right] = texts.map(|text| wrap(text, width));
    let rows = left.len().max(right.len());
    let cell = |lines: &[String], row: usize| lines.get(row).cloned().unwrap_or_default();
    let lines = (0..rows).map(|row| {
        let (left, right) = (cell(&left, row), cell(&right, row));
        // Filled up by characters, not bytes.
        format!("{left:width$}   {right}").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Lines of at most `width` characters.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let (mut line, mut length) = (String::new(), 0);
        for word in paragraph.split_whitespace() {
            let mut word: Vec<char> = word.chars().collect();
            if length > 0 && length + 1 + word.len() > width {
                lines.push(std::mem::take(&mut line));
                length = 0;
            }
            while word.len() > width {
                let rest = word.split_off(width);
                lines.push(word.into_iter().collect());
                word = rest;
            }
            if length > 0 {
                line.push(' ');
                length += 1;
            }
            length += word.len();
            line.extend(word);
        }
        if !line.is_empty() {
            lines.push(line);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_filled_and_never_too_long() {
        assert_eq!(wrap("one two three\n\nfour", 7), ["one two", "three", "four"]);
        assert_eq!(wrap("a extraordinarily b", 6), ["a", "extrao", "rdinar", "ily b"]);
        assert_eq!(wrap("äöü äöü", 7), ["äöü äöü"]);
        assert!(wrap(" \n ", 7).is_empty());
    }

    #[test]
    fn columns_stand_beside_each_other() {
        assert_eq!(beside(["one two", "a b c d e"], 5), "one     a b c\ntwo     d e");
        assert_eq!(beside(["ä", ""], 3), "ä");
        assert_eq!(beside(["", "b\nc"], 3), "      b\n      c");
    }
}
