//! The two figures of the field, with what is usually missing in them: the dense model and what the bytes allow.

use std::collections::BTreeSet;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::BenchError;
use super::report::{Report, ShapeRun};
use super::rows::Row;

/// Size of one figure, in pixels.
const WIDTH: u32 = 640;
const HEIGHT: u32 = 480;
/// Colours that are told apart by the colour-blind too (Okabe, Ito: Color universal design, 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];
const GRAY: RGBColor = RGBColor(110, 110, 110);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Rows that one figure shows: those of one shape, context and batch.
struct Figure<'a> {
    title: String,
    dense: &'a Row,
    /// By policy.
    lines: Vec<Vec<&'a Row>>,
}

/// One picture: time against the kept fraction for every shape, context and batch, and time against the size of the model if there
/// are several.
///
/// # Errors
/// [`BenchError::Plot`].
pub(super) fn draw(report: &Report) -> Result<String, BenchError> {
    let figures = figures(&report.rows);
    let sizes = by_size(report);
    let count = figures.len() + usize::from(sizes.is_some());
    let columns = count.clamp(1, 2);
    let rows = count.div_ceil(columns).max(1);
    let mut svg = String::new();
    let failed = |error: &dyn std::fmt::Display| BenchError::Plot { reason: error.to_string() };
    {
        let size = (WIDTH * columns as u32, HEIGHT * rows as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(|e| failed(&e))?;
        let areas = root.split_evenly((rows, columns));
        for (figure, area) in figures.iter().zip(&areas) {
            draw_kept(figure, area).map_err(|e| failed(&e))?;
        }
        if let (Some(sizes), Some(area)) = (&sizes, areas.get(figures.len())) {
            draw_sizes(sizes, area).map_err(|e| failed(&e))?;
        }
        root.present().map_err(|e| failed(&e))?;
    }
    Ok(svg)
}

/// Policies in the order of the rows, each once.
fn policies<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<&'a str> {
    let mut names = Vec::new();
    for row in rows {
        if !names.contains(&row.policy.as_str()) {
            names.push(row.policy.as_str());
        }
    }
    names
}

fn figures(rows: &[Row]) -> Vec<Figure<'_>> {
    let contexts: BTreeSet<usize> = rows.iter().map(|row| row.context).collect();
    let batches: BTreeSet<usize> = rows.iter().map(|row| row.batch).collect();
    let lines = |dense: &Row| -> Vec<Vec<&'_ Row>> {
        let same = |row: &&Row| (&row.shape, row.context, row.batch) == (&dense.shape, dense.context, dense.batch);
        let sparse = || rows.iter().filter(same).filter(|row| row.policy != "dense");
        let line = |policy: &str| {
            let mut line: Vec<&Row> = sparse().filter(|row| row.policy == policy).collect();
            line.sort_by(|a, b| a.keep.total_cmp(&b.keep));
            line
        };
        policies(sparse()).into_iter().map(line).collect()
    };
    rows.iter()
        .filter(|row| row.policy == "dense")
        .map(|dense| {
            let mut title = dense.shape.clone();
            if contexts.len() > 1 {
                title += &format!(", context {}", dense.context);
            }
            if batches.len() > 1 {
                title += &format!(", batch {}", dense.batch);
            }
            Figure { title, dense, lines: lines(dense) }
        })
        .filter(|figure| !figure.lines.is_empty())
        .collect()
}

/// Milliseconds against the fraction kept.
fn draw_kept(figure: &Figure<'_>, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let Figure { title, dense, lines } = figure;
    let all = lines.iter().flatten().map(|row| row.ms_per_token);
    let top = 1.1 * all.fold(dense.ms_per_token, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..1.05, 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc("fraction of heads and neurons kept")
        .y_desc("ms per token")
        .light_line_style(WHITE)
        .draw()?;
    let level = [(0.0, dense.ms_per_token), (1.05, dense.ms_per_token)];
    let key = |style: ShapeStyle| move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], style);
    chart.draw_series(LineSeries::new(level, GRAY.stroke_width(2)))?.label("dense").legend(key(GRAY.stroke_width(2)));
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let ideal = line.iter().map(|row| (f64::from(row.keep), dense.ms_per_token / row.ideal_speedup));
        chart.draw_series(DashedLineSeries::new(ideal, 5, 4, colour.stroke_width(1)))?;
        let points = || line.iter().map(|row| (f64::from(row.keep), row.ms_per_token));
        let name = line.first().map_or_else(String::new, |row| row.policy.clone());
        chart
            .draw_series(LineSeries::new(points(), colour.stroke_width(2)))?
            .label(name)
            .legend(key(colour.stroke_width(2)));
        chart.draw_series(points().map(|point| Circle::new(point, 3, colour.filled())))?;
    }
    let dashes = |(x, y)| {
        let dash = |from, to| PathElement::new(vec![(x + from, y), (x + to, y)], BLACK.stroke_width(1));
        EmptyElement::at((0, 0)) + dash(0, 5) + dash(9, 14)
    };
    chart
        .draw_series(std::iter::empty::<Circle<(f64, f64), i32>>())?
        .label("ideal: time of the dense model x bytes / its bytes")
        .legend(dashes);
    legend(&mut chart, SeriesLabelPosition::LowerRight)
}

fn legend<'a, 'b: 'a, CT: CoordTranslate>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, CT>,
    position: SeriesLabelPosition,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut labels = chart.configure_series_labels();
    labels.position(position).background_style(WHITE.mix(0.85)).border_style(GRAY.mix(0.5)).draw()?;
    Ok(())
}

/// Models of several sizes.
struct Sizes<'a> {
    /// Kept fraction of the sparse rows.
    keep: f32,
    /// A name, and parameters in 10^9 and ms per token of every shape.
    lines: Vec<(&'a str, Vec<(f64, f64)>)>,
}

/// The fraction that the paper's figure shows, or the nearest that there is.
const SHOWN: f32 = 0.5;

fn by_size(report: &Report) -> Option<Sizes<'_>> {
    let first = report.rows.first()?;
    let rows = || report.rows.iter().filter(|row| (row.context, row.batch) == (first.context, first.batch));
    let distance = |keep: f32| (keep - SHOWN).abs();
    let sparse = rows().filter(|row| row.policy != "dense").map(|row| row.keep);
    let keep = sparse.min_by(|a, b| distance(*a).total_cmp(&distance(*b))).unwrap_or(1.0);
    let size = |shape: &str| -> Option<f64> {
        let run: &ShapeRun = report.run.shapes.iter().find(|run| run.shape == shape)?;
        Some(run.parameters as f64 / 1e9)
    };
    let line = |policy| {
        let wanted = rows().filter(|row| row.policy == policy && (policy == "dense" || row.keep == keep));
        let mut points: Vec<(f64, f64)> =
            wanted.filter_map(|row| Some((size(&row.shape)?, row.ms_per_token))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        (policy, points)
    };
    let lines: Vec<_> = policies(rows()).into_iter().map(line).collect();
    (lines.first()?.1.len() > 1).then_some(Sizes { keep, lines })
}

/// Milliseconds against parameters.
fn draw_sizes(sizes: &Sizes<'_>, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let all = || sizes.lines.iter().flat_map(|(_, points)| points);
    let (right, top) = all().fold((0.0_f64, 0.0_f64), |(x, y), point| (x.max(point.0), y.max(point.1)));
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{} of the heads and neurons kept", sizes.keep), ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..1.05 * right, 0.0..1.1 * top)?;
    chart.configure_mesh().x_desc("parameters, 10^9").y_desc("ms per token").light_line_style(WHITE).draw()?;
    let colours = std::iter::once(&GRAY).chain(COLOURS.iter().cycle());
    for ((name, points), colour) in sizes.lines.iter().zip(colours) {
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], style));
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperLeft)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::bench::report::tests::report;

    /// Elements of an SVG text that are opened and not closed in order, or left open.
    fn unbalanced(svg: &str) -> Option<String> {
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, _) = tag.split_once('>')?;
            let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next()?.to_owned();
            match (tag.starts_with('/'), tag.ends_with('/')) {
                (true, _) if open.pop().as_ref() != Some(&name) => return Some(name),
                (false, false) => open.push(name),
                _ => {}
            }
        }
        open.pop()
    }

    #[test]
    fn figures_show_all_rows() {
        let keeps = [1.0, 0.5, 0.1];
        for (shapes, figures) in [(&["opt-1.3b"][..], 1), (&["opt-1.3b", "opt-6.7b"], 3)] {
            let svg = draw(&report(shapes, &keeps)).unwrap();
            assert_eq!(unbalanced(&svg), None);
            assert!(svg.starts_with("<svg") && svg.contains("xmlns=\"http://www.w3.org/2000/svg\""), "{svg}");
            for text in
                ["dense", "static", "shadow:64", "ms per token", "ideal: time of the dense model x bytes / its bytes"]
            {
                assert!(svg.contains(text), "{text}: {svg}");
            }
            // Points of two policies at three fractions for each shape, and of three policies for two sizes.
            let points = svg.matches("<circle").count();
            assert_eq!(points, if figures == 1 { 6 } else { 2 * 6 + 3 * 2 });
            assert_eq!(svg.contains("0.5 of the heads and neurons kept"), figures == 3);
        }
    }

    #[test]
    fn nothing_sparse_is_no_mistake() {
        assert_eq!(unbalanced(&draw(&report(&["opt-1.3b"], &[])).unwrap()), None);
        assert_eq!(unbalanced("<a><b/></a>"), None);
        assert_eq!(unbalanced("<a><b></a>"), Some("a".to_owned()));
    }
}
