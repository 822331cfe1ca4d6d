//! Text of others (names of files, columns and labels, keys, tokens) as a terminal may have it.

use std::borrow::Cow;
use std::fmt::Write;

/// `text` with every character that would steer a terminal or turn the reading order written as its escape, `\u{1b}`. Line breaks stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, |c| c != '\n' && steers(c))
}

/// As [`printable`], line breaks too: for what must not pass for another line.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escape(text, steers)
}

/// Whether `c` is a control character (C0, DEL, C1), a separator of lines or paragraphs, or one of Unicode's marks, embeddings, overrides and
/// isolates of direction.
pub fn steers(c: char) -> bool {
    let direction = ['\u{61c}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}'];
    c.is_control()
        || ('\u{2066}'..='\u{2069}').contains(&c)
        || c == '\u{2028}'
        || c == '\u{2029}'
        || direction.contains(&c)
}

fn escape(text: &str, unwanted: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&unwanted) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        // writing to a string does not fail
        let _ = if unwanted(c) { write!(out, "{}", c.escape_default()) } else { out.write_char(c) };
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped_and_nothing_else() {
        let hostile = "a\u{1b}[2J\tb\r\u{7f}\u{9b}31m\u{202e}c\u{2069}\0\u{2028}";
        let shown = r"a\u{1b}[2J\tb\r\u{7f}\u{9b}31m\u{202e}c\u{2069}\u{0}\u{2028}";
        assert_eq!(printable(hostile), shown);
        assert_eq!(printable(&printable(hostile)), shown);
        let fine = "naïve \u{2013} “größer”, שלום 你好 👩\u{200d}🔬\nnext";
        assert!(matches!(printable(fine), Cow::Borrowed(same) if same == fine));
        assert_eq!(one_line("a\nhint: b"), r"a\nhint: b");
        for c in (0..0x20).chain(0x7f..0xa0).chain(0x202a..0x202f).chain(0x2066..0x206a).filter_map(char::from_u32) {
            assert!(one_line(&c.to_string()).chars().all(|c| !steers(c)), "{c:?}");
        }
    }
}
