//! What a file's records mean: which columns hold the text, its pair and the label, and how they become examples. Readers know their formats
//! and ask here; they know no task.

use super::{Example, Examples, Names, Request};
use colrow_tensor::{Error, Result};

/// Positions of the columns that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pick {
    pub(crate) text: usize,
    pub(crate) pair: Option<usize>,
    pub(crate) label: Option<usize>,
}

impl Pick {
    /// The names of these positions.
    pub(crate) fn names(self, found: &[&str]) -> Names {
        let name = |i: usize| found[i].to_owned();
        Names { text: name(self.text), pair: self.pair.map(name), label: self.label.map(name) }
    }
}

/// Finds the columns by the names that `want` gives, or by the usual ones.
pub(crate) fn pick(found: &[&str], want: &Request) -> Result<Pick> {
    let position = |name: &str| found.iter().position(|f| *f == name);
    let listed = || format!("found columns: {}", found.join(", "));
    let hint = "name the columns in the recipe: data.text, data.pair, data.label";
    let given = |name: &String, key: &str| {
        let missing = || Error::new(format!("no column {name:?} (the recipe's {key}); {}", listed())).hint(hint);
        position(name).ok_or_else(missing)
    };

    let columns = want.columns;
    let known = columns.known.as_ref();
    let layouts: Vec<(&str, Option<&str>)> = known
        .map(|names| (names.text.as_str(), names.pair.as_deref()))
        .into_iter()
        .chain(want.task.spec().columns.iter().copied())
        .collect();
    let pair = columns.pair.as_ref().map(|name| given(name, "data.pair")).transpose()?;
    let usual = || match pair {
        Some(_) => layouts.iter().find_map(|(text, _)| position(text).filter(|&i| Some(i) != pair)).map(|i| (i, pair)),
        None => layouts.iter().find_map(|(text, pair)| match pair {
            Some(pair) => Some((position(text)?, Some(position(pair)?))),
            None => Some((position(text)?, None)),
        }),
    };
    let (text, pair) = match &columns.text {
        Some(name) => (given(name, "data.text")?, pair),
        None => usual().ok_or_else(|| {
            let names = |(text, pair): &(&str, Option<&str>)| {
                pair.map_or(text.to_string(), |pair| format!("{text} and {pair}"))
            };
            let expected: Vec<String> = layouts.iter().map(names).collect();
            let what = format!("expected the columns {} for task {}, ", expected.join(", or "), want.task);
            Error::new(what + &listed()).hint(hint)
        })?,
    };
    if want.task.needs_pair() && pair.is_none() {
        let what = format!("task {} compares two texts, but the recipe gives data.text without data.pair", want.task);
        return Err(Error::new(what).hint(hint));
    }

    let label = match &columns.label {
        Some(name) if want.labels_required => Some(given(name, "data.label")?),
        Some(name) => position(name),
        None => {
            let known = known.and_then(|names| names.label.as_deref());
            known.iter().chain(want.task.spec().label_columns).find_map(|name| position(name))
        }
    };
    if want.labels_required && label.is_none() {
        let expected = want.task.spec().label_columns.join(" or ");
        return Err(Error::new(format!("expected a column {expected} with the label, {}", listed())).hint(hint));
    }
    for column in [Some(text), pair, label].into_iter().flatten() {
        let name = found[column];
        if found.iter().filter(|other| **other == name).count() > 1 {
            return Err(Error::new(format!("two columns are called {name:?}, and which is meant cannot be known"))
                .hint("rename or leave out one of them"));
        }
    }
    Ok(Pick { text, pair, label })
}

impl Request<'_> {
    /// The columns of a table whose first line is no header but an example, as that of CoLA.
    pub(crate) fn headerless(&self, first: &[&str]) -> Option<&'static [&'static str]> {
        let spec = self.task.spec();
        let columns = spec.headerless.filter(|columns| columns.len() == first.len())?;
        let label = columns.iter().position(|column| spec.label_columns.contains(column))?;
        spec.labels.is_some_and(|labels| labels.contains(&first[label])).then_some(columns)
    }

    /// Whether lines that do not have the header's number of fields are left out.
    pub(crate) fn skips_ragged(&self) -> bool {
        self.task.spec().ragged
    }

    /// Whether two labels that differ in their last digit are two labels.
    pub(crate) fn counts_digits(&self) -> bool {
        !self.task.is_regression()
    }

    /// Whether a column of this name may be read.
    pub(crate) fn may_read(&self, name: &str) -> bool {
        let columns = self.columns;
        let spec = self.task.spec();
        let asked = [&columns.text, &columns.pair, &columns.label].into_iter().flatten();
        let known = columns.known.as_ref().into_iter();
        let trained = known.flat_map(|names| [Some(&names.text), names.pair.as_ref(), names.label.as_ref()]);
        let usual = spec.columns.iter().flat_map(|&(text, pair)| [Some(text), pair]).flatten();
        let usual = usual.chain(spec.label_columns.iter().copied());
        asked.chain(trained.flatten()).map(String::as_str).chain(usual).any(|column| column == name)
    }

    /// Checks that texts without columns will do.
    pub(crate) fn check_texts_alone(&self) -> Result<()> {
        const TABLE: &str = "give a .csv, .tsv, .jsonl or .parquet file with named columns";
        if self.labels_required {
            return Err(Error::new("expected texts with labels, found lines of text alone").hint(TABLE));
        }
        if self.task.needs_pair() {
            let what = format!("task {} compares two texts, and a line of text is one", self.task);
            return Err(Error::new(what).hint(TABLE));
        }
        Ok(())
    }
}

/// What is said of labels with blanks.
const PADDED: &str = "labels are read without the white space around them";

impl Examples {
    /// Appends the example of a line (or row, from 1) and a row of the data (from 0).
    pub(crate) fn push(
        &mut self,
        want: &Request,
        (line, row): (u64, u64),
        text: String,
        pair: Option<String>,
        label: Option<&str>,
    ) -> Result<()> {
        let written = label;
        let label = label.map(str::trim);
        // once
        if label != written && !self.notes.iter().any(|note| note.starts_with(PADDED)) {
            self.notes.push(format!("{PADDED}; the first is in {} {line}", self.unit));
        }
        let there = label.filter(|label| !is_missing(label)).map(str::to_owned);
        if want.labels_required && there.is_none() {
            return Err(missing(label.unwrap_or_default()));
        }
        self.rows.push(Example { text, pair, label: there, line, row });
        Ok(())
    }
}

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

#[cfg(test)]
mod tests {
    use super::super::Columns;
    use super::*;
    use crate::tasks::Task;

    fn find(found: &[&str], task: Task, given: [&str; 3], labels_required: bool) -> Result<(usize, usize, usize)> {
        let name = |i: usize| (!given[i].is_empty()).then(|| given[i].to_owned());
        let columns = Columns { text: name(0), pair: name(1), label: name(2), known: None };
        let Pick { text, pair, label } = pick(found, &Request { task, columns: &columns, labels_required })?;
        Ok((text, pair.unwrap_or(9), label.unwrap_or(9)))
    }

    #[test]
    fn labels_with_white_space_around_them_are_told_once() {
        let mut examples = Examples::default();
        let want = Request { task: Task::Classify, columns: &Columns::default(), labels_required: true };
        for (line, label) in [(1, "a"), (2, " a"), (3, "b\t"), (4, "b")] {
            examples.push(&want, (line, line - 1), String::new(), None, Some(label)).unwrap();
        }
        assert_eq!(examples.notes, ["labels are read without the white space around them; the first is in line 2"]);
        assert!(examples.rows.iter().map(|e| e.label.as_deref().unwrap()).eq(["a", "a", "b", "b"]));
    }

    #[test]
    fn usual_names() {
        let none = ["", "", ""];
        assert_eq!(find(&["label", "text"], Task::Classify, none, true).unwrap(), (1, 9, 0));
        assert_eq!(find(&["sentence", "label"], Task::Regress, none, true).unwrap(), (0, 9, 1));
        assert_eq!(find(&["text", "pair", "label"], Task::Classify, none, true).unwrap(), (0, 1, 2));
        assert_eq!(find(&["sentence", "question", "label"], Task::Qnli, none, true).unwrap(), (1, 0, 2));
        // as `datasets` writes it
        assert_eq!(find(&["premise", "hypothesis", "label", "idx"], Task::Mnli, none, true).unwrap(), (0, 1, 2));
        assert_eq!(
            find(&["label1", "sentence1", "sentence2", "gold_label"], Task::Mnli, none, true).unwrap(),
            (1, 2, 3)
        );
        assert_eq!(find(&["text"], Task::Classify, none, false).unwrap(), (0, 9, 9));
    }

    #[test]
    fn a_name_that_two_columns_have_is_an_error_where_it_is_read() {
        let none = ["", "", ""];
        for found in [["text", "label", "text"], ["text", "label", "label"]] {
            let error = find(&found, Task::Classify, none, true).unwrap_err().to_string();
            assert!(error.contains(&format!("two columns are called {:?}", found[2])), "{error}");
        }
        assert_eq!(find(&["", "text", "", "label"], Task::Classify, none, true).unwrap(), (1, 9, 3));
        assert!(find(&["text", "label", "label"], Task::Classify, ["text", "", ""], false).is_err());
    }

    #[test]
    fn given_names() {
        let found = ["a", "b", "c", "text", "label"];
        assert_eq!(find(&found, Task::Classify, ["a", "b", "c"], true).unwrap(), (0, 1, 2));
        assert_eq!(find(&found, Task::Classify, ["", "b", ""], true).unwrap(), (3, 1, 4));
        assert_eq!(find(&["text", "pair", "label"], Task::Classify, ["text", "", ""], true).unwrap(), (0, 9, 2));
        assert_eq!(find(&found, Task::Classify, ["", "", "absent"], false).unwrap(), (3, 9, 9));
    }

    #[test]
    fn known_names_come_before_the_usual_ones() {
        let known = Names { text: "review".into(), pair: None, label: Some("mood".into()) };
        let columns = Columns { known: Some(known.clone()), ..Columns::default() };
        let want = Request { task: Task::Classify, columns: &columns, labels_required: true };
        let found = ["text", "label", "review", "mood"];
        assert_eq!(pick(&found, &want).unwrap().names(&found), known);
        let found = ["text", "label"];
        let usual = Names { text: "text".into(), pair: None, label: Some("label".into()) };
        assert_eq!(pick(&found, &want).unwrap().names(&found), usual);
        let given = Columns { text: Some("text".into()), ..columns.clone() };
        let found = ["text", "review", "mood"];
        let picked = pick(&found, &Request { columns: &given, ..want }).unwrap().names(&found);
        assert_eq!(picked, Names { text: "text".into(), ..known });
        let error = pick(&["a", "b"], &want).unwrap_err().to_string();
        assert!(error.contains("expected the columns review, or sentence1 and sentence2"), "{error}");
    }

    #[test]
    fn errors_name_what_was_found_and_the_keys() {
        let message = |found: &[&str], task, given| {
            let error = find(found, task, given, true).unwrap_err().to_string();
            assert!(error.contains("data.text, data.pair, data.label"), "{error}");
            error
        };
        let error = message(&["a", "b"], Task::Rte, ["", "", ""]);
        assert!(error.contains("premise and hypothesis, or sentence1 and sentence2"), "{error}");
        assert!(error.contains("found columns: a, b"), "{error}");
        let error = message(&["a", "b"], Task::Classify, ["c", "", ""]);
        assert!(error.contains("no column \"c\" (the recipe's data.text); found columns: a, b"), "{error}");
        assert!(message(&["text"], Task::Classify, ["", "", ""]).contains("expected a column label"));
        assert!(
            message(&["text"], Task::Classify, ["", "", "y"]).contains("no column \"y\" (the recipe's data.label)")
        );
        assert!(message(&["a", "label"], Task::Rte, ["a", "", ""]).contains("without data.pair"));
    }
}
