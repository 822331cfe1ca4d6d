//! Names that look alike: what of a label people do not see, or do not mean.

use std::borrow::Cow;
use std::collections::BTreeMap;

use tokenizers::NormalizedString;

/// A name without regard to case, to white space around and between its words, to how its accents are written, and to characters that
/// are not seen.
pub(super) fn folded(name: &str) -> String {
    by_case_and_space(&seen(name))
}

fn by_case_and_space(name: &str) -> String {
    name.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// A name in Unicode's composed form (NFC), without characters that have no width.
fn seen(name: &str) -> Cow<'_, str> {
    if name.is_ascii() {
        return name.into();
    }
    let mut composed = NormalizedString::from(name);
    composed.nfc();
    composed.get().chars().filter(|&c| !is_unseen(c)).collect::<String>().into()
}

fn is_unseen(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}')
}

/// How two names that are one when folded differ, and how to show them so that it is seen.
pub(super) fn difference(a: &str, b: &str) -> (String, String, &'static str) {
    if by_case_and_space(a) == by_case_and_space(b) {
        return (format!("{a:?}"), format!("{b:?}"), "by case or white space");
    }
    let escaped = |name: &str| format!("\"{}\"", name.escape_default());
    (escaped(a), escaped(b), "in how Unicode spells what looks the same")
}

/// The integer that `label` spells, also as a float without fraction.
pub(super) fn integer(label: &str) -> Option<i128> {
    const EXACT: f64 = (1_i64 << 53) as f64;
    let float = || label.parse::<f64>().ok().filter(|v| v.fract() == 0.0 && v.abs() < EXACT).map(|v| v as i128);
    label.parse().ok().or_else(float)
}

/// Those of `labels` that spell one integer, by that integer, where there are several.
pub(super) fn same_integers<'a>(labels: impl Iterator<Item = &'a str>) -> Vec<(i128, Vec<&'a str>)> {
    let mut spellings = BTreeMap::<i128, Vec<&str>>::new();
    for label in labels {
        if let Some(n) = integer(label) {
            spellings.entry(n).or_default().push(label);
        }
    }
    spellings.into_iter().filter(|(_, labels)| labels.len() > 1).collect()
}

/// `"7", "7.0" and "007"`.
pub(super) fn in_quotes(labels: &[&str]) -> String {
    let quoted: Vec<String> = labels.iter().map(|label| format!("{label:?}")).collect();
    match &quoted[..] {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        all => all.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_the_same_folds_to_the_same() {
        for (a, b) in [
            ("Yes ", "yes"),
            ("caf\u{e9}", "cafe\u{301}"),
            ("a\u{200b}b", "ab"),
            ("\u{feff}no", "no"),
            ("a\u{a0}b", "a b"),
        ] {
            assert_eq!(folded(a), folded(b), "{a:?}");
        }
        assert_ne!(folded("cafe"), folded("caf\u{e9}"));
        assert_ne!(folded("\u{ff21}"), folded("A"), "they do not look the same");
        let (a, b, how) = difference("caf\u{e9}", "cafe\u{301}");
        assert_eq!(
            (&*a, &*b, how),
            ("\"caf\\u{e9}\"", "\"cafe\\u{301}\"", "in how Unicode spells what looks the same")
        );
        assert_eq!(difference("A", "a").2, "by case or white space");
    }

    #[test]
    fn integers_are_told_apart_to_the_last_digit() {
        assert_eq!([integer("007"), integer("7.0"), integer("-7"), integer("7.5")], [Some(7), Some(7), Some(-7), None]);
        assert_ne!(integer("18446744073709551616"), integer("18446744073709551617"));
        assert_eq!(integer("18446744073709551616"), Some(1 << 64));
        assert_eq!(same_integers(["7", "8", "x", "007"].into_iter()), [(7, vec!["7", "007"])]);
        assert_eq!(in_quotes(&["7", "007", "7.0"]), "\"7\", \"007\" and \"7.0\"");
    }
}
