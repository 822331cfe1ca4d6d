//! Texts, alone or in pairs, each with a label: which columns of a file they are, and how a record becomes one.

use colrow_tensor::{Error, Result};

use crate::data::missing::{is_missing, missing};
use crate::data::record::{Column, Kind, Reading, Record, TABLE};
use crate::data::{Columns, Example, Names};
use crate::tasks::Task;

/// What the objectives of a text and its label read: the columns that are asked for by name, or those that the task's files usually have.
#[derive(Clone, Copy, Debug)]
pub struct LabelledTexts<'a> {
    /// Decides the usual column names.
    pub task: Task,
    /// Column names that replace the usual ones.
    pub columns: &'a Columns,
    /// Whether a missing label is an error.
    pub labels_required: bool,
}

/// What is said of labels with blanks.
const PADDED: &str = "labels are read without the white space around them";

impl LabelledTexts<'_> {
    /// The column of labels at `place`.
    fn label(&self, found: &[&str], place: usize) -> Column {
        // numbers to predict may be rounded, classes may not
        let kind = Kind::Value { required: self.labels_required, exact: !self.task.is_regression() };
        Column::new(Names::LABEL, found, place, kind)
    }
}

impl Reading for LabelledTexts<'_> {
    /// Finds the columns by the names that are given, or by the usual ones.
    fn columns(&self, found: &[&str]) -> Result<Vec<Column>> {
        let position = |name: &str| found.iter().position(|f| *f == name);
        let listed = || format!("found columns: {}", found.join(", "));
        let hint = "name the columns in the recipe: data.text, data.pair, data.label";
        let given = |name: &String, key: &str| {
            let missing = || Error::new(format!("no column {name:?} (the recipe's {key}); {}", listed())).hint(hint);
            position(name).ok_or_else(missing)
        };

        let columns = self.columns;
        let known = columns.known.as_ref();
        let layouts: Vec<(&str, Option<&str>)> = known
            .map(|names| (names.text.as_str(), names.pair.as_deref()))
            .into_iter()
            .chain(self.task.spec().columns.iter().copied())
            .collect();
        let pair = columns.pair.as_ref().map(|name| given(name, "data.pair")).transpose()?;
        let usual = || match pair {
            Some(_) => {
                layouts.iter().find_map(|(text, _)| position(text).filter(|&i| Some(i) != pair)).map(|i| (i, pair))
            }
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
                let what = format!("expected the columns {} for task {}, ", expected.join(", or "), self.task);
                Error::new(what + &listed()).hint(hint)
            })?,
        };
        if self.task.needs_pair() && pair.is_none() {
            let what =
                format!("task {} compares two texts, but the recipe gives data.text without data.pair", self.task);
            return Err(Error::new(what).hint(hint));
        }

        let label = match &columns.label {
            Some(name) if self.labels_required => Some(given(name, "data.label")?),
            Some(name) => position(name),
            None => {
                let known = known.and_then(|names| names.label.as_deref());
                known.iter().chain(self.task.spec().label_columns).find_map(|name| position(name))
            }
        };
        if self.labels_required && label.is_none() {
            let expected = self.task.spec().label_columns.join(" or ");
            return Err(Error::new(format!("expected a column {expected} with the label, {}", listed())).hint(hint));
        }
        for column in [Some(text), pair, label].into_iter().flatten() {
            let name = found[column];
            if found.iter().filter(|other| **other == name).count() > 1 {
                return Err(Error::new(format!("two columns are called {name:?}, and which is meant cannot be known"))
                    .hint("rename or leave out one of them"));
            }
        }
        let text = Column::new(Names::TEXT, found, text, Kind::Text);
        let pair = pair.map(|place| Column::new(Names::PAIR, found, place, Kind::Text));
        let label = label.map(|place| self.label(found, place));
        Ok([Some(text), pair, label].into_iter().flatten().collect())
    }

    fn example(&self, mut record: Record, notes: &mut Vec<String>) -> Result<Example> {
        let written = record.text(Names::LABEL);
        let label = written.as_deref().map(str::trim);
        // once
        if label != written.as_deref() && !notes.iter().any(|note| note.starts_with(PADDED)) {
            notes.push(format!("{PADDED}; the first is in {} {}", record.unit, record.line));
        }
        let there = label.filter(|label| !is_missing(label)).map(str::to_owned);
        if self.labels_required && there.is_none() {
            return Err(missing(label.unwrap_or_default()));
        }
        let text = record.text(Names::TEXT).unwrap_or_default();
        Ok(Example {
            text,
            pair: record.text(Names::PAIR),
            label: there,
            line: record.line,
            row: record.row,
            counted: None,
        })
    }

    fn lines(&self) -> Result<Column> {
        if self.labels_required {
            return Err(Error::new("expected texts with labels, found lines of text alone").hint(TABLE));
        }
        if self.task.needs_pair() {
            let what = format!("task {} compares two texts, and a line of text is one", self.task);
            return Err(Error::new(what).hint(TABLE));
        }
        Ok(Column { role: Names::TEXT, name: String::new(), place: 0, kind: Kind::Text })
    }

    fn asks_by_name(&self) -> bool {
        self.columns.text.is_some() || self.columns.pair.is_some()
    }

    fn may_read(&self, name: &str) -> bool {
        let columns = self.columns;
        let spec = self.task.spec();
        let asked = [&columns.text, &columns.pair, &columns.label].into_iter().flatten();
        let known = columns.known.as_ref().into_iter();
        let trained = known.flat_map(|names| [Some(&names.text), names.pair.as_ref(), names.label.as_ref()]);
        let usual = spec.columns.iter().flat_map(|&(text, pair)| [Some(text), pair]).flatten();
        let usual = usual.chain(spec.label_columns.iter().copied());
        asked.chain(trained.flatten()).map(String::as_str).chain(usual).any(|column| column == name)
    }

    fn task(&self) -> Task {
        self.task
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Unit;
    use crate::data::record::{Cell, Records};

    fn find(found: &[&str], task: Task, given: [&str; 3], labels_required: bool) -> Result<(usize, usize, usize)> {
        let name = |i: usize| (!given[i].is_empty()).then(|| given[i].to_owned());
        let columns = Columns { text: name(0), pair: name(1), label: name(2), known: None };
        let columns = LabelledTexts { task, columns: &columns, labels_required }.columns(found)?;
        let place = |role| columns.iter().find(|column| column.role == role).map_or(9, |column| column.place);
        Ok((place(Names::TEXT), place(Names::PAIR), place(Names::LABEL)))
    }

    #[test]
    fn labels_with_white_space_around_them_are_told_once() {
        let want = LabelledTexts { task: Task::Classify, columns: &Columns::default(), labels_required: true };
        let mut records = Records::new(&want, Unit::Line);
        records.header(&["label", "text"]).unwrap();
        for (line, label) in [(1, "a"), (2, " a"), (3, "b\t"), (4, "b")] {
            let cell = |text: &str| Some(Cell::Text(text.to_owned()));
            records.push((line, line - 1), vec![cell(""), cell(label)]).unwrap();
        }
        let examples = records.finish("").unwrap();
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
        let want = LabelledTexts { task: Task::Classify, columns: &columns, labels_required: true };
        let names = |want: &LabelledTexts, found: &[&str]| Names::of(&want.columns(found).unwrap()).unwrap();
        let found = ["text", "label", "review", "mood"];
        assert_eq!(names(&want, &found), known);
        let found = ["text", "label"];
        let usual = Names { text: "text".into(), pair: None, label: Some("label".into()) };
        assert_eq!(names(&want, &found), usual);
        let given = Columns { text: Some("text".into()), ..columns.clone() };
        let found = ["text", "review", "mood"];
        let picked = names(&LabelledTexts { columns: &given, ..want }, &found);
        assert_eq!(picked, Names { text: "text".into(), ..known });
        let error = want.columns(&["a", "b"]).unwrap_err().to_string();
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
