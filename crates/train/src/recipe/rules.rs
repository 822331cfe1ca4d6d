//! Rules: what a key of a recipe accepts. An error is the text that follows the key's path in the report.

use std::ops::RangeInclusive;

use colrow_tensor::Named;
use globset::Glob;

use super::document::{At, Node, Value};
use super::{Every, Ratio};
use crate::chat::Moment;
use crate::unknown::nearest;

/// How a recipe writes [`Every::Epoch`].
pub(super) const EPOCH: &str = "epoch";

/// How like a key or a value must be to be taken for a slip of the pen; see [`nearest`].
pub(super) const LIKE: f64 = 0.8;

/// How a recipe writes [`Ratio::Auto`].
pub(super) const AUTO: &str = "auto";

/// The error of a value that is not what was expected.
pub(super) fn wrong<T>(expected: &str, node: &Node) -> Result<T, String> {
    Err(format!("expected {expected}, found {}", found(&node.value)))
}

fn found(value: &Value) -> String {
    match value {
        Value::Text(s) if s.chars().count() > 60 => {
            format!("the string {:?}…", s.chars().take(60).collect::<String>())
        }
        Value::Text(s) => format!("the string {s:?}"),
        Value::Whole { raw, .. } | Value::Number { raw, .. } | Value::Other { raw } => raw.clone(),
        Value::Flag(flag) => flag.to_string(),
        Value::List(_) => "a list".into(),
        Value::Table(_) => "a table".into(),
    }
}

/// A finite number, whole or not, that is `ok`.
pub(super) fn number(expected: &'static str, ok: impl Fn(f64) -> bool) -> impl Fn(&Node) -> Result<f64, String> {
    move |node| match node.value {
        Value::Number { value, .. } if value.is_finite() && ok(value) => Ok(value),
        Value::Whole { value, .. } if ok(value as f64) => Ok(value as f64),
        _ => wrong(expected, node),
    }
}

/// See [`Ratio`].
pub(super) fn ratio(node: &Node) -> Result<Ratio, String> {
    match &node.value {
        Value::Text(s) if s == AUTO => Ok(Ratio::Auto),
        _ => number("a number in (0, 1] or \"auto\"", |x| x > 0.0 && x <= 1.0)(node).map(Ratio::Fixed),
    }
}

/// Most steps, examples, evaluations: a run of a microsecond a step would take eleven days.
pub(super) const MOST_STEPS: i128 = 1_000_000_000_000;

/// A number of bytes.
pub(super) fn bytes(node: &Node) -> Result<u64, String> {
    let value = match &node.value {
        Value::Whole { value, .. } => u64::try_from(*value).ok(),
        Value::Text(s) => parse_bytes(s),
        _ => None,
    };
    // more has no integer in TOML
    value
        .filter(|&n| n > 0 && n <= i64::MAX as u64)
        .map_or_else(|| wrong("a size such as \"200MiB\" or a number of bytes", node), Ok)
}

/// Reads bytes as people write them: `8GiB`, `1.5 GiB`, `512MiB` (binary), `8GB` (decimal), `4096`, `4096 B`; letters in any case.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let unit = unit.trim_start().to_ascii_lowercase();
    let powers = ["", "k", "m", "g", "t", "p", "e"].into_iter().zip(0..);
    let factors = powers.flat_map(|(prefix, power)| {
        [(format!("{prefix}ib"), 1024_f64.powi(power)), (format!("{prefix}b"), 1000_f64.powi(power))]
    });
    let factor = if unit.is_empty() { 1.0 } else { factors.skip(1).find(|(name, _)| *name == unit)?.1 };
    let value = number.parse::<f64>().ok()? * factor;
    (value < u64::MAX as f64).then_some(value as u64)
}

/// A whole number of a range, all of which fits `T`.
pub(super) fn whole_number<T: TryFrom<i128>>(range: RangeInclusive<i128>) -> impl Fn(&Node) -> Result<T, String> {
    move |node| {
        let (least, most) = (range.start(), range.end());
        let end = match node.value {
            Value::Whole { value, .. } if range.contains(&value) => match T::try_from(value) {
                Ok(value) => return Ok(value),
                Err(_) => format!("most {most}"),
            },
            Value::Whole { value, .. } if value > *most => format!("most {most}"),
            _ => format!("least {least}"),
        };
        wrong(&format!("a whole number of at {end}"), node)
    }
}

/// A string that says something.
pub(super) fn text(node: &Node) -> Result<String, String> {
    match &node.value {
        Value::Text(s) if !s.is_empty() => Ok(s.clone()),
        // On the command line nobody quotes a revision that happens to be all digits, or `true`.
        Value::Whole { raw, .. } | Value::Number { raw, .. } | Value::Other { raw }
            if matches!(node.at, At::Set(_)) =>
        {
            Ok(raw.clone())
        }
        Value::Flag(flag) if matches!(node.at, At::Set(_)) => Ok(flag.to_string()),
        _ => wrong("a string that is not empty", node),
    }
}

/// A day, as a text or a date of TOML's.
pub(super) fn day(node: &Node) -> Result<String, String> {
    let (Value::Text(day) | Value::Other { raw: day }) = &node.value else {
        return wrong("a day such as \"2026-11-28\"", node);
    };
    match Moment::of_day(day) {
        Some(_) => Ok(day.clone()),
        None => wrong("a day such as \"2026-11-28\"", node),
    }
}

/// A label's name, which may be a number.
pub(super) fn label(node: &Node) -> Result<String, String> {
    match &node.value {
        Value::Whole { raw, .. } => Ok(raw.clone()),
        _ => text(node),
    }
}

/// A pattern over names.
pub(super) fn glob(node: &Node) -> Result<String, String> {
    let glob = text(node)?;
    match Glob::new(&glob) {
        Ok(_) => Ok(glob),
        Err(e) => Err(format!("expected a glob, found {glob:?}: {}", e.kind())),
    }
}

/// True or false.
pub(super) fn flag(node: &Node) -> Result<bool, String> {
    match node.value {
        Value::Flag(flag) => Ok(flag),
        _ => wrong("true or false", node),
    }
}

/// See [`Every`].
pub(super) fn every(node: &Node) -> Result<Every, String> {
    match &node.value {
        Value::Text(s) if s == EPOCH => Ok(Every::Epoch),
        _ => whole_number(1..=MOST_STEPS)(node)
            .map(Every::Steps)
            .map_err(|e| e.replacen("a whole number", &format!("{EPOCH:?} or a whole number of steps"), 1)),
    }
}

/// One of a closed set of names.
pub(super) fn choice<T: Named>(node: &Node) -> Result<T, String> {
    let written = match &node.value {
        Value::Text(s) => s.as_str(),
        _ => "",
    };
    if let Some(found) = T::find(written) {
        return Ok(found);
    }
    let names: Vec<_> = T::ALL.iter().map(|c| format!("{:?}", c.name())).collect();
    let expected = if names.len() == 1 { names.concat() } else { format!("one of {}", names.join(", ")) };
    let hint = nearest(written, T::ALL.iter().map(|c| c.name()), LIKE).map(|n| format!("; did you mean {n:?}?"));
    wrong(&expected, node).map_err(|e: String| e + &hint.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("200MiB", 200 << 20),
            ("1.5 GiB", 3 << 29),
            ("8gb", 8_000_000_000),
            ("4 kB", 4000),
            ("2TiB", 2 << 40),
            ("8 gib", 8 << 30),
            ("4096", 4096),
            (" 12 B ", 12),
            ("0", 0),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in
            ["", "MiB", "8G", "ib", "8 ib", "-1B", "1e3", "1.2.3B", "16EiB", "99999PiB", "8 8B", "1,5GiB", "8MiB/s"]
        {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }
}
