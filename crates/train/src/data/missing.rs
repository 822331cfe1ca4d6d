//! Labels that are none.

use colrow_tensor::Error;

/// Whether a label is none, by what programs write for no value; nobody calls a class so. Words that might be a class (`NA`, `None`) are
/// for [`LabelMap`](super::LabelMap) to judge by the other labels.
pub(crate) fn is_missing(label: &str) -> bool {
    const NONE: [&str; 8] = ["", "nan", "+nan", "-nan", "nat", "<na>", "#n/a", "#na"];
    NONE.iter().any(|none| label.eq_ignore_ascii_case(none)) || label.ends_with("1.#IND") || label.ends_with("1.#QNAN")
}

/// The error of a label that is missing, as which `found` stands in the file.
pub(crate) fn missing(found: &str) -> Error {
    if found.is_empty() {
        return Error::new("the label is missing");
    }
    Error::new(format!("the label is missing: found {found:?}"))
        .hint("leave out the rows without a label; a class that is really called so needs another name")
}
