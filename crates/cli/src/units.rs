//! Numbers as people read them: bytes, durations, counts, dates.

use std::time::{SystemTime, UNIX_EPOCH};

/// The binary units of memory, each 1024 times the one before.
pub(crate) const BINARY_UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// What stands in for a value that is absent or not finite.
pub(crate) const ABSENT: &str = "–";

/// Bytes in binary units with three significant digits: `512 B`, `1.50 KiB`, `48.2 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64;
    let mut unit = 0;
    // 1023.5 would print as 1024 of the smaller unit.
    while value >= 1023.5 && unit + 1 < BINARY_UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(value), BINARY_UNITS[unit])
}

/// A time in seconds, in the unit that suits it: `850 µs`, `12.3 ms`, `1.24 s`, `4 min 12 s`, `2 h 03 min`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return ABSENT.into();
    }
    match seconds {
        0.0 => "0 s".into(),
        // Each limit is where the smaller unit would round up to the larger one.
        s if s < 0.999_5e-3 => format!("{} µs", three_digits(s * 1e6)),
        s if s < 0.999_5 => format!("{} ms", three_digits(s * 1e3)),
        s if s < 59.95 => format!("{} s", three_digits(s)),
        s if s < 3599.5 => {
            let whole = s.round() as u64;
            format!("{} min {:02} s", whole / 60, whole % 60)
        }
        s => {
            let minutes = (s / 60.0).round() as u64;
            format!("{} h {:02} min", count(minutes / 60), minutes % 60)
        }
    }
}

/// A whole number with its thousands apart: `8,000`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A measured value (a loss, a metric) with about four digits: `0.9140`, `12.35`, `1.90e-5`.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    match value {
        v if !v.is_finite() => ABSENT.into(),
        0.0 => "0".into(),
        v if !(1e-3..1e6).contains(&size) => format!("{v:.2e}"),
        v if size < 1.0 => format!("{v:.4}"),
        v if size < 10.0 => format!("{v:.3}"),
        v if size < 100.0 => format!("{v:.2}"),
        v => format!("{v:.0}"),
    }
}

/// A ratio to a reference: `×0.31`.
pub(crate) fn ratio(value: f64) -> String {
    if !value.is_finite() {
        return ABSENT.into();
    }
    if value >= 99.5 { format!("×{value:.0}") } else { format!("×{value:.2}") }
}

/// A moment as `2026-03-09 14:05 UTC`; moments before 1970 read as its first minute.
pub(crate) fn date(moment: SystemTime) -> String {
    let seconds = moment.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (mut days, minutes) = (seconds / 86_400, seconds % 86_400 / 60);
    // The calendar repeats every 400 years of 146,097 days.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02} {:02}:{:02} UTC", month + 1, days + 1, minutes / 60, minutes % 60)
}

fn three_digits(value: f64) -> String {
    match value {
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn bytes_take_the_unit_that_suits_them() {
        for (n, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (50_540_000, "48.2 MiB"),
            (1024 * 1024 - 1, "1.00 MiB"),
            (1023 * 1024, "1023 KiB"),
            (8 << 30, "8.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(n), expected, "{n}");
        }
    }

    #[test]
    fn durations_take_the_unit_that_suits_them() {
        for (seconds, expected) in [
            (0.0, "0 s"),
            (8.5e-4, "850 µs"),
            (0.9996e-3, "1.00 ms"),
            (0.0123, "12.3 ms"),
            (0.9999, "1.00 s"),
            (1.239, "1.24 s"),
            (59.96, "1 min 00 s"),
            (252.0, "4 min 12 s"),
            (3599.9, "1 h 00 min"),
            (7380.0, "2 h 03 min"),
            (f64::NAN, ABSENT),
            (-1.0, ABSENT),
        ] {
            assert_eq!(duration(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn counts_numbers_and_ratios() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        let numbers = [0.0, 0.914, 1.5, 12.345, 1234.5, 1.9e-5, -0.25, 3e9, f64::INFINITY].map(number);
        assert_eq!(numbers, ["0", "0.9140", "1.500", "12.35", "1234", "1.90e-5", "-0.2500", "3.00e9", ABSENT]);
        assert_eq!([0.314, 100.0, f64::NAN].map(ratio), ["×0.31", "×100", ABSENT]);
    }

    #[test]
    fn dates_follow_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
            (13_574_563_200, "2400-02-29 00:00 UTC"),
        ] {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
