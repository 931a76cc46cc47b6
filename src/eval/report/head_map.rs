//! A map of a model's heads, layers by heads: always kept, never, or depending on the token.

use std::fmt::Write;

use crate::eval::markup::escaped;
use crate::eval::sweep::HeadUse;

/// Shades of heads that some tokens keep.
const SHADES: u64 = 10;

/// Space around the cells, in pixels.
const LEFT: usize = 34;
const TOP: usize = 26;
const BOTTOM: usize = 34;
/// Narrowest map that has room for its name.
const NARROWEST: usize = 190;

/// Draws how often heads were kept.
pub(super) fn head_map(title: &str, uses: &HeadUse) -> String {
    let (layers, heads) = (uses.times.len(), uses.times.first().map_or(0, Vec::len));
    let (cell, row) = ((260 / heads.max(1)).clamp(4, 16), (300 / layers.max(1)).clamp(4, 16));
    let (width, bottom) = ((LEFT + heads * cell + 12).max(NARROWEST), TOP + layers * row);
    let height = bottom + BOTTOM;
    let title = escaped(title);
    let mut out = format!(
        "<svg class=\"heads\" role=\"img\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         xmlns=\"http://www.w3.org/2000/svg\">\n<title>{title}: layers by heads</title>\n\
         <text class=\"name\" x=\"{LEFT}\" y=\"16\">{title}</text>\n\
         <rect class=\"never\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{}\"/>\n",
        heads * cell,
        layers * row
    );
    // One path for all cells of a shade; the last is that of heads that are always kept.
    let mut paths = vec![String::new(); SHADES as usize + 1];
    for (layer, times) in uses.times.iter().enumerate() {
        for (head, &times) in times.iter().enumerate().filter(|&(_, &times)| times > 0) {
            let shade = if times == uses.tokens { SHADES } else { times * SHADES / uses.tokens.max(1) };
            let (x, y) = (LEFT + head * cell, TOP + layer * row);
            // A pixel of paper between the cells.
            let _ = write!(paths[shade as usize], "M{x} {y}h{}v{}h-{}z", cell - 1, row - 1, cell - 1);
        }
    }
    for (shade, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
        let _ = match shade as u64 {
            SHADES => writeln!(out, "<path class=\"always\" d=\"{path}\"/>"),
            // Also the faintest can be seen.
            shade => {
                let opacity = 0.15 + 0.85 * (shade as f64 + 0.5) / SHADES as f64;
                writeln!(out, "<path class=\"some\" fill-opacity=\"{opacity:.3}\" d=\"{path}\"/>")
            }
        };
    }
    let step = |count: usize, size: usize| {
        [1, 2, 5, 10, 20, 50].into_iter().find(|s| s * size >= 16 || s * 6 >= count).unwrap_or(100)
    };
    for layer in (0..layers).step_by(step(layers, row)) {
        let y = TOP + layer * row + row / 2 + 4;
        let _ = writeln!(out, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{layer}</text>", LEFT - 5);
    }
    for head in (0..heads).step_by(step(heads, cell)) {
        let x = LEFT + head * cell + cell / 2;
        let _ = writeln!(out, "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{head}</text>", bottom + 14);
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">head</text>\
         <text transform=\"translate(11,{}) rotate(-90)\" text-anchor=\"middle\">layer</text>\n</svg>",
        LEFT + heads * cell / 2,
        bottom + 29,
        TOP + layers * row / 2,
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_this_text() {
        let uses = HeadUse { tokens: 20, times: vec![vec![20, 20], vec![0, 1], vec![19, 20]] };
        assert_eq!(uses.census(), [1, 2, 1]);
        insta::assert_snapshot!(head_map("keeps 0.5", &uses));
    }
}
