//! Axes: from values to places and round numbers beside them.

/// How values are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    Log,
}

/// An axis that has room for all its values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    pub(super) label: String,
    scale: Scale,
    min: f64,
    max: f64,
    /// Values that are written beside it, ascending.
    pub(super) ticks: Vec<f64>,
}

/// Most ticks of an axis.
const TICKS: usize = 8;

impl Axis {
    /// For values that are finite; if they span more than a factor of `LOG`, and are positive, their logarithm is what is plotted.
    pub(super) fn of(label: &str, values: impl Iterator<Item = f64>) -> Axis {
        const LOG: f64 = 4.0;
        let (min, max) = span(values);
        let scale = if min > 0.0 && max > LOG * min { Scale::Log } else { Scale::Linear };
        Axis::spanning(label, scale, min, max)
    }

    /// For values that are finite, in proportion.
    pub(super) fn linear(label: &str, values: impl Iterator<Item = f64>) -> Axis {
        let (min, max) = span(values);
        Axis::spanning(label, Scale::Linear, min, max)
    }

    fn spanning(label: &str, scale: Scale, min: f64, max: f64) -> Axis {
        let (min, max, ticks) = match scale {
            Scale::Linear => linear_ticks(min, max),
            Scale::Log => log_ticks(min, max),
        };
        Axis { label: label.to_owned(), scale, min, max, ticks }
    }

    /// 0 at its beginning, 1 at its end.
    pub(super) fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.min) / (self.max - self.min),
            Scale::Log => (value / self.min).ln() / (self.max / self.min).ln(),
        }
    }
}

fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (min, max) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), value| (min.min(value), max.max(value)));
    if min > max { (0.0, 1.0) } else { (min, max) }
}

/// Ends and ticks at multiples of 1, 2 or 5 times a power of ten.
fn linear_ticks(min: f64, max: f64) -> (f64, f64, Vec<f64>) {
    let least = (max - min).max(1e-3 * max.abs()).max(1e-9) / 6.0;
    let power = 10_f64.powf(least.log10().floor());
    let step = power * [1.0, 2.0, 5.0].into_iter().find(|m| m * power >= least * (1.0 - 1e-9)).unwrap_or(10.0);
    let (first, last) = ((min / step + 1e-9).floor(), (max / step - 1e-9).ceil());
    // A single value has room on both sides.
    let (first, last) = if first >= last { (first - 1.0, last + 1.0) } else { (first, last) };
    let count = (last - first).round() as usize;
    let ticks: Vec<f64> = (0..=count).map(|i| (first + i as f64) * step).collect();
    (first * step, last * step, ticks)
}

/// Ends and ticks at 1, 2 or 5 times a power of ten, at powers only if that would be too many.
fn log_ticks(min: f64, max: f64) -> (f64, f64, Vec<f64>) {
    let powers = (min.log10() - 1.0).floor() as i32..=(max.log10() + 1.0).ceil() as i32;
    let of = |factors: &[f64]| {
        let all: Vec<f64> = powers.clone().flat_map(|p| factors.iter().map(move |m| m * 10_f64.powi(p))).collect();
        let first = all.iter().rposition(|&tick| tick <= min * (1.0 + 1e-9)).unwrap_or(0);
        let last = all.iter().position(|&tick| tick >= max * (1.0 - 1e-9)).unwrap_or(all.len() - 1);
        all[first..=last].to_vec()
    };
    let fine = of(&[1.0, 2.0, 5.0]);
    let (from, to) = (fine[0], fine[fine.len() - 1]);
    if fine.len() <= TICKS {
        return (from, to, fine);
    }
    let powers: Vec<f64> = of(&[1.0]).into_iter().filter(|&tick| tick >= from && tick <= to).collect();
    let every = powers.len().div_ceil(TICKS);
    (from, to, powers.into_iter().step_by(every).collect())
}

/// A number in as few digits as tell it from its neighbours: four decimals at most, and powers of ten where zeros would be many.
pub(super) fn number(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e6).contains(&value.abs()) {
        return format!("{value:.3e}").replace(".000e", "e");
    }
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ticks_are_round() {
        let ticks =
            |values: &[f64]| Axis::of("", values.iter().copied()).ticks.iter().map(|&t| number(t)).collect::<Vec<_>>();
        assert_eq!(ticks(&[1.0, 1.3]), ["1", "1.05", "1.1", "1.15", "1.2", "1.25", "1.3"]);
        assert_eq!(ticks(&[1.0, 30.0]), ["1", "2", "5", "10", "20", "50"]);
        assert_eq!(ticks(&[0.9, 2e5]), ["1", "10", "100", "1000", "10000", "100000"]);
        assert_eq!(ticks(&[5.0]), ["4.999", "5", "5.001"]);
        assert_eq!(ticks(&[]).first().map(String::as_str), Some("0"));
        assert_eq!(ticks(&[1.0, 1e40]).len(), 7);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in
            [(0.0, "0"), (-0.00001, "-1e-5"), (0.5, "0.5"), (1234.5, "1234.5"), (2e6, "2e6"), (1.23456e7, "1.235e7")]
        {
            assert_eq!(number(value), text);
        }
    }

    proptest! {
        /// Every value is on the axis, in order, and so is every tick.
        #[test]
        fn all_values_have_a_place(values in prop::collection::vec(prop_oneof![-1e6..1e6_f64, 1e-3..1e9_f64], 1..9)) {
            let axis = Axis::of("", values.iter().copied());
            prop_assert!(axis.ticks.len() <= 12 && !axis.ticks.is_empty());
            for &value in values.iter().chain(&axis.ticks) {
                let place = axis.place(value);
                prop_assert!((-1e-6..=1.0 + 1e-6).contains(&place), "{value} at {place} of {axis:?}");
            }
            prop_assert!(axis.ticks.windows(2).all(|pair| axis.place(pair[0]) < axis.place(pair[1])));
        }
    }
}
