//! All results of a run: as JSON, as CSV, and as a table that may be pasted into a page.

use serde::Serialize;

use super::rows::{Machine, Row, Spread};
use super::verify::Verified;

/// What `shadow-bench --json` prints.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) rows: Vec<Row>,
    /// One for each of `rows`.
    pub(super) spread: Vec<Spread>,
    pub(super) run: Run,
    /// With `--verify`: what was compared; otherwise `null`.
    pub(super) verified: Option<Vec<Verified>>,
}

/// How it was measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Run {
    /// Version of the program.
    pub(super) version: &'static str,
    pub(super) compute: &'static str,
    pub(super) prompt: usize,
    pub(super) generate: usize,
    pub(super) repetitions: usize,
    pub(super) warm_up: usize,
    pub(super) relu_skip: bool,
    pub(super) seed: u64,
    /// Whether Ctrl-C ended it before everything was measured.
    pub(super) interrupted: bool,
    /// GFLOP/s of `f32` multiply-adds that this machine reaches with these threads; a multiply-add counts two.
    pub(super) peak_gflop_per_second: f64,
    /// The most memory that the program held, over everything.
    pub(super) peak_resident_bytes: Option<u64>,
    pub(super) shapes: Vec<ShapeRun>,
    /// What the predictors were.
    pub(super) predictors: Vec<String>,
}

/// A shape that was measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ShapeRun {
    pub(super) shape: String,
    pub(super) dtype: &'static str,
    pub(super) parameters: u64,
    pub(super) weight_bytes: u64,
    pub(super) layers: usize,
    /// Layers with weights of their own; the others share them in turn.
    pub(super) layers_in_memory: usize,
    /// GB/s read from a buffer as large as what the dense model reads for a token, where the caches could hold a part of that; otherwise
    /// `null`, and shares are of the machine's.
    pub(super) read_gb_per_second: Option<f64>,
    /// What a reader of its rows has to know.
    pub(super) notes: Vec<String>,
}

const COLUMNS: [&str; 15] = [
    "shape",
    "policy",
    "keep",
    "context",
    "batch",
    "ms_per_token",
    "tokens_per_second",
    "prefill_tokens_per_second",
    "bytes_per_token",
    "gb_per_second",
    "bandwidth_share",
    "speedup_over_dense",
    "ideal_speedup",
    "predictor_share",
    "peak_memory_bytes",
];

/// A field of CSV: in quotes where a comma, a quote or a line break would end it.
fn field(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

impl Report {
    /// The rows, with the fields of JSON.
    pub(super) fn csv(&self) -> String {
        let mut out = COLUMNS.join(",") + "\n";
        for r in &self.rows {
            let numbers = [
                f64::from(r.context as u32),
                f64::from(r.batch as u32),
                r.ms_per_token,
                r.tokens_per_second,
                r.prefill_tokens_per_second,
                r.bytes_per_token,
                r.gb_per_second,
                r.bandwidth_share,
                r.speedup_over_dense,
                r.ideal_speedup,
                r.predictor_share,
                r.peak_memory_bytes as f64,
            ];
            let texts = [field(&r.shape), field(&r.policy), r.keep.to_string()];
            out += &texts.into_iter().chain(numbers.map(|n| n.to_string())).collect::<Vec<_>>().join(",");
            out.push('\n');
        }
        out
    }

    /// The machine, what was measured, and a table for each shape.
    pub(super) fn text(&self) -> String {
        let Report { machine, run, .. } = self;
        let mut out = format!(
            "reads {:.1} GB/s from memory, {:.0} GFLOP/s f32 multiply-adds; {} threads, {}\n\
             {} tokens after a prompt of {}, {} repetitions, medians over all tokens; +- is half of the range of the middle half\n",
            machine.read_gb_per_second,
            run.peak_gflop_per_second,
            machine.threads,
            machine.isa,
            run.generate,
            run.prompt,
            run.repetitions,
        );
        run.predictors.iter().for_each(|predictor| out += &format!("{predictor}\n"));
        for shape in &run.shapes {
            out += &format!(
                "\n{}: {} parameters, {}B in {}\n",
                shape.shape,
                scaled(shape.parameters),
                scaled(shape.weight_bytes),
                shape.dtype
            );
            shape.notes.iter().for_each(|note| out += &format!("{note}\n"));
            let rows = self.rows.iter().zip(&self.spread).filter(|(row, _)| row.shape == shape.shape);
            out += &table(rows.map(|(row, spread)| cells(row, spread)).collect());
        }
        out
    }
}

/// A large number: `7.6 M`, `2.63 G`.
fn scaled(n: u64) -> String {
    match n as f64 {
        n if n < 1e9 => format!("{:.1} M", n / 1e6),
        n => format!("{:.2} G", n / 1e9),
    }
}

const HEADINGS: [&str; 15] = [
    "policy",
    "kept",
    "context",
    "batch",
    "ms/token",
    "+-",
    "tokens/s",
    "prefill/s",
    "MB/token",
    "GB/s",
    "of read",
    "over dense",
    "ideal",
    "predictor",
    "memory",
];

fn cells(row: &Row, spread: &Spread) -> [String; 15] {
    let [low, high] = spread.ms_per_token;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let digits = |value: f64| match value {
        v if v < 10.0 => format!("{v:.3}"),
        v if v < 100.0 => format!("{v:.2}"),
        v => format!("{v:.1}"),
    };
    [
        row.policy.clone(),
        row.keep.to_string(),
        row.context.to_string(),
        row.batch.to_string(),
        digits(row.ms_per_token),
        percent((high - low) / 2.0 / row.ms_per_token),
        digits(row.tokens_per_second),
        digits(row.prefill_tokens_per_second),
        format!("{:.1}", row.bytes_per_token / 1e6),
        format!("{:.1}", row.gb_per_second),
        percent(row.bandwidth_share),
        format!("{:.3}", row.speedup_over_dense),
        format!("{:.3}", row.ideal_speedup),
        percent(row.predictor_share),
        format!("{:.2} GB", row.peak_memory_bytes as f64 / 1e9),
    ]
}

/// Columns of equal width, in Markdown.
fn table(rows: Vec<[String; 15]>) -> String {
    let mut widths = HEADINGS.map(str::len);
    for row in &rows {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = (*width).max(cell.len()));
    }
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(widths).enumerate();
        let cells =
            cells.map(|(i, (cell, width))| if i == 0 { format!("{cell:width$}") } else { format!("{cell:>width$}") });
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule = widths.iter().enumerate().map(|(i, &width)| match i {
        0 => "-".repeat(width),
        _ => "-".repeat(width - 1) + ":",
    });
    let rule: Vec<String> = rule.collect();
    line(&HEADINGS.map(str::to_owned)) + &line(&rule) + &rows.iter().map(|row| line(row)).collect::<String>()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    /// Invented figures of one or more shapes.
    pub(in crate::bench) fn report(shapes: &[&str], keeps: &[f32]) -> Report {
        let row = |shape: &str, policy: &str, keep: f32, ms: f64| Row {
            shape: shape.to_owned(),
            policy: policy.to_owned(),
            keep,
            context: 128,
            batch: 1,
            ms_per_token: ms,
            tokens_per_second: 1e3 / ms,
            prefill_tokens_per_second: 500.0,
            bytes_per_token: 2.5e7 * ms,
            gb_per_second: 25.0,
            bandwidth_share: 0.9,
            speedup_over_dense: 100.0 / ms,
            ideal_speedup: 100.0 / ms,
            predictor_share: 0.0125,
            peak_memory_bytes: 2_600_000_000,
        };
        let mut rows = Vec::new();
        for (i, shape) in (1..).zip(shapes) {
            rows.push(row(shape, "dense", 1.0, 100.0 * f64::from(i)));
            for policy in ["static", "shadow:64"] {
                rows.extend(keeps.iter().map(|&keep| row(shape, policy, keep, 100.0 * f64::from(i) * f64::from(keep))));
            }
        }
        let spread = |row: &Row| Spread {
            ms_per_token: [0.99 * row.ms_per_token, 1.01 * row.ms_per_token],
            prefill_tokens_per_second: [490.0, 510.0],
            tokens: 384,
        };
        let shape = |(i, shape): (u64, &&str)| ShapeRun {
            shape: (*shape).to_owned(),
            dtype: "bf16",
            parameters: i * 1_300_000_000,
            weight_bytes: i * 2_600_000_000,
            layers: 24,
            layers_in_memory: 24,
            read_gb_per_second: None,
            notes: vec!["a note".into()],
        };
        Report {
            machine: Machine { read_gb_per_second: 27.5, threads: 2, isa: "avx512" },
            spread: rows.iter().map(spread).collect(),
            rows,
            run: Run {
                version: "0",
                compute: "bf16",
                prompt: 128,
                generate: 128,
                repetitions: 3,
                warm_up: 2,
                relu_skip: false,
                seed: 0,
                interrupted: false,
                peak_gflop_per_second: 230.0,
                peak_resident_bytes: None,
                shapes: (1..).zip(shapes).map(shape).collect(),
                predictors: Vec::new(),
            },
            verified: None,
        }
    }

    #[test]
    fn csv_has_the_fields_of_the_rows() {
        let report = report(&["a,b"], &[0.5]);
        let csv = report.csv();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 4);
        let fields = serde_json::to_value(&report.rows[0]).unwrap();
        let names: Vec<&str> = fields.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(lines[0], names.join(","));
        assert_eq!(lines[3], "\"a,b\",shadow:64,0.5,128,1,50,20,500,1250000000,25,0.9,2,2,0.0125,2600000000");
    }

    #[test]
    fn the_table_is_aligned() {
        let text = report(&["opt-1.3b"], &[0.5, 0.1]).text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "reads 27.5 GB/s from memory, 230 GFLOP/s f32 multiply-adds; 2 threads, avx512");
        let table: Vec<&str> = lines.into_iter().filter(|line| line.starts_with('|')).collect();
        assert_eq!(table.len(), 7);
        assert!(table.iter().all(|line| line.len() == table[0].len()), "{text}");
        let expected = "| dense     |    1 |     128 |     1 |    100.0 | 1.0 % |    10.00 |     500.0 |   2500.0 | 25.0 |  90.0 % |\
            \u{20}     1.000 |  1.000 |     1.2 % | 2.60 GB |";
        assert_eq!(table[2], expected);
    }
}
