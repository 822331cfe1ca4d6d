//! `{% generation %}`, by which a template says what the model writes. It is a block of `transformers`' own: for the library it becomes one that
//! is always run, and where the marks are asked for it writes a sign at its beginning and at its end.

use std::ops::Range;

/// The signs, of Unicode's last private plane, which no text has.
const BEGIN: char = '\u{10fff0}';
const END: char = '\u{10fff1}';

/// A tag of the block: where it stands, its white-space control, whether it ends the block.
struct Tag<'a> {
    place: Range<usize>,
    before: &'a str,
    behind: &'a str,
    ends: bool,
}

/// The first tag of the block in `source`, from byte `from` on.
fn next(source: &str, from: usize) -> Option<Tag<'_>> {
    let mut start = from;
    loop {
        start += source[start..].find("{%")?;
        let inner = &source[start + 2..];
        let control = |text: &str| usize::from(text.starts_with(['-', '+']));
        let before = &inner[..control(inner)];
        let word = inner[before.len()..].trim_start();
        let (ends, rest) = match (word.strip_prefix("generation"), word.strip_prefix("endgeneration")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => {
                start += 2;
                continue;
            }
        };
        let rest = rest.trim_start();
        let behind = &rest[..control(rest)];
        if rest[behind.len()..].starts_with("%}") {
            let end = source.len() - rest.len() + behind.len() + 2;
            return Some(Tag { place: start..end, before, behind, ends });
        }
        start += 2;
    }
}

pub(super) fn is_marked(source: &str) -> bool {
    next(source, 0).is_some()
}

/// The template for the library.
pub(super) fn without_marks(source: &str) -> String {
    rewritten(source, |tag| match tag.ends {
        false => format!("{{%{} if true {}%}}", tag.before, tag.behind),
        true => format!("{{%{} endif {}%}}", tag.before, tag.behind),
    })
}

/// The same, with signs. What stands at the outer ends of the tags stays a tag of a block, so that white space is cut as it was.
pub(super) fn with_marks(source: &str) -> String {
    rewritten(source, |tag| {
        let (before, behind) = (tag.before, tag.behind);
        match tag.ends {
            false => format!("{{%{before} if true %}}{{{{ '{BEGIN}' }}}}{{% if true %}}{{% endif {behind}%}}"),
            true => format!("{{%{before} if true %}}{{% endif %}}{{{{ '{END}' }}}}{{% endif {behind}%}}"),
        }
    })
}

fn rewritten(source: &str, write: impl Fn(&Tag<'_>) -> String) -> String {
    let (mut text, mut from) = (String::with_capacity(source.len()), 0);
    while let Some(tag) = next(source, from) {
        text += &source[from..tag.place.start];
        text += &write(&tag);
        from = tag.place.end;
    }
    text + &source[from..]
}

/// A text without its signs, and what stood between them; `None` if they do not go in pairs.
pub(super) fn read(marked: &str) -> Option<(String, Vec<Range<usize>>)> {
    let (mut text, mut ranges, mut open) = (String::with_capacity(marked.len()), Vec::new(), None);
    for c in marked.chars() {
        match (c, open) {
            (BEGIN, None) => open = Some(text.len()),
            (END, Some(start)) => {
                ranges.push(start..text.len());
                open = None;
            }
            (BEGIN | END, _) => return None,
            _ => text.push(c),
        }
    }
    open.is_none().then_some((text, ranges))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found_and_nothing_else_is_touched() {
        let source =
            "a {%- generation -%} b {%+endgeneration%}{% generation x %}{% set generation = 1 %}{{ generation }}";
        assert!(is_marked(source));
        assert_eq!(
            without_marks(source),
            "a {%- if true -%} b {%+ endif %}{% generation x %}{% set generation = 1 %}{{ generation }}"
        );
        assert!(!is_marked("{% if generation %}{% endif %} {%") && !is_marked("{% generation"));
        assert_eq!(read("a\u{10fff0}bc\u{10fff1}d\u{10fff0}\u{10fff1}"), Some(("abcd".into(), vec![1..3, 4..4])));
        assert_eq!((read("\u{10fff1}"), read("\u{10fff0}"), read("\u{10fff0}\u{10fff0}")), (None, None, None));
    }
}
