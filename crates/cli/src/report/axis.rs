//! Axes of charts: a range and its round ticks.

use crate::units::{self, BINARY_UNITS};

/// A range with round ticks.
#[derive(Debug)]
pub(super) struct Axis {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Measured values: the range is widened to round ticks.
    pub(super) fn values(low: f64, high: f64) -> Axis {
        let (low, high) = if high - low > high.abs().max(low.abs()) * 1e-9 {
            (low, high)
        } else {
            let margin = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            (low - margin, high + margin)
        };
        let step = round_step((high - low) / 5.0);
        // A little slack: what rounding puts beside a tick is on it.
        let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
        let count = (last - first).clamp(1.0, 20.0) as u32;
        let tick = |i: u32| (first + f64::from(i)) * step;
        let ticks = (0..=count).map(|i| (tick(i), tick_label(tick(i), step))).collect();
        Axis { low: tick(0).min(low), high: tick(count).max(high), ticks }
    }

    /// Places for so many names, which the chart writes itself.
    pub(super) fn named(count: usize) -> Axis {
        Axis { low: 0.0, high: count.max(1) as f64, ticks: Vec::new() }
    }

    /// Whole steps: the range stays, round ticks lie in it.
    pub(super) fn steps(low: f64, high: f64) -> Axis {
        let (low, high) = if high > low { (low, high) } else { (low - 1.0, high + 1.0) };
        let step = round_step((high - low) / 8.0).max(1.0);
        let first = (low / step).ceil();
        let ticks = (0..=20)
            .map(|i| (first + f64::from(i)) * step)
            .take_while(|x| *x <= high)
            .map(|x| (x, if x < 0.0 { String::new() } else { step_label(x) }))
            .collect();
        Axis { low, high, ticks }
    }

    /// Bytes from 0 in one binary unit, which is returned too, with about `ticks` ticks.
    pub(super) fn bytes(most: u64, ticks: f64) -> (Axis, &'static str) {
        let power = (most.max(1).ilog2() / 10) as usize;
        let unit = 1024f64.powi(power as i32);
        let most = most.max(1) as f64 / unit;
        let step = round_step(most / ticks.max(2.0));
        let count = (most / step).ceil().clamp(1.0, 20.0) as u32;
        let tick = |i: u32| f64::from(i) * step;
        let labels = (0..=count).map(|i| (tick(i) * unit, tick_label(tick(i), step))).collect();
        (Axis { low: 0.0, high: tick(count) * unit, ticks: labels }, BINARY_UNITS[power])
    }

    /// The axis' name, which says where it begins if that is not 0: differences look larger there than they are.
    pub(super) fn title(&self, name: &str) -> String {
        match self.ticks.first() {
            Some((low, label)) if *low > 0.0 && self.low > 0.0 => format!("{name} (axis from {label}, not 0)"),
            _ => name.to_owned(),
        }
    }

    /// Where a value lies, 0 at the low end and 1 at the high end.
    pub(super) fn place(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is at least `step`.
fn round_step(step: f64) -> f64 {
    let step = step.max(1e-300);
    let power = 10f64.powf(step.log10().floor());
    // A little slack, so that 0.2 is a step for 0.2000…01.
    [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= step * 0.999_999).unwrap_or(step)
}

fn tick_label(value: f64, step: f64) -> String {
    if value.abs() < step * 1e-6 {
        return "0".into();
    }
    let decimals = (-step.log10() - 1e-9).ceil().max(0.0) as usize;
    // a power of ten reads better only where it is shorter
    if decimals > 3 && value.abs() < 1e-2 || decimals > 7 || value.abs() >= 1e5 {
        format!("{value:.1e}").replace(".0e", "e")
    } else {
        format!("{value:.decimals$}")
    }
}

fn step_label(x: f64) -> String {
    match x {
        x if x >= 1e6 => format!("{}M", units::number(x / 1e6).trim_end_matches('0').trim_end_matches('.')),
        x if x >= 1e4 && x % 1e3 == 0.0 => format!("{:.0}k", x / 1e3),
        x => units::count(x as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|t| t.1.as_str()).collect()
    }

    #[test]
    fn axes_have_round_ticks() {
        assert_eq!(labels(&Axis::values(0.12, 0.71)), ["0", "0.2", "0.4", "0.6", "0.8"]);
        assert_eq!(labels(&Axis::values(0.0, 2e-5)), ["0", "5e-6", "1e-5", "1.5e-5", "2e-5"]);
        assert_eq!(labels(&Axis::values(3.0, 3.0)), ["2.6", "2.8", "3.0", "3.2", "3.4"]);
        assert_eq!(labels(&Axis::steps(0.0, 420.0)), ["0", "100", "200", "300", "400"]);
        assert_eq!(labels(&Axis::steps(0.0, 60_000.0)), ["0", "10k", "20k", "30k", "40k", "50k", "60k"]);
        let (axis, unit) = Axis::bytes(412 << 20, 5.0);
        assert_eq!((labels(&axis), unit), (vec!["0", "100", "200", "300", "400", "500"], "MiB"));
        assert_eq!(Axis::bytes(u64::MAX, 5.0).1, "EiB");
    }

    #[test]
    fn axes_of_any_finite_range_hold_it() {
        for (low, high) in [(0.0, 0.0), (-1.0, 1e30), (-1e30, 1e30), (1e-300, 2e-300), (1e15, 1e15 + 1.0), (-5.0, -5.0)]
        {
            let axis = Axis::values(low, high);
            assert!(axis.low <= low && axis.high >= high && axis.high > axis.low, "{low} {high} {axis:?}");
            assert!(axis.ticks.len() <= 21 && axis.place(low).is_finite());
        }
    }

    #[test]
    fn an_axis_that_does_not_begin_at_0_says_so() {
        assert_eq!(Axis::values(0.991, 0.999).title("accuracy"), "accuracy (axis from 0.990, not 0)");
        assert_eq!(Axis::values(0.0, 1.0).title("accuracy"), "accuracy");
        assert_eq!(Axis::values(-0.2, 1.0).title("pearson"), "pearson");
        assert_eq!(Axis::steps(0.0, 10.0).title("step"), "step");
    }
}
