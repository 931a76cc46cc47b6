//! A chart of lines and points as SVG text.

use std::fmt::Write;

use super::axis::{Axis, number};
use crate::eval::markup::escaped;

/// Size of a chart, and of the space around its plot, in pixels.
const WIDTH: f64 = 368.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 22.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 46.0;

/// Styles that lines are told apart by: colours of the style sheet, and shapes of their points.
pub(super) const STYLES: usize = 8;

/// Points that belong together.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) name: String,
    /// Which of the [`STYLES`]; beyond them they repeat.
    pub(super) style: usize,
    /// What it is compared with is dashed and has no points.
    pub(super) dashed: bool,
    pub(super) points: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
    /// A level that everything is compared with, and its name.
    pub(super) level: Option<(f64, String)>,
    /// A place that everything is compared with, and its name.
    pub(super) mark: Option<(f64, f64, String)>,
}

/// The outline of a point's shape around `(x, y)`.
fn shape(style: usize, x: f64, y: f64) -> String {
    match style % 4 {
        0 => format!("M{:.1} {y:.1}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z", x - 3.5),
        1 => format!("M{:.1} {:.1}h6.4v6.4h-6.4z", x - 3.2, y - 3.2),
        2 => format!("M{x:.1} {:.1}l4.2 7.4h-8.4z", y - 4.6),
        _ => format!("M{x:.1} {:.1}l4.4 4.4l-4.4 4.4l-4.4 -4.4z", y - 4.4),
    }
}

/// A short piece of a line, for legends.
pub(super) fn swatch(style: usize, dashed: bool) -> String {
    let class = format!("s{}", style % STYLES);
    let dash = if dashed { " dashed" } else { "" };
    let point = if dashed {
        String::new()
    } else {
        format!("<path class=\"point {class}\" d=\"{}\"/>", shape(style, 14.0, 7.0))
    };
    format!(
        "<svg class=\"swatch\" width=\"28\" height=\"14\" viewBox=\"0 0 28 14\" aria-hidden=\"true\">\
         <path class=\"line {class}{dash}\" d=\"M1 7h26\"/>{point}</svg>"
    )
}

impl Chart {
    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.place(value) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        TOP + (1.0 - self.y.place(value)) * (HEIGHT - TOP - BOTTOM)
    }

    /// As SVG text.
    pub(super) fn draw(&self) -> String {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let title = escaped(&self.title);
        let mut out = format!(
            "<svg class=\"chart\" role=\"img\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             xmlns=\"http://www.w3.org/2000/svg\">\n<title>{title}</title>\n\
             <text class=\"name\" x=\"{LEFT}\" y=\"20\">{title}</text>\n"
        );
        for &tick in &self.x.ticks {
            let x = self.x(tick);
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{x:.1} {TOP}V{bottom}\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 16.0,
                number(tick)
            );
        }
        for &tick in &self.y.ticks {
            let y = self.y(tick);
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                number(tick)
            );
        }
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(14,{}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 10.0,
            escaped(&self.x.label),
            (TOP + bottom) / 2.0,
            escaped(&self.y.label),
        );
        if let Some((level, name)) = &self.level {
            let y = self.y(*level);
            let _ = writeln!(
                out,
                "<path class=\"level\" d=\"M{LEFT} {y:.1}H{right}\"><title>{}: {}</title></path>",
                escaped(name),
                number(*level)
            );
        }
        self.lines.iter().for_each(|line| self.draw_line(&mut out, line));
        if let Some((x, y, name)) = &self.mark {
            let (px, py, name) = (self.x(*x), self.y(*y), escaped(name));
            let _ = writeln!(
                out,
                "<path class=\"mark\" d=\"M{:.1} {:.1}l10 10m0 -10l-10 10\"><title>{name}: {}, {}</title></path>",
                px - 5.0,
                py - 5.0,
                number(*x),
                number(*y),
            );
        }
        out.push_str("</svg>\n");
        out
    }

    fn draw_line(&self, out: &mut String, line: &Line) {
        let class = format!("s{}", line.style % STYLES);
        let mut path = String::new();
        for (index, &(x, y)) in line.points.iter().enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if index == 0 { 'M' } else { 'L' }, self.x(x), self.y(y));
        }
        let (dash, name) = (if line.dashed { " dashed" } else { "" }, escaped(&line.name));
        let _ = writeln!(out, "<path class=\"line {class}{dash}\" d=\"{path}\"><title>{name}</title></path>");
        if line.dashed {
            return;
        }
        for &(x, y) in &line.points {
            let _ = writeln!(
                out,
                "<path class=\"point {class}\" d=\"{}\"><title>{name}: {}, {}</title></path>",
                shape(line.style, self.x(x), self.y(y)),
                number(x),
                number(y)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_is_this_text() {
        let line = |name: &str, style, dashed, points: &[(f64, f64)]| Line {
            name: name.to_owned(),
            style,
            dashed,
            points: points.to_vec(),
        };
        let lines = vec![
            line("a <b>", 0, false, &[(0.5, 1.1), (0.9, 1.02)]),
            line("other", 9, false, &[(0.5, 20.0)]),
            line("constant", 2, true, &[(0.5, 2.0), (0.9, 3.0)]),
        ];
        let points = || lines.iter().flat_map(|line| line.points.iter().copied());
        let chart = Chart {
            title: "heads & neurons".to_owned(),
            x: Axis::linear("kept fraction", points().map(|p| p.0)),
            y: Axis::of("perplexity / dense", points().map(|p| p.1).chain([1.0])),
            level: Some((1.0, "dense".to_owned())),
            mark: Some((0.9, 1.0, "dense".to_owned())),
            lines,
        };
        insta::assert_snapshot!(chart.draw());
    }
}
