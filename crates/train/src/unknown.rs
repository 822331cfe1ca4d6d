//! Names that are none of those that are known: which of them was perhaps meant.

use colrow_tensor::Error;

/// The candidate most like `word` by Jaro and Winkler, if any is at least `like` it, in [0, 1].
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>, like: f64) -> Option<&'a str> {
    let likeness = |c: &'a str| (strsim::jaro_winkler(word, c), c);
    let alike = candidates.into_iter().map(likeness).filter(|(likeness, _)| *likeness >= like);
    alike.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}

/// The error for a name that is none of `known`: gives the nearest to it as it is compared, `plain`, then all.
pub(crate) fn unknown(kind: &str, given: &str, plain: &str, known: &[&str]) -> Error {
    const LIKE: f64 = 0.6;
    let all = known.join(", ");
    let hint = match nearest(plain, known.iter().copied(), LIKE) {
        Some(name) => format!("did you mean {name}? Known: {all}"),
        None => format!("known: {all}"),
    };
    Error::usage(format!("unknown {kind} {given:?}")).hint(hint)
}
