//! A picture of plans: layers by units, kept or not, as SVG text.
//!
//! Two panels share the layer axis: heads on the left, one column each, and neurons on the right, in at most
//! [`COLUMNS`] columns of neighbouring neurons. The shade of a cell is the fraction of its units that is kept, over all
//! tokens counted. Cells of one layer and one shade are one path: its runs are strokes as wide as the row is high, so a
//! model of 32 layers is a file of some hundred kilobytes that every viewer shows at once.

use std::fmt::Write;

use super::markup::escaped;
use crate::sparsity::{PlanTally, UnitTally};

/// Most columns of the panel of neurons.
const COLUMNS: usize = 512;

/// Shades between "no unit of the cell is kept", 0, and "all are, for every token", this one. Cells in between have one of
/// the shades in between, however close they are to an end.
const SHADES: usize = 20;

/// Widths of the panels and height of both, in pixels, which cells divide among themselves.
const HEADS_WIDTH: usize = 256;
const NEURONS_WIDTH: usize = 1024;
const HEIGHT: usize = 400;

/// Space around the panels, in pixels.
const LEFT: usize = 56;
const TOP: usize = 92;
const GAP: usize = 32;
const RIGHT: usize = 24;
const BOTTOM: usize = 92;

/// Narrowest picture that has room for its title and legend.
const NARROWEST: usize = 640;

/// Colours on light paper, and on dark where the viewer prefers that. The paper is part of the picture, so it is readable
/// on any page.
const STYLE: &str = "text{font:13px system-ui,'Segoe UI',Helvetica,Arial,sans-serif;fill:#24292f}\
.title{font-size:17px;font-weight:600}.paper{fill:#ffffff}.none{fill:#e9ecef}.heads path{stroke:#0b5cad}\
.neurons path{stroke:#b3500c}.tick{stroke:#57606a;stroke-width:1}\
@media(prefers-color-scheme:dark){text{fill:#d0d7de}.paper{fill:#0d1117}.none{fill:#262c36}\
.heads path{stroke:#6cb6ff}.neurons path{stroke:#ffa657}.tick{stroke:#8b949e}}";

/// One panel.
struct Panel<'a> {
    /// Class of its group, and what its units are called.
    name: &'static str,
    /// One per layer.
    rows: Vec<&'a UnitTally>,
    /// Units of a layer.
    units: usize,
    /// Units of one cell; the last cell of a row may have fewer.
    units_per_cell: usize,
    /// Left edge and size of a cell, in pixels.
    x: usize,
    cell_width: usize,
}

impl<'a> Panel<'a> {
    fn new(
        name: &'static str,
        tally: &'a PlanTally,
        of: impl Fn(&'a crate::sparsity::LayerTally) -> &'a UnitTally,
        x: usize,
        width: usize,
        columns: usize,
    ) -> Self {
        let rows: Vec<&UnitTally> = tally.layers().iter().map(of).collect();
        let units = rows.first().map_or(0, |row| row.times.len());
        let units_per_cell = units.div_ceil(columns).max(1);
        let cell_width = (width / units.div_ceil(units_per_cell).max(1)).clamp(1, 24);
        Panel { name, rows, units, units_per_cell, x, cell_width }
    }

    fn columns(&self) -> usize {
        self.units.div_ceil(self.units_per_cell)
    }

    fn width(&self) -> usize {
        self.columns() * self.cell_width
    }

    /// The cells and the axis below them.
    fn draw(&self, out: &mut String, row_height: usize, tokens: usize) {
        let (width, height) = (self.width(), self.rows.len() * row_height);
        let _ = writeln!(
            out,
            "<g class=\"{}\" transform=\"translate({},{TOP})\" data-cell-width=\"{}\" data-units-per-cell=\"{}\">",
            self.name, self.x, self.cell_width, self.units_per_cell
        );
        let _ = writeln!(out, "<rect class=\"none\" width=\"{width}\" height=\"{height}\"/>");
        for (layer, row) in self.rows.iter().enumerate() {
            let middle = (layer * row_height) as f64 + (row_height - 1) as f64 / 2.0;
            let _ = write!(
                out,
                "<g data-layer=\"{layer}\" transform=\"translate(0,{middle})\" stroke-width=\"{}\">\
                 <title>layer {layer}: {} of {} {} kept</title>",
                // A pixel of paper between the rows, if there is room for it.
                row_height.saturating_sub(1).max(1),
                rounded(row.mean_kept(tokens)),
                self.units,
                self.name,
            );
            self.row(out, row, tokens);
            out.push_str("</g>\n");
        }
        let step = tick_step(self.units, width / 56);
        for unit in (0..self.units).step_by(step) {
            let x = (unit / self.units_per_cell * self.cell_width) as f64 + self.cell_width as f64 / 2.0;
            let _ = writeln!(
                out,
                "<line class=\"tick\" x1=\"{x}\" x2=\"{x}\" y1=\"{height}\" y2=\"{}\"/>\
                 <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{unit}</text>",
                height + 4,
                height + 18,
            );
        }
        let singular = self.name.trim_end_matches('s');
        let label = match self.units_per_cell {
            1 => singular.to_owned(),
            n => format!("{singular}, {n} per column"),
        };
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{label}</text>\n</g>",
            width / 2,
            height + 36
        );
    }

    /// The cells of one layer, a path for each shade that occurs.
    fn row(&self, out: &mut String, row: &UnitTally, tokens: usize) {
        let shades: Vec<usize> = row.times.chunks(self.units_per_cell).map(|units| shade(units, tokens)).collect();
        for wanted in 1..=SHADES {
            let mut column = 0;
            let mut path = String::new();
            for run in shades.chunk_by(|a, b| a == b) {
                if run[0] == wanted {
                    let _ = write!(path, "M{} 0h{}", column * self.cell_width, run.len() * self.cell_width);
                }
                column += run.len();
            }
            if !path.is_empty() {
                let opacity = wanted as f64 / SHADES as f64;
                let _ = write!(out, "<path data-shade=\"{wanted}\" stroke-opacity=\"{opacity}\" d=\"{path}\"/>");
            }
        }
    }
}

/// The shade of a cell.
fn shade(times: &[u32], tokens: usize) -> usize {
    let kept: u64 = times.iter().map(|&times| u64::from(times)).sum();
    let all = (times.len() * tokens) as u64;
    match kept {
        0 => 0,
        kept if kept == all => SHADES,
        kept => ((SHADES as f64 * kept as f64 / all as f64).round() as usize).clamp(1, SHADES - 1),
    }
}

/// A round number of units between ticks, such that there are at most `most` of them.
fn tick_step(units: usize, most: usize) -> usize {
    let least = units.div_ceil(most.max(1)).max(1);
    (0..).find_map(|power| [1, 2, 5].map(|m| m * 10usize.pow(power)).into_iter().find(|&s| s >= least)).unwrap_or(1)
}

/// At most one decimal.
fn rounded(value: f64) -> f64 {
    (10.0 * value).round() / 10.0
}

/// Draws the plans counted in `tally`, under two lines of text.
pub fn plan_picture(tally: &PlanTally, title: &str, subtitle: &str) -> String {
    let (tokens, layers) = (tally.tokens(), tally.layers().len());
    let row_height = (HEIGHT / layers.max(1)).clamp(3, 20);
    let heads = Panel::new("heads", tally, |layer| &layer.heads, LEFT, HEADS_WIDTH, usize::MAX);
    let x = LEFT + heads.width() + GAP;
    let neurons = Panel::new("neurons", tally, |layer| &layer.neurons, x, NEURONS_WIDTH, COLUMNS);
    let width = (x + neurons.width() + RIGHT).max(NARROWEST);
    let height = TOP + layers * row_height + BOTTOM;
    let (title, subtitle) = (escaped(title), escaped(subtitle));

    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\">\n<title>{title}. {subtitle}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>\n\
         <text class=\"title\" x=\"{LEFT}\" y=\"30\">{title}</text>\n<text x=\"{LEFT}\" y=\"52\">{subtitle}</text>"
    );
    for panel in [&heads, &neurons] {
        let _ = writeln!(out, "<text x=\"{}\" y=\"{}\">{}</text>", panel.x, TOP - 10, panel.name);
    }
    let middle = TOP + layers * row_height / 2;
    let _ = writeln!(out, "<text transform=\"translate(16,{middle}) rotate(-90)\" text-anchor=\"middle\">layer</text>");
    for layer in (0..layers).step_by(tick_step(layers, layers * row_height / 16)) {
        let y = (TOP + layer * row_height) as f64 + row_height as f64 / 2.0 + 4.5;
        let _ = writeln!(out, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{layer}</text>", LEFT - 6);
    }
    heads.draw(&mut out, row_height, tokens);
    neurons.draw(&mut out, row_height, tokens);
    legend(&mut out, height - 22, tokens);
    out.push_str("</svg>\n");
    out
}

/// What the shades mean.
fn legend(out: &mut String, y: usize, tokens: usize) {
    let over = if tokens == 1 { String::new() } else { format!(", of its units over {tokens} tokens") };
    let _ = write!(out, "<text x=\"{LEFT}\" y=\"{y}\">fraction kept of a cell{over}: 0</text>");
    let start = LEFT + 170 + 7 * over.len();
    let box_width = 24;
    for (row, class) in ["heads", "neurons"].into_iter().enumerate() {
        let middle = y as f64 - 8.0 + 8.0 * row as f64;
        let _ = write!(out, "<g class=\"{class}\" transform=\"translate({start},{middle})\" stroke-width=\"7\">");
        let _ = write!(out, "<rect class=\"none\" y=\"-3.5\" width=\"{}\" height=\"7\"/>", 5 * box_width);
        for step in 1..5 {
            let opacity = f64::from(step as u32) / 4.0;
            let _ = write!(out, "<path stroke-opacity=\"{opacity}\" d=\"M{} 0h{box_width}\"/>", step * box_width);
        }
        out.push_str("</g>");
    }
    let _ = writeln!(out, "<text x=\"{}\" y=\"{y}\">1</text>", start + 5 * box_width + 6);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sparsity::{Plan, Units};

    /// The value of an attribute in the opening tag at the start of `text`.
    fn attribute<'a>(text: &'a str, name: &str) -> &'a str {
        let tag = &text[..text.find('>').unwrap()];
        let at = tag.find(&format!("{name}=\"")).unwrap_or_else(|| panic!("no {name} in {tag}")) + name.len() + 2;
        tag[at..].split('"').next().unwrap()
    }

    /// Shades of all cells of a panel, read from the picture: `[layer][column]`.
    fn read(picture: &str, panel: &str, columns: usize) -> Vec<Vec<usize>> {
        let start = picture.find(&format!("<g class=\"{panel}\" transform")).unwrap();
        let body = &picture[start..];
        let cell: usize = attribute(body, "data-cell-width").parse().unwrap();
        let body = &body[..body.find("\n</g>").unwrap()];
        let mut rows = Vec::new();
        for (index, row) in body.split("<g data-layer=").skip(1).enumerate() {
            assert!(row.starts_with(&format!("\"{index}\"")));
            let mut shades = vec![0; columns];
            for path in row.split("<path ").skip(1) {
                let shade: usize = attribute(path, "data-shade").parse().unwrap();
                let opacity: f64 = attribute(path, "stroke-opacity").parse().unwrap();
                assert_eq!(opacity, shade as f64 / SHADES as f64);
                for run in attribute(path, " d").split('M').skip(1) {
                    let (x, width) = run.split_once(" 0h").unwrap();
                    let (x, width): (usize, usize) = (x.parse().unwrap(), width.parse().unwrap());
                    assert_eq!((x % cell, width % cell), (0, 0));
                    for drawn in &mut shades[x / cell..(x + width) / cell] {
                        assert_eq!(*drawn, 0, "a cell is drawn twice");
                        *drawn = shade;
                    }
                }
            }
            rows.push(shades);
        }
        rows
    }

    proptest! {
        /// Every cell has the shade of its units, whatever the shape: full only if all are kept, none only if none is.
        #[test]
        fn cells_are_the_plan(
            (layers, heads, neurons) in (1usize..5, 1usize..70, prop_oneof![1usize..40, 500usize..1600]),
            tokens in 1usize..4,
            seed in any::<u64>(),
        ) {
            let units = Units { layers, heads, neurons };
            let kept = |token: usize, layer: usize, unit: u32, salt: u64| {
                let mix = (seed ^ salt).wrapping_add((token * 31 + layer * 7) as u64).wrapping_add(u64::from(unit / 3));
                mix.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 != 0
            };
            let mut tally = PlanTally::new(units);
            for token in 0..tokens {
                let mut plan = Plan::dense(units);
                for (index, layer) in plan.layers.iter_mut().enumerate().skip(1) {
                    layer.heads.retain(|&head| kept(token, index, head, 1));
                    layer.neurons.retain(|&neuron| kept(token, index, neuron, 2));
                }
                tally.add(&plan);
            }
            let picture = plan_picture(&tally, "t", "s");
            let per_cell = neurons.div_ceil(512);
            for (panel, per_cell) in [("heads", 1), ("neurons", per_cell)] {
                let of = |layer: usize| {
                    let layer = &tally.layers()[layer];
                    if panel == "heads" { &layer.heads.times } else { &layer.neurons.times }
                };
                let columns = of(0).len().div_ceil(per_cell);
                prop_assert!(columns <= 512);
                let rows = read(&picture, panel, columns);
                prop_assert_eq!(rows.len(), layers);
                for (layer, row) in rows.iter().enumerate() {
                    for (cell, &got) in of(layer).chunks(per_cell).zip(row) {
                        let (sum, all) = (cell.iter().sum::<u32>() as usize, cell.len() * tokens);
                        prop_assert_eq!(got == 0, sum == 0);
                        prop_assert_eq!(got == SHADES, sum == all);
                        let off = (got as f64 / SHADES as f64 - sum as f64 / all as f64).abs();
                        prop_assert!(off <= 1.0 / SHADES as f64, "shade {got} for {sum} of {all}");
                    }
                }
            }
        }
    }

    #[test]
    fn any_title_is_well_formed() {
        let tally = PlanTally::new(Units { layers: 1, heads: 1, neurons: 1 });
        let picture = plan_picture(&tally, "a<b> & \"c\"\u{1}", "d");
        assert!(picture.contains(">a&lt;b&gt; &amp; &quot;c&quot; </text>"), "{picture}");
        let open = picture.matches("<g").count();
        assert_eq!(open, picture.matches("</g>").count());
    }

    #[test]
    fn ticks_are_round_numbers() {
        for (units, most, step) in [(8, 20, 1), (32, 20, 2), (2048, 18, 200), (16384, 18, 1000), (5, 0, 5)] {
            assert_eq!(tick_step(units, most), step, "{units} units, {most} ticks");
        }
    }
}
